package buildtest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// MemoryQueue keeps messages in memory and delivers them in random order. An
// outdated receipt acts on whoever holds the message now, as the worst of the
// real queues do; Stale counts such calls. It fails the test if a receipt is
// made up.
type MemoryQueue struct {
	t          testing.TB
	flaws      flaws
	visibility time.Duration

	mu       sync.Mutex
	messages map[string]*message
	issued   map[string]bool // receipts
	sent     []build.ID
	groups   []string
	stale    int
	change   chan struct{} // closed when a message may have become available
	token    chan struct{} // for OneWoken: what it signals instead, and when it last did
	signaled time.Time
}

type message struct {
	id       build.ID
	visible  time.Time
	received int
}

var _ build.Queue = (*MemoryQueue)(nil)

// NewQueue returns an empty queue that hides received messages for the
// visibility.
func NewQueue(t testing.TB, visibility time.Duration, flaws ...Flaw) *MemoryQueue {
	return &MemoryQueue{
		t: t, flaws: flawed(flaws), visibility: visibility,
		messages: map[string]*message{}, issued: map[string]bool{}, change: make(chan struct{}), token: make(chan struct{}, 100),
	}
}

// Sent lists every ID that was ever sent.
func (q *MemoryQueue) Sent() []build.ID {
	q.mu.Lock()
	defer q.mu.Unlock()
	return append([]build.ID(nil), q.sent...)
}

// Groups lists the group of every message that was ever sent.
func (q *MemoryQueue) Groups() []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return append([]string(nil), q.groups...)
}

// Len is the number of messages, hidden ones included.
func (q *MemoryQueue) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.messages)
}

// Stale counts the calls of Extend and Delete with an outdated receipt that
// hit a message which somebody else had received by then.
func (q *MemoryQueue) Stale() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.stale
}

// changed wakes everybody who waits. q.mu is held.
func (q *MemoryQueue) changed() {
	if q.flaws[OneWoken] {
		if time.Since(q.signaled) > 10*time.Millisecond {
			q.signaled = time.Now()
			q.token <- struct{}{}
		}
		return
	}
	close(q.change)
	q.change = make(chan struct{})
}

// Send implements build.Queue.
func (q *MemoryQueue) Send(ctx context.Context, id build.ID, class build.Class, group string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, err := build.ParseID(string(id)); err != nil {
		q.t.Errorf("misuse of Queue: Send of %q, which is no ID", id)
	}
	if class != build.ClassInteractive && class != build.ClassBulk {
		q.t.Errorf("misuse of Queue: Send with class %q", class)
	}
	q.sent, q.groups = append(q.sent, id), append(q.groups, group)
	if q.flaws[BulkLost] && class == build.ClassBulk || q.flaws[Deduplicates] && q.holds(id) {
		return nil
	}
	q.messages[fmt.Sprintf("m%d", len(q.sent))] = &message{id: id, visible: time.Now()}
	if !q.flaws[NotWoken] {
		q.changed()
	}
	return nil
}

func (q *MemoryQueue) holds(id build.ID) bool {
	for _, m := range q.messages {
		if m.id == id {
			return true
		}
	}
	return false
}

// Receive implements build.Queue.
func (q *MemoryQueue) Receive(ctx context.Context) (build.Message, error) {
	if q.flaws[IgnoresContext] {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), time.Hour)
		defer cancel()
	}
	for {
		if err := ctx.Err(); err != nil {
			return build.Message{}, q.ended(err)
		}
		m, change, wait := q.take()
		if m.Receipt != "" {
			return m, nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-change:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

func (q *MemoryQueue) ended(err error) error {
	if q.flaws[OtherContextError] {
		return errors.New("no message")
	}
	return err
}

// take receives a message if one is available; else it returns what to wait
// for: a change, or the time at which the next one becomes available.
func (q *MemoryQueue) take() (build.Message, <-chan struct{}, time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	wait := time.Second
	for name, m := range q.messages { // in random order
		if d := time.Until(m.visible); d > 0 {
			wait = min(wait, d)
			continue
		}
		return q.deliver(name, m), nil, 0
	}
	if q.flaws[OneWoken] {
		return build.Message{}, q.token, time.Second
	}
	return build.Message{}, q.change, wait
}

func (q *MemoryQueue) deliver(name string, m *message) build.Message {
	m.received++
	switch {
	case q.flaws[LosesMessage], q.flaws[ReceiveLimit] && m.received >= 10:
		delete(q.messages, name)
	case q.flaws[HiddenForever]:
		m.visible = time.Now().Add(time.Hour)
	case !q.flaws[NotHidden]:
		m.visible = time.Now().Add(q.visibility)
	}
	receipt := fmt.Sprintf("%s/%d", name, m.received)
	q.issued[receipt] = true
	return build.Message{ID: m.id, Receipt: receipt}
}

// find returns the message of a receipt, nil if it is gone.
func (q *MemoryQueue) find(r build.Message) (name string, m *message, err error) {
	if !q.issued[r.Receipt] {
		q.t.Errorf("misuse of Queue: the receipt %q was never given out", r.Receipt)
	}
	name, delivery, _ := strings.Cut(r.Receipt, "/")
	m = q.messages[name]
	if m == nil || delivery != fmt.Sprint(m.received) {
		if m != nil {
			q.stale++
		}
		if q.flaws[StaleReceiptFails] {
			return "", nil, errors.New("outdated receipt")
		}
	}
	return name, m, nil
}

// Extend implements build.Queue.
func (q *MemoryQueue) Extend(ctx context.Context, r build.Message, d time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if d < 0 {
		q.t.Errorf("misuse of Queue: Extend by %v", d)
	}
	_, m, err := q.find(r)
	if err != nil || m == nil || q.flaws[ExtendIgnored] || q.flaws[ExtendZeroIgnored] && d == 0 {
		return err
	}
	m.visible = time.Now().Add(d)
	q.changed()
	return nil
}

// Delete implements build.Queue.
func (q *MemoryQueue) Delete(ctx context.Context, r build.Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	name, _, err := q.find(r)
	if err == nil && !q.flaws[DeleteIgnored] {
		delete(q.messages, name)
	}
	return err
}
