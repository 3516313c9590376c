package buildtest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// Queue runs the contract of build.Queue over the driver that open opens,
// fresh and empty for each case, with the visibility time that it asks for or
// the shortest above it that the driver has.
func Queue(t *testing.T, open func(t testing.TB, visibility time.Duration) (build.Queue, time.Duration)) {
	queueContract.run(t, func(t testing.TB) timedQueue {
		queue, visibility := open(t, 100*time.Millisecond)
		return timedQueue{queue, visibility}
	})
}

type timedQueue struct {
	build.Queue
	visibility time.Duration
}

// prompt is how soon a waiting receiver gets a message, and brief is how long
// a case looks for one that should not be there.
const (
	prompt = 500 * time.Millisecond
	brief  = 30 * time.Millisecond
)

var queueContract = contract[timedQueue]{
	{"what is sent is received", func(t testing.TB, q timedQueue) {
		id := q.send(t, NewID())
		if m := q.receive(t); m.ID != id || m.Receipt == "" {
			t.Errorf("received %q with receipt %q", m.ID, m.Receipt)
		}
	}},
	{"messages of both classes and every group arrive", func(t testing.TB, q timedQueue) {
		want := map[build.ID]bool{}
		for _, class := range []build.Class{build.ClassInteractive, build.ClassBulk} {
			for _, group := range []string{"", "203.0.113.7"} {
				id := NewID()
				want[id] = true
				check(t, q.Send(t.Context(), id, class, group), "Send")
			}
		}
		for len(want) > 0 {
			m := q.receive(t)
			delete(want, m.ID)
			check(t, q.Delete(t.Context(), m), "Delete")
		}
	}},
	{"a received message is hidden for the visibility time", func(t testing.TB, q timedQueue) {
		q.send(t, NewID())
		start := time.Now()
		q.receive(t)
		q.wantNone(t, start.Add(q.visibility))
	}},
	{"a message that nobody deletes comes back", func(t testing.TB, q timedQueue) {
		id := q.send(t, NewID())
		for range 3 {
			if m := q.receive(t); m.ID != id {
				t.Errorf("received another message")
			}
		}
	}},
	{"a deleted message never comes back", func(t testing.TB, q timedQueue) {
		q.send(t, NewID())
		check(t, q.Delete(t.Context(), q.receive(t)), "Delete")
		time.Sleep(q.visibility)
		q.wantNone(t, time.Now().Add(time.Hour))
	}},
	{"deleting twice is no error", func(t testing.TB, q timedQueue) {
		q.send(t, NewID())
		m := q.receive(t)
		check(t, q.Delete(t.Context(), m), "Delete")
		check(t, q.Delete(t.Context(), m), "the second Delete")
		check(t, q.Extend(t.Context(), m, time.Minute), "Extend after Delete")
	}},
	{"extending hides a message for longer", func(t testing.TB, q timedQueue) {
		q.send(t, NewID())
		m := q.receive(t)
		start := time.Now()
		check(t, q.Extend(t.Context(), m, q.visibility+time.Minute), "Extend")
		time.Sleep(q.visibility)
		q.wantNone(t, start.Add(time.Minute))
	}},
	{"extending by zero makes a message available at once", func(t testing.TB, q timedQueue) {
		id := q.send(t, NewID())
		m := q.receive(t)
		check(t, q.Extend(t.Context(), m, time.Hour), "Extend")
		check(t, q.Extend(t.Context(), m, 0), "Extend by zero")
		if m := q.receiveIn(t, prompt); m.ID != id {
			t.Errorf("received another message")
		}
	}},
	{"extending by zero wakes who waits", func(t testing.TB, q timedQueue) {
		q.send(t, NewID())
		m := q.receive(t)
		check(t, q.Extend(t.Context(), m, time.Hour), "Extend")
		q.wantWoken(t, func() { check(t, q.Extend(t.Context(), m, 0), "Extend by zero") })
	}},
	{"an outdated receipt is no error", func(t testing.TB, q timedQueue) {
		q.send(t, NewID())
		old := q.receive(t)
		q.receive(t)
		check(t, q.Extend(t.Context(), old, q.visibility), "Extend with an outdated receipt")
		check(t, q.Delete(t.Context(), old), "Delete with an outdated receipt")
	}},
	{"a message received fifty times is still there", func(t testing.TB, q timedQueue) {
		id := q.send(t, NewID())
		for range 50 {
			m := q.receiveIn(t, prompt)
			if m.ID != id {
				t.Fatalf("received another message")
			}
			check(t, q.Extend(t.Context(), m, 0), "Extend by zero")
		}
	}},
	{"an ID can be sent again while it is in flight", func(t testing.TB, q timedQueue) {
		id := q.send(t, NewID())
		check(t, q.Extend(t.Context(), q.receive(t), time.Hour), "Extend")
		q.send(t, id)
		if m := q.receiveIn(t, prompt); m.ID != id {
			t.Errorf("received another message")
		}
	}},
	{"a waiting receiver wakes when something is sent", func(t testing.TB, q timedQueue) {
		for range 4 { // a slow poll would be in time once, but not always
			q.wantWoken(t, func() { q.send(t, NewID()) })
			check(t, q.Delete(t.Context(), q.receive(t)), "Delete")
		}
	}},
	{"many waiting receivers wake for as many messages", manyWoken},
	{"receiving ends with its context", func(t testing.TB, q timedQueue) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(brief, cancel)
		q.wantEnd(t, ctx, context.Canceled)
		q.wantEnd(t, ctx, context.Canceled) // which has ended already
		q.wantEnd(t, within(t, brief), context.DeadlineExceeded)
	}},
	{"an ended context receives no message", func(t testing.TB, q timedQueue) {
		q.send(t, NewID())
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		q.wantEnd(t, ctx, context.Canceled)
		q.receiveIn(t, prompt) // it is not hidden
	}},
	{"many senders and receivers lose nothing", nothingLost},
}

