package build_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
)

// calls are the calls of one request, by their names.
type calls map[string]int

var everyOp = []string{buildtest.OpGet, buildtest.OpReadBoard, buildtest.OpBoard, buildtest.OpCreate, buildtest.OpReplace, buildtest.OpSend, "Start"}

func (w *world) calls(f func()) calls {
	before, after := calls{}, calls{}
	count := func(to calls) {
		for _, op := range everyOp {
			to[op] = w.faults.Calls(op)
		}
		to["Start"] = w.starts
	}
	count(before)
	f()
	count(after)
	for op := range after {
		if after[op] -= before[op]; after[op] == 0 {
			delete(after, op)
		}
	}
	return after
}

func (w *world) wantCalls(what string, want calls, f func()) {
	w.t.Helper()
	if got := w.calls(f); !maps.Equal(got, want) {
		w.t.Errorf("%s costs %v, not %v", what, got, want)
	}
}

func from(client string, plan build.Plan) build.Submission {
	sub := submission(plan)
	sub.Client = client
	return sub
}

func (w *world) ask(client string, plan build.Plan) error {
	_, err := w.service.Submit(w.t.Context(), from(client, plan))
	return err
}

// limited is a service with every limit and a fleet.
func limited(w *world) {
	w.service.Limits = build.Limits{Pending: 500, PerDay: 1000, PerClient: 20}
	w.service.Fleet = &build.Fleet{Records: w.service.Records, Max: 2, Start: func(context.Context, int) error {
		w.starts++
		return nil
	}}
}

// TestCallsPerRequest pins what a request costs.
func TestCallsPerRequest(t *testing.T) {
	inBubble(t, func(w *world) {
		limited(w)
		created := calls{buildtest.OpGet: 1, buildtest.OpBoard: 2, buildtest.OpCreate: 1, buildtest.OpSend: 1}
		woken := maps.Clone(created)
		woken[buildtest.OpBoard]++
		woken["Start"] = 1
		post := func(client string, n int) func() {
			return func() { w.check(w.ask(client, planOf(n)), "Submit") }
		}
		poll := func() {
			_, err := w.service.Status(w.t.Context(), planIDOf(planOf(1)))
			w.check(err, "Status")
		}
		w.wantCalls("the first build from rest", woken, post("192.0.2.1", 1))
		w.wantCalls("a new build", created, post("192.0.2.1", 2))
		created[buildtest.OpBoard] = 1
		w.wantCalls("a new build of somebody unknown", created, post("", 3))
		w.service.Limits.PerClient = 0
		w.wantCalls("a new build without a limit for clients", created, post("192.0.2.1", 4))
		w.wantCalls("a build that is known", calls{buildtest.OpGet: 1}, post("192.0.2.1", 1))
		time.Sleep(time.Second)
		w.wantCalls("the first of a second's polls", calls{buildtest.OpGet: 1, buildtest.OpReadBoard: 1}, poll)
		w.wantCalls("the others", calls{buildtest.OpGet: 50}, func() {
			for range 50 {
				poll()
			}
		})
		w.finish(planOf(1))
		time.Sleep(2 * time.Second)
		w.wantCalls("a poll of what is done", calls{buildtest.OpGet: 1}, poll)
	})
}

// TestClientLimit: an address has its builds for the hour, and so have others.
func TestClientLimit(t *testing.T) {
	inBubble(t, func(w *world) {
		w.service.Limits.PerClient = 3
		time.Sleep(20 * time.Minute)
		for n := range 3 {
			w.check(w.ask("192.0.2.1", planOf(n)), "Submit")
		}
		err := w.ask("192.0.2.1", planOf(3))
		wantRefusal(t, err, build.CodeOverloaded)
		if refusal, ok := errors.AsType[*build.Refusal](err); !ok || refusal.RetryAfter != 40*time.Minute+time.Second || !strings.Contains(refusal.Detail, " 3 ") {
			t.Errorf("20 minutes past the hour it says %+v", err)
		}
		w.check(w.ask("192.0.2.1", planOf(0)), "joining one's own build")
		w.check(w.ask("192.0.2.2", planOf(3)), "another address")
		w.check(w.ask("192.0.2.1", planOf(3)), "joining another's build")
		w.want(4, 4, 4)
		time.Sleep(40*time.Minute - time.Millisecond)
		wantRefusal(t, w.ask("192.0.2.1", planOf(4)), build.CodeOverloaded)
		time.Sleep(time.Millisecond)
		w.check(w.ask("192.0.2.1", planOf(4)), "in the next hour")
	})
}

