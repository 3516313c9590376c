package aws

import (
	"errors"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
)

func TestCallsOfBoard(t *testing.T) {
	r, w := wiredRecords(t)
	hour := build.Now().Add(time.Hour)
	for _, step := range []struct {
		name   string
		board  string
		change build.Change
		want   build.Board
		calls  map[string]int
	}{
		{"a new build", "", build.Change{Add: build.Board{"drawn": 1, "created": 1}}, build.Board{"drawn": 1, "created": 1}, map[string]int{"UpdateItem": 1}},
		{"a claim", "", build.Change{Max: build.Board{"claimed": 1}}, build.Board{"drawn": 1, "created": 1, "claimed": 1}, map[string]int{"UpdateItem": 1}},
		{"a later claim", "", build.Change{Max: build.Board{"claimed": 3}}, build.Board{"drawn": 1, "created": 1, "claimed": 3}, map[string]int{"UpdateItem": 1}},
		{"a claim out of order", "", build.Change{Max: build.Board{"claimed": 2}}, build.Board{"drawn": 1, "created": 1, "claimed": 3}, map[string]int{"UpdateItem": 2}},
		{"the day's first", "d", build.Change{Add: build.Board{"today": 1}, Max: build.Board{"today": 7001}}, build.Board{"today": 7001}, map[string]int{"UpdateItem": 2}},
		{"the day's second", "d", build.Change{Add: build.Board{"today": 1}, Max: build.Board{"today": 7001}}, build.Board{"today": 7002}, map[string]int{"UpdateItem": 1}},
		{"the next day's first", "d", build.Change{Add: build.Board{"today": 1}, Max: build.Board{"today": 8001}}, build.Board{"today": 8001}, map[string]int{"UpdateItem": 2}},
		{"a condition that holds", "d", build.Change{Max: build.Board{"until": 50}, Below: build.Board{"until": 40}}, build.Board{"today": 8001, "until": 50}, map[string]int{"UpdateItem": 1}},
		{"a condition that does not", "d", build.Change{Max: build.Board{"until": 60}, Below: build.Board{"until": 50}}, nil, map[string]int{"UpdateItem": 1}},
		{"a client's build", "client/x/1", build.Change{Add: build.Board{"builds": 1}, ExpiresAt: hour}, build.Board{"builds": 1}, map[string]int{"UpdateItem": 1}},
		{"a read", "d", build.Change{}, build.Board{"today": 8001, "until": 50}, map[string]int{"GetItem": 1}},
	} {
		board, err := r.Board(t.Context(), step.board, step.change)
		if step.want == nil {
			must(t, wantErr(err, build.ErrConflict))
		} else {
			must(t, err)
		}
		if !maps.Equal(board, step.want) {
			t.Errorf("%s: the board is %v, not %v", step.name, board, step.want)
		}
		if got := w.spent(); !maps.Equal(got, step.calls) {
			t.Errorf("%s costs %v, not %v", step.name, got, step.calls)
		}
	}
}

// TestBoardIsTheFakes makes random changes to a board here and to one in
// memory.
func TestBoardIsTheFakes(t *testing.T) {
	r, _ := wiredRecords(t)
	fake := buildtest.NewRecords(t)
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	for i := range 400 {
		change := build.Change{Add: someCounters(random), Max: someCounters(random)}
		if random.IntN(3) == 0 {
			change.Below = someCounters(random)
		}
		name := []string{"", "x"}[random.IntN(2)]
		want, refused := fake.Board(t.Context(), name, change)
		got, err := r.Board(t.Context(), name, change)
		if !errors.Is(err, refused) || err == nil && !maps.Equal(got, want) {
			t.Fatalf("seed %d, change %d %+v: %v (%v), not %v (%v)", seed, i, change, got, err, want, refused)
		}
	}
}

func someCounters(random *rand.Rand) build.Board {
	board := build.Board{}
	for _, counter := range []string{"a", "b", "with spaces #:", "pk"} {
		if random.IntN(3) == 0 {
			board[counter] = int64(random.IntN(13) - 6)
		}
	}
	return board
}

func TestBoardExpires(t *testing.T) {
	r, _ := wiredRecords(t)
	at := build.Now().Add(40 * time.Millisecond)
	_, err := r.Board(t.Context(), "b", build.Change{Add: build.Board{"n": 5, "old": 1}, ExpiresAt: at})
	must(t, err)
	time.Sleep(time.Until(at) + time.Millisecond)
	for _, step := range []struct {
		change build.Change
		want   build.Board
	}{
		{build.Change{}, build.Board{}},
		{build.Change{Max: build.Board{"n": 2}, Below: build.Board{"n": 5, "old": 1}, ExpiresAt: at.Add(time.Hour)}, build.Board{"n": 2}},
		{build.Change{Add: build.Board{"n": 1}}, build.Board{"n": 3}},
		{build.Change{}, build.Board{"n": 3}},
	} {
		board, err := r.Board(t.Context(), "b", step.change)
		must(t, err)
		if !maps.Equal(board, step.want) {
			t.Errorf("after %+v the board is %v, not %v", step.change, board, step.want)
		}
	}
}

// TestManyAtOneBoard: all kinds of changes at once, first to a board whose time
// is over.
func TestManyAtOneBoard(t *testing.T) {
	r, _ := wiredRecords(t)
	_, err := r.Board(t.Context(), "b", build.Change{Add: build.Board{"n": 77}, ExpiresAt: build.Now().Add(-1)})
	must(t, err)
	var wait sync.WaitGroup
	for i := range 16 {
		wait.Go(func() {
			for j := range 5 {
				change := build.Change{Add: build.Board{"n": 1, "day": 1}, Max: build.Board{"top": int64(5*i + j), "day": 1001}}
				if _, err := r.Board(t.Context(), "b", change); err != nil {
					t.Errorf("worker %d: %v", i, err)
				}
			}
		})
	}
	wait.Wait()
	board, err := r.Board(t.Context(), "b", build.Change{})
	must(t, err)
	if want := (build.Board{"n": 80, "day": 1080, "top": 79}); !maps.Equal(board, want) {
		t.Errorf("the board is %v, not %v", board, want)
	}
}
