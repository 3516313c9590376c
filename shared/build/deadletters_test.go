package build_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
)

// dead puts the plan's ID among the dead letters of a new queue, through which
// faults pass.
func (w *world) dead(faults *buildtest.Faults, plans ...build.Plan) *buildtest.MemoryQueue {
	w.t.Helper()
	letters := buildtest.NewQueue(w.t, 30*time.Second)
	for _, plan := range plans {
		w.check(letters.Send(w.t.Context(), planIDOf(plan), build.ClassInteractive, ""), "Send")
	}
	w.sweeper.DeadLetters = faults.Queue(letters)
	return letters
}

// lose claims the plan's build so often that no attempt is left.
func (w *world) lose(plan build.Plan) {
	w.t.Helper()
	for range build.MaxAttempts {
		w.claim(plan)
		time.Sleep(build.Lease + build.LeaseMargin)
	}
}

func TestDeadLetters(t *testing.T) {
	for name, test := range map[string]struct {
		reach func(*world)
		state build.State // "" for no record
		sent  int         // in all
		left  int         // dead letters
	}{
		"of nothing":             {func(w *world) {}, "", 0, 0},
		"of what is done":        {func(w *world) { w.submit(planOf(1)); w.finish(planOf(1)) }, build.Done, 1, 0},
		"of what waits":          {func(w *world) { w.submit(planOf(1)) }, build.Queued, 2, 0},
		"of what is being built": {func(w *world) { w.submit(planOf(1)); w.claim(planOf(1)) }, build.Building, 2, 0},
		"of the last attempt, which goes on": {func(w *world) {
			w.submit(planOf(1))
			w.lose(planOf(1))
			w.replace(planOf(1), func(r build.Record) build.Record { return r.Beat(build.StageImage, build.Now()) })
		}, build.Building, 2, 0},
		"of what lost all its workers": {func(w *world) { w.submit(planOf(1)); w.lose(planOf(1)) }, build.Failed, 1, 0},
		"of another version": {func(w *world) {
			rec := build.NewRecord(planIDOf(planOf(1)), planOf(1), baseRequest(), 1, build.Now())
			rec.Schema++
			w.check(w.records.Create(w.t.Context(), rec), "Create")
		}, build.Queued, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(w *world) {
				test.reach(w)
				letters := w.dead(w.faults, planOf(1))
				before := w.records.All()
				var done build.Swept
				w.check(w.sweeper.DeadLettersOnly(w.t.Context(), &done), "sweep")
				after := w.records.All()
				if len(w.queue.Sent()) != test.sent || letters.Len() != test.left || done.DeadLetters != 1 {
					t.Errorf("%d were sent, %d dead letters are left, it did %+v", len(w.queue.Sent()), letters.Len(), done)
				}
				if test.state == "" {
					return
				}
				if after[0].State != test.state || test.state != build.Failed && after[0].Rev != before[0].Rev {
					t.Errorf("the record is %s, revision %d", after[0].State, after[0].Rev)
				}
				if test.state == build.Failed && (after[0].Failure.Kind != build.KindWorker || w.board().Pending() != 0) {
					t.Errorf("it failed with %+v, %d are pending", after[0].Failure, w.board().Pending())
				}
			})
		})
	}
}

// TestDeadLetterFaults: whatever step fails, or whoever dies after it, nothing
// is lost: the build is sent again or fails, and the letter is gone.
func TestDeadLetterFaults(t *testing.T) {
	for _, op := range []string{buildtest.OpReceive, buildtest.OpGet, buildtest.OpSend, buildtest.OpReplace, buildtest.OpBoard, buildtest.OpDone} {
		for _, fault := range []buildtest.Fault{buildtest.FailsBefore, buildtest.FailsAfter} {
			t.Run(fmt.Sprintf("%s %d", op, fault), func(t *testing.T) {
				inBubble(t, func(w *world) {
					w.countUp()
					w.submit(planOf(1))
					w.submit(planOf(2))
					w.lose(planOf(2))
					sent := len(w.queue.Sent())
					letters := w.dead(w.faults, planOf(1), planOf(2))
					w.faults.On(op, w.faults.Calls(op)+1, fault)
					var done build.Swept
					if err := w.sweeper.DeadLettersOnly(w.t.Context(), &done); !errors.Is(err, buildtest.ErrInjected) {
						t.Errorf("it returns %v", err)
					}
					time.Sleep(time.Minute)
					w.check(w.sweeper.DeadLettersOnly(w.t.Context(), &done), "sweep")
					if letters.Len() != 0 {
						t.Errorf("%d letters are left", letters.Len())
					}
					for _, rec := range w.records.All() {
						if spent := rec.Spent(); spent != (rec.State == build.Failed) {
							t.Errorf("after %d attempts a record is %s", rec.Attempts, rec.State)
						}
					}
					if len(w.queue.Sent()) == sent {
						t.Error("what waits was not sent")
					}
					w.settled()
				})
			})
		}
	}
}

// TestManyDeadLetters: a sweep takes a bounded number of them.
func TestManyDeadLetters(t *testing.T) {
	inBubble(t, func(w *world) {
		var plans []build.Plan
		for n := range 250 {
			plans = append(plans, planOf(n))
		}
		letters := w.dead(w.faults, plans...)
		for _, left := range []int{150, 50, 0} {
			w.sweep()
			if letters.Len() != left {
				t.Errorf("%d are left, not %d", letters.Len(), left)
			}
		}
		began := time.Now()
		w.sweep()
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("without any it takes %s", took)
		}
	})
}
