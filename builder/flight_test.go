package builder

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
)

// airborne is a claimed build whose heartbeat runs, on fakes.
type airborne struct {
	*flight
	queue  *buildtest.MemoryQueue
	faults *buildtest.Faults
	job    context.Context
	stop   func()
}

func takeOff(t *testing.T) airborne { return takeOffWith(t, func(*Config) {}) }

func takeOffWith(t *testing.T, change func(*Config)) airborne {
	t.Helper()
	records, faults := buildtest.NewRecords(t), &buildtest.Faults{}
	queue := buildtest.NewQueue(t, build.Visibility)
	rec := buildtest.NewRecord()
	err := errors.Join(records.Create(t.Context(), rec), queue.Send(t.Context(), rec.ID, build.ClassBulk, ""))
	if err != nil {
		t.Fatal(err)
	}
	m, err := queue.Receive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	config := Config{Records: faults.Records(records), Queue: queue, Log: slog.New(slog.DiscardHandler)}
	change(&config)
	w := New("worker", config)
	f, err := w.claim(t.Context(), rec, build.Now())
	if err != nil {
		t.Fatal(err)
	}
	job, cancel := context.WithCancelCause(t.Context())
	stopped := w.keepAlive(job, cancel, f, m)
	return airborne{f, queue, faults, job, func() {
		cancel(errEnded)
		<-stopped
	}}
}

func (a airborne) stored(t *testing.T) build.Record {
	t.Helper()
	rec, err := a.records.Get(t.Context(), a.record().ID)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

// TestHeartbeat: while a job runs its lease never ends, its message stays
// hidden, and the record says what it is doing.
func TestHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := takeOff(t)
		a.stage(build.StageDownload)
		a.stage(build.StageImage) // at once: the newest word wins
		for range 100 {
			time.Sleep(3 * time.Second)
			synctest.Wait()
			rec := a.stored(t)
			if left := time.Until(rec.LeaseUntil); left < build.Lease/2 || rec.Stage != build.StageImage || rec.Attempt != a.attempt {
				t.Fatalf("the lease ends in %s, the stage is %q", left, rec.Stage)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.queue.Receive(ctx); err == nil {
			t.Error("the message has become available")
		}
		a.stop()
	})
}

// TestMessageOutlastsLease: whoever receives the message of a worker that is
// lost may claim the build. If he came too early, the message would be hidden
// once more.
func TestMessageOutlastsLease(t *testing.T) {
	for _, lived := range []time.Duration{0, time.Second, build.Heartbeat, 3*build.Heartbeat + time.Second, 10 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			a := takeOff(t)
			time.Sleep(lived)
			synctest.Wait()
			a.stop() // as if it was killed: nobody gives anything back
			begin := time.Now()
			if _, err := a.queue.Receive(t.Context()); err != nil {
				t.Fatal(err)
			}
			rec, waited := a.stored(t), time.Since(begin)
			if !rec.Claimable(build.Now()) || waited > build.Visibility {
				t.Errorf("of a worker that was lost after %s the message comes after %s, and the lease has %s to go", lived, waited, time.Until(rec.LeaseUntil))
			}
		})
	}
}

// deafQueue never answers Extend.
type deafQueue struct {
	build.Queue
	asked chan bool
}

func (q deafQueue) Extend(ctx context.Context, _ build.Message, _ time.Duration) error {
	q.asked <- true
	<-ctx.Done()
	return ctx.Err()
}

// TestHeartbeatLetsGo: a queue that does not answer does not keep a job that
// ends from giving its build back.
func TestHeartbeatLetsGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		queue := deafQueue{asked: make(chan bool, 1)}
		a := takeOffWith(t, func(c *Config) { queue.Queue = c.Queue; c.Queue = queue })
		<-queue.asked
		begin := time.Now()
		if a.stop(); time.Since(begin) > 0 {
			t.Errorf("the heartbeat held the job up for %v", time.Since(begin))
		}
	})
}

// TestHeartbeatFails: faults of the records are endured until the lease is
// over, then the job ends; and it ends at once if the build is another's.
func TestHeartbeatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := takeOff(t)
		const broken = 1000
		for n := range broken {
			a.faults.On(buildtest.OpReplace, a.faults.Calls(buildtest.OpReplace)+1+n, buildtest.FailsBefore)
		}
		begin := time.Now()
		<-a.job.Done()
		if lasted := time.Since(begin); lasted < build.Lease || lasted > build.Lease+build.Heartbeat || !errors.Is(context.Cause(a.job), build.ErrConflict) {
			t.Errorf("the job lasted %s and ended by %v", lasted, context.Cause(a.job))
		}
		a.stop()

		a = takeOff(t)
		rec := a.stored(t)
		if err := a.records.Replace(t.Context(), rec, rec.Claim("thief", build.NewAttempt(), build.Now())); err != nil {
			t.Fatal(err)
		}
		begin = time.Now()
		<-a.job.Done()
		if lasted := time.Since(begin); lasted > build.Heartbeat || !errors.Is(context.Cause(a.job), build.ErrConflict) {
			t.Errorf("taken over, the job lasted %s and ended by %v", lasted, context.Cause(a.job))
		}
		a.stop()
	})
}

// TestForeignMessage: a build that another version of sysup keeps is that
// version's, in whatever state, and so is its message.
func TestForeignMessage(t *testing.T) {
	for _, state := range []build.State{build.Queued, build.Building, build.Done, build.Failed, "paused"} {
		records, queue := buildtest.NewRecords(t), buildtest.NewQueue(t, build.Visibility)
		rec := buildtest.NewRecord()
		foreign := rec
		foreign.Schema, foreign.State = build.Schema+1, state
		err := errors.Join(records.Create(t.Context(), rec), records.Replace(t.Context(), rec, foreign), queue.Send(t.Context(), rec.ID, build.ClassBulk, ""))
		if err != nil {
			t.Fatal(err)
		}
		m, err := queue.Receive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		writes := records.Writes()
		err = New("worker", Config{Records: records, Queue: queue, Log: slog.New(slog.DiscardHandler)}).handle(t.Context(), m)
		if err != nil || records.Writes() != writes || queue.Len() != 1 {
			t.Errorf("of a build that is %q, %d writes were made and %d messages are left (%v)", state, records.Writes()-writes, queue.Len(), err)
		}
	}
}
