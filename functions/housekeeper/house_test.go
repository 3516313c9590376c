package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
)

// parts are faults of a house over fakes, and what it did all the same.
type parts struct {
	catalogue func(context.Context) error
	due       error
	board     error
	count     error
	alive     error
	publish   error
	key       error
	missed    bool // the board was told of no build

	refreshed, published, keys, looked, started int
	out                                         bytes.Buffer
}

func (p *parts) Refresh(ctx context.Context) error {
	p.refreshed++
	if p.catalogue != nil {
		return p.catalogue(ctx)
	}
	return nil
}

func (p *parts) Publish(context.Context) error {
	p.published++
	return p.publish
}

func (p *parts) PublishKey(context.Context) error {
	p.keys++
	return p.key
}

func (p *parts) Age() (time.Duration, bool) { return 3 * time.Minute, true }

// faultyRecords fail as the parts say.
type faultyRecords struct {
	build.Records
	parts *parts
}

func (r faultyRecords) Due(ctx context.Context, before time.Time, n int) ([]build.Record, error) {
	r.parts.looked++
	if r.parts.due != nil {
		return nil, r.parts.due
	}
	return r.Records.Due(ctx, before, n)
}

func (r faultyRecords) Board(ctx context.Context, name string, change build.Change) (build.Board, error) {
	if r.parts.board != nil {
		return nil, r.parts.board
	}
	return r.Records.Board(ctx, name, change)
}

// house has ten builds waiting, by its board.
func (p *parts) house(t testing.TB) *house {
	t.Helper()
	memory := buildtest.NewRecords(t)
	if !p.missed {
		if _, err := memory.Board(t.Context(), "", build.Change{Add: build.Board{build.BoardCreated: 10}}); err != nil {
			t.Fatal(err)
		}
	}
	records := faultyRecords{memory, p}
	start := func(_ context.Context, n int) error {
		p.started += n
		return nil
	}
	return &house{
		catalogue: p, publish: p.Publish, publishKey: p.PublishKey, records: records, log: slog.New(slog.DiscardHandler), out: &p.out,
		sweeper: &build.Sweeper{Records: records, Queue: buildtest.NewQueue(t, time.Minute), Objects: buildtest.NewObjects(t), Lifetimes: build.DefaultLifetimes},
		fleet:   &build.Fleet{Records: records, Max: 2, Start: start},
		count:   func(context.Context) (int64, error) { return 5, p.count },
		alive:   func(context.Context) (int, error) { return 0, p.alive },
	}
}

var errPart = errors.New("this part is out of order")

func TestEachPartRuns(t *testing.T) {
	for _, c := range []struct {
		name    string
		parts   parts
		started int
		want    []string // in the error
	}{
		{"all well", parts{}, 2, nil},
		{"no upstream", parts{catalogue: func(context.Context) error { return errPart }}, 2, []string{"refresh the catalogue: "}},
		{"a defect", parts{catalogue: func(context.Context) error { panic("no") }}, 2, []string{"refresh the catalogue: panic: no"}},
		{"no CDN", parts{publish: errPart}, 2, []string{"publish the catalogue: "}},
		{"no key", parts{key: errPart}, 2, []string{"publish the server's key: "}},
		{"no index", parts{due: errPart}, 2, []string{"sweep: "}},
		{"no board", parts{board: errPart}, 0, []string{"start builders: "}}, // who starts notes it there
		{"no count", parts{count: errPart}, 2, []string{"start builders: "}},
		{"the board missed them", parts{missed: true}, 2, nil},
		{"no ECS", parts{alive: errPart}, 0, []string{"start builders: "}},
		{"nothing", parts{catalogue: func(context.Context) error { return errPart }, due: errPart, alive: errPart}, 0, []string{"refresh the catalogue: ", "sweep: ", "start builders: "}},
	} {
		err := c.parts.house(t).run(t.Context())
		if (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v", c.name, err)
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q in it", c.name, err, want)
			}
		}
		if c.parts.refreshed != 1 || c.parts.published != 1 || c.parts.keys != 1 || c.parts.looked == 0 || c.parts.started != c.started {
			t.Errorf("%s: refreshed %d times, looked %d times, started %d builders", c.name, c.parts.refreshed, c.parts.looked, c.parts.started)
		}
		var line map[string]any
		if err := json.Unmarshal(c.parts.out.Bytes(), &line); err != nil || line["CatalogueAge"] != 3.0 {
			t.Errorf("%s: the metrics are %s (%v)", c.name, &c.parts.out, err)
		}
	}
}

// TestBounded has an upstream that never answers.
func TestBounded(t *testing.T) {
	hang := func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}
	for _, limit := range []time.Duration{0, 30 * time.Second, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			p := &parts{catalogue: hang}
			ctx, want := t.Context(), wholeTime
			if limit > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, limit)
				defer cancel()
				want = min(want, limit-spareTime)
			}
			began := time.Now()
			err := p.house(t).run(ctx)
			if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took != want || p.started != 2 {
				t.Errorf("with %v it ended after %v with %v, and started %d builders", limit, took, err, p.started)
			}
		})
	}
}
