package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/client"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

type buildCmd struct {
	Server       string        `help:"Address of the server, such as https://firmware.example.org." required:"" env:"SYSUP_SERVER" placeholder:"URL"`
	Version      string        `help:"OpenWrt version, such as 24.10.5 or SNAPSHOT." required:"" placeholder:"VERSION"`
	Target       string        `help:"Target and subtarget, such as x86/64." required:"" placeholder:"TARGET"`
	Profile      string        `help:"Profile id or board name of the device; may be left out where the target has only one." placeholder:"NAME"`
	Package      []string      `help:"Package to install; with a - before its name, one to leave out (--package=-ppp). Repeatable." placeholder:"NAME"`
	Exact        bool          `help:"Install exactly the packages named and what they need, no defaults besides."`
	Filesystem   string        `help:"Only images with this file system, such as squashfs or ext4." placeholder:"NAME"`
	RootfsSizeMB int           `help:"Size of the root file system in MiB." name:"rootfs-size-mb" placeholder:"N"`
	Defaults     string        `help:"First-boot script to put into the image, if the server allows that." type:"existingfile" placeholder:"FILE"`
	Output       string        `help:"New or empty folder for the files." required:"" type:"path" placeholder:"DIR"`
	Key          []string      `help:"The server's public key. Repeatable, while a key is being replaced." required:"" type:"existingfile" placeholder:"FILE"`
	Poll         time.Duration `help:"Pause between two looks at the build." default:"2s"`
}

// Validate is called by kong.
func (c *buildCmd) Validate() error { return checkURL("--server", c.Server) }

// Run has the image built. Nothing gets into the output folder under its own
// name before all of it is verified.
func (c *buildCmd) Run(ctx context.Context, out io.Writer) error {
	keys, err := readPublics(c.Key)
	if err != nil {
		return err
	}
	request, err := c.request()
	if err != nil {
		return err
	}
	if err := c.roomy(); err != nil {
		return err
	}
	remote := &client.Client{URL: c.Server, Poll: c.Poll, UserAgent: "sysup/" + version}
	screen := newScreen(out)
	result, err := remote.Wait(ctx, request, screen.status)
	if err != nil {
		return c.explained(ctx, err)
	}
	for _, note := range result.Notes {
		fmt.Fprintln(out, "note:", note)
	}
	for _, change := range result.Changes {
		fmt.Fprintln(out, "note:", inWords(change))
	}
	report, err := c.fetch(ctx, remote, result, keys, screen)
	if err != nil {
		return c.explained(ctx, err)
	}
	printReport(out, report, c.Output)
	return nil
}

// inWords is an amendment as a person reads it.
func inWords(c build.Amendment) string {
	text := c.Reason
	switch {
	case c.From != "" && c.To != "":
		text = fmt.Sprintf("%s in place of %s. %s", c.To, c.From, c.Reason)
	case c.From != "":
		text = fmt.Sprintf("%s is left out. %s", c.From, c.Reason)
	case c.To != "":
		text = fmt.Sprintf("%s is installed as well. %s", c.To, c.Reason)
	}
	return strings.TrimSpace(text + " " + c.Link)
}

// roomy holds that nothing lies in the output folder: nobody signed it.
func (c *buildCmd) roomy() error {
	entries, err := os.ReadDir(c.Output)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if len(entries) > 0 {
		return fmt.Errorf("--output has to be a new or an empty folder, %s holds %s", c.Output, entries[0].Name())
	}
	return err
}

// fetch downloads and verifies the result in a folder of its own, and then
// moves it to where it was asked for.
func (c *buildCmd) fetch(ctx context.Context, remote *client.Client, result client.Result, keys []usign.PublicKey, screen *screen) (client.Report, error) {
	if err := os.MkdirAll(c.Output, 0o777); err != nil {
		return client.Report{}, fmt.Errorf("make the output folder: %w", err)
	}
	stage, err := os.MkdirTemp(c.Output, ".unverified-")
	if err != nil {
		return client.Report{}, fmt.Errorf("write to the output folder: %w", err)
	}
	defer os.RemoveAll(stage)
	if err := remote.Download(ctx, result, stage, screen.download); err != nil {
		return client.Report{}, err
	}
	report, err := verify(stage, keys)
	if err != nil {
		return report, err
	}
	if err := c.answers(report.Build); err != nil {
		return report, err
	}
	return report, moveAll(stage, c.Output)
}

func moveAll(from, to string) error {
	entries, err := os.ReadDir(from)
	for _, entry := range entries {
		err = errors.Join(err, os.Rename(filepath.Join(from, entry.Name()), filepath.Join(to, entry.Name())))
	}
	return err
}

// answers makes sure that what was signed is what was asked for: a whole chain
// over another device's image would be of no use. A server that everybody can
// stand in for, over plain HTTP, may repeat what it once signed for others.
func (c *buildCmd) answers(signed build.Provenance) error {
	plan := signed.Plan
	target, profile := c.moved(plan)
	if plan.Target != target || !strings.EqualFold(plan.Version, c.Version) || !fits(profile, signed) {
		return fmt.Errorf("the server signed %s for %s, profile %s, which is not what was asked for; nothing was kept", plan.Version, plan.Target, plan.Profile)
	}
	return nil
}

// moved is what was asked for, by the names of today: the server signed what
// they were.
func (c *buildCmd) moved(plan build.Plan) (target, profile string) {
	device := strings.TrimSpace(c.Target + " " + c.Profile)
	for _, change := range plan.Changes {
		if change.From == device {
			device = change.To
		}
	}
	target, profile, _ = strings.Cut(device, " ")
	return target, profile
}

