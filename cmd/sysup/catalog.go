package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/sync/errgroup"

	"github.com/attended-sysupgrade/sysup/builder"
	"github.com/attended-sysupgrade/sysup/builder/imagebuilder"
	"github.com/attended-sysupgrade/sysup/builder/sandbox"
	"github.com/attended-sysupgrade/sysup/shared/aws"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
	"github.com/attended-sysupgrade/sysup/shared/sqlite"
)

type catalogCmd struct {
	Sync catalogSyncCmd `cmd:"" help:"Fetch versions with their ImageBuilders before anybody asks for them."`
}

type catalogSyncCmd struct {
	All         bool     `help:"All versions that can be built, snapshots too, not only the newest release of each branch."`
	Version     []string `help:"Only this version. Repeatable." placeholder:"VERSION"`
	Target      []string `help:"Only this target, such as x86/64. Repeatable." placeholder:"TARGET"`
	CatalogOnly bool     `help:"Leave out the ImageBuilders, but for those that have to say themselves what they build."`
	Parallel    int      `help:"Targets at once." default:"2"`
	Data        string   `help:"The server's data folder; with --bucket, one to work in." default:"data" type:"path" env:"SYSUP_DATA"`
	Upstream    string   `help:"Download server to build from." default:"https://downloads.openwrt.org" env:"SYSUP_UPSTREAM" placeholder:"URL"`
	UpstreamKey []string `help:"Public key that signs the upstream's checksums (usign) or apk's indices (PEM), a file or its base64 line; OpenWrt's usign keys of releases are known. Repeatable." env:"SYSUP_UPSTREAM_KEY" placeholder:"KEY"`
	CacheSize   int64    `help:"Disk space for unpacked ImageBuilders, in GiB." default:"20" env:"SYSUP_CACHE_SIZE"`
	BuildUID    int      `help:"User number that runs ImageBuilders when this is root. Nobody else should have it." default:"64646" env:"SYSUP_BUILD_UID"`

	storeFlags   `embed:""`
	sandboxFlags `embed:""`
}

// Help is shown by --help.
func (catalogSyncCmd) Help() string {
	return `Without this, a version is fetched when the first client asks for it, who then waits.

The data folder belongs to one process: stop the server while this runs over its folder, and start it again after it.
With --table, --queue-url and --bucket the server goes on; the archives of the ImageBuilders are then put into the bucket,
where builders look first, and the data folder is a place to work in.

What is there already is not fetched again, so the command may be interrupted and repeated.`
}

// Validate is called by kong.
func (c *catalogSyncCmd) Validate() error {
	switch {
	case c.Parallel < 1 || c.Parallel > 16:
		return fmt.Errorf("--parallel has to be between 1 and 16, it is %d", c.Parallel)
	case c.CacheSize < 1:
		return fmt.Errorf("--cache-size has to be 1 GiB or more, it is %d", c.CacheSize)
	case c.BuildUID < 1 || c.BuildUID > maxUID:
		return fmt.Errorf("--build-uid has to be an ordinary user's number, at most %d, it is %d", maxUID, c.BuildUID)
	case c.All && len(c.Version) > 0:
		return errors.New("--all and --version exclude each other")
	}
	return errors.Join(c.storeFlags.Validate(), checkURL("--upstream", c.Upstream))
}

// syncer is what the command works with.
type syncer struct {
	catalogSyncCmd
	log     *slog.Logger
	lock    io.Closer
	catalog *catalog.Catalog
	trees   *imagebuilder.Store
	ask     func() (*builder.Inspector, error) // made when first needed: not every version has to be asked
}

// Run initialises what is chosen, as far as it can.
func (c *catalogSyncCmd) Run(ctx context.Context, out io.Writer, log *slog.Logger) error {
	s, err := c.open(ctx, log)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.catalog.Refresh(ctx); err != nil && ctx.Err() == nil {
		log.Warn("the list of versions could not be brought up to date", "error", err)
	}
	parts, err := s.chosen(ctx)
	if err != nil {
		return err
	}
	return s.sync(ctx, parts, newTally(out, len(parts)))
}

func (c *catalogSyncCmd) open(ctx context.Context, log *slog.Logger) (s *syncer, err error) {
	s = &syncer{catalogSyncCmd: *c, log: log}
	if s.Data, err = filepath.Abs(s.Data); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.Data, 0o711); err != nil {
		return nil, fmt.Errorf("make the data folder: %w", err)
	}
	if s.lock, err = sqlite.Lock(s.Data); err != nil {
		return nil, fmt.Errorf("%w A running server fetches what is asked for by itself; to do that ahead, stop it, run this, and start it again", err)
	}
	if err = s.openStores(ctx); err != nil {
		return nil, errors.Join(err, s.lock.Close())
	}
	return s, nil
}

func (s *syncer) openStores(ctx context.Context) error {
	for _, name := range []string{catalogFolder, imagebuilderFolder} {
		if err := os.MkdirAll(s.folder(name), 0o700); err != nil {
			return fmt.Errorf("make the data folder: %w", err)
		}
	}
	cache := catalog.Options{
		Upstream: strings.TrimRight(s.Upstream, "/"), Dir: s.folder(catalogFolder), Inspect: s.inspect, Log: s.log,
	}
	if err := cache.Trust(s.UpstreamKey); err != nil {
		return err
	}
	kept := imagebuilder.Options{Client: http.DefaultClient, Budget: s.CacheSize << 30, Log: s.log}
	if s.storeFlags.shared() {
		cloud, err := aws.Open(ctx, s.settings(), s.log)
		if err != nil {
			return err
		}
		cache.Dir, cache.Objects, kept.Archives = "", cloud.Objects(), cloud.Objects()
	}
	var err error
	if s.trees, err = imagebuilder.OpenStore(s.folder(imagebuilderFolder), kept); err != nil {
		return err
	}
	s.ask = sync.OnceValues(func() (*builder.Inspector, error) { return s.inspector(ctx) })
	s.catalog, err = catalog.New(cache)
	return err
}

