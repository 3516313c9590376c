package builder

import (
	"context"
	"sync"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// flight is a claimed build: the record as this worker last stored it. The
// heartbeat and the job write to it in turn.
type flight struct {
	records build.Records
	stages  chan build.Stage

	mu  sync.Mutex
	rec build.Record
}

func (f *flight) record() build.Record {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rec
}

// stage tells the heartbeat what the job is doing; the newest word wins, and
// the job never waits for the record.
func (f *flight) stage(s build.Stage) {
	for {
		select {
		case f.stages <- s:
			return
		case <-f.stages:
		}
	}
}

// replace stores the changed record. A write that reported a fault may have
// happened all the same: the stored record tells.
func (f *flight) replace(ctx context.Context, change func(build.Record) build.Record) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := change(f.rec)
	err := f.records.Replace(ctx, f.rec, next)
	next.Rev = f.rec.Rev + 1
	if err != nil && !f.stored(context.WithoutCancel(ctx), next) {
		return err
	}
	f.rec = next
	return nil
}

// stored tells whether the write that reported a fault was made. The due time
// tells it from a sweeper's push.
func (f *flight) stored(ctx context.Context, next build.Record) bool {
	now, err := f.records.Get(ctx, next.ID)
	return err == nil && now.Rev == next.Rev && now.Attempt == next.Attempt && now.State == next.State && now.DueAt.Equal(next.DueAt)
}
