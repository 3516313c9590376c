// Package catalog knows what an upstream laid out like downloads.openwrt.org
// offers: versions, targets, devices, packages and ImageBuilders. It fetches
// that when it is asked for, verifies it, keeps it distilled on disk and
// little of it in memory, and goes on with what it has while the upstream is
// down.
//
// What vouches for what: a target's sha256sums is signed by a usign key of the
// Options or of ReleaseKeys, and vouches for its profiles.json, its
// ImageBuilder and, where they are listed, its package indices. Other indices
// are held against their Packages.sig where there is one. Without a signature
// they are taken as they are: they only decide which names are refused at
// once and how names are spelled, and the ImageBuilder verifies by itself what
// it installs. The lists of versions and targets are not signed upstream.
//
// Nothing that fails a check replaces what was good before.
package catalog

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/usign"
	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sync/errgroup"
)

// Options configure a Catalog. Upstream and Dir are required.
type Options struct {
	Upstream     string            // "https://downloads.openwrt.org"
	Keys         []usign.PublicKey // trusted beside ReleaseKeys
	Dir          string            // the cache folder, made if needed; of one process
	Distribution string            // "" = OpenWrt
	Client       *http.Client      // nil = one with time limits
	Log          *slog.Logger      // nil = slog.Default()
	// Interval is how old the list of versions and everything of snapshots
	// may get; ReleaseInterval the same for what belongs to releases.
	// Zero means 5 minutes and 1 hour.
	Interval, ReleaseInterval time.Duration
}

// How much is kept in memory. A large index takes about 1 MB, a target with
// 500 profiles half of that.
const (
	listsInMemory   = 32
	targetsInMemory = 16
	feedsInMemory   = 8
)

// patience is how long a client waits for what was never fetched before. It
// has to be answered within 15 seconds.
const patience = 10 * time.Second

// Catalog answers questions about one upstream. Its methods may be called at
// the same time.
type Catalog struct {
	distribution  string
	maxAgeMoving  time.Duration
	maxAgeRelease time.Duration
	keys          []usign.PublicKey
	log           *slog.Logger
	web           *web
	disk          *disk
	parsing       chan struct{} // one large index at a time, they take memory
	jobs          *jobs
	stop          context.CancelFunc

	refreshing sync.Mutex
	refreshed  atomic.Bool          // at least tried
	view       atomic.Pointer[view] // nil until the versions are known
	lists      *shelf[targetList]   // by version
	targets    *shelf[target]       // by version/target
	feeds      *shelf[index]        // by version/architecture
}

// New opens the cache and makes a Catalog from what it holds. It does not
// touch the network.
func New(o Options) (*Catalog, error) {
	keys, err := ReleaseKeys()
	if err != nil {
		return nil, err
	}
	web, err := newWeb(o.Upstream, o.Client)
	if err != nil {
		return nil, err
	}
	disk, err := openDisk(o.Dir, web.base)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	log := cmp.Or(o.Log, slog.Default())
	c := &Catalog{
		distribution: cmp.Or(o.Distribution, "OpenWrt"), keys: append(keys, o.Keys...),
		maxAgeMoving: cmp.Or(o.Interval, 5*time.Minute), maxAgeRelease: cmp.Or(o.ReleaseInterval, time.Hour),
		log: log, jobs: &jobs{ctx: ctx, log: log}, stop: stop, web: web, disk: disk, parsing: make(chan struct{}, 1),
	}
	c.lists = newShelf(listsInMemory, c.jobs, c.loadList, c.refreshList)
	c.targets = newShelf(targetsInMemory, c.jobs, c.loadTarget, c.refreshTarget)
	c.feeds = newShelf(feedsInMemory, c.jobs, c.loadFeeds, c.refreshFeeds)
	if v, err := c.loadVersions(); err == nil {
		c.look(v)
	}
	return c, nil
}

// Close ends what goes on behind and waits for it.
func (c *Catalog) Close() error {
	c.stop()
	c.jobs.group.Wait()
	return c.disk.root.Close()
}

