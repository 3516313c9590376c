package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Sweeper does what time brings: it sends again what nobody works at, gives
// up what waited a day, removes what expired and what no record names. It runs
// each minute in serve and every few minutes in the housekeeper; any number
// may run at once.
type Sweeper struct {
	Records   Records
	Queue     Queue
	Objects   Objects
	Lifetimes Lifetimes
	// DeadLetters are the messages that were received too often, nil where
	// the queue has no such thing.
	DeadLetters Queue
	// Count counts the builds that are queued or building, for setting the board
	// right; nil to leave it as it is.
	Count func(ctx context.Context) (int64, error)

	strays time.Time // when public strays and old keys were looked for last
}

// Swept counts what one sweep did. Recounted is by how many builds the board
// was wrong.
type Swept struct {
	Resent, GivenUp, Expired, Strays, Keys, DeadLetters, Recounted int
}

const (
	sweepBatch     = 100
	sweepMost      = 6400        // records that one sweep looks at
	sweepTime      = time.Minute // for records, and for dead letters
	strayAge       = 24 * time.Hour
	strayAgeSecret = 10 * time.Minute
	strayInterval  = time.Hour
	// keyAge is more than a worker's key is of use to anybody: it signs for a
	// day, what it signed is kept for a week, and clients accept it for eight
	// days after its own.
	keyAge = 30 * 24 * time.Hour
)

// Sweep goes over everything that is due once. It goes on after an error with
// one record and returns all of them joined.
func (s *Sweeper) Sweep(ctx context.Context) (Swept, error) {
	var done Swept
	errs := []error{s.sweepDue(ctx, &done), s.sweepDeadLetters(ctx, &done)}
	errs = append(errs, s.sweepStrays(ctx, "store/private/", strayAgeSecret, &done))
	if Since(s.strays) >= strayInterval {
		s.strays = time.Now()
		errs = append(errs, s.sweepStrays(ctx, "store/", strayAge, &done), s.sweepKeys(ctx, &done))
	}
	errs = append(errs, s.recount(ctx, &done))
	return done, errors.Join(errs...)
}

// sweepDue looks at each record that is due. Some stay due whatever is done:
// another version's, and those with a fault. They must not hide the others, so
// it asks for more while it sees none but them. Nor must those that cannot be
// read: their error comes beside the others.
func (s *Sweeper) sweepDue(ctx context.Context, done *Swept) error {
	var errs []error
	seen := map[ID]bool{}
	for n, began := sweepBatch, time.Now(); n <= sweepMost && time.Since(began) < sweepTime; {
		due, err := s.Records.Due(ctx, Now(), n)
		errs = append(errs, err)
		before := len(seen)
		for _, rec := range due {
			if !seen[rec.ID] {
				seen[rec.ID] = true
				errs = append(errs, s.look(ctx, rec, done))
			}
		}
		switch {
		case len(due) < n:
			return errors.Join(errs...)
		case len(seen) == before:
			n *= 2
		}
	}
	return errors.Join(errs...)
}

func (s *Sweeper) look(ctx context.Context, rec Record, done *Swept) error {
	now := Now()
	switch {
	case rec.Schema != Schema:
		return nil // a newer sysup's; it will look after it
	case rec.Expired(now):
		done.Expired++
		return s.expire(ctx, rec)
	case rec.Ended() || now.Before(rec.DueAt):
		return nil
	case rec.Waited(now) && !rec.Leased(now):
		done.GivenUp++
		return s.giveUp(ctx, rec, now)
	}
	done.Resent++
	_, err := resend(ctx, s.Records, s.Queue, rec)
	return err
}

// giveUp ends a build that no worker took for a day.
func (s *Sweeper) giveUp(ctx context.Context, rec Record, now time.Time) error {
	err := s.end(ctx, rec, Fail(KindWaited, "No builder was free for a day. Send the request again, or tell the operator of this server."), now)
	if errors.Is(err, ErrConflict) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("give up %s: %w", rec.ID.Short(), err)
	}
	return nil
}

// end fails the build. ErrConflict means that somebody has just worked at it.
func (s *Sweeper) end(ctx context.Context, rec Record, failure *Failure, now time.Time) error {
	if err := s.Records.Replace(ctx, rec, rec.FailWith(failure, s.Lifetimes, now)); err != nil {
		return err
	}
	return CountEnded(ctx, s.Records, rec)
}

// CountEnded notes on the board that the build reached its end, if the board
// was told of its beginning.
func CountEnded(ctx context.Context, records Records, rec Record) error {
	if rec.Uncounted {
		return nil
	}
	if _, err := records.Board(ctx, "", Change{Add: Board{BoardEnded: 1}}); err != nil {
		return fmt.Errorf("count an ended build: %w", err)
	}
	return nil
}

