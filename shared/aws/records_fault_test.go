package aws

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
)

// write is one write of the driver and what tells how often it has happened.
type write struct {
	name  string
	setup func(t *testing.T, r *Records) subject
}

// subject is a write that can be run once. happened counts.
type subject struct {
	run      func(context.Context) error
	happened func(context.Context) (int64, error)
}

var writes = []write{
	{"Create", func(_ *testing.T, r *Records) subject {
		rec := buildtest.NewRecord()
		return subject{func(ctx context.Context) error { return r.Create(ctx, rec) }, revision(r, rec.ID, 0)}
	}},
	{"Create over an expired one", func(t *testing.T, r *Records) subject {
		rec := expiredRecord(t, r)
		fresh := buildtest.NewRecord()
		fresh.ID = rec.ID
		return subject{func(ctx context.Context) error { return r.Create(ctx, fresh) }, revision(r, rec.ID, 0)}
	}},
	{"Replace", func(t *testing.T, r *Records) subject {
		rec := buildtest.NewRecord()
		must(t, r.Create(t.Context(), rec))
		return subject{func(ctx context.Context) error { return r.Replace(ctx, rec, rec.Push(build.Now())) }, revision(r, rec.ID, 1)}
	}},
	{"Delete", func(t *testing.T, r *Records) subject {
		rec := buildtest.NewRecord()
		must(t, r.Create(t.Context(), rec))
		return subject{func(ctx context.Context) error { return r.Delete(ctx, rec) }, func(ctx context.Context) (int64, error) {
			_, err := r.Get(ctx, rec.ID)
			if errors.Is(err, build.ErrNotFound) {
				return 1, nil
			}
			return 0, err
		}}
	}},
	{"Board add", func(t *testing.T, r *Records) subject {
		return onBoard(r, "b", build.Change{Add: build.Board{"n": 1}})
	}},
	{"Board add below", func(t *testing.T, r *Records) subject {
		return onBoard(r, "b", build.Change{Add: build.Board{"n": 1}, Below: build.Board{"n": 1}})
	}},
	{"Board add and max", func(t *testing.T, r *Records) subject {
		return onBoard(r, "b", build.Change{Add: build.Board{"n": 1}, Max: build.Board{"top": 9}})
	}},
	{"Board anew after its expiry", func(t *testing.T, r *Records) subject {
		_, err := r.Board(t.Context(), "b", build.Change{Add: build.Board{"n": 5}, ExpiresAt: build.Now().Add(-1)})
		must(t, err)
		return onBoard(r, "b", build.Change{Add: build.Board{"n": 1}})
	}},
}

// revision counts the revisions since one.
func revision(r *Records, id build.ID, since int64) func(context.Context) (int64, error) {
	return func(ctx context.Context) (int64, error) {
		rec, err := r.Get(ctx, id)
		if errors.Is(err, build.ErrNotFound) {
			return 0, nil
		}
		return rec.Rev - since, err
	}
}

func onBoard(r *Records, name string, change build.Change) subject {
	return subject{
		func(ctx context.Context) error {
			board, err := r.Board(ctx, name, change)
			if err == nil && board["n"] != 1 {
				return fmt.Errorf("the board is %v", board)
			}
			return err
		},
		func(ctx context.Context) (int64, error) {
			board, err := r.Board(ctx, name, build.Change{})
			return board["n"], err
		},
	}
}

func expiredRecord(t *testing.T, r *Records) build.Record {
	t.Helper()
	rec := buildtest.NewRecord()
	must(t, r.Create(t.Context(), rec))
	ended := rec.FailWith(build.Fail(build.KindUpstream, "no"), build.Lifetimes{Failed: 1}, build.Now().Add(-1))
	must(t, r.Replace(t.Context(), rec, ended))
	return ended
}

// TestWritesThatFailOnce: the SDK tries again, and the write has happened once
// and says so, whether or not the first try had happened.
func TestWritesThatFailOnce(t *testing.T) {
	r, w := wiredRecords(t)
	for _, write := range writes {
		for name, reply := range failures {
			for _, happens := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/happens %v", write.name, name, happens), func(t *testing.T) {
					clearBoard(t, r)
					s := write.setup(t, r)
					w.fail(tableFault{reply: reply, happens: happens})
					must(t, s.run(t.Context()))
					wantHappened(t, s, 1)
				})
			}
		}
	}
}

// TestWritesThatFailAlways: the caller hears of a failure that is no sentinel,
// and what it reads afterwards is the truth.
func TestWritesThatFailAlways(t *testing.T) {
	r, w := wiredRecords(t)
	for _, write := range writes {
		for name, reply := range failures {
			for _, happens := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/happens %v", write.name, name, happens), func(t *testing.T) {
					clearBoard(t, r)
					s := write.setup(t, r)
					w.spent()
					w.fail(tableFault{reply: reply, happens: happens}, tableFault{reply: reply}, tableFault{reply: reply}, tableFault{reply: reply}, tableFault{reply: reply})
					err := s.run(t.Context())
					w.fail()
					if err == nil || errors.Is(err, build.ErrExists) || errors.Is(err, build.ErrConflict) || errors.Is(err, build.ErrNotFound) {
						t.Errorf("the caller hears: %v", err)
					}
					if got := sum(w.spent()); got != testTries {
						t.Errorf("it was tried %d times", got)
					}
					want := int64(0)
					if happens && !unseen(write) {
						want = 1
					}
					wantHappened(t, s, want)
				})
			}
		}
	}
}