// Run keeps the catalogue up to date until ctx ends.
func (c *Catalog) Run(ctx context.Context) error {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = time.Second, c.maxAgeMoving
	for ctx.Err() == nil {
		wait := c.maxAgeMoving
		if err := c.Refresh(ctx); err != nil {
			wait = pause.NextBackOff()
			c.log.Warn("catalogue: the list of versions could not be fetched", "in", wait.Round(time.Millisecond), "error", err)
		} else {
			pause.Reset()
		}
		c.freshen(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

// freshen starts updates of what was used lately and is old.
func (c *Catalog) freshen(ctx context.Context) {
	for _, key := range c.targets.keys() {
		c.targets.get(ctx, key, need{maxAge: c.maxAge(key)})
	}
	for _, key := range c.feeds.keys() {
		c.feeds.get(ctx, key, need{maxAge: c.maxAge(key)})
	}
}

// maxAge is how old something of a version may get. The key is the version
// or begins with it.
func (c *Catalog) maxAge(key string) time.Duration {
	if version, _, _ := strings.Cut(key, "/"); isSnapshot(version) {
		return c.maxAgeMoving
	}
	return c.maxAgeRelease
}

// Refresh fetches the list of versions, and what goes with it for each
// branch: its targets and who signs it.
func (c *Catalog) Refresh(ctx context.Context) error {
	c.refreshing.Lock()
	defer c.refreshing.Unlock()
	defer c.refreshed.Store(true)
	err := c.renew(ctx, ".versions", maxListFile, []string{".versions.json"}, func(_ string, body []byte) ([]byte, error) {
		v, err := parseVersions(body)
		if err != nil {
			return nil, err
		}
		return json.Marshal(v)
	})
	if err != nil {
		return err
	}
	v, err := c.loadVersions()
	if err != nil {
		return fmt.Errorf("read the list of versions from the cache: %w", err)
	}
	var g errgroup.Group
	g.SetLimit(maxRequests)
	for _, b := range v.branches() {
		for _, version := range b.probed() {
			g.Go(func() error {
				c.probe(ctx, version)
				return nil
			})
		}
	}
	g.Wait()
	c.look(v)
	return nil
}

// probe fetches the list of a version's targets and the fingerprint of the
// key that signs it. Without an answer, what was known before holds.
func (c *Catalog) probe(ctx context.Context, version string) {
	list, err := c.lists.get(ctx, version, need{maxAge: c.maxAge(version), fresh: true, until: time.Now().Add(patience)})
	if err != nil {
		return // logged there
	}
	var paths []string
	for _, target := range slices.Sorted(maps.Keys(*list)) {
		paths = append(paths, folder(version)+"/targets/"+target+"/sha256sums.sig")
	}
	// A target whose build failed may be missing from a snapshot.
	paths = paths[:min(len(paths), 3)]
	err = c.renew(ctx, version+"/.signer", maxSignature, paths, func(_ string, body []byte) ([]byte, error) {
		sig, err := usign.ParseSignature(body)
		return []byte(sig.Fingerprint.String()), err
	})
	if errors.Is(err, errAbsent) {
		err = c.disk.write(version+"/.signer", meta{Form: form, Source: c.web.base + "/" + paths[0]}, nil)
	}
	if err != nil {
		c.log.Warn("catalogue: cannot see who signs", "version", version, "error", err)
	}
}

func (c *Catalog) loadVersions() (versionList, error) {
	var v versionList
	_, text, err := c.disk.read(".versions")
	if err == nil && json.Unmarshal([]byte(text), &v) != nil {
		c.disk.drop(".versions")
		err = fs.ErrNotExist
	}
	return v, err
}

func (c *Catalog) loadList(version string) (*targetList, error) {
	_, text, err := c.disk.read(version + "/.targets")
	if err != nil {
		return nil, err
	}
	list, err := parseTargets([]byte(text))
	if err != nil {
		c.disk.drop(version + "/.targets")
		return nil, fs.ErrNotExist
	}
	return &list, nil
}

func (c *Catalog) refreshList(ctx context.Context, version string) error {
	return c.renew(ctx, version+"/.targets", maxListFile, []string{folder(version) + "/.targets.json"}, func(_ string, body []byte) ([]byte, error) {
		list, err := parseTargets(body)
		if err != nil {
			return nil, err
		}
		return json.Marshal(list)
	})
}

// renew brings one file of the cache up to date, from the first of the paths
// that the upstream has. errAbsent means that it has none of them; the file
// stays as it was then, and after every other error.
func (c *Catalog) renew(ctx context.Context, key string, limit int64, paths []string, distill func(path string, body []byte) ([]byte, error)) error {
	old := c.disk.meta(key)
	if used := c.pathOf(old); slices.Contains(paths, used) {
		paths = append([]string{used}, paths...)
	}
	for _, path := range paths {
		body, m, err := c.web.get(ctx, path, limit, old)
		switch {
		case errors.Is(err, errAbsent):
			continue
		case errors.Is(err, errUnchanged):
			return nil
		case err != nil:
			return err
		}
		text, err := distill(path, body)
		if err != nil {
			return fmt.Errorf("%s: %w", m.Source, err)
		}
		return c.disk.write(key, m, text)
	}
	return backoff.Permanent(fmt.Errorf("%w: %s", errAbsent, strings.Join(paths, ", ")))
}

// pathOf is where the upstream has the file.
func (c *Catalog) pathOf(m meta) string { return strings.TrimPrefix(m.Source, c.web.base+"/") }

// unavailable is the answer while something is not there that will be.
func unavailable(format string, args ...any) *build.Refusal {
	return &build.Refusal{Code: build.CodeUnavailable, RetryAfter: 30 * time.Second, Detail: fmt.Sprintf(format, args...)}
}

func unsupported(format string, args ...any) *build.Refusal {
	return &build.Refusal{Code: build.CodeUnsupported, Detail: fmt.Sprintf(format, args...)}
}
