package build_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
)

func (w *world) sweep() build.Swept {
	w.t.Helper()
	done, err := w.sweeper.Sweep(w.t.Context())
	w.check(err, "Sweep")
	return done
}

// sweepFor sweeps each minute and calls f, if there is one, after each.
func (w *world) sweepFor(d time.Duration, f func(build.Swept)) {
	w.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Minute) {
		if done := w.sweep(); f != nil {
			f(done)
		}
	}
}

func (w *world) put(key, content string) string {
	w.t.Helper()
	policy := build.PolicyText
	if strings.HasPrefix(key, "store/private/") {
		policy = policy.Private()
	}
	w.check(w.objects.Put(w.t.Context(), key, strings.NewReader(content), policy), "Put")
	return key
}

func (w *world) wantKeys(want ...string) {
	w.t.Helper()
	want = slices.Sorted(slices.Values(want))
	if got := w.objects.Keys(); !slices.Equal(got, want) {
		w.t.Errorf("the objects are\n%s, not\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func inBubble(t *testing.T, f func(*world)) {
	synctest.Test(t, func(t *testing.T) { f(newWorld(t)) })
}

// TestSweepSendsAgain: a build that nobody takes is sent after 1, 2, 4, 8 …
// minutes, then each half hour, and given up after a day.
func TestSweepSendsAgain(t *testing.T) {
	inBubble(t, func(w *world) {
		start := time.Now()
		w.submit(planOf(1))
		var minutes []int
		w.sweepFor(26*time.Hour, func(done build.Swept) {
			if done.Resent+done.GivenUp > 0 {
				minutes = append(minutes, int(time.Since(start)/time.Minute))
			}
			if done.GivenUp > 0 {
				minutes = append(minutes, -1)
			}
		})
		want := []int{1, 2, 4, 8, 16, 32}
		for m := 62; m <= 24*60; m += 30 {
			want = append(want, m)
		}
		if want = append(want, want[len(want)-1]+30, -1); !slices.Equal(minutes, want) {
			t.Errorf("sent again after %v minutes, not %v", minutes, want)
		}
		w.want(0, len(want)-1, 0) // given up a day later, and forgotten an hour after that
	})
}

func TestSweepGivesUp(t *testing.T) {
	inBubble(t, func(w *world) {
		w.submit(planOf(1))
		time.Sleep(24*time.Hour + time.Minute)
		if done := w.sweep(); done.GivenUp != 1 {
			t.Errorf("it did %+v", done)
		}
		status, err := w.service.Status(t.Context(), planIDOf(planOf(1)))
		w.check(err, "Status")
		if rec := status.Record; rec.State != build.Failed || rec.Failure.Kind != build.KindWaited || rec.Failure.Detail == "" {
			t.Errorf("the record is %+v", rec)
		}
		w.want(1, 1, 0)
		w.submit(planOf(1)) // it can be asked for again
		w.want(1, 2, 1)
	})
}

func TestSweepLeavesTheLivingAlone(t *testing.T) {
	inBubble(t, func(w *world) {
		_, keys := w.stored(pinnedPlan(1))
		w.submit(planOf(2))
		w.claim(planOf(2))
		for range 25 * 60 { // a worker that is at it for more than a day
			time.Sleep(time.Minute)
			if done := w.sweep(); done != (build.Swept{}) {
				t.Fatalf("it did %+v", done)
			}
			w.work()
		}
		w.wantKeys(keys...)
		w.want(2, 2, 1)
	})
}

// pinnedPlan is one whose result lives for a week.
func pinnedPlan(n int) build.Plan {
	plan := planOf(n)
	plan.Pins = []build.Pin{{Name: "luci", Version: "1"}}
	return plan
}

func TestSweepSendsWhatALostWorkerLeft(t *testing.T) {
	inBubble(t, func(w *world) {
		w.submit(planOf(1))
		w.claim(planOf(1))
		time.Sleep(build.Lease + build.LeaseMargin - time.Millisecond)
		if done := w.sweep(); done.Resent != 0 {
			t.Error("it is sent while its lease may live")
		}
		time.Sleep(time.Millisecond)
		if done := w.sweep(); done.Resent != 1 {
			t.Error("it is not sent after its lease")
		}
		w.want(1, 2, 1)
		rec, err := w.records.Get(t.Context(), planIDOf(planOf(1)))
		w.check(err, "Get")
		if rec.State != build.Building || !rec.Claimable(build.Now()) {
			t.Errorf("the record is %+v", rec)
		}
	})
}

// manySweepers run at once over builds that were never sent.
func manySweepers(t testing.TB, w *world) {
	t.Helper()
	for n := range 20 {
		w.faults.On(buildtest.OpSend, n+1, buildtest.FailsBefore)
		w.submit(planOf(n))
	}
	time.Sleep(build.FirstDue)
	// All of them have seen what is due before one of them goes on.
	var wait, met sync.WaitGroup
	met.Add(8)
	for range 8 {
		sweeper := *w.sweeper
		sweeper.Records = dueMeeting{sweeper.Records, func() { met.Done(); met.Wait() }}
		wait.Go(func() {
			if _, err := sweeper.Sweep(t.Context()); err != nil {
				t.Errorf("Sweep: %v", err)
			}
		})
	}
	wait.Wait()
	w.want(20, 20, 20)
}

type dueMeeting struct {
	build.Records
	meet func()
}

func (m dueMeeting) Due(ctx context.Context, before time.Time, n int) ([]build.Record, error) {
	list, err := m.Records.Due(ctx, before, n)
	m.meet()
	return list, err
}

func TestManySweepersSendOnce(t *testing.T) {
	inBubble(t, func(w *world) { manySweepers(t, w) })
}

func TestOneSweepNeedsTheStore(t *testing.T) {
	for _, flaw := range []buildtest.Flaw{buildtest.NoCompareAndSwap, buildtest.RevisionStays} {
		t.Run(string(flaw), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				buildtest.Fails(t, func(t testing.TB) { manySweepers(t, newWorld(t, flaw)) })
			})
		})
	}
}

