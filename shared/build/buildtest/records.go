package buildtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// Records runs the contract of build.Records over the driver that open opens,
// fresh and empty for each case.
func Records(t *testing.T, open func(testing.TB) build.Records) { recordsContract.run(t, open) }

var recordsContract = contract[build.Records]{
	{"a record that nobody created is not found", func(t testing.TB, r build.Records) {
		wantMissing(t, r, NewID())
	}},
	{"what was created is returned whole, with revision 1", func(t testing.TB, r build.Records) {
		rec := created(t, r, NewRecord())
		wantStored(t, r, rec, 1)
	}},
	{"every field comes back", func(t testing.TB, r build.Records) {
		rec := created(t, r, fullRecord())
		wantStored(t, r, rec, 1)
		rec = replaced(t, r, rec, rec.Claim("worker-1", build.NewAttempt(), build.Now()))
		rec = replaced(t, r, rec, rec.Finish(fullResult(rec), build.DefaultLifetimes, build.Now()))
		wantStored(t, r, rec, 3)
	}},
	{"of a record that another version of sysup wrote there is the outline", func(t testing.TB, r build.Records) {
		for _, rec := range []build.Record{foreign(t, r, build.Queued, time.Time{}), foreign(t, r, build.Done, build.Now().Add(time.Hour)), foreign(t, r, "paused", build.Now().Add(time.Hour))} {
			wantStored(t, r, rec, rec.Rev)
			eventually(t, "the record is due", func() bool {
				list, err := r.Due(t.Context(), rec.DueAt, 10)
				check(t, err, "Due")
				return slices.ContainsFunc(list, func(due build.Record) bool { return text(t, due) == text(t, rec) })
			})
		}
	}},
	{"a record that another version of sysup wrote expires", func(t testing.TB, r build.Records) {
		rec := foreign(t, r, build.Failed, build.Now().Add(-time.Minute))
		wantMissing(t, r, rec.ID)
		fresh := created(t, r, freshOf(rec))
		wantStored(t, r, fresh, 1)
	}},
	{"creating again fails and changes nothing", func(t testing.TB, r build.Records) {
		rec := created(t, r, NewRecord())
		again := rec
		again.Sequence = 99
		wantError(t, r.Create(t.Context(), again), build.ErrExists, "the second Create")
		wantStored(t, r, rec, 1)
	}},
	{"of many that create at once one wins", func(t testing.TB, r build.Records) {
		for range 5 {
			oneCreates(t, r, NewRecord())
		}
	}},
	{"of many that create over an expired record one wins", func(t testing.TB, r build.Records) {
		for range 5 {
			oneCreates(t, r, expired(t, r))
		}
	}},
	{"an expired record is not found", func(t testing.TB, r build.Records) {
		wantMissing(t, r, expired(t, r).ID)
	}},
	{"an expired record is created over, from revision 1", func(t testing.TB, r build.Records) {
		old := expired(t, r)
		fresh := NewRecord()
		fresh.ID, fresh.Sequence = old.ID, 7
		created(t, r, fresh)
		wantStored(t, r, fresh, 1)
	}},
	{"an expired record is not replaced", func(t testing.TB, r build.Records) {
		old := expired(t, r)
		again := old.Again(old.Plan, 2, build.Now())
		wantError(t, r.Replace(t.Context(), old, again), build.ErrConflict, "Replace of an expired record")
		wantMissing(t, r, old.ID)
	}},
	{"a record that expires later is there", func(t testing.TB, r build.Records) {
		rec := failed(t, r, time.Hour, build.Now())
		wantStored(t, r, rec, rec.Rev)
		wantError(t, r.Create(t.Context(), freshOf(rec)), build.ErrExists, "Create over a living record")
	}},
	{"a record that was read expires on time", func(t testing.TB, r build.Records) {
		rec := failed(t, r, 50*time.Millisecond, build.Now())
		if _, err := r.Get(t.Context(), rec.ID); err != nil && build.Now().Before(rec.ExpiresAt) {
			t.Errorf("before its time: %v", err)
		}
		time.Sleep(time.Until(rec.ExpiresAt) + time.Millisecond)
		wantMissing(t, r, rec.ID)
	}},
	{"replacing raises the revision by one", func(t testing.TB, r build.Records) {
		rec := created(t, r, NewRecord())
		for rev := int64(2); rev < 6; rev++ {
			rec = replaced(t, r, rec, rec.Push(build.Now()))
			wantStored(t, r, rec, rev)
		}
	}},
	{"replacing an outdated record fails and changes nothing", func(t testing.TB, r build.Records) {
		old := created(t, r, NewRecord())
		rec := replaced(t, r, old, old.Claim("a", build.NewAttempt(), build.Now()))
		err := r.Replace(t.Context(), old, old.Claim("b", build.NewAttempt(), build.Now()))
		wantError(t, err, build.ErrConflict, "Replace with an outdated record")
		wantStored(t, r, rec, 2)
	}},
	{"replacing a record that is gone fails", func(t testing.TB, r build.Records) {
		rec := created(t, r, NewRecord())
		check(t, r.Delete(t.Context(), rec), "Delete")
		wantError(t, r.Replace(t.Context(), rec, rec.Push(build.Now())), build.ErrConflict, "Replace of a deleted record")
		wantMissing(t, r, rec.ID)
	}},
	{"of many that replace at once one wins", func(t testing.TB, r build.Records) {
		for range 5 {
			oneReplaces(t, r)
		}
	}},
	{"no change is lost among many writers", noLostChange},
	{"a read sees every write that returned before it", readYourWrites},
	{"deleting removes the record", func(t testing.TB, r build.Records) {
		rec := created(t, r, NewRecord())
		check(t, r.Delete(t.Context(), rec), "Delete")
		wantMissing(t, r, rec.ID)
	}},
	{"deleting an outdated record fails and changes nothing", func(t testing.TB, r build.Records) {
		old := created(t, r, NewRecord())
		rec := replaced(t, r, old, old.Push(build.Now()))
		wantError(t, r.Delete(t.Context(), old), build.ErrConflict, "Delete with an outdated record")
		wantStored(t, r, rec, 2)
	}},
	{"deleting twice is no error", func(t testing.TB, r build.Records) {
		rec := created(t, r, NewRecord())
		check(t, r.Delete(t.Context(), rec), "Delete")
		check(t, r.Delete(t.Context(), rec), "the second Delete")
	}},
	{"an expired record can be deleted", func(t testing.TB, r build.Records) {
		rec := expired(t, r)
		check(t, r.Delete(t.Context(), rec), "Delete of an expired record")
		eventually(t, "the expired record is gone", func() bool { return !slices.Contains(due(t, r, build.Now(), 10), rec.ID) })
	}},
	{"a record made anew is not mistaken for its predecessor", func(t testing.TB, r build.Records) {
		first := created(t, r, NewRecord())
		wantStored(t, r, first, 1)
		check(t, r.Delete(t.Context(), first), "Delete")
		second := freshOf(first)
		second.Sequence = first.Sequence + 1
		created(t, r, second)
		wantStored(t, r, second, 1)
	}},
	{"due lists what is due, longest first, expired or not", dueInOrder},
	{"due returns whole records", func(t testing.TB, r build.Records) {
		rec := created(t, r, fullRecord())
		rec.Rev = 1
		eventually(t, "the record is due", func() bool {
			list, err := r.Due(t.Context(), rec.DueAt, 10)
			check(t, err, "Due")
			return len(list) == 1 && text(t, list[0]) == text(t, rec)
		})
	}},
	{"due follows a record that is put off", func(t testing.TB, r build.Records) {
		now := build.Now()
		rec := created(t, r, dueAt(now.Add(-time.Minute)))
		eventually(t, "the record is due", func() bool { return slices.Contains(due(t, r, now, 10), rec.ID) })
		replaced(t, r, rec, rec.Push(now))
		eventually(t, "the record is due no more", func() bool { return !slices.Contains(due(t, r, now, 10), rec.ID) })
	}},
	{"a board that nobody changed is empty", func(t testing.TB, r build.Records) {
		wantBoard(t, r, "client/abc/12", build.Change{}, build.Board{})
	}},
	{"a board adds, then takes the maximum, and is returned whole", func(t testing.TB, r build.Records) {
		wantBoard(t, r, "b", build.Change{Add: build.Board{"x": 2, "y": 1}}, build.Board{"x": 2, "y": 1})
		wantBoard(t, r, "b", build.Change{Add: build.Board{"x": -5}}, build.Board{"x": -3, "y": 1})
		wantBoard(t, r, "b", build.Change{Max: build.Board{"x": -4, "z": 9}}, build.Board{"x": -3, "y": 1, "z": 9})
		wantBoard(t, r, "b", build.Change{Add: build.Board{"z": 1}, Max: build.Board{"z": 10, "y": 0}}, build.Board{"x": -3, "y": 1, "z": 10})
		wantBoard(t, r, "b", build.Change{}, build.Board{"x": -3, "y": 1, "z": 10})
	}},
	{"boards of different names have nothing in common", func(t testing.TB, r build.Records) {
		wantBoard(t, r, "", build.Change{Add: build.Board{"x": 1}}, build.Board{"x": 1})
		wantBoard(t, r, "client/abc/12", build.Change{Add: build.Board{"x": 1}, ExpiresAt: build.Now().Add(time.Hour)}, build.Board{"x": 1})
		wantBoard(t, r, "", build.Change{}, build.Board{"x": 1})
	}},
	{"a board outlives every change until its expiry", func(t testing.TB, r build.Records) {
		wantBoard(t, r, "b", build.Change{Add: build.Board{"x": 1}, ExpiresAt: build.Now().Add(time.Hour)}, build.Board{"x": 1})
		wantBoard(t, r, "b", build.Change{Add: build.Board{"x": 1}}, build.Board{"x": 2})
		wantBoard(t, r, "b", build.Change{}, build.Board{"x": 2})
	}},
	{"no count is lost or seen twice among many who add", everyCountOnce},
	{"a board that is not below is refused and stays as it is", func(t testing.TB, r build.Records) {
		wantBoard(t, r, "b", build.Change{Add: build.Board{"x": 5, "y": 1}}, build.Board{"x": 5, "y": 1})
		for _, change := range []build.Change{
			{Add: build.Board{"x": 1}, Below: build.Board{"x": 5}},
			{Add: build.Board{"y": 1}, Max: build.Board{"z": 9}, Below: build.Board{"x": 4}},
			{Max: build.Board{"x": 9}, Below: build.Board{"x": -1}},
			{Below: build.Board{"x": 5}},
		} {
			wantRefused(t, r, "b", change)
		}
		wantBoard(t, r, "b", build.Change{}, build.Board{"x": 5, "y": 1})
		wantBoard(t, r, "b", build.Change{Add: build.Board{"y": 1}, Below: build.Board{"x": 6}}, build.Board{"x": 5, "y": 2})
		wantBoard(t, r, "b", build.Change{Below: build.Board{"x": 6}}, build.Board{"x": 5, "y": 2})
	}},
	{"a board is compared before it changes", func(t testing.TB, r build.Records) {
		wantBoard(t, r, "b", build.Change{Add: build.Board{"x": 5}, Below: build.Board{"x": 1}}, build.Board{"x": 5})
		wantBoard(t, r, "b", build.Change{Max: build.Board{"x": 9}, Below: build.Board{"x": 6}}, build.Board{"x": 9})
		wantRefused(t, r, "b", build.Change{Add: build.Board{"x": -9}, Below: build.Board{"x": 9}})
		wantBoard(t, r, "b", build.Change{}, build.Board{"x": 9})
	}},
	{"a counter that is not there is below one and not below zero", func(t testing.TB, r build.Records) {
		wantRefused(t, r, "b", build.Change{Add: build.Board{"x": 1}, Below: build.Board{"x": 0}})
		wantBoard(t, r, "b", build.Change{}, build.Board{})
		wantBoard(t, r, "b", build.Change{Add: build.Board{"y": 1}, Below: build.Board{"x": 1}}, build.Board{"y": 1})
		wantRefused(t, r, "b", build.Change{Add: build.Board{"y": 1}, Below: build.Board{"x": 0}})
		wantBoard(t, r, "b", build.Change{Add: build.Board{"x": 1}, Below: build.Board{"x": 1, "z": 1}}, build.Board{"x": 1, "y": 1})
	}},
	{"every counter has to be below", func(t testing.TB, r build.Records) {
		wantBoard(t, r, "b", build.Change{Add: build.Board{"x": 1, "y": 1}}, build.Board{"x": 1, "y": 1})
		wantRefused(t, r, "b", build.Change{Add: build.Board{"x": 1}, Below: build.Board{"x": 2, "y": 1}})
		wantRefused(t, r, "b", build.Change{Add: build.Board{"x": 1}, Below: build.Board{"x": 1, "y": 2}})
		wantBoard(t, r, "b", build.Change{Add: build.Board{"x": 1}, Below: build.Board{"x": 2, "y": 2}}, build.Board{"x": 2, "y": 1})
	}},
	{"of many with the same condition one wins", func(t testing.TB, r build.Records) {
		for _, change := range []build.Change{
			{Add: build.Board{"n": 1}, Below: build.Board{"n": 1}},
			{Max: build.Board{"until": 1_700_000_000_000}, Below: build.Board{"until": 1_600_000_000_000}},
		} {
			oneBelow(t, r, change)
		}
		wantBoard(t, r, "", build.Change{}, build.Board{"n": 1, "until": 1_700_000_000_000})
	}},
	{"of many that wake a fleet at once one starts a builder", oneWakes},
	{"a board is the caller's to change", func(t testing.TB, r build.Records) {
		board, err := r.Board(t.Context(), "b", build.Change{Add: build.Board{"x": 1}})
		check(t, err, "Board")
		board["x"] = 100
		wantBoard(t, r, "b", build.Change{}, build.Board{"x": 1})
	}},
}

