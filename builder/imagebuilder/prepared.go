package imagebuilder

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/attended-sysupgrade/sysup/builder/sandbox"
	"github.com/attended-sysupgrade/sysup/shared/build"
)

// What the first run of make in a tree leaves whoever asks (the check of the
// host's tools, local keys, the list of profiles, the index of the tree's own
// packages) is kept beside the tree as a tar file, and unpacked by each job in
// its own view. So it does not matter how views are made, nor who owns what.
// It is made by a job without a request, with no feed on the network, and no
// code of any package runs.

// recipe is part of the names of what is kept, and changes with what is put
// there or with how it is used.
const recipe = "1"

const (
	preparedFile = "prepared-" + recipe + ".tar"
	maxPrepared  = 32 << 20
	prepareTime  = 3 * time.Minute
)

// atTree stands for the folder of the tree, which jobs see at their own place.
const atTree = "/.sysup-tree"

// prepareScript runs what needs no request, then packs what is new. The index is
// dated far ahead, since trees make it anew when anything beside it is younger,
// and unpacking alone makes it so.
const prepareScript = `set -e
list=$1 quiet=$2; shift 2
if [ -f "$quiet/$list" ]; then cp -p "$list" "$TMPDIR/list"; cp "$quiet/$list" "$list"; fi
: >"$TMPDIR/mark"
make -s staging_dir/host/.prereq-build >&2
make -s _check_keys >&2
make -s "$@" sysup-open package_reload >&2
for index in packages/Packages.gz packages/packages.adb; do
	if [ -f $index ]; then touch -d @2114380800 $index; fi
done
find . -cnewer "$TMPDIR/mark" ! -type d ! -path ./"$list" ! -path './dl/*' ! -path './tmp/*' ! -path './build_dir/*' -print0 |
	tar --null --no-recursion -T - -cf -
`

// prepared returns the file, made now if it is not there, or "" for trees that
// the fast path does not know.
func (t *Tree) prepared(ctx context.Context, o offers, setting Setting) (string, error) {
	if !o.chain {
		return "", nil
	}
	name := t.beside(preparedFile)
	t.store.preparing.Lock()
	defer t.store.preparing.Unlock()
	if _, err := os.Stat(name); err == nil {
		return name, nil
	}
	begin := time.Now()
	err := t.prepare(ctx, o, setting, name)
	if errors.Is(err, errUnknownTree) {
		t.store.options.Log.Error("an ImageBuilder cannot be prepared, so its builds take longer", "sha256", t.sum, "error", err)
		return "", t.Judge(err.Error())
	}
	if err != nil {
		return "", fault("prepare an ImageBuilder", err)
	}
	t.store.options.Log.Info("an ImageBuilder was prepared", "sha256", t.sum, "seconds", time.Since(begin).Seconds())
	return name, nil
}

// errUnknownTree says that a tree is not what its Makefile let expect.
var errUnknownTree = errors.New("the ImageBuilder is not of the kind that is known")

func (t *Tree) beside(name string) string { return filepath.Join(filepath.Dir(t.Path), name) }

func (t *Tree) prepare(ctx context.Context, o offers, setting Setting, name string) (err error) {
	setting.Folder, err = os.MkdirTemp(setting.Folder, "prepare-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sandbox.RemoveAll(setting.Folder)) }()
	if err := os.Chmod(setting.Folder, 0o711); err != nil {
		return err
	}
	setting.TimeLimit = prepareTime
	v := &View{tree: t, plan: &build.Plan{RepositoriesMode: "replace"}, setting: setting, offered: o}
	if err := v.open(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	packed, err := os.CreateTemp(setting.Folder, "packed-")
	if err != nil {
		return err
	}
	defer packed.Close()
	var words tail
	call := []string{"sh", "-c", prepareScript, "sh", o.feedsFile(), v.inside(feedsFolder), openGoal}
	err = v.box.Run(ctx, sandbox.Command{Args: call, Env: v.environment(), Stdout: &limited{packed, maxPrepared}, Stderr: &words})
	if exit, ok := errors.AsType[*sandbox.ExitError](err); ok && exit.Signal == 0 && !strings.Contains(words.String(), "No space left") {
		return fmt.Errorf("%w: preparing it ended with status %d (%s)", errUnknownTree, exit.Code, clip(lastLines(words.String())))
	}
	if err != nil {
		return err
	}
	if _, err := packed.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return install(name, func(w io.Writer) error { return repack(w, packed, v.dir(), atTree, true) })
}

func lastLines(text string) string { return text[max(0, len(text)-180):] }

// install writes the file so that it is there whole or not at all.
func install(name string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-")
	if err != nil {
		return err
	}
	err = errors.Join(write(f), f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// preparedNames are the files that preparing a tree may leave; those in the
// folder of host tools are links.
var (
	preparedNames = regexp.MustCompile(`^(\.profiles\.mk|key-build(\.pub|\.ucert(\.revoke)?)?|(private|public)-key\.pem|keys/[A-Za-z0-9._-]{1,100}|` +
		`packages/(Packages(\.gz|\.sig|\.manifest)?|packages\.adb|index\.json)|staging_dir/host/\.prereq-build)$`)
	preparedLinks = regexp.MustCompile(`^staging_dir/host/bin/[][A-Za-z0-9._+-]{1,100}$`)
)

// repack copies a prepared tar and moves links into the tree from one place to
// another. strict also holds all of it against what may be there.
func repack(w io.Writer, r io.Reader, from, to string, strict bool) error {
	in, out := tar.NewReader(r), tar.NewWriter(w)
	for {
		header, err := in.Next()
		if err == io.EOF {
			return out.Close()
		}
		if err != nil {
			return err
		}
		text, err := io.ReadAll(in)
		if err != nil {
			return err
		}
		if strict {
			if err := acceptPrepared(header, text, from); err != nil {
				return err
			}
		}
		if rest, ok := strings.CutPrefix(header.Linkname, from+"/"); ok {
			header.Linkname = to + "/" + rest
		}
		if err := out.WriteHeader(header); err != nil {
			return err
		}
		if _, err := out.Write(text); err != nil {
			return err
		}
	}
}

// acceptPrepared refuses what no tree that is known leaves, and what would not
// hold at another place.
func acceptPrepared(header *tar.Header, text []byte, dir string) error {
	name := path.Clean(header.Name)
	switch {
	case header.Typeflag == tar.TypeReg && preparedNames.MatchString(name) && !bytes.Contains(text, []byte(dir)):
		return nil
	case header.Typeflag == tar.TypeSymlink && preparedLinks.MatchString(name) && path.IsAbs(header.Linkname):
		return nil
	}
	return fmt.Errorf("%w: preparing it left %s", errUnknownTree, clip(name))
}

// hand copies a prepared file, or a root folder, to where the job can read it.
func (v *View) hand(name, as string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return install(filepath.Join(v.folder(layersFolder), as), func(w io.Writer) error {
		if as == preparedLayer {
			return repack(w, f, atTree, v.dir(), false)
		}
		_, err := io.Copy(w, f)
		return err
	})
}

// The files that a job unpacks, by their names in its folder of layers.
const (
	preparedLayer = "prepared.tar"
	rootLayer     = "root.tar"
)
