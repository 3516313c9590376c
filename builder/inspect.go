package builder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"time"

	"github.com/attended-sysupgrade/sysup/builder/imagebuilder"
	"github.com/attended-sysupgrade/sysup/builder/sandbox"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
)

// Inspector asks ImageBuilders what they build, for upstreams that do not say
// it. It confines them as a Worker does.
type Inspector struct {
	Trees   *imagebuilder.Store
	Scratch string // folder that is there, for the folders of jobs
	// Sandbox is for one run at a time: its UID is no worker's, and its Hide is
	// what workers hide, too.
	Sandbox imagebuilder.Confinement
	Log     *slog.Logger

	turn chan struct{} // held by who runs one
}

// NewInspector returns i, ready for use.
func NewInspector(i Inspector) *Inspector {
	i.turn = make(chan struct{}, 1)
	return &i
}

// inspectTime is enough for make info, which takes a second at most.
const inspectTime = 2 * time.Minute

// Inspect is for catalog.Options. It fetches, verifies and unpacks the
// ImageBuilder as for a build, so that the first build finds it there.
func (i *Inspector) Inspect(ctx context.Context, version, target string, archive catalog.Archive) ([]byte, error) {
	tree, err := i.Trees.Tree(ctx, Source(version, target, archive), func(build.Stage) {})
	if err != nil {
		return nil, err
	}
	defer tree.Release()
	select {
	case i.turn <- struct{}{}:
		defer func() { <-i.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return i.run(ctx, tree, version, target)
}

// Source is where the ImageBuilder of a version's target lies, upstream and
// among the archives that are kept for others.
func Source(version, target string, archive catalog.Archive) imagebuilder.Source {
	return imagebuilder.Source{
		URL: archive.URL, Name: archive.Name, SHA256: archive.SHA256, Key: path.Join("imagebuilder", version, target, archive.Name),
	}
}

func (i *Inspector) run(ctx context.Context, tree *imagebuilder.Tree, version, target string) (profiles []byte, err error) {
	folder, err := os.MkdirTemp(i.Scratch, "inspect-")
	if err != nil {
		return nil, fmt.Errorf("prepare a folder to inspect an ImageBuilder in: %w", err)
	}
	defer func() {
		if e := sandbox.RemoveAll(folder); e != nil {
			i.Log.Error("a job's folder cannot be removed", "error", e)
		}
	}()
	if err = os.Chmod(folder, 0o710); err == nil && os.Geteuid() == 0 {
		err = os.Chown(folder, 0, i.Sandbox.GID)
	}
	if err != nil {
		return nil, fmt.Errorf("prepare a folder to inspect an ImageBuilder in: %w", err)
	}
	begin := time.Now()
	profiles, err = imagebuilder.Inspect(ctx, tree, version, target, imagebuilder.Setting{
		Folder: folder, Confinement: i.Sandbox, TimeLimit: inspectTime,
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		i.Log.Error("an ImageBuilder could not be inspected", "version", version, "target", target, "error", err)
	}
	if err == nil {
		i.Log.Info("an ImageBuilder was inspected", "version", version, "target", target, "seconds", time.Since(begin).Seconds())
	}
	return profiles, err
}

// wantedInterval is how often builders look for what is wanted: a client waits
// for half a minute before it asks again.
const wantedInterval = 15 * time.Second

// ServeWanted makes, until ctx ends, what servers without an ImageBuilder to ask
// want of the catalogue. Meanwhile the workers of p, which may be nil, stay.
func ServeWanted(ctx context.Context, c *catalog.Catalog, p *Presence, log *slog.Logger) {
	for ctx.Err() == nil {
		end := p.handle()
		if err := c.MakeWanted(ctx); err != nil && ctx.Err() == nil {
			log.Warn("what is wanted of the catalogue could not be made", "error", err)
		}
		end()
		pause(ctx, wantedInterval)
	}
}