// TestOneClientAcrossProcesses: the count is the board's, not the process's.
func TestOneClientAcrossProcesses(t *testing.T) {
	inBubble(t, func(w *world) {
		other := build.Service{Records: w.service.Records, Queue: w.service.Queue, Secret: secret, Limits: build.Limits{PerClient: 1}}
		w.service.Limits.PerClient = 1
		w.check(w.ask("192.0.2.1", planOf(1)), "Submit")
		_, err := other.Submit(w.t.Context(), from("192.0.2.1", planOf(2)))
		wantRefusal(t, err, build.CodeOverloaded)
	})
}

// TestSameClient: which addresses are one client, and that none is stored.
func TestSameClient(t *testing.T) {
	for _, test := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1", "192.0.2.1", true},
		{"192.0.2.1", "192.0.2.2", false},
		{"192.0.2.1", "::ffff:192.0.2.1", true},
		{"2001:db8:1:2::1", "2001:db8:1:2:ffff::9", true},
		{"2001:db8:1:2::1", "2001:db8:1:3::1", false},
		{"fe80::1%eth0", "fe80::1%eth1", true},
		{"no address", "another", true},
		{"no address", "192.0.2.1", false},
	} {
		inBubble(t, func(w *world) {
			w.service.Limits.PerClient = 1
			w.check(w.ask(test.a, planOf(1)), "Submit")
			if err := w.ask(test.b, planOf(2)); (err != nil) != test.same {
				t.Errorf("%s and %s: %v", test.a, test.b, err)
			}
			groups := w.queue.Groups()
			for _, text := range append(w.records.Boards(), groups...) {
				if strings.Contains(text, test.a) || strings.Contains(text, "192.0.2") {
					t.Errorf("the address is in %q", text)
				}
			}
			if len(groups) == 0 || len(groups[0]) != 32 {
				t.Errorf("the groups of the messages are %q", groups)
			}
		})
	}
}

// TestDayLimit: so many builds until midnight UTC.
func TestDayLimit(t *testing.T) {
	inBubble(t, func(w *world) { // it is midnight
		w.service.Limits.PerDay = 2
		w.check(w.ask("", planOf(1)), "Submit")
		w.finish(planOf(1))
		w.check(w.ask("", planOf(2)), "Submit")
		for _, wait := range []time.Duration{time.Hour, 22*time.Hour + 30*time.Minute, 30*time.Minute - time.Millisecond} {
			time.Sleep(wait)
			err := w.ask("", planOf(3))
			wantRefusal(t, err, build.CodeOverloaded)
			if refusal, ok := errors.AsType[*build.Refusal](err); ok && (refusal.RetryAfter > time.Hour+time.Second || !strings.Contains(refusal.Detail, "midnight")) {
				t.Errorf("it says %+v", refusal)
			}
		}
		time.Sleep(time.Millisecond)
		w.check(w.ask("", planOf(3)), "after midnight")
		w.check(w.ask("", planOf(4)), "after midnight")
		wantRefusal(t, w.ask("", planOf(5)), build.CodeOverloaded)
	})
}

