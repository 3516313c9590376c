package build

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Service accepts requests and answers what became of them. It is the half of
// the pipeline that faces clients; the builder is the other.
type Service struct {
	Records Records
	Queue   Queue
	// Secret keys the hashes of private requests.
	Secret []byte
	// Limits are the rules of admission.
	Limits Limits
	// Fleet starts builders, nil where they run all the time.
	Fleet *Fleet
	// Fault is told of what went wrong without failing a request; nil for
	// nobody.
	Fault func(error)
	// Hook is for crash tests.
	Hook Hook

	board  boardCache
	starts starts
	spent  hourSet // clients that have reached their limit
	asked  hourSet // private builds that clients were charged for asking after
}

func (s *Service) fault(err error) {
	if err != nil && s.Fault != nil {
		s.Fault(err)
	}
}

// Submission is a resolved request and who sent it.
type Submission struct {
	Plan    Plan
	Request Request // for the echo
	Class   Class   // ClassInteractive if empty
	Client  string  // its address, "" if unknown; kept and sent only as an HMAC
}

// Status is a record and, while it is queued, its advisory place in the queue
// (1 = next).
type Status struct {
	Record   Record
	Position int64
}

// Submit returns the build of the plan, which it starts unless there is one
// that is queued, building or done and not expired. A build that failed for a
// transient reason is started anew. The error is a Refusal if the service
// takes no more builds.
//
// A process may die between any two steps: a record that was never sent is
// due a minute later, and the sweeper sends it.
func (s *Service) Submit(ctx context.Context, sub Submission) (Status, error) {
	id := sub.Plan.ID(s.Secret)
	a := s.admission(id, &sub)
	if err := a.ask(ctx); err != nil {
		return Status{}, err
	}
	rec, err := s.Records.Get(ctx, id)
	switch {
	case err == nil && !rec.Retriable():
		return s.status(ctx, rec)
	case err != nil && !errors.Is(err, ErrNotFound):
		return Status{}, PutOff(fmt.Errorf("look up %s: %w", id.Short(), err))
	}
	return s.start(ctx, a, rec, sub)
}

// SubmitTime is the longest that Submit goes on after its context ended: what
// it has begun, it brings to an end.
const SubmitTime = startTime + leaveTime + boardTime

const (
	startTime = 6 * time.Second // bounds what start takes once its client no longer does
	sendTime  = 3 * time.Second // and what a client waits for the queue
	wakeTime  = 3 * time.Second // and for a builder to be started
)

// start takes a place, creates or renews the record and sends its ID. old is
// the failed record to renew, or the zero Record. A client that hangs up does
// not stop it half way: its count would stay on the board.
func (s *Service) start(ctx context.Context, a *admission, old Record, sub Submission) (Status, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTime)
	defer cancel()
	over, end := s.starts.begin(a.id)
	defer end()
	if err := a.enter(ctx); err != nil {
		a.leave(ctx)
		end()
		select {
		case <-over:
		case <-ctx.Done():
		}
		return s.joinOr(ctx, a.id, err)
	}
	rec := NewRecord(a.id, sub.Plan, sub.Request, a.sequence, Now())
	if old.Rev > 0 {
		rec = old.Again(sub.Plan, a.sequence, Now())
	}
	rec.Uncounted = a.board == nil
	err := s.Hook.Do(StepCreate, func() error {
		if old.Rev > 0 {
			return s.Records.Replace(ctx, old, rec)
		}
		return s.Records.Create(ctx, rec)
	})
	if err != nil {
		err = s.settle(ctx, a, rec, err)
	}
	if errors.Is(err, ErrExists) || errors.Is(err, ErrConflict) {
		return s.joinOr(ctx, a.id, err)
	}
	if err != nil {
		return Status{}, err
	}
	s.send(ctx, rec, sub)
	s.wake(ctx, a.board)
	return s.status(ctx, rec)
}

// starts are the builds that this process is starting. Of equal requests at
// once, one may take the last place: the others, refused for want of one, wait
// until all are through and join it.
type starts struct {
	mu    sync.Mutex
	under map[ID]*starting
}

type starting struct {
	n    int // requests
	over chan struct{}
}

// begin counts a request among those that start the build. The channel closes
// when the last of them has ended, which each does once.
func (s *starts) begin(id ID) (over <-chan struct{}, end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.under == nil {
		s.under = map[ID]*starting{}
	}
	all := s.under[id]
	if all == nil {
		all = &starting{over: make(chan struct{})}
		s.under[id] = all
	}
	all.n++
	return all.over, sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if all.n--; all.n == 0 {
			delete(s.under, id)
			close(all.over)
		}
	})
}

// settle finds out what became of a write that reported a failure. It returns
// nil if the record was stored, and gives its place back if it was not. While
// nobody knows, the place stays taken.
func (s *Service) settle(ctx context.Context, a *admission, rec Record, err error) error {
	if !errors.Is(err, ErrExists) && !errors.Is(err, ErrConflict) {
		stored, readErr := s.Records.Get(ctx, rec.ID)
		switch {
		case readErr == nil && sameRun(stored, rec):
			return nil
		case readErr != nil && !errors.Is(readErr, ErrNotFound):
			return PutOff(fmt.Errorf("store %s: %w", rec.ID.Short(), err))
		}
		err = PutOff(fmt.Errorf("store %s: %w", rec.ID.Short(), err))
	}
	a.leave(ctx)
	return err
}

