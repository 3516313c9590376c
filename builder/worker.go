// Package builder is the half of the pipeline that makes images: a worker
// claims a build, runs the ImageBuilder, signs what it left, publishes it under
// its attempt's own prefix and commits by one write to the record.
package builder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/attended-sysupgrade/sysup/builder/imagebuilder"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// Config is what a Worker works with. Upstream, ServerKeys, Presence, Ended,
// Defect, Plain, Repeat, Differs and Hook may be missing.
type Config struct {
	Records    build.Records
	Queue      build.Queue
	Objects    build.Objects
	Catalog    *catalog.Catalog
	Trees      *imagebuilder.Store
	Keys       *Keys
	ServerKeys []usign.PublicKey // to recognise an earlier attempt as complete; nil = what Objects has in keys/
	Scratch    string            // folder that is there, for the folders of jobs
	Sandbox    imagebuilder.Confinement
	TimeLimit  time.Duration // of one job's make
	Upstream   string        // where packages come from; "" = where the ImageBuilders say
	Lifetimes  build.Lifetimes
	Presence   *Presence          // nil where workers never leave
	Ended      func(build.Record) // told of each build that a worker brought to its end; nil for nobody
	Defect     func()             // told of each build that ended otherwise than the catalogue was sure it would; nil for nobody
	Plain      bool               // nothing but make image
	Repeat     int                // one in so many builds on the fast path is repeated on the plain one; 0 = 100
	Differs    func()             // told of each ImageBuilder with which that gave something else; nil for nobody
	Log        *slog.Logger
	Hook       build.Hook
}

// Worker handles one build at a time.
type Worker struct {
	Config
	name string
	next *repetition // to be made before the next build
}

// New returns a worker with the name under which its leases stand.
func New(name string, config Config) *Worker {
	return &Worker{Config: config, name: name}
}

const (
	faultPause = 2 * time.Second // after a fault of queue or records
	wrapUp     = 20 * time.Second
	letGo      = 3 * time.Second // for each write that follows the order to stop
)

// Run receives and builds until ctx ends. A build that is under way then is
// given back to the queue without counting as an attempt.
func (w *Worker) Run(ctx context.Context) error {
	for {
		m, err := w.receive(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			err = w.handle(ctx, m)
		}
		if err != nil {
			w.Log.Error("a build could not be handled", "worker", w.name, "error", nameless(err, m.ID))
			pause(ctx, faultPause)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// nameless is the error for a log: an ID opens the build's files, so none is
// written there.
func nameless(err error, id build.ID) string {
	if id == "" {
		return err.Error()
	}
	return strings.ReplaceAll(err.Error(), string(id), id.Short())
}

func (w *Worker) receive(ctx context.Context) (m build.Message, err error) {
	err = w.Hook.Do(build.StepReceive, func() error {
		m, err = w.Queue.Receive(ctx)
		return err
	})
	return m, err
}

// handle decides by the record what the message is worth: it proves nothing
// itself.
func (w *Worker) handle(ctx context.Context, m build.Message) error {
	defer w.Presence.handle()()
	rec, err := w.Records.Get(ctx, m.ID)
	now := build.Now()
	switch {
	case errors.Is(err, build.ErrNotFound), err == nil && rec.Ended() && rec.Schema == build.Schema:
		return w.Queue.Delete(ctx, m)
	case err != nil:
		return fmt.Errorf("look up %s: %w", m.ID.Short(), err)
	case !rec.Claimable(now):
		return nil // somebody else is at it, or a newer sysup has to be; if he is lost, the message comes back
	}
	flight, err := w.claim(ctx, rec, now)
	if errors.Is(err, build.ErrConflict) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("claim %s: %w", m.ID.Short(), err)
	}
	err = w.fly(ctx, flight, m, rec)
	w.repeat(ctx)
	return err
}

func (w *Worker) claim(ctx context.Context, rec build.Record, now time.Time) (*flight, error) {
	f := &flight{records: w.Records, rec: rec, stages: make(chan build.Stage, 1)}
	attempt := build.NewAttempt()
	err := w.Hook.Do(build.StepClaim, func() error {
		return f.replace(ctx, func(r build.Record) build.Record { return r.Claim(w.name, attempt, now) })
	})
	if err != nil {
		return nil, err
	}
	f.attempt = attempt
	_, err = w.Records.Board(ctx, "", build.Change{Max: build.Board{build.BoardClaimed: rec.Sequence}})
	if err != nil {
		w.Log.Warn("the board was not told of a claim", "error", err) // the queue position is advisory
	}
	return f, nil
}

// fly carries a claimed build to its end. before is the record as it was
// found.
func (w *Worker) fly(ctx context.Context, f *flight, m build.Message, before build.Record) error {
	job, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer w.Presence.built()
	beat := w.keepAlive(job, cancel, f, m)
	result, err := w.result(job, f, before)
	if err != nil && errors.Is(context.Cause(job), build.ErrConflict) {
		err = build.ErrConflict
	}
	cancel(errEnded)
	<-beat
	stopping := ctx.Err() != nil
	// What follows must happen even if the process was told to stop.
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), wrapUp)
	defer done()
	switch {
	case errors.Is(err, build.ErrConflict):
	case err == nil:
		err = w.commit(ctx, f, m, func(r build.Record) build.Record {
			return r.Finish(result, w.Lifetimes, build.Now())
		})
	case stopping:
		err = w.giveBack(ctx, f, m)
	default:
		err = w.failed(ctx, f, m, err)
	}
	if errors.Is(err, build.ErrConflict) {
		w.Log.Warn("a build was taken over by another worker", "build", m.ID.Short(), "worker", w.name)
		return nil
	}
	return err
}

