package build_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
)

// world is a service and a sweeper over fakes.
type world struct {
	t       testing.TB
	records *buildtest.MemoryRecords
	queue   *buildtest.MemoryQueue
	objects *buildtest.MemoryObjects
	faults  *buildtest.Faults
	service *build.Service
	sweeper *build.Sweeper
	starts  int // of builders
}

// meeting are records at whose Get the guests of a party wait for each other,
// once: then all of them know the same and act on it.
type meeting struct{ build.Records }

// meet is the key under which a guest's context has a func().
type meet struct{}

func (m meeting) Get(ctx context.Context, id build.ID) (build.Record, error) {
	rec, err := m.Records.Get(ctx, id)
	if wait, ok := ctx.Value(meet{}).(func()); ok {
		wait()
	}
	return rec, err
}

// party runs n copies of f at once. None goes on from its first Get before
// all others returned from theirs.
func (w *world) party(n int, f func(context.Context) error) {
	w.t.Helper()
	var wait, met sync.WaitGroup
	met.Add(n)
	for range n {
		wait.Go(func() {
			once := sync.OnceFunc(func() { met.Done(); met.Wait() })
			if err := f(context.WithValue(w.t.Context(), meet{}, once)); err != nil {
				w.t.Errorf("one of %d at once: %v", n, err)
			}
		})
	}
	wait.Wait()
}

func newWorld(t testing.TB, flaws ...buildtest.Flaw) *world {
	w := &world{
		t: t, records: buildtest.NewRecords(t, flaws...), queue: buildtest.NewQueue(t, build.Lease),
		objects: buildtest.NewObjects(t), faults: &buildtest.Faults{},
	}
	records, queue := meeting{w.faults.Records(w.records)}, w.faults.Queue(w.queue)
	w.service = &build.Service{Records: records, Queue: queue, Secret: secret}
	w.sweeper = &build.Sweeper{Records: records, Queue: queue, Objects: w.faults.Objects(w.objects), Lifetimes: build.DefaultLifetimes}
	return w
}

// planOf is the plan of a numbered request.
func planOf(n int) build.Plan {
	plan := basePlan()
	plan.Add = []string{fmt.Sprintf("package-%d", n)}
	return plan
}

func submission(plan build.Plan) build.Submission {
	return build.Submission{Plan: plan, Request: baseRequest()}
}

func (w *world) submit(plan build.Plan) build.Status {
	w.t.Helper()
	status, err := w.service.Submit(w.t.Context(), submission(plan))
	w.check(err, "Submit")
	return status
}

func (w *world) check(err error, what string) {
	w.t.Helper()
	if err != nil {
		w.t.Fatalf("%s: %v", what, err)
	}
}

// replace stores what step makes of the plan's record.
func (w *world) replace(plan build.Plan, step func(build.Record) build.Record) build.Record {
	w.t.Helper()
	rec, err := w.records.Get(w.t.Context(), plan.ID(secret))
	w.check(err, "Get")
	w.check(w.records.Replace(w.t.Context(), rec, step(rec)), "Replace")
	rec, err = w.records.Get(w.t.Context(), plan.ID(secret))
	w.check(err, "Get")
	return rec
}

// claim takes the plan's build, as a worker who deletes its message at once.
func (w *world) claim(plan build.Plan) build.Record {
	w.t.Helper()
	for w.queue.Len() > 0 {
		m, err := w.queue.Receive(w.t.Context())
		w.check(err, "Receive")
		w.check(w.queue.Delete(w.t.Context(), m), "Delete")
	}
	return w.replace(plan, func(r build.Record) build.Record { return r.Claim("worker", build.NewAttempt(), build.Now()) })
}

func (w *world) finish(plan build.Plan) build.Record {
	w.t.Helper()
	w.claim(plan)
	rec := w.replace(plan, func(r build.Record) build.Record {
		result := &build.Result{Prefix: build.Prefix(r.ID, r.Attempt, r.Plan.Private), ImageHash: string(buildtest.NewID())}
		return r.Finish(result, build.DefaultLifetimes, build.Now())
	})
	w.check(build.CountEnded(w.t.Context(), w.records, rec), "CountEnded")
	return rec
}

