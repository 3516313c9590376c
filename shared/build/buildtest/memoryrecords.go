package buildtest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// MemoryRecords keeps records in memory. It fails the test if a caller breaks
// a rule: replaces what it made up, takes a step that is none of the state
// machine's, changes what it was given, keeps a secret past its time.
type MemoryRecords struct {
	t     testing.TB
	flaws flaws

	mu     sync.Mutex
	rows   map[build.ID]*row
	boards map[string]build.Board
	writes int
}

// row is a record: its form on the disk, the value that all readers share, and
// every form it ever had.
type row struct {
	body   []byte
	shared build.Record
	past   map[string]bool
	cached build.Record // for StaleRead
}

var _ build.Records = (*MemoryRecords)(nil)

// NewRecords returns empty records with the flaws.
func NewRecords(t testing.TB, flaws ...Flaw) *MemoryRecords {
	return &MemoryRecords{t: t, flaws: flawed(flaws), rows: map[build.ID]*row{}, boards: map[string]build.Board{}}
}

// All returns every record that is there, expired or not.
func (m *MemoryRecords) All() []build.Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []build.Record
	for _, r := range m.rows {
		if r.shared.ID != "" {
			list = append(list, r.shared)
		}
	}
	return list
}

// Boards lists the names of every board that was ever changed.
func (m *MemoryRecords) Boards() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Keys(m.boards))
}

// Writes counts the calls that changed something, failed ones included.
func (m *MemoryRecords) Writes() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.writes
}

// misuse reports what a caller did wrong.
func (m *MemoryRecords) misuse(format string, args ...any) {
	m.t.Helper()
	m.t.Errorf("misuse of Records: "+format, args...)
}

func (m *MemoryRecords) store(id build.ID, rec build.Record) {
	body, err := json.Marshal(rec)
	if err != nil {
		m.misuse("a record that cannot be encoded: %v", err)
	}
	r := m.rows[id]
	if r == nil {
		r = &row{past: map[string]bool{}}
		m.rows[id] = r
	}
	r.body, r.shared = body, build.Record{}
	r.past[string(body)] = true
	if err := json.Unmarshal(body, &r.shared); err != nil {
		m.misuse("a record that cannot be decoded: %v", err)
	}
}

// live returns the row that readers see, or nil.
func (m *MemoryRecords) live(id build.ID, despite Flaw) *row {
	r := m.rows[id]
	if r == nil || r.shared.ID == "" || r.shared.Expired(build.Now()) && !m.flaws[despite] {
		return nil
	}
	if body, err := json.Marshal(r.shared); err != nil || !bytes.Equal(body, r.body) {
		m.misuse("somebody changed the record %s that Get returned", id.Short())
	}
	return r
}

// Get implements build.Records.
func (m *MemoryRecords) Get(ctx context.Context, id build.ID) (build.Record, error) {
	if err := ctx.Err(); err != nil {
		return build.Record{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.live(id, ExpiredRead)
	if r == nil {
		return build.Record{}, build.ErrNotFound
	}
	if m.flaws[StaleRead] {
		if r.cached.Rev != r.shared.Rev {
			r.cached = r.shared
		}
		return r.cached, nil
	}
	return m.read(r), nil
}

// read is what readers get: of another version's record the outline.
func (m *MemoryRecords) read(r *row) build.Record {
	rec := r.shared
	if rec.Schema == build.Schema || m.flaws[ForeignWhole] {
		return rec
	}
	return build.Record{ID: rec.ID, Rev: rec.Rev, Schema: rec.Schema, State: rec.State, DueAt: rec.DueAt, ExpiresAt: rec.ExpiresAt}
}

// Create implements build.Records.
func (m *MemoryRecords) Create(ctx context.Context, rec build.Record) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes++
	if rec.Rev > 1 || rec.State != build.Queued {
		m.misuse("Create of a record with revision %d that is %q", rec.Rev, rec.State)
	}
	m.sane(rec)
	taken := m.live(rec.ID, CreateBlocked) != nil
	m.yield(CreateRaces)
	if taken && !m.flaws[CreateOverwrites] {
		return build.ErrExists
	}
	rec.Rev = 1
	m.store(rec.ID, rec)
	return nil
}

// yield lets others in between the two halves of a write.
func (m *MemoryRecords) yield(flaw Flaw) {
	if m.flaws[flaw] {
		m.mu.Unlock()
		time.Sleep(20 * time.Millisecond)
		m.mu.Lock()
	}
}

// Replace implements build.Records.
func (m *MemoryRecords) Replace(ctx context.Context, old, new build.Record) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes++
	m.genuine(old)
	m.sane(new)
	if err := step(old, new); err != nil {
		m.misuse("Replace: %v", err)
	}
	r := m.live(old.ID, ReplaceRevives)
	if r == nil || r.shared.Rev != old.Rev && !m.flaws[NoCompareAndSwap] {
		return build.ErrConflict
	}
	rev := r.shared.Rev
	m.yield(ReplaceRaces)
	new.Rev = rev + 1
	if m.flaws[RevisionStays] {
		new.Rev = rev
	}
	m.store(old.ID, new)
	return nil
}