// oneWakes has many find a fleet at rest at once.
func oneWakes(t testing.TB, r build.Records) {
	var starts atomic.Int64
	fleet := build.Fleet{Records: r, Max: 5, Start: func(_ context.Context, n int) error {
		starts.Add(int64(n))
		return nil
	}}
	board, err := r.Board(t.Context(), "", build.Change{Add: build.Board{build.BoardDrawn: 1}})
	check(t, err, "Board")
	atOnce(32, func(int) {
		if err := fleet.Wake(t.Context(), board); err != nil {
			t.Errorf("Wake: %v", err)
		}
	})
	if starts.Load() != 1 {
		t.Errorf("of many that wake a fleet, %d start a builder", starts.Load())
	}
}

func created(t testing.TB, r build.Records, rec build.Record) build.Record {
	t.Helper()
	check(t, r.Create(t.Context(), rec), "Create")
	rec.Rev = 1
	return rec
}

func replaced(t testing.TB, r build.Records, old, new build.Record) build.Record {
	t.Helper()
	check(t, r.Replace(t.Context(), old, new), "Replace")
	new.Rev = old.Rev + 1
	return new
}

func get(t testing.TB, r build.Records, id build.ID) build.Record {
	t.Helper()
	rec, err := r.Get(t.Context(), id)
	check(t, err, "Get")
	return rec
}

