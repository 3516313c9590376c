package imagebuilder

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/attended-sysupgrade/sysup/builder/sandbox"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/resolve"
)

// Confinement is how jobs are kept from the rest of the machine.
type Confinement struct {
	Mechanism sandbox.Mechanism
	Copy      bool           // copy the tree for each job instead of an overlay over it
	UID, GID  int            // who runs make when the server is root; no two jobs at once share a UID
	Hide      []string       // folders that no job may see
	Limits    sandbox.Limits // Time is Setting.TimeLimit
	// DenyNetwork leaves make without network: packages have to be there already.
	DenyNetwork bool
}

// Setting is what a job needs besides its plan.
type Setting struct {
	Folder      string // the job's own, empty but for its log
	ExtraName   string // EXTRA_IMAGE_NAME, for telling files apart
	Confinement Confinement
	TimeLimit   time.Duration
	// Upstream takes the place of downloads.openwrt.org in the tree's list of
	// feeds, so that packages come from where the ImageBuilder came from.
	Upstream string
	Release  resolve.Release // for the words of a failure
	// Unlisted says that the upstream has no profiles.json for the target: there
	// are some in releases of today whose trees write none, though they could.
	Unlisted bool
	// Fast allows the fast path, and what was prepared for it on any: for trees
	// whose Trust is On, and for finding out whether it can be.
	Fast bool
	// Sure says that the plan's additions change nothing in which packages are
	// installed for the rest, so that those can be installed beforehand.
	Sure bool
	// Again says that it is a repetition for comparing: what the fast path can
	// use is made at once.
	Again bool
}

// View is a job's own copy of a tree, which it may change as it likes.
type View struct {
	// Note says in a sentence what differs from what was asked, if anything.
	Note string
	// Path is the way that Make took.
	Path Path

	tree       *Tree
	plan       *build.Plan
	setting    Setting
	box        *sandbox.Job
	offered    offers
	ownFeeds   bool // the feeds folder has something to be copied over the tree
	prepared   bool // there is a layer to be unpacked over it
	commands   [][]string
	out        string // the output folder on this side
	transcript *Transcript
	told       *overview // what the tree says of itself, if it writes no profiles.json
}

// tools is where the ImageBuilder finds the host's programs.
const tools = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Prepare makes the view and works out the calls of make.
func Prepare(ctx context.Context, tree *Tree, plan *build.Plan, setting Setting) (*View, error) {
	offered, err := inspect(tree.Path)
	if err != nil {
		return nil, err
	}
	if setting.Unlisted {
		offered.overviews, offered.callImage, offered.chain = false, false, false
	}
	layer := ""
	if setting.Fast {
		if layer, err = tree.prepared(ctx, offered, setting); err != nil {
			return nil, err
		}
	}
	v := &View{tree: tree, plan: plan, setting: setting, offered: offered, prepared: layer != ""}
	if err := v.open(ctx); err != nil {
		return nil, err
	}
	if v.prepared {
		if err := v.hand(layer, preparedLayer); err != nil {
			return nil, errors.Join(fault("prepare a job's folders", err), v.Close())
		}
	}
	v.commands, v.Note = v.calls()
	return v, nil
}

// open makes the job's folders and its view.
func (v *View) open(ctx context.Context) (err error) {
	v.out = v.folder(outFolder)
	if err := v.folders(); err != nil {
		return fault("prepare a job's folders", err)
	}
	if err := v.writeFeeds(v.tree.Path); err != nil {
		return fault("write a job's feeds", err)
	}
	v.box, err = sandbox.Prepare(ctx, v.spec())
	return fault("prepare a view of the ImageBuilder", err)
}

// dir is where the job sees its tree.
func (v *View) dir() string { return v.inside(treeFolder) }

// The folders of a job, by their names on both sides: make writes out, files
// goes into the image, feeds is copied and layers are unpacked over the tree.
const (
	outFolder    = "out"
	filesFolder  = "files"
	feedsFolder  = "feeds"
	layersFolder = "layers"
	treeFolder   = "imagebuilder"
)

func (v *View) folder(name string) string { return filepath.Join(v.setting.Folder, name) }

func (v *View) folders() error {
	defaults := filepath.Join(v.folder(filesFolder), "etc", "uci-defaults")
	for _, folder := range []string{v.out, defaults, v.folder(layersFolder), filepath.Join(v.folder(feedsFolder), "keys")} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
	}
	if v.plan.Defaults == "" {
		return nil
	}
	return os.WriteFile(filepath.Join(defaults, "99-asu-defaults"), []byte(v.plan.Defaults), 0o644)
}

