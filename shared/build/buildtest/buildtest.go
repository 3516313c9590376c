// Package buildtest holds what everything around the three interfaces of
// package build is tested with: a contract suite for each, run over every
// driver; fakes in memory that are stricter than production; flaws that can be
// seeded into the fakes, to show that a test would notice them; and faults,
// which make writes fail.
package buildtest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// contract is a suite: what every driver D has to pass, each case on a fresh
// and empty one.
type contract[D any] []struct {
	name string
	run  func(testing.TB, D)
}

func (c contract[D]) run(t *testing.T, open func(testing.TB) D) {
	for _, clause := range c {
		t.Run(clause.name, func(t *testing.T) {
			t.Parallel()
			driver := open(t)
			t.Logf("driver %T", driver)
			clause.run(t, driver)
		})
	}
}

// Fails is a test of a test: it fails unless f, run on a broken thing, does.
func Fails(t testing.TB, f func(testing.TB)) {
	t.Helper()
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer r.clean()
		f(r)
	}()
	<-done
	if !r.Failed() {
		t.Errorf("it passes although what it tests is broken, so it proves nothing")
	}
}

// recorder takes the place of a *testing.T and keeps the verdict to itself.
type recorder struct {
	testing.TB
	mu       sync.Mutex
	failed   bool
	cleanups []func()
}

func (r *recorder) Fail() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = true
}

func (r *recorder) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

func (r *recorder) FailNow() {
	r.Fail()
	runtime.Goexit()
}

func (r *recorder) Cleanup(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cleanups = append(r.cleanups, f)
}

func (r *recorder) clean() {
	for i := len(r.cleanups) - 1; i >= 0; i-- {
		r.cleanups[i]()
	}
}

func (r *recorder) Log(...any)            {}
func (r *recorder) Logf(string, ...any)   {}
func (r *recorder) Error(...any)          { r.Fail() }
func (r *recorder) Errorf(string, ...any) { r.Fail() }
func (r *recorder) Fatal(...any)          { r.FailNow() }
func (r *recorder) Fatalf(string, ...any) { r.FailNow() }

// NewID draws an ID.
func NewID() build.ID {
	var b [32]byte
	rand.Read(b[:])
	return build.ID(hex.EncodeToString(b[:]))
}

// NewRecord is a queued record of a small plan under a new ID.
func NewRecord() build.Record {
	plan := build.Plan{
		Distribution: "OpenWrt", Version: "24.10.5", Revision: "r29087-d9c5716d1d",
		Target: "x86/64", Profile: "generic", Add: []string{"luci", "tmux"},
	}
	request := build.Request{Version: "24.10.5", Target: "x86/64", Packages: []string{"tmux", "luci"}}
	return build.NewRecord(NewID(), plan, request, 1, build.Now())
}

// text is a value in a form that can be compared: nil and empty lists are one.
func text(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatalf("encode %T: %v", v, err)
	}
	return string(b)
}

func check(t testing.TB, err error, what string) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// eventually waits for what a driver may deliver late.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(3 * time.Second); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within three seconds: %s", what)
		}
	}
}

// atOnce runs n copies of f, started together, and waits for them.
func atOnce(n int, f func(i int)) {
	var wait sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wait.Go(func() {
			<-start
			f(i)
		})
	}
	close(start)
	wait.Wait()
}

// within is a context that ends after d.
func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
