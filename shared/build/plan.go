package build

import (
	"cmp"
	"maps"
	"net/url"
	"slices"
	"strings"
)

// Plan is a request after it was held against the catalogue: what exactly is
// to be built. Two requests that mean the same image have equal plans, so the
// ID is made of it; the builder works from it alone.
//
// Add, Remove and RepositoryKeys are sorted and without duplicates, Pins are
// sorted by name and count. Addresses of feeds have one spelling.
type Plan struct {
	Distribution     string       `json:"distribution"`
	Version          string       `json:"version"`
	Snapshot         bool         `json:"snapshot,omitempty"`
	Revision         string       `json:"revision"` // hashed for snapshots only; a release's is only compared
	Target           string       `json:"target"`
	Profile          string       `json:"profile"`
	Add              []string     `json:"add,omitempty"`
	Remove           []string     `json:"remove,omitempty"`
	Pins             []Pin        `json:"pins,omitempty"`
	Filesystem       string       `json:"filesystem,omitempty"` // "" = all
	RootfsSizeMB     int          `json:"rootfs_size_mb,omitempty"`
	Repositories     []Repository `json:"repositories,omitempty"`
	RepositoriesMode string       `json:"repositories_mode,omitempty"`
	RepositoryKeys   []string     `json:"repository_keys,omitempty"`
	Settings         []string     `json:"settings,omitempty"` // of the server, where they change images
	Rules            string       `json:"rules,omitempty"`
	Changes          []Amendment  `json:"changes,omitempty"` // not hashed: Rules is
	Private          bool         `json:"private,omitempty"`
	Defaults         string       `json:"defaults,omitempty"` // leaves the record when the build ends
}

// Amendment is what was done to a request so that its version can serve it, for
// people to read. From is empty for what was added, To for what was left out;
// both are for what only has to be said.
type Amendment struct {
	From   string `json:"from"`
	To     string `json:"to"`
	Reason string `json:"reason"`         // a sentence
	Link   string `json:"link,omitempty"` // to read more
}

// Pin is a package whose version the client relies on.
type Pin struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// Counts tells whether the version matters: some packages are listed under
// versions of their own, and every client leaves them out.
func (p Pin) Counts() bool { return p.Name != "kernel" && p.Name != "libc" && p.Name != "libgcc" }

// kept are never removed, whatever a client sends: an image without them does
// not boot or cannot be mended.
var kept = map[string]bool{"kernel": true, "libc": true, "base-files": true, "opkg": true}

// isApk tells the variants of apk, which exclude each other, from other
// packages.
func isApk(name string) bool { return strings.HasPrefix(name, "apk-") }

// Resolve turns a checked request into a plan. canonical gives the ABI-free
// name by which the catalogue knows a package ("libjson-c5" → "libjson-c")
// and returns other names unchanged.
//
// With D = facts.Defaults: additions are the list without D. Removals are the
// names sent with "-", and with DiffPackages also what is in D and neither in
// the list nor mandatory; "-x" beats "x". A removal of what is not in D changes
// no image, so it is left out of the plan. A list that adds nothing does not count as one:
// "exactly these packages: none" would be a router without software.
func Resolve(r *Request, facts Facts, settings []string, canonical func(string) string) Plan {
	canonical = once(canonical, len(r.Packages)+len(facts.Defaults))
	add, remove := wanted(r, canonical)
	for name := range remove {
		delete(add, name)
	}
	d := make(set, len(facts.Defaults))
	for _, name := range facts.Defaults {
		d[canonical(name)] = true
	}
	if r.DiffPackages && len(add) > 0 {
		for name := range d {
			if !add[name] && !slices.Contains(facts.Mandatory, name) {
				remove[name] = true
			}
		}
	}
	protect(add, remove)
	p := Plan{
		Distribution: facts.Distribution, Version: facts.Version, Snapshot: facts.Snapshot, Revision: facts.Revision,
		Target: facts.Target, Profile: facts.Profile,
		Add: add.minus(d), Remove: remove.intersect(d), Pins: pins(r.PackagesVersions, canonical),
		Filesystem: r.Filesystem, RootfsSizeMB: r.RootfsSizeMB,
		Settings: slices.Clone(settings), Rules: facts.Rules,
		Private: r.Private(), Defaults: r.Defaults,
	}
	if len(r.Repositories) > 0 {
		p.bring(r)
	}
	slices.Sort(p.Settings)
	return p
}

