package catalog

import (
	"slices"
	"strings"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/feed"
	"github.com/attended-sysupgrade/sysup/shared/resolve"
)

// alwaysKnown: ImageBuilders bring these along, and not every index lists
// them.
func alwaysKnown(name string) bool {
	return name == "kernel" || name == "libc" || name == "base-files"
}

// Resolve returns the packages that the plan's image would hold. If it
// certainly cannot be built, the error is a build.Refusal that says why:
// CodeUnknownPackage, which names what is missing, CodeConflict or
// CodeVersions. The plan must not have feeds of its own. Without any index of
// the upstream, nothing is sure and nothing refused.
func (d *Device) Resolve(p *build.Plan) (resolve.Solution, error) {
	if d.target.own == nil {
		return resolve.Solution{}, nil
	}
	q := resolve.Query{Format: d.format(), Want: slices.Clone(p.Add), Pins: map[string]string{}}
	for _, name := range d.Facts.Defaults {
		if !slices.Contains(p.Remove, d.Canonical(name)) && !slices.Contains(p.Remove, name) {
			q.Want = append(q.Want, name)
		}
	}
	for _, pin := range p.Pins {
		if pin.Counts() {
			q.Pins[pin.Name] = pin.Version
		}
	}
	u := d.universe()
	solution, problem := resolve.Resolve(u, q)
	if problem != nil {
		return resolve.Solution{}, d.refusal(problem)
	}
	solution.Sure = solution.Sure && !u.unseen
	return solution, nil
}

// CheckPackages is Resolve for a request's list, as far as it adds something:
// "+" and "=version" are cut off, "-name" is left out.
func (d *Device) CheckPackages(list []string) error {
	var p build.Plan
	for _, item := range list {
		if name, _, _ := strings.Cut(strings.TrimLeft(item, "+"), "="); !strings.HasPrefix(name, "-") {
			p.Add = append(p.Add, name)
		}
	}
	_, err := d.Resolve(&p)
	return err
}

// Release is what a sentence about the device's packages has to know.
func (d *Device) Release() resolve.Release {
	return resolve.Release{Name: d.Facts.Distribution + " " + d.Facts.Version, Target: d.Facts.Target, Defaults: d.Facts.Defaults}
}

func (d *Device) refusal(p *resolve.Problem) error {
	refusal := &build.Refusal{Code: build.CodeUnknownPackage, Package: strings.Clone(p.Name)}
	r := d.Release()
	switch p.Kind {
	case resolve.Conflict:
		refusal.Code = build.CodeConflict
	case resolve.Versions:
		refusal.Code, refusal.Package = build.CodeVersions, ""
	default:
		if len(p.Have) == 0 {
			r.Near = nearest(p.Name, d.names())
		}
	}
	refusal.Detail = p.Sentence(r)
	return refusal
}

func (d *Device) format() resolve.Format {
	switch {
	case d.target.own.format == resolve.APK || d.feeds.format == resolve.APK:
		return resolve.APK
	case branchOf(d.Facts.Version) == "17.01":
		return resolve.Opkg17
	}
	return resolve.Opkg
}

// universe is the packages of both indices. Lines are taken apart once.
type universe struct {
	*Device
	parsed map[place]*feed.Package
	unseen bool // a module was granted
}

type place struct {
	in *index
	at int
}

func (d *Device) universe() *universe {
	return &universe{Device: d, parsed: map[place]*feed.Package{}}
}

const kmodPrefix = "kmod-"

func (u *universe) Find(name string) []*feed.Package {
	var list []*feed.Package
	base, any := strings.CutSuffix(name, anySuffix)
	for _, x := range []*index{u.target.own, u.feeds} {
		first, end := x.lines(name)
		for i := first; i < end; i++ {
			if of, ok := x.aliased(i); ok {
				list = u.take(list, x, of)
			}
		}
		list = u.take(list, x, name)
		if any && x.format == resolve.APK {
			list = u.take(list, x, base)
		}
	}
	return list
}

// take appends the packages of an index that are called so, but for those that
// the list has already: modules of the kernel are often in two feeds.
func (u *universe) take(list []*feed.Package, x *index, called string) []*feed.Package {
	for first, end := x.lines(called); first < end; first++ {
		p := u.at(x, first)
		if p != nil && !slices.ContainsFunc(list, func(o *feed.Package) bool { return o.Name == p.Name && o.Version == p.Version }) {
			list = append(list, p)
		}
	}
	return list
}

func (u *universe) at(x *index, i int) *feed.Package {
	p, ok := u.parsed[place{x, i}]
	if !ok {
		p = x.parse(i)
		u.parsed[place{x, i}] = p
	}
	return p
}

// Granted is true of what ImageBuilders bring along, of default packages that
// no index lists, of modules while none are known, of libraries whose names an
// index has lost, and of all that is in no index if there may be others.
func (u *universe) Granted(name string) bool {
	if alwaysKnown(name) {
		return true
	}
	if _, ok := u.lookup(name); ok {
		return false
	}
	if !u.target.kmods && strings.HasPrefix(name, kmodPrefix) {
		u.unseen = true
		return true
	}
	_, found := u.find(name)
	return found || u.open() || u.mute() && !u.mistyped(name) || slices.Contains(u.Facts.Defaults, name)
}

// open tells whether there may be names that are in no index.
func (u *universe) open() bool { return u.target.own.open || u.feeds.open }

// mute tells whether there may be names that packages of the indices provide.
func (u *universe) mute() bool { return u.target.own.mute || u.feeds.mute }

func (u *universe) Whole() bool { return !u.target.own.bare && !u.feeds.bare && !u.open() }

// mistyped tells whether a name is so near to a package's that it cannot well
// be one of its own: other numbers, short names and modules may be.
func (u *universe) mistyped(name string) bool {
	if len(name) < 5 || strings.HasPrefix(name, kmodPrefix) {
		return false
	}
	name = strings.ToLower(name)
	letters, digits := lettersOf(name), digitsOf(name)
	for c := range u.names() {
		if cost, ok := costOf(name, c, 1, letters); ok && cost <= 1 && digitsOf(c) == digits {
			return true
		}
	}
	return false
}

func digitsOf(name string) string {
	return strings.Map(func(r rune) rune {
		if r < '0' || r > '9' {
			return -1
		}
		return r
	}, name)
}
