package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/client"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

type buildCmd struct {
	Server       string        `help:"Address of the server." required:"" env:"SYSUP_SERVER" placeholder:"URL"`
	Version      string        `help:"OpenWrt version, such as 24.10.5 or SNAPSHOT." required:""`
	Target       string        `help:"Target and subtarget, such as x86/64." required:""`
	Profile      string        `help:"Profile id or board name." default:"generic"`
	Package      []string      `help:"Package to install; with a - before it, to leave out (--package=-ppp). Repeatable." placeholder:"NAME"`
	Exact        bool          `help:"Install exactly the packages named and what they need, no defaults besides."`
	Filesystem   string        `help:"Only images with this file system, such as squashfs or ext4." placeholder:"NAME"`
	RootfsSizeMB int           `help:"Size of the root file system in MiB." name:"rootfs-size-mb" placeholder:"N"`
	Defaults     string        `help:"First-boot script to put into the image." type:"existingfile" placeholder:"FILE"`
	Output       string        `help:"Folder for the files." required:"" type:"path" placeholder:"DIR"`
	Key          []string      `help:"The server's public key. Repeatable, while a key is being replaced." required:"" type:"existingfile" placeholder:"FILE"`
	Poll         time.Duration `help:"Pause between two looks at the build." default:"2s"`
}

func (c *buildCmd) Run(ctx context.Context, out io.Writer) error {
	keys, err := readPublics(c.Key)
	if err != nil {
		return err
	}
	request, err := c.request()
	if err != nil {
		return err
	}
	remote := &client.Client{URL: c.Server, Poll: c.Poll, UserAgent: "sysup/" + version}
	screen := newScreen(out)
	result, err := remote.Wait(ctx, request, screen.status)
	if err != nil {
		return explained(err)
	}
	for _, note := range result.Notes {
		fmt.Fprintln(out, "note:", note)
	}
	if err := remote.Download(ctx, result, c.Output, screen.download); err != nil {
		return err
	}
	report, err := verify(out, c.Output, keys)
	if err != nil {
		return err
	}
	return c.answers(result, report.Build)
}

// answers makes sure that what was signed is what was asked for: a whole chain
// over another device's image would be of no use.
func (c *buildCmd) answers(result client.Result, signed build.Provenance) error {
	if string(signed.RequestHash) != result.RequestHash || signed.Plan.Target != c.Target || !strings.EqualFold(signed.Plan.Version, c.Version) {
		return fmt.Errorf("the server signed an image of %s for %s, which is not what was asked for; do not use it", signed.Plan.Version, signed.Plan.Target)
	}
	return nil
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

// explained adds the end of the ImageBuilder's words to the server's sentence.
func explained(err error) error {
	failed, ok := errors.AsType[*client.Error](err)
	if !ok || failed.Stderr == "" {
		return err
	}
	return fmt.Errorf("%w\n\nThe ImageBuilder's last words:\n%s", err, failed.Stderr)
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

func (s *screen) status(status client.Status) {
	line := "building: " + string(status.Stage)
	switch {
	case status.Done():
		line = "built: " + status.RequestHash
	case status.QueuePosition > 0:
		line = fmt.Sprintf("waiting: place %d in the queue", status.QueuePosition)
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
	s.bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(s.out), progressbar.OptionSetDescription(name),
		progressbar.OptionShowBytes(true), progressbar.OptionSetWidth(30), progressbar.OptionOnCompletion(func() { fmt.Fprintln(s.out) }))
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
	_, err = verify(out, c.Dir, keys)
	return err
}

// verify checks the whole chain and says what it rests on.
func verify(out io.Writer, dir string, keys []usign.PublicKey) (client.Report, error) {
	report, err := client.Verify(dir, keys, time.Now())
	if err != nil {
		return report, fmt.Errorf("NOT verified, do not use these files: %w", err)
	}
	signed := report.Build
	fmt.Fprintf(out, "verified: %s %s for %s, profile %s\n", signed.Plan.Distribution, signed.Plan.Version, signed.Plan.Target, signed.Plan.Profile)
	fmt.Fprintf(out, "signed at %s by worker %s, certified by the server until %s\n",
		signed.BuiltAt.Format(time.RFC3339), report.Worker.Worker, report.Worker.NotAfter.Format(time.RFC3339))
	for _, image := range signed.Result.Images {
		fmt.Fprintf(out, "  %s  %s\n", image.SHA256, filepath.Join(dir, image.Name))
	}
	return report, nil
}
