package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"runtime"
	"sync"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// maxGroup bounds how many writes share one commit, and with it how long the
// first of them waits for the last.
const maxGroup = 256

var errClosed = errors.New("the database is closed")

// writer does all writes, one group of them per transaction.
type writer struct {
	db   *sql.DB
	ops  chan *op // unbuffered: who was not taken yet learns of stop himself
	stop chan struct{}
	done chan struct{}
	once sync.Once

	secrets bool // the log holds a script that its record has given up
}

// op is one caller's write. do may run twice (see commit), and an error of it
// that is a verdict (see there) means that it wrote nothing.
type op struct {
	do     func(*sql.Tx) error
	scrub  bool // what it replaced is to be in no file any more
	err    error
	result chan error
}

func startWriter(db *sql.DB) *writer {
	w := &writer{db: db, ops: make(chan *op), stop: make(chan struct{}), done: make(chan struct{})}
	go w.run()
	return w
}

// write runs do in a transaction and returns when it is durable. Once do was
// taken up, the end of ctx is ignored, so that the result is always known.
func (w *writer) write(ctx context.Context, do func(*sql.Tx) error) error {
	return w.queue(ctx, &op{do: do, result: make(chan error, 1)})
}

// scrub is write for what takes a secret out of the database: it returns when
// the write-ahead log has forgotten it too.
func (w *writer) scrub(ctx context.Context, do func(*sql.Tx) error) error {
	return w.queue(ctx, &op{do: do, scrub: true, result: make(chan error, 1)})
}

func (w *writer) queue(ctx context.Context, o *op) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case w.ops <- o:
		return <-o.result
	case <-ctx.Done():
		return ctx.Err()
	case <-w.stop:
		return errClosed
	}
}

// close lets the current group end and refuses all others.
func (w *writer) close() {
	w.once.Do(func() { close(w.stop) })
	<-w.done
}

func (w *writer) run() {
	defer close(w.done)
	var group []*op
	for {
		select {
		case o := <-w.ops:
			group = w.gather(append(group[:0], o))
			w.commit(group)
		case <-w.stop:
			return
		}
	}
}

// gather adds whoever waits already. It lets those go first who are about to:
// the group before has just freed many.
func (w *writer) gather(group []*op) []*op {
	runtime.Gosched()
	for len(group) < maxGroup {
		select {
		case o := <-w.ops:
			group = append(group, o)
		default:
			return group
		}
	}
	return group
}

// commit writes the group in one transaction. If one of them breaks it, each
// is tried alone, so that only the one at fault hears of it.
func (w *writer) commit(group []*op) {
	tx, err := w.db.Begin()
	if err == nil {
		err = apply(tx, group)
		if err != nil && len(group) > 1 {
			for _, o := range group {
				w.commit([]*op{o})
			}
			return
		}
	}
	w.forget(group)
	for _, o := range group {
		if err != nil {
			o.err = explain(err)
		}
		o.result <- o.err
	}
}

// forget empties the write-ahead log after a secret was taken out of the
// database. If a reader holds it, the next commit tries again.
func (w *writer) forget(group []*op) {
	for _, o := range group {
		w.secrets = w.secrets || o.scrub
	}
	if !w.secrets {
		return
	}
	var busy, pages, moved int
	err := w.db.QueryRow(`pragma wal_checkpoint(truncate)`).Scan(&busy, &pages, &moved)
	w.secrets = err != nil || busy != 0
}

// apply returns an error if nothing of the group was written.
func apply(tx *sql.Tx, group []*op) error {
	defer tx.Rollback() // does nothing after Commit
	for _, o := range group {
		if o.err = o.do(tx); o.err != nil && !verdict(o.err) {
			return o.err
		}
	}
	return tx.Commit()
}

// verdict tells an answer of the database from a failure of it.
func verdict(err error) bool {
	return errors.Is(err, build.ErrExists) || errors.Is(err, build.ErrConflict)
}
