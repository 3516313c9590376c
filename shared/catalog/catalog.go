// Package catalog knows what an upstream laid out like downloads.openwrt.org
// offers: versions, targets, devices, packages and ImageBuilders. It fetches
// that when it is asked for, verifies it, keeps it distilled on disk or in a
// store of objects and little of it in memory, and goes on with what it has
// while the upstream is down.
//
// What vouches for what: a target's sha256sums is signed by a usign key of the
// Options or of ReleaseKeys, and vouches for its profiles.json, its
// ImageBuilder and, where they are listed, its package indices. Other indices
// of opkg are held against their Packages.sig where there is one; those of apk,
// packages.adb, have to be signed by a key of the Options if these have any.
// Without a signature or a key they are taken as they are: they only decide
// what is refused at once and how names are spelled, and the ImageBuilder
// verifies by itself what it installs. Of apk's packages an index.json tells no
// more than names and versions: it is made do with where there is nothing else.
// The lists of versions and targets are not signed upstream.
//
// Nothing that fails a check replaces what was good before.
//
// In a store, each unit is one object that is replaced whole: a target with
// its package indices, the feeds of an architecture, a list of targets. So
// none is ever a mix of two states of the upstream. The index beside them holds
// the lists and who signs, tells which units changed, and is stored after them.
// What the store holds was verified by who stored it; whoever may write there
// is trusted. Only the key that signed a target is looked at again.
package catalog

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"path"
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

// Options configure a Catalog. Upstream is required, and Dir or Objects.
type Options struct {
	Upstream string            // "https://downloads.openwrt.org"
	Keys     []usign.PublicKey // trusted beside ReleaseKeys
	// APKKeys are trusted to sign packages.adb. If there are any, every
	// packages.adb that no sha256sums lists has to be signed by one of them.
	APKKeys []*ecdsa.PublicKey

	// Dir is the cache folder, made if needed, of one process that asks the
	// upstream while it answers.
	Dir string
	// Objects, in place of Dir, is a store that many processes share. One of
	// them calls Refresh or Run; the others Follow it: what is in the store
	// they believe whatever its age, and they ask the upstream only for what
	// is not there, and put that in.
	Objects build.Objects
	Follow  bool

	// Inspect asks an ImageBuilder what it builds, where the upstream has no
	// profiles.json; it answers with one (metadata_version 1, images and kernel
	// may be missing). It is called once for each archive, and may take an hour.
	// Where nobody can, nil: over a store, others are then asked to.
	Inspect func(ctx context.Context, version, target string, a Archive) ([]byte, error)
	// Wake, which may be nil, has one of those others come.
	Wake func(ctx context.Context) error

	Distribution string       // "" = OpenWrt
	Client       *http.Client // nil = one with time limits
	Log          *slog.Logger // nil = slog.Default()
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
	apkKeys       []*ecdsa.PublicKey
	log           *slog.Logger
	web           *web
	disk          *disk  // or
	store         *store // the one or the other is nil
	follow        bool
	parsing       chan struct{} // one large index at a time, they take memory
	jobs          *jobs
	inspect       func(ctx context.Context, version, target string, a Archive) ([]byte, error)
	wake          func(ctx context.Context) error
	inspections   inspections
	stop          context.CancelFunc

	refreshing sync.Mutex
	refreshed  atomic.Bool          // at least tried
	looked     atomic.Int64         // when the upstream told its versions, Unix time; 0 if not known
	view       atomic.Pointer[view] // nil until the versions are known
	syncing    chan struct{}        // held by who reads the store's index
	synced     atomic.Pointer[reading]

	lists   collection[targetList] // by version
	targets collection[target]     // by version/target
	feeds   collection[index]      // by version/architecture
}

// collection holds things of one kind, by key.
type collection[T any] interface {
	// get returns the thing, or nil and an error.
	get(ctx context.Context, key string, n need) (*T, error)
	// warm begins to read the thing into memory if it is in a cache that is
	// far away; wait is to be called.
	warm(ctx context.Context, key string) (wait func())
	// keys lists what is in memory.
	keys() []string
}

// kind is how things of one kind come from the upstream into the cache and
// from the cache into memory. Files of the cache that belong to one thing are
// one unit of a store.
type kind[T any] struct {
	unit    func(key string) string
	load    func(f files, key string) (*T, error) // fs.ErrNotExist
	refresh func(ctx context.Context, f files, key string) error
}