// TestGiveBackAtMidnight: a place taken before midnight and given back after it
// does not make the new day longer.
func TestGiveBackAtMidnight(t *testing.T) {
	for _, late := range []bool{false, true} {
		inBubble(t, func(w *world) {
			time.Sleep(24*time.Hour - time.Second)
			other := build.Service{Records: w.records, Queue: w.queue, Secret: secret}
			want := int64(1)
			if late {
				want = 2
			}
			w.faults.On(buildtest.OpCreate, 1, buildtest.FailsBefore)
			w.service.Hook = func(step build.Step, after bool) {
				if step == build.StepCreate && !after && late {
					time.Sleep(2 * time.Second)
					_, err := other.Submit(w.t.Context(), submission(planOf(3)))
					w.check(err, "Submit")
				}
			}
			if err := w.ask("", planOf(1)); !errors.Is(err, buildtest.ErrInjected) {
				t.Fatalf("Submit: %v", err)
			}
			w.service.Hook = nil
			time.Sleep(time.Minute)
			w.check(w.ask("", planOf(2)), "Submit")
			board, err := w.records.Board(w.t.Context(), "", build.Change{})
			w.check(err, "Board")
			if board.Today(time.Now()) != want || board.Pending() != want {
				t.Errorf("late %v: today are %d, pending %d", late, board.Today(time.Now()), board.Pending())
			}
		})
	}
}

func TestToday(t *testing.T) {
	noon := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	today := noon.Unix() / 86400 * build.BoardDay
	for board, want := range map[int64]int64{0: 0, today: 0, today + 7: 7, today - 1: 0, today + build.BoardDay + 3: 3} {
		if got := (build.Board{build.BoardToday: board}).Today(noon); got != want {
			t.Errorf("%d means %d builds, not %d", board, got, want)
		}
	}
}

// TestFlood: a hundred thousand distinct requests from one address cost next to
// no write, and others get their builds meanwhile.
func TestFlood(t *testing.T) {
	inBubble(t, func(w *world) {
		limited(w)
		const floods = 100_000
		refused, writes := 0, 0
		spent := w.calls(func() {
			for n := range floods {
				if n%10_000 == 5_000 { // somebody else, who is served
					writes += 4
					w.check(w.ask(fmt.Sprintf("198.51.100.%d", n/10_000), planOf(1_000_000+n)), "another client")
				}
				if err := w.ask("192.0.2.1", planOf(n)); err != nil {
					refused++
				}
			}
		})
		writes += 20*4 + 1 + 1 // its own builds, the claim of the builder, and once that it has had them all
		if got := spent[buildtest.OpBoard] + spent[buildtest.OpCreate] + spent[buildtest.OpSend] + spent[buildtest.OpReplace]; refused != floods-20 || got != writes {
			t.Errorf("%d are refused, and %d writes were made instead of %d", refused, got, writes)
		}
		if spent["Start"] != 1 || spent[buildtest.OpReadBoard] != 0 {
			t.Errorf("it cost %v", spent)
		}
		w.want(30, 30, 30)
	})
}

// TestFullCostsNoWrite: whom the board of a second ago shows that there is no
// room is refused by that.
func TestFullCostsNoWrite(t *testing.T) {
	for name, limits := range map[string]build.Limits{
		"pending": {Pending: 2, PerClient: 100},
		"today":   {PerDay: 2, PerClient: 100},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(w *world) {
				w.service.Limits = limits
				w.check(w.ask("192.0.2.1", planOf(1)), "Submit")
				w.check(w.ask("192.0.2.1", planOf(2)), "Submit")
				full := func() { wantRefusal(t, w.ask("192.0.2.1", planOf(3)), build.CodeOverloaded) }
				free := calls{buildtest.OpGet: 2} // it may have been created since the first look
				w.wantCalls("a request within the second", free, full)
				time.Sleep(time.Second)
				w.wantCalls("a request after it", calls{buildtest.OpGet: 2, buildtest.OpBoard: 4}, full)
				w.wantCalls("the next one", free, full)
				w.want(2, 2, 2)
				w.service.Limits = build.Limits{PerClient: 3} // of which two are used: what was refused was given back
				w.check(w.ask("192.0.2.1", planOf(4)), "Submit")
			})
		})
	}
}

