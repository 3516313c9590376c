package resolve

import (
	"maps"
	"slices"
	"strings"

	"github.com/attended-sysupgrade/sysup/shared/feed"
)

// variants are packages of one source that bring the same files, which their
// index does not tell: opkg fails on those.
var variants = [][]string{{"dnsmasq", "dnsmasq-dhcpv6", "dnsmasq-full"}}

// bearers are the packages of a set by every name that they bear.
type bearers map[string][]*node

func bearersOf(set []*node) bearers {
	b := bearers{}
	for _, n := range set {
		b[n.Name] = append(b[n.Name], n)
		for _, o := range n.Provides {
			if o.Name != n.Name && !slices.Contains(b[o.Name], n) {
				b[o.Name] = append(b[o.Name], n)
			}
		}
	}
	return b
}

// conflict finds two forced packages that exclude each other.
func (s *solver) conflict() *Problem {
	a, b := s.pair(s.forced, s.certain)
	if a == nil {
		return nil
	}
	return &Problem{Kind: Conflict, Name: shown(a), Chain: a.chain(), With: shown(b), WithChain: b.chain()}
}

// quarrel tells whether any two of the picked packages may exclude each other.
func (s *solver) quarrel() bool {
	a, _ := s.pair(s.picked, func(a, b *node) bool { return true })
	return a != nil
}

// pair finds the first two packages of a set that exclude each other and for
// which the rest holds, too.
func (s *solver) pair(set []*node, and func(a, b *node) bool) (a, b *node) {
	there := bearersOf(set)
	for _, n := range set {
		for _, c := range n.Conflicts {
			for _, m := range there[c.Name] {
				if m != n && s.Format.may(m.Package, c) && and(n, m) {
					return n, m
				}
			}
		}
		if m := s.rival(n, there); m != nil && and(n, m) {
			return n, m
		}
	}
	return nil, nil
}

// rival is a package that takes the place of another without saying so: by a
// name that apk gives to one package only, or by the same files.
func (s *solver) rival(n *node, there bearers) *node {
	if s.Format == APK {
		return usurper(n, there)
	}
	for _, family := range variants {
		if s.Format == Opkg17 || !slices.Contains(family, n.Name) {
			continue
		}
		for _, name := range family {
			for _, m := range there[name] {
				if m.Name == name && name != n.Name {
					return m
				}
			}
		}
	}
	return nil
}

// usurper is another package with a name that n has a version for: apk gives
// such a name to one package only.
func usurper(n *node, there bearers) *node {
	for _, name := range append(versioned(n), n.Name) {
		for _, m := range there[name] {
			if m != n {
				return m
			}
		}
	}
	return nil
}

func versioned(n *node) []string {
	var names []string
	for _, o := range n.Provides {
		if o.Version != "" {
			names = append(names, o.Name)
		}
	}
	return names
}

// certain tells whether a conflict that a declares with b cannot be got
// around. apk always minds it. opkg only looks at what is there already
// when it comes to the one that declares it, and only at packages of that very
// name: so both have to declare it, or b has to be there by then, or they are
// variants of each other, which bring the same files; but not if the one comes
// along with the other. 17.01 was told not to look.
func (s *solver) certain(a, b *node) bool {
	switch {
	case s.Format == APK, s.rival(a, bearersOf([]*node{b})) != nil:
		return true
	case s.Format == Opkg17 || !declares(s.Format, a, b):
		return false
	}
	return declares(s.Format, b, a) || alike(a, b) && !s.leads(a, b, s.candidates) || s.precedes(b, a)
}

// precedes tells whether b is certainly there before it is a's turn: opkg
// installs one wanted name after the other, each with what it needs.
func (s *solver) precedes(b, a *node) bool {
	for _, name := range s.Want {
		list := s.wanted(name)
		for _, n := range list {
			if n == a || s.leads(n, a, s.candidates) {
				return false
			}
		}
		if len(list) == 1 && !s.Granted(name) && (list[0] == b || s.leads(list[0], b, s.only)) {
			return true
		}
	}
	return false
}

// leads tells whether a package comes to need another one, over any number of
// others, if each dependency is met by what meets returns. What is needed is
// installed after the conflicts were looked at.
func (s *solver) leads(from, to *node, meets func(feed.Dependency) []*node) bool {
	seen, todo := map[*node]bool{}, []*node{from}
	for len(todo) > 0 {
		n := todo[0]
		todo = todo[1:]
		for _, need := range n.Depends {
			for _, m := range meets(need) {
				if m == to {
					return true
				}
				if !seen[m] {
					seen[m] = true
					todo = append(todo, m)
				}
			}
		}
	}
	return false
}

// declares tells whether a's conflicts name b itself.
func declares(f Format, a, b *node) bool {
	return slices.ContainsFunc(a.Conflicts, func(c feed.Dependency) bool { return c.Name == b.Name && f.meets(b.Version, c.Op, c.Version) })
}

// alike tells whether two packages of different names look like variants of one
// source: their names begin with the same word, and both stand for a third name.
func alike(a, b *node) bool {
	word, _, _ := strings.Cut(a.Name, "-")
	other, _, _ := strings.Cut(b.Name, "-")
	return a.Name != b.Name && word == other && slices.ContainsFunc(a.Provides, func(o feed.Dependency) bool {
		return o.Name != a.Name && o.Name != b.Name && slices.ContainsFunc(b.Provides, func(p feed.Dependency) bool { return p.Name == o.Name })
	})
}

// chain leads from a wanted package to what needs this one.
func (n *node) chain() []string {
	var names []string
	for by := n.by; by != nil; by = by.by {
		names = append(names, shown(by))
	}
	slices.Reverse(names)
	return names
}

// mispinned finds the pinned packages that are only there in newer versions.
// Somebody who relies on a newer one than any that is known here knows of a
// newer index: the build reads it, too.
func (s *solver) mispinned() *Problem {
	p := &Problem{Kind: Versions}
	for _, name := range slices.Sorted(maps.Keys(s.Pins)) {
		want, got := s.Pins[name], s.versions(name)
		possible := slices.ContainsFunc(got, func(v string) bool { return s.Format.Compare(v, want) <= 0 })
		if len(got) > 0 && !possible {
			p.Pins = append(p.Pins, Mismatch{name, want, got[0]})
		}
	}
	if len(p.Pins) == 0 {
		return nil
	}
	return p
}

// versions are those in which a name is there, newest first; none if other
// packages can stand for it.
func (s *solver) versions(name string) []string {
	var list []string
	for _, n := range s.find(name) {
		if n.Name != name && n.Free() != name {
			return nil
		}
		list = append(list, n.Version)
	}
	slices.SortFunc(list, func(a, b string) int { return s.Format.Compare(b, a) })
	return list
}