// genuine complains about a record that was never stored like that.
func (m *MemoryRecords) genuine(rec build.Record) {
	body, err := json.Marshal(rec)
	if r := m.rows[rec.ID]; err != nil || r == nil || !r.past[string(body)] {
		m.misuse("the old record %s, revision %d, %s never came from Get", rec.ID.Short(), rec.Rev, rec.State)
	}
}

// Delete implements build.Records.
func (m *MemoryRecords) Delete(ctx context.Context, old build.Record) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes++
	m.genuine(old)
	r := m.rows[old.ID]
	switch {
	case r == nil || r.shared.ID == "":
		if m.flaws[DeleteGoneFails] {
			return build.ErrNotFound
		}
		return nil
	case m.flaws[DeleteNotExpired] && r.shared.Expired(build.Now()):
		return nil
	case r.shared.Rev != old.Rev && !m.flaws[DeleteUnchecked]:
		return build.ErrConflict
	}
	r.shared, r.body = build.Record{}, nil // its past is kept, for genuine
	return nil
}

// Due implements build.Records.
func (m *MemoryRecords) Due(ctx context.Context, before time.Time, n int) ([]build.Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []build.Record
	for _, r := range m.rows {
		if m.due(r.shared, before) {
			list = append(list, m.read(r))
		}
	}
	slices.SortFunc(list, func(a, b build.Record) int {
		return cmp.Or(a.DueAt.Compare(b.DueAt), cmp.Compare(a.ID, b.ID))
	})
	if m.flaws[DueUnsorted] {
		slices.Reverse(list)
	}
	if len(list) > n && !m.flaws[DueUnlimited] {
		list = list[:n]
	}
	return list, nil
}

func (m *MemoryRecords) due(rec build.Record, before time.Time) bool {
	switch {
	case rec.ID == "" || rec.DueAt.IsZero():
		return false
	case m.flaws[DueSkipsExpired] && rec.Expired(build.Now()):
		return false
	case m.flaws[DueExclusive]:
		return rec.DueAt.Before(before)
	case m.flaws[DueEverything]:
		return true
	}
	return !rec.DueAt.After(before)
}

// Board implements build.Records. It never forgets an item.
func (m *MemoryRecords) Board(ctx context.Context, name string, change build.Change) (build.Board, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.flaws[BoardSharedByNames] {
		name = ""
	}
	board := build.Board{}
	maps.Copy(board, m.boards[name])
	holds := m.below(board, change)
	if len(change.Add) == 0 && len(change.Max) == 0 {
		return board, verdict(holds)
	}
	m.writes++
	if strings.Contains(name, "/") && change.ExpiresAt.IsZero() { // its time may be over, then this begins it anew
		m.misuse("the board %q, one of many, is changed without an expiry", name)
	}
	m.yield(BoardRaces)
	if m.flaws[BelowRaces] {
		m.yield(BelowRaces)
		board = build.Board{}
		maps.Copy(board, m.boards[name])
	}
	if !holds && !m.flaws[BelowChanges] {
		return nil, build.ErrConflict
	}
	if m.flaws[BoardMaxFirst] {
		raise(board, change.Max)
	}
	for counter, n := range change.Add {
		board[counter] += n
	}
	if !m.flaws[BoardMaxFirst] {
		raise(board, change.Max)
	}
	if m.flaws[BelowAfter] && !m.below(board, build.Change{Below: change.Below}) {
		return nil, build.ErrConflict
	}
	m.boards[name] = maps.Clone(board)
	if !holds {
		return nil, build.ErrConflict
	}
	if m.flaws[BoardPartial] {
		maps.DeleteFunc(board, func(counter string, _ int64) bool { _, changed := change.Add[counter]; return !changed })
	}
	return board, nil
}

