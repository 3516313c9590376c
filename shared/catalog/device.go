package catalog

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/feed"
	"github.com/attended-sysupgrade/sysup/shared/resolve"
)

// Archive is a target's ImageBuilder, as a verified sha256sums names it.
type Archive struct {
	URL    string `json:"-"`
	Name   string `json:"name"`
	SHA256 string `json:"sha256"` // lower-case hex digits
	Size   int64  `json:"-"`      // in bytes, 0 if not known
}

// Device is one profile of a version's target with the packages that there
// are for it, all as of one moment. Its slices are shared: they may not be
// changed.
type Device struct {
	Facts            build.Facts
	Arch             string   // of packages: "mips_24kc"
	Titles           []string // "TP-Link Archer C7 v2"
	SupportedDevices []string // the board names of routers that it fits

	target *target
	feeds  *index
	limit  int64 // bytes that an image may have, 0 if not known
}

// NewDevice returns a device for which there are just the named packages. It
// is for tests of what works with devices; a Catalog's come from upstream.
func NewDevice(facts build.Facts, packages ...string) *Device {
	var list []feed.Package
	for _, name := range packages {
		list = append(list, feed.Package{Name: name, Version: "1"})
	}
	own := newIndex(string(distill(headOpkg, list)))
	return &Device{Facts: facts, target: &target{own: own, kmods: own.has(kmodPrefix)}, feeds: &index{}}
}

// Device returns the device that a request means. The profile is an id, an
// alias (a board name), or empty; the model is a title to look for if the
// profile does not decide. Versions and aliases are found in all their usual
// spellings. What was never fetched before is fetched for up to 10 seconds,
// then in the background. The error is a build.Refusal: CodeUnsupported for
// the version and the target, CodeUnknownDevice, CodeUnavailable.
func (c *Catalog) Device(ctx context.Context, version, name, profile, model string) (*Device, error) {
	n := need{until: time.Now().Add(patience), feeds: true}
	t, err := c.target(ctx, version, name, n)
	if err != nil {
		return nil, err
	}
	p, err := t.find(profile, model)
	if err != nil {
		return nil, err
	}
	n.maxAge = c.maxAge(t.version)
	feeds, err := c.feeds.get(ctx, t.version+"/"+t.Arch, n)
	if err != nil {
		return nil, c.refusal(ctx, fmt.Sprintf("The list of packages of %s %s", c.distribution, t.version), err)
	}
	return &Device{
		Facts: build.Facts{
			Distribution: c.distribution, Version: t.version, Snapshot: isSnapshot(t.version), Revision: t.Revision,
			Target: t.name, Profile: p.ID, Defaults: t.packagesOf(p),
		},
		Arch: t.Arch, Titles: p.Titles, SupportedDevices: p.Devices,
		target: t, feeds: feeds, limit: p.Limit,
	}, nil
}

// target returns a target of a version. The need's age is filled in if it is
// zero; of a snapshot, a fresh one is needed.
func (c *Catalog) target(ctx context.Context, version, name string, n need) (*target, error) {
	version, err := c.version(ctx, version, n)
	if err != nil {
		return nil, err
	}
	what := c.distribution + " " + version
	list, err := c.list(ctx, version, n.until)
	if err != nil {
		return nil, c.refusal(ctx, what, err)
	}
	arch, ok := (*list)[name]
	if !ok {
		return nil, unsupported("%s has no target %q.%s", what, name, resolve.DidYouMean(nearest(name, keysOf(*list))))
	}
	if n.feeds && c.store != nil {
		defer c.feeds.warm(ctx, version+"/"+arch)()
	}
	n.maxAge, n.fresh = cmp.Or(n.maxAge, c.maxAge(version)), n.fresh || isSnapshot(version)
	t, err := c.targets.get(ctx, version+"/"+name, n)
	if err == nil {
		err = c.lacks(t)
	}
	return t, c.refusal(ctx, what+" for "+name, err)
}

// list returns the targets of a version. A store's index has those of most
// versions that are asked for.
func (c *Catalog) list(ctx context.Context, version string, until time.Time) (*targetList, error) {
	if c.store != nil {
		if list := c.view.Load().lists[version]; list != nil {
			return list, nil
		}
	}
	return c.lists.get(ctx, version, need{maxAge: c.maxAge(version), until: until})
}

func keysOf(list targetList) iter.Seq[string] {
	return func(yield func(string) bool) {
		for name := range list {
			if !yield(name) {
				return
			}
		}
	}
}

// justNow is how old an answer may be that has to be right at this moment.
const justNow = 10 * time.Second

// Revision returns the revision of a target, as "r29233-443ec4032a". That of
// a snapshot is asked of the upstream again unless that has just been done; a
// follower looks into the store again.
func (c *Catalog) Revision(ctx context.Context, version, name string) (string, error) {
	t, err := c.target(ctx, version, name, c.right(version, patience))
	if err != nil {
		return "", err
	}
	return t.Revision, nil
}

func (c *Catalog) right(version string, wait time.Duration) need {
	n := need{until: time.Now().Add(wait)}
	if isSnapshot(canonicalVersion(version)) {
		n.maxAge = justNow
	}
	return n
}

