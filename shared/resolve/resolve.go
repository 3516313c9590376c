// Package resolve finds out which packages an image would hold, or why it
// cannot be built. It is pure: it knows neither where indices come from nor
// who asks.
//
// It refuses only what is certain: what no choice among the packages that
// there are could make good. Package managers choose among several providers by
// rules of their own, so wherever there is a choice it follows theirs where
// they are known, says so in Solution.Sure where they are not, and leaves the
// rest to the build.
//
// A package is forced if everything that satisfies the request holds it: it is
// the only one that can stand for a name that is wanted, or that a forced
// package needs. Refused is what nothing can stand for, and what two forced
// packages forbid each other.
package resolve

import (
	"cmp"
	"slices"

	"github.com/attended-sysupgrade/sysup/shared/feed"
)

// Format is the package manager whose rules hold.
type Format int

// The package managers. Opkg17 is that of 17.01, which was told to go on
// without what it lacks.
const (
	Opkg Format = iota
	APK
	Opkg17
)

// Universe is the packages that there are for an image.
type Universe interface {
	// Find returns the packages of that name and those that provide it, in no
	// order; the same package is the same pointer each time.
	Find(name string) []*feed.Package
	// Granted tells whether the name is met by something that indices need
	// not list, whatever its version has to be: the kernel.
	Granted(name string) bool
	// Whole tells whether all packages, what they need and what they provide
	// are known. If not, only wanted names that nothing bears are refused.
	Whole() bool
}

// Query is what an image shall hold.
type Query struct {
	Format Format
	Want   []string          // names, in the order in which they are installed
	Pins   map[string]string // versions that some of these have to have, by name
}

// Solution is the packages of an image.
type Solution struct {
	Packages  []*feed.Package // in no order
	Sure      bool            // the build can be expected to find the same
	Installed int64           // bytes, uncompressed
	Download  int64           // bytes
}

// Limits of one query. Images have 100 to 400 packages.
const (
	maxSteps = 50_000
	maxDepth = 500
)

// node is a package with what is known of it so far.
type node struct {
	*feed.Package
	state  state
	why    unmet // if broken
	forced bool
	by     *node // which needs it; nil if it is wanted itself
	chosen bool
	called bool // by a name for which apk takes it unasked
}

type state int

const (
	unseen state = iota
	seeing       // its dependencies are being looked at
	sound        // nothing is known to be missing
	broken       // something that it needs cannot be had
)

// unmet is a dependency for which there is nothing; next is a package that
// would be what is needed, if it were not broken itself.
type unmet struct {
	need feed.Dependency
	next *node
}

type solver struct {
	Universe
	Query
	found  map[string][]*node
	nodes  map[*feed.Package]*node
	steps  int
	forced []*node
	picked []*node
	sure   bool
}

// Resolve returns the packages that the image would hold, or the problem for
// which it certainly cannot be built.
func Resolve(u Universe, q Query) (Solution, *Problem) {
	s := &solver{Universe: u, Query: q, found: map[string][]*node{}, nodes: map[*feed.Package]*node{}, sure: u.Whole()}
	if p := s.unknown(); p != nil {
		return Solution{}, p
	}
	if s.Whole() {
		if p := s.impossible(); p != nil {
			return Solution{}, p
		}
	}
	s.choose()
	return s.solution(), nil
}

// find returns the nodes for a name.
func (s *solver) find(name string) []*node {
	list, ok := s.found[name]
	if !ok {
		for _, p := range s.Find(name) {
			n := s.nodes[p]
			if n == nil {
				n = &node{Package: p}
				s.nodes[p] = n
			}
			list = append(list, n)
		}
		s.found[name] = list
	}
	return list
}

// unknown finds the first wanted name that nothing bears.
func (s *solver) unknown() *Problem {
	for _, name := range s.Want {
		if len(s.find(name)) == 0 && !s.Granted(name) {
			return &Problem{Kind: Unknown, Name: name}
		}
	}
	return nil
}

// impossible finds what certainly fails otherwise.
func (s *solver) impossible() *Problem {
	for _, name := range s.Want {
		if len(s.find(name)) > 0 && len(s.wanted(name)) == 0 && !s.Granted(name) {
			return s.missing(name)
		}
	}
	for _, name := range s.Want {
		if list := s.wanted(name); len(list) == 1 && !s.Granted(name) {
			s.force(list[0], nil)
		}
	}
	for i := 0; i < len(s.forced); i++ {
		n := s.forced[i]
		for _, need := range n.Depends {
			for _, one := range s.only(need) {
				s.force(one, n)
			}
		}
	}
	if p := s.conflict(); p != nil {
		return p
	}
	return s.mispinned()
}

