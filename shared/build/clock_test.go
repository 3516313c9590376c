package build_test

import (
	"context"
	"iter"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
)

// TestSince: neither a process that was frozen nor a clock that was set makes
// anything seem younger.
func TestSince(t *testing.T) {
	for name, at := range map[string]time.Time{
		"the process was frozen":    buildtest.Frozen(t, time.Hour),
		"nothing happened":          time.Now().Add(-time.Hour),
		"the time is from a record": build.Now().Add(-time.Hour),
	} {
		if got := build.Since(at); got < time.Hour || got > time.Hour+time.Minute {
			t.Errorf("after an hour in which %s, %s have passed", name, got)
		}
	}
	if got := build.Since(time.Now().Add(time.Hour)); got > -59*time.Minute || got < -time.Hour {
		t.Errorf("an hour before, %s have passed", got)
	}
}

// TestFreezeEndsTheBoard: what was seen within a second before Lambda froze the
// process is old after it.
func TestFreezeEndsTheBoard(t *testing.T) {
	w := newWorld(t)
	pending := func() int64 {
		n, err := w.service.Pending(t.Context())
		w.check(err, "Pending")
		return n
	}
	first := pending()
	_, err := w.records.Board(t.Context(), "", build.Change{Add: build.Board{build.BoardCreated: 1}})
	w.check(err, "Board")
	w.service.SawBoard(time.Now())
	if got := pending(); got != first {
		t.Errorf("within a second somebody looked again: %d", got)
	}
	w.service.SawBoard(buildtest.Frozen(t, time.Minute))
	if w.service.FreshBoard() != nil {
		t.Error("the board of a minute ago is fresh")
	}
	if got := pending(); got != first+1 {
		t.Errorf("a minute later nobody looked again: %d", got)
	}
}

// TestFreezeEndsTheHour: strays are looked for an hour after the last time, also
// where Lambda froze the process meanwhile.
func TestFreezeEndsTheHour(t *testing.T) {
	w, lists := newWorld(t), map[string]int{}
	w.sweeper.Objects = counted{w.objects, lists}
	for want, at := range []time.Time{time.Now(), buildtest.Frozen(t, 2*time.Hour)} {
		w.sweeper.LookedForStrays(at)
		if w.sweep(); lists["store/"] != want {
			t.Errorf("public strays were looked for %d times, not %d", lists["store/"], want)
		}
	}
}

// counted counts who lists which prefix.
type counted struct {
	build.Objects
	lists map[string]int
}

func (c counted) List(ctx context.Context, prefix string) iter.Seq2[build.ObjectInfo, error] {
	c.lists[prefix]++
	return c.Objects.List(ctx, prefix)
}