// TestSweepTakesAll: more records than are asked for at once.
func TestSweepTakesAll(t *testing.T) {
	inBubble(t, func(w *world) {
		for n := range 250 {
			w.submit(planOf(n))
		}
		time.Sleep(build.FirstDue)
		w.sweep()
		w.want(250, 500, 250)
	})
}

// TestForeignRecordsHideNothing: records of another version that stay due do
// not keep the sweeper from ours, nor do those with a fault.
func TestForeignRecordsHideNothing(t *testing.T) {
	inBubble(t, func(w *world) {
		for n := range 300 {
			rec := build.NewRecord(planIDOf(planOf(n)), planOf(n), baseRequest(), 1, build.Now())
			rec.Schema++
			w.check(w.records.Create(w.t.Context(), rec), "Create")
		}
		time.Sleep(time.Second)
		w.submit(planOf(1000))
		time.Sleep(build.FirstDue)
		if done := w.sweep(); done.Resent != 1 {
			t.Errorf("it did %+v", done)
		}
		if done := w.sweep(); done != (build.Swept{}) {
			t.Errorf("it did %+v", done)
		}
	})
	inBubble(t, func(w *world) {
		for n := range 150 {
			w.submit(planOf(n))
		}
		time.Sleep(build.FirstDue)
		for n := range 140 {
			w.faults.On(buildtest.OpReplace, n+1, buildtest.FailsBefore)
		}
		if _, err := w.sweeper.Sweep(w.t.Context()); !errors.Is(err, buildtest.ErrInjected) {
			t.Errorf("Sweep: %v", err)
		}
		w.want(150, 160, 150)
	})
}

// damaged are records of which one cannot be read, though it is due.
type damaged struct{ build.Records }

func (d damaged) Due(ctx context.Context, before time.Time, n int) ([]build.Record, error) {
	due, err := d.Records.Due(ctx, before, n)
	return due, errors.Join(err, buildtest.ErrInjected)
}