// TestPrivateGuesses: who guesses scripts gets as many answers as builds,
// whether they were right or not, and asking again after one's own is free.
func TestPrivateGuesses(t *testing.T) {
	inBubble(t, func(w *world) {
		w.service.Limits.PerClient = 5
		guess := func(n int) build.Plan {
			plan := privatePlan()
			plan.Defaults = fmt.Sprintf("uci set password=%d", n)
			return plan
		}
		for n := range 10 { // somebody's builds, of which one will be guessed
			w.check(w.ask(fmt.Sprintf("198.51.100.%d", n), guess(n)), "Submit")
		}
		for n := range 3 {
			w.check(w.ask("192.0.2.1", guess(n)), "a right guess")
		}
		for range 20 {
			w.check(w.ask("192.0.2.1", guess(0)), "the same again")
		}
		for n := range 2 {
			w.check(w.ask("192.0.2.1", guess(100+n)), "a wrong guess")
		}
		reads := w.faults.Calls(buildtest.OpGet)
		wantRefusal(t, w.ask("192.0.2.1", guess(3)), build.CodeOverloaded)
		wantRefusal(t, w.ask("192.0.2.1", guess(200)), build.CodeOverloaded)
		if w.faults.Calls(buildtest.OpGet) != reads {
			t.Error("it is looked up for who may not know")
		}
		w.check(w.ask("192.0.2.1", guess(1)), "the same again")
		w.check(w.ask("198.51.100.3", guess(3)), "the one who made it")
	})
}

// TestPrivateGuessesWhileFull: that there is no room for what was guessed says
// that it was wrong, so it counts.
func TestPrivateGuessesWhileFull(t *testing.T) {
	inBubble(t, func(w *world) {
		w.service.Limits = build.Limits{Pending: 1, PerClient: 2}
		w.check(w.ask("198.51.100.1", planOf(1)), "Submit")
		for n, word := range []string{"waiting", "waiting", "from one address"} {
			time.Sleep(time.Second)
			plan := privatePlan()
			plan.Defaults = fmt.Sprintf("uci set password=%d", n)
			if err := w.ask("192.0.2.1", plan); err == nil || !strings.Contains(err.Error(), word) {
				t.Errorf("guess %d: %v", n, err)
			}
		}
	})
}

// TestBoardFaults: no fault of the board fails or delays a request, and once it
// is over the counts are right again.
func TestBoardFaults(t *testing.T) {
	for name, fault := range map[string]buildtest.Fault{
		"fails": buildtest.FailsBefore, "fails but happens": buildtest.FailsAfter, "hangs": buildtest.Hangs,
	} {
		for _, again := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, again %v", name, again), func(t *testing.T) {
				inBubble(t, func(w *world) { boardFault(w, fault, again) })
			})
		}
	}
}

func boardFault(w *world, fault buildtest.Fault, again bool) {
	limited(w)
	var told []error
	w.service.Fault = func(err error) { told = append(told, err) }
	w.submit(planOf(1))
	if again {
		w.submit(planOf(2))
		w.fail(planOf(2), build.KindUpstream)
	}
	w.countUp()
	w.faults.Always(buildtest.OpBoard, fault).Always(buildtest.OpReadBoard, fault)
	time.Sleep(5 * time.Second)
	began := time.Now()
	status, err := w.service.Submit(w.t.Context(), from("192.0.2.1", planOf(2)))
	w.check(err, "Submit")
	if took := time.Since(began); took > 600*time.Millisecond {
		w.t.Errorf("it took %s", took)
	}
	if rec := status.Record; !rec.Uncounted || rec.State != build.Queued || status.Position < 1 || rec.Sequence < 2 || len(told) == 0 {
		w.t.Errorf("the answer is %+v; told was %v", status, told)
	}
	time.Sleep(5 * time.Second)
	began = time.Now()
	for range 10 {
		if status, err = w.service.Status(w.t.Context(), planIDOf(planOf(2))); err != nil || status.Position < 1 {
			w.t.Errorf("a poll: %+v, %v", status, err)
		}
	}
	if took := time.Since(began); took > 600*time.Millisecond {
		w.t.Errorf("ten polls took %s", took)
	}
	w.faults.Always(buildtest.OpBoard, buildtest.Works).Always(buildtest.OpReadBoard, buildtest.Works)
	w.finish(planOf(2)) // is not counted
	w.finish(planOf(1))
	left := int64(0)
	if fault == buildtest.FailsAfter {
		left = 1 // it was told of the beginning, and nobody knew
	}
	if board := w.board(); board[build.BoardCreated]-board[build.BoardEnded] != left {
		w.t.Errorf("the board is %v", board)
	}
	w.settled()
}