// sameRun tells whether the stored record came from this one. Sequence numbers
// that the board gave out are unique; if two that it did not are equal, and the
// time too, then only one message more is sent.
func sameRun(stored, rec Record) bool {
	return stored.Sequence == rec.Sequence && stored.Uncounted == rec.Uncounted && stored.CreatedAt.Equal(rec.CreatedAt)
}

// joinOr answers with the build that somebody else created in the meantime: to
// join it takes no place. Else it returns the error.
func (s *Service) joinOr(ctx context.Context, id ID, err error) (Status, error) {
	refused := !errors.Is(err, ErrExists) && !errors.Is(err, ErrConflict)
	rec, readErr := s.Records.Get(ctx, id)
	if readErr != nil || refused && rec.Retriable() {
		return Status{}, err
	}
	return s.status(ctx, rec)
}

// wake sees to it that a builder comes. The build is safe without: the
// housekeeper looks for those that wait.
func (s *Service) wake(ctx context.Context, board Board) {
	if s.Fleet == nil || board == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, wakeTime)
	defer cancel()
	s.fault(s.Fleet.Wake(ctx, board))
}

// send hands the build to the queue. Without, it is as safe: its record is due
// in a minute, and a poll or the sweeper sends it again.
func (s *Service) send(ctx context.Context, rec Record, sub Submission) {
	ctx, cancel := context.WithTimeout(ctx, sendTime)
	defer cancel()
	class := sub.Class
	if class == "" {
		class = ClassInteractive
	}
	err := s.Hook.Do(StepSend, func() error { return s.Queue.Send(ctx, rec.ID, class, s.client(sub.Client)) })
	if err != nil {
		s.fault(fmt.Errorf("send %s: %w", rec.ID.Short(), err))
	}
}

// Status returns the build with that ID, or a Refusal with CodeNotFound. A
// poll that finds a build overdue sends it again, so that nothing is stuck
// while somebody asks.
func (s *Service) Status(ctx context.Context, id ID) (Status, error) {
	rec, err := s.Records.Get(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return Status{}, &Refusal{Code: CodeNotFound, Detail: "There is no such build, or its files are gone. Send the request again."}
	}
	if err != nil {
		return Status{}, PutOff(fmt.Errorf("look up %s: %w", id.Short(), err))
	}
	if rec.Schema == Schema && !rec.Ended() && !Now().Before(rec.DueAt) {
		rec, err = resend(ctx, s.Records, s.Queue, rec)
		s.fault(err) // the next poll, or the sweeper, tries again
	}
	return s.status(ctx, rec)
}

// resend pushes the record's due time by compare-and-swap and, if this
// process won, sends the ID again. It returns the record as stored.
func resend(ctx context.Context, records Records, queue Queue, rec Record) (Record, error) {
	pushed := rec.Push(Now())
	err := records.Replace(ctx, rec, pushed)
	if errors.Is(err, ErrConflict) {
		return rec, nil // somebody else saw it too
	}
	if err != nil {
		return rec, fmt.Errorf("put off %s: %w", rec.ID.Short(), err)
	}
	pushed.Rev = rec.Rev + 1
	if err := queue.Send(ctx, rec.ID, ClassInteractive, ""); err != nil {
		return pushed, fmt.Errorf("send %s again: %w", rec.ID.Short(), err)
	}
	return pushed, nil
}

// status adds the place in the queue, as far as the board can be read: a poll
// does not depend on it.
func (s *Service) status(ctx context.Context, rec Record) (Status, error) {
	if err := rec.Legible(); err != nil {
		return Status{}, err
	}
	if rec.State != Queued {
		return Status{Record: rec}, nil
	}
	board, _ := s.board.get(ctx, s.Records, s.fault)
	if board == nil {
		return Status{Record: rec, Position: 1}, nil
	}
	return Status{Record: rec, Position: max(1, rec.Sequence-board[BoardClaimed])}, nil
}

// Pending is how many builds are queued or building, at most a second old.
func (s *Service) Pending(ctx context.Context) (int64, error) {
	board, err := s.board.get(ctx, s.Records, s.fault)
	return board.Pending(), err
}

// boardCache keeps the global board for a second, so that a thousand polls of
// waiting clients cost one read.
type boardCache struct {
	mu    sync.Mutex
	board Board     // the last one seen, nil for none
	seen  time.Time // when that was
	err   error     // of the last look
	until time.Time // nobody looks again before
}

const boardAge = time.Second

func (c *boardCache) put(b Board) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.board, c.err, c.seen = b, nil, time.Now()
	c.until = c.seen.Add(boardAge)
}

// fail has nobody look for a second: if it is throttled, that makes it no
// better.
func (c *boardCache) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err, c.until = err, time.Now().Add(boardAge)
}

// last is the last board seen, however old, nil for none.
func (c *boardCache) last() Board {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.board
}

// fresh is the board if it was seen within the last second, else nil.
func (c *boardCache) fresh() Board {
	c.mu.Lock()
	defer c.mu.Unlock()
	if Since(c.seen) >= boardAge {
		return nil
	}
	return c.board
}

// get returns the last board seen, after a look at it if nobody looked within
// the last second. The error is that of the last look.
func (c *boardCache) get(ctx context.Context, records Records, fault func(error)) (Board, error) {
	c.mu.Lock()
	last := c.board
	if Since(c.until) < 0 {
		defer c.mu.Unlock()
		return last, c.err
	}
	c.until = time.Now().Add(boardAge) // meanwhile the others go by what was seen last
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), boardTime)
	defer cancel()
	board, err := records.Board(ctx, "", Change{})
	if err != nil {
		fault(fmt.Errorf("read the board: %w", err))
		c.fail(err)
		return last, err
	}
	c.put(board)
	return board, nil
}