func (v *View) spec() sandbox.Spec {
	c := v.setting.Confinement
	c.Limits.Time = v.setting.TimeLimit
	return sandbox.Spec{
		Tree: v.tree.Path, Scratch: v.folder("view"), Dir: "/tmp/" + treeFolder, Hide: c.Hide, UID: c.UID, GID: c.GID,
		Mechanism: c.Mechanism, Copy: c.Copy, Limits: c.Limits, DenyNetwork: c.DenyNetwork,
		Binds: []sandbox.Bind{
			{Host: v.out, Inside: "/tmp/" + outFolder, Writable: true},
			{Host: v.folder(filesFolder), Inside: "/tmp/" + filesFolder},
			{Host: v.folder(feedsFolder), Inside: "/tmp/" + feedsFolder},
			{Host: v.folder(layersFolder), Inside: "/tmp/" + layersFolder},
		},
	}
}

func (v *View) inside(name string) string { return v.box.Path("/tmp/" + name) }

func (v *View) environment() []string {
	return []string{"PATH=" + tools, "HOME=" + v.box.Path("/tmp"), "TMPDIR=" + v.box.Path("/tmp"), "LC_ALL=C"}
}

// calls are the runs of make. Without a wish for one file system it is plain
// make image; with one, the tree's own inner target, which alone lets the
// others be switched off.
func (v *View) calls() (commands [][]string, note string) {
	variables, note := v.offered.only(v.plan.Filesystem)
	packages := strings.Join(v.packages(), " ")
	if !v.offered.overviews {
		commands = append(commands, prerequisites)
	}
	if len(variables) == 0 {
		call := append([]string{"make", "image", "PROFILE=" + v.plan.Profile, "PACKAGES=" + packages}, v.common()...)
		return append(commands, v.optional(call, "FILES=", "ROOTFS_PARTSIZE=")), note
	}
	if len(v.offered.before) > 0 {
		commands = append(commands, append([]string{"make", "-s", "PROFILE=" + v.plan.Profile}, v.offered.before...))
	}
	return append(commands, append([]string{"make", "-s", "_call_image"}, v.variables(v.packages())...)), note
}

// variables are those of the inner targets.
func (v *View) variables(packages []string) []string {
	only, _ := v.offered.only(v.plan.Filesystem)
	list := append(v.selection(packages), v.common()...)
	return append(v.optional(list, "USER_FILES=", "CONFIG_TARGET_ROOTFS_PARTSIZE="), only...)
}

func (v *View) selection(packages []string) []string {
	return []string{"USER_PROFILE=DEVICE_" + v.plan.Profile, "USER_PACKAGES=" + strings.Join(packages, " ")}
}

func (v *View) common() []string {
	return []string{"BIN_DIR=" + v.inside(outFolder), "EXTRA_IMAGE_NAME=" + v.setting.ExtraName}
}

// prerequisites are checked by trees of all ages. Those up to 19.07 refuse to
// work without Python 2, which few of their targets use and today's hosts do not
// have, so what is missing is only said.
var prerequisites = []string{"sh", "-c", "make -s staging_dir/host/.prereq-build || { mkdir -p staging_dir/host && touch staging_dir/host/.prereq-build; }"}

func (v *View) optional(call []string, files, size string) []string {
	if v.plan.Defaults != "" {
		call = append(call, files+v.inside(filesFolder))
	}
	if v.plan.RootfsSizeMB > 0 {
		call = append(call, size+strconv.Itoa(v.plan.RootfsSizeMB))
	}
	return call
}

func (v *View) packages() []string {
	return append(slices.Clone(v.plan.Add), v.removals()...)
}

func (v *View) removals() (list []string) {
	for _, name := range v.plan.Remove {
		list = append(list, "-"+name)
	}
	return list
}

