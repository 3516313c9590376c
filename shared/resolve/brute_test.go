package resolve

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/feed"
)

// world is a tiny universe.
type world struct {
	packages []*feed.Package
	granted  map[string]bool
}

func (w *world) Find(name string) []*feed.Package {
	var list []*feed.Package
	for _, p := range w.packages {
		if p.Name == name || slices.ContainsFunc(p.Provides, func(o feed.Dependency) bool { return o.Name == name }) {
			list = append(list, p)
		}
	}
	return list
}

func (w *world) Granted(name string) bool { return w.granted[name] }
func (w *world) Whole() bool              { return true }

func (w *world) String() string {
	var b strings.Builder
	for _, p := range w.packages {
		fmt.Fprintf(&b, "%s-%s depends %v conflicts %v provides %v\n", p.Name, p.Version, p.Depends, p.Conflicts, p.Provides)
	}
	return b.String()
}

// brute tries every set of packages: it knows nothing but what makes a set of
// packages good.
type brute struct {
	*world
	Format
}

func (b brute) set(bits int) []*feed.Package {
	var list []*feed.Package
	for i, p := range b.packages {
		if bits&(1<<i) != 0 {
			list = append(list, p)
		}
	}
	return list
}

// solvable tells whether any set will do.
func (b brute) solvable(want []string) bool {
	turns := b.turns(want)
	for bits := range 1 << len(b.packages) {
		if b.good(b.set(bits), want, turns) {
			return true
		}
	}
	return false
}

func (b brute) good(set []*feed.Package, want []string, turns []turn) bool {
	for _, name := range want {
		if !b.granted[name] && !b.stands(set, name) {
			return false
		}
	}
	return b.closed(set) && !b.clash(set, turns)
}

// stands tells whether a wanted name is there. opkg takes the package of that
// name if it can be installed at all.
func (b brute) stands(set []*feed.Package, name string) bool {
	if b.Format == Opkg && !b.granted[name] {
		return slices.ContainsFunc(b.own(name), func(p *feed.Package) bool { return slices.Contains(set, p) })
	}
	return b.met(set, feed.Dependency{Name: name})
}

// own returns what opkg takes for a wanted name.
func (b brute) own(name string) []*feed.Package {
	own := slices.DeleteFunc(b.Find(name), func(p *feed.Package) bool { return p.Name != name })
	for bits := range 1 << len(b.packages) {
		set := b.set(bits)
		if b.closed(set) && slices.ContainsFunc(own, func(p *feed.Package) bool { return slices.Contains(set, p) }) {
			return own
		}
	}
	return b.Find(name)
}

func (b brute) closed(set []*feed.Package) bool {
	for _, p := range set {
		for _, d := range p.Depends {
			if !b.met(set, d) && !slices.ContainsFunc(d.Or, func(o feed.Dependency) bool { return b.met(set, o) }) {
				return false
			}
		}
	}
	return true
}

func (b brute) met(set []*feed.Package, d feed.Dependency) bool {
	return b.granted[d.Name] || slices.ContainsFunc(set, func(p *feed.Package) bool { return b.bears(p, d) })
}

// bears: opkg may overlook versions; to apk, none is an old one.
func (b brute) bears(p *feed.Package, d feed.Dependency) bool {
	versions := []string{}
	if p.Name == d.Name {
		versions = append(versions, p.Version)
	}
	for _, o := range p.Provides {
		if o.Name == d.Name {
			versions = append(versions, o.Version)
		}
	}
	return slices.ContainsFunc(versions, func(v string) bool {
		switch {
		case b.Format == Opkg:
			return true
		case v == "":
			return d.Op == "" || d.Op[0] == '<'
		}
		return b.meets(v, d.Op, d.Version)
	})
}

// clash tells whether the package manager certainly minds two of the set.
func (b brute) clash(set []*feed.Package, turns []turn) bool {
	for i, p := range set {
		for _, q := range set[:i] {
			if b.Format == APK && (b.excludes(p, q) || b.excludes(q, p) || oneName(p, q)) {
				return true
			}
			if b.Format == Opkg && b.names(p, q) && b.names(q, p) {
				return true
			}
			if b.Format == Opkg && (b.names(p, q) && late(p, q, turns) || b.names(q, p) && late(q, p, turns)) {
				return true
			}
		}
	}
	return false
}

func (b brute) excludes(p, q *feed.Package) bool {
	return slices.ContainsFunc(p.Conflicts, func(c feed.Dependency) bool { return b.bears(q, c) })
}

func (b brute) names(p, q *feed.Package) bool {
	return slices.ContainsFunc(p.Conflicts, func(c feed.Dependency) bool { return c.Name == q.Name && b.meets(q.Version, c.Op, c.Version) })
}

// turn is the state after so many of the wanted names, which opkg installs one
// after the other.
type turn struct {
	there  map[*feed.Package]bool // what has to be there
	nearby map[*feed.Package]bool // what may be there
}

func (b brute) turns(want []string) []turn {
	var turns []turn
	conflicts := func(p *feed.Package) bool { return len(p.Conflicts) > 0 }
	if b.Format != Opkg || !slices.ContainsFunc(b.packages, conflicts) {
		return nil
	}
	for i := range want {
		t := turn{map[*feed.Package]bool{}, map[*feed.Package]bool{}}
		for _, p := range b.packages {
			t.there[p] = true
			for _, name := range want[:i+1] {
				for _, q := range b.own(name) {
					t.nearby[p] = t.nearby[p] || p == q || b.leads(q, p)
				}
			}
		}
		for bits := range 1 << len(b.packages) {
			set := b.set(bits)
			missing := func(name string) bool { return !b.granted[name] && !b.stands(set, name) }
			if slices.ContainsFunc(want[:i+1], missing) || !b.closed(set) {
				continue
			}
			for p := range t.there {
				t.there[p] = t.there[p] && slices.Contains(set, p)
			}
		}
		turns = append(turns, t)
	}
	return turns
}