// wanted returns what can stand for a name of the request. Of opkg's packages
// the one of that very name goes before what only provides it.
func (s *solver) wanted(name string) []*node {
	list := s.usable(feed.Dependency{Name: name})
	if s.Format != APK {
		if own := named(list, name); len(own) > 0 {
			return own
		}
	}
	return list
}

func named(list []*node, name string) []*node {
	var own []*node
	for _, n := range list {
		if n.Name == name {
			own = append(own, n)
		}
	}
	return own
}

// usable returns the packages that meet a dependency and are not broken.
func (s *solver) usable(d feed.Dependency) []*node {
	var list []*node
	for _, n := range s.candidates(d) {
		if !s.broken(n, 0) {
			list = append(list, n)
		}
	}
	return list
}

// only returns the one package that can meet a dependency, if there is just one.
func (s *solver) only(d feed.Dependency) []*node {
	if list := s.usable(d); len(list) == 1 && !s.granted(d) {
		return list
	}
	return nil
}

// candidates returns the packages that meet a dependency or one of its
// alternatives.
func (s *solver) candidates(d feed.Dependency) []*node {
	var list []*node
	for i := -1; i < len(d.Or); i++ {
		one := d
		if i >= 0 {
			one = d.Or[i]
		}
		for _, n := range s.find(one.Name) {
			if s.Format.may(n.Package, one) && !slices.Contains(list, n) {
				list = append(list, n)
			}
		}
	}
	return list
}

// granted tells whether a dependency needs no package of the indices.
func (s *solver) granted(d feed.Dependency) bool {
	return s.Format == Opkg17 || s.Granted(d.Name) || slices.ContainsFunc(d.Or, func(o feed.Dependency) bool { return s.Granted(o.Name) })
}

// bears tells whether a package is what a dependency names, whatever the
// version.
func bears(p *feed.Package, name string) bool {
	return p.Name == name || slices.ContainsFunc(p.Provides, func(o feed.Dependency) bool { return o.Name == name })
}

// fits tells whether a package is what a dependency names, in a version that
// meets its condition. opkg holds that against the version of the package
// whatever the name; apk against the version that the package gives the name,
// and takes none for an old one.
func (f Format) fits(p *feed.Package, d feed.Dependency) bool {
	if p.Name == d.Name && f.meets(p.Version, d.Op, d.Version) {
		return true
	}
	for _, o := range p.Provides {
		switch {
		case o.Name != d.Name:
		case o.Version != "" && f.meets(o.Version, d.Op, d.Version), f != APK && f.meets(p.Version, d.Op, d.Version):
			return true
		case o.Version == "" && (d.Op == "" || d.Op == "<" || d.Op == "<=" || d.Op == "?"):
			return true
		}
	}
	return false
}

// may tells whether a package can do for a dependency. opkg minds the version
// at some times and not at others: it depends on the order in which it came to
// look at the two.
func (f Format) may(p *feed.Package, d feed.Dependency) bool {
	return f.fits(p, d) || f != APK && bears(p, d.Name)
}

// broken tells whether a package certainly cannot be installed for want of
// something. Within a circle of dependencies, and where it would take too
// long, packages pass for sound.
func (s *solver) broken(n *node, depth int) bool {
	if n.state != unseen {
		return n.state == broken
	}
	if s.steps++; s.steps > maxSteps || depth > maxDepth {
		s.sure = false
		return false
	}
	n.state = seeing
	for _, need := range n.Depends {
		if next, ok := s.fails(need, depth); ok {
			n.state, n.why = broken, unmet{need, next}
			return true
		}
	}
	n.state = sound
	return false
}

// fails tells whether nothing can meet a dependency.
func (s *solver) fails(d feed.Dependency, depth int) (next *node, fails bool) {
	if s.granted(d) {
		return nil, false
	}
	for _, n := range s.candidates(d) {
		if !s.broken(n, depth+1) {
			return nil, false
		}
		if next == nil || n.Name == d.Name {
			next = n
		}
	}
	return next, true
}

// force marks a package that every solution holds.
func (s *solver) force(n, by *node) {
	if !n.forced {
		n.forced, n.by = true, by
		s.forced = append(s.forced, n)
	}
}