// Command is the last call of make as people would type it.
func (v *View) Command() string {
	var words []string
	for _, word := range v.commands[len(v.commands)-1] {
		if name, value, ok := strings.Cut(word, "="); ok && strings.Contains(value, " ") {
			word = name + `="` + value + `"`
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

// Make runs the calls, writes what they say to log and tells the stages. A
// *build.Failure says why there will be no images.
func (v *View) Make(ctx context.Context, log io.Writer, stage func(build.Stage)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, v.setting.TimeLimit, sandbox.ErrTimeLimit)
	defer cancel()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	v.transcript = NewTranscript(log, stage)
	v.transcript.release = v.setting.Release
	v.transcript.hopeless = stop
	if !v.offered.overviews {
		var err error
		if v.told, err = v.info(ctx); err != nil {
			return err
		}
	}
	err := v.runEither(ctx)
	if exit, ok := errors.AsType[*sandbox.ExitError](err); ok {
		fmt.Fprintf(log, "[make ended with status %d]\n", exit.Code)
	}
	return v.judge(err)
}

// run runs the calls one after the other; the time limit is that of all.
func (v *View) run(ctx context.Context) error {
	stdout, stderr := v.transcript.Writers()
	for _, call := range v.commands {
		err := v.box.Run(ctx, sandbox.Command{Args: call, Env: v.environment(), Stdout: stdout, Stderr: stderr})
		if err != nil {
			return err
		}
	}
	return nil
}

// judge says what the end of the calls means.
func (v *View) judge(err error) error {
	exit, exited := errors.AsType[*sandbox.ExitError](err)
	feed := v.transcript.Feed()
	switch {
	case feed != nil:
		return v.explainFeed(feed)
	case errors.Is(err, sandbox.ErrTimeLimit):
		return build.Fail(build.KindTime, "The ImageBuilder did not finish within %s. Ask for fewer packages, or tell the operator of this server.", v.setting.TimeLimit)
	case errors.Is(err, sandbox.ErrMemory):
		return build.Fail(build.KindWorker, "The build needed more memory than a build may have here. Ask for fewer packages, or tell the operator of this server.")
	case errors.Is(err, sandbox.ErrDisk):
		return build.Fail(build.KindBuild, "The build wrote more to the disk than a build may. Ask for fewer packages, or for a smaller rootfs_size_mb.")
	case errors.Is(err, sandbox.ErrKilled), exited && exit.Signal == syscall.SIGKILL:
		return wasKilled()
	case exited:
		return v.transcript.Explain()
	case err != nil:
		return fault("run the ImageBuilder", err)
	}
	if failure := v.transcript.TooBig(); failure != nil && !v.hasImages() {
		return failure
	}
	return nil
}

// hasImages tells whether there is anything to collect, by the file that lists
// it or, in trees that write none, by the files' names.
func (v *View) hasImages() bool {
	entries, _ := os.ReadDir(v.out)
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		return e.Name() == "profiles.json" || v.told != nil && installs(e.Name())
	})
}

// Tails are the ends of what the calls printed, for people. Make has returned.
func (v *View) Tails() (stdout, stderr string) {
	return v.transcript.Stdout.String(), v.transcript.Stderr.String()
}

// Collect reads what make left.
func (v *View) Collect() (*Output, error) {
	output, err := collect(v.out, v.plan.Profile, v.told)
	if err != nil {
		return nil, err
	}
	return output, v.checkPartition(output)
}

// checkPartition refuses a squashfs larger than the partition that it lies in.
// The tools that put disk images together cut it off without a word; only
// ext4, where it is made too, fails by itself.
func (v *View) checkPartition(output *Output) error {
	size := int64(v.offered.partition)
	if v.plan.RootfsSizeMB > 0 {
		size = int64(v.plan.RootfsSizeMB)
	}
	if !v.offered.partitioned || size == 0 {
		return nil
	}
	for _, image := range output.Images {
		if image.Filesystem != "squashfs" || image.Type != "rootfs" {
			continue
		}
		if n, err := unpackedSize(filepath.Join(v.out, image.Name)); err != nil || n > size<<20 {
			return cmp.Or(err, error(build.Fail(build.KindTooBig, "The root file system does not fit: it has %d MiB, its partition %d. Leave packages out, or ask for a larger one by rootfs_size_mb.", (n+1<<20-1)>>20, size)))
		}
	}
	return nil
}

// unpackedSize is the size of an image, as gzip notes it in its last four
// bytes, or of the file itself.
func unpackedSize(name string) (int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || !strings.HasSuffix(name, ".gz") || end < 18 {
		return end, err
	}
	var size [4]byte
	_, err = f.ReadAt(size[:], end-4)
	return int64(binary.LittleEndian.Uint32(size[:])), err
}

// Close ends everything the job started and removes its view.
func (v *View) Close() error { return v.box.Close() }