func (w *world) fail(plan build.Plan, kind build.Kind) build.Record {
	w.t.Helper()
	w.claim(plan)
	rec := w.replace(plan, func(r build.Record) build.Record {
		return r.FailWith(build.Fail(kind, "It failed."), build.DefaultLifetimes, build.Now())
	})
	w.check(build.CountEnded(w.t.Context(), w.records, rec), "CountEnded")
	return rec
}

// want compares how many records there are, how many messages were ever sent,
// and how many builds the board takes for pending.
func (w *world) want(records, sent int, pending int64) {
	w.t.Helper()
	board, err := w.records.Board(w.t.Context(), "", build.Change{})
	w.check(err, "Board")
	if len(w.records.All()) != records || len(w.queue.Sent()) != sent || board.Pending() != pending {
		w.t.Errorf("%d records, %d messages sent, %d pending; not %d, %d, %d",
			len(w.records.All()), len(w.queue.Sent()), board.Pending(), records, sent, pending)
	}
}

func wantRefusal(t testing.TB, err error, code build.Code) {
	t.Helper()
	var refusal *build.Refusal
	if !errors.As(err, &refusal) || refusal.Code != code || refusal.Detail == "" || code == build.CodeOverloaded && refusal.RetryAfter < time.Second {
		t.Errorf("the answer is %v, not a refusal of the kind %s", err, code)
	}
}

func TestSubmitStartsABuild(t *testing.T) {
	w := newWorld(t)
	request := baseRequest()
	request.Defaults, request.Client = "echo secret\n", "luci/1"
	status, err := w.service.Submit(t.Context(), build.Submission{Plan: privatePlan(), Request: request})
	w.check(err, "Submit")
	rec := status.Record
	if rec.ID != planIDOf(privatePlan()) || rec.State != build.Queued || rec.Sequence != 1 || status.Position != 1 {
		t.Errorf("the answer is %+v", status)
	}
	if rec.Request.Client != "luci/1" || rec.Request.Defaults != "" || rec.Plan.Defaults == "" {
		t.Errorf("the record is %+v", rec)
	}
	w.want(1, 1, 1)
}

func planIDOf(p build.Plan) build.ID { return p.ID(secret) }

func TestSubmitJoins(t *testing.T) {
	for name, reach := range map[string]func(*world){
		"queued":             func(*world) {},
		"being built":        func(w *world) { w.claim(planOf(1)) },
		"done":               func(w *world) { w.finish(planOf(1)) },
		"failed for good":    func(w *world) { w.fail(planOf(1), build.KindConflict) },
		"failed by the time": func(w *world) { w.fail(planOf(1), build.KindTime) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.submit(planOf(1))
			reach(w)
			before := w.records.All()[0]
			if got := w.submit(planOf(1)).Record; got.Rev != before.Rev || got.State != before.State {
				t.Errorf("the answer is %+v, not %+v", got, before)
			}
			pending := int64(1)
			if before.Ended() {
				pending = 0
			}
			w.want(1, 1, pending)
		})
	}
}

func TestSubmitStartsAgain(t *testing.T) {
	for _, kind := range []build.Kind{build.KindUpstream, build.KindDisk, build.KindWorker, build.KindWaited} {
		w := newWorld(t)
		w.submit(planOf(1))
		old := w.fail(planOf(1), kind)
		w.want(1, 1, 0)
		rec := w.submit(planOf(1)).Record
		if rec.State != build.Queued || rec.Attempts != 0 || rec.Failure != nil || rec.Sequence != 2 || w.records.All()[0].Rev != old.Rev+1 {
			t.Errorf("after a failure for %s the record is %+v", kind, rec)
		}
		w.want(1, 2, 1)
	}
}

func TestSubmitAfterExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.submit(planOf(1))
		w.finish(planOf(1))
		time.Sleep(24*time.Hour - time.Millisecond)
		if status := w.submit(planOf(1)); status.Record.State != build.Done {
			t.Errorf("a day is not over, but the record is %+v", status.Record)
		}
		time.Sleep(time.Millisecond)
		if status := w.submit(planOf(1)); status.Record.State != build.Queued || status.Record.Rev != 1 {
			t.Errorf("a day is over, but the record is %+v", status.Record)
		}
		w.want(1, 2, 1)
	})
}

