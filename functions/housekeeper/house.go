package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/aws"
	"github.com/attended-sysupgrade/sysup/shared/build"
)

// house is what is kept. fleet and alive are nil where builders run all the
// time.
type house struct {
	catalogue interface {
		Refresh(context.Context) error
		Age() (time.Duration, bool)
	}
	// publish stores what the CDN serves of the catalogue.
	publish func(context.Context) error
	// publishKey does the same with the server's public key.
	publishKey func(context.Context) error
	sweeper    *build.Sweeper
	records    build.Records
	count      func(context.Context) (int64, error) // of the builds that wait or run, by their index
	fleet      *build.Fleet
	alive      func(context.Context) (int, error)
	log        *slog.Logger
	out        io.Writer // of the metrics
}

const (
	wholeTime = 280 * time.Second // of a run, below the function's own limit
	sweepTime = 200 * time.Second // of its sweep, so that builders are started after a slow one
	spareTime = 5 * time.Second   // before the function's limit, where that is shorter
)

// run does everything once. Each part runs though another one fails; the error
// has all of them.
func (h *house) run(ctx context.Context) error {
	limit := wholeTime
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(deadline)-spareTime)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	values := map[string]float64{}
	var errs [4]error
	var beside sync.WaitGroup
	beside.Go(func() {
		errs[0] = errors.Join(part(ctx, "refresh the catalogue", h.catalogue.Refresh), part(ctx, "publish the catalogue", h.publish))
	})
	beside.Go(func() { errs[3] = part(ctx, "publish the server's key", h.publishKey) })
	errs[1] = part(ctx, "sweep", func(ctx context.Context) error { return h.sweep(ctx, values) })
	errs[2] = part(ctx, "start builders", func(ctx context.Context) error { return h.scale(ctx, values) })
	beside.Wait()
	if age, known := h.catalogue.Age(); known {
		values[aws.MetricCatalogueAge] = age.Minutes()
	}
	err := errors.Join(append(errs[:], aws.Metrics(h.out, values))...)
	if err != nil {
		h.log.Error("the housekeeper met faults", "error", err)
	}
	return err
}

// part turns a panic into an error: the other parts go on.
func part(ctx context.Context, what string, f func(context.Context) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: panic: %v", what, p)
		}
	}()
	if err := f(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func (h *house) sweep(ctx context.Context, values map[string]float64) error {
	ctx, cancel := context.WithTimeout(ctx, sweepTime)
	defer cancel()
	done, err := h.sweeper.Sweep(ctx)
	h.log.Info("swept", "done", done)
	values[aws.MetricDeadLetters] = float64(done.DeadLetters)
	return err
}

// scale starts builders for the builds that wait.
func (h *house) scale(ctx context.Context, values map[string]float64) error {
	pending, err := h.pending(ctx)
	if pending < 0 {
		return err
	}
	values[aws.MetricPending] = float64(pending)
	if h.fleet == nil {
		return err
	}
	alive, e := h.alive(ctx)
	if e != nil {
		return errors.Join(err, e)
	}
	values[aws.MetricAlive] = float64(alive)
	started, e := h.fleet.Scale(ctx, pending, alive)
	if started > 0 {
		h.log.Info("builders start", "number", started, "pending", pending, "alive", alive)
	}
	return errors.Join(err, e)
}

// pending asks both who know, since the board may have missed a build and the
// index may be late: none of them may leave a build without a builder. It is
// negative if neither answers.
func (h *house) pending(ctx context.Context) (int64, error) {
	board, err := h.records.Board(ctx, "", build.Change{})
	pending := board.Pending()
	if err != nil {
		pending = -1
	}
	counted, e := h.count(ctx)
	if e != nil {
		return pending, errors.Join(err, e)
	}
	return max(pending, counted), err
}