// bring takes in the feeds of a request. Their order decides which has a
// package first, that of the keys decides nothing; and keys without feeds
// open no others, nor do they get into the image.
func (p *Plan) bring(r *Request) {
	for _, repo := range r.Repositories {
		p.Repositories = append(p.Repositories, Repository{Name: repo.Name, URL: canonicalAddress(repo.URL)})
	}
	p.RepositoriesMode = cmp.Or(r.RepositoriesMode, "replace") // as today's server takes it
	p.RepositoryKeys = slices.Compact(slices.Sorted(slices.Values(r.RepositoryKeys)))
}

// canonicalAddress is one spelling for all of a feed's: the host in lower
// case, no port that is the scheme's own, no slash at the end.
func canonicalAddress(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return address // Check does not let it get here
	}
	own := map[string]string{"http": ":80", "https": ":443"}[u.Scheme]
	u.Host = strings.TrimSuffix(strings.ToLower(u.Host), own)
	u.Path = strings.TrimSuffix(u.Path, "/")
	return u.String()
}

// once asks only once for each name: most are in the list, among the versions
// and in D.
func once(canonical func(string) string, names int) func(string) string {
	known := make(map[string]string, names)
	return func(name string) string {
		result, ok := known[name]
		if !ok {
			result = canonical(name)
			known[name] = result
		}
		return result
	}
}

// wanted reads the two package lists of a request.
func wanted(r *Request, canonical func(string) string) (add, remove set) {
	add, remove = make(set, len(r.Packages)), set{}
	for _, entry := range r.Packages {
		name, _, _ := splitPackage(entry)
		if strings.HasPrefix(entry, "-") {
			remove[canonical(name)] = true
		} else {
			add[canonical(name)] = true
		}
	}
	for name := range r.PackagesVersions {
		add[canonical(name)] = true
	}
	return add, remove
}

// protect takes what must stay out of the removals. One variant of apk may
// only give way to another that was asked for.
func protect(add, remove set) {
	apk := slices.ContainsFunc(slices.Collect(maps.Keys(add)), isApk)
	for name := range remove {
		if kept[name] || isApk(name) && !apk {
			delete(remove, name)
		}
	}
}

func pins(versions map[string]string, canonical func(string) string) []Pin {
	list := slices.Grow([]Pin(nil), len(versions))
	for name, version := range versions {
		if pin := (Pin{Name: canonical(name), Version: version}); pin.Counts() {
			list = append(list, pin)
		}
	}
	if len(list) == 0 {
		return nil
	}
	slices.SortFunc(list, func(a, b Pin) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return strings.Compare(a.Version, b.Version)
	})
	return slices.Compact(list)
}

type set map[string]bool

func (s set) minus(other set) []string {
	return s.filter(func(name string) bool { return !other[name] })
}

func (s set) intersect(other set) []string {
	return s.filter(func(name string) bool { return other[name] })
}

func (s set) filter(keep func(string) bool) []string {
	var list []string
	for name := range s {
		if keep(name) {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

// Check holds every field against its pattern once more, just before make
// sees it: the record may have been written by another version of sysup.
func (p *Plan) Check() error {
	err := checkFields(
		field{"distribution", p.Distribution, distroPattern, true},
		field{"version", p.Version, versionPattern, true},
		field{"revision", p.Revision, revisionPattern, false},
		field{"target", p.Target, targetPattern, true},
		field{"profile", p.Profile, profilePattern, true},
	)
	if err != nil {
		return err
	}
	versions := map[string]string{}
	for _, pin := range p.Pins {
		versions[pin.Name] = pin.Version
	}
	for _, list := range [][]string{p.Add, p.Remove} {
		for _, name := range list {
			if !packagePattern.MatchString(name) {
				return invalid("%q is not a package name.", quote(name))
			}
		}
	}
	if err := checkPackages(nil, versions); err != nil {
		return err
	}
	return checkOptions(p.Filesystem, p.RootfsSizeMB, p.Defaults, p.Repositories, p.RepositoriesMode, p.RepositoryKeys)
}
