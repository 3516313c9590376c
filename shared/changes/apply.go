package changes

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Image is what a request asks for, and what is known of the release that it
// names.
type Image struct {
	Version  string // "25.12.1", "SNAPSHOT"
	Revision string // "r32295-0123456789"
	Target   string
	Profile  string
	Moved    []Change // what led to this target and profile
	// Packages are names; "-" stands before those to leave out, "+" before
	// others is of no meaning, "=version" behind one is a wish.
	Packages []string
	Versions map[string]string // names to versions that are relied on
	Exact    bool              // the packages are all that is wanted, defaults included
	Defaults []string          // what the release installs by default
	// Before are the defaults of older branches, one list for each that is
	// known.
	Before [][]string
	// Has tells whether the release has a package of that name.
	Has func(name string) bool
}

// Outcome is what the table makes of an Image. Applied once more, it changes
// nothing more.
type Outcome struct {
	Packages []string
	Versions map[string]string
	// Mandatory are packages that must not be missing merely because nobody
	// named them: who comes from an older release could not.
	Mandatory []string
	Changes   []Change // what was moved, then by From and To
	// Rules is the SHA-256, in hex, of what was moved and of the changes to the
	// lists, "" for none. What only stays because it is mandatory does not
	// count: a request that names it is the same.
	Rules string
}

// Apply renames what is called otherwise, leaves out what is gone, and finds
// what is mandatory. A rename is only applied if it helps: the release has the
// new name, and not the old one or only for those who know what they do. The
// request's own words go first: what it leaves out by its new name does not come
// in by the old one, nor does an old one that is left out take a new one along
// that is asked for. The order of the lists is of no consequence.
func (t *Table) Apply(img *Image) Outcome {
	out := Outcome{Packages: img.Packages, Versions: img.Versions, Changes: img.Moved}
	at, ok := newPlace(img.Version, img.Revision)
	if !ok {
		return out
	}
	a := newApplication(t, img, at)
	a.wanted()
	a.unwanted()
	a.out.Rules = digest(slices.Concat(img.Moved, a.out.Changes))
	a.mandatory()
	slices.SortFunc(a.out.Changes, compareChanges)
	a.out.Changes = append(slices.Clone(img.Moved), slices.Compact(a.out.Changes)...)
	return a.out
}

// application is one run of Apply.
type application struct {
	table *Table
	img   *Image
	at    place
	asked map[string]bool // what the request names itself
	spurn map[string]bool // what it leaves out itself
	added map[string]bool // what its names became
	cut   map[string]bool // what is left out in the end
	out   Outcome
}

func newApplication(t *Table, img *Image, at place) *application {
	a := &application{table: t, img: img, at: at, asked: map[string]bool{}, spurn: map[string]bool{}, added: map[string]bool{}, cut: map[string]bool{}}
	for _, entry := range img.Packages {
		if name, minus := split(entry); minus {
			a.spurn[name] = true
		} else {
			a.asked[name] = true
		}
	}
	for name := range img.Versions {
		a.asked[name] = true
	}
	return a
}

// split returns the name of an entry, and whether that is to be left out.
func split(entry string) (name string, minus bool) {
	name, _, _ = strings.Cut(strings.TrimLeft(entry, "+-"), "=")
	return name, strings.HasPrefix(entry, "-")
}

