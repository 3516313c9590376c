package imagebuilder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"strings"

	"github.com/attended-sysupgrade/sysup/builder/sandbox"
	"github.com/attended-sysupgrade/sysup/shared/build"
)

// A Path is the way on which images were made. Both give the same bytes.
type Path string

const (
	// PathPlain is make image, or its inner target, as anybody would call it.
	PathPlain Path = "plain"
	// PathFast is the links of the inner target's chain one by one, with what does
	// not depend on the request taken from earlier jobs, and images in parallel.
	PathFast Path = "fast"
)

// fast tells whether the fast path may be tried. Feeds of the request's own are
// nobody else's business, so nothing of such a job is kept or shared.
func (v *View) mayBeFast() bool {
	return v.setting.Fast && v.prepared && len(v.plan.Repositories)+len(v.plan.RepositoryKeys) == 0
}

// The scripts get variables of make as arguments, and never as text.
const (
	openScript = `profile=$1 checks=$2; shift 2
make -s "PROFILE=$profile" $checks >&2 && exec make -s "$@" sysup-open package_reload sysup-tell`
	baseScript = `root=$1; shift
cp -a "$root" "$root.before" && make package_install "$@" >&2 && exec tar -C "$(dirname "$root")" -cf - "$(basename "$root")"`
	undoScript = `rm -rf "$1" && mv "$1.before" "$1"`
	// makeScript begins with the root folder packed in $1, if any, to which
	// nothing may have to be added.
	makeScript = `set -e
base=$1 root=$2 more=$3 parallel=$4; shift 4
if [ "$base" ]; then rm -rf "$root"; tar -C "$(dirname "$root")" -xpf "$base"; fi
if [ "$more" ]; then make package_install "$@"; fi
make -s prepare_rootfs "$@"
make -s build_image "$@" "$parallel"
make -s json_overview_image_info "$@"
make -s checksum "$@"`
)

// errNotFast says that the plain path has to be taken, which is right in the
// same view: it begins with removing what there is.
var errNotFast = errors.New("the fast path cannot be taken")

// runFast takes the fast path. It fails with errNotFast wherever the plain path
// would do better or know more.
func (v *View) runFast(ctx context.Context) error {
	stdout, stderr := v.transcript.Writers()
	var said bytes.Buffer
	neutral := v.selection(v.removals()) // nothing of the request but what it leaves out
	call := []string{"sh", "-c", openScript, "sh", v.plan.Profile, strings.Join(v.offered.before, " "), openGoal, tellGoal}
	err := v.box.Run(ctx, sandbox.Command{Args: append(call, neutral...), Env: v.environment(), Stdout: &limited{&said, maxInfo}, Stderr: stderr})
	if err != nil {
		return v.orPlain(err)
	}
	told, err := readFacts(said.String(), v.dir())
	if err != nil {
		return fmt.Errorf("%w: %w", errNotFast, err)
	}
	base, err := v.base(ctx, told, neutral, stderr)
	if err != nil {
		return err
	}
	more := "yes"
	if base != "" && len(v.plan.Add) == 0 {
		more = ""
	}
	parallel := fmt.Sprintf("NO_TRACE_MAKE=make -j%d V=s", runtime.GOMAXPROCS(0)+1) // one of them waits for the disk
	call = append([]string{"sh", "-c", makeScript, "sh", base, told.root, more, parallel}, v.variables(v.packages())...)
	if err := v.box.Run(ctx, sandbox.Command{Args: call, Env: v.environment(), Stdout: stdout, Stderr: stderr}); err != nil {
		return v.orPlain(err)
	}
	if !v.hasImages() {
		return fmt.Errorf("%w: no images were made", errNotFast)
	}
	return nil
}

// orPlain lets the plain path try what failed, unless it is certain that it
// would fail alike.
func (v *View) orPlain(err error) error {
	exit, exited := errors.AsType[*sandbox.ExitError](err)
	if errors.Is(err, errTooLong) {
		return fmt.Errorf("%w: %w", errNotFast, err)
	}
	if !exited || exit.Signal != 0 || v.transcript.Feed() != nil {
		return err
	}
	switch v.transcript.Explain().Kind {
	case build.KindUnknownPackage, build.KindConflict, build.KindMissing, build.KindProfile:
		return err
	}
	return fmt.Errorf("%w: %w", errNotFast, err)
}

