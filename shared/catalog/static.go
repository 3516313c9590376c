package catalog

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// Part is what is fetched, changes and is published as one: a target of a
// version with its packages or, if Target is empty, the feeds of an
// architecture.
type Part struct {
	Version string // "24.10.5", "SNAPSHOT"
	Target  string // "ath79/generic"
	Arch    string // "mips_24kc", of feeds only
}

// Folder is where the upstream keeps the version, and where clients look for
// it: "releases/24.10.5" or "snapshots".
func (p Part) Folder() string { return folder(p.Version) }

// String is the part's unit in the cache.
func (p Part) String() string {
	if p.Target == "" {
		return feedsKey(p.Version + "/" + p.Arch)
	}
	return p.Version + "/" + p.Target
}

// parsePart is the inverse of String.
func parsePart(unit string) (Part, bool) {
	version, rest := split(unit)
	arch, feeds := strings.CutPrefix(rest, ".feeds/")
	switch {
	case !releasePattern.MatchString(version):
		return Part{}, false
	case feeds:
		return Part{Version: version, Arch: arch}, archPattern.MatchString(arch)
	}
	return Part{Version: version, Target: rest}, targetPattern.MatchString(rest)
}

// Stamp names the state of a part: it changes when anything of the part does.
// A part that was never fetched is fetched, and one of a snapshot that is old
// is updated, as Device does. The error is a build.Refusal: CodeUnsupported if
// there is no such part by that very name, CodeUnavailable.
func (c *Catalog) Stamp(ctx context.Context, p Part) (string, error) {
	if _, ok := parsePart(p.String()); !ok {
		return "", unsupported("There is no such part of the catalogue.")
	}
	n := need{until: time.Now().Add(patience)}
	version, err := c.version(ctx, p.Version, n)
	if err == nil && version != p.Version {
		err = unsupported("The version is spelled %s.", version)
	}
	if err != nil {
		return "", err
	}
	if p.Target != "" {
		t, err := c.target(ctx, version, p.Target, n)
		if err != nil {
			return "", err
		}
		return t.stamp, nil
	}
	what := c.distribution + " " + version
	list, err := c.list(ctx, version, n.until)
	if err != nil {
		return "", c.refusal(ctx, what, err)
	}
	if !slices.Contains(slices.Collect(maps.Values(*list)), p.Arch) {
		return "", unsupported("%s has no packages for an architecture %q.", what, p.Arch)
	}
	n.maxAge, n.fresh = c.maxAge(version), isSnapshot(version)
	x, err := c.feeds.get(ctx, version+"/"+p.Arch, n)
	if err != nil {
		return "", c.refusal(ctx, "The list of packages of "+what, err)
	}
	return x.stamp, nil
}

// Parts returns the parts that the cache holds of all versions that are
// offered, each with what changes when it does. It does not ask the upstream.
func (c *Catalog) Parts(ctx context.Context) (map[Part]string, error) {
	v, err := c.current(ctx, followAge)
	if err != nil {
		return nil, err
	}
	held := map[Part]string{}
	keep := func(unit string, stamp func(Part) string) {
		p, ok := parsePart(unit)
		if trouble, offered := v.trouble[p.Version]; ok && offered && trouble == "" {
			held[p] = stamp(p)
		}
	}
	if c.store != nil {
		if r := c.synced.Load(); r != nil {
			for unit, stamp := range r.contents.Stamps {
				keep(unit, func(Part) string { return stamp })
			}
		}
		return held, nil
	}
	for version := range v.trouble {
		for _, pattern := range []string{"*/*/.target", ".feeds/*/.names"} {
			names, err := fs.Glob(c.disk.root.FS(), version+"/"+pattern)
			if err != nil {
				return nil, fmt.Errorf("look through the catalogue's cache: %w", err)
			}
			for _, name := range names {
				keep(path.Dir(name), func(p Part) string { return p.stamp(c.disk) })
			}
		}
	}
	return held, nil
}