// choose picks packages as the package manager does.
func (s *solver) choose() {
	for _, name := range s.Want {
		s.meet(s.wanted(name), feed.Dependency{Name: name}, 0)
	}
}

// meet sees to it that one of the packages, with what it needs, is picked.
func (s *solver) meet(list []*node, d feed.Dependency, depth int) {
	granted := s.granted(d)
	if granted { // any version of it will do
		list = named(s.find(d.Name), d.Name)
	}
	if len(list) == 0 || depth > maxDepth {
		s.sure = s.sure && granted
		return
	}
	fit := s.fitting(list, d)
	if len(fit) > 0 {
		list = fit
	}
	// Package managers may well take one that is broken, and then give up.
	anyBroken := slices.ContainsFunc(s.candidates(d), func(n *node) bool { return n.state == broken })
	s.sure = s.sure && (granted || len(fit) > 0 && len(d.Or) == 0 && !anyBroken)
	n := s.preferred(list, d.Name)
	n.called = n.called || !virtual(n.Package, d.Name)
	if n.chosen {
		return
	}
	n.chosen = true
	s.picked = append(s.picked, n)
	for _, need := range n.Depends {
		s.meet(s.usable(need), need, depth+1)
	}
}

// virtual tells whether apk wants to be told to take the package for that name:
// it has neither a version under it nor a priority.
func virtual(p *feed.Package, name string) bool {
	versioned := func(o feed.Dependency) bool { return o.Name == name && o.Version != "" }
	return p.Name != name && p.Priority == 0 && !slices.ContainsFunc(p.Provides, versioned)
}

func (s *solver) fitting(list []*node, d feed.Dependency) []*node {
	return slices.DeleteFunc(slices.Clone(list), func(n *node) bool {
		return !s.Format.fits(n.Package, d) && !slices.ContainsFunc(d.Or, func(o feed.Dependency) bool { return s.Format.fits(n.Package, o) })
	})
}

// preferred is what a package manager takes of several: what is there anyway,
// the package of that very name, and else one of the providers, which is not
// sure.
func (s *solver) preferred(list []*node, name string) *node {
	for _, is := range []func(*node) bool{
		func(n *node) bool { return n.chosen },
		func(n *node) bool { return n.forced },
	} {
		if some := slices.DeleteFunc(slices.Clone(list), func(n *node) bool { return !is(n) }); len(some) > 0 {
			return s.best(some, list)
		}
	}
	list = s.newest(list)
	for _, is := range []func(*node) bool{
		func(n *node) bool { return n.Name == name },
		func(n *node) bool { return n.Free() == name },
	} {
		if some := slices.DeleteFunc(slices.Clone(list), func(n *node) bool { return !is(n) }); len(some) > 0 {
			return s.best(some, list)
		}
	}
	best := slices.MaxFunc(list, before)
	if slices.ContainsFunc(list, func(n *node) bool { return n.Name != best.Name && n.Priority == best.Priority }) {
		s.sure = false
	}
	return best
}

// best is that of some packages which goes before the others. A package with a
// higher priority that is not among them makes it unsure.
func (s *solver) best(some, all []*node) *node {
	best := slices.MaxFunc(s.newest(some), before)
	if !best.chosen && slices.ContainsFunc(all, func(n *node) bool { return n.Name != best.Name && n.Priority > best.Priority }) {
		s.sure = false
	}
	return best
}

// newest leaves the newest version of each package, which is taken whatever
// the priorities of older ones are.
func (s *solver) newest(list []*node) []*node {
	return slices.DeleteFunc(slices.Clone(list), func(n *node) bool {
		return slices.ContainsFunc(list, func(o *node) bool { return o.Name == n.Name && s.Format.Compare(o.Version, n.Version) > 0 })
	})
}

// before orders packages of different names by apk's priority, and by name.
func before(a, b *node) int {
	return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Name, b.Name))
}

func (s *solver) solution() Solution {
	var sum Solution
	for _, n := range s.picked {
		sum.Packages = append(sum.Packages, n.Package)
		sum.Installed += n.InstalledSize
		sum.Download += n.Size
	}
	uncalled := s.Format == APK && slices.ContainsFunc(s.picked, func(n *node) bool { return !n.called })
	sum.Sure = s.sure && !uncalled && !s.quarrel()
	return sum
}