// failed stores a record of a build that failed at the time and lives on for
// the duration.
func failed(t testing.TB, r build.Records, life time.Duration, at time.Time) build.Record {
	t.Helper()
	rec := created(t, r, NewRecord())
	failure := build.Fail(build.KindUpstream, "The upstream did not answer.")
	return replaced(t, r, rec, rec.FailWith(failure, build.Lifetimes{Failed: life}, at))
}

// foreign stores a record as a newer version of sysup may, and returns its
// outline.
func foreign(t testing.TB, r build.Records, state build.State, expires time.Time) build.Record {
	t.Helper()
	old := created(t, r, NewRecord())
	rec := old.Claim("worker-2", build.NewAttempt(), build.Now())
	rec.Schema, rec.State, rec.ExpiresAt, rec.DueAt = build.Schema+1, state, expires, build.Now()
	replaced(t, r, old, rec)
	return build.Record{ID: rec.ID, Rev: 2, Schema: rec.Schema, State: state, DueAt: rec.DueAt, ExpiresAt: expires}
}

func expired(t testing.TB, r build.Records) build.Record {
	t.Helper()
	return failed(t, r, time.Minute, build.Now().Add(-time.Hour))
}

// freshOf is a new record under the ID of rec.
func freshOf(rec build.Record) build.Record {
	fresh := NewRecord()
	fresh.ID = rec.ID
	return fresh
}