// late tells whether it is a package's turn when the other is there for sure.
func late(p, other *feed.Package, turns []turn) bool {
	return slices.ContainsFunc(turns, func(t turn) bool { return t.there[other] && !t.nearby[p] })
}

// leads tells whether a package may need another one.
func (b brute) leads(from, to *feed.Package) bool {
	reached := map[*feed.Package]bool{from: true}
	for range b.packages {
		for p := range reached {
			for _, d := range p.Depends {
				for _, q := range b.packages {
					if b.bears(q, d) || slices.ContainsFunc(d.Or, func(o feed.Dependency) bool { return b.bears(q, o) }) {
						if q == to {
							return true
						}
						reached[q] = true
					}
				}
			}
		}
	}
	return false
}

// held are the names of a package with what it says of their versions.
func held(p *feed.Package) map[string]string {
	m := map[string]string{}
	for _, o := range p.Provides {
		m[o.Name] = max(m[o.Name], o.Version)
	}
	m[p.Name] = p.Version
	return m
}

// oneName: apk gives a name with a version to one package only.
func oneName(p, q *feed.Package) bool {
	theirs := held(q)
	for name, version := range held(p) {
		if other, ok := theirs[name]; ok && version+other != "" {
			return true
		}
	}
	return false
}

// draw makes a universe and a request of a source of numbers.
func draw(n func(limit int) int) (*world, []string) {
	names := strings.Split("a b c d e f v w x", " ") // v and w are only provided, x is not even that
	name := func(last int) string { return names[n(last)] }
	there := names[:1+n(6)]
	likely := func() string {
		if n(12) > 0 {
			return there[n(len(there))]
		}
		return name(9)
	}
	dependency := func() feed.Dependency {
		d := feed.Dependency{Name: likely()}
		if n(6) == 0 {
			d.Op, d.Version = []string{"=", "<", ">=", ">"}[n(4)], fmt.Sprint(1+n(3))
		}
		return d
	}
	w := &world{granted: map[string]bool{}}
	for i := range len(there) + n(3) {
		p := &feed.Package{Name: there[i%len(there)], Version: fmt.Sprint(1 + n(2)), Priority: n(2)}
		for range n(3) {
			d := dependency()
			if n(5) == 0 {
				d.Or = []feed.Dependency{dependency()}
			}
			p.Depends = append(p.Depends, d)
		}
		if n(4) == 0 {
			p.Conflicts = append(p.Conflicts, dependency())
		}
		if n(3) == 0 {
			o := feed.Dependency{Name: name(8)}
			if n(2) == 0 {
				o.Op, o.Version = "=", fmt.Sprint(1+n(2))
			}
			p.Provides = append(p.Provides, o)
		}
		if !slices.ContainsFunc(w.packages, func(o *feed.Package) bool { return o.Name == p.Name && o.Version == p.Version }) {
			w.packages = append(w.packages, p)
		}
	}
	if n(4) == 0 {
		w.granted[name(6)] = true
	}
	var want []string
	for range 1 + n(3) {
		want = append(want, likely())
	}
	return w, want
}

type verdict struct{ solvable, refused, sure bool }

// judge holds the resolver against brute force: what can be solved is not
// refused, and what is sure is a solution.
func judge(t *testing.T, format Format, n func(limit int) int) verdict {
	t.Helper()
	w, want := draw(n)
	b := brute{w, format}
	v := verdict{solvable: b.solvable(want)}
	got, problem := Resolve(w, Query{Format: format, Want: want})
	v.refused, v.sure = problem != nil, got.Sure
	if v.solvable && v.refused {
		t.Fatalf("format %d: %v is refused and can be had (%s):\n%s", format, want, problem.Sentence(Release{}), w)
	}
	// What is granted need not come with what it needs.
	if v.sure && len(w.granted) == 0 && !b.good(got.Packages, want, b.turns(want)) {
		t.Fatalf("format %d: for %v it is sure of %v:\n%s", format, want, namesOf(got.Packages), w)
	}
	return v
}

func namesOf(list []*feed.Package) (names []string) {
	for _, p := range list {
		names = append(names, p.Name+"-"+p.Version)
	}
	return names
}

// TestAgainstBruteForce also sees to it that what it tries is worth trying.
func TestAgainstBruteForce(t *testing.T) {
	for _, format := range []Format{Opkg, APK} {
		random := rand.New(rand.NewPCG(uint64(format), 7))
		var refused, missed, sure int
		const rounds = 6000
		for range rounds {
			v := judge(t, format, random.IntN)
			switch {
			case v.refused:
				refused++
			case !v.solvable:
				missed++
			case v.sure:
				sure++
			}
		}
		t.Logf("format %d: of %d, %d are refused, %d are sure; %d cannot be had and are left to the build", format, rounds, refused, sure, missed)
		if refused < rounds/10 || sure < rounds/10 || missed > refused/5 {
			t.Errorf("format %d: %d are refused, %d are sure, %d are left to the build", format, refused, sure, missed)
		}
	}
}

func FuzzResolve(f *testing.F) {
	f.Add([]byte("\x03\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c"), true)
	f.Add([]byte{5, 0, 0, 1, 2, 1, 3, 0, 2, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 2, 0, 0, 1}, false)
	f.Fuzz(func(t *testing.T, b []byte, apk bool) {
		next := 0
		n := func(limit int) int {
			if next++; next > len(b) {
				return 0
			}
			return int(b[next-1]) % limit
		}
		format := Opkg
		if apk {
			format = APK
		}
		judge(t, format, n)
	})
}
