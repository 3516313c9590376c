package sqlite

import (
	"context"
	"database/sql"
	"errors"
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
}

// op is one caller's write. do may run twice: see commit. An error of do that
// is a verdict (see verdict) means that it wrote nothing.
type op struct {
	do     func(*sql.Tx) error
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
	if err := ctx.Err(); err != nil {
		return err
	}
	o := &op{do: do, result: make(chan error, 1)}
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

// gather adds whoever waits already.
func (w *writer) gather(group []*op) []*op {
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
	for _, o := range group {
		if err != nil {
			o.err = explain(err)
		}
		o.result <- o.err
	}
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
