package catalog

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// Limits of a profiles.json; the longest real one has about 500 profiles in
// 2 MB.
const (
	maxProfilesFile = 16 << 20
	maxProfiles     = 5_000
	maxNames        = 1_000 // packages or aliases of one profile
	maxTitles       = 32
	maxTitle        = 200
)

var (
	revisionPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}$`)
	profilePattern  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.,+-]{0,127}$`)
	kernelPattern   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+_~-]{0,127}$`)
	archivePattern  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]*imagebuilder[A-Za-z0-9._+-]*\.tar\.(xz|zst|gz)$`)
)

// target is what is kept of a target's sha256sums and profiles.json: checked,
// and small.
type target struct {
	Signer   usign.Fingerprint `json:"-"`
	SignedBy string            `json:"signer"`
	Revision string            `json:"revision"`
	Made     bool              `json:"made,omitempty"` // its ImageBuilder said it, the upstream has no profiles.json
	Arch     string            `json:"arch"`
	Kernel   string            `json:"kernel,omitempty"` // the folder of its modules
	Archive  Archive           `json:"archive"`          // without the URL
	Indices  map[string]string `json:"indices"`          // sums of package indices
	Defaults []string          `json:"defaults"`
	Profiles []profile         `json:"profiles"` // by id

	version, name string
	stamp         string             // of the files that it was read from
	byName        map[string][]int32 // id or alias in its bare form → profiles
	own           *index             // the target's packages and kernel modules; nil if not known
	kmods         bool               // it is known which modules the kernel has
}

// profile is one device, or one family of boards.
type profile struct {
	ID       string   `json:"id"`
	Devices  []string `json:"devices,omitempty"`
	Titles   []string `json:"titles,omitempty"`
	Packages []string `json:"packages,omitempty"` // beside the defaults
	Without  []string `json:"without,omitempty"`  // of the defaults
	Limit    int64    `json:"limit,omitempty"`    // bytes that an image may have, where that is told
}

// profilesJSON is the part of a profiles.json that is read.
type profilesJSON struct {
	Arch     string   `json:"arch_packages"`
	Defaults []string `json:"default_packages"`
	Kernel   struct {
		Release  string `json:"release"`
		Vermagic string `json:"vermagic"`
		Version  string `json:"version"`
	} `json:"linux_kernel"`
	Profiles map[string]struct {
		Packages []string          `json:"device_packages"`
		Devices  []string          `json:"supported_devices"`
		Titles   []json.RawMessage `json:"titles"`
		Limits   json.RawMessage   `json:"file_size_limits"`
	} `json:"profiles"`
	Target   string `json:"target"`
	Revision string `json:"version_code"`
	Version  string `json:"version_number"`
}

// parseProfiles reads the profiles.json of a version's target. Profiles that
// break a pattern are left out; anything else that does makes it fail.
func parseProfiles(b []byte, version, name string) (*target, error) {
	var p profilesJSON
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("read profiles.json: %w", err)
	}
	switch {
	case p.Target != name || p.Version != version:
		return nil, fmt.Errorf("profiles.json is of %.80q %.80q, not of %s %s", p.Version, p.Target, version, name)
	case !revisionPattern.MatchString(p.Revision) || !archPattern.MatchString(p.Arch):
		return nil, fmt.Errorf("profiles.json has the revision %.80q and the architecture %.80q", p.Revision, p.Arch)
	case len(p.Profiles) > maxProfiles || !packageList(p.Defaults):
		return nil, errors.New("profiles.json has too many profiles, or default packages that are none")
	}
	t := &target{version: version, name: name, Revision: p.Revision, Arch: p.Arch, Defaults: distinct(p.Defaults)}
	if kernel := p.Kernel.Version + "-" + p.Kernel.Release + "-" + p.Kernel.Vermagic; p.Kernel.Vermagic != "" && kernelPattern.MatchString(kernel) {
		t.Kernel = kernel
	}
	for id, raw := range p.Profiles {
		devices := slices.DeleteFunc(raw.Devices, func(s string) bool { return !profilePattern.MatchString(s) })
		if profilePattern.MatchString(id) && packageList(raw.Packages) && len(devices) <= maxNames {
			p := newProfile(id, devices, parseTitles(raw.Titles), raw.Packages, t.Defaults)
			p.Limit = parseLimit(raw.Limits)
			t.Profiles = append(t.Profiles, p)
		}
	}
	if len(t.Profiles) == 0 {
		return nil, errors.New("profiles.json has no profile")
	}
	slices.SortFunc(t.Profiles, func(a, b profile) int { return strings.Compare(a.ID, b.ID) })
	return t, nil
}

// packageList tells whether every entry is a package, or one to leave out
// ("-name").
func packageList(list []string) bool {
	return len(list) <= maxNames && !slices.ContainsFunc(list, func(s string) bool {
		return !namePattern.MatchString(strings.TrimPrefix(s, "-"))
	})
}