func newCollection[T any](c *Catalog, size int, k kind[T]) collection[T] {
	if c.store != nil {
		return newMirror(size, c, k)
	}
	return newShelf(size, c.jobs,
		func(key string) (*T, error) { return k.load(c.disk, key) },
		func(ctx context.Context, key string) error { return k.refresh(ctx, c.disk, key) })
}

// New makes a Catalog of what its cache holds. It does not touch the network:
// a store is read when the first question comes.
func New(o Options) (*Catalog, error) {
	keys, err := ReleaseKeys()
	if err != nil {
		return nil, err
	}
	web, err := newWeb(o.Upstream, o.Client)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	log := cmp.Or(o.Log, slog.Default())
	c := &Catalog{
		distribution: cmp.Or(o.Distribution, "OpenWrt"), keys: append(keys, o.Keys...), apkKeys: o.APKKeys,
		maxAgeMoving: cmp.Or(o.Interval, 5*time.Minute), maxAgeRelease: cmp.Or(o.ReleaseInterval, time.Hour),
		log: log, jobs: &jobs{ctx: ctx, log: log}, stop: stop, web: web, follow: o.Follow,
		inspect: o.Inspect, wake: o.Wake,
		parsing: make(chan struct{}, 1), syncing: make(chan struct{}, 1),
	}
	if err := c.openCache(o); err != nil {
		stop()
		return nil, err
	}
	c.lists = newCollection(c, listsInMemory, c.kindOfLists())
	c.targets = newCollection(c, targetsInMemory, c.kindOfTargets())
	c.feeds = newCollection(c, feedsInMemory, c.kindOfFeeds())
	if c.disk != nil {
		if v, err := loadVersions(c.disk); err == nil {
			c.look(c.disk, v)
		}
	}
	return c, nil
}

func (c *Catalog) openCache(o Options) (err error) {
	switch {
	case o.Objects != nil && o.Dir != "":
		return errors.New("a catalogue has a cache folder or a store of objects, not both")
	case o.Objects != nil:
		c.store = &store{objects: o.Objects, base: c.web.base}
	case o.Follow:
		return errors.New("only a catalogue in a store of objects can follow another process")
	default:
		c.disk, err = openDisk(o.Dir, c.web.base)
	}
	return err
}

func (c *Catalog) kindOfLists() kind[targetList] {
	return kind[targetList]{listKey, c.loadList, c.refreshList}
}

func (c *Catalog) kindOfTargets() kind[target] {
	return kind[target]{func(key string) string { return key }, c.loadTarget, c.refreshTarget}
}

func (c *Catalog) kindOfFeeds() kind[index] {
	return kind[index]{feedsKey, c.loadFeeds, c.refreshFeeds}
}

// Close ends what goes on behind and waits for it.
func (c *Catalog) Close() error {
	c.stop()
	c.jobs.group.Wait()
	if c.disk == nil {
		return nil
	}
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
			c.log.Warn("catalogue: the list of versions could not be brought up to date", "in", wait.Round(time.Millisecond), "error", err)
		} else {
			pause.Reset()
		}
		if c.disk != nil {
			c.freshen(ctx)
		}
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

// Refresh looks at the upstream once: for the list of versions, and for each
// branch for its targets and who signs it. Over a store it also brings all
// that is in there up to date, as far as ctx gives the time; a follower then
// only reads what another process stored.
func (c *Catalog) Refresh(ctx context.Context) error {
	c.refreshing.Lock()
	defer c.refreshing.Unlock()
	defer c.refreshed.Store(true)
	switch {
	case c.store == nil:
		return c.refreshFolder(ctx)
	case c.follow:
		return c.sync(ctx, 0)
	}
	return c.refreshStore(ctx)
}

func (c *Catalog) refreshFolder(ctx context.Context) error {
	v, err := c.refreshVersions(ctx, c.disk)
	if err != nil {
		return err
	}
	v.probe(func(version string) {
		list, err := c.lists.get(ctx, version, need{maxAge: c.maxAge(version), fresh: true, until: time.Now().Add(patience)})
		if err == nil { // else it is logged there
			c.refreshSigner(ctx, c.disk, version, *list)
			c.refreshArchive(ctx, c.disk, version, *list)
		}
	})
	c.look(c.disk, v)
	c.looked.Store(time.Now().Unix())
	return nil
}

// Age is how long ago the upstream last told its versions, to whichever
// process asked it; false if that is not known.
func (c *Catalog) Age() (time.Duration, bool) {
	at := c.looked.Load()
	if at == 0 {
		return 0, false
	}
	return max(0, time.Since(time.Unix(at, 0))), true
}

