package catalog

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"maps"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

const (
	// followAge is how old the index in memory may be.
	followAge = time.Minute
	// momentAge is the same where the answer has to be right at this moment.
	momentAge = time.Second
	// newerPatience is how long to wait for a newer thing than the one in
	// memory.
	newerPatience = 2 * time.Second
	// storeRest is the time between a failed call of the store and the next.
	storeRest = 3 * time.Second
	// frozenAfter its end, an effort that is still there was stopped with its
	// process.
	frozenAfter = 5 * time.Second
)

// mirror is a collection over a store. Everything is done while somebody waits
// for it: a process that answers by the request may be frozen after any
// answer, for any time.
type mirror[T any] struct {
	kind[T]
	c *Catalog

	mu      sync.Mutex
	recent  *simplelru.LRU[string, held[T]]
	efforts map[string]*effort
}

// held is a thing in memory, and the stamp that the index gave it then.
type held[T any] struct {
	value *T
	stamp string
}

// effort is what is known of getting one thing.
type effort struct {
	busy   chan struct{} // held by who reads or fetches it
	failed error         // of the last time
	rest   time.Time     // not again before
}

func newMirror[T any](size int, c *Catalog, k kind[T]) *mirror[T] {
	recent, _ := simplelru.NewLRU[string, held[T]](size, nil) // fails for no size only
	return &mirror[T]{kind: k, c: c, recent: recent, efforts: map[string]*effort{}}
}

func (m *mirror[T]) keys() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.recent.Keys()
}

// peek returns what is in memory, and whether the store has nothing newer as
// far as the index tells.
func (m *mirror[T]) peek(key string) (value *T, current bool) {
	stamp := m.c.stamp(m.unit(key))
	m.mu.Lock()
	defer m.mu.Unlock()
	h, ok := m.recent.Get(key)
	return h.value, ok && h.stamp == stamp
}

func (m *mirror[T]) keep(key, stamp string, value *T) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.recent.Add(key, held[T]{value, stamp})
}

func (m *mirror[T]) effort(key string) *effort {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.efforts[key] == nil {
		m.efforts[key] = &effort{busy: make(chan struct{}, 1)}
	}
	return m.efforts[key]
}

// get returns what the store has, else what the upstream has. While neither
// answers, what is in memory will do, but for what has to be right at this
// moment.
func (m *mirror[T]) get(ctx context.Context, key string, n need) (*T, error) {
	old, current := m.peek(key)
	if current {
		return old, nil
	}
	oldWillDo := old != nil && n.maxAge != justNow
	if oldWillDo {
		n.until = time.Now().Add(min(newerPatience, time.Until(n.until)))
	}
	ctx, cancel := context.WithDeadline(ctx, n.until)
	defer cancel()
	value, err := m.bring(ctx, key)
	if value == nil && oldWillDo {
		return old, nil
	}
	return value, err
}

func (m *mirror[T]) bring(ctx context.Context, key string) (*T, error) {
	e := m.effort(key)
	select {
	case e.busy <- struct{}{}:
		defer func() { <-e.busy }()
	case <-ctx.Done():
		return nil, errSlow
	}
	if value, current := m.peek(key); current {
		return value, nil
	}
	if build.Since(e.rest) < 0 {
		return nil, e.failed
	}
	value, b, stamp, err := m.read(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		value, err = m.fetch(ctx, key, b)
	}
	if err == nil {
		m.keep(key, stamp, value)
	}
	return value, e.note(ctx, err)
}

// read takes the thing out of the store. The error is fs.ErrNotExist, then
// with what is left of its unit, or errStore.
func (m *mirror[T]) read(ctx context.Context, key string) (*T, *bundle, string, error) {
	unit := m.unit(key)
	stamp := m.c.stamp(unit) // before reading: a newer one is read again
	o, err := m.c.store.read(ctx, unit)
	if errors.Is(err, errDamaged) {
		m.c.log.Error("catalogue: part of the store is of no use and will be fetched anew", "what", unit, "error", err)
	}
	if err == nil {
		value, err := m.load(o.bundle, key)
		return value, o.bundle, stamp, err
	}
	if !errors.Is(err, errStore) {
		err = fs.ErrNotExist
	} else if ctx.Err() == nil {
		m.c.log.Error("catalogue: the store fails", "error", err)
	}
	return nil, newBundle(m.c.web.base), stamp, err
}

