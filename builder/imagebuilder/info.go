package imagebuilder

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/attended-sysupgrade/sysup/builder/sandbox"
	"github.com/attended-sysupgrade/sysup/shared/build"
)

// Limits of what make info prints. The longest real one has about 500 profiles
// in 200 KB.
const (
	maxInfo         = 4 << 20
	maxInfoProfiles = 5_000
	maxInfoTitle    = 200
)

// overview is a profiles.json: what a tree or an upstream that writes none would
// have written.
type overview struct {
	ArchPackages    string                     `json:"arch_packages"`
	DefaultPackages []string                   `json:"default_packages"`
	MetadataVersion int                        `json:"metadata_version"` // 1
	Profiles        map[string]overviewProfile `json:"profiles"`
	SourceDateEpoch int64                      `json:"source_date_epoch"`
	Target          string                     `json:"target"`
	VersionCode     string                     `json:"version_code"`
	VersionNumber   string                     `json:"version_number"`
}

type overviewProfile struct {
	DevicePackages   []string        `json:"device_packages"`
	ImagePrefix      string          `json:"image_prefix"`
	Images           []overviewImage `json:"images"`
	SupportedDevices []string        `json:"supported_devices"`
	Titles           []overviewTitle `json:"titles"`
}

type overviewImage struct {
	Filesystem string `json:"filesystem"`
	Name       string `json:"name"`
	Type       string `json:"type"`
}

type overviewTitle struct {
	Title string `json:"title"`
}

// Inspect asks a tree what it can build, by make info, for upstreams that do not
// say it. The answer has the form of a profiles.json (metadata_version 1)
// without images and kernel. It is a *build.Failure of KindOutput if the tree
// says nothing of use.
func Inspect(ctx context.Context, tree *Tree, version, target string, setting Setting) ([]byte, error) {
	plan := &build.Plan{Version: version, Target: target}
	v, err := Prepare(ctx, tree, plan, setting)
	if err != nil {
		return nil, err
	}
	told, err := v.info(ctx)
	if err = errors.Join(err, v.Close()); err != nil {
		return nil, err
	}
	return json.Marshal(told)
}

// info runs make info.
func (v *View) info(ctx context.Context) (*overview, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, v.setting.TimeLimit, sandbox.ErrTimeLimit)
	defer cancel()
	var out bytes.Buffer
	var last tail
	err := v.box.Run(ctx, sandbox.Command{
		Args: []string{"make", "-s", "info"}, Env: v.environment(), Stdout: &limited{&out, maxInfo}, Stderr: &last,
	})
	if exit, ok := errors.AsType[*sandbox.ExitError](err); ok {
		return nil, build.Fail(build.KindOutput, "The ImageBuilder cannot say what it builds: make info ended with status %d (%s).", exit.Code, clip(last.String()))
	}
	switch {
	case errors.Is(err, errTooLong):
		return nil, build.Fail(build.KindOutput, "The ImageBuilder says too much of what it builds: make info printed more than %d bytes.", maxInfo)
	case errors.Is(err, sandbox.ErrTimeLimit):
		return nil, build.Fail(build.KindTime, "The ImageBuilder did not say within %s what it builds.", v.setting.TimeLimit)
	case errors.Is(err, sandbox.ErrKilled):
		return nil, wasKilled()
	case err != nil:
		return nil, fault("run make info", err)
	}
	return v.offered.overview(out.Bytes(), v.plan.Version, v.plan.Target)
}

// limited takes so many bytes, and fails with the next.
type limited struct {
	w    io.Writer
	left int
}

var errTooLong = errors.New("the output is too long")

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, errTooLong
	}
	return l.w.Write(p)
}

// Write keeps the end of a stream that nobody reads by lines.
func (t *tail) Write(p []byte) (int, error) {
	t.add(p)
	return len(p), nil
}

var (
	infoTarget   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}/[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)
	infoRevision = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}$`)
	infoProfile  = regexp.MustCompile(`^([A-Za-z0-9][A-Za-z0-9_.,+-]{0,127}):$`)
	infoPackage  = regexp.MustCompile(`^-?[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}$`)
	infoDevice   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.,+-]{0,127}$`)
)

