// Command paths measures what a build takes on each path of the builder, on any
// unpacked ImageBuilder, beside make image by hand:
//
//	paths --tree DIR [--profile ID] [--packages "a b"] [--rounds N]
//
// The times are the shortest of the rounds, given in seconds and as parts of
// make image by hand, which makes all file systems. It says whether all images
// are the same, byte for byte. Best run as root, else jobs are this user's.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/attended-sysupgrade/sysup/builder/imagebuilder"
	"github.com/attended-sysupgrade/sysup/builder/sandbox"
	"github.com/attended-sysupgrade/sysup/shared/build"
)

func main() {
	sandbox.Init()
	var b bench
	var packages string
	flag.StringVar(&b.tree, "tree", "", "the unpacked ImageBuilder")
	flag.StringVar(&b.plan.Profile, "profile", "", "the profile; the first by default")
	flag.StringVar(&packages, "packages", "nano htop", "packages to add")
	flag.IntVar(&b.rounds, "rounds", 2, "how often everything is measured")
	flag.IntVar(&b.uid, "uid", 64200, "who runs make, as root")
	flag.Parse()
	b.plan.Add = strings.Fields(packages)
	if err := b.run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "paths:", err)
		os.Exit(1)
	}
}

type bench struct {
	tree   string
	plan   build.Plan
	rounds int
	uid    int

	folder string
	by     *imagebuilder.Store
	copied string // tree for make by hand
	source imagebuilder.Source
	cage   imagebuilder.Confinement
	jobs   int
}

// way is how images are made, and what that took at least.
type way struct {
	name       string
	filesystem string
	make       func(context.Context, *way) (*imagebuilder.Output, error)
	fast       bool
	wall, cpu  time.Duration
	out        *imagebuilder.Output
}

func (b *bench) run(ctx context.Context) (err error) {
	if b.folder, err = os.MkdirTemp("", "sysup-paths-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sandbox.RemoveAll(b.folder)) }()
	if err := b.open(ctx); err != nil {
		return err
	}
	defer b.by.Close()
	ways := []*way{
		{name: "make image by hand, warm", make: b.byHand},
		{name: "plain path, all file systems", make: b.job},
		{name: "plain path, squashfs", make: b.job, filesystem: "squashfs"},
		{name: "fast path, all file systems", make: b.job, fast: true},
		{name: "fast path, squashfs", make: b.job, filesystem: "squashfs", fast: true},
	}
	for round := range b.rounds + 1 { // the first warms up
		for _, w := range ways {
			if err := w.measure(ctx, round > 0); err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
		}
	}
	return b.report(ways)
}

// open lays the tree out as a Store has it, and once more for make by hand.
func (b *bench) open(ctx context.Context) error {
	if b.tree == "" {
		return errors.New("--tree is missing: the folder of an unpacked ImageBuilder")
	}
	stored := filepath.Join(b.folder, "imagebuilder", strings.Repeat("0", 64))
	b.copied = filepath.Join(b.folder, "by-hand")
	if err := errors.Join(os.Chmod(b.folder, 0o711), os.MkdirAll(stored, 0o755), os.Mkdir(filepath.Join(b.folder, "scratch"), 0o711)); err != nil {
		return err
	}
	for _, to := range []string{b.copied, filepath.Join(stored, "tree")} {
		if out, err := exec.CommandContext(ctx, "cp", "-a", b.tree, to).CombinedOutput(); err != nil {
			return fmt.Errorf("copy the ImageBuilder: %w: %s", err, out)
		}
		if out, err := exec.CommandContext(ctx, "chown", "-R", b.owner(to == b.copied), to).CombinedOutput(); err != nil {
			return fmt.Errorf("copy the ImageBuilder: %w: %s", err, out)
		}
	}
	if err := os.WriteFile(filepath.Join(stored, "size"), []byte("0"), 0o644); err != nil {
		return err
	}
	var err error
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	b.by, err = imagebuilder.OpenStore(filepath.Dir(stored), imagebuilder.Options{Budget: 10 << 30, Log: log})
	if err != nil {
		return err
	}
	b.source = imagebuilder.Source{SHA256: filepath.Base(stored)}
	support, err := sandbox.Probe(ctx, b.scratch(), sandbox.Spec{UID: b.uid, GID: b.uid})
	if err != nil {
		return err
	}
	fmt.Printf("views: %s, %s\n", support.View, support.Mechanism)
	b.cage = imagebuilder.Confinement{Mechanism: support.Mechanism, Copy: support.View != "overlay", UID: b.uid, GID: b.uid}
	return b.chooseProfile(ctx)
}

func (b *bench) scratch() string { return filepath.Join(b.folder, "scratch") }

func (b *bench) owner(job bool) string {
	if job && os.Geteuid() == 0 {
		return fmt.Sprintf("%d:%d", b.uid, b.uid)
	}
	return fmt.Sprintf("%d:%d", os.Geteuid(), os.Getegid())
}

// chooseProfile takes the first that make info lists.
func (b *bench) chooseProfile(ctx context.Context) error {
	if b.plan.Profile != "" {
		return nil
	}
	info, err := b.command(ctx, "info").Output()
	if err != nil {
		return fmt.Errorf("make info: %w", err)
	}
	_, list, _ := strings.Cut(string(info), "Available Profiles:")
	scanner := bufio.NewScanner(strings.NewReader(list))
	for scanner.Scan() {
		if name, ok := strings.CutSuffix(scanner.Text(), ":"); ok && !strings.HasPrefix(name, " ") {
			b.plan.Profile = name
			return nil
		}
	}
	return errors.New("make info lists no profile")
}

func (b *bench) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "make", args...)
	cmd.Dir = b.copied
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "TMPDIR=/tmp", "LC_ALL=C"}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(b.uid), Gid: uint32(b.uid)}}
	}
	return cmd
}