func dueAt(at time.Time) build.Record {
	rec := NewRecord()
	rec.DueAt = at
	return rec
}

func wantMissing(t testing.TB, r build.Records, id build.ID) {
	t.Helper()
	_, err := r.Get(t.Context(), id)
	wantError(t, err, build.ErrNotFound, "Get")
}

func wantError(t testing.TB, err, want error, what string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s returns %v, not %v", what, err, want)
	}
}

func wantStored(t testing.TB, r build.Records, want build.Record, rev int64) {
	t.Helper()
	want.Rev = rev
	if got := get(t, r, want.ID); text(t, got) != text(t, want) {
		t.Errorf("stored is\n%s, not\n%s", text(t, got), text(t, want))
	}
}

func wantBoard(t testing.TB, r build.Records, name string, change build.Change, want build.Board) {
	t.Helper()
	got, err := r.Board(t.Context(), name, change)
	check(t, err, "Board")
	if text(t, got) != text(t, want) {
		t.Errorf("the board %q after %v is %v, not %v", name, change, got, want)
	}
}

func wantRefused(t testing.TB, r build.Records, name string, change build.Change) {
	t.Helper()
	_, err := r.Board(t.Context(), name, change)
	wantError(t, err, build.ErrConflict, fmt.Sprintf("the board %q after %v", name, change))
}