// below tells whether the change's condition holds for the board.
func (m *MemoryRecords) below(board build.Board, change build.Change) bool {
	holds, one := true, len(change.Below) == 0
	for counter, limit := range change.Below {
		n, there := board[counter]
		ok := n < limit && (there || !m.flaws[BelowMissingFails]) || !there && m.flaws[BelowMissingPasses]
		holds, one = holds && ok, one || ok
	}
	return holds || m.flaws[BelowIgnored] || m.flaws[BelowOne] && one || m.flaws[BelowAfter] && len(change.Add)+len(change.Max) > 0
}

func verdict(holds bool) error {
	if holds {
		return nil
	}
	return build.ErrConflict
}

func raise(board, least build.Board) {
	for counter, n := range least {
		board[counter] = max(board[counter], n)
	}
}

// sane complains about a record that contradicts itself.
func (m *MemoryRecords) sane(rec build.Record) {
	if rec.Schema != build.Schema {
		return
	}
	_, err := build.ParseID(string(rec.ID))
	for _, rule := range []struct {
		broken bool
		what   string
	}{
		{err != nil, "an ID that is none"},
		{rec.Request.Defaults != "", "the private script in the echo of its request"},
		{rec.Ended() && rec.Plan.Defaults != "", "a private script although it ended"},
		{rec.Ended() == rec.ExpiresAt.IsZero(), "an expiry although it did not end, or none although it did"},
		{rec.State == build.Done && (rec.Result == nil || !ours(rec, rec.Result.Prefix)), "no result under its own prefix although it is done"},
		{rec.State != build.Done && rec.Result != nil, "a result although it is not done"},
		{rec.State == build.Failed && rec.Failure == nil, "no failure although it failed"},
		{rec.State == build.Building && (rec.Attempt == "" || rec.LeaseUntil.IsZero()), "no attempt or no lease although it is being built"},
		{rec.State != build.Building && (!rec.LeaseUntil.IsZero() || rec.Worker != "" || rec.Stage != ""), "a lease, a worker or a stage although it is not being built"},
		{rec.DueAt != rec.DueAt.Truncate(time.Millisecond), "a time that is no whole millisecond"},
	} {
		if rule.broken {
			m.misuse("the %s record %s has %s", rec.State, rec.ID.Short(), rule.what)
		}
	}
}

func ours(rec build.Record, prefix string) bool {
	id, _, private, ok := build.ParsePrefix(prefix)
	return ok && id == rec.ID && private == rec.Plan.Private
}

// steps are the changes of state that exist.
var steps = map[build.State][]build.State{
	build.Queued:   {build.Queued, build.Building, build.Failed},
	build.Building: {build.Building, build.Queued, build.Done, build.Failed},
	build.Failed:   {build.Queued},
}

// step tells what is wrong with the change from old to new.
func step(old, new build.Record) error {
	expired := !new.ExpiresAt.IsZero() && !new.ExpiresAt.After(new.EndedAt)
	switch {
	case old.ID != new.ID:
		return fmt.Errorf("%s becomes %s", old.ID.Short(), new.ID.Short())
	case old.Schema != build.Schema:
		return fmt.Errorf("a record of schema %d is somebody else's", old.Schema)
	case new.Schema != build.Schema:
		return nil // what other versions do has rules of its own
	case !slices.Contains(steps[old.State], new.State):
		return fmt.Errorf("%s becomes %s", old.State, new.State)
	case old.State == build.Failed && !old.Retriable():
		return fmt.Errorf("a permanent failure is queued again")
	case new.Attempt != old.Attempt && new.State == build.Building && new.Attempts != old.Attempts+1:
		return fmt.Errorf("a claim that is not counted: %d attempts become %d", old.Attempts, new.Attempts)
	case new.Attempt != old.Attempt && new.State != build.Building && old.State != build.Failed:
		return fmt.Errorf("a new attempt without a claim")
	case expired:
		return fmt.Errorf("it expires at or before its end")
	}
	return nil
}
