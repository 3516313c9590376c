package builder

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// flight is a claimed build: the record as this worker last stored it. The
// heartbeat and the job write to it in turn.
type flight struct {
	records build.Records
	attempt string // ours, "" before the claim
	stages  chan build.Stage

	mu  sync.Mutex
	rec build.Record
}

// readTime bounds the look at a record after a write that reported a fault.
const readTime = 10 * time.Second

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

// replace stores the changed record. ErrConflict means that the build is
// somebody else's by now.
func (f *flight) replace(ctx context.Context, change func(build.Record) build.Record) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		next := change(f.rec)
		err := f.records.Replace(ctx, f.rec, next)
		next.Rev = f.rec.Rev + 1
		if err == nil {
			f.rec = next
			return nil
		}
		stored, readErr := f.read(ctx)
		switch {
		case readErr != nil:
			return err
		case same(stored, next): // the write reported a fault, but happened
			f.rec = next
			return nil
		case !errors.Is(err, build.ErrConflict) || !f.ours(stored) || stored.Rev <= f.rec.Rev:
			return err
		}
		f.rec = stored // only put off by who saw it overdue
	}
}

// insist is replace for a write that is dear: after a fault it tries again.
func (f *flight) insist(ctx context.Context, change func(build.Record) build.Record) error {
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := f.replace(ctx, change)
		if errors.Is(err, build.ErrConflict) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithMaxTries(4))
	return err
}

func (f *flight) read(ctx context.Context) (build.Record, error) {
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), readTime)
	defer done()
	return f.records.Get(ctx, f.rec.ID)
}

// same tells whether the stored record is the one that was to be written. The
// due time tells it from a sweeper's push.
func same(stored, next build.Record) bool {
	return stored.Rev == next.Rev && stored.Attempt == next.Attempt && stored.State == next.State && stored.DueAt.Equal(next.DueAt)
}

func (f *flight) ours(stored build.Record) bool {
	return f.attempt != "" && stored.Attempt == f.attempt && stored.State == build.Building
}

// held returns ErrConflict if the stored record says that the build is
// somebody else's, and ctx's cause if it is over: what comes next would be for
// nothing. If the record cannot be read, the commit decides.
func (f *flight) held(ctx context.Context) error {
	stored, err := f.records.Get(ctx, f.record().ID)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, build.ErrNotFound) || err == nil && !f.ours(stored) {
		return build.ErrConflict
	}
	return nil
}