// identical submits one plan many times at once.
func identical(w *world, n int) {
	w.t.Helper()
	w.party(n, func(ctx context.Context) error {
		_, err := w.service.Submit(ctx, submission(planOf(1)))
		return err
	})
}

func TestIdenticalRequestsShareABuild(t *testing.T) {
	for _, limit := range []int64{0, 500, 1} { // joining is free, so one place is enough
		t.Run(fmt.Sprint("limit ", limit), func(t *testing.T) {
			w := newWorld(t)
			w.service.Limits.Pending = limit
			identical(w, 200)
			w.want(1, 1, 1)
		})
	}
}

// different submits many plans at once.
func different(w *world) {
	w.t.Helper()
	var n, sum atomic.Int64
	w.party(50, func(ctx context.Context) error {
		status, err := w.service.Submit(ctx, submission(planOf(int(n.Add(1)))))
		sum.Add(status.Record.Sequence)
		return err
	})
	w.want(50, 50, 50)
	if sum.Load() != 50*51/2 {
		w.t.Errorf("the sequence numbers are not 1 to 50, each once")
	}
}

func TestDifferentRequestsDoNot(t *testing.T) { different(newWorld(t)) }

func TestIdenticalRequestsRestartOnce(t *testing.T) {
	w := newWorld(t)
	w.submit(planOf(1))
	w.fail(planOf(1), build.KindUpstream)
	identical(w, 50)
	w.want(1, 2, 1)
}

// TestOneBuildNeedsTheStore seeds what a careless store does: then there is
// more than one build, and the tests above notice.
func TestOneBuildNeedsTheStore(t *testing.T) {
	buildtest.Fails(t, func(t testing.TB) { different(newWorld(t, buildtest.BoardRaces)) })
	for _, flaw := range []buildtest.Flaw{buildtest.CreateOverwrites, buildtest.CreateRaces} {
		t.Run(string(flaw), func(t *testing.T) {
			buildtest.Fails(t, func(t testing.TB) {
				w := newWorld(t, flaw)
				identical(w, 200)
				w.want(1, 1, 1)
			})
		})
	}
	for _, flaw := range []buildtest.Flaw{buildtest.NoCompareAndSwap, buildtest.ReplaceRaces, buildtest.RevisionStays} {
		t.Run(string(flaw), func(t *testing.T) {
			buildtest.Fails(t, func(t testing.TB) {
				w := newWorld(t, flaw)
				w.submit(planOf(1))
				w.fail(planOf(1), build.KindUpstream)
				identical(w, 50)
				w.want(1, 2, 1)
			})
		})
	}
}

func TestPendingLimit(t *testing.T) {
	inBubble(t, func(w *world) {
		w.service.Limits.Pending = 2
		w.submit(planOf(1))
		w.submit(planOf(2))
		for range 3 {
			_, err := w.service.Submit(t.Context(), submission(planOf(3)))
			wantRefusal(t, err, build.CodeOverloaded)
			time.Sleep(time.Second) // from then on the board is asked again
		}
		w.want(2, 2, 2) // its place was given back
		w.submit(planOf(1))
		w.finish(planOf(1))
		time.Sleep(time.Second)
		w.submit(planOf(3))
		w.want(3, 3, 2)
	})
}

func TestPosition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for n := 1; n <= 4; n++ {
			if status := w.submit(planOf(n)); status.Position != int64(n) {
				t.Errorf("request %d has place %d", n, status.Position)
			}
		}
		_, err := w.records.Board(t.Context(), "", build.Change{Max: build.Board{build.BoardClaimed: 2}})
		w.check(err, "Board")
		time.Sleep(2 * time.Second) // the board is read once a second
		for n, want := range []int64{1, 1, 1, 2} {
			status, err := w.service.Status(t.Context(), planIDOf(planOf(n+1)))
			w.check(err, "Status")
			if status.Position != want {
				t.Errorf("request %d has place %d, not %d", n+1, status.Position, want)
			}
		}
		if n, err := w.service.Pending(t.Context()); n != 4 || err != nil {
			t.Errorf("%d are pending (%v)", n, err)
		}
	})
}

