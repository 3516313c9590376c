package changes

import (
	"cmp"
	"strings"
)

// maxMoves bounds how often one device can have moved.
const maxMoves = 8

// Find follows a target and a profile to where a version has them. The profile
// may be a board name ("vendor,model"). No changes mean that the table does not
// know better.
func (t *Table) Find(version, target, profile string) (newTarget, newProfile string, changes []Change) {
	at, ok := newPlace(version, "")
	for range maxMoves {
		row := t.move(at, target, bare(profile))
		if !ok || row == nil {
			break
		}
		from := device(target, profile)
		target, profile = cmp.Or(row.ToTarget, target), cmp.Or(row.ToProfile, profile)
		changes = append(changes, Change{From: from, To: device(target, profile), Reason: row.Why, Link: row.Link})
	}
	return target, profile, changes
}

func (t *Table) move(at place, target, profile string) *deviceRow {
	for i := range t.devices {
		if row := &t.devices[i]; row.moves() && row.covers(target, profile) && t.reached(at, row.since) {
			return row
		}
	}
	return nil
}

// Dropped tells whether a version has no images for a device any more, with
// the reason.
func (t *Table) Dropped(version, target, profile string) (Change, bool) {
	at, ok := newPlace(version, "")
	if !ok {
		return Change{}, false
	}
	row := t.newest(at, target, profile, func(r *deviceRow) bool { return r.Dropped })
	if row == nil {
		return Change{}, false
	}
	return Change{From: device(target, profile), Reason: row.Why, Link: row.Link}, true
}

// Notes is what has to be known before a version takes the place of an older
// system on a device: that settings cannot be kept, for one. What happened
// more than two branches ago is not told any more.
func (t *Table) Notes(version, revision, target, profile string) []Change {
	at, ok := newPlace(version, revision)
	if !ok {
		return nil
	}
	row := t.newest(at, target, profile, func(r *deviceRow) bool { return !r.Dropped && !r.moves() && t.recent(at, r.since) })
	if row == nil {
		return nil
	}
	return []Change{{Reason: row.Why, Link: row.Link}}
}

// recent tells whether at most two branches began after that of the row.
func (t *Table) recent(at place, s since) bool {
	later := 0
	for name := range t.branches {
		if branch, _ := newPlace(name, ""); s.begin.before(branch) && !at.before(branch) {
			later++
		}
	}
	return later <= 2
}

// newest is the newest row of a kind that holds for a device.
func (t *Table) newest(at place, target, profile string, kind func(*deviceRow) bool) *deviceRow {
	var found *deviceRow
	for i := range t.devices {
		row := &t.devices[i]
		if kind(row) && row.covers(target, bare(profile)) && t.reached(at, row.since) && (found == nil || t.compareAge(found.since, row.since) < 0) {
			found = row
		}
	}
	return found
}

// device names one in a Change: in the table's spelling, whatever the client's,
// for what was moved is a part of a request's hash.
func device(target, profile string) string { return strings.TrimSpace(target + " " + bare(profile)) }

// bare is how profiles are spelled in the table: clients send "vendor,model"
// as well.
func bare(profile string) string { return strings.ReplaceAll(profile, ",", "_") }