func TestDamagedRecordHidesNothing(t *testing.T) {
	inBubble(t, func(w *world) {
		for n := range 250 {
			w.submit(planOf(n))
		}
		time.Sleep(build.FirstDue)
		w.sweeper.Records = damaged{w.sweeper.Records}
		if done, err := w.sweeper.Sweep(w.t.Context()); done.Resent != 250 || !errors.Is(err, buildtest.ErrInjected) {
			t.Errorf("it did %+v: %v", done, err)
		}
	})
}

// TestSweepRemovesPrivateInTime: swept each five minutes at whatever moment, and
// behind whatever else is due, a private result's files are there for half an
// hour and gone ten minutes later; so are what a lost attempt left.
func TestSweepRemovesPrivateInTime(t *testing.T) {
	for phase := time.Duration(0); phase < 5*time.Minute; phase += 97 * time.Second {
		inBubble(t, func(w *world) {
			for n := range 110 {
				w.submit(planOf(n))
			}
			time.Sleep(time.Hour) // they are long due, and nobody sweeps
			w.submit(privatePlan())
			lost := w.claim(privatePlan())
			left := w.put(build.Prefix(lost.ID, lost.Attempt, true)+"a.img", "of a lost attempt")
			time.Sleep(build.Lease + build.LeaseMargin)
			_, keys := w.stored(privatePlan())
			ended := time.Now()
			time.Sleep(phase)
			for ; time.Since(ended) < time.Hour; time.Sleep(5 * time.Minute) {
				w.sweep()
				switch since := time.Since(ended); {
				case since < 8*time.Minute:
					w.wantKeys(append(keys, left)...)
				case since < 15*time.Minute: // it becomes ten minutes old
				case since < 30*time.Minute:
					w.wantKeys(keys...)
				}
				if time.Since(ended) >= 35*time.Minute { // the sweep before the fortieth minute
					w.wantKeys()
				}
			}
		})
	}
}

// stored is a finished build with two files and an index entry.
func (w *world) stored(plan build.Plan) (rec build.Record, keys []string) {
	w.t.Helper()
	w.submit(plan)
	rec = w.finish(plan)
	for _, name := range []string{"a.img", "build.json"} {
		keys = append(keys, w.put(rec.Result.Prefix+name, name))
	}
	if !plan.Private {
		w.index(rec.Result.ImageHash, rec.ID)
		keys = append(keys, build.ImageIndex(rec.Result.ImageHash))
	}
	return rec, keys
}

func (w *world) index(imageHash string, id build.ID) {
	w.t.Helper()
	w.check(w.objects.Put(w.t.Context(), build.ImageIndex(imageHash), strings.NewReader(string(id)), build.PolicyIndex), "Put")
}

func TestSweepRemovesWhatExpired(t *testing.T) {
	inBubble(t, func(w *world) {
		old, _ := w.stored(planOf(1))
		time.Sleep(23 * time.Hour)
		_, keep := w.stored(planOf(2))
		keep = append(keep,
			w.put("keys/server.pub", "key"), w.put("json/v1/latest.json", "{}"), w.put("catalog/x", "x"),
			w.put("store/"+string(old.ID)+"/readme", "no attempt"),
			w.put(build.Prefix(old.ID, build.NewAttempt(), false)+"a.img", "another attempt"))
		time.Sleep(time.Hour - time.Millisecond)
		if done := w.sweep(); done.Expired != 0 {
			t.Errorf("it did %+v too early", done)
		}
		time.Sleep(time.Millisecond)
		if done := w.sweep(); done.Expired != 1 {
			t.Errorf("it did %+v", done)
		}
		w.wantKeys(keep...)
		w.want(1, 2, 0)
	})
}

// TestSweepRemovesWhatHasNoFiles: a build that was given up before anybody
// claimed it, and failures with and without a log.
func TestSweepRemovesWhatHasNoFiles(t *testing.T) {
	inBubble(t, func(w *world) {
		w.submit(planOf(1))
		time.Sleep(24*time.Hour + time.Minute)
		w.sweep()
		w.submit(planOf(2))
		w.fail(planOf(2), build.KindConflict)
		w.submit(planOf(3))
		w.failWithLog(planOf(3))
		time.Sleep(time.Hour)
		if done := w.sweep(); done.Expired != 3 {
			t.Errorf("it did %+v", done)
		}
		w.wantKeys()
		w.want(0, 3, 1) // the last failure was not counted here
	})
}