func (s *syncer) folder(name string) string { return filepath.Join(s.Data, name) }

// inspect is for the catalogue.
func (s *syncer) inspect(ctx context.Context, version, target string, a catalog.Archive) ([]byte, error) {
	inspector, err := s.ask()
	if err != nil {
		return nil, err
	}
	return inspector.Inspect(ctx, version, target, a)
}

func (s *syncer) inspector(ctx context.Context) (*builder.Inspector, error) {
	hide := secretFiles("")
	for _, name := range closedFolders {
		hide = append(hide, s.folder(name))
	}
	support, err := openScratch(ctx, s.folder(scratchFolder), s.BuildUID, s.SandboxMin, s.log, hide...)
	if err != nil {
		return nil, err
	}
	return newInspector(s.trees, s.folder(scratchFolder), support, s.BuildUID, hide, s.log), nil
}

// newInspector asks ImageBuilders as the user uid, who runs no build.
func newInspector(trees *imagebuilder.Store, scratch string, support sandbox.Support, uid int, hide []string, log *slog.Logger) *builder.Inspector {
	return builder.NewInspector(builder.Inspector{
		Trees: trees, Scratch: scratch, Log: log,
		Sandbox: imagebuilder.Confinement{Mechanism: support.Mechanism, Copy: support.View != "overlay", UID: uid, GID: uid, Hide: hide},
	})
}

func (s *syncer) close() {
	s.trees.Close()
	if err := errors.Join(s.catalog.Close(), s.lock.Close()); err != nil {
		s.log.Error("the data folder could not be closed", "error", err)
	}
}

// part is one target of one version.
type part struct{ version, target string }

// chosen are the targets to initialise.
func (s *syncer) chosen(ctx context.Context) (parts []part, err error) {
	overview, err := s.catalog.Overview(ctx)
	if err != nil {
		return nil, err
	}
	for _, version := range s.versions(overview) {
		targets, err := s.catalog.Targets(ctx, version)
		if err != nil {
			return nil, err
		}
		for _, target := range targets {
			if len(s.Target) == 0 || slices.Contains(s.Target, target) {
				parts = append(parts, part{version, target})
			}
		}
	}
	for _, target := range s.Target {
		if !slices.ContainsFunc(parts, func(p part) bool { return p.target == target }) {
			return nil, fmt.Errorf("none of the versions has the target %q", target)
		}
	}
	return parts, nil
}

// versions are those of the settings, all, or the newest release of each branch.
func (s *syncer) versions(o catalog.Overview) []string {
	if len(s.Version) > 0 {
		return s.Version
	}
	if s.All {
		return o.Versions
	}
	var newest []string
	for _, b := range o.Branches {
		if b.Enabled && !b.Snapshot {
			newest = append(newest, b.Versions[0])
		}
	}
	return newest
}

// sync goes through the targets. One that fails does not stop the others.
func (s *syncer) sync(ctx context.Context, parts []part, t *tally) error {
	var group errgroup.Group
	group.SetLimit(s.Parallel)
	for _, p := range parts {
		group.Go(func() error {
			if ctx.Err() == nil {
				t.done(p, s.prepare(ctx, p))
			}
			return nil
		})
	}
	group.Wait()
	t.end()
	switch {
	case ctx.Err() != nil:
		return errors.New("interrupted; the same command goes on from here")
	case t.full > 0:
		return fmt.Errorf("%d of %d ImageBuilders were not unpacked: %w; give more by --cache-size, which is %d GiB", t.full, len(parts), imagebuilder.ErrNoRoom, s.CacheSize)
	case t.failed > 0:
		return fmt.Errorf("%d of %d targets are not ready; the same command tries these again", t.failed, len(parts))
	}
	return nil
}

func (s *syncer) prepare(ctx context.Context, p part) error {
	archive, err := s.catalog.Prepare(ctx, p.version, p.target)
	if err != nil || s.CatalogOnly {
		return err
	}
	return s.trees.Stock(ctx, builder.Source(p.version, p.target, archive))
}

// tally shows how far the command is: a bar on a terminal, else a line for each
// target.
type tally struct {
	mu           sync.Mutex
	screen       *screen
	bar          *progressbar.ProgressBar // nil without a terminal
	failed, full int
}

func newTally(out io.Writer, n int) *tally {
	t := &tally{screen: newScreen(out)}
	if t.screen.bars {
		t.bar = progressbar.NewOptions(n, progressbar.OptionSetWriter(out), progressbar.OptionShowCount(),
			progressbar.OptionSetDescription(label("targets")), progressbar.OptionSetWidth(15))
	}
	return t
}

func (t *tally) done(p part, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := "ready"
	switch {
	case errors.Is(err, imagebuilder.ErrNoRoom):
		t.full, text = t.full+1, err.Error()
	case err != nil:
		t.failed, text = t.failed+1, "NOT ready: "+err.Error()
	}
	if t.bar != nil {
		t.bar.Describe(label(p.version + " " + p.target))
		_ = t.bar.Add(1) // only the picture would be wrong
		if err == nil {
			return
		}
		_ = t.bar.Clear()
	}
	fmt.Fprintf(t.screen.out, "%s %s: %s\n", p.version, p.target, text)
}

func (t *tally) end() {
	if t.bar != nil {
		fmt.Fprintln(t.screen.out)
	}
}
