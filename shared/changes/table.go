package changes

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// file is changes.json. Every row begins with since, optionally narrowed by
// scope, and ends with why.
type file struct {
	Branches map[string]int `json:"branches"`
	Packages []packageRow   `json:"packages"`
	Defaults []defaultRow   `json:"defaults"`
	Devices  []deviceRow    `json:"devices"`
}

// since is from where on a row holds: a branch, and where it is known the
// revision of the main branch. "SNAPSHOT" is what no release has yet.
type since struct {
	Since    string `json:"since"`
	Revision int    `json:"revision,omitempty"` // 0 = when the branch began; of SNAPSHOT, not known

	begin place // of Since
}

// scope narrows a row to some devices; empty lists admit all.
type scope struct {
	Targets  []string `json:"targets,omitempty"`
	Profiles []string `json:"profiles,omitempty"`
}

type why struct {
	Why  string `json:"why"`            // a sentence
	Link string `json:"link,omitempty"` // https
}

// packageRow: From gave way to all of To, or to nothing.
type packageRow struct {
	since
	scope
	From string   `json:"from"` // "*" in it stands for any text, where To is empty
	To   []string `json:"to,omitempty"`
	// Always is for an old name that a release still has, and that must not be
	// installed all the same.
	Always bool `json:"always,omitempty"`
	// Unless names what serves as well: with one of these in the list, From is
	// only left out.
	Unless []string `json:"unless,omitempty"`
	why
}

// defaultRow: Packages became defaults. Clients of older versions cannot name
// them, and that is no wish to be without.
type defaultRow struct {
	since
	scope
	Packages []string `json:"packages"`
	With     []string `json:"with,omitempty"`   // only beside one of these
	Unless   []string `json:"unless,omitempty"` // names that serve as well
	why
}

// deviceRow is one of three: the device is found elsewhere (ToTarget,
// ToProfile), is gone (Dropped), or needs a word (neither).
type deviceRow struct {
	since
	scope
	ToTarget  string `json:"to_target,omitempty"`
	ToProfile string `json:"to_profile,omitempty"`
	Dropped   bool   `json:"dropped,omitempty"`
	why
}

func (r *deviceRow) moves() bool { return r.ToTarget != "" || r.ToProfile != "" }

func (r *packageRow) pattern() bool { return strings.Contains(r.From, "*") }

// matches compares a name with From.
func (r *packageRow) matches(name string) bool {
	head, tail, pattern := strings.Cut(r.From, "*")
	if !pattern {
		return name == r.From
	}
	return len(name) > len(head)+len(tail) && strings.HasPrefix(name, head) && strings.HasSuffix(name, tail)
}

func (s *scope) everywhere() bool { return len(s.Targets)+len(s.Profiles) == 0 }

func (s *scope) covers(target, profile string) bool {
	return (len(s.Targets) == 0 || slices.Contains(s.Targets, target)) &&
		(len(s.Profiles) == 0 || slices.Contains(s.Profiles, profile))
}

const snapshot = "SNAPSHOT"

// place is a version among the branches.
type place struct {
	major, minor int
	main         bool
	revision     int // of the main branch; 0 = the newest
}

// newPlace reads a version ("24.10.5", "24.10-SNAPSHOT", "24.10", "SNAPSHOT")
// and its revision ("r29233-443ec4032a"). A version of another scheme has no
// place: no row holds for it.
func newPlace(version, revision string) (place, bool) {
	if strings.EqualFold(version, snapshot) {
		number, _, _ := strings.Cut(strings.TrimPrefix(revision, "r"), "-")
		number, _, _ = strings.Cut(number, "+")
		n, _ := strconv.Atoi(number)
		return place{main: true, revision: n}, true
	}
	numbers, _, _ := strings.Cut(version, "-")
	parts := strings.SplitN(numbers, ".", 3)
	if len(parts) < 2 {
		return place{}, false
	}
	major, errMajor := strconv.Atoi(parts[0])
	minor, errMinor := strconv.Atoi(parts[1])
	return place{major: major, minor: minor}, errMajor == nil && errMinor == nil
}

// before compares branches; the main branch is after all others.
func (p place) before(other place) bool {
	if p.main || other.main {
		return !p.main
	}
	return p.major < other.major || p.major == other.major && p.minor < other.minor
}