// failWithLog fails a build for good, after a first attempt that left the log.
func (w *world) failWithLog(plan build.Plan) (log string) {
	w.t.Helper()
	first := w.claim(plan)
	failure := build.Fail(build.KindUpstream, "The upstream did not answer.")
	failure.Prefix = build.Prefix(first.ID, first.Attempt, plan.Private)
	w.replace(plan, func(r build.Record) build.Record { return r.Retry(failure, 0, build.Now()) })
	w.claim(plan)
	w.replace(plan, func(r build.Record) build.Record { return r.FailWith(failure, build.DefaultLifetimes, build.Now()) })
	return w.put(failure.Prefix+first.ID.LogName(), "log")
}

// TestSweepKeepsTheLog: the log of a private failure is no stray after ten
// minutes, and gone after half an hour.
func TestSweepKeepsTheLog(t *testing.T) {
	inBubble(t, func(w *world) {
		w.submit(privatePlan())
		log := w.failWithLog(privatePlan())
		w.sweepFor(30*time.Minute, nil)
		w.wantKeys(log)
		w.sweep()
		w.wantKeys()
	})
}

func TestSweepDropsOnlyItsOwnIndex(t *testing.T) {
	inBubble(t, func(w *world) {
		rec, _ := w.stored(planOf(1))
		other := buildtest.NewID() // gave the same image, later
		w.index(rec.Result.ImageHash, other)
		time.Sleep(24 * time.Hour)
		w.sweep()
		w.wantKeys(build.ImageIndex(rec.Result.ImageHash))
		id, err := build.ReadIndex(t.Context(), w.objects, rec.Result.ImageHash)
		if err != nil || id != other {
			t.Errorf("the index names %s (%v)", id, err)
		}
	})
}

func TestReadIndex(t *testing.T) {
	w := newWorld(t)
	hash := string(buildtest.NewID())
	for _, content := range []string{"", "short", strings.Repeat("G", 64)} {
		w.check(w.objects.Put(t.Context(), build.ImageIndex(hash), strings.NewReader(content), build.PolicyIndex), "Put")
		if id, err := build.ReadIndex(t.Context(), w.objects, hash); !errors.Is(err, build.ErrNotFound) {
			t.Errorf("an index that holds %q names %q (%v)", content, id, err)
		}
	}
	if _, err := build.ReadIndex(t.Context(), w.objects, string(buildtest.NewID())); !errors.Is(err, build.ErrNotFound) {
		t.Errorf("an index that is not there: %v", err)
	}
}

// TestSweepGoesOnAfterDying: whatever write of it fails, the next sweep
// finishes what expired.
func TestSweepGoesOnAfterDying(t *testing.T) {
	for _, op := range []string{buildtest.OpDeleteKey, buildtest.OpForget} {
		for _, fault := range []buildtest.Fault{buildtest.FailsBefore, buildtest.FailsAfter} {
			for n := 1; n <= 3; n++ {
				inBubble(t, func(w *world) {
					w.stored(planOf(1))
					w.stored(planOf(2))
					time.Sleep(24 * time.Hour)
					w.faults.On(op, n, fault)
					if _, err := w.sweeper.Sweep(t.Context()); err == nil && w.faults.Calls(op) >= n {
						t.Errorf("%s %d failed and nobody says so", op, n)
					}
					if n := len(w.records.All()); n > 1 {
						t.Errorf("one failed, and %d records are left", n)
					}
					w.sweep()
					w.wantKeys()
					w.want(0, 2, 0)
				})
			}
		}
	}
}

// TestResendFaults: whatever write of a resend fails, the build is sent in
// the end.
func TestResendFaults(t *testing.T) {
	for _, op := range []string{buildtest.OpReplace, buildtest.OpSend} {
		for _, fault := range []buildtest.Fault{buildtest.FailsBefore, buildtest.FailsAfter} {
			inBubble(t, func(w *world) {
				w.submit(planOf(1))
				rec := w.claim(planOf(1)) // its message is gone
				time.Sleep(time.Until(rec.DueAt))
				w.faults.On(op, w.faults.Calls(op)+1, fault)
				if _, err := w.sweeper.Sweep(t.Context()); !errors.Is(err, buildtest.ErrInjected) {
					t.Errorf("Sweep returns %v", err)
				}
				w.takeUp(10 * time.Minute)
				w.want(1, 2, 1)
			})
		}
	}
}