// unseen tells whether the first call of a write is only the look that finds
// the board expired.
func unseen(w write) bool { return w.name == "Board anew after its expiry" }

func sum(calls map[string]int) (n int) {
	for _, count := range calls {
		n += count
	}
	return n
}

func wantHappened(t *testing.T, s subject, want int64) {
	t.Helper()
	got, err := s.happened(t.Context())
	must(t, err)
	if got != want {
		t.Errorf("it has happened %d times, not %d", got, want)
	}
}

// clearBoard removes the board "b" that the tests share.
func clearBoard(t *testing.T, r *Records) {
	t.Helper()
	must(t, deleteItem(t.Context(), r, boardKey+"b"))
}

// TestOthersBetweenTwoTries: a write had happened, its answer was lost, and
// before the SDK tries again somebody else builds upon it.
func TestOthersBetweenTwoTries(t *testing.T) {
	reset := failures["connection reset"]
	t.Run("Create", func(t *testing.T) {
		r, w := wiredRecords(t)
		rec := buildtest.NewRecord()
		claimed := rec.Claim("worker", build.NewAttempt(), build.Now())
		w.fail(tableFault{happens: true, reply: reset, then: func() { must(t, r.Replace(t.Context(), rec, claimed)) }})
		must(t, r.Create(t.Context(), rec))
		wantState(t, r, rec.ID, build.Building, 2)
	})
	t.Run("Replace", func(t *testing.T) {
		r, w := wiredRecords(t)
		rec := buildtest.NewRecord()
		must(t, r.Create(t.Context(), rec))
		claimed := rec.Claim("worker", build.NewAttempt(), build.Now())
		claimed.Rev = 2
		w.fail(tableFault{happens: true, reply: reset, then: func() { must(t, r.Replace(t.Context(), claimed, claimed.GiveBack(build.Now()))) }})
		must(t, r.Replace(t.Context(), rec, claimed))
		wantState(t, r, rec.ID, build.Queued, 3)
	})
	t.Run("Replace that lost", func(t *testing.T) {
		r, w := wiredRecords(t)
		rec := buildtest.NewRecord()
		must(t, r.Create(t.Context(), rec))
		w.fail(tableFault{reply: reset, then: func() {
			must(t, r.Replace(t.Context(), rec, rec.Claim("other", build.NewAttempt(), build.Now())))
		}})
		must(t, wantErr(r.Replace(t.Context(), rec, rec.Claim("worker", build.NewAttempt(), build.Now())), build.ErrConflict))
		wantState(t, r, rec.ID, build.Building, 2)
	})
	t.Run("Create that lost", func(t *testing.T) {
		r, w := wiredRecords(t)
		rec := buildtest.NewRecord()
		w.fail(tableFault{reply: reset, then: func() { must(t, r.Create(t.Context(), rec)) }})
		must(t, wantErr(r.Create(t.Context(), rec), build.ErrExists))
	})
	t.Run("Delete", func(t *testing.T) {
		r, w := wiredRecords(t)
		rec := buildtest.NewRecord()
		must(t, r.Create(t.Context(), rec))
		anew := rec
		anew.CreatedAt = rec.CreatedAt.Add(1e6)
		w.fail(tableFault{happens: true, reply: reset, then: func() { must(t, r.Create(t.Context(), anew)) }})
		must(t, wantErr(r.Delete(t.Context(), rec), build.ErrConflict))
		wantState(t, r, rec.ID, build.Queued, 1)
	})
	t.Run("Board", func(t *testing.T) {
		r, w := wiredRecords(t)
		add := build.Change{Add: build.Board{"n": 1}}
		w.fail(tableFault{happens: true, reply: reset, then: func() {
			_, err := r.Board(t.Context(), "b", add)
			must(t, err)
		}})
		board, err := r.Board(t.Context(), "b", add)
		must(t, err)
		if board["n"] != 2 {
			t.Errorf("two have added and the board is %v", board)
		}
	})
}

func wantState(t *testing.T, r *Records, id build.ID, state build.State, rev int64) {
	t.Helper()
	rec, err := r.Get(t.Context(), id)
	if err != nil || rec.State != state || rec.Rev != rev {
		t.Errorf("the record is %s with revision %d (%v), not %s with %d", rec.State, rec.Rev, err, state, rev)
	}
}

func TestReadsThatFail(t *testing.T) {
	r, w := wiredRecords(t)
	rec := buildtest.NewRecord()
	must(t, r.Create(t.Context(), rec))
	for name, reply := range failures {
		t.Run(name, func(t *testing.T) {
			w.fail(tableFault{reply: reply})
			_, err := r.Get(t.Context(), rec.ID)
			must(t, err)
			w.fail(tableFault{reply: reply}, tableFault{reply: reply}, tableFault{reply: reply})
			if _, err := r.Get(t.Context(), rec.ID); err == nil || errors.Is(err, build.ErrNotFound) {
				t.Errorf("a read that failed says: %v", err)
			}
		})
	}
}
