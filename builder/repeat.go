package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/attended-sysupgrade/sysup/builder/imagebuilder"
	"github.com/attended-sysupgrade/sysup/builder/sandbox"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/resolve"
)

// A repetition makes a build that is done once more, on the other path, to see
// whether it gives the same bytes. The first build with an ImageBuilder is made
// on the plain path and repeated on the fast one; only then the fast one is
// taken. Of the later ones some are repeated on the plain path.
type repetition struct {
	*Worker
	plan    build.Plan
	source  imagebuilder.Source
	release resolve.Release
	name    string
	sure    bool
	path    imagebuilder.Path
	output  *imagebuilder.Output
}

// defaultRepeat is one in how many builds on the fast path is repeated.
const defaultRepeat = 100

// repetition is what is to be made once more after this job, or nil.
func (j *job) repetition() *repetition {
	one := j.Repeat
	if one == 0 {
		one = defaultRepeat
	}
	own := len(j.rec.Plan.Repositories)+len(j.rec.Plan.RepositoryKeys) > 0 || j.rec.Plan.Private // a private script goes with its build
	first := j.trust == imagebuilder.TrustUnknown
	later := j.path == imagebuilder.PathFast && rand.IntN(one) == 0
	if own || j.Plain || j.device.Made() || !first && !later { // who writes no profiles.json knows no fast path
		return nil
	}
	return &repetition{
		Worker: j.Worker, plan: j.rec.Plan, source: j.source, release: j.device.Release(), name: j.extraName(), sure: j.sure(),
		path: j.path, output: j.output,
	}
}

// repeat makes the repetition that the last build left, between two builds: it
// runs as the worker's own user, who may only do one thing at a time.
func (w *Worker) repeat(ctx context.Context) {
	r := w.next
	w.next = nil
	if r == nil || ctx.Err() != nil {
		return
	}
	tree, err := w.Trees.Tree(ctx, r.source, func(build.Stage) {})
	if err == nil {
		defer tree.Release()
		err = r.compare(ctx, tree)
	}
	if err != nil && ctx.Err() == nil {
		w.Log.Warn("a build could not be repeated for comparison", "version", r.plan.Version, "target", r.plan.Target, "error", err)
	}
}

func (r *repetition) compare(ctx context.Context, tree *imagebuilder.Tree) error {
	difference, err := r.difference(ctx, tree)
	if err != nil {
		return err
	}
	if err := tree.Judge(difference); err != nil {
		return err
	}
	if difference == "" {
		r.Log.Info("both paths give the same bytes", "version", r.plan.Version, "target", r.plan.Target)
		return nil
	}
	r.Log.Error("the fast path is off for an ImageBuilder: the plain one gives something else",
		"version", r.plan.Version, "target", r.plan.Target, "sha256", r.source.SHA256, "difference", difference)
	if r.Differs != nil {
		r.Differs()
	}
	return nil
}

// difference says in what the paths differ. The feeds may have moved since the
// build was made, so a difference counts if it is there at a second look.
func (r *repetition) difference(ctx context.Context, tree *imagebuilder.Tree) (string, error) {
	fast := r.path != imagebuilder.PathFast
	other, difference, err := r.again(ctx, tree, fast)
	if err != nil || difference != "" {
		return difference, err
	}
	difference = r.output.Differs(other)
	if difference == "" {
		return "", nil
	}
	r.output = other
	other, another, err := r.again(ctx, tree, !fast)
	if err != nil || another != "" {
		return another, err
	}
	if r.output.Differs(other) == "" {
		return "", nil
	}
	return difference, nil
}

// again builds once more. What fails on one path only is a difference, too.
func (r *repetition) again(ctx context.Context, tree *imagebuilder.Tree, fast bool) (out *imagebuilder.Output, difference string, err error) {
	folder := filepath.Join(r.Scratch, build.NewAttempt())
	if err := r.openFolder(folder); err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, sandbox.RemoveAll(folder)) }()
	view, err := imagebuilder.Prepare(ctx, tree, &r.plan, imagebuilder.Setting{
		Folder: folder, ExtraName: r.name, Confinement: r.Sandbox, TimeLimit: r.TimeLimit, Upstream: r.Upstream, Release: r.release,
		Fast: fast, Sure: r.sure, Again: true,
	})
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, view.Close()) }()
	if err = view.Make(ctx, io.Discard, func(build.Stage) {}); err == nil {
		out, err = view.Collect()
	}
	failure, failed := errors.AsType[*build.Failure](err)
	switch {
	case failed && !failure.Kind.Transient() && failure.Kind != build.KindTime:
		return nil, "it failed: " + failure.Detail, nil
	case err != nil:
		return nil, "", err
	case fast && view.Path != imagebuilder.PathFast:
		return nil, "the fast path cannot be taken", nil
	}
	return out, "", nil
}

// openFolder makes a folder for a job. Other jobs' users cannot enter it.
func (w *Worker) openFolder(folder string) error {
	err := os.Mkdir(folder, 0o710)
	if err == nil && os.Geteuid() == 0 {
		err = os.Chown(folder, 0, w.Sandbox.GID)
	}
	if err != nil {
		return fmt.Errorf("prepare a job's folder: %w", err)
	}
	return nil
}