// probe calls look for the versions that stand for their branches, several at
// a time.
func (v *versionList) probe(look func(version string)) {
	var g errgroup.Group
	g.SetLimit(maxRequests)
	for _, b := range v.branches() {
		for _, version := range b.probed() {
			g.Go(func() error {
				look(version)
				return nil
			})
		}
	}
	g.Wait()
}

func (c *Catalog) refreshVersions(ctx context.Context, f files) (versionList, error) {
	err := c.renew(ctx, f, ".versions", maxListFile, []string{".versions.json"}, func(_ string, body []byte) ([]byte, error) {
		v, err := parseVersions(body)
		if err != nil {
			return nil, err
		}
		return json.Marshal(v)
	})
	if err != nil {
		return versionList{}, err
	}
	v, err := loadVersions(f)
	if err != nil {
		err = fmt.Errorf("read the list of versions from the cache: %w", err)
	}
	return v, err
}

// refreshSigner fetches the fingerprint of the key that signs a version.
// Without an answer, what was known before holds.
func (c *Catalog) refreshSigner(ctx context.Context, f files, version string, list targetList) {
	paths := list.some(version, "sha256sums.sig")
	err := c.renew(ctx, f, version+"/.signer", maxSignature, paths, func(_ string, body []byte) ([]byte, error) {
		sig, err := usign.ParseSignature(body)
		return []byte(sig.Fingerprint.String()), err
	})
	if errors.Is(err, errAbsent) {
		err = f.write(version+"/.signer", meta{Form: form, Source: c.web.base + "/" + paths[0]}, nil)
	}
	if err != nil {
		c.log.Warn("catalogue: cannot see who signs", "version", version, "error", err)
	}
}

// some are the addresses of a file of a version's first targets. Of a snapshot,
// a target whose build failed may be missing.
func (list targetList) some(version, file string) []string {
	var paths []string
	for _, target := range slices.Sorted(maps.Keys(list)) {
		paths = append(paths, folder(version)+"/targets/"+target+"/"+file)
	}
	return paths[:min(len(paths), 3)]
}

// refreshArchive looks whether a version has ImageBuilders at all: some that
// upstreams list are without. It notes the first that it finds, or that there
// is none. Without an answer, what was known before holds.
func (c *Catalog) refreshArchive(ctx context.Context, f files, version string, list targetList) {
	if c.signerTrouble(f, version) != "" {
		return
	}
	for _, sums := range list.some(version, "sha256sums") {
		err := c.renew(ctx, f, version+"/.archive", maxSums, []string{sums}, func(_ string, body []byte) ([]byte, error) {
			sums, _, err := c.verifiedSums(ctx, path.Dir(sums), body)
			return []byte(archiveOf(sums).Name), err
		})
		if err != nil && !errors.Is(err, errAbsent) {
			c.log.Warn("catalogue: cannot see whether there is an ImageBuilder", "version", version, "error", err)
			return
		}
		if _, name, err := f.read(version + "/.archive"); err == nil && name != "" {
			return
		}
	}
}

func loadVersions(f files) (versionList, error) {
	_, text, err := f.read(".versions")
	if err != nil {
		return versionList{}, err
	}
	v, err := parseVersions([]byte(text))
	if err != nil {
		f.drop(".versions")
		return versionList{}, fs.ErrNotExist
	}
	return v, nil
}

func listKey(version string) string { return version + "/.targets" }

func (c *Catalog) loadList(f files, version string) (*targetList, error) {
	_, text, err := f.read(listKey(version))
	if err != nil {
		return nil, err
	}
	list, err := parseTargets([]byte(text))
	if err != nil {
		f.drop(listKey(version))
		return nil, fs.ErrNotExist
	}
	return &list, nil
}

func (c *Catalog) refreshList(ctx context.Context, f files, version string) error {
	return c.renew(ctx, f, listKey(version), maxListFile, []string{folder(version) + "/.targets.json"}, func(_ string, body []byte) ([]byte, error) {
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
func (c *Catalog) renew(ctx context.Context, f files, key string, limit int64, paths []string, distill func(path string, body []byte) ([]byte, error)) error {
	old := f.meta(key)
	// What was made do with for want of better may be there by now.
	if used := c.pathOf(old); slices.Contains(paths, used) && path.Base(used) != "index.json" {
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
		return f.write(key, m, text)
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
