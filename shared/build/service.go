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
	// Hook is for crash tests.
	Hook Hook

	board boardCache
}

// Limits of admission; 0 is no limit. Joining a build that exists is free.
type Limits struct {
	Pending   int64 // builds that may be queued or building
	PerDay    int64 // builds that may be created on one day (UTC)
	PerClient int64 // builds that one client may create in one hour
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
	rec, err := s.Records.Get(ctx, id)
	switch {
	case err == nil && !rec.Retriable():
		return s.status(ctx, rec)
	case err != nil && !errors.Is(err, ErrNotFound):
		return Status{}, fmt.Errorf("look up %s: %w", id.Short(), err)
	}
	return s.start(ctx, id, rec, sub)
}

// startTime bounds what start takes once its client no longer does.
const startTime = 10 * time.Second

// start draws a sequence number, creates or renews the record and sends its
// ID. old is the failed record to renew, or the zero Record. A client that
// hangs up does not stop it half way: its count would stay on the board.
func (s *Service) start(ctx context.Context, id ID, old Record, sub Submission) (Status, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTime)
	defer cancel()
	sequence, err := s.draw(ctx)
	if err != nil {
		return s.refuse(ctx, id, err)
	}
	var rec Record
	err = s.Hook.Do(StepCreate, func() (err error) {
		if rec = NewRecord(id, sub.Plan, sub.Request, sequence, Now()); old.Rev == 0 {
			return s.Records.Create(ctx, rec)
		}
		rec = old.Again(sub.Plan, sequence, Now())
		return s.Records.Replace(ctx, old, rec)
	})
	if errors.Is(err, ErrExists) || errors.Is(err, ErrConflict) {
		return s.join(ctx, id)
	}
	if err != nil && !s.stored(ctx, id, sequence) {
		return Status{}, errors.Join(fmt.Errorf("store %s: %w", id.Short(), err), s.giveBack(ctx))
	}
	if err := s.send(ctx, id, sub); err != nil {
		return Status{}, err
	}
	return s.status(ctx, rec)
}

// draw takes the next sequence number and counts one more pending build, if
// there is room for it.
func (s *Service) draw(ctx context.Context) (int64, error) {
	var board Board
	err := s.Hook.Do(StepDraw, func() (err error) {
		board, err = s.Records.Board(ctx, "", Change{Add: Board{BoardDrawn: 1, BoardCreated: 1}})
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("draw a sequence number: %w", err)
	}
	s.board.put(board)
	if s.Limits.Pending > 0 && board.Pending() > s.Limits.Pending {
		if err := s.giveBack(ctx); err != nil {
			return 0, err
		}
		return 0, &Refusal{
			Code: CodeOverloaded, RetryAfter: time.Minute,
			Detail: fmt.Sprintf("%d builds are waiting already and this server takes no more. Try again in a few minutes.", s.Limits.Pending),
		}
	}
	return board[BoardDrawn], nil
}

// refuse returns the error, unless somebody else created the build in the
// meantime: to join it takes no place.
func (s *Service) refuse(ctx context.Context, id ID, err error) (Status, error) {
	if rec, e := s.Records.Get(ctx, id); e == nil && !rec.Retriable() {
		return s.status(ctx, rec)
	}
	return Status{}, err
}

// stored tells whether a write that reported a failure has happened: nobody
// else drew the sequence number.
func (s *Service) stored(ctx context.Context, id ID, sequence int64) bool {
	rec, err := s.Records.Get(ctx, id)
	return err == nil && rec.Sequence == sequence
}

// join answers with the build that somebody else created in the meantime.
func (s *Service) join(ctx context.Context, id ID) (Status, error) {
	if err := s.giveBack(ctx); err != nil {
		return Status{}, err
	}
	rec, err := s.Records.Get(ctx, id)
	if err != nil {
		return Status{}, fmt.Errorf("join %s: %w", id.Short(), err)
	}
	return s.status(ctx, rec)
}

func (s *Service) giveBack(ctx context.Context) error {
	_, err := s.Records.Board(ctx, "", Change{Add: Board{BoardCreated: -1}})
	if err != nil {
		return fmt.Errorf("give a place in the queue back: %w", err)
	}
	return nil
}

func (s *Service) send(ctx context.Context, id ID, sub Submission) error {
	class := sub.Class
	if class == "" {
		class = ClassInteractive
	}
	err := s.Hook.Do(StepSend, func() error { return s.Queue.Send(ctx, id, class, "") })
	if err != nil {
		return fmt.Errorf("send %s: %w", id.Short(), err)
	}
	return nil
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
		return Status{}, fmt.Errorf("look up %s: %w", id.Short(), err)
	}
	if rec.Schema == Schema && !rec.Ended() && !Now().Before(rec.DueAt) {
		if rec, err = resend(ctx, s.Records, s.Queue, rec); err != nil {
			return Status{}, err
		}
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

func (s *Service) status(ctx context.Context, rec Record) (Status, error) {
	if rec.State != Queued {
		return Status{Record: rec}, nil
	}
	board, err := s.board.get(ctx, s.Records)
	if err != nil {
		return Status{}, fmt.Errorf("read the board: %w", err)
	}
	return Status{Record: rec, Position: max(1, rec.Sequence-board[BoardClaimed])}, nil
}

// Pending is how many builds are queued or building, at most a second old.
func (s *Service) Pending(ctx context.Context) (int64, error) {
	board, err := s.board.get(ctx, s.Records)
	return board.Pending(), err
}

// boardCache keeps the global board for a second, so that a thousand polls of
// waiting clients cost one read.
type boardCache struct {
	mu    sync.Mutex
	board Board
	until time.Time
}

func (c *boardCache) put(b Board) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.board, c.until = b, time.Now().Add(time.Second)
}

func (c *boardCache) get(ctx context.Context, records Records) (Board, error) {
	c.mu.Lock()
	board, fresh := c.board, time.Now().Before(c.until)
	c.mu.Unlock()
	if fresh {
		return board, nil
	}
	board, err := records.Board(ctx, "", Change{})
	if err != nil {
		return nil, err
	}
	c.put(board)
	return board, nil
}
