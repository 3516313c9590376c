package resolve

import (
	"fmt"
	"slices"
	"strings"

	"github.com/attended-sysupgrade/sysup/shared/feed"
)

// Kind is what is wrong with a request.
type Kind int

// The kinds of problems.
const (
	Unknown  Kind = iota // a wanted name that nothing bears
	Missing              // something that a wanted package needs
	Conflict             // two packages that exclude each other
	Versions             // packages that are not there in the pinned versions
)

// Problem is why an image cannot be built.
type Problem struct {
	Kind Kind
	// Name is what is unknown or missing, or one of the two that conflict.
	Name string
	// Chain leads from a wanted package to the one that needs Name.
	Chain []string
	// Bound is the condition on the version that nothing meets, as ">= 2",
	// and Have the versions that there are, with a "" if the name is there
	// without one.
	Bound string
	Have  []string
	// With is the other one of a conflict, WithChain leads to it. File is one
	// that both bring, where that is what is wrong.
	With      string
	WithChain []string
	File      string
	Pins      []Mismatch
}

// Mismatch is a package in another version than the one that is relied on.
type Mismatch struct {
	Name, Want string
	Got        string // "" if it is not installed
}

// Release is what a sentence has to know of where the problem is.
type Release struct {
	Name     string   // "OpenWrt 25.12.5"; "" = "this version"
	Target   string   // "x86/64"
	Defaults []string // packages that are there unless they are removed
	Near     []string // names that look like the missing one
}

// Sentence says what is wrong and what to do.
func (p *Problem) Sentence(r Release) string {
	if r.Name == "" {
		r.Name = "this version"
	}
	switch p.Kind {
	case Unknown:
		text := fmt.Sprintf("%s has no package %q", r.Name, p.Name)
		if r.Target != "" {
			text += " for " + r.Target
		}
		return capital(text) + "." + DidYouMean(r.Near)
	case Missing:
		return p.chained() + p.lack(r) + "." + DidYouMean(r.Near) + " " + r.without(p.first())
	case Conflict:
		return p.conflict(r)
	}
	return fmt.Sprintf("The packages are not the asked versions: %s. Look for updates again and send the request anew.", p.mismatches())
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// chained is "a needs b, b needs c".
func (p *Problem) chained() string {
	var steps []string
	for i, name := range p.Chain {
		next := p.Name
		if i+1 < len(p.Chain) {
			next = p.Chain[i+1]
		}
		steps = append(steps, name+" needs "+next)
	}
	return strings.Join(steps, ", ")
}

func (p *Problem) first() string {
	if len(p.Chain) > 0 {
		return p.Chain[0]
	}
	return p.Name
}

func (p *Problem) lack(r Release) string {
	if len(p.Have) == 0 {
		return fmt.Sprintf(", which %s does not have", r.Name)
	}
	versions := slices.DeleteFunc(slices.Clone(p.Have), func(v string) bool { return v == "" })
	if len(versions) == 0 {
		return fmt.Sprintf(" (%s), which %s has without a version only", p.Bound, r.Name)
	}
	text := "as " + list(versions, 3, " and ")
	if len(versions) < len(p.Have) {
		text += " and without a version"
	}
	return fmt.Sprintf(" (%s), which %s has %s only", p.Bound, r.Name, text)
}

// without says how to do without a package.
func (r *Release) without(name string) string {
	if slices.Contains(r.Defaults, name) {
		return fmt.Sprintf("%s is a default package: send -%s to build without it.", name, name)
	}
	return fmt.Sprintf("Leave %s out.", name)
}

func (p *Problem) conflict(r Release) string {
	a, b := side{p.Name, p.Chain}, side{p.With, p.WithChain}
	if slices.Contains(r.Defaults, a.root()) && !slices.Contains(r.Defaults, b.root()) {
		a, b = b, a
	}
	text := a.described() + " conflicts with " + b.name
	switch {
	case !slices.Contains(r.Defaults, b.root()):
		return text + b.clause() + p.shared() + ". Leave one of them out."
	case len(b.chain) > 0:
		return fmt.Sprintf("%s, which the default package %s needs%s: send -%s, too.", text, b.root(), p.shared(), b.root())
	}
	return fmt.Sprintf("%s, which is a default package%s: send -%s, too.", text, p.shared(), b.name)
}

func (p *Problem) shared() string {
	if p.File == "" {
		return ""
	}
	return ", for both bring the file " + p.File
}

// side is one of two packages that conflict, with the way to it.
type side struct {
	name  string
	chain []string
}

func (s side) root() string {
	if len(s.chain) > 0 {
		return s.chain[0]
	}
	return s.name
}

func (s side) clause() string {
	if len(s.chain) == 0 {
		return ""
	}
	return ", which " + s.chain[len(s.chain)-1] + " needs"
}

func (s side) described() string {
	if len(s.chain) == 0 {
		return s.name
	}
	return s.name + s.clause() + ","
}

func (p *Problem) mismatches() string {
	var texts []string
	for _, m := range p.Pins {
		got := m.Got
		if got == "" {
			got = "not installed"
		}
		texts = append(texts, fmt.Sprintf("%s is %s instead of %s", m.Name, got, m.Want))
	}
	return list(texts, 5, ", ")
}

// list joins the first of many.
func list(texts []string, most int, last string) string {
	switch n := len(texts); {
	case n > most:
		return fmt.Sprintf("%s and %d more", strings.Join(texts[:most], ", "), n-most)
	case n > 1:
		return strings.Join(texts[:n-1], ", ") + last + texts[n-1]
	}
	return strings.Join(texts, "")
}

// DidYouMean is a question that names what may have been meant, after a blank;
// nothing for no names.
func DidYouMean(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return " Did you mean " + list(names, len(names), " or ") + "?"
}

// missing follows what a wanted name lacks to its end.
func (s *solver) missing(name string) *Problem {
	n := s.find(name)[0]
	if own := named(s.find(name), name); len(own) > 0 {
		n = own[0]
	}
	p := &Problem{Kind: Missing}
	for seen := map[*node]bool{}; n != nil && !seen[n]; n = n.why.next {
		seen[n] = true
		p.Chain = append(p.Chain, shown(n))
		p.Name, p.Bound, p.Have = n.why.need.Name, "", nil
		if n.why.next == nil {
			p.bounded(n.why.need, s.find(n.why.need.Name))
		}
	}
	return p
}

// shown is the name by which people know a package.
func shown(n *node) string { return n.Free() }

// versionsUnder are those that a package has under a name, "" for none.
func versionsUnder(name string, p *feed.Package) []string {
	var list []string
	if p.Name == name {
		list = append(list, p.Version)
	}
	for _, o := range p.Provides {
		if o.Name == name {
			list = append(list, o.Version)
		}
	}
	return list
}

// bounded notes a condition that nothing meets. That is so with apk only, which
// holds it against the version under the name.
func (p *Problem) bounded(d feed.Dependency, there []*node) {
	for _, n := range there {
		for _, v := range versionsUnder(d.Name, n.Package) {
			if !slices.Contains(p.Have, v) {
				p.Have = append(p.Have, v)
			}
		}
	}
	p.Bound = strings.TrimSpace(d.Op + " " + d.Version)
}
