package build

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	recountSlot = 5 * time.Minute
	recountWait = 30 * time.Second // builds take less from a record to the board and back
)

// Counters of the boards "recount/<slot>": by how much the global board was
// over or under the count that somebody took in that slot.
const (
	recountAt    = "at" // ms since 1970
	recountOver  = "over"
	recountUnder = "under"
)

// recount sets the board right where a process died between a record and the
// board. One measurement is no proof: what is in flight is on the board and
// not yet, or no more, among the records, and the count may be late. So it
// corrects only what two sweeps in a row agree on, the smaller of both.
func (s *Sweeper) recount(ctx context.Context, done *Swept) error {
	if s.Count == nil {
		return nil
	}
	gap, err := s.gap(ctx)
	if err != nil || gap == 0 {
		return err
	}
	now := Now()
	slot := now.UnixMilli() / recountSlot.Milliseconds()
	before, err := s.Records.Board(ctx, recountBoard(slot-1), Change{})
	if err != nil {
		return fmt.Errorf("read the last count: %w", err)
	}
	agreed := agree(before, gap, now)
	mine, err := s.note(ctx, slot, gap-agreed, now)
	if err != nil || !mine || agreed == 0 {
		return err
	}
	change := Board{BoardEnded: agreed}
	if agreed < 0 {
		change = Board{BoardCreated: -agreed}
	}
	if _, err := s.Records.Board(ctx, "", Change{Add: change}); err != nil {
		return fmt.Errorf("set the board right: %w", err)
	}
	done.Recounted = int(max(agreed, -agreed))
	return nil
}

func recountBoard(slot int64) string { return fmt.Sprintf("recount/%d", slot) }

// gap is what the board has too many pending, negative for too few.
func (s *Sweeper) gap(ctx context.Context) (int64, error) {
	counted, err := s.Count(ctx)
	if err != nil {
		return 0, fmt.Errorf("count the pending builds: %w", err)
	}
	board, err := s.Records.Board(ctx, "", Change{})
	if err != nil {
		return 0, fmt.Errorf("read the board: %w", err)
	}
	return board[BoardCreated] - board[BoardEnded] - counted, nil
}

// agree is the part of the gap that the measurement before it saw too.
func agree(before Board, gap int64, now time.Time) int64 {
	switch {
	case before[recountAt] == 0 || now.UnixMilli()-before[recountAt] < recountWait.Milliseconds():
		return 0
	case gap > 0:
		return min(gap, before[recountOver])
	}
	return max(gap, -before[recountUnder])
}

// note leaves the gap that remains for the next slot. It tells whether this
// sweeper was the first in its slot: only that one corrects.
func (s *Sweeper) note(ctx context.Context, slot, gap int64, now time.Time) (bool, error) {
	_, err := s.Records.Board(ctx, recountBoard(slot), Change{
		Max:       Board{recountAt: now.UnixMilli(), recountOver: max(0, gap), recountUnder: max(0, -gap)},
		Below:     Board{recountAt: 1},
		ExpiresAt: now.Add(3 * recountSlot),
	})
	if errors.Is(err, ErrConflict) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("note a count: %w", err)
	}
	return true, nil
}