// expire removes the files first: if it dies in between, the record brings it
// back here.
func (s *Sweeper) expire(ctx context.Context, rec Record) error {
	var prefixes []string
	if rec.Attempt != "" { // it was claimed
		prefixes = append(prefixes, Prefix(rec.ID, rec.Attempt, rec.Plan.Private))
	}
	if rec.Result != nil {
		prefixes = append(prefixes, rec.Result.Prefix)
		if err := s.dropIndex(ctx, rec); err != nil {
			return err
		}
	}
	if rec.Failure != nil && rec.Failure.Prefix != "" {
		prefixes = append(prefixes, rec.Failure.Prefix)
	}
	for _, prefix := range prefixes {
		if err := s.deletePrefix(ctx, prefix); err != nil {
			return err
		}
	}
	if err := s.Records.Delete(ctx, rec); err != nil && !errors.Is(err, ErrConflict) {
		return fmt.Errorf("delete the expired record %s: %w", rec.ID.Short(), err)
	}
	return nil
}

// ImageIndex is the key under which a result is found by its image hash.
func ImageIndex(imageHash string) string { return "index/image/" + imageHash }

func (s *Sweeper) dropIndex(ctx context.Context, rec Record) error {
	if rec.Plan.Private {
		return nil
	}
	key := ImageIndex(rec.Result.ImageHash)
	id, err := ReadIndex(ctx, s.Objects, rec.Result.ImageHash)
	if errors.Is(err, ErrNotFound) || err == nil && id != rec.ID {
		return nil
	}
	if err != nil {
		return err
	}
	return s.Objects.Delete(ctx, key)
}

func (s *Sweeper) deletePrefix(ctx context.Context, prefix string) error {
	if _, _, _, ok := ParsePrefix(prefix); !ok {
		return fmt.Errorf("refusing to delete %q, which is not an attempt's folder", prefix)
	}
	for info, err := range s.Objects.List(ctx, prefix) {
		if err != nil {
			return fmt.Errorf("list %s: %w", prefix, err)
		}
		if err := s.Objects.Delete(ctx, info.Key); err != nil {
			return fmt.Errorf("delete %s: %w", info.Key, err)
		}
	}
	return nil
}

// sweepStrays removes the attempts below root that no record names once their
// newest file is older than age.
func (s *Sweeper) sweepStrays(ctx context.Context, root string, age time.Duration, done *Swept) error {
	newest := map[string]time.Time{}
	for info, err := range s.Objects.List(ctx, root) {
		if err != nil {
			return fmt.Errorf("list %s: %w", root, err)
		}
		prefix := info.Key[:strings.LastIndexByte(info.Key, '/')+1]
		if info.Modified.After(newest[prefix]) {
			newest[prefix] = info.Modified
		}
	}
	var errs []error
	for prefix, modified := range newest {
		if id, attempt, _, ok := ParsePrefix(prefix); ok && time.Since(modified) > age {
			errs = append(errs, s.stray(ctx, prefix, id, attempt, done))
		}
	}
	return errors.Join(errs...)
}

func (s *Sweeper) stray(ctx context.Context, prefix string, id ID, attempt string, done *Swept) error {
	rec, err := s.Records.Get(ctx, id)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	named := err == nil && (rec.Schema != Schema || // who knows what another version's names
		rec.Attempt == attempt && !rec.Ended() ||
		rec.Result != nil && rec.Result.Prefix == prefix || rec.Failure != nil && rec.Failure.Prefix == prefix)
	if named {
		return nil
	}
	done.Strays++
	return s.deletePrefix(ctx, prefix)
}

// sweepKeys removes the certificates of workers' old keys. The server's key and
// the list of revoked ones have no end.
func (s *Sweeper) sweepKeys(ctx context.Context, done *Swept) error {
	const prefix = "keys/worker-"
	for info, err := range s.Objects.List(ctx, prefix) {
		if err != nil {
			return fmt.Errorf("list %s: %w", prefix, err)
		}
		if time.Since(info.Modified) <= keyAge {
			continue
		}
		if err := s.Objects.Delete(ctx, info.Key); err != nil {
			return fmt.Errorf("delete %s: %w", info.Key, err)
		}
		done.Keys++
	}
	return nil
}

// ReadIndex returns the build whose result has the image hash, or ErrNotFound.
func ReadIndex(ctx context.Context, objects Objects, imageHash string) (ID, error) {
	r, _, err := objects.Open(ctx, ImageIndex(imageHash))
	if err != nil {
		return "", err
	}
	defer r.Close()
	var b [64]byte
	n, err := io.ReadFull(r, b[:])
	if err != nil {
		return "", ErrNotFound
	}
	id, err := ParseID(string(b[:n]))
	if err != nil {
		return "", ErrNotFound
	}
	return id, nil
}
