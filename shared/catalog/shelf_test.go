package catalog

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// shelfOf returns a shelf of numbers, whose "disk" and "upstream" the two
// functions are.
func shelfOf(t *testing.T, load func(string) (*int, error), refresh func(context.Context, string) error) *shelf[int] {
	ctx, stop := context.WithCancel(t.Context())
	jobs := &jobs{ctx: ctx, log: slog.New(slog.DiscardHandler)}
	t.Cleanup(func() {
		stop()
		jobs.group.Wait()
	})
	return newShelf(2, jobs, load, refresh)
}

func forget(s *shelf[int]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recent.Purge()
}

// What was being read while an update ended is not kept: it is the old thing.
func TestSlowLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stored atomic.Int64
		stored.Store(1)
		s := shelfOf(t, func(string) (*int, error) {
			value := int(stored.Load())
			time.Sleep(2 * time.Second)
			return &value, nil
		}, func(context.Context, string) error {
			time.Sleep(3 * time.Second)
			stored.Add(1)
			return nil
		})
		s.get(t.Context(), "a", need{maxAge: time.Hour}) // starts the update, which ends 5 seconds from the start
		forget(s)
		time.Sleep(2 * time.Second)
		old, _ := s.get(t.Context(), "a", need{maxAge: time.Hour}) // is read over the end of the update
		if *old != 1 {
			t.Fatalf("got %d: the update was over too early for this test", *old)
		}
		if value, err := s.get(t.Context(), "a", need{maxAge: time.Hour}); err != nil || *value != 2 {
			t.Errorf("got %d, %v after the update; want 2", *value, err)
		}
	})
}

func TestUpdates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stored *int
		fault, updates := error(nil), 0
		s := shelfOf(t, func(string) (*int, error) {
			if stored == nil {
				return nil, fs.ErrNotExist
			}
			return stored, nil
		}, func(context.Context, string) error {
			updates++
			if fault == nil {
				n := updates
				stored = &n
			}
			return fault
		})
		get := func(fresh bool) (int, error) {
			value, err := s.get(t.Context(), "a", need{maxAge: time.Minute, fresh: fresh, until: time.Now().Add(10 * time.Second)})
			if value == nil {
				return 0, err
			}
			return *value, err
		}
		check := func(what string, fresh bool, want int) {
			t.Helper()
			if n, err := get(fresh); n != want || err != nil {
				t.Errorf("%s: got %d, %v; want %d", what, n, err, want)
			}
			synctest.Wait()
		}
		check("nothing there", false, 1)
		check("there", true, 1)
		time.Sleep(2 * time.Minute)
		check("old", false, 1)
		check("updated behind", false, 2)
		time.Sleep(2 * time.Minute)
		check("old, fresh needed", true, 3)

		fault = errors.New("down")
		time.Sleep(2 * time.Minute)
		check("old, fresh needed, upstream down", true, 3)
		synctest.Wait()
		stored = nil
		forget(s)
		if _, err := get(false); !errors.Is(err, fault) {
			t.Errorf("nothing there, upstream down: %v", err)
		}
	})
}

// A shelf of a closed catalogue starts nothing.
func TestClosed(t *testing.T) {
	w := fetched(t, sample(t))
	w.Close()
	if _, err := w.Device(t.Context(), "24.10.5", x86, "", ""); err == nil {
		t.Error("a closed catalogue answers what it does not have")
	}
}