// ImageBuilder returns where a target's ImageBuilder is and what its sum has
// to be. It waits for the upstream as long as an update may take. The error is
// a *build.Failure of KindUpstream.
func (c *Catalog) ImageBuilder(ctx context.Context, version, name string) (Archive, error) {
	t, err := c.target(ctx, version, name, c.right(version, updateLimit))
	if err != nil {
		if ctx.Err() != nil {
			return Archive{}, err
		}
		return Archive{}, build.Fail(build.KindUpstream, "%s", err)
	}
	a := t.Archive
	a.URL = c.web.base + "/" + folder(t.version) + "/targets/" + name + "/" + a.Name
	return a, nil
}

// find returns the profile that a name means, else the one with that title.
func (t *target) find(name, model string) (*profile, error) {
	if len(t.Profiles) == 1 && (name == "" || strings.EqualFold(t.Profiles[0].ID, "generic")) {
		return &t.Profiles[0], nil
	}
	matches := t.byName[bare(name)]
	if i := slices.IndexFunc(matches, func(i int32) bool { return bare(t.Profiles[i].ID) == bare(name) }); i >= 0 {
		return &t.Profiles[matches[i]], nil // an id beats aliases
	}
	if model != "" && len(matches) != 1 {
		if titled := t.titled(model, matches); len(titled) > 0 {
			matches = titled
		}
	}
	if len(matches) == 1 {
		return &t.Profiles[matches[0]], nil
	}
	return nil, t.unknown(name, model, matches)
}

// titled returns the profiles with the title, of those given or of all.
func (t *target) titled(model string, among []int32) []int32 {
	var list []int32
	for i := range t.Profiles {
		has := slices.ContainsFunc(t.Profiles[i].Titles, func(s string) bool { return strings.EqualFold(s, model) })
		if has && (len(among) == 0 || slices.Contains(among, int32(i))) {
			list = append(list, int32(i))
		}
	}
	return list
}

func (t *target) unknown(name, model string, matches []int32) error {
	refusal := &build.Refusal{Code: build.CodeUnknownDevice}
	var ids []string
	for _, i := range matches {
		ids = append(ids, t.Profiles[i].ID)
	}
	if len(ids) == 0 && name == "" {
		for _, p := range t.Profiles {
			ids = append(ids, p.ID)
		}
	}
	switch {
	case len(matches) > 0:
		refusal.Detail = fmt.Sprintf("%q fits several devices of %s. Name one of these profiles: %s.", cmp.Or(name, model), t.name, few(ids))
	case name == "" && model == "":
		refusal.Detail = fmt.Sprintf("The target %s has several devices. Name one of these profiles: %s.", t.name, few(ids))
	case name == "":
		refusal.Detail = fmt.Sprintf("No device of %s %s is called %q. Name one of these profiles: %s.", t.version, t.name, model, few(ids))
	default:
		refusal.Detail = fmt.Sprintf("%s %s has no profile %q.%s", t.version, t.name, name, resolve.DidYouMean(nearest(bare(name), t.names())))
	}
	return refusal
}

// names yields the profiles' ids.
func (t *target) names() iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := range t.Profiles {
			if !yield(t.Profiles[i].ID) {
				return
			}
		}
	}
}

// lookup finds a name in the target's packages or the feeds.
func (d *Device) lookup(name string) (entry, bool) {
	if d.target.own != nil {
		if e, ok := d.target.own.find(name); ok && e.version != "" {
			return e, true
		}
	}
	e, ok := d.feeds.find(name)
	if !ok && d.target.own != nil {
		return d.target.own.find(name)
	}
	return e, ok
}

// lost tells whether the indices hold too few names with ABI versions.
func (d *Device) lost() bool {
	return d.feeds.lost || d.target.own != nil && d.target.own.lost
}

// find is lookup, and where an index has lost the names with ABI versions it
// takes a library's name with any ABI version for that library: routers with
// apk send such names.
func (d *Device) find(name string) (entry, bool) {
	e, ok := d.lookup(name)
	if ok || !d.lost() || !strings.HasPrefix(name, "lib") {
		return e, ok
	}
	return cutABI(name, d.lookup, func(e entry) bool { return e.version != "" })
}

// Canonical returns the name by which requests and clients know a package,
// without its ABI version: "libubox" for "libubox20240329". An unknown name is
// returned as it is.
func (d *Device) Canonical(name string) string {
	e, ok := d.find(name)
	if !ok || e.free == name {
		return name
	}
	return strings.Clone(e.free) // not the whole index
}

// Made tells whether the upstream has no profiles.json for the device's target:
// then its ImageBuilder may well write none either.
func (d *Device) Made() bool { return d.target.Made }

// ABIFree is Canonical for an installed package of that version, as a manifest
// lists it. The version helps where the index has no names with ABI versions:
// the package is then the one of that version whose name the given one begins
// with.
func (d *Device) ABIFree(name, version string) string {
	e, ok := d.lookup(name)
	if !ok {
		e, ok = cutABI(name, d.lookup, func(e entry) bool { return e.version == version })
	}
	if !ok || e.free == name {
		return name
	}
	return strings.Clone(e.free)
}

// Has tells whether there is a package for the device of that name, or one that
// provides it.
func (d *Device) Has(name string) bool {
	_, ok := d.find(name)
	return ok || slices.Contains(d.Facts.Defaults, name)
}

// names yields the ABI-free names of all packages.
func (d *Device) names() iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, x := range []*index{d.target.own, d.feeds} {
			if x == nil {
				continue
			}
			for e := range x.all() {
				if e.version != "" && e.free == e.name && !yield(e.name) {
					return
				}
			}
		}
	}
}
