package feed

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// ParsePackages reads opkg's list of packages, uncompressed: stanzas of
// "Field: value", apart by empty lines. Stanzas whose name or version breaks
// its pattern are left out, other fields that do are empty.
//
// The result's strings share the memory of one copy of b: clone what is kept
// for long.
func ParsePackages(b []byte) ([]Package, error) {
	if len(b) > maxText {
		return nil, fmt.Errorf("the list of packages has more than %d bytes", maxText)
	}
	var s stanzas
	for line := range strings.Lines(string(b)) {
		if len(line) > maxLine {
			return nil, fmt.Errorf("the list of packages has a line of more than %d bytes", maxLine)
		}
		if err := s.line(strings.TrimRight(line, "\r\n")); err != nil {
			return nil, err
		}
	}
	return s.list, s.end()
}

// stanzas collects packages line by line.
type stanzas struct {
	list         []Package
	dependencies int
	p            Package
	describing   bool     // within the lines of a description
	description  []string // these lines
}

func (s *stanzas) line(line string) error {
	if line == "" {
		return s.end()
	}
	if line[0] == ' ' || line[0] == '\t' {
		if s.describing && len(s.description) < maxDescriptionLines {
			s.description = append(s.description, strings.TrimSpace(line))
		}
		return nil
	}
	name, value, _ := strings.Cut(line, ":")
	value = strings.TrimSpace(value)
	if s.describing = name == "Description"; s.describing {
		s.description = append(s.description[:0], value)
	}
	s.p.set(name, value)
	return nil
}

func (s *stanzas) end() error {
	p := s.p
	p.Description = describe(strings.Join(s.description, "\n"))
	s.p, s.describing, s.description = Package{}, false, s.description[:0]
	if !isName(p.Name) || !isVersion(p.Version) {
		return nil
	}
	s.list = append(s.list, p)
	s.dependencies += cap(p.Depends) + cap(p.Conflicts) + cap(p.Provides) // of memory, used or not
	if len(s.list) > maxPackages || s.dependencies > maxDependencies {
		return fmt.Errorf("the list of packages has more than %d packages or %d dependencies", maxPackages, maxDependencies)
	}
	return nil
}

func (p *Package) set(field, value string) {
	switch field {
	case "Package":
		p.Name = value
	case "Version":
		p.Version = value
	case "ABIVersion":
		p.ABI = only(isABI, value)
	case "Architecture":
		p.Arch = only(isName, value)
	case "Depends", "Pre-Depends":
		p.Depends = appendDependencies(p.Depends, value)
	case "Conflicts":
		p.Conflicts = appendNames(p.Conflicts, value)
	case "Provides":
		p.Provides = appendNames(p.Provides, value)
	case "Filename":
		p.File = fileName(value)
	case "Size":
		p.Size = parseSize(value)
	case "Installed-Size":
		p.InstalledSize = parseSize(value)
	case "SHA256sum":
		p.SHA256 = only(isDigest, strings.ToLower(value))
	}
}

// appendNames reads a list in which alternatives mean nothing.
func appendNames(list []Dependency, value string) []Dependency {
	list = appendDependencies(list, value)
	return slices.DeleteFunc(list, func(d Dependency) bool { return d.Or != nil })
}

// appendDependencies reads "a, b (>= 1.0), c | d, e=2". An entry with a name
// that breaks its pattern is left out whole: with one alternative less it would
// ask for more than it does.
func appendDependencies(list []Dependency, value string) []Dependency {
	if value == "" {
		return list
	}
	list = slices.Grow(list, min(maxList, strings.Count(value, ",")+1))
	for entry := range strings.SplitSeq(value, ",") {
		if d, ok := parseDependency(entry); ok && len(list) < maxList {
			list = append(list, d)
		}
	}
	return list
}

func parseDependency(entry string) (d Dependency, ok bool) {
	first, rest, more := strings.Cut(entry, "|")
	if d, ok = parseTerm(first); !ok || !more {
		return d, ok
	}
	for term := range strings.SplitSeq(rest, "|") {
		other, ok := parseTerm(term)
		if !ok || len(d.Or) == maxList {
			return d, false
		}
		d.Or = append(d.Or, other)
	}
	return d, true
}

// parseTerm reads "name", "name (>= 1.0)" or "name=1.0".
func parseTerm(term string) (Dependency, bool) {
	term = strings.TrimSpace(term)
	i := strings.IndexAny(term, " \t(=<>~")
	if i < 0 {
		return Dependency{Name: term}, isName(term)
	}
	d := Dependency{Name: term[:i]}
	condition := strings.TrimSpace(term[i:])
	if strings.HasPrefix(condition, "*") { // opkg's mark of a dependency on all that provide the name
		return d, isName(d.Name)
	}
	condition = strings.TrimSuffix(strings.TrimPrefix(condition, "("), ")")
	d.Op, d.Version = parseCondition(strings.TrimSpace(condition))
	return d, isName(d.Name)
}

// operators of opkg, the longer ones before those with which they begin. It
// reads the bare "<" and ">" as dpkg did in the nineties.
var operators = [...]struct{ text, op string }{
	{"<<", "<"}, {"<=", "<="}, {">=", ">="}, {">>", ">"}, {"=", "="}, {"<", "<="}, {">", ">="}, {"~", "~"},
}

func parseCondition(s string) (op, version string) {
	for _, o := range operators {
		if version, ok := strings.CutPrefix(s, o.text); ok {
			if version = strings.TrimSpace(version); isVersion(version) {
				return o.op, version
			}
			break
		}
	}
	return "?", ""
}

// ParseIndexJSON reads an index.json: names and versions, sorted by name. Its
// version 2 holds names without the ABI version and has lost that; before, they
// are as they are installed.
func ParseIndexJSON(b []byte) (list []Package, lost bool, err error) {
	if len(b) > maxText {
		return nil, false, fmt.Errorf("index.json has more than %d bytes", maxText)
	}
	var index struct {
		Version  int               `json:"version"`
		Packages map[string]string `json:"packages"`
	}
	if err := json.Unmarshal(b, &index); err != nil {
		return nil, false, fmt.Errorf("read index.json: %w", err)
	}
	if index.Packages == nil {
		return nil, false, errors.New(`index.json has no "packages"`)
	}
	if len(index.Packages) > maxPackages {
		return nil, false, fmt.Errorf("index.json has more than %d packages", maxPackages)
	}
	for _, name := range slices.Sorted(maps.Keys(index.Packages)) {
		if version := index.Packages[name]; isName(name) && isVersion(version) {
			list = append(list, Package{Name: name, Version: version})
		}
	}
	return list, index.Version >= 2, nil
}
