package buildtest

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// ErrInjected is what a write returns that was made to fail.
var ErrInjected = errors.New("buildtest: injected fault")

// Fault is what becomes of a write.
type Fault int

// A write can fail in two ways, and the caller cannot tell which it was.
const (
	Works       Fault = iota
	FailsBefore       // nothing happens
	FailsAfter        // it reports a failure, but everything happened
	Hangs             // nothing happens until its context ends
)

// Faults decides what becomes of each write that passes through the wrappers
// made with it. The zero value lets all of them work.
type Faults struct {
	mu    sync.Mutex
	calls map[string]int
	rules map[string]map[int]Fault
}

// The names of the writes, and of the reads, which fail in one way.
const (
	OpGet       = "Records.Get"
	OpReadBoard = "Records.Board, reading"
	OpCreate    = "Records.Create"
	OpReplace   = "Records.Replace"
	OpForget    = "Records.Delete"
	OpBoard     = "Records.Board"
	OpSend      = "Queue.Send"
	OpReceive   = "Queue.Receive"
	OpExtend    = "Queue.Extend"
	OpDone      = "Queue.Delete"
	OpPut       = "Objects.Put"
	OpDeleteKey = "Objects.Delete"
)

// On makes the nth call (from 1) of the named write fail.
func (f *Faults) On(op string, n int, fault Fault) *Faults {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rules == nil {
		f.rules = map[string]map[int]Fault{}
	}
	if f.rules[op] == nil {
		f.rules[op] = map[int]Fault{}
	}
	f.rules[op][n] = fault
	return f
}

// Always makes every call of the named write fail from now on, or work again.
func (f *Faults) Always(op string, fault Fault) *Faults { return f.On(op, 0, fault) }

// Calls is how often the named write was called.
func (f *Faults) Calls(op string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}

func (f *Faults) next(op string) Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.calls == nil {
		f.calls = map[string]int{}
	}
	f.calls[op]++
	if fault, ok := f.rules[op][f.calls[op]]; ok {
		return fault
	}
	return f.rules[op][0]
}

// do runs the write as the fault has it.
func (f *Faults) do(ctx context.Context, op string, write func() error) error {
	switch f.next(op) {
	case Hangs:
		<-ctx.Done()
		return ctx.Err()
	case FailsBefore:
		return ErrInjected
	case FailsAfter:
		_ = write() // whatever it says, the caller does not hear it
		return ErrInjected
	}
	return write()
}

// Records wraps records.
func (f *Faults) Records(inner build.Records) build.Records { return faultyRecords{inner, f} }

// Queue wraps a queue.
func (f *Faults) Queue(inner build.Queue) build.Queue { return faultyQueue{inner, f} }

// Objects wraps objects.
func (f *Faults) Objects(inner build.Objects) build.Objects { return faultyObjects{inner, f} }

type faultyRecords struct {
	build.Records
	faults *Faults
}

func (r faultyRecords) Get(ctx context.Context, id build.ID) (rec build.Record, err error) {
	err = r.faults.do(ctx, OpGet, func() error {
		rec, err = r.Records.Get(ctx, id)
		return err
	})
	if err != nil {
		return build.Record{}, err
	}
	return rec, nil
}

func (r faultyRecords) Create(ctx context.Context, rec build.Record) error {
	return r.faults.do(ctx, OpCreate, func() error { return r.Records.Create(ctx, rec) })
}

func (r faultyRecords) Replace(ctx context.Context, old, new build.Record) error {
	return r.faults.do(ctx, OpReplace, func() error { return r.Records.Replace(ctx, old, new) })
}

func (r faultyRecords) Delete(ctx context.Context, old build.Record) error {
	return r.faults.do(ctx, OpForget, func() error { return r.Records.Delete(ctx, old) })
}

func (r faultyRecords) Board(ctx context.Context, name string, change build.Change) (board build.Board, err error) {
	op := OpBoard
	if len(change.Add) == 0 && len(change.Max) == 0 {
		op = OpReadBoard
	}
	err = r.faults.do(ctx, op, func() error {
		board, err = r.Records.Board(ctx, name, change)
		return err
	})
	if err != nil {
		return nil, err
	}
	return board, nil
}

type faultyQueue struct {
	build.Queue
	faults *Faults
}

func (q faultyQueue) Send(ctx context.Context, id build.ID, class build.Class, group string) error {
	return q.faults.do(ctx, OpSend, func() error { return q.Queue.Send(ctx, id, class, group) })
}

// Receive may hide a message although it reports a failure.
func (q faultyQueue) Receive(ctx context.Context) (m build.Message, err error) {
	err = q.faults.do(ctx, OpReceive, func() error {
		m, err = q.Queue.Receive(ctx)
		return err
	})
	if err != nil {
		return build.Message{}, err
	}
	return m, nil
}

func (q faultyQueue) Extend(ctx context.Context, m build.Message, d time.Duration) error {
	return q.faults.do(ctx, OpExtend, func() error { return q.Queue.Extend(ctx, m, d) })
}

func (q faultyQueue) Delete(ctx context.Context, m build.Message) error {
	return q.faults.do(ctx, OpDone, func() error { return q.Queue.Delete(ctx, m) })
}

type faultyObjects struct {
	build.Objects
	faults *Faults
}

func (o faultyObjects) Put(ctx context.Context, key string, r io.Reader, policy build.Policy) error {
	return o.faults.do(ctx, OpPut, func() error { return o.Objects.Put(ctx, key, r, policy) })
}

func (o faultyObjects) Delete(ctx context.Context, key string) error {
	return o.faults.do(ctx, OpDeleteKey, func() error { return o.Objects.Delete(ctx, key) })
}
