package builder

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
)

// attend runs a Presence and returns what the board promises and when Run came
// back, zero while it has not.
func attend(t *testing.T, ctx context.Context, idle time.Duration, faults *buildtest.Faults) (p *Presence, promised func() time.Time, left func() time.Time) {
	memory := buildtest.NewRecords(t)
	p = NewPresence(faults.Records(memory), idle, slog.New(slog.DiscardHandler))
	var ended time.Time
	go func() {
		p.Run(ctx)
		ended = time.Now()
	}()
	promised = func() time.Time {
		board, err := memory.Board(t.Context(), "", build.Change{})
		if err != nil {
			t.Fatal(err)
		}
		return time.UnixMilli(board[build.BoardAlive])
	}
	return p, promised, func() time.Time { synctest.Wait(); return ended }
}

// TestPresence walks through the life of a process: it promises from the
// first moment, all the time that it builds, and until it leaves; it leaves
// after the time of rest, and not before every promise is over.
func TestPresence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const idle = 5 * time.Minute
		p, promised, left := attend(t, t.Context(), idle, &buildtest.Faults{})
		begin := time.Now()
		there := func(when string) {
			t.Helper()
			if synctest.Wait(); !promised().After(time.Now()) {
				t.Errorf("%s: nobody is promised to be there", when)
			}
			if promised().After(time.Now().Add(build.AliveTime)) {
				t.Errorf("%s: the promise lasts until %v", when, promised())
			}
		}
		there("at the start")
		for range 10 { // half of the rest, in steps that no renewal fits
			time.Sleep(15 * time.Second)
			there("resting")
		}
		end := p.handle()
		for range 20 {
			time.Sleep(time.Minute - time.Millisecond)
			there("building")
		}
		p.built()
		end()
		built := time.Now()
		for time.Since(built) < idle-time.Second {
			time.Sleep(time.Second)
			there("resting again")
		}
		p.handle()() // a message without a build is no reason to stay
		time.Sleep(idle)
		if gone := left(); gone.Before(built.Add(idle)) || gone.After(built.Add(idle+linger+build.AliveBeat)) {
			t.Errorf("it left %v after its last build, want %v", gone.Sub(built), idle)
		}
		if gone := left(); gone.Before(promised().Add(5 * time.Second)) {
			t.Errorf("it left %v before its promise and some seconds were over", promised().Add(5*time.Second).Sub(gone))
		}
		if begin.Add(idle).After(left()) {
			t.Error("it left too early")
		}
	})
}

// TestPresenceForever: without a time of rest only ctx ends it.
func TestPresenceForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		_, promised, left := attend(t, ctx, 0, &buildtest.Faults{})
		time.Sleep(24*time.Hour + time.Second)
		if !left().IsZero() || !promised().After(time.Now()) {
			t.Error("it is not there after a day")
		}
		cancel()
		if left().IsZero() {
			t.Error("it does not end")
		}
	})
}

// TestPresenceFaults: a board that cannot be written keeps nobody from leaving
// or from staying.
func TestPresenceFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		faults := (&buildtest.Faults{}).On(buildtest.OpBoard, 2, buildtest.FailsBefore)
		_, promised, left := attend(t, t.Context(), 5*time.Minute, faults)
		time.Sleep(build.AliveBeat + time.Second)
		if synctest.Wait(); !promised().After(time.Now()) {
			t.Error("one fault broke the promise")
		}
		time.Sleep(build.AliveBeat)
		if synctest.Wait(); promised().Before(time.Now().Add(build.AliveTime - 2*time.Second)) {
			t.Error("it was not told again after a fault")
		}
		time.Sleep(5 * time.Minute)
		if left().IsZero() {
			t.Error("it does not leave")
		}
	})
}
