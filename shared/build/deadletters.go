package build

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	deadLetterBatch = 100         // dead letters that one sweep takes
	deadLetterWait  = time.Second // for the next one
)

// sweepDeadLetters takes what the queue gave up delivering and decides by the
// records.
func (s *Sweeper) sweepDeadLetters(ctx context.Context, done *Swept) error {
	if s.DeadLetters == nil {
		return nil
	}
	var errs []error
	for began := time.Now(); done.DeadLetters < deadLetterBatch && time.Since(began) < sweepTime; {
		m, err := s.nextDeadLetter(ctx)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		if m.Receipt == "" {
			break
		}
		done.DeadLetters++
		errs = append(errs, s.deadLetter(ctx, m))
	}
	return errors.Join(errs...)
}

// nextDeadLetter returns no message if there is none.
func (s *Sweeper) nextDeadLetter(ctx context.Context) (Message, error) {
	wait, cancel := context.WithTimeout(ctx, deadLetterWait)
	defer cancel()
	m, err := s.DeadLetters.Receive(wait)
	if err != nil && wait.Err() != nil && ctx.Err() == nil {
		return Message{}, nil
	}
	if err != nil {
		return Message{}, fmt.Errorf("receive a dead letter: %w", err)
	}
	return m, nil
}

// deadLetter does what the record asks for and only then removes the letter:
// whoever dies in between finds it again, and what was done twice does no harm.
func (s *Sweeper) deadLetter(ctx context.Context, m Message) error {
	rec, err := s.Records.Get(ctx, m.ID)
	now := Now()
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return fmt.Errorf("look up %s: %w", m.ID.Short(), err)
	case rec.Schema != Schema:
		return nil // a newer sysup's; it will take it
	case rec.Ended():
	case rec.Spent() && !rec.Leased(now):
		err = s.end(ctx, rec, rec.Lost(), now)
	default:
		// The record is not touched: whoever holds its lease goes on.
		err = s.Queue.Send(ctx, m.ID, ClassInteractive, "")
	}
	if errors.Is(err, ErrConflict) {
		return nil // somebody is at it; the letter comes back
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("take up the dead letter of %s: %w", m.ID.Short(), err)
	}
	if err := s.DeadLetters.Delete(ctx, m); err != nil {
		return fmt.Errorf("delete the dead letter of %s: %w", m.ID.Short(), err)
	}
	return nil
}