// reached tells whether what holds since then holds there.
func (t *Table) reached(at place, s since) bool {
	if at.main {
		return at.revision == 0 || at.revision >= t.revision(s)
	}
	return !at.before(s.begin)
}

// revision is that of the main branch from which on a row holds, 0 if that is
// not known.
func (t *Table) revision(s since) int {
	if s.Revision > 0 {
		return s.Revision
	}
	return t.branches[s.Since]
}

// compareAge orders rows, oldest first.
func (t *Table) compareAge(a, b since) int {
	switch {
	case a.begin.before(b.begin):
		return -1
	case b.begin.before(a.begin):
		return 1
	}
	return t.revision(a) - t.revision(b)
}

// Knows tells whether the table was brought up to the branch of a version. It
// never is of the main branch.
func (t *Table) Knows(version string) bool {
	at, ok := newPlace(version, "")
	for name := range t.branches {
		if branch, _ := newPlace(name, ""); ok && branch == at {
			return true
		}
	}
	return false
}

// BranchOff returns the revision at which a branch left the main branch; 0 if
// the table does not know.
func (t *Table) BranchOff(branch string) int { return t.branches[branch] }

// Parse reads a table and holds it against its rules. An unknown key is an
// error, as is a row without a reason, or names that lead in a circle.
func Parse(b []byte) (*Table, error) {
	t, err := read(b)
	if err != nil {
		return nil, fmt.Errorf("read the table of changes: %w", err)
	}
	if err := t.check(); err != nil {
		return nil, fmt.Errorf("table of changes: %w", err)
	}
	return t, nil
}

// read takes the rows as they are.
func read(b []byte) (*Table, error) {
	var f file
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows its end")
	}
	t := &Table{branches: f.Branches, packages: f.Packages, defaults: f.Defaults, devices: f.Devices, byName: map[string][]*packageRow{}}
	for i := range t.packages {
		t.packages[i].place()
	}
	for i := range t.defaults {
		t.defaults[i].place()
	}
	for i := range t.devices {
		t.devices[i].place()
	}
	slices.SortStableFunc(t.packages, func(a, b packageRow) int { return t.compareAge(a.since, b.since) })
	for i := range t.packages {
		t.index(&t.packages[i])
	}
	return t, nil
}

func (s *since) place() { s.begin, _ = newPlace(s.Since, "") }

// index lets a row be found by its name, newest first.
func (t *Table) index(row *packageRow) {
	if row.pattern() {
		t.patterns = append([]*packageRow{row}, t.patterns...)
		return
	}
	t.byName[row.From] = append([]*packageRow{row}, t.byName[row.From]...)
	if strings.HasPrefix(row.From, appPrefix) {
		t.apps = append([]*packageRow{row}, t.apps...)
	}
}

var (
	namePattern    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}$`)
	fromPattern    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.+-]*\*?[A-Za-z0-9_.+-]*$`)
	targetPattern  = regexp.MustCompile(`^[a-z0-9_-]+/[a-z0-9_-]+$`)
	profilePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}$`)
	whyPattern     = regexp.MustCompile(`^[A-Z0-9].{10,300}\.$`)
	linkPattern    = regexp.MustCompile(`^https://[a-z0-9.-]+/[A-Za-z0-9/._~#?=&%+-]*$`)
)

func (t *Table) check() error {
	var problems []error
	report := func(what string, err error) {
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", what, err))
		}
	}
	for i := range t.packages {
		r := &t.packages[i]
		report(r.From, errors.Join(t.checkRow(r.since, r.scope, r.why), r.check()))
	}
	for i := range t.defaults {
		r := &t.defaults[i]
		report(fmt.Sprint("defaults ", r.Packages), errors.Join(t.checkRow(r.since, r.scope, r.why), checkNames(namePattern, r.Packages), checkNames(namePattern, r.With), checkNames(namePattern, r.Unless), some(r.Packages)))
	}
	for i := range t.devices {
		r := &t.devices[i]
		report(fmt.Sprint("devices ", r.Targets, r.Profiles), errors.Join(t.checkRow(r.since, r.scope, r.why), r.check()))
	}
	return errors.Join(append(problems, t.checkCircles())...)
}

func (t *Table) checkRow(s since, where scope, w why) error {
	return errors.Join(t.checkSince(s), checkNames(targetPattern, where.Targets), checkNames(profilePattern, where.Profiles), w.check())
}

