package build_test

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
)

func TestBuildersToStart(t *testing.T) {
	for _, test := range []struct {
		pending      int64
		alive, limit int
		want         int
	}{
		{pending: 0, alive: 0, limit: 2, want: 0},
		{pending: -3, alive: 0, limit: 2, want: 0},
		{pending: 1, alive: 0, limit: 2, want: 1},
		{pending: 1, alive: 0, limit: 0, want: 0},
		{pending: 1, alive: 0, limit: -1, want: 0},
		{pending: 1, alive: 1, limit: 2, want: 0},
		{pending: 4, alive: 0, limit: 9, want: 1},
		{pending: 5, alive: 0, limit: 9, want: 2},
		{pending: 5, alive: 1, limit: 9, want: 1},
		{pending: 500, alive: 0, limit: 9, want: 9},
		{pending: 500, alive: 4, limit: 9, want: 5},
		{pending: 500, alive: 10, limit: 9, want: 0},
		{pending: math.MaxInt64, alive: 1, limit: 2, want: 1},
	} {
		if got := build.BuildersToStart(test.pending, test.alive, test.limit); got != test.want {
			t.Errorf("for %d pending and %d alive of %d it starts %d, not %d", test.pending, test.alive, test.limit, got, test.want)
		}
	}
}

// fleet is one over the world's records whose start returns err.
func (w *world) fleet(err *error) *build.Fleet {
	return &build.Fleet{Records: w.service.Records, Max: 3, Start: func(ctx context.Context, n int) error {
		w.starts += n
		return *err
	}}
}

func (w *world) board() build.Board {
	w.t.Helper()
	board, err := w.records.Board(w.t.Context(), "", build.Change{})
	w.check(err, "Board")
	return board
}

func (w *world) wantStarts(n int, when string) {
	w.t.Helper()
	if w.starts != n {
		w.t.Errorf("%s: %d builders were started, not %d", when, w.starts, n)
	}
}

// TestWake: one builder is started while none is there, and another one when
// the first does not come.
func TestWake(t *testing.T) {
	inBubble(t, func(w *world) {
		var never error
		f := w.fleet(&never)
		wake := func() { w.check(f.Wake(w.t.Context(), w.board()), "Wake") }
		stale := w.board()
		wake()
		wake()
		w.check(f.Wake(w.t.Context(), stale), "Wake")
		w.wantStarts(1, "at once")
		time.Sleep(build.StartTime - time.Millisecond)
		wake()
		w.wantStarts(1, "before its time is over")
		time.Sleep(time.Millisecond)
		wake()
		w.wantStarts(2, "when it did not come")

		time.Sleep(build.StartTime)
		w.check(f.Present(w.t.Context(), time.Now().Add(time.Minute)), "Present")
		wake()
		time.Sleep(50 * time.Second)
		wake()
		w.wantStarts(2, "while one receives")
		time.Sleep(9 * time.Second)
		wake()
		w.wantStarts(3, "when it is about to leave")
		f.Max = 0
		time.Sleep(time.Hour)
		wake()
		w.wantStarts(3, "when none may run")
	})
}

// TestPresent: a builder never promises more than it knows, nor for long.
func TestPresent(t *testing.T) {
	inBubble(t, func(w *world) {
		f := build.Fleet{Records: w.service.Records}
		present := func(until time.Duration) time.Duration {
			w.check(f.Present(w.t.Context(), time.Now().Add(until)), "Present")
			return time.Until(time.UnixMilli(w.board()[build.BoardAlive]))
		}
		if got := present(time.Minute); got != time.Minute {
			t.Errorf("a minute becomes %s", got)
		}
		if got := present(time.Hour); got != build.AliveTime {
			t.Errorf("an hour becomes %s", got)
		}
		if got := present(time.Second); got != build.AliveTime {
			t.Errorf("a promise is taken back to %s", got)
		}
		w.wantCalls("a promise that is over", calls{}, func() { w.check(f.Present(w.t.Context(), time.Now()), "Present") })
		w.faults.Always(buildtest.OpBoard, buildtest.FailsBefore)
		if err := f.Present(w.t.Context(), time.Now().Add(time.Hour)); !errors.Is(err, buildtest.ErrInjected) {
			t.Errorf("a fault of the board: %v", err)
		}
	})
}

// TestStartFails: a start that failed is tried again, but not by each request.
func TestStartFails(t *testing.T) {
	inBubble(t, func(w *world) {
		failure := errors.New("no capacity")
		f := w.fleet(&failure)
		wake := func() error { return f.Wake(w.t.Context(), w.board()) }
		for want := 1; want <= 3; want++ {
			if err := wake(); !errors.Is(err, failure) {
				t.Errorf("Wake returns %v", err)
			}
			for range 50 {
				w.check(wake(), "Wake")
			}
			w.wantStarts(want, "after a failure")
			time.Sleep(build.StartPause)
		}
		if _, err := f.Scale(w.t.Context(), 1, 0); !errors.Is(err, failure) {
			t.Errorf("Scale returns %v", err)
		}
		time.Sleep(build.StartPause)
		failure = context.DeadlineExceeded // nobody knows whether one comes
		if err := wake(); !errors.Is(err, failure) {
			t.Errorf("Wake returns %v", err)
		}
		time.Sleep(build.StartTime - time.Millisecond)
		w.check(wake(), "Wake")
		w.wantStarts(5, "while one may come")
	})
}

