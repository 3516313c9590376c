package build_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
)

// gaps has the sweeper measure each of these gaps in turn, five minutes apart,
// and returns what each sweep corrected.
func (w *world) gaps(gaps ...int64) (corrected []int64) {
	w.t.Helper()
	var gap int64
	w.sweeper.Count = func(ctx context.Context) (int64, error) {
		board := w.board()
		return board[build.BoardCreated] - board[build.BoardEnded] - gap, nil
	}
	for _, gap = range gaps {
		before := w.board()
		done := w.sweep()
		after := w.board()
		corrected = append(corrected, before[build.BoardCreated]-before[build.BoardEnded]-after[build.BoardCreated]+after[build.BoardEnded])
		if n := corrected[len(corrected)-1]; done.Recounted != int(max(n, -n)) {
			w.t.Errorf("it did %+v and corrected %d", done, n)
		}
		time.Sleep(5 * time.Minute)
	}
	return corrected
}

func TestRecount(t *testing.T) {
	for name, test := range map[string]struct{ gaps, want []int64 }{
		"none":             {[]int64{0, 0, 0}, []int64{0, 0, 0}},
		"over":             {[]int64{3, 3, 0}, []int64{0, 3, 0}},
		"under":            {[]int64{-3, -3, 0}, []int64{0, -3, 0}},
		"in flight":        {[]int64{3, 0, 2, 0}, []int64{0, 0, 0, 0}},
		"of two signs":     {[]int64{3, -2, 4, -1}, []int64{0, 0, 0, 0}},
		"some in flight":   {[]int64{5, 3, 2, 0}, []int64{0, 3, 0, 0}},
		"more later":       {[]int64{3, 5, 2, 2}, []int64{0, 3, 2, 0}},
		"after correction": {[]int64{3, 3, 2, 2, 1}, []int64{0, 3, 0, 2, 0}},
	} {
		inBubble(t, func(w *world) {
			_, err := w.records.Board(w.t.Context(), "", build.Change{Add: build.Board{build.BoardCreated: 10}})
			w.check(err, "Board")
			if got := w.gaps(test.gaps...); !slices.Equal(got, test.want) {
				t.Errorf("%s: of the gaps %v it corrects %v, not %v", name, test.gaps, got, test.want)
			}
		})
	}
}

// TestRecountAtRest: nothing is written while the board is right.
func TestRecountAtRest(t *testing.T) {
	inBubble(t, func(w *world) {
		w.submit(planOf(1))
		w.finish(planOf(1))
		w.countUp()
		writes := w.records.Writes()
		for range 10 {
			w.sweep()
			time.Sleep(5 * time.Minute)
		}
		if w.records.Writes() != writes {
			t.Errorf("%d writes", w.records.Writes()-writes)
		}
	})
}

// recountMeeting are records whose sweepers have all measured before one of
// them goes on.
type recountMeeting struct {
	build.Records
	meet func()
}

func (m recountMeeting) Board(ctx context.Context, name string, change build.Change) (build.Board, error) {
	if strings.HasPrefix(name, "recount/") {
		m.meet()
	}
	return m.Records.Board(ctx, name, change)
}

// TestManyRecount: of many sweepers one corrects.
func TestManyRecount(t *testing.T) {
	inBubble(t, func(w *world) {
		_, err := w.records.Board(w.t.Context(), "", build.Change{Add: build.Board{build.BoardCreated: 7}})
		w.check(err, "Board")
		for range 2 {
			var wait, met sync.WaitGroup
			met.Add(8)
			for range 8 {
				sweeper := *w.sweeper
				sweeper.Count = func(context.Context) (int64, error) { return 0, nil }
				sweeper.Records = recountMeeting{sweeper.Records, sync.OnceFunc(func() { met.Done(); met.Wait() })}
				wait.Go(func() {
					if _, err := sweeper.Sweep(w.t.Context()); err != nil {
						t.Errorf("Sweep: %v", err)
					}
				})
			}
			wait.Wait()
			time.Sleep(5 * time.Minute)
		}
		if board := w.board(); board[build.BoardCreated]-board[build.BoardEnded] != 0 {
			t.Errorf("the board is %v", board)
		}
	})
}

// TestRecountTooSoon: two measurements at one moment are one.
func TestRecountTooSoon(t *testing.T) {
	inBubble(t, func(w *world) {
		time.Sleep(5*time.Minute - time.Second)
		_, err := w.records.Board(w.t.Context(), "", build.Change{Add: build.Board{build.BoardCreated: 1}})
		w.check(err, "Board")
		w.sweeper.Count = func(context.Context) (int64, error) { return 0, nil }
		w.sweep()
		time.Sleep(2 * time.Second)
		if done := w.sweep(); done.Recounted != 0 {
			t.Error("it corrects what may be in flight")
		}
	})
}

// TestRecountFaults: whatever step fails, the board is right in the end, and
// never more wrong than before.
func TestRecountFaults(t *testing.T) {
	for n := 1; n <= 4; n++ {
		for _, fault := range []buildtest.Fault{buildtest.FailsBefore, buildtest.FailsAfter} {
			inBubble(t, func(w *world) {
				w.submit(planOf(1))
				w.claim(planOf(1))
				_, err := w.records.Board(w.t.Context(), "", build.Change{Add: build.Board{build.BoardCreated: 2}})
				w.check(err, "Board")
				w.countUp()
				w.faults.On(buildtest.OpBoard, w.faults.Calls(buildtest.OpBoard)+n, fault)
				for range 6 {
					if _, err := w.sweeper.Sweep(w.t.Context()); err != nil && !errors.Is(err, buildtest.ErrInjected) {
						t.Errorf("Sweep: %v", err)
					}
					if pending := w.board()[build.BoardCreated] - w.board()[build.BoardEnded]; pending < 1 || pending > 3 {
						t.Errorf("fault %d of write %d: %d pending", fault, n, pending)
					}
					w.work()
					time.Sleep(5 * time.Minute)
				}
				if pending := w.board().Pending(); pending != 1 {
					t.Errorf("fault %d of write %d: in the end %d pending", fault, n, pending)
				}
			})
		}
	}
}