// targetFiles are those of a target's unit that tell when it changes; who
// signs and what its profiles are is told by the first.
var targetFiles = []string{".target", ".packages", ".kmods"}

// stampOfUnit is made of the upstream's files that a unit was made of. It is to
// be asked for before these are read: then it may be that of an older state,
// and never that of a newer one.
func stampOfUnit(f files, unit string, names []string) string {
	h := sha256.New()
	for _, name := range names {
		m := f.meta(unit + "/" + name)
		fmt.Fprintf(h, "%q %q\n", m.Source, m.Sum)
	}
	return hex.EncodeToString(h.Sum(nil)[:12])
}

// stamp is what Stamp returns while nothing changes.
func (p Part) stamp(f files) string {
	names := targetFiles
	if p.Target == "" {
		names = append([]string{".names"}, feedNames(f, p.Version+"/"+p.Arch)...)
	}
	return stampOfUnit(f, p.String(), names)
}

// Listing is what clients may know of a part, as of one moment.
type Listing struct {
	Part         // with the architecture, also of a target
	Stamp string // of when it was read

	own      *index  // the packages
	target   *target // nil of feeds
	common   string  // what all profiles share, in JSON
	profiles map[string]string
}

// Listing reads a part from the cache and never asks the upstream. The error
// is a build.Refusal: CodeUnsupported if its files are of no use,
// CodeUnavailable if it is not there.
func (c *Catalog) Listing(ctx context.Context, p Part) (*Listing, error) {
	l, err := c.readListing(ctx, p)
	if err != nil {
		return nil, c.refusal(ctx, strings.TrimSpace(c.distribution+" "+p.Version+" for "+cmp.Or(p.Target, p.Arch)), err)
	}
	return l, nil
}

func (c *Catalog) readListing(ctx context.Context, p Part) (*Listing, error) {
	var f files = c.disk
	if c.store != nil {
		o, err := c.store.read(ctx, p.String())
		if err != nil {
			return nil, err
		}
		f = o.bundle
	}
	if p.Target == "" {
		feeds, err := c.loadFeeds(f, p.Version+"/"+p.Arch)
		if err != nil {
			return nil, err
		}
		return &Listing{Part: p, Stamp: feeds.stamp, own: feeds}, nil
	}
	t, err := c.loadTarget(f, p.String())
	if err == nil {
		err = c.lacks(t)
	}
	if err != nil {
		return nil, err
	}
	p.Arch = t.Arch
	l := &Listing{Part: p, Stamp: t.stamp, own: t.own, target: t}
	_, text, _ := f.read(p.String() + "/" + factsFile)
	l.common, l.profiles = splitProfiles(text)
	var common commonFacts
	if json.Unmarshal([]byte(l.common), &common) != nil || common.Revision != l.target.Revision {
		l.common, l.profiles = "", nil // half of an update; the other half comes with another stamp
	}
	return l, nil
}

// lacks is the refusal of a target without an ImageBuilder.
func (c *Catalog) lacks(t *target) error {
	if t.Archive.Name != "" {
		return nil
	}
	return unsupported("%s %s cannot be built for %s: %s has no ImageBuilder for it.", c.distribution, t.version, t.name, c.web.base)
}

// Packages yields the packages by their ABI-free names, in the order of these,
// with the versions that the ImageBuilder installs.
func (l *Listing) Packages() iter.Seq2[string, string] {
	return func(yield func(name, version string) bool) {
		if l.own == nil {
			return
		}
		for e := range l.own.all() {
			if e.version != "" && e.free == e.name && !yield(e.name, e.version) {
				return
			}
		}
	}
}

