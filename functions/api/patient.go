package main

import (
	"context"
	"errors"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// records words what a client is told while the table does not answer: to come
// back. Most clients take any other status for the end.
type records struct {
	build.Records
	fault func(error)
}

func (r records) Get(ctx context.Context, id build.ID) (build.Record, error) {
	rec, err := r.Records.Get(ctx, id)
	return rec, r.putOff(err)
}

func (r records) Create(ctx context.Context, rec build.Record) error {
	return r.putOff(r.Records.Create(ctx, rec))
}

func (r records) Replace(ctx context.Context, old, new build.Record) error {
	return r.putOff(r.Records.Replace(ctx, old, new))
}

func (r records) putOff(err error) error {
	if err == nil || errors.Is(err, build.ErrNotFound) || errors.Is(err, build.ErrExists) || errors.Is(err, build.ErrConflict) {
		return err
	}
	r.fault(err)
	return putOff(err)
}

// putOff is the error as 503 with Retry-After.
func putOff(err error) error {
	return errors.Join(&build.Refusal{
		Code: build.CodeUnavailable, RetryAfter: 30 * time.Second,
		Detail: "This server does not reach its own storage at the moment. Try again in a minute.",
	}, err)
}

// queue lets a request go on when its message could not be sent: its record is
// stored and due in a minute, so a poll or the housekeeper sends it again.
type queue struct {
	build.Queue
	fault func(error)
}

func (q queue) Send(ctx context.Context, id build.ID, class build.Class, group string) error {
	ctx, cancel := context.WithTimeout(ctx, sendTime)
	defer cancel()
	if err := q.Queue.Send(ctx, id, class, group); err != nil {
		q.fault(err)
	}
	return nil
}

// sendTime bounds what a client waits for the queue.
const sendTime = 3 * time.Second