func (q timedQueue) send(t testing.TB, id build.ID) build.ID {
	t.Helper()
	check(t, q.Send(t.Context(), id, build.ClassInteractive, ""), "Send")
	return id
}

// receive waits long enough for a message to become visible again.
func (q timedQueue) receive(t testing.TB) build.Message {
	t.Helper()
	return q.receiveIn(t, q.visibility+5*time.Second)
}

func (q timedQueue) receiveIn(t testing.TB, d time.Duration) build.Message {
	t.Helper()
	m, err := q.Receive(within(t, d))
	check(t, err, "Receive")
	return m
}

// wantNone fails if a message can be received before the time.
func (q timedQueue) wantNone(t testing.TB, before time.Time) {
	t.Helper()
	m, err := q.Receive(within(t, min(brief, time.Until(before))))
	if err == nil && time.Now().Before(before) {
		t.Errorf("received %s, which is hidden or gone", m.ID.Short())
	}
}

// wantWoken fails if a receiver that waits does not get the message that act
// makes available soon.
func (q timedQueue) wantWoken(t testing.TB, act func()) {
	t.Helper()
	got := make(chan error, 1)
	ctx := within(t, 10*time.Second)
	go func() {
		_, err := q.Receive(ctx)
		got <- err
	}()
	time.Sleep(brief)
	start := time.Now()
	act()
	if err := <-got; err != nil || time.Since(start) > prompt {
		t.Errorf("the waiting receiver got the message after %v (%v)", time.Since(start), err)
	}
}

func (q timedQueue) wantEnd(t testing.TB, ctx context.Context, want error) {
	t.Helper()
	got := make(chan error, 1)
	go func() {
		_, err := q.Receive(ctx)
		got <- err
	}()
	select {
	case err := <-got:
		wantError(t, err, want, "Receive with a context that ends")
	case <-time.After(5 * time.Second):
		t.Fatalf("Receive goes on after its context has ended")
	}
}

func manyWoken(t testing.TB, q timedQueue) {
	ctx := within(t, 10*time.Second)
	var receivers sync.WaitGroup
	for range 4 {
		receivers.Go(func() {
			m, err := q.Receive(ctx)
			if err == nil {
				err = q.Delete(ctx, m)
			}
			if err != nil {
				t.Errorf("receive and delete: %v", err)
			}
		})
	}
	time.Sleep(brief)
	start := time.Now()
	atOnce(4, func(int) {
		if err := q.Send(ctx, NewID(), build.ClassInteractive, ""); err != nil {
			t.Errorf("Send: %v", err)
		}
	})
	receivers.Wait()
	if took := time.Since(start); took > prompt {
		t.Errorf("four waiting receivers had four messages only after %v", took)
	}
}

// nothingLost counts deliveries: every ID arrives, and is deleted in time so
// that it arrives once.
func nothingLost(t testing.TB, q timedQueue) {
	const n = 60
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var mu sync.Mutex
	missing := map[build.ID]bool{}
	var senders, receivers sync.WaitGroup
	for range 4 {
		receivers.Go(func() {
			for {
				m, err := q.Receive(ctx)
				if errors.Is(err, context.Canceled) {
					return
				}
				if err == nil {
					err = q.Delete(context.WithoutCancel(ctx), m)
				}
				if err != nil {
					t.Errorf("receive and delete: %v", err)
					return
				}
				mu.Lock()
				delete(missing, m.ID)
				if len(missing) == 0 {
					cancel()
				}
				mu.Unlock()
			}
		})
	}
	mu.Lock()
	for range n {
		missing[NewID()] = true
	}
	for id := range missing {
		senders.Go(func() {
			if err := q.Send(ctx, id, build.ClassInteractive, ""); err != nil {
				t.Errorf("Send: %v", err)
			}
		})
	}
	mu.Unlock()
	senders.Wait()
	receivers.Wait()
	if len(missing) > 0 {
		t.Errorf("%d of %d messages never arrived", len(missing), n)
	}
}
