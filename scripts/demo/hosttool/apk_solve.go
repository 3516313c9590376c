package main

import (
	"fmt"
	"slices"
	"strings"
)

// solution is what the solver has chosen so far, in the order of installation.
type solution struct {
	*apk
	chosen   []candidate
	seen     map[string]bool     // names asked for
	wantedBy map[string][]string // of a package: "world[name]" or "name-version[name]"
	missing  []string
	fails    map[string][]string // of a missing name: by whom it is required
}

// solve chooses a package for each name of the world and for what they need. When that is impossible
// it says why, in apk's words: one text of some lines for each package that is in the way.
func (p *apk) solve(world []string) ([]candidate, []string) {
	s := &solution{apk: p, seen: map[string]bool{}, wantedBy: map[string][]string{}, fails: map[string][]string{}}
	world = slices.SortedStableFunc(slices.Values(world), func(a, b string) int {
		// A package that stands in for another is taken before the one it stands in for.
		return p.provides(b) - p.provides(a)
	})
	for _, name := range world {
		s.want(name, "world["+name+"]")
	}
	slices.SortFunc(s.missing, strings.Compare)
	var problems []string
	for _, name := range s.missing {
		problems = append(problems, fmt.Sprintf("  %s (no such package):\n    required by: %s\n", name, strings.Join(s.fails[name], "\n                 ")))
	}
	return s.chosen, append(problems, s.conflicts()...)
}

// provides counts what the package of that name stands in for.
func (p *apk) provides(name string) int {
	c, ok := p.pick(name)
	if !ok {
		return 0
	}
	return len(c.Provides)
}

// pick takes the package of that name, or else one that provides it; the earlier repository wins, and
// a version asked for must be met.
func (p *apk) pick(wish string) (candidate, bool) {
	name, version, pinned := strings.Cut(wish, "=")
	var stand candidate
	for _, c := range p.known[name] {
		if c.Name == name && (!pinned || c.Version == version) {
			return c, true
		}
		if c.Name != name && stand.Name == "" && !pinned {
			stand = c
		}
	}
	return stand, stand.Name != ""
}

// want adds what satisfies the wish, a name or name=version, after what that depends on.
func (s *solution) want(wish, by string) {
	if c, ok := s.satisfies(wish); ok {
		s.wantedBy[c] = append(s.wantedBy[c], by)
		return
	}
	c, ok := s.pick(wish)
	if !ok {
		name, _, _ := strings.Cut(wish, "=")
		if s.fails[name] == nil {
			s.missing = append(s.missing, name)
		}
		s.fails[name] = append(s.fails[name], by)
		return
	}
	s.wantedBy[c.Name] = append(s.wantedBy[c.Name], by)
	s.seen[c.Name] = true
	for _, name := range c.Provides {
		s.seen[name] = true
	}
	for _, d := range c.Depends {
		d = apkWish(d)
		s.want(d, fmt.Sprintf("%s-%s[%s]", c.Name, c.Version, d))
	}
	s.chosen = append(s.chosen, c)
}

// apkWish turns "name (=version)" into apk's "name=version".
func apkWish(d string) string {
	return strings.NewReplacer(" (", "", ")", "").Replace(d)
}

func (s *solution) satisfies(wish string) (string, bool) {
	name, _, _ := strings.Cut(wish, "=")
	if !s.seen[name] {
		return "", false
	}
	for _, c := range s.chosen {
		if c.Name == name || slices.Contains(c.Provides, name) {
			return c.Name, true
		}
	}
	return name, true // being chosen just now: a circle
}

// conflicts describes each chosen package that an earlier one rules out.
func (s *solution) conflicts() []string {
	byName := slices.SortedFunc(slices.Values(s.chosen), func(a, b candidate) int { return strings.Compare(a.Name, b.Name) })
	var problems []string
	for i, c := range byName {
		for _, other := range byName[:i] {
			if !slices.Contains(other.Conflicts, c.Name) {
				continue
			}
			problems = append(problems, fmt.Sprintf("  %s-%s:\n    breaks: %s-%s[!%s]\n    satisfies: %s\n",
				c.Name, c.Version, other.Name, other.Version, c.Name, strings.Join(s.wantedBy[c.Name], " ")))
		}
	}
	return problems
}