const extraName = "paths"

func (b *bench) byHand(ctx context.Context, _ *way) (*imagebuilder.Output, error) {
	out := filepath.Join(b.copied, "out")
	if err := sandbox.RemoveAll(out); err != nil {
		return nil, err
	}
	text, err := b.command(ctx, "image", "PROFILE="+b.plan.Profile, "PACKAGES="+strings.Join(b.plan.Add, " "),
		"EXTRA_IMAGE_NAME="+extraName, "BIN_DIR="+out).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, text[max(0, len(text)-2000):])
	}
	return imagebuilder.Collect(out, b.plan.Profile)
}

// job is what a worker does between fetching an ImageBuilder and signing.
func (b *bench) job(ctx context.Context, w *way) (out *imagebuilder.Output, err error) {
	b.jobs++
	plan := b.plan
	plan.Filesystem = w.filesystem
	tree, err := b.by.Tree(ctx, b.source, func(build.Stage) {})
	if err != nil {
		return nil, err
	}
	defer tree.Release()
	folder := filepath.Join(b.scratch(), fmt.Sprint("job-", b.jobs))
	if err := os.Mkdir(folder, 0o711); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, sandbox.RemoveAll(folder)) }()
	view, err := imagebuilder.Prepare(ctx, tree, &plan, imagebuilder.Setting{
		Folder: folder, ExtraName: extraName, Confinement: b.cage, TimeLimit: time.Hour, Fast: w.fast, Sure: true, Again: true,
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, view.Close()) }()
	if err := view.Make(ctx, io.Discard, func(build.Stage) {}); err != nil {
		stdout, stderr := view.Tails()
		return nil, fmt.Errorf("%w\n%s\n%s", err, stdout, stderr)
	}
	if w.fast != (view.Path == imagebuilder.PathFast) {
		return nil, fmt.Errorf("the path is %s", view.Path)
	}
	return view.Collect()
}

func (w *way) measure(ctx context.Context, counts bool) (err error) {
	begin, before := time.Now(), used()
	w.out, err = w.make(ctx, w)
	wall, cpu := time.Since(begin), used()-before
	if counts && (w.wall == 0 || wall < w.wall) {
		w.wall = wall
	}
	if counts && (w.cpu == 0 || cpu < w.cpu) {
		w.cpu = cpu
	}
	return err
}

// used is the processor time of all processes that ended.
func used() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_CHILDREN, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func (b *bench) report(ways []*way) error {
	fmt.Printf("%s, profile %s, packages %v, shortest of %d\n", b.tree, b.plan.Profile, b.plan.Add, b.rounds)
	hand := ways[0]
	same := true
	for _, w := range ways {
		fmt.Printf("%-30s %6.2f s  %.2f of by hand   processor %6.2f s  %.2f   %s\n", w.name, w.wall.Seconds(), w.wall.Seconds()/hand.wall.Seconds(),
			w.cpu.Seconds(), w.cpu.Seconds()/hand.cpu.Seconds(), difference(hand.out, w.out, w.filesystem != ""))
		same = same && difference(hand.out, w.out, w.filesystem != "") == "same bytes"
	}
	if !same {
		return errors.New("the images are not all the same")
	}
	return nil
}

// difference compares all of two outputs, or the images that both have to have.
func difference(a, b *imagebuilder.Output, some bool) string {
	if d := a.Differs(b); d != "" && !some {
		return d
	}
	for _, image := range b.Images {
		i := slices.IndexFunc(a.Images, func(other build.Image) bool { return other.Name == image.Name })
		if i < 0 || a.Images[i].SHA256Unsigned != image.SHA256Unsigned {
			return "other bytes of " + image.Name
		}
	}
	return "same bytes"
}
