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
	// Receive before another one is started in its place.
	StartTime = 3 * time.Minute
	// BacklogPerBuilder is how many pending builds justify one more builder.
	BacklogPerBuilder = 4
)

// BuildersToStart is how many builders to add for the pending builds when
// alive of them run or are starting and limit may.
func BuildersToStart(pending int64, alive, limit int) int {
	if pending <= 0 {
		return 0
	}
	wanted := int(min((pending+BacklogPerBuilder-1)/BacklogPerBuilder, int64(limit)))
	return max(0, wanted-alive)
}

// Wake starts one builder if, by the board, none receives and nobody has
// started one lately. Of many that call it at once one starts.
func (f *Fleet) Wake(ctx context.Context, board Board) error {
	now := Now()
	if f.Max < 1 || board[BoardAlive] > now.UnixMilli() || board[BoardStarted] > now.UnixMilli() {
		return nil
	}
	_, err := f.Records.Board(ctx, "", Change{
		Max:   Board{BoardStarted: now.Add(StartTime).UnixMilli()},
		Below: Board{BoardStarted: now.UnixMilli() + 1},
	})
	if errors.Is(err, ErrConflict) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("note that a builder starts: %w", err)
	}
	return f.Start(ctx, 1)
}

// Scale starts what the backlog asks for, given how many builders run or are
// starting.
func (f *Fleet) Scale(ctx context.Context, pending int64, alive int) (started int, err error) {
	n := BuildersToStart(pending, alive, f.Max)
	if n == 0 {
		return 0, nil
	}
	_, err = f.Records.Board(ctx, "", Change{Max: Board{BoardStarted: Now().Add(StartTime).UnixMilli()}})
	if err != nil {
		return 0, fmt.Errorf("note that builders start: %w", err)
	}
	return n, f.Start(ctx, n)
}
