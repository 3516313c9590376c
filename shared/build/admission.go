package build

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Limits of admission; 0 is no limit. Joining a build that exists is free, but
// for a private one: the answer would confirm a guessed script.
type Limits struct {
	Pending   int64 // builds that may be queued or building
	PerDay    int64 // builds that may be created on one day (UTC)
	PerClient int64 // builds that one client may create in one hour
}

// boardTime bounds all that one request waits for the board. A board that is
// slow, throttled or broken never fails a request: the limits give way, and the
// build is stored as Uncounted.
const boardTime = 500 * time.Millisecond

// leaveTime bounds giving back what was counted. Only a request that turned out
// not to start a build waits for it; a count that stays is found by the sweeper.
const leaveTime = time.Second

// admission is the way of one request through the limits, and what it has
// counted so far.
type admission struct {
	service  *Service
	id       ID
	private  bool
	client   string // "" if its builds are not limited
	now      time.Time
	deadline time.Time // of every look at the board
	charged  bool      // on the client's board
	board    Board     // the global one as draw left it, nil if it did not answer
	sequence int64
}

func (s *Service) admission(id ID, sub *Submission) *admission {
	now := Now()
	a := &admission{service: s, id: id, private: sub.Plan.Private, now: now, deadline: now.Add(boardTime)}
	if s.Limits.PerClient > 0 {
		a.client = s.client(sub.Client)
	}
	return a
}

// enter counts one more build, or returns the Refusal of the limit that is
// reached. What this process knows already costs no write.
func (a *admission) enter(ctx context.Context) error {
	if board := a.service.board.fresh(); board != nil {
		if err := a.full(board.Pending()+1, board.Today(a.now)+1); err != nil {
			return err
		}
	}
	if err := a.charge(ctx); err != nil {
		return err
	}
	return a.draw(ctx)
}

// ask charges a client for asking after a private build, once an hour for
// each: who guesses scripts gets as many answers as he may have builds.
func (a *admission) ask(ctx context.Context) error {
	name := a.client + string(a.id)
	if !a.private || a.service.asked.has(hourOf(a.now), name) {
		return nil
	}
	err := a.charge(ctx)
	if a.charged {
		a.service.asked.add(hourOf(a.now), name)
	}
	return err
}

// charge counts one build more of the client, unless that was done.
func (a *admission) charge(ctx context.Context) error {
	s, hour := a.service, hourOf(a.now)
	if a.client == "" || a.charged {
		return nil
	}
	if s.spent.has(hour, a.client) {
		return a.overdrawn(hour)
	}
	err := s.Hook.Do(StepCharge, func() error {
		_, err := a.tell(ctx, clientBoard(a.client, hour), Change{
			Add: Board{BoardNew: 1}, Below: Board{BoardNew: s.Limits.PerClient}, ExpiresAt: endOf(hour),
		})
		return err
	})
	switch {
	case errors.Is(err, ErrConflict):
		s.spent.add(hour, a.client)
		return a.overdrawn(hour)
	case err != nil:
		s.fault(fmt.Errorf("count a client's build: %w", err))
		return nil
	}
	a.charged = true
	return nil
}

// draw takes the next sequence number and counts one more build, if there is
// room for it.
func (a *admission) draw(ctx context.Context) error {
	s := a.service
	err := s.Hook.Do(StepDraw, func() (err error) {
		a.board, err = a.tell(ctx, "", Change{
			Add: Board{BoardDrawn: 1, BoardCreated: 1, BoardToday: 1},
			Max: Board{BoardToday: day(a.now)*BoardDay + 1},
		})
		return err
	})
	if err != nil {
		s.fault(fmt.Errorf("draw a sequence number: %w", err))
		s.board.fail(err)
		a.sequence = s.board.last()[BoardDrawn] + 1
		return nil
	}
	s.board.put(a.board)
	a.sequence = a.board[BoardDrawn]
	return a.full(a.board.Pending(), a.board.Today(a.now))
}

// tell changes a board within the time that the request has for all of them.
func (a *admission) tell(ctx context.Context, name string, change Change) (Board, error) {
	ctx, cancel := context.WithDeadline(ctx, a.deadline)
	defer cancel()
	return a.service.Records.Board(ctx, name, change)
}

// leave gives back what was counted for a build that was not created. What a
// private request was charged stays: it had its answer.
func (a *admission) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTime)
	defer cancel()
	s := a.service
	if a.board != nil {
		back := Board{BoardCreated: -1}
		if day(Now()) == day(a.now) { // at midnight the count has begun anew
			back[BoardToday] = -1
		}
		board, err := s.Records.Board(ctx, "", Change{Add: back})
		if err != nil {
			s.fault(fmt.Errorf("give a place in the queue back: %w", err))
		} else {
			s.board.put(board)
		}
	}
	if a.charged && !a.private {
		// If the hour is over by now, this begins the item anew.
		_, err := s.Records.Board(ctx, clientBoard(a.client, hourOf(a.now)), Change{Add: Board{BoardNew: -1}, ExpiresAt: endOf(hourOf(a.now))})
		if err != nil {
			s.fault(fmt.Errorf("give a client's build back: %w", err))
		}
	}
	a.board, a.charged = nil, false
}

// full returns the Refusal of the limit that these counts are over, or nil.
func (a *admission) full(pending, today int64) error {
	limits := a.service.Limits
	switch {
	case limits.Pending > 0 && pending > limits.Pending:
		return overloaded(time.Minute, "This server keeps at most %s waiting, and that many are waiting now. Try again in a few minutes.", several(limits.Pending, "build"))
	case limits.PerDay > 0 && today > limits.PerDay:
		midnight := time.Unix((day(a.now)+1)*int64(24*time.Hour/time.Second), 0)
		return overloaded(min(midnight.Sub(a.now), time.Hour),
			"This server starts at most %s a day, and has started that many today. Try again after midnight UTC; what was built already can still be had.", several(limits.PerDay, "build"))
	}
	return nil
}

func (a *admission) overdrawn(hour int64) error {
	wait := endOf(hour).Sub(a.now)
	return overloaded(wait, "This server takes at most %s an hour from one address, and has taken that many from yours. Try again in %s.",
		several(a.service.Limits.PerClient, "new build"), several(int64(wait/time.Minute)+1, "minute"))
}

func several(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// overloaded is the Refusal of a limit. The wait is a whole number of seconds,
// at the end of which there is room.
func overloaded(wait time.Duration, format string, args ...any) error {
	return &Refusal{
		Code: CodeOverloaded, Detail: fmt.Sprintf(format, args...),
		RetryAfter: wait.Truncate(time.Second) + time.Second,
	}
}
