package sqlite

import (
	"context"
	"database/sql"
	"math"
	"time"

	"maragu.dev/goqite"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// pollInterval is how late a message may be found that another process sent
// or that was hidden when this one started.
const pollInterval = time.Second

// Queue is a queue of goqite. What this process sends or makes visible wakes
// its receivers at once.
type Queue struct {
	db         *DB
	queue      *goqite.Queue
	visibility time.Duration
	wake       chan struct{}
}

var _ build.Queue = (*Queue)(nil)

func newQueue(db *DB, name string, visibility time.Duration) *Queue {
	return &Queue{
		db: db,
		// goqite keeps but never again delivers a message that was received
		// MaxReceive times.
		queue:      goqite.New(goqite.NewOpts{DB: db.write, Name: name, Timeout: visibility, MaxReceive: math.MaxInt}),
		visibility: visibility,
		wake:       make(chan struct{}, 1),
	}
}

// signal wakes one receiver. A token that nobody took yet is enough: a
// receiver that finds a message signals the next.
func (q *Queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *Queue) signalAfter(d time.Duration) {
	if d == 0 {
		q.signal()
		return
	}
	time.AfterFunc(d, q.signal)
}

// Send implements build.Queue. It does not keep the group: nothing reads it.
func (q *Queue) Send(ctx context.Context, id build.ID, class build.Class, _ string) error {
	m := goqite.Message{Body: []byte(id)}
	if class == build.ClassInteractive {
		m.Priority = 1
	}
	err := q.db.writer.write(ctx, func(tx *sql.Tx) error { return q.queue.SendTx(context.Background(), tx, m) })
	if err == nil {
		q.signal()
	}
	return err
}

// Receive implements build.Queue.
func (q *Queue) Receive(ctx context.Context) (build.Message, error) {
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	for {
		m, err := q.take(ctx)
		if err != nil || m.Receipt != "" {
			return m, err
		}
		select {
		case <-q.wake:
		case <-poll.C:
		case <-ctx.Done():
			return build.Message{}, ctx.Err()
		case <-q.db.writer.stop:
			return build.Message{}, errClosed
		}
	}
}

// take receives a message, or the zero Message if none is there.
func (q *Queue) take(ctx context.Context) (build.Message, error) {
	var m *goqite.Message
	err := q.db.writer.write(ctx, func(tx *sql.Tx) (err error) {
		m, err = q.queue.ReceiveTx(context.Background(), tx)
		return err
	})
	if err != nil || m == nil {
		return build.Message{}, err
	}
	q.signal()
	q.signalAfter(q.visibility)
	return build.Message{ID: build.ID(m.Body), Receipt: string(m.ID)}, nil
}

// Extend implements build.Queue.
func (q *Queue) Extend(ctx context.Context, m build.Message, d time.Duration) error {
	err := q.db.writer.write(ctx, func(tx *sql.Tx) error {
		return q.queue.ExtendTx(context.Background(), tx, goqite.ID(m.Receipt), max(0, d))
	})
	if err == nil {
		q.signalAfter(max(0, d))
	}
	return err
}

// Delete implements build.Queue.
func (q *Queue) Delete(ctx context.Context, m build.Message) error {
	return q.db.writer.write(ctx, func(tx *sql.Tx) error {
		return q.queue.DeleteTx(context.Background(), tx, goqite.ID(m.Receipt))
	})
}