// TestHangingUp: a client that goes away half way leaves a whole build, or
// nothing.
func TestHangingUp(t *testing.T) {
	for _, step := range []build.Step{build.StepDraw, build.StepCreate, build.StepSend} {
		w := newWorld(t)
		ctx, hangUp := context.WithCancel(t.Context())
		w.service.Hook = func(at build.Step, after bool) {
			if at == step && !after {
				hangUp()
			}
		}
		_, err := w.service.Submit(ctx, submission(planOf(1)))
		w.check(err, "Submit")
		w.want(1, 1, 1)
	}
	w := newWorld(t)
	ctx, hangUp := context.WithCancel(t.Context())
	hangUp()
	if _, err := w.service.Submit(ctx, submission(planOf(1))); !errors.Is(err, context.Canceled) {
		t.Errorf("Submit returns %v", err)
	}
	w.want(0, 0, 0)
}

func TestStatusOfNothing(t *testing.T) {
	w := newWorld(t)
	_, err := w.service.Status(t.Context(), buildtest.NewID())
	wantRefusal(t, err, build.CodeNotFound)
}

func TestSteps(t *testing.T) {
	w := newWorld(t)
	var steps []build.Step
	w.service.Hook = func(step build.Step, after bool) {
		if after {
			steps = append(steps, step)
		}
	}
	w.submit(planOf(1))
	if want := []build.Step{build.StepDraw, build.StepCreate, build.StepSend}; !slices.Equal(steps, want) {
		t.Errorf("the steps are %v", steps)
	}
}

// overdue lets many poll a build that was never sent.
func overdue(t testing.TB, w *world) {
	t.Helper()
	w.faults.On(buildtest.OpSend, 1, buildtest.FailsBefore)
	w.submit(planOf(1))
	w.want(1, 0, 1)
	poll := func() {
		w.party(50, func(ctx context.Context) error {
			_, err := w.service.Status(ctx, planIDOf(planOf(1)))
			return err
		})
	}
	poll()
	w.want(1, 0, 1) // not due yet
	time.Sleep(build.FirstDue)
	poll()
	w.want(1, 1, 1)
	time.Sleep(build.FirstDue)
	poll()
	w.want(1, 2, 1)
}

func TestPollsSendAnOverdueBuildOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { overdue(t, newWorld(t)) })
}

func TestOneResendNeedsTheStore(t *testing.T) {
	for _, flaw := range []buildtest.Flaw{buildtest.NoCompareAndSwap, buildtest.ReplaceRaces} {
		t.Run(string(flaw), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				buildtest.Fails(t, func(t testing.TB) { overdue(t, newWorld(t, flaw)) })
			})
		})
	}
}

// TestForeignRecordsAreLeftAlone: another version of sysup wrote them, in
// whatever state. Clients are asked to come back; what lies in the folders of
// such builds stays.
func TestForeignRecordsAreLeftAlone(t *testing.T) {
	for _, state := range []build.State{build.Queued, build.Building, build.Done, build.Failed, "paused", ""} {
		inBubble(t, func(w *world) {
			rec := w.foreign(planOf(1), state)
			key := w.put(build.Prefix(rec.ID, build.NewAttempt(), false)+"a.img", "image")
			time.Sleep(26 * time.Hour)
			writes, sent := w.records.Writes(), len(w.queue.Sent())
			_, err := w.service.Submit(w.t.Context(), submission(planOf(1)))
			wantLater(w.t, err)
			_, err = w.service.Status(w.t.Context(), rec.ID)
			wantLater(w.t, err)
			if done := w.sweep(); done != (build.Swept{}) {
				w.t.Errorf("a sweep over a record that is %q: %+v", state, done)
			}
			if w.records.Writes() != writes || len(w.queue.Sent()) != sent {
				w.t.Errorf("somebody wrote over a record that is %q or sent it", state)
			}
			w.wantKeys(key)
		})
	}
}

// foreign stores the plan's build as another version may.
func (w *world) foreign(plan build.Plan, state build.State) build.Record {
	w.t.Helper()
	w.submit(plan)
	return w.replace(plan, func(r build.Record) build.Record {
		r.Schema, r.State = r.Schema+1, state
		return r
	})
}

func wantLater(t testing.TB, err error) {
	t.Helper()
	wantRefusal(t, err, build.CodeUnavailable)
	if refusal, ok := errors.AsType[*build.Refusal](err); ok && refusal.RetryAfter <= 0 {
		t.Error("it does not say when to come back")
	}
}