func TestGivingUpFaults(t *testing.T) {
	for _, fault := range []buildtest.Fault{buildtest.FailsBefore, buildtest.FailsAfter} {
		inBubble(t, func(w *world) {
			w.submit(planOf(1))
			time.Sleep(24*time.Hour + time.Minute)
			w.faults.On(buildtest.OpReplace, 1, fault)
			if _, err := w.sweeper.Sweep(t.Context()); !errors.Is(err, buildtest.ErrInjected) {
				t.Errorf("Sweep returns %v", err)
			}
			w.sweep()
			if rec := w.records.All()[0]; rec.State != build.Failed {
				t.Errorf("the record is %s", rec.State)
			}
		})
	}
}

// TestSweepRemovesStrays: attempts that no record names go, private ones ten
// minutes after their newest file, public ones after a day.
func TestSweepRemovesStrays(t *testing.T) {
	inBubble(t, func(w *world) {
		_, keep := w.stored(pinnedPlan(1))
		w.submit(planOf(2))
		claimed := w.claim(planOf(2))
		keep = append(keep, w.put(build.Prefix(claimed.ID, claimed.Attempt, false)+"half.img", "being uploaded"),
			w.put("store/readme", "no attempt"), w.put("keys/worker-1.pub", "key"))
		folder := build.Prefix(buildtest.NewID(), build.NewAttempt(), false)
		growing := []string{w.put(folder+"a.img", "of no record")}
		public := w.put(build.Prefix(claimed.ID, build.NewAttempt(), false)+"a.img", "of an earlier attempt")
		private := []string{
			w.put(build.Prefix(buildtest.NewID(), build.NewAttempt(), true)+"a.img", "of no record"),
			w.put(build.Prefix(claimed.ID, build.NewAttempt(), true)+"a.img", "of an earlier attempt"),
		}
		goOn := func(d time.Duration) {
			w.sweepFor(d, func(build.Swept) { w.work() })
		}
		goOn(10 * time.Minute)
		w.wantKeys(slices.Concat(keep, growing, private, []string{public})...)
		goOn(2 * time.Minute)
		w.wantKeys(slices.Concat(keep, growing, []string{public})...)
		goOn(12 * time.Hour)
		growing = append(growing, w.put(folder+"b.img", "of no record"))
		goOn(11*time.Hour + 40*time.Minute)
		w.wantKeys(slices.Concat(keep, growing, []string{public})...)
		goOn(80 * time.Minute) // they are looked for once an hour
		w.wantKeys(slices.Concat(keep, growing)...)
		goOn(12 * time.Hour)
		w.wantKeys(keep...)
	})
}

// TestSweepRemovesOldKeys: certificates of workers go a month after they were
// stored, and nothing else that lies beside them.
func TestSweepRemovesOldKeys(t *testing.T) {
	inBubble(t, func(w *world) {
		keep := []string{w.put("keys/server.pub", "key"), w.put("keys/revoked", "list"), w.put("keys/revoked.sig", "signature")}
		old := []string{w.put("keys/worker-1.pub", "key"), w.put("keys/worker-1.pub.sig", "signature")}
		time.Sleep(20 * 24 * time.Hour)
		keep = append(keep, w.put("keys/worker-2.pub", "key"), w.put("keys/worker-2.pub.sig", "signature"))
		time.Sleep(10 * 24 * time.Hour)
		if done := w.sweep(); done.Keys != 0 {
			t.Errorf("it did %+v too early", done)
		}
		w.wantKeys(slices.Concat(keep, old)...)
		time.Sleep(time.Hour)
		if done := w.sweep(); done.Keys != len(old) {
			t.Errorf("it did %+v", done)
		}
		w.wantKeys(keep...)
	})
}