// TestFailedStartKeepsALaterNote: another start was noted meanwhile.
func TestFailedStartKeepsALaterNote(t *testing.T) {
	inBubble(t, func(w *world) {
		later := time.Now().Add(10 * time.Minute).UnixMilli()
		f := build.Fleet{Records: w.service.Records, Max: 1, Start: func(ctx context.Context, n int) error {
			_, err := w.records.Board(ctx, "", build.Change{Max: build.Board{build.BoardStarted: later}})
			w.check(err, "Board")
			return errors.New("no capacity")
		}}
		if err := f.Wake(w.t.Context(), build.Board{}); err == nil {
			t.Error("Wake does not say that it failed")
		}
		if got := w.board()[build.BoardStarted]; got != later {
			t.Errorf("the note is %d, not %d", got, later)
		}
	})
}

func TestWakeFaults(t *testing.T) {
	for fault, starts := range map[buildtest.Fault]int{buildtest.FailsBefore: 0, buildtest.FailsAfter: 0, buildtest.Hangs: 0} {
		inBubble(t, func(w *world) {
			limited(w)
			var told []error
			w.service.Fault = func(err error) { told = append(told, err) }
			w.faults.On(buildtest.OpBoard, 3, fault) // after those of the client and of the draw
			began := time.Now()
			w.check(w.ask("192.0.2.1", planOf(1)), "Submit")
			if took := time.Since(began); took > 600*time.Millisecond || len(told) != 1 || w.starts != starts {
				t.Errorf("fault %d: it took %s, started %d and told %v", fault, took, w.starts, told)
			}
			w.want(1, 1, 1)
		})
	}
}

// TestSlowStart: a start that takes for ever delays a request a little.
func TestSlowStart(t *testing.T) {
	inBubble(t, func(w *world) {
		limited(w)
		w.service.Fleet.Start = func(ctx context.Context, n int) error {
			<-ctx.Done()
			return ctx.Err()
		}
		began := time.Now()
		w.check(w.ask("192.0.2.1", planOf(1)), "Submit")
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("it took %s", took)
		}
		began = time.Now()
		w.check(w.ask("192.0.2.1", planOf(2)), "Submit")
		if took := time.Since(began); took > 0 {
			t.Errorf("the next one took %s", took)
		}
	})
}

func TestScale(t *testing.T) {
	inBubble(t, func(w *world) {
		var never error
		f := w.fleet(&never)
		scale := func(pending int64, alive, want int) {
			t.Helper()
			if n, err := f.Scale(w.t.Context(), pending, alive); n != want || err != nil {
				t.Errorf("for %d pending and %d alive it starts %d (%v), not %d", pending, alive, n, err, want)
			}
		}
		w.wantCalls("a fleet at rest", calls{}, func() { scale(0, 0, 0) })
		w.check(f.Wake(w.t.Context(), build.Board{}), "Wake")
		scale(1, 0, 0) // it was counted before
		scale(100, 1, 2)
		w.wantStarts(3, "in all")
		time.Sleep(build.StartTime)
		scale(100, 0, 3)
	})
}

// TestLoneBuilderDies: the only builder is killed a moment after it came. Who
// counts builders starts another one half a minute after the start of the
// first; who cannot waits until the first could have come, and until its
// promise is over, whichever is later.
func TestLoneBuilderDies(t *testing.T) {
	for came, replaced := range map[time.Duration]time.Duration{
		10 * time.Second:              build.StartTime,
		build.StartTime - time.Second: build.StartTime - time.Second + build.AliveTime - 2*time.Second, // clocks differ
	} {
		inBubble(t, func(w *world) {
			var never error
			f := w.fleet(&never)
			wake := func() { w.check(f.Wake(w.t.Context(), w.board()), "Wake") }
			wake()
			time.Sleep(came)
			w.check(f.Present(w.t.Context(), time.Now().Add(time.Hour)), "Present")
			time.Sleep(replaced - came - time.Millisecond)
			wake()
			w.wantStarts(1, "by who cannot count, before")
			time.Sleep(time.Millisecond)
			wake()
			w.wantStarts(2, "by who cannot count")
		})
	}
	inBubble(t, func(w *world) {
		var never error
		f := w.fleet(&never)
		w.check(f.Wake(w.t.Context(), w.board()), "Wake")
		time.Sleep(10 * time.Second)
		w.check(f.Present(w.t.Context(), time.Now().Add(time.Hour)), "Present")
		scale := func() {
			_, err := f.Scale(w.t.Context(), 1, 0)
			w.check(err, "Scale")
		}
		time.Sleep(build.StartPause - 10*time.Second - time.Millisecond)
		scale()
		w.wantStarts(1, "by who may have counted too early")
		time.Sleep(time.Millisecond)
		scale()
		scale()
		w.wantStarts(2, "by who counts none")
	})
}