// fetch brings the thing from the upstream into the store.
func (m *mirror[T]) fetch(ctx context.Context, key string, b *bundle) (*T, error) {
	unit := m.unit(key)
	err := m.c.retry(ctx, unit, func() error { return m.refresh(ctx, b, key) })
	var value *T
	if err == nil {
		value, err = m.load(b, key)
	}
	// There is time left to store what came just in time.
	rest, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeRest)
	defer cancel()
	var trouble error
	if err == nil {
		_, trouble = m.c.store.write(rest, unit, b)
	} else if ctx.Err() == context.DeadlineExceeded {
		err, trouble = errSlow, m.c.store.want(rest, unit)
	}
	if trouble != nil {
		m.c.log.Warn("catalogue: not stored for others", "what", unit, "error", trouble)
	}
	return value, err
}

// note keeps in mind what failed, so that not every request tries it again.
// That a caller left, or that this process was stopped meanwhile, is no
// failure.
func (e *effort) note(ctx context.Context, err error) error {
	end, _ := ctx.Deadline()
	switch {
	case err == nil, ctx.Err() == context.Canceled, build.Since(end) > frozenAfter:
		e.failed, e.rest = nil, time.Time{}
	case errors.Is(err, errStore):
		e.failed, e.rest = err, time.Now().Add(storeRest)
	default:
		e.failed, e.rest = err, time.Now().Add(restAfter(err))
	}
	return err
}

// warm begins to read the thing from the store, if the index knows it; the
// function that it returns waits for that.
func (m *mirror[T]) warm(ctx context.Context, key string) (wait func()) {
	if _, current := m.peek(key); current || m.c.stamp(m.unit(key)) == "" {
		return func() {}
	}
	var g sync.WaitGroup
	g.Go(func() {
		e := m.effort(key)
		select {
		case e.busy <- struct{}{}:
			defer func() { <-e.busy }()
		default:
			return // somebody does it
		}
		if value, _, stamp, err := m.read(ctx, key); err == nil {
			m.keep(key, stamp, value)
		}
	})
	return g.Wait
}

// retry calls f until it succeeds, or fails for good or too often, or the time
// is over.
func (c *Catalog) retry(ctx context.Context, what string, f func() error) error {
	note := func(err error, next time.Duration) {
		c.log.Warn("catalogue: update failed, will be tried again", "what", what, "in", next.Round(time.Millisecond), "error", err)
	}
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval = 250 * time.Millisecond
	_, err := backoff.Retry(ctx, func() (struct{}, error) { return struct{}{}, f() },
		backoff.WithBackOff(pause), backoff.WithMaxTries(hopeless), backoff.WithNotify(note))
	if err != nil && !errors.Is(err, errAbsent) && !errors.Is(err, errUnmade) {
		c.log.Error("catalogue: update given up for now", "what", what, "error", err)
	}
	return err
}

// reading is the store's index as it was read last.
type reading struct {
	at       time.Time // when
	contents contents
	files    *bundle
	failed   error // of a later attempt
	rest     time.Time
}

// stamp is what the index says of a unit, "" if it does not know it.
func (c *Catalog) stamp(unit string) string {
	if r := c.synced.Load(); r != nil {
		return r.contents.Stamps[unit]
	}
	return ""
}

// sync reads the index anew if what is in memory is older than maxAge.
func (c *Catalog) sync(ctx context.Context, maxAge time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	if r := c.synced.Load(); r != nil && build.Since(r.at) < maxAge {
		return nil
	}
	select {
	case c.syncing <- struct{}{}:
		defer func() { <-c.syncing }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	old := cmp.Or(c.synced.Load(), &reading{})
	switch {
	case build.Since(old.at) < maxAge:
		return nil
	case build.Since(old.rest) < 0:
		return old.failed
	}
	o, err := c.store.read(ctx, indexUnit)
	if err == nil {
		err = c.adopt(o.bundle)
	}
	if err != nil && ctx.Err() != context.Canceled {
		failed := *old
		failed.failed, failed.rest = err, time.Now().Add(storeRest)
		c.synced.Store(&failed)
		c.log.Error("catalogue: its index cannot be read from the store", "error", err)
	}
	return err
}

// adopt makes an index the one to go by.
func (c *Catalog) adopt(b *bundle) error {
	r := &reading{at: time.Now(), files: b}
	err := b.takeJSON(contentsFile, &r.contents)
	b.drop(ledgerFile)
	v, missing := loadVersions(b)
	if err := errors.Join(err, missing); err != nil {
		return err
	}
	if old := c.synced.Load(); old == nil || old.files == nil || !maps.Equal(old.files.files, b.files) {
		c.look(b, v)
	}
	c.synced.Store(r)
	if !r.contents.Looked.IsZero() {
		c.looked.Store(r.contents.Looked.Unix())
	}
	return nil
}
