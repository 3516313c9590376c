package build

import (
	"context"
	"time"
)

// DeadLettersOnly is the part of a sweep that takes up dead letters.
func (s *Sweeper) DeadLettersOnly(ctx context.Context, done *Swept) error {
	return s.sweepDeadLetters(ctx, done)
}

// LookedForStrays has the sweeper believe that it looked for public strays then.
func (s *Sweeper) LookedForStrays(at time.Time) { s.strays = at }

// SawBoard has the service believe that it saw the board then.
func (s *Service) SawBoard(at time.Time) { s.board.seen, s.board.until = at, at.Add(boardAge) }

// FreshBoard is the board if it was seen just now.
func (s *Service) FreshBoard() Board { return s.board.fresh() }