// oneBelow makes a change that forbids itself, many times at once.
func oneBelow(t testing.TB, r build.Records, change build.Change) {
	t.Helper()
	var winners atomic.Int64
	atOnce(32, func(int) {
		switch _, err := r.Board(t.Context(), "", change); {
		case err == nil:
			winners.Add(1)
		case !errors.Is(err, build.ErrConflict):
			t.Errorf("Board: %v", err)
		}
	})
	if winners.Load() != 1 {
		t.Errorf("of many with the condition %v, %d win", change.Below, winners.Load())
	}
}

// due returns the IDs that Due lists.
func due(t testing.TB, r build.Records, before time.Time, n int) []build.ID {
	t.Helper()
	list, err := r.Due(t.Context(), before, n)
	check(t, err, "Due")
	if len(list) > n {
		t.Fatalf("Due lists %d records where %d were asked for", len(list), n)
	}
	ids := []build.ID{}
	for _, rec := range list {
		ids = append(ids, rec.ID)
	}
	return ids
}

func oneCreates(t testing.TB, r build.Records, proto build.Record) {
	t.Helper()
	var winner atomic.Int64
	atOnce(32, func(i int) {
		rec := freshOf(proto)
		rec.Sequence = int64(100 + i)
		switch err := r.Create(t.Context(), rec); {
		case err == nil && !winner.CompareAndSwap(0, rec.Sequence):
			t.Errorf("two that create at once succeed")
		case err != nil && !errors.Is(err, build.ErrExists):
			t.Errorf("Create: %v", err)
		}
	})
	if got := get(t, r, proto.ID); got.Sequence != winner.Load() || got.Rev != 1 {
		t.Errorf("stored is sequence %d with revision %d; the winner had %d", got.Sequence, got.Rev, winner.Load())
	}
}

