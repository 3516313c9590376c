package catalog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	updateLimit = 2 * time.Minute  // one update with its retries, in the background
	updateRest  = 30 * time.Second // between a failed update and the next
	hopeless    = 3                // failed attempts, after which nobody waits any longer

	// freshPatience is how long to wait for a newer thing than the one there.
	freshPatience = 5 * time.Second
)

var (
	// errSlow says that an update takes longer than a client can wait.
	errSlow   = errors.New("the upstream has not answered yet")
	errClosed = errors.New("the catalogue is closed")
)

// shelf holds things of one kind, by key: few in memory, all on disk, each
// brought up to date from the upstream when it is asked for and old. Only one
// update of a key runs at a time; it goes on when those who wait for it leave.
//
// Keys have to be checked before: a shelf remembers every key it is asked for.
type shelf[T any] struct {
	load    func(key string) (*T, error)                // from disk; fs.ErrNotExist
	refresh func(ctx context.Context, key string) error // from the upstream to the disk
	jobs    *jobs

	mu     sync.Mutex
	recent *simplelru.LRU[string, *T]
	epoch  int // counts what left recent because the disk has a newer one
	states map[string]*state
}

// state is what is known of the age of one thing.
type state struct {
	checked time.Time // when the upstream was last asked with success
	running *update
	failed  error     // of the last update
	rest    time.Time // no new update before
}

// update is one effort to bring a thing up to date, with its retries.
type update struct {
	ended   chan struct{}
	trouble chan struct{} // closed when waiting is no use any more
	once    sync.Once
	mu      sync.Mutex
	err     error
}

func (u *update) fail(err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.err = err
}

func (u *update) lastError() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.err
}

// jobs is what goes on behind, for as long as the catalogue is open.
type jobs struct {
	ctx   context.Context
	group sync.WaitGroup
	log   *slog.Logger
}

func newShelf[T any](size int, jobs *jobs, load func(string) (*T, error), refresh func(context.Context, string) error) *shelf[T] {
	recent, _ := simplelru.NewLRU[string, *T](size, nil) // fails for no size only
	return &shelf[T]{load: load, refresh: refresh, jobs: jobs, recent: recent, states: map[string]*state{}}
}

// need says how new a thing has to be.
type need struct {
	maxAge time.Duration // older ones are updated
	fresh  bool          // an older one is not good enough, but better than none
	until  time.Time     // wait no longer than that
	feeds  bool          // of a target: its architecture's feeds are needed next
}

// get returns the thing, by default however old it is while its update goes
// on behind. It waits for an update if there is nothing yet or if a fresh one
// is needed, unless the update is in trouble. The error, then without a thing,
// is that of the update or of the wait.
func (s *shelf[T]) get(ctx context.Context, key string, n need) (*T, error) {
	value, err := s.peek(key)
	if err != nil {
		return nil, err
	}
	u, err := s.update(key, n.maxAge, value == nil)
	if value != nil && (u == nil || !n.fresh) {
		return value, nil
	}
	if value != nil {
		n.until = time.Now().Add(min(freshPatience, time.Until(n.until)))
	}
	if u != nil {
		err = u.wait(ctx, n.until)
	}
	if newer, _ := s.peek(key); newer != nil {
		return newer, nil // or the old one
	}
	if err == nil {
		err = fmt.Errorf("nothing is left of %s in the cache", key)
	}
	return nil, err
}

func (u *update) wait(ctx context.Context, until time.Time) error {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-u.ended:
	case <-u.trouble:
	case <-timer.C:
		if u.lastError() == nil {
			return errSlow
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return u.lastError()
}

// peek returns what is in memory or on disk, or nil.
func (s *shelf[T]) peek(key string) (*T, error) {
	s.mu.Lock()
	value, ok := s.recent.Get(key)
	epoch := s.epoch
	s.mu.Unlock()
	if ok {
		return value, nil
	}
	value, err := s.load(key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch == epoch {
		s.recent.Add(key, value)
	}
	return value, nil
}

// update returns the update that is under way or due, nil if there is none,
// then with the error of the last one if nothing else is there.
func (s *shelf[T]) update(key string, maxAge time.Duration, missing bool) (*update, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.states[key]
	if st == nil {
		st = &state{}
		s.states[key] = st
	}
	now := time.Now()
	switch {
	case st.running != nil:
		return st.running, nil
	case now.Before(st.rest):
		if missing {
			return nil, st.failed
		}
		return nil, nil
	case !missing && now.Sub(st.checked) < maxAge:
		return nil, nil
	case s.jobs.ctx.Err() != nil:
		return nil, errClosed
	}
	st.running = &update{ended: make(chan struct{}), trouble: make(chan struct{})}
	u := st.running
	s.jobs.group.Go(func() { s.run(key, st, u) })
	return u, nil
}

// warm does nothing: what is on disk is near enough.
func (s *shelf[T]) warm(context.Context, string) (wait func()) { return func() {} }

func (s *shelf[T]) keys() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.recent.Keys()
}

func (s *shelf[T]) run(key string, st *state, u *update) {
	ctx, cancel := context.WithTimeout(s.jobs.ctx, updateLimit)
	defer cancel()
	err := s.persist(ctx, key, u)
	u.fail(err)
	s.mu.Lock()
	defer s.mu.Unlock()
	st.running = nil
	if st.failed = err; err == nil {
		st.checked = time.Now()
		s.recent.Remove(key)
		s.epoch++
	} else {
		st.rest = time.Now().Add(restAfter(err))
	}
	close(u.ended)
}

// restAfter is the time between a failed update and the next.
func restAfter(err error) time.Duration {
	if errors.Is(err, errUnmade) {
		return unmadeRest
	}
	return updateRest
}

// persist refreshes until it succeeds, fails for good, or the time is over.
func (s *shelf[T]) persist(ctx context.Context, key string, u *update) error {
	tries := 0
	note := func(err error, next time.Duration) {
		s.jobs.log.Warn("catalogue: update failed, will be tried again", "what", key, "in", next.Round(time.Millisecond), "error", err)
		u.fail(err)
		if tries++; tries >= hopeless {
			u.once.Do(func() { close(u.trouble) })
		}
	}
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 250*time.Millisecond, 30*time.Second
	_, err := backoff.Retry(ctx, func() (struct{}, error) { return struct{}{}, s.refresh(ctx, key) },
		backoff.WithBackOff(pause), backoff.WithMaxElapsedTime(updateLimit), backoff.WithNotify(note))
	level := slog.LevelError
	if errors.Is(err, errAbsent) || errors.Is(err, errUnmade) || s.jobs.ctx.Err() != nil {
		level = slog.LevelDebug // nothing is wrong: there is no such thing, or not yet, or no more need of it
	}
	if err != nil {
		s.jobs.log.Log(ctx, level, "catalogue: update given up for now", "what", key, "error", err)
	}
	return err
}