// parseTitles reads {"title"} or {"vendor", "model", "variant"}.
func parseTitles(raw []json.RawMessage) []string {
	var list []string
	for _, r := range raw[:min(len(raw), maxTitles)] {
		var t struct{ Vendor, Model, Variant, Title string }
		if json.Unmarshal(r, &t) != nil {
			continue
		}
		title := cmp.Or(t.Title, strings.Join(strings.Fields(t.Vendor+" "+t.Model+" "+t.Variant), " "))
		if title = cleanTitle(title); title != "" {
			list = append(list, title)
		}
	}
	return list
}

// parseLimit reads {"image": bytes, …}; 0 for anything else.
func parseLimit(raw json.RawMessage) int64 {
	var limits struct{ Image int64 }
	if json.Unmarshal(raw, &limits) != nil {
		return 0
	}
	return max(0, limits.Image)
}

func cleanTitle(title string) string {
	if len(title) > maxTitle {
		return ""
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return -1
		}
		return r
	}, title)
}

// parseSums reads what is needed of a target's sha256sums: the ImageBuilder,
// and the sums of package indices.
func (t *target) parseSums(sums usign.Sums) {
	t.Indices, t.Archive = map[string]string{}, archiveOf(sums)
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		switch path.Base(name) {
		case "Packages", "Packages.gz", adbFile, "index.json":
			if dir := path.Dir(name); dir == "packages" || dir == "kmods/"+t.Kernel {
				t.Indices[name] = fmt.Sprintf("%x", sums[name])
			}
		}
	}
}

// archiveOf finds the ImageBuilder. There is one; if ever there are more, that
// for our kind of machine.
func archiveOf(sums usign.Sums) (a Archive) {
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		if archivePattern.MatchString(name) && (a.Name == "" || strings.Contains(name, "x86_64")) {
			a = Archive{Name: name, SHA256: fmt.Sprintf("%x", sums[name])}
		}
	}
	return a
}

// parseTarget reads what was kept of a target.
func parseTarget(text string) (*target, error) {
	var t target
	if err := json.Unmarshal([]byte(text), &t); err != nil {
		return nil, fmt.Errorf("read a target from the cache: %w", err)
	}
	var err error
	if t.Signer, err = usign.ParseFingerprint(t.SignedBy); err != nil {
		return nil, fmt.Errorf("read a target from the cache: %w", err)
	}
	if !revisionPattern.MatchString(t.Revision) || !archPattern.MatchString(t.Arch) || t.Kernel != "" && !kernelPattern.MatchString(t.Kernel) ||
		t.Archive.Name != "" && !archivePattern.MatchString(t.Archive.Name) {
		return nil, fmt.Errorf("read a target from the cache: its revision, architecture, kernel or archive is called what none can be")
	}
	t.share()
	t.byName = map[string][]int32{}
	for i, p := range t.Profiles {
		for _, name := range append([]string{p.ID}, p.Devices...) {
			if key := bare(name); !slices.Contains(t.byName[key], int32(i)) {
				t.byName[key] = append(t.byName[key], int32(i))
			}
		}
	}
	return &t, nil
}

// share lets equal package names be one string: hundreds of profiles name the
// same few.
func (t *target) share() {
	seen := map[string]string{}
	for i := range t.Profiles {
		for k, name := range t.Profiles[i].Packages {
			if one, ok := seen[name]; ok {
				t.Profiles[i].Packages[k] = one
			} else {
				seen[name] = name
			}
		}
	}
}

// bare is the form in which the names of boards are compared: clients send
// "vendor,model" and "vendor_model" for the same one.
func bare(name string) string { return strings.ReplaceAll(name, ",", "_") }

// packagesOf is what an image of the profile holds if nobody asks for more or
// less: the target's default packages and the device's, without those that the
// device leaves out.
func (t *target) packagesOf(p *profile) []string {
	list := make([]string, 0, len(t.Defaults)+len(p.Packages))
	for _, name := range t.Defaults {
		if !slices.Contains(p.Without, name) {
			list = append(list, name)
		}
	}
	return append(list, p.Packages...)
}

// newProfile splits a profile's own packages: those beside the defaults, and
// those that it leaves out.
func newProfile(id string, devices, titles, packages, defaults []string) profile {
	p := profile{ID: id, Devices: devices, Titles: titles}
	for _, name := range packages {
		if short, minus := strings.CutPrefix(name, "-"); minus {
			p.Without = append(p.Without, short)
		}
	}
	for _, name := range packages {
		if name[0] != '-' && !slices.Contains(defaults, name) && !slices.Contains(p.Without, name) && !slices.Contains(p.Packages, name) {
			p.Packages = append(p.Packages, name)
		}
	}
	return p
}

// distinct sorts, and leaves out what is there twice or taken out again.
func distinct(names []string) []string {
	list := slices.DeleteFunc(slices.Sorted(slices.Values(names)), func(name string) bool {
		return name[0] == '-' || slices.Contains(names, "-"+name)
	})
	return slices.Compact(list)
}
