// Package sandbox runs commands of a build in a view of an ImageBuilder's tree that they cannot damage for the next
// build, as another user where possible, and leaves nothing of them behind.
//
// The program re-executes itself as the sandbox's first process, under another name; see Init.
package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrTimeLimit: a command ran longer than Limits.Time; it and all that it started are dead.
	ErrTimeLimit = errors.New("the build took longer than its time limit and was stopped")
	// ErrKilled: the sandbox was ended from outside, for example for want of memory.
	ErrKilled = errors.New("the build's sandbox was killed, perhaps because the machine ran out of memory")
	// ErrMemory, also ErrKilled: a limit of memory was met, and the kernel killed the build or a part of it.
	ErrMemory = fmt.Errorf("the build needed more memory than it may have: %w", ErrKilled)
	// ErrDisk: a command wrote more than Limits.Disk or Limits.Entries.
	ErrDisk = errors.New("the build wrote more to the disk than it may")
	// ErrDiskLow, also ENOSPC: the disk was about to be full while a command wrote to it.
	ErrDiskLow = fmt.Errorf("the build was stopped before it filled the disk: %w", syscall.ENOSPC)
	// ErrSetup: the sandbox could not be made, so that nothing was run. The error says what is in the way.
	ErrSetup = errors.New("the build's sandbox could not be set up")
)

// ExitError says how a command ended that did not end with exit code 0.
type ExitError struct {
	Code   int            // 0 to 255; 128 and the signal's number if a signal ended it
	Signal syscall.Signal // 0 if it ended by itself
}

func (e *ExitError) Error() string {
	if e.Signal != 0 {
		return fmt.Sprintf("the command was ended by the signal %s", e.Signal)
	}
	return fmt.Sprintf("the command ended with exit code %d", e.Code)
}

// Limits bound one command. A field that is zero means its default.
type Limits struct {
	Time      time.Duration // default 30 minutes
	Processes int           // processes and threads of the uid; default 1,024
	FileSize  int64         // bytes of one file; default 8 GiB
	Files     int           // open files of one process; default 4,096
	Tmp       int64         // bytes of the private /tmp, which is memory; default 1 GiB; no limit of Plain
	Memory    int64         // bytes, of all its processes in a control group, else of each; default 4 GiB
	Disk      int64         // bytes in the scratch folder and the bound ones that are writable; default 16 GiB
	Entries   int64         // files and folders there; default 1,000,000
}

func (l Limits) withDefaults() Limits {
	l.Time = cmp.Or(l.Time, 30*time.Minute)
	l.Processes = cmp.Or(l.Processes, 1024)
	l.FileSize = cmp.Or(l.FileSize, 8<<30)
	l.Files = cmp.Or(l.Files, 4096)
	l.Tmp = cmp.Or(l.Tmp, 1<<30)
	l.Memory = cmp.Or(l.Memory, 4<<30)
	l.Disk = cmp.Or(l.Disk, 16<<30)
	l.Entries = cmp.Or(l.Entries, 1_000_000)
	return l
}

// A Bind shows a folder of the host inside of the sandbox.
type Bind struct {
	Host     string // absolute path; the folder exists
	Inside   string // absolute path below /tmp; made where missing
	Writable bool   // as root, the folder is then given to Spec.UID
}

// Spec says what a job sees. All paths are absolute.
type Spec struct {
	// Tree is the unpacked ImageBuilder, shared by jobs, never changed by them. All of it has one owner.
	Tree string
	// Scratch is missing or an empty folder, the job's alone. It takes what the job writes to the tree; Close removes it.
	// With Plain as root, and only there, the folders above it must be open (mode 0711) to UID.
	Scratch string
	// Dir is where commands see the tree and start, a path below /tmp and the same for all jobs, since staging_dir links
	// to itself by absolute paths. Default /tmp/imagebuilder. With Plain use what Path gives.
	Dir   string
	Binds []Bind
	// Hide lists folders and files of the host that the job must not see; Tree and Scratch are hidden unasked. With
	// Plain nothing can be hidden: as root, Prepare then refuses if UID may enter or read one of them.
	Hide []string
	// UID and GID are used as root only, and then not 0. With Plain every process of UID is killed when a command
	// ends, so no two jobs may share it, nor a job and a person; in any case the limit of processes counts by UID.
	UID, GID    int
	Limits      Limits
	DenyNetwork bool // nothing but a loopback of the command's own; with Plain not even that
	// Proxy, with DenyNetwork and namespaces, is called for each command with what listens at ProxyAddress, where the
	// command alone reaches it. It returns when the listener is closed, which Run does and then waits for it.
	Proxy     func(net.Listener)
	Mechanism Mechanism // what Probe found
	Copy      bool      // copy the tree even where an overlay could be mounted
}

// ProxyAddress is where commands find Spec.Proxy; apk keeps what it fetched under names made from addresses, so it is
// always the same.
const ProxyAddress = "127.0.0.1:3128"