func oneReplaces(t testing.TB, r build.Records) {
	t.Helper()
	old := created(t, r, NewRecord())
	var winner atomic.Int64
	atOnce(32, func(i int) {
		rec := old.Claim(fmt.Sprintf("worker-%d", i+1), build.NewAttempt(), build.Now())
		switch err := r.Replace(t.Context(), old, rec); {
		case err == nil && !winner.CompareAndSwap(0, int64(i+1)):
			t.Errorf("two that replace one revision succeed")
		case err != nil && !errors.Is(err, build.ErrConflict):
			t.Errorf("Replace: %v", err)
		}
	})
	want := fmt.Sprintf("worker-%d", winner.Load())
	if got := get(t, r, old.ID); got.Worker != want || got.Rev != 2 {
		t.Errorf("stored is %s with revision %d; the winner was %s", got.Worker, got.Rev, want)
	}
}

// noLostChange has workers count to eighty together.
func noLostChange(t testing.TB, r build.Records) {
	id := created(t, r, NewRecord()).ID
	atOnce(8, func(int) {
		for done := 0; done < 10; {
			rec, err := r.Get(t.Context(), id)
			if err == nil {
				err = r.Replace(t.Context(), rec, rec.Push(build.Now()))
			}
			switch {
			case err == nil:
				done++
			case !errors.Is(err, build.ErrConflict):
				t.Errorf("count: %v", err)
				return
			}
		}
	})
	if rec := get(t, r, id); rec.Pushes != 80 || rec.Rev != 81 {
		t.Errorf("eighty changes counted %d and made revision %d", rec.Pushes, rec.Rev)
	}
}

func readYourWrites(t testing.TB, r build.Records) {
	rec := created(t, r, NewRecord())
	id := rec.ID
	var written atomic.Int64
	var done atomic.Bool
	var readers sync.WaitGroup
	defer readers.Wait()
	defer done.Store(true)
	written.Store(1)
	for range 4 {
		readers.Go(func() {
			for !done.Load() {
				least := written.Load()
				got, err := r.Get(t.Context(), id)
				if err != nil || got.Rev < least {
					t.Errorf("Get returns revision %d (%v) after %d was written", got.Rev, err, least)
					return
				}
			}
		})
	}
	for range 50 {
		rec = replaced(t, r, rec, rec.Push(build.Now()))
		written.Store(rec.Rev)
	}
}

func dueInOrder(t testing.TB, r build.Records) {
	now := build.Now()
	never := created(t, r, dueAt(time.Time{}))
	later := created(t, r, dueAt(now.Add(time.Millisecond)))
	var want []build.ID
	for _, i := range []int{2, 0, 1} { // stored in another order than due
		rec := created(t, r, dueAt(now.Add(time.Duration(-i)*time.Minute)))
		want = append(want, rec.ID)
	}
	want = []build.ID{expired(t, r).ID, want[0], want[2], want[1]} // due for 59, 2, 1 and 0 minutes
	eventually(t, "everything that is due is listed in order", func() bool { return slices.Equal(due(t, r, now, 10), want) })
	if got := due(t, r, now, 2); !slices.Equal(got, want[:2]) {
		t.Errorf("the first two are %v, not %v", got, want[:2])
	}
	if got := due(t, r, now, 10); slices.Contains(got, never.ID) || slices.Contains(got, later.ID) {
		t.Errorf("Due lists what is not due")
	}
}