// countUp lets the sweeper count, as the drivers do.
func (w *world) countUp() {
	w.sweeper.Count = func(context.Context) (n int64, err error) {
		for _, rec := range w.records.All() {
			if !rec.Ended() {
				n++
			}
		}
		return n, nil
	}
}

// settled sweeps for a quarter of an hour; then the board is right.
func (w *world) settled() {
	w.t.Helper()
	for range 4 {
		w.sweep()
		time.Sleep(5 * time.Minute)
	}
	counted, _ := w.sweeper.Count(w.t.Context())
	board, err := w.records.Board(w.t.Context(), "", build.Change{})
	w.check(err, "Board")
	if pending := board[build.BoardCreated] - board[build.BoardEnded]; pending != counted {
		w.t.Errorf("the board says %d pending, and %d are", pending, counted)
	}
}

// TestPollsShareALook: while one poll waits for the board, the others go by
// what was seen before.
func TestPollsShareALook(t *testing.T) {
	inBubble(t, func(w *world) {
		w.submit(planOf(1))
		time.Sleep(time.Minute)
		w.faults.Always(buildtest.OpReadBoard, buildtest.Hangs)
		began := time.Now()
		spent := w.calls(func() {
			w.party(50, func(ctx context.Context) error {
				status, err := w.service.Status(ctx, planIDOf(planOf(1)))
				if status.Position != 1 {
					t.Errorf("the place is %d", status.Position)
				}
				return err
			})
		})
		if took := time.Since(began); spent[buildtest.OpReadBoard] != 1 || took > 600*time.Millisecond {
			t.Errorf("they took %s and cost %v", took, spent)
		}
	})
}

// TestUncountedWrites: the record of a build that the board does not know is
// told from another's with the same number, and is found again after a write
// that failed.
func TestUncountedWrites(t *testing.T) {
	for _, fault := range []buildtest.Fault{buildtest.FailsBefore, buildtest.FailsAfter} {
		inBubble(t, func(w *world) {
			w.faults.Always(buildtest.OpBoard, buildtest.FailsBefore)
			w.faults.On(buildtest.OpCreate, 1, fault)
			err := w.ask("", planOf(1))
			if stored := fault == buildtest.FailsAfter; (err == nil) != stored || len(w.records.All()) > 0 != stored || len(w.queue.Sent()) > 0 != stored {
				t.Errorf("fault %d: %v, %d records, %d messages", fault, err, len(w.records.All()), len(w.queue.Sent()))
			}
			w.want(len(w.records.All()), len(w.queue.Sent()), 0)
		})
	}
	inBubble(t, func(w *world) { // somebody else's, with the number that ours would have had
		w.faults.Always(buildtest.OpBoard, buildtest.FailsBefore)
		w.faults.On(buildtest.OpCreate, 1, buildtest.FailsBefore)
		w.service.Hook = func(step build.Step, after bool) {
			if step == build.StepCreate && !after {
				time.Sleep(time.Second)
				theirs := build.NewRecord(planIDOf(planOf(1)), planOf(1), baseRequest(), 1, build.Now())
				theirs.Uncounted = true
				w.check(w.records.Create(w.t.Context(), theirs), "Create")
			}
		}
		if err := w.ask("", planOf(1)); !errors.Is(err, buildtest.ErrInjected) {
			t.Errorf("Submit: %v", err)
		}
		w.want(1, 0, 0)
	})
}