// TestWritesThatFail fails each write of a new request and of one that is
// asked for again, before and after it happened. Whatever the client is told,
// it asks once more, and an hour later all is well: one record, at least one
// message, and the right count, but for what the board was not told, which only
// a count of the records can mend.
func TestWritesThatFail(t *testing.T) {
	for _, test := range []struct {
		op      string
		fault   buildtest.Fault
		again   bool // after a transient failure
		told    bool // that it failed
		sent    int  // messages in the end, the sweeper's included
		pending int64
	}{
		{op: buildtest.OpBoard, fault: buildtest.FailsBefore, sent: 1, pending: 0},
		{op: buildtest.OpBoard, fault: buildtest.FailsAfter, sent: 1, pending: 1},
		{op: buildtest.OpCreate, fault: buildtest.FailsBefore, told: true, sent: 1, pending: 1},
		{op: buildtest.OpCreate, fault: buildtest.FailsAfter, sent: 1, pending: 1},
		{op: buildtest.OpSend, fault: buildtest.FailsBefore, sent: 1, pending: 1},
		{op: buildtest.OpSend, fault: buildtest.FailsAfter, sent: 1, pending: 1},
		{op: buildtest.OpReplace, fault: buildtest.FailsBefore, again: true, told: true, sent: 2, pending: 1},
		{op: buildtest.OpReplace, fault: buildtest.FailsAfter, again: true, sent: 2, pending: 1},
		{op: buildtest.OpSend, fault: buildtest.FailsBefore, again: true, sent: 2, pending: 1},
		{op: buildtest.OpSend, fault: buildtest.FailsAfter, again: true, sent: 2, pending: 1},
	} {
		when := map[buildtest.Fault]string{buildtest.FailsBefore: "before", buildtest.FailsAfter: "after"}[test.fault]
		t.Run(fmt.Sprintf("%s %s, again %v", test.op, when, test.again), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				if test.again {
					w.submit(planOf(1))
					w.fail(planOf(1), build.KindUpstream)
				}
				w.faults.On(test.op, w.faults.Calls(test.op)+1, test.fault)
				_, err := w.service.Submit(t.Context(), submission(planOf(1)))
				if (err != nil) != test.told {
					t.Errorf("the client is told %v", err)
				}
				if err != nil && !(errors.Is(err, buildtest.ErrInjected) && errors.Is(err, build.ErrUnreachable)) {
					t.Errorf("the client is told %v", err)
				}
				if status := w.submit(planOf(1)); status.Record.State != build.Queued {
					t.Errorf("asked once more, the record is %+v", status.Record)
				}
				w.want(1, len(w.queue.Sent()), test.pending)
				w.takeUp(time.Hour)
				w.want(1, test.sent, test.pending)
			})
		})
	}
}

// takeUp sweeps each minute for a while, with a worker that takes what it is
// sent and is at it all the time.
func (w *world) takeUp(d time.Duration) {
	w.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Minute) {
		_, err := w.sweeper.Sweep(w.t.Context())
		w.check(err, "Sweep")
		w.work()
	}
	for _, rec := range w.records.All() {
		if rec.State != build.Building {
			w.t.Errorf("in the end the record is %s", rec.State)
		}
	}
}

// work claims what lies in the queue and renews the lease of what is claimed.
func (w *world) work() {
	w.t.Helper()
	for {
		ctx, cancel := context.WithTimeout(w.t.Context(), time.Millisecond)
		m, err := w.queue.Receive(ctx)
		cancel()
		if err != nil {
			break
		}
		if rec, err := w.records.Get(w.t.Context(), m.ID); err == nil && rec.Claimable(build.Now()) {
			w.check(w.records.Replace(w.t.Context(), rec, rec.Claim("worker", build.NewAttempt(), build.Now())), "claim")
		}
		w.check(w.queue.Delete(w.t.Context(), m), "Delete")
	}
	for _, rec := range w.records.All() {
		if rec.Leased(build.Now()) {
			w.check(w.records.Replace(w.t.Context(), rec, rec.Beat(build.StageImage, build.Now())), "beat")
		}
	}
}