// base brings the base root: its path inside, "" where the job does without, or
// where packages were installed in the view just now.
func (v *View) base(ctx context.Context, told facts, neutral []string, stderr io.Writer) (string, error) {
	if v.offered.apk || !v.setting.Sure { // apk installs in no time
		return "", nil
	}
	root := v.tree.baseRoot(told)
	use, worth := root.there(v.plan)
	switch {
	case use:
	case !worth && !v.setting.Again:
		return "", nil
	default:
		if err := v.makeBase(ctx, root, told, neutral, stderr); err != nil {
			return "", err
		}
		if !root.suits(v.plan) {
			call := []string{"sh", "-c", undoScript, "sh", told.root}
			return "", v.box.Run(ctx, sandbox.Command{Args: call, Env: v.environment(), Stdout: stderr, Stderr: stderr})
		}
	}
	if err := v.hand(root.file(rootEnding), rootLayer); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fault("take a base root", err)
	} else if err != nil {
		return "", fmt.Errorf("%w: %w", errNotFast, err) // it was removed just now
	}
	return path.Join(v.inside(layersFolder), rootLayer), nil
}

func (v *View) makeBase(ctx context.Context, root baseRoot, told facts, neutral []string, stderr io.Writer) error {
	packed, err := os.CreateTemp(v.setting.Folder, "root-")
	if err != nil {
		return fault("keep a base root", err)
	}
	defer os.Remove(packed.Name())
	defer packed.Close()
	call := append([]string{"sh", "-c", baseScript, "sh", told.root}, neutral...)
	err = v.box.Run(ctx, sandbox.Command{Args: call, Env: v.environment(), Stdout: &limited{packed, maxRoot}, Stderr: stderr})
	if err != nil {
		return v.orPlain(err)
	}
	if _, err := packed.Seek(0, io.SeekStart); err != nil {
		return fault("keep a base root", err)
	}
	err = root.keep(packed)
	if errors.Is(err, errNoStatus) {
		return fmt.Errorf("%w: %w", errNotFast, err)
	}
	v.tree.store.trim()
	return fault("keep a base root", err)
}

// runEither takes the fast path if it can, else the plain one.
func (v *View) runEither(ctx context.Context) error {
	defer v.transcript.Flush()
	if err := v.unpackLayers(ctx); err != nil {
		return err
	}
	if v.mayBeFast() {
		fmt.Fprintln(v.transcript.log, "[by its steps, one by one]")
		err := v.runFast(ctx)
		if !errors.Is(err, errNotFast) {
			v.Path = PathFast
			return err
		}
		v.tree.store.options.Log.Warn("a build takes the plain path", "reason", err)
		fmt.Fprintln(v.transcript.log, "[and once more, as it stands above]")
		if err := v.beginAnew(ctx); err != nil {
			return err
		}
	}
	v.Path = PathPlain
	return v.run(ctx)
}

// unpackLayers puts the job's feeds and what was prepared over its tree.
func (v *View) unpackLayers(ctx context.Context) error {
	script := ""
	if v.ownFeeds {
		script += `cp -r "$1"/. . && `
	}
	if v.prepared {
		script += `tar -xpf "$2" && `
	}
	if script == "" {
		return nil
	}
	call := []string{"sh", "-c", script + ":", "sh", v.inside(feedsFolder), path.Join(v.inside(layersFolder), preparedLayer)}
	stdout, stderr := v.transcript.Writers()
	return v.box.Run(ctx, sandbox.Command{Args: call, Env: v.environment(), Stdout: stdout, Stderr: stderr})
}

// beginAnew empties the output folder and forgets what was said.
func (v *View) beginAnew(ctx context.Context) error {
	v.transcript.Flush()
	fresh := NewTranscript(v.transcript.log, v.transcript.stage)
	fresh.release, fresh.hopeless, fresh.logged = v.transcript.release, v.transcript.hopeless, v.transcript.logged
	v.transcript = fresh
	call := []string{"find", v.inside(outFolder), "-mindepth", "1", "-delete"}
	return v.box.Run(ctx, sandbox.Command{Args: call, Env: v.environment(), Stdout: io.Discard, Stderr: io.Discard})
}