// checkSince holds a revision against the branches: it has to lie before the
// row's own left the main branch, and after the one before did.
func (t *Table) checkSince(s since) error {
	at, ok := newPlace(s.Since, "")
	end, known := t.branches[s.Since]
	switch {
	case !ok || !at.main && !known:
		return fmt.Errorf("since %q is none of the branches", s.Since)
	case s.Revision == 0:
		return nil
	}
	for name, off := range t.branches {
		if other, _ := newPlace(name, ""); other.before(at) && s.Revision <= off {
			return fmt.Errorf("revision %d is in %s already", s.Revision, name)
		}
	}
	if !at.main && s.Revision > end {
		return fmt.Errorf("revision %d is not in %s, which ends at %d", s.Revision, s.Since, end)
	}
	return nil
}

func (w why) check() error {
	if !whyPattern.MatchString(w.Why) {
		return fmt.Errorf("why is no sentence: %q", w.Why)
	}
	if w.Link != "" && !linkPattern.MatchString(w.Link) {
		return fmt.Errorf("%q is no https link", w.Link)
	}
	return nil
}

func (r *packageRow) check() error {
	switch {
	case !fromPattern.MatchString(r.From):
		return fmt.Errorf("%q is not the name of a package", r.From)
	case r.pattern() && len(r.To) > 0:
		return errors.New("only one name can be renamed, not a pattern")
	case len(r.To) == 0 && len(r.Unless) > 0:
		return errors.New("unless is for what has another name now")
	}
	return errors.Join(checkNames(namePattern, r.To), checkNames(namePattern, r.Unless))
}

func (r *deviceRow) check() error {
	switch {
	case len(r.Targets) == 0:
		return errors.New("a device needs its targets")
	case r.moves() && r.Dropped:
		return errors.New("what is dropped is not found elsewhere")
	case r.ToProfile != "" && len(r.Profiles) == 0:
		return errors.New("a profile for all of a target is too much")
	case r.ToTarget != "" && !targetPattern.MatchString(r.ToTarget), r.ToProfile != "" && !profilePattern.MatchString(r.ToProfile):
		return fmt.Errorf("%q %q is not the name of a target and a profile", r.ToTarget, r.ToProfile)
	}
	return nil
}

func checkNames(pattern *regexp.Regexp, names []string) error {
	for i, name := range names {
		if !pattern.MatchString(name) {
			return fmt.Errorf("%q is not a name", name)
		}
		if slices.Contains(names[:i], name) {
			return fmt.Errorf("%q is there twice", name)
		}
	}
	return nil
}

func some(names []string) error {
	if len(names) == 0 {
		return errors.New("no package is named")
	}
	return nil
}

// checkCircles follows every name, whatever the branch and the device, and so
// more strictly than requests do.
func (t *Table) checkCircles() error {
	packages, devices := map[string][]string{}, map[string][]string{}
	for i := range t.packages {
		packages[t.packages[i].From] = append(packages[t.packages[i].From], t.packages[i].To...)
	}
	for i := range t.devices {
		t.devices[i].lead(devices)
	}
	return errors.Join(circle(packages), circle(devices))
}

// lead notes where a row leads to, for each device that it names.
func (r *deviceRow) lead(next map[string][]string) {
	if !r.moves() {
		return
	}
	for _, target := range r.Targets {
		if len(r.Profiles) == 0 {
			next[target] = append(next[target], r.ToTarget)
		}
		for _, profile := range r.Profiles {
			from := target + " " + profile
			next[from] = append(next[from], cmp.Or(r.ToTarget, target)+" "+cmp.Or(r.ToProfile, profile))
		}
	}
}

// circle returns an error if names lead back to themselves.
func circle(next map[string][]string) error {
	done := map[string]bool{}
	var follow func(name string, path []string) error
	follow = func(name string, path []string) error {
		if slices.Contains(path, name) {
			return fmt.Errorf("these names lead in a circle: %s", strings.Join(append(path, name), ", "))
		}
		for _, to := range next[name] {
			if done[to] {
				continue
			}
			if err := follow(to, append(path, name)); err != nil {
				return err
			}
		}
		done[name] = true
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(next)) {
		if err := follow(name, nil); err != nil {
			return err
		}
	}
	return nil
}