// Command is one program with its own process tree.
type Command struct {
	Args   []string // Args[0] is looked up in Env's PATH
	Env    []string // exactly the environment, as KEY=value
	Stdout io.Writer
	Stderr io.Writer // may be the same as Stdout
}

// Job is a view of a tree in which commands run one after the other, each seeing what those before it wrote.
type Job struct {
	spec   Spec
	root   bool     // the server is root, so the job is UID
	copied bool     // the view is a copy, no overlay
	why    error    // why a copy was made where an overlay was wanted
	idMap  *os.File // the user namespace by which the shared tree seems to be UID's; nil if it is
	runs   int
	group  *group // the control group; nil where there is none
	guards []string
}

// Prepare makes the view of a job. The caller calls Close whatever Run returns.
func Prepare(ctx context.Context, spec Spec) (*Job, error) {
	if spec.Dir == "" {
		spec.Dir = "/tmp/imagebuilder"
	}
	spec.Limits = spec.Limits.withDefaults()
	j := &Job{spec: spec, root: os.Geteuid() == 0}
	if err := j.check(); err != nil {
		return nil, err
	}
	if err := j.prepare(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrSetup, err), j.Close())
	}
	return j, nil
}

// check refuses what would confine less than the caller asks for.
func (j *Job) check() error {
	s := j.spec
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrSetup, fmt.Sprintf(format, args...))
	}
	if j.root && (s.UID <= 0 || s.GID <= 0 || max(s.UID, s.GID) > math.MaxInt32) { // 32 bits are all that the kernel takes
		return refuse("as root a build needs another user: give it a uid and a gid from 1 to %d", math.MaxInt32)
	}
	if !slices.Contains(mechanisms(), s.Mechanism) {
		return refuse("user %d can have the mechanisms %q, not %q: take what Probe finds", os.Geteuid(), mechanisms(), s.Mechanism)
	}
	if s.Proxy != nil && !(s.DenyNetwork && s.Mechanism.namespaced()) {
		return refuse("a proxy needs a network of the job's own: the mechanism %q has none, or the network is open", s.Mechanism)
	}
	insides := []string{s.Dir}
	for _, b := range s.Binds {
		insides = append(insides, b.Inside)
	}
	for _, inside := range insides {
		if path.Clean(inside) != inside || !strings.HasPrefix(inside, "/tmp/") {
			return refuse("a build sees its folders below /tmp only, not at %q", inside)
		}
	}
	for _, host := range append([]string{s.Tree, s.Scratch}, s.Hide...) {
		if !filepath.IsAbs(host) {
			return refuse("the path %q must be absolute", host)
		}
	}
	if there, err := os.ReadDir(s.Scratch); len(there) > 0 || err != nil && !errors.Is(err, os.ErrNotExist) {
		return refuse("the folder %s for what the build writes must be new and empty", s.Scratch)
	}
	if j.root && !s.Mechanism.namespaced() {
		return j.checkPermissions()
	}
	return nil
}

// checkPermissions holds at the level at which permissions alone hide the server's files from the build.
func (j *Job) checkPermissions() error {
	if !mayEnter(filepath.Dir(j.spec.Scratch), j.spec.UID, j.spec.GID) {
		return fmt.Errorf("%w: user %d must be able to reach %s: open the folders above it (mode 0711)", ErrSetup, j.spec.UID, j.spec.Scratch)
	}
	for _, path := range j.spec.Hide {
		if mayEnter(path, j.spec.UID, j.spec.GID) {
			return fmt.Errorf("%w: user %d must not be able to enter or read %s: close it (mode 0700, a file 0600)", ErrSetup, j.spec.UID, path)
		}
	}
	return nil
}

// mayEnter tells whether the user can enter the folder, or read or write the file, all the way from the root. What is
// missing cannot be reached.
func mayEnter(path string, uid, gid int) bool {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false
	}
	info, err := os.Stat(path)
	if err != nil {
		return false
	}
	owner, bits := info.Sys().(*syscall.Stat_t), info.Mode().Perm()
	if int(owner.Uid) == uid {
		bits >>= 6
	} else if int(owner.Gid) == gid {
		bits >>= 3
	}
	open := bits&0o1 != 0
	if !info.IsDir() {
		open = bits&0o6 != 0
	}
	return open && (path == "/" || mayEnter(filepath.Dir(path), uid, gid))
}

// The folders of a job's scratch.
const (
	lowerDir = "lower" // where the tree is mounted, inside of the job's namespace only
	upperDir = "upper" // what the job changed
	viewDir  = "view"  // where the overlay is mounted, or the copy
	tmpDir   = "tmp"   // the job's /tmp of Plain
	rootDir  = "root"  // where the job's view of the machine is put together
)

