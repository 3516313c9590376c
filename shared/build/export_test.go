package build

import "context"

// DeadLettersOnly is the part of a sweep that takes up dead letters.
func (s *Sweeper) DeadLettersOnly(ctx context.Context, done *Swept) error {
	return s.sweepDeadLetters(ctx, done)
}