var errEnded = errors.New("the job ended")

// result returns what an earlier attempt left complete, or builds.
func (w *Worker) result(ctx context.Context, f *flight, before build.Record) (*build.Result, error) {
	if before.Attempt != "" {
		if result, ok := w.complete(ctx, before); ok {
			w.Log.Info("an earlier attempt was complete", "build", before.ID.Short())
			return result, w.index(ctx, f.record(), result)
		}
	}
	if before.Spent() {
		return nil, before.Lost()
	}
	return w.build(ctx, f)
}

// keepAlive renews the lease and the message until ctx ends, and ends the job
// if the lease is lost. The channel it returns is closed when it has stopped.
func (w *Worker) keepAlive(ctx context.Context, lost context.CancelCauseFunc, f *flight, m build.Message) <-chan struct{} {
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(build.Heartbeat)
		defer tick.Stop()
		stage := build.StageInit
		for {
			select {
			case <-ctx.Done():
				return
			case stage = <-f.stages:
			case <-tick.C:
			}
			if err := w.beat(ctx, f, m, stage); err != nil {
				lost(err)
				return
			}
		}
	}()
	return stopped
}

// beat returns ErrConflict when the build is somebody else's by now. Another
// fault is endured until the lease is over. The end of the job does not cut off
// the write to the record, so that it is known then.
func (w *Worker) beat(job context.Context, f *flight, m build.Message, stage build.Stage) error {
	ctx, done := context.WithTimeout(context.WithoutCancel(job), build.Heartbeat)
	defer done()
	err := f.replace(ctx, func(r build.Record) build.Record { return r.Beat(stage, build.Now()) })
	if errors.Is(err, build.ErrConflict) {
		return err
	}
	if err != nil {
		w.Log.Warn("a lease could not be renewed", "error", nameless(err, m.ID))
		if !f.record().LeaseUntil.After(build.Now()) {
			return build.ErrConflict
		}
		return nil
	}
	stop := context.AfterFunc(job, done) // from here on nothing is lost with the beat
	defer stop()
	if err := w.Queue.Extend(ctx, m, build.Visibility); err != nil && job.Err() == nil {
		w.Log.Warn("a message could not be extended", "error", nameless(err, m.ID))
	}
	return nil
}

// commit stores the end of the build. From here on it is done, whatever
// happens to the process.
func (w *Worker) commit(ctx context.Context, f *flight, m build.Message, end func(build.Record) build.Record) error {
	err := w.Hook.Do(build.StepCommit, func() error { return f.insist(ctx, end) })
	if err != nil {
		return fmt.Errorf("commit %s: %w", m.ID.Short(), err)
	}
	rec := f.record()
	w.Log.Info("a build ended", "build", m.ID.Short(), "state", rec.State, "seconds", rec.EndedAt.Sub(rec.StartedAt).Seconds())
	if w.Ended != nil {
		w.Ended(rec)
	}
	count := w.Hook.Do(build.StepCount, func() error { return build.CountEnded(ctx, w.Records, rec) })
	acknowledge := w.Hook.Do(build.StepAcknowledge, func() error { return w.Queue.Delete(ctx, m) })
	return errors.Join(count, acknowledge)
}

func (w *Worker) giveBack(ctx context.Context, f *flight, m build.Message) error {
	if err := f.replace(ctx, func(r build.Record) build.Record { return r.GiveBack(build.Now()) }); err != nil {
		return fmt.Errorf("give %s back: %w", m.ID.Short(), err)
	}
	return w.Queue.Extend(ctx, m, 0)
}

// failed ends the build, or returns it to the queue if another attempt may
// help.
func (w *Worker) failed(ctx context.Context, f *flight, m build.Message, err error) error {
	var failure *build.Failure
	if !errors.As(err, &failure) {
		w.Log.Error("a build broke", "build", m.ID.Short(), "error", nameless(err, m.ID))
		failure = build.Fail(build.KindWorker, "The builder had a fault of its own. Send the request again, or tell the operator of this server.")
	}
	rec := f.record()
	if !failure.Kind.Transient() || rec.Spent() {
		return w.commit(ctx, f, m, func(r build.Record) build.Record {
			return r.FailWith(failure, w.Lifetimes, build.Now())
		})
	}
	wait := rec.RetryPause()
	w.Log.Warn("a build is tried again", "build", m.ID.Short(), "attempt", rec.Attempts, "reason", failure.Detail)
	err = f.replace(ctx, func(r build.Record) build.Record { return r.Retry(failure, wait, build.Now()) })
	if err != nil {
		return fmt.Errorf("put %s back: %w", m.ID.Short(), err)
	}
	return w.Queue.Extend(ctx, m, wait)
}