func (j *Job) prepare(ctx context.Context) error {
	tree, err := filepath.EvalSymlinks(j.spec.Tree)
	if err != nil {
		return err
	}
	j.spec.Tree = tree
	s := j.spec
	if err := j.closeProc(); err != nil {
		return err
	}
	j.group = newGroup(s.Limits)
	if err := os.MkdirAll(s.Scratch, 0o700); err != nil {
		return err
	}
	for _, b := range s.Binds {
		if err := j.give(b.Host, b.Writable); err != nil {
			return err
		}
	}
	for _, name := range []string{lowerDir, upperDir, viewDir, tmpDir, rootDir} {
		dir := j.scratch(name)
		if err := errors.Join(os.Mkdir(dir, 0o755), j.give(dir, true)); err != nil {
			return err
		}
	}
	if s.Mechanism.namespaced() && !s.Copy {
		if j.idMap, err = j.mapOwner(); err == nil {
			return nil
		}
		j.why = err
	}
	if err := j.give(s.Scratch, !s.Mechanism.namespaced()); err != nil {
		return err
	}
	return j.copyTree(ctx)
}

// give makes the job's user the owner of dir.
func (j *Job) give(dir string, writable bool) error {
	if !j.root || !writable {
		return nil
	}
	return os.Lchown(dir, j.spec.UID, j.spec.GID)
}

func (j *Job) copyTree(ctx context.Context) error {
	j.copied = true
	c := copier{ctx: ctx, from: j.spec.Tree, to: j.scratch(viewDir), uid: -1, gid: -1, linked: map[inode]string{}}
	if j.root {
		c.uid, c.gid = j.spec.UID, j.spec.GID
	}
	return c.copy()
}

func (j *Job) scratch(name string) string { return filepath.Join(j.spec.Scratch, name) }

// Path gives the path by which commands of this job know what the Spec places at inside: inside itself, but with
// Plain, where everything is seen at its place on the host.
func (j *Job) Path(inside string) string {
	if j.spec.Mechanism.namespaced() {
		return inside
	}
	places := append([]Bind{{Inside: "/tmp", Host: j.scratch(tmpDir)}, {Inside: j.spec.Dir, Host: j.scratch(viewDir)}}, j.spec.Binds...)
	result, longest := inside, 0
	for _, p := range places {
		rest, below := strings.CutPrefix(inside+"/", p.Inside+"/")
		if below && len(p.Inside) > longest {
			longest, result = len(p.Inside), filepath.Join(p.Host, rest)
		}
	}
	return result
}

// View says how the job sees the tree, for the log: "overlay" or "copy", with the reason where the copy was not wanted.
func (j *Job) View() string {
	switch {
	case !j.copied:
		return "overlay"
	case j.why != nil:
		return fmt.Sprintf("copy (%v)", j.why)
	}
	return "copy"
}

// Run runs one command and kills everything that it started before it returns. Not to be called twice at once.
//
// Errors: *ExitError, ErrTimeLimit, ErrKilled, ErrMemory, ErrDisk, ErrDiskLow, ErrSetup, the context's cause, and those
// of writing to Stdout or Stderr.
func (j *Job) Run(ctx context.Context, c Command) error {
	ctx, cancel := context.WithTimeoutCause(ctx, j.spec.Limits.Time, ErrTimeLimit)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer j.watchDisk(ctx, stop)()
	result, err := j.run(ctx, c)
	if err == nil && result.NoOverlay != "" && !j.copied && j.runs == 1 {
		j.why = errors.New(result.NoOverlay)
		if err := j.copyTree(ctx); err != nil {
			return fmt.Errorf("%w: %w", ErrSetup, err)
		}
		result, err = j.run(ctx, c)
	}
	j.guards = slices.Concat(result.Guards, j.group.names())
	failed := err != nil || result.Code != 0
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case failed && j.group.outOfMemory():
		return ErrMemory
	case err != nil:
		return err
	case result.Failure+result.NoOverlay != "":
		return fmt.Errorf("%w: %s", ErrSetup, result.Failure+result.NoOverlay)
	case result.Code != 0:
		return &ExitError{Code: result.Code, Signal: syscall.Signal(result.Signal)}
	}
	return nil
}

// Close removes everything that the job left, with Plain as root also in /tmp and its like.
func (j *Job) Close() error {
	if j.idMap != nil {
		j.idMap.Close()
	}
	err := errors.Join(j.group.remove(), RemoveAll(j.spec.Scratch))
	if j.root && !j.spec.Mechanism.namespaced() {
		err = errors.Join(err, removeOf(j.spec.UID))
	}
	return err
}

// closeProc lets nobody of the same user look into this process, its environment for example. It may not be so where
// user namespaces are made, since the kernel then lets only root set them up.
func (j *Job) closeProc() error {
	if j.root {
		return nil
	}
	open := uintptr(0)
	if j.spec.Mechanism.namespaced() {
		open = 1
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, open, 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_DUMPABLE: %w", err)
	}
	return nil
}