// TestGiveBackFaults: a place that cannot be given back is not the client's
// trouble.
func TestGiveBackFaults(t *testing.T) {
	for _, fault := range []buildtest.Fault{buildtest.FailsBefore, buildtest.FailsAfter, buildtest.Hangs} {
		inBubble(t, func(w *world) {
			w.countUp()
			w.service.Limits = build.Limits{Pending: 1, PerClient: 9}
			w.check(w.ask("192.0.2.1", planOf(1)), "Submit")
			time.Sleep(time.Second)
			w.faults.On(buildtest.OpBoard, 5, fault).On(buildtest.OpBoard, 6, fault)
			began := time.Now()
			wantRefusal(t, w.ask("192.0.2.1", planOf(2)), build.CodeOverloaded)
			if took := time.Since(began); took > 2100*time.Millisecond || w.faults.Calls(buildtest.OpBoard) != 6 {
				t.Errorf("it took %s and %d writes", took, w.faults.Calls(buildtest.OpBoard))
			}
			w.takeUp(20 * time.Minute)
			w.want(1, 1, 1)
		})
	}
}

// TestDying kills the process before and after each step of a request. Asked
// again, there is one build, and in the end the counts are right.
func TestDying(t *testing.T) {
	for _, step := range []build.Step{build.StepCharge, build.StepDraw, build.StepCreate, build.StepSend, "start"} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, after %v", step, after), func(t *testing.T) {
				inBubble(t, func(w *world) { dies(w, step, after) })
			})
		}
	}
}

func dies(w *world, at build.Step, late bool) {
	limited(w)
	w.countUp()
	hit := false
	hook := func(step build.Step, after bool) {
		if step == at && after == late {
			hit = true
			runtime.Goexit()
		}
	}
	w.service.Hook = hook
	start := w.service.Fleet.Start
	w.service.Fleet.Start = func(ctx context.Context, n int) error {
		return build.Hook(hook).Do("start", func() error { return start(ctx, n) })
	}
	var wait sync.WaitGroup
	wait.Go(func() { w.ask("192.0.2.1", planOf(1)) })
	wait.Wait()
	if !hit {
		w.t.Fatal("it did not die")
	}
	second := &build.Service{Records: w.service.Records, Queue: w.service.Queue, Secret: secret, Limits: w.service.Limits}
	w.service = second
	w.check(w.ask("192.0.2.1", planOf(1)), "asked again")
	w.takeUp(20 * time.Minute)
	w.want(1, len(w.queue.Sent()), 1)
	if len(w.queue.Sent()) == 0 {
		w.t.Error("it was never sent")
	}
}

// TestRaceForTheLastPlace: of many clients at once as many get in as there is
// room, whatever the limit.
func TestRaceForTheLastPlace(t *testing.T) {
	for name, limits := range map[string]build.Limits{"pending": {Pending: 7}, "today": {PerDay: 7}, "client": {PerClient: 7}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.service.Limits = limits
				var mu sync.Mutex
				n, refused := 0, 0
				w.party(50, func(ctx context.Context) error {
					mu.Lock()
					n++
					sub := from("192.0.2.1", planOf(n))
					mu.Unlock()
					_, err := w.service.Submit(ctx, sub)
					if _, ok := errors.AsType[*build.Refusal](err); ok {
						mu.Lock()
						refused++
						mu.Unlock()
						return nil
					}
					return err
				})
				if got := len(w.records.All()); got != 7 || refused != 43 {
					t.Errorf("%d got in, %d were refused", got, refused)
				}
				w.want(7, 7, 7)
			})
		})
	}
}
