package build

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Fleet starts builders where they do not run all the time. The API wakes the
// first one when a build is accepted and nobody receives; the housekeeper adds
// more while there is a backlog. Builders leave by themselves when idle.
type Fleet struct {
	Records Records
	// Max is how many builders may run at once.
	Max int
	// Start starts n builders. It returns when that is under way.
	Start func(ctx context.Context, n int) error
}

const (
	// StartTime is how long a builder may take from its start to its first
	// Receive before another one is started in its place by who cannot count
	// them.
	StartTime = 3 * time.Minute
	// StartPause is how long nobody tries again after a start that failed, and
	// when at the latest a start that happened is seen by who counts builders.
	StartPause = 30 * time.Second
	// BacklogPerBuilder is how many pending builds justify one more builder.
	BacklogPerBuilder = 4
	// AliveTime is the longest that a builder promises to receive: one that is
	// killed cannot take its promise back.
	AliveTime = 2 * time.Minute
	// AliveBeat is how often a builder renews its promise.
	AliveBeat = time.Minute

	aliveMargin = 2 * time.Second // clocks differ
)

// Present promises on the board that a builder receives until then, though
// not for longer than AliveTime. A builder calls it before its first Receive
// and each AliveBeat from then on, with the time at which it would leave if
// nothing came. While the promise stands, Wake starts nobody.
func (f *Fleet) Present(ctx context.Context, until time.Time) error {
	now := Now()
	if most := now.Add(AliveTime); until.After(most) {
		until = most
	}
	if !until.After(now) {
		return nil
	}
	if _, err := f.Records.Board(ctx, "", Change{Max: Board{BoardAlive: until.UnixMilli()}}); err != nil {
		return fmt.Errorf("note that a builder is there: %w", err)
	}
	return nil
}

// BuildersToStart is how many builders to add for the pending builds when
// alive of them run or are starting and limit may.
func BuildersToStart(pending int64, alive, limit int) int {
	if pending <= 0 {
		return 0
	}
	wanted := int(min((pending-1)/BacklogPerBuilder+1, int64(limit)))
	return max(0, wanted-alive)
}

// Wake starts one builder if, by the board, none receives and nobody has
// started one lately. Of many that call it at once one starts. What was sent
// before the call is received by the builder that is there, if one is.
func (f *Fleet) Wake(ctx context.Context, board Board) error {
	now := Now()
	if f.Max < 1 || board[BoardAlive] > now.Add(aliveMargin).UnixMilli() || board[BoardStarted] > now.UnixMilli() {
		return nil
	}
	_, err := f.start(ctx, 1, Board{BoardStarted: now.UnixMilli() + 1})
	return err
}

// Scale starts what the backlog asks for, given how many builders run or are
// starting, as counted just before. Of a builder that was started earlier and
// does not count it need not wait for the end of StartTime: that one is gone.
func (f *Fleet) Scale(ctx context.Context, pending int64, alive int) (started int, err error) {
	n := BuildersToStart(pending, alive, f.Max)
	if n == 0 {
		return 0, nil
	}
	var below Board
	if alive == 0 { // the API may have woken one that did not count yet
		below = Board{BoardStarted: Now().Add(StartTime-StartPause).UnixMilli() + 1}
	}
	return f.start(ctx, n, below)
}

// start notes the start on the board and starts n builders. It starts none if
// the condition does not hold. A start that failed is noted as over after the
// pause; of one whose outcome nobody knows the builder may still come.
func (f *Fleet) start(ctx context.Context, n int, below Board) (int, error) {
	until := Now().Add(StartTime).UnixMilli()
	_, err := f.tell(ctx, Change{Max: Board{BoardStarted: until}, Below: below})
	if errors.Is(err, ErrConflict) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("note that a builder starts: %w", err)
	}
	err = f.Start(ctx, n)
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled):
		return 0, fmt.Errorf("a builder was started and nobody said whether it comes: %w", err)
	}
	return 0, errors.Join(fmt.Errorf("start a builder: %w", err), f.takeBack(ctx, until))
}

// takeBack shortens the note of a start that failed, unless somebody else has
// noted a later one.
func (f *Fleet) takeBack(ctx context.Context, until int64) error {
	_, err := f.tell(ctx, Change{
		Add:   Board{BoardStarted: -(StartTime - StartPause).Milliseconds()},
		Below: Board{BoardStarted: until + 1},
	})
	if err != nil && !errors.Is(err, ErrConflict) {
		return fmt.Errorf("note that no builder starts: %w", err)
	}
	return nil
}

// tell changes the board, or fails soon: a client may be waiting.
func (f *Fleet) tell(ctx context.Context, change Change) (Board, error) {
	ctx, cancel := context.WithTimeout(ctx, boardTime)
	defer cancel()
	return f.Records.Board(ctx, "", change)
}