// Profiles are the names by which clients ask for a target's devices, sorted:
// each id, and each alias that no other device has, with "_" for ",".
func (l *Listing) Profiles() []string {
	if l.target == nil {
		return nil
	}
	var names []string
	for name, matches := range l.target.byName {
		p, err := l.target.find(name, "")
		if err == nil && (len(matches) == 1 || bare(p.ID) == name) && name != "index" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Profile is a device as its target's profiles.json tells of it, with what
// that says of all of them: clients read both as one object.
type Profile struct {
	build.Profile
	ID              string       `json:"id"`
	Images          []imageFacts `json:"images"`
	MetadataVersion int          `json:"metadata_version"` // 1
	Target          string       `json:"target"`
}

// Profile returns the device of a name, which may be any that Device takes.
// The error is a build.Refusal with CodeUnknownDevice.
func (l *Listing) Profile(name string) (Profile, error) {
	if l.target == nil || !profilePattern.MatchString(name) {
		return Profile{}, &build.Refusal{Code: build.CodeUnknownDevice, Detail: fmt.Sprintf("%.80q is the name of no device.", name)}
	}
	t := l.target
	found, err := t.find(name, "")
	if err != nil {
		return Profile{}, err
	}
	titles := []titleFacts{}
	for _, title := range found.Titles {
		titles = append(titles, titleFacts{Title: title})
	}
	p := Profile{ID: found.ID, MetadataVersion: 1, Target: t.name, Images: []imageFacts{}, Profile: build.Profile{
		ArchPackages: t.Arch, DefaultPackages: copied(t.Defaults), DevicePackages: orNone(found.asListed()),
		SupportedDevices: copied(found.Devices), VersionCode: t.Revision, VersionNumber: t.version,
	}}
	p.Titles, err = json.Marshal(titles)
	for _, facts := range []string{l.common, l.profiles[found.ID]} {
		if facts != "" {
			err = errors.Join(err, json.Unmarshal([]byte(facts), &p))
		}
	}
	if err != nil {
		return Profile{}, fmt.Errorf("read the profile %s of %s: %w", found.ID, l.Part, err)
	}
	return p, nil
}

// asListed is the inverse of newProfile.
func (p *profile) asListed() []string {
	list := slices.Clone(p.Packages)
	for _, name := range p.Without {
		list = append(list, "-"+name)
	}
	return list
}

// copied is never nil, and may be written over: json.Unmarshal does.
func copied(list []string) []string { return append([]string{}, list...) }

func orNone(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

// factsFile keeps what a target's profiles.json says and no build needs:
// what is in it beside this is in the target's own file. Its first line is of
// all profiles, each other one of the profile whose id it begins with.
const factsFile = ".facts"

// Limits of what a profile tells of its images.
const maxImages = 100

var (
	imagePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~,@=-]{0,254}$`)
	wordPattern  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$`)
	sumPattern   = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

type commonFacts struct {
	Defaults []string     `json:"default_packages"`
	Kernel   *kernelFacts `json:"linux_kernel,omitempty"`
	Date     int64        `json:"source_date_epoch"` // Unix time
	Revision string       `json:"version_code"`
}

type kernelFacts struct {
	Release  string `json:"release"`
	Vermagic string `json:"vermagic"`
	Version  string `json:"version"`
}

type deviceFacts struct {
	Packages []string     `json:"device_packages"`
	Prefix   string       `json:"image_prefix"`
	Images   []imageFacts `json:"images"`
	Devices  []string     `json:"supported_devices"`
	Titles   []titleFacts `json:"titles"`
}

// imageFacts are of an image that the upstream built, not of one built here.
type imageFacts struct {
	Filesystem     string `json:"filesystem,omitempty"`
	Name           string `json:"name"`
	SHA256         string `json:"sha256,omitempty"`
	SHA256Unsigned string `json:"sha256_unsigned,omitempty"`
	Type           string `json:"type"`
}

type titleFacts struct {
	Title   string `json:"title,omitempty"`
	Vendor  string `json:"vendor,omitempty"`
	Model   string `json:"model,omitempty"`
	Variant string `json:"variant,omitempty"`
}

// keepProfiles writes what a target's profiles.json says beside what the
// target's own file keeps. m is of that profiles.json.
func keepProfiles(f files, unit string, m meta, profiles []byte) error {
	text, err := distillProfiles(profiles)
	if err != nil {
		return err
	}
	return f.write(unit+"/"+factsFile, m, text)
}

// distillProfiles reads of a profiles.json what parseProfiles does not keep.
// What breaks a pattern is left out.
func distillProfiles(b []byte) ([]byte, error) {
	var p struct {
		Defaults []string                   `json:"default_packages"`
		Kernel   json.RawMessage            `json:"linux_kernel"`
		Date     json.RawMessage            `json:"source_date_epoch"`
		Profiles map[string]json.RawMessage `json:"profiles"`
		Revision string                     `json:"version_code"`
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("read profiles.json: %w", err)
	}
	facts := commonFacts{Defaults: orNone(p.Defaults), Kernel: parseKernel(p.Kernel), Revision: p.Revision}
	if !packageList(facts.Defaults) || len(p.Profiles) > maxProfiles || !revisionPattern.MatchString(p.Revision) {
		return nil, errors.New("profiles.json has too many profiles, default packages that are none, or no revision")
	}
	// Some releases write it as a string.
	if date, err := strconv.ParseInt(strings.Trim(string(p.Date), `"`), 10, 64); err == nil && date > 0 {
		facts.Date = date
	}
	var text strings.Builder
	if err := writeLine(&text, "", facts); err != nil {
		return nil, err
	}
	for _, id := range slices.Sorted(maps.Keys(p.Profiles)) {
		var d deviceFacts
		if !profilePattern.MatchString(id) || json.Unmarshal(p.Profiles[id], &d) != nil || !d.clean() {
			continue // the target's own file has what is needed
		}
		if err := writeLine(&text, id, d); err != nil {
			return nil, err
		}
	}
	return []byte(text.String()), nil
}

func writeLine(text *strings.Builder, id string, facts any) error {
	line, err := json.Marshal(facts) // has no line ends
	if err != nil {
		return err
	}
	fmt.Fprintf(text, "%s\t%s\n", id, line)
	return nil
}

// splitProfiles takes a factsFile apart.
func splitProfiles(text string) (common string, profiles map[string]string) {
	profiles = map[string]string{}
	for line := range strings.Lines(text) {
		id, facts, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if id == "" {
			common = facts
		} else {
			profiles[id] = facts
		}
	}
	return common, profiles
}

func parseKernel(raw json.RawMessage) *kernelFacts {
	var k kernelFacts
	if json.Unmarshal(raw, &k) != nil {
		return nil
	}
	for _, value := range []string{k.Release, k.Vermagic, k.Version} {
		if !kernelPattern.MatchString(value) {
			return nil
		}
	}
	return &k
}

// clean leaves out what breaks a pattern, and tells whether the rest is of use.
func (d *deviceFacts) clean() bool {
	d.Packages, d.Devices, d.Titles = orNone(d.Packages), orNone(d.Devices), d.Titles[:min(len(d.Titles), maxTitles)]
	d.Devices = slices.DeleteFunc(d.Devices, func(s string) bool { return !profilePattern.MatchString(s) })
	if !imagePattern.MatchString(d.Prefix) {
		d.Prefix = ""
	}
	images := []imageFacts{}
	for _, image := range d.Images {
		if image.clean() {
			images = append(images, image)
		}
	}
	titles := []titleFacts{}
	for _, t := range d.Titles {
		t = titleFacts{cleanTitle(t.Title), cleanTitle(t.Vendor), cleanTitle(t.Model), cleanTitle(t.Variant)}
		if t != (titleFacts{}) {
			titles = append(titles, t)
		}
	}
	d.Images, d.Titles = images, titles
	return packageList(d.Packages) && len(d.Devices) <= maxNames && len(images) <= maxImages
}

func (i *imageFacts) clean() bool {
	for _, sum := range []*string{&i.SHA256, &i.SHA256Unsigned} {
		if !sumPattern.MatchString(*sum) {
			*sum = ""
		}
	}
	if !wordPattern.MatchString(i.Filesystem) {
		i.Filesystem = ""
	}
	return imagePattern.MatchString(i.Name) && wordPattern.MatchString(i.Type)
}