// everyCountOnce is how sequence numbers are drawn.
func everyCountOnce(t testing.TB, r build.Records) {
	var mu sync.Mutex
	seen := map[int64]bool{}
	atOnce(16, func(i int) {
		for range 10 {
			change := build.Change{Add: build.Board{"n": 1}, Max: build.Board{"top": int64(i)}}
			board, err := r.Board(t.Context(), "", change)
			if err != nil {
				t.Errorf("Board: %v", err)
				return
			}
			mu.Lock()
			if seen[board["n"]] {
				t.Errorf("the count %d was given out twice", board["n"])
			}
			seen[board["n"]] = true
			mu.Unlock()
		}
	})
	wantBoard(t, r, "", build.Change{}, build.Board{"n": 160, "top": 15})
}

// fullRecord has every field of a queued record set.
func fullRecord() build.Record {
	plan := build.Plan{
		Distribution: "OpenWrt", Version: "SNAPSHOT", Snapshot: true, Revision: "r30000-0123456789",
		Target: "ath79/generic", Profile: "tplink_archer-c7-v5",
		Add: []string{"kmod-wireguard", "luci"}, Remove: []string{"dnsmasq", "ppp"},
		Pins:       []build.Pin{{Name: "luci", Version: "26.123~abc-r1"}, {Name: "libfoo2", Version: "1:2.0_rc1"}},
		Filesystem: "squashfs", RootfsSizeMB: 256,
		Repositories:     []build.Repository{{Name: "mine", URL: "https://feed.example/x86"}, {Name: "also", URL: "http://feed.example:8080/all/"}},
		RepositoriesMode: "append", RepositoryKeys: []string{strings.Repeat("A", 56)},
		Settings: []string{"server-pub"}, Rules: "00ff", Private: true,
		Defaults: "#!/bin/sh\nuci set wireless.radio0.key='gruß \U0001F511 <&>'\n" + strings.Repeat("# padding\n", 1900),
	}
	request := build.Request{
		Distro: "openwrt", Version: "SNAPSHOT", VersionCode: "r30000-0123456789", Target: "ath79/generic",
		Profile: "archer-c7-v5", Model: "TP-Link Archer C7 v5", Packages: []string{"luci", "+luci", "-ppp"},
		PackagesVersions: map[string]string{"luci": "26.123~abc-r1"}, DiffPackages: true, Filesystem: "squashfs",
		RootfsSizeMB: 256, Repositories: plan.Repositories, RepositoriesMode: "append",
		RepositoryKeys: plan.RepositoryKeys, Client: "luci/1.0",
	}
	return build.NewRecord(NewID(), plan, request, 42, build.Now())
}

func fullResult(rec build.Record) *build.Result {
	sum := strings.Repeat("0a", 32)
	return &build.Result{
		Prefix: build.Prefix(rec.ID, rec.Attempt, true), ImageHash: sum, BuiltAt: build.Now(),
		Images:   []build.Image{{Name: "a.bin", Type: "sysupgrade", Filesystem: "squashfs", Size: 1 << 40, SHA256: sum, SHA256Unsigned: sum}},
		Manifest: map[string]string{"luci": "26.123~abc-r1", "libc": "1.2.5-r4"},
		Log:      "build-" + sum + ".log", Command: `make image PROFILE="x"`, Notes: []string{"a note"},
		Profile: build.Profile{
			ArchPackages: "mips_24kc", DefaultPackages: []string{"busybox"}, DevicePackages: []string{"kmod-ath9k"}, ImagePrefix: "openwrt-x",
			LinuxKernel: json.RawMessage(`{"vermagic":"0f","version":"6.6.1"}`), SourceDateEpoch: 1_760_000_000,
			SupportedDevices: []string{"tplink,archer-c7-v5"}, Titles: json.RawMessage(`[{"model":"Archer C7"}]`),
			VersionCode: "r30000-0123456789", VersionNumber: "SNAPSHOT",
		},
		Stdout: "line\n", Stderr: "\x1b[33mcolour\x1b[0m\n", Timings: map[string]int64{"make": 1234},
	}
}