// wanted goes through what is to be installed.
func (a *application) wanted() {
	for _, entry := range a.img.Packages {
		name, minus := split(entry)
		if minus {
			continue
		}
		if !a.replace(name, "") {
			a.out.Packages = append(a.out.Packages, entry)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(a.img.Versions)) {
		if !a.replace(name, "") { // a version of the old one says nothing about the new one
			if a.out.Versions == nil {
				a.out.Versions = map[string]string{}
			}
			a.out.Versions[name] = a.img.Versions[name]
		}
	}
}

// unwanted goes through what is to be left out. What follows from an old name
// does not stand against what the request asks for by its new one.
func (a *application) unwanted() {
	for _, entry := range a.img.Packages {
		name, minus := split(entry)
		if minus && !a.replace(name, "-") {
			a.out.Packages = append(a.out.Packages, entry)
			a.cut[name] = true
		}
	}
}

// replace puts what a name has become into the list, and tells whether it has
// become anything else.
func (a *application) replace(name, sign string) bool {
	names, rows := a.resolve(name, true)
	if len(rows) == 0 {
		return false
	}
	to := names
	if len(to) == 0 {
		to = []string{""}
	}
	for _, n := range to {
		switch {
		case sign != "" && (n == "" || a.asked[n] || a.added[n]):
			continue
		case sign != "":
			a.cut[n] = true
		default:
			a.added[n] = true
		}
		c := Change{From: sign + name, Reason: reasons(rows), Link: rows[len(rows)-1].Link}
		if n != "" {
			c.To = sign + n
			a.out.Packages = append(a.out.Packages, c.To)
		}
		a.out.Changes = append(a.out.Changes, c)
	}
	return true
}

func reasons(rows []*packageRow) string {
	var list []string
	for _, row := range rows {
		list = append(list, row.Why)
	}
	return strings.Join(slices.Compact(list), " ")
}

// resolve follows a name through the table to what the release has. No rows
// mean that the name stands. What the request asks for and leaves out by itself
// only matters to its own names.
func (a *application) resolve(name string, own bool) (names []string, rows []*packageRow) {
	row, to := a.row(name)
	if row == nil || a.img.Has(name) && !row.Always {
		return []string{name}, nil
	}
	for _, instead := range row.Unless {
		if own && a.asked[instead] && a.img.Has(instead) {
			return []string{instead}, []*packageRow{row}
		}
	}
	rows = []*packageRow{row}
	for _, n := range to {
		more, further := a.resolve(n, own)
		rows = append(rows, further...)
		names = append(names, slices.DeleteFunc(more, func(s string) bool { return !a.img.Has(s) || own && a.spurn[s] })...)
	}
	if len(names) == 0 && len(to) > 0 && !isPack(name) {
		return []string{name}, nil // no help
	}
	return names, rows
}

const (
	appPrefix  = "luci-app-"
	packPrefix = "luci-i18n-"
)

var language = regexp.MustCompile(`^[a-z]{2,3}(-[a-z]{2,8})?$`)

func isPack(name string) bool { return strings.HasPrefix(name, packPrefix) }

// row is the newest that holds for a name, with what the name gave way to. The
// language packs of an app ("luci-i18n-opkg-de") follow it.
func (a *application) row(name string) (*packageRow, []string) {
	for _, row := range a.table.byName[name] {
		if a.holds(row.since, &row.scope) {
			return row, row.To
		}
	}
	if isPack(name) {
		for _, row := range a.table.apps {
			if to, ok := row.packs(name); ok && a.holds(row.since, &row.scope) {
				return row, to
			}
		}
	}
	for _, row := range a.table.patterns {
		if row.matches(name) && a.holds(row.since, &row.scope) {
			return row, nil
		}
	}
	return nil, nil
}

func (a *application) holds(s since, where *scope) bool {
	return where.covers(a.img.Target, a.img.Profile) && a.table.reached(a.at, s)
}

// packs returns the language packs in place of one of the row's app.
func (r *packageRow) packs(name string) (to []string, ok bool) {
	lang, found := strings.CutPrefix(name, packPrefix+strings.TrimPrefix(r.From, appPrefix)+"-")
	if !found || !language.MatchString(lang) {
		return nil, false
	}
	for _, app := range r.To {
		if short, ok := strings.CutPrefix(app, appPrefix); ok {
			to = append(to, packPrefix+short+"-"+lang)
		}
	}
	return to, true
}

// mandatory finds the defaults that older releases did not have. Of those that
// would be missing for no other reason, it tells.
func (a *application) mandatory() {
	reasons := map[string]why{}
	for i := range a.table.defaults {
		row := &a.table.defaults[i]
		if a.holds(row.since, &row.scope) {
			a.keep(row, reasons)
		}
	}
	for _, before := range a.img.Before {
		a.keepNew(before, reasons)
	}
	a.out.Mandatory = slices.Sorted(maps.Keys(reasons))
	if !a.img.Exact || len(a.asked) == 0 {
		return
	}
	for _, name := range a.img.Defaults {
		w, ok := reasons[name]
		if ok && !a.asked[name] && !a.added[name] && !a.cut[name] {
			a.out.Changes = append(a.out.Changes, Change{To: name, Reason: w.Why, Link: w.Link})
		}
	}
}

// keep notes the packages of a row, by what they are called in the release.
func (a *application) keep(row *defaultRow, reasons map[string]why) {
	wants := func(name string) bool { return a.asked[name] || a.added[name] }
	if slices.ContainsFunc(row.Unless, wants) || len(row.With) > 0 && !slices.ContainsFunc(row.With, wants) {
		return
	}
	for _, name := range row.Packages {
		names, _ := a.resolve(name, false)
		for _, n := range names {
			reasons[n] = row.why
		}
	}
}

// keepNew notes the defaults that an older branch did not have under any name.
func (a *application) keepNew(before []string, reasons map[string]why) {
	had := map[string]bool{}
	for _, name := range before {
		names, _ := a.resolve(name, false)
		for _, n := range names {
			had[n] = true
		}
	}
	for _, name := range a.img.Defaults {
		if _, known := reasons[name]; !known && !had[name] {
			reasons[name] = why{Why: fmt.Sprintf("Version %s installs %s by default, which older ones did not.", a.img.Version, name)}
		}
	}
}

func compareChanges(a, b Change) int {
	if c := strings.Compare(a.From, b.From); c != 0 {
		return c
	}
	return strings.Compare(a.To, b.To)
}

// digest is over the names alone: a better reason makes no other image.
func digest(changes []Change) string {
	if len(changes) == 0 {
		return ""
	}
	changes = slices.Clone(changes)
	slices.SortFunc(changes, compareChanges)
	h := sha256.New()
	for _, c := range slices.Compact(changes) {
		for _, name := range []string{c.From, c.To} {
			h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(name))))
			h.Write([]byte(name))
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}
