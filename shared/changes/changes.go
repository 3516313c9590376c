// Package changes knows what a newer release calls otherwise, has split or
// dropped, and must not go without: packages and devices. What it knows is in
// changes.json, a table for people to edit (docs/changes.md says how); its
// functions are pure.
package changes

import (
	_ "embed"
	"sync"
)

// Change is one thing that a request did not ask for in these words: From
// gave way to To. From is empty for what was added, To for what was left out;
// both are for what only has to be said.
type Change struct {
	From   string // "auc"; "-auc" where that was to be left out
	To     string // "owut"
	Reason string // a sentence
	Link   string // to read more, or ""
}

// PackageChange is a row in the form that clients read in overview.json, as
// owut does to know which names to ask for.
type PackageChange struct {
	Source    string `json:"source"`
	Target    string `json:"target,omitempty"`    // "" where source was dropped
	Revision  int    `json:"revision"`            // of the main branch, from which on
	Mandatory bool   `json:"mandatory,omitempty"` // source has to go, so set where it was dropped
}

// Table is a parsed changes.json. It is never changed, so it may be shared.
type Table struct {
	branches map[string]int // to the revision at which it left the main branch
	packages []packageRow
	defaults []defaultRow
	devices  []deviceRow

	byName   map[string][]*packageRow // packages by their old names, newest first
	patterns []*packageRow            // those with a "*"
	apps     []*packageRow            // those that language packs follow
}

//go:embed changes.json
var text []byte

var builtin = sync.OnceValue(func() *Table {
	t, err := read(text) // the tests hold it against the rules
	if err != nil {
		panic(err)
	}
	return t
})

// Builtin is the table that comes with this program.
func Builtin() *Table { return builtin() }

// ForBranch returns what changed for every device up to a branch ("24.10",
// "SNAPSHOT"), oldest first. What concerns only some devices has no place in
// the clients' form, nor has what came without an old name, or at a revision
// that is not known. It is never nil.
func (t *Table) ForBranch(branch string) []PackageChange {
	list := []PackageChange{}
	at, ok := newPlace(branch, "")
	for i := range t.packages {
		row := &t.packages[i]
		revision := t.revision(row.since)
		if !ok || !t.reached(at, row.since) || revision == 0 || !row.everywhere() || row.pattern() {
			continue
		}
		c := PackageChange{Source: row.From, Revision: revision, Mandatory: len(row.To) == 0}
		if len(row.To) > 0 {
			c.Target = row.To[0]
		}
		list = append(list, c)
	}
	return list
}