// overview reads what make info printed. What it does not say, as trees before
// 19.07 leave out their revision and all leave out the architecture of their
// packages, is taken from the tree's own files.
func (o offers) overview(text []byte, version, target string) (*overview, error) {
	r := infoReader{overview: overview{
		ArchPackages: o.arch, DefaultPackages: []string{}, MetadataVersion: 1, Profiles: map[string]overviewProfile{},
		SourceDateEpoch: o.epoch, Target: target, VersionNumber: version,
	}}
	for line := range strings.Lines(string(text)) {
		r.line(strings.TrimRight(line, "\r\n"))
	}
	r.endProfile()
	r.VersionCode = cmp.Or(r.VersionCode, o.revision)
	switch {
	case r.told != "" && r.told != target:
		return nil, build.Fail(build.KindOutput, "The ImageBuilder is one for %s, not for %s.", r.told, target)
	case len(r.DefaultPackages) == 0 || len(r.Profiles) == 0:
		return nil, build.Fail(build.KindOutput, "The ImageBuilder does not say what it builds: make info names no default packages, or no profile.")
	case !infoRevision.MatchString(r.VersionCode) || !word.MatchString(r.ArchPackages) || r.ArchPackages == "":
		return nil, build.Fail(build.KindOutput, "The ImageBuilder does not say its revision, or the architecture of its packages.")
	}
	return &r.overview, nil
}

// infoReader takes what make info prints line by line.
type infoReader struct {
	overview
	told     string // the target, where it is told in the form of today
	profiles bool   // the list has begun
	id       string // of the profile whose lines are read, "" between them
	current  overviewProfile
	titled   bool
}

func (r *infoReader) line(line string) {
	name, value, _ := strings.Cut(line, ":")
	quoted := strings.Trim(strings.TrimSpace(value), `"`)
	switch {
	case r.profiles:
		r.profileLine(line)
	case name == "Current Target" && infoTarget.MatchString(quoted):
		r.told = quoted
	case name == "Current Revision":
		r.VersionCode = quoted
	case name == "Default Packages":
		r.DefaultPackages = words(value, infoPackage)
	case name == "Available Profiles":
		r.profiles = true
	}
}

// profileLine reads one line of a block: "id:", then a title, which may be
// missing, and further lines with names, all indented.
func (r *infoReader) profileLine(line string) {
	inner, indented := strings.CutPrefix(line, "    ")
	if !indented {
		r.endProfile()
		if m := infoProfile.FindStringSubmatch(line); m != nil {
			r.id, r.current, r.titled = m[1], overviewProfile{Images: []overviewImage{}, Titles: []overviewTitle{}}, false
		}
		return
	}
	name, value, _ := strings.Cut(inner, ": ")
	switch {
	case r.id == "":
	case strings.TrimSuffix(name, ":") == "Packages":
		r.current.DevicePackages, r.titled = words(value, infoPackage), true
	case name == "SupportedDevices":
		r.current.SupportedDevices = words(value, infoDevice)
	case !r.titled && plainTitle(inner) != "":
		r.current.Titles, r.titled = []overviewTitle{{plainTitle(inner)}}, true
	}
}

// endProfile keeps the profile whose lines were read.
func (r *infoReader) endProfile() {
	if r.id != "" && len(r.Profiles) < maxInfoProfiles {
		r.current.DevicePackages = slices.Concat([]string{}, r.current.DevicePackages)
		r.current.SupportedDevices = slices.Concat([]string{}, r.current.SupportedDevices)
		r.Profiles[r.id] = r.current
	}
	r.id = ""
}

// words are those of a line that can be what they are said to be, each once.
func words(line string, pattern *regexp.Regexp) []string {
	list := []string{}
	seen := map[string]bool{}
	for word := range strings.FieldsSeq(line) {
		if !seen[word] && pattern.MatchString(word) {
			seen[word] = true
			list = append(list, word)
		}
	}
	return list
}

func plainTitle(text string) string {
	text = strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return -1
		}
		return c
	}, strings.ToValidUTF8(text, ""))
	if text = strings.TrimSpace(text); len(text) > maxInfoTitle {
		return ""
	}
	return text
}

// of is the profiles.json of one profile with the images among the files, which
// are known by their names alone.
func (o overview) of(profile string, names []string) ([]byte, error) {
	p, ok := o.Profiles[profile]
	if !ok {
		return nil, build.Fail(build.KindProfile, "The ImageBuilder does not know the profile %q.", profile)
	}
	p.Images = []overviewImage{}
	if !slices.ContainsFunc(names, installs) {
		names = nil // what only starts from memory is no result
	}
	for _, name := range names {
		if image, ok := parseImageName(name); ok {
			p.Images = append(p.Images, overviewImage{Filesystem: image.filesystem, Name: name, Type: image.kind})
			p.ImagePrefix = cmp.Or(p.ImagePrefix, image.prefix)
		}
	}
	o.Profiles = map[string]overviewProfile{profile: p}
	return json.Marshal(o)
}