// fits tells whether the signed profile is the one asked for, by its name or by
// that of a board that it supports. A generic one is for all boards of its
// target.
func fits(asked string, signed build.Provenance) bool {
	same := func(board string) bool {
		return strings.ReplaceAll(board, ",", "_") == strings.ReplaceAll(asked, ",", "_")
	}
	profile := signed.Plan.Profile
	return asked == "" || strings.EqualFold(profile, "generic") || same(profile) || slices.ContainsFunc(signed.Result.Profile.SupportedDevices, same)
}

func (c *buildCmd) request() (client.Request, error) {
	r := client.Request{
		Version: c.Version, Target: c.Target, Profile: c.Profile, Packages: c.Package, DiffPackages: c.Exact,
		Filesystem: c.Filesystem, Client: "sysup/" + version,
	}
	if c.RootfsSizeMB != 0 {
		r.RootfsSizeMB = &c.RootfsSizeMB
	}
	if c.Defaults != "" {
		script, err := os.ReadFile(c.Defaults)
		if err != nil {
			return r, err
		}
		r.Defaults = string(script)
	}
	return r, nil
}

// explained adds to an error what helps to act on it.
func (c *buildCmd) explained(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("interrupted. The server goes on; the same command will take up its build")
	}
	if failed, ok := errors.AsType[*client.Error](err); ok {
		return c.lastWords(err, failed)
	}
	if unreachable, ok := errors.AsType[*url.Error](err); ok {
		return fmt.Errorf("the server at %s does not answer: %w", c.Server, unreachable.Err)
	}
	return err
}

// lastWords is what ended the wait with the end of what the ImageBuilder
// said and the place of the rest.
func (c *buildCmd) lastWords(err error, failed *client.Error) error {
	text := err.Error()
	if failed.Stderr != "" {
		text += "\n\nThe ImageBuilder's last words:\n" + lastLines(failed.Stderr, 10)
	}
	if failed.Log != "" {
		text += "\n\nThe whole log: " + strings.TrimRight(c.Server, "/") + failed.Log
	}
	return errors.New(text)
}

// lastLines is the end of a text: what explains a failure comes last.
func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// screen shows how a build gets on: a line per change, and a bar per file on
// a terminal.
type screen struct {
	out  io.Writer
	bars bool
	last string
	file string
	bar  *progressbar.ProgressBar
}

func newScreen(out io.Writer) *screen {
	file, ok := out.(*os.File)
	return &screen{out: out, bars: ok && term.IsTerminal(int(file.Fd()))}
}

var stageWords = map[build.Stage]string{
	build.StageInit:     "starting",
	build.StageDownload: "fetching the ImageBuilder",
	build.StageUnpack:   "unpacking the ImageBuilder",
	build.StagePackages: "installing packages",
	build.StageImage:    "making images",
}

func (s *screen) status(status client.Status) {
	line := "building: " + cmp.Or(stageWords[status.Stage], string(status.Stage))
	switch {
	case status.Done():
		line = "built: " + status.RequestHash
	case status.QueuePosition > 0:
		line = fmt.Sprintf("waiting: place %d in the queue", status.QueuePosition)
	case status.RequestHash == "":
		line = "waiting: " + status.Detail
	}
	if line != s.last {
		fmt.Fprintln(s.out, line)
		s.last = line
	}
}

func (s *screen) download(name string, done, total int64) {
	if name != s.file {
		s.file = name
		s.begin(name, total)
	}
	if s.bar != nil {
		_ = s.bar.Set64(done) // only the picture would be wrong
	}
}

func (s *screen) begin(name string, total int64) {
	if !s.bars {
		fmt.Fprintln(s.out, "download:", name)
		return
	}
	s.bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(s.out), progressbar.OptionSetDescription(label(name)),
		progressbar.OptionShowBytes(true), progressbar.OptionSetPredictTime(false), progressbar.OptionSetWidth(15),
		progressbar.OptionOnCompletion(func() { fmt.Fprintln(s.out) }))
}

// label is a file's name as a terminal has room for it: all images begin alike.
func label(name string) string {
	const room = 36
	if len(name) > room {
		name = "..." + name[len(name)-room+3:]
	}
	return fmt.Sprintf("%-*s", room, name)
}

type verifyCmd struct {
	Dir string   `arg:"" help:"Folder with the downloaded files." type:"existingdir"`
	Key []string `help:"The server's public key. Repeatable." required:"" type:"existingfile" placeholder:"FILE"`
}

func (c *verifyCmd) Run(out io.Writer) error {
	keys, err := readPublics(c.Key)
	if err != nil {
		return err
	}
	report, err := verify(c.Dir, keys)
	if err != nil {
		return err
	}
	printReport(out, report, c.Dir)
	return nil
}

// verify checks the whole chain.
func verify(dir string, keys []usign.PublicKey) (client.Report, error) {
	report, err := client.Verify(dir, keys, time.Now())
	if err != nil {
		return report, fmt.Errorf("NOT verified, do not use these files: %w", err)
	}
	return report, nil
}

// printReport says what was verified and what that rests on.
func printReport(out io.Writer, report client.Report, dir string) {
	signed := report.Build
	fmt.Fprintf(out, "verified: %s %s for %s, profile %s\n", signed.Plan.Distribution, signed.Plan.Version, signed.Plan.Target, signed.Plan.Profile)
	fmt.Fprintf(out, "signed at %s by worker %s, certified by the server until %s\n",
		signed.BuiltAt.Format(time.RFC3339), report.Worker.Worker, report.Worker.NotAfter.Format(time.RFC3339))
	for _, image := range signed.Result.Images {
		fmt.Fprintf(out, "  %s  %s\n", image.SHA256, filepath.Join(dir, image.Name))
	}
}
