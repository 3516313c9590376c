package catalog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
	"github.com/attended-sysupgrade/sysup/shared/catalog/catalogtest"
	"github.com/attended-sysupgrade/sysup/shared/dir"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// counted counts the calls of a store and lets them fail or wait.
type counted struct {
	build.Objects
	mu    sync.Mutex
	calls calls
	fault func(ctx context.Context, verb, key string) error
}

type calls struct{ Open, Put, List, Delete int }

func (o *counted) call(ctx context.Context, verb, key string, count *int) error {
	o.mu.Lock()
	*count++
	fault := o.fault
	o.mu.Unlock()
	if fault == nil {
		return nil
	}
	return fault(ctx, verb, key)
}

func (o *counted) Open(ctx context.Context, key string) (io.ReadCloser, build.ObjectInfo, error) {
	if err := o.call(ctx, "open", key, &o.calls.Open); err != nil {
		return nil, build.ObjectInfo{}, err
	}
	return o.Objects.Open(ctx, key)
}

func (o *counted) Put(ctx context.Context, key string, r io.Reader, policy build.Policy) error {
	if err := o.call(ctx, "put", key, &o.calls.Put); err != nil {
		return err
	}
	return o.Objects.Put(ctx, key, r, policy)
}

func (o *counted) List(ctx context.Context, prefix string) iter.Seq2[build.ObjectInfo, error] {
	if err := o.call(ctx, "list", prefix, &o.calls.List); err != nil {
		return func(yield func(build.ObjectInfo, error) bool) { yield(build.ObjectInfo{}, err) }
	}
	return o.Objects.List(ctx, prefix)
}

func (o *counted) Delete(ctx context.Context, key string) error {
	if err := o.call(ctx, "delete", key, &o.calls.Delete); err != nil {
		return err
	}
	return o.Objects.Delete(ctx, key)
}

func (o *counted) setFault(fault func(ctx context.Context, verb, key string) error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fault = fault
}

// since returns the calls since the last time it was called.
func (o *counted) since() calls {
	o.mu.Lock()
	defer o.mu.Unlock()
	was := o.calls
	o.calls = calls{}
	return was
}

// wide is a sample with a version that is not the newest of its branch.
func wide(t testing.TB) *catalogtest.Upstream {
	t.Helper()
	u := sample(t)
	u.Release("24.10.4", "r29000-0123456789")
	return u
}

// site is a store with its upstream.
type site struct {
	t     testing.TB
	up    *catalogtest.Upstream
	store *counted
	log   *lockedLog
}

type lockedLog struct {
	lockedWriter
	text strings.Builder
}

func newSite(t testing.TB, up *catalogtest.Upstream) *site {
	return newSiteOver(t, up, buildtest.NewObjects(t))
}

func newSiteOver(t testing.TB, up *catalogtest.Upstream, o build.Objects) *site {
	log := &lockedLog{}
	log.w = &log.text
	return &site{t, up, &counted{Objects: o}, log}
}

func (s *site) open(follow bool, client *http.Client) world {
	s.t.Helper()
	c, err := New(Options{
		Upstream: "https://upstream.test/", Keys: s.up.Keys(), Objects: s.store, Follow: follow, Client: client,
		Log: slog.New(slog.NewTextHandler(s.log, nil)),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return world{Catalog: c, up: s.up}
}

func (s *site) leader() world   { return s.open(false, s.up.Client()) }
func (s *site) follower() world { return s.open(true, s.up.Client()) }

// recluse is a follower that fails the test when it asks the upstream.
func (s *site) recluse() world {
	return s.open(true, &http.Client{Transport: forbidden{s.t}})
}

type forbidden struct{ t testing.TB }

func (f forbidden) RoundTrip(r *http.Request) (*http.Response, error) {
	f.t.Errorf("the upstream is asked for %s", r.URL)
	return nil, errors.New("no upstream")
}

func (w world) refresh(t testing.TB) {
	t.Helper()
	if err := w.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
}

var everything = []struct{ version, target, profile string }{
	{"24.10.5", x86, ""}, {"24.10.5", ath79, "carambola2"}, {"24.10.4", x86, ""}, {"25.12.0-rc1", ath79, "tplink,archer-c7-v5"}, {"SNAPSHOT", x86, ""},
}

// answers are what a catalogue says to many questions.
func (w world) answers(t testing.TB) string {
	t.Helper()
	var all []any
	o, err := w.Overview(t.Context())
	all = append(all, o, err, w.Ready())
	for _, q := range everything {
		d := w.device(t, q.version, q.target, q.profile, "")
		var names []string
		for name := range d.names() {
			names = append(names, name)
		}
		archive, err := w.ImageBuilder(t.Context(), q.version, q.target)
		revision, err2 := w.Revision(t.Context(), q.version, q.target)
		all = append(all, d.Facts, d.Arch, d.Titles, d.SupportedDevices, names, archive, archive.URL, revision, err, err2,
			d.Canonical("libubox20240329"), fmt.Sprint(d.CheckPackages([]string{"nano", "kmod-wireguard", "nanoo"})))
	}
	return asJSON(t, all)
}

// A follower answers from the store all that a catalogue of its own would.
func TestFollower(t *testing.T) {
	for _, driver := range []string{"memory", "dir"} {
		t.Run(driver, func(t *testing.T) {
			var objects build.Objects = buildtest.NewObjects(t)
			if driver == "dir" {
				d, err := dir.Open(t.TempDir())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { d.Close() })
				objects = d
			}
			s := newSiteOver(t, wide(t), objects)
			want := fetched(t, s.up).answers(t)
			leader := s.leader()
			leader.refresh(t)
			if got := s.follower().answers(t); got != want {
				t.Errorf("who fetches into the store says\n%s\nwant\n%s", got, want)
			}
			leader.refresh(t)
			for _, name := range []string{"before", "after"} {
				r := s.recluse()
				r.refresh(t)
				if got := r.answers(t); got != want {
					t.Errorf("%s the leader's second round a follower says\n%s\nwant\n%s", name, got, want)
				}
				leader.refresh(t)
			}
		})
	}
}

// A process that starts needs three objects for its first answer, two of them
// at once.
func TestColdAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, wide(t))
		s.leader().refresh(t)
		s.follower().answers(t)
		s.leader().refresh(t)
		const far = 20 * time.Millisecond
		s.store.setFault(func(context.Context, string, string) error { time.Sleep(far); return nil })
		for _, c := range []struct {
			version string
			reads   int
			rounds  time.Duration
		}{
			{"24.10.5", 3, 2}, // the index, then the target and its feeds
			{"SNAPSHOT", 3, 2},
			{"24.10.4", 4, 3}, // not the newest of its branch: the list of its targets, too
		} {
			s.store.since()
			w := s.recluse()
			if n := s.store.since(); n != (calls{}) {
				t.Errorf("opening makes %+v", n)
			}
			before := time.Now()
			w.device(t, c.version, x86, "", "")
			if n := s.store.since(); n != (calls{Open: c.reads}) {
				t.Errorf("%s: the first answer makes %+v, want %d reads", c.version, n, c.reads)
			}
			if took := time.Since(before); took != c.rounds*far {
				t.Errorf("%s: the first answer takes %s, want %d rounds of %s", c.version, took, c.rounds, far)
			}
			w.device(t, c.version, x86, "", "")
			if n := s.store.since(); n != (calls{}) {
				t.Errorf("%s: the second answer makes %+v", c.version, n)
			}
			if _, err := w.ImageBuilder(t.Context(), c.version, x86); err != nil {
				t.Error(err)
			}
			s.store.since()
			time.Sleep(followAge)
			w.device(t, c.version, x86, "", "")
			if n := s.store.since(); n != (calls{Open: 1}) {
				t.Errorf("%s: an answer a minute later makes %+v, want one read", c.version, n)
			}
		}
	})
}

// What is not in the store yet is fetched by who needs it, once.
func TestMiss(t *testing.T) {
	s := newSite(t, wide(t))
	s.leader().refresh(t)
	w := s.follower()
	w.Overview(t.Context())
	asked := s.up.AskedAll().Asked
	s.store.since()
	w.device(t, "24.10.5", ath79, "carambola2", "")
	if n := s.store.since(); n != (calls{Open: 2, Put: 2}) {
		t.Errorf("a miss makes %+v, want 2 reads and 2 writes", n)
	}
	if n := s.up.AskedAll().Asked - asked; n < 5 || n > 20 {
		t.Errorf("a miss makes %d requests", n)
	}
	asked = s.up.AskedAll().Asked
	w.device(t, "24.10.5", ath79, "carambola2", "")
	s.follower().device(t, "24.10.5", ath79, "tplink,archer-c7-v2", "")
	s.recluse().device(t, "24.10.5", ath79, "tplink,archer-c7-v5", "")
	if n := s.up.AskedAll().Asked - asked; n != 0 {
		t.Errorf("it is fetched again: %d requests", n)
	}
	for _, key := range s.store.Objects.(*buildtest.MemoryObjects).Keys() {
		if !strings.HasPrefix(key, "catalog/") {
			t.Errorf("%s is stored", key)
		}
	}
}

func TestTogetherOverStore(t *testing.T) {
	s := newSite(t, wide(t))
	s.leader().refresh(t)
	w := s.follower()
	w.Overview(t.Context())
	s.store.since()
	const sums = "releases/24.10.5/targets/ath79/generic/sha256sums"
	probed := s.up.Asked(sums).Asked
	var g sync.WaitGroup
	for range 100 {
		g.Go(func() {
			if _, err := w.Device(t.Context(), "24.10.5", ath79, "carambola2", ""); err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
	if n := s.up.Asked(sums).Asked - probed; n != 1 {
		t.Errorf("the sums were fetched %d times, want once", n)
	}
	for _, name := range []string{"targets/ath79/generic/profiles.json", "packages/mips_24kc/base/Packages.gz"} {
		if n := s.up.Asked("releases/24.10.5/" + name).Asked; n != 1 {
			t.Errorf("%s was fetched %d times, want once", name, n)
		}
	}
	if n := s.store.since(); n != (calls{Open: 2, Put: 2}) {
		t.Errorf("a hundred requests at once make %+v", n)
	}
}

// A caller that leaves leaves nothing behind.
func TestCallerLeavesOverStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, wide(t))
		s.leader().refresh(t)
		w := s.follower()
		s.up.SetFault(func(_ http.ResponseWriter, r *http.Request) bool {
			wait(r, time.Second)
			return false
		})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(1500*time.Millisecond, cancel)
		if _, err := w.Device(ctx, "24.10.5", x86, "", ""); !errors.Is(err, context.Canceled) {
			t.Errorf("Device after its context: %v", err)
		}
		s.up.SetFault(nil)
		w.device(t, "24.10.5", x86, "", "")
	})
}

// What a round of the leader costs.
func TestRoundCosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, wide(t))
		round := func(what string, want calls) {
			t.Helper()
			s.store.since()
			s.leader().refresh(t) // each by a process of its own
			if got := s.store.since(); got != want {
				t.Errorf("%s: a round makes %+v, want %+v", what, got, want)
			}
		}
		round("an empty store", calls{Open: 1, List: 1, Put: 1})
		s.follower().answers(t) // 5 targets, the feeds of 5 versions' architectures, one list
		round("eleven units stored by others", calls{Open: 12, List: 1, Put: 1})

		for i := range 30 {
			time.Sleep(5 * time.Minute)
			before := s.up.AskedAll()
			round("nothing changed", calls{Open: 1, List: 1, Put: 1})
			after := s.up.AskedAll()
			absent := s.up.Asked("releases/24.10-SNAPSHOT/.targets.json").Asked + s.up.Asked("releases/25.12-SNAPSHOT/.targets.json").Asked
			if n := after.Asked - before.Asked - (after.Unchanged - before.Unchanged); absent == 0 || n > 2 {
				t.Errorf("round %d: %d requests were not answered «unchanged»", i, n)
			}
			if n := after.Asked - before.Asked; n > 45 {
				t.Errorf("round %d makes %d requests", i, n)
			}
		}
		// Releases are asked for once an hour: twice in 150 minutes.
		if n := s.up.Asked("releases/24.10.5/targets/x86/64/sha256sums").Asked; n != 3 { // once by the first answers
			t.Errorf("a release's sums were asked for %d times", n)
		}
		if n := s.up.Asked("snapshots/targets/x86/64/sha256sums").Asked; n < 30 {
			t.Errorf("a snapshot's sums were asked for %d times", n)
		}

		time.Sleep(5 * time.Minute)
		s.up.Release("SNAPSHOT", "r30000-0000000000")
		round("a snapshot moved", calls{Open: 2, List: 1, Put: 2})
		time.Sleep(5 * time.Minute)
		round("after that", calls{Open: 2, List: 1, Put: 1})
		time.Sleep(5 * time.Minute)
		round("then", calls{Open: 1, List: 1, Put: 1})
		time.Sleep(wholeAge)
		round("a day later", calls{Open: 12, List: 1, Put: 1})

		s.up.SetFault(func(rw http.ResponseWriter, _ *http.Request) bool { panic(http.ErrAbortHandler) })
		s.store.since()
		if err := s.leader().Refresh(t.Context()); err == nil {
			t.Error("a round without an upstream succeeds")
		}
		if got := s.store.since(); got != (calls{Open: 1, List: 1}) {
			t.Errorf("a round without an upstream makes %+v", got)
		}
	})
}

func TestFollowerSeesMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const moved = "r30000-0000000000"
		s := newSite(t, wide(t))
		leader := s.leader()
		leader.refresh(t)
		s.follower().answers(t)
		leader.refresh(t)
		w := s.recluse()
		w.answers(t)
		age, known := w.Age()
		if age > time.Second || !known {
			t.Errorf("the last look is %s ago, %v", age, known)
		}
		s.up.Release("SNAPSHOT", moved)
		time.Sleep(5 * time.Minute)
		if age, _ := w.Age(); age < 5*time.Minute || age > 6*time.Minute {
			t.Errorf("the last look is %s ago", age)
		}
		if r, err := w.Revision(t.Context(), "SNAPSHOT", x86); r == moved || err != nil {
			t.Errorf("revision %q, %v before the leader saw it", r, err)
		}
		time.Sleep(momentAge)
		leader.refresh(t)
		if r, err := w.Revision(t.Context(), "SNAPSHOT", x86); r != moved || err != nil {
			t.Errorf("revision %q, %v after the leader's round, want %q", r, err, moved)
		}
		if r := w.device(t, "SNAPSHOT", x86, "", "").Facts.Revision; r != moved {
			t.Errorf("the device is of %q then", r)
		}
		other := s.recluse()
		other.device(t, "24.10.5", x86, "", "")
		s.up.Put("releases/24.10.5/packages/x86_64/packages/Packages.sig", nil)
		s.up.Drop("releases/24.10.5/packages/x86_64/packages/Packages")
		s.up.Feed("24.10.5", "x86_64", "packages", false, catalogtest.Package{Name: "brandnew", Version: "1"})
		time.Sleep(2 * time.Hour)
		leader.refresh(t)
		if err := other.device(t, "24.10.5", x86, "", "").CheckPackages([]string{"brandnew"}); err != nil {
			t.Error(err)
		}
	})
}

// The store may fail, be slow, or hold anything.
func TestStoreFails(t *testing.T) {
	for name, fault := range map[string]func(context.Context, string, string) error{
		"fails": func(context.Context, string, string) error { return errors.New("secret innards") },
		"hangs": func(ctx context.Context, _, _ string) error { <-ctx.Done(); return ctx.Err() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, wide(t))
				leader := s.leader()
				leader.refresh(t)
				s.follower().answers(t)
				leader.refresh(t)
				old := s.recluse()
				want := old.answers(t)
				time.Sleep(time.Hour)

				s.store.setFault(fault)
				cold := s.recluse()
				before := time.Now()
				for _, err := range []error{cold.Ready(), asError(cold.Overview(t.Context())), asError(cold.Device(t.Context(), "24.10.5", x86, "", ""))} {
					r := refused(t, err, build.CodeUnavailable, "store", "Try again")
					if strings.Contains(r.Detail, "innards") || r.RetryAfter <= 0 {
						t.Errorf("the refusal is %q, to be tried again after %s", r.Detail, r.RetryAfter)
					}
				}
				if took := time.Since(before); took > patience {
					t.Errorf("three refusals take %s", took)
				}
				if err := leader.Refresh(t.Context()); err == nil {
					t.Error("a round without a store succeeds")
				}

				// What was in memory holds, but for what may have moved.
				for _, q := range everything {
					before := time.Now()
					old.device(t, q.version, q.target, q.profile, "")
					if took := time.Since(before); took > storeLimit {
						t.Errorf("an answer from memory takes %s", took)
					}
				}
				_, err := old.Revision(t.Context(), "SNAPSHOT", x86)
				refused(t, err, build.CodeUnavailable, "store")
				if _, err := old.Revision(t.Context(), "24.10.5", x86); err != nil {
					t.Error(err)
				}

				s.store.setFault(nil)
				time.Sleep(storeRest)
				for _, w := range []world{old, cold} {
					if got := w.answers(t); got != want {
						t.Errorf("afterwards: %s\nwant %s", got, want)
					}
				}
			})
		})
	}
}

func asError[T any](_ T, err error) error { return err }

// The index is there, the units are not to be had.
func TestUnitsFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, wide(t))
		s.leader().refresh(t)
		s.follower().answers(t)
		s.leader().refresh(t)
		w := s.recluse()
		w.device(t, "SNAPSHOT", x86, "", "")
		s.store.setFault(func(_ context.Context, verb, key string) error {
			if verb == "open" && key != "catalog/.index" {
				return errors.New("innards")
			}
			return nil
		})
		_, err := w.Device(t.Context(), "24.10.5", x86, "", "")
		refused(t, err, build.CodeUnavailable, "store")
		_, err = w.ImageBuilder(t.Context(), "24.10.5", x86)
		failing(t, err, "store")
		s.up.Release("SNAPSHOT", "r30000-0000000000")
		s.store.setFault(nil)
		s.leader().refresh(t)
		s.store.setFault(func(_ context.Context, verb, key string) error {
			if verb == "open" && key != "catalog/.index" {
				return errors.New("innards")
			}
			return nil
		})
		time.Sleep(10 * time.Second)
		// It is known to have moved, so the old one would be a wrong answer.
		_, err = w.Revision(t.Context(), "SNAPSHOT", x86)
		refused(t, err, build.CodeUnavailable, "store")
	})
}

func (s *site) put(key string, body []byte) {
	s.t.Helper()
	if err := s.store.Objects.Put(context.Background(), key, strings.NewReader(string(body)), policyUnit); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) object(key string) []byte {
	s.t.Helper()
	r, _, err := s.store.Objects.Open(context.Background(), key)
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

func (s *site) keys() []string { return s.store.Objects.(*buildtest.MemoryObjects).Keys() }

// Whatever lies in the store, it is as good as nothing or it is right.
func TestGarbage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, wide(t))
		leader := s.leader()
		leader.refresh(t)
		want := s.follower().answers(t)
		leader.refresh(t)
		other := newSite(t, wide(t))
		other.leader().refresh(t)
		foreign := other.object("catalog/.index")
		bomb := pack(make([]byte, maxUnpacked+1))
		// One of each kind.
		for _, key := range []string{"catalog/.index", "catalog/24.10.4/.targets", "catalog/24.10.5/x86/64", "catalog/24.10.5/.feeds/x86_64"} {
			good := s.object(key)
			for _, bad := range [][]byte{nil, []byte("<html>"), good[:len(good)/2], pack([]byte("{}\n")), pack([]byte("null\n")), pack(fmt.Appendf(nil, "{\"form\":%d}\n", form)), foreign, bomb} {
				if key == "catalog/.index" && string(bad) == string(foreign) || key != "catalog/24.10.5/x86/64" && len(bad) == len(bomb) {
					continue // this one is as good as ours; the other is slow
				}
				s.put(key, bad)
				w := s.follower()
				if key == "catalog/.index" {
					refused(t, w.Ready(), build.CodeUnavailable, "store")
				} else if got := w.answers(t); got != want {
					t.Errorf("%s replaced by %.20q: %s\nwant %s", key, bad, got, want)
				}
				leader.refresh(t)
				if got := s.recluse().answers(t); got != want {
					t.Errorf("%s replaced by %.20q, after the leader's round: %s\nwant %s", key, bad, got, want)
				}
				time.Sleep(time.Second)
			}
		}
	})
}

// Each write fails, and each fails only seemingly: the next round heals it.
func TestWritesFail(t *testing.T) {
	for _, fault := range []buildtest.Fault{buildtest.FailsBefore, buildtest.FailsAfter} {
		for _, n := range []int{1, 2, 3, 11, 12, 13, 14, 15} { // all that are of another kind
			var faults buildtest.Faults
			faults.On(buildtest.OpPut, n, fault)
			s := newSiteOver(t, wide(t), faults.Objects(buildtest.NewObjects(t)))
			err := s.leader().Refresh(t.Context())
			if failed := n == 1; failed != (err != nil) {
				t.Fatalf("write %d: the first round says %v", n, err)
			}
			if err != nil {
				s.leader().refresh(t)
			}
			want := s.follower().answers(t) // 11 writes
			s.leader().Refresh(t.Context())
			s.up.Release("SNAPSHOT", "r30000-0000000000")
			for range 2 {
				s.leader().Refresh(t.Context())
			}
			s.leader().refresh(t)
			s.follower().answers(t)
			got := s.recluse().answers(t)
			if strings.ReplaceAll(got, "r30000-0000000000", "") == want || !strings.Contains(got, "r30000-0000000000") {
				t.Errorf("write %d: after all %s", n, got)
			}
			if faults.Calls(buildtest.OpPut) < 15 {
				t.Fatalf("%d writes: too few for this test", faults.Calls(buildtest.OpPut))
			}
		}
	}
}

func TestTwoLeaders(t *testing.T) {
	s := newSite(t, wide(t))
	s.leader().refresh(t)
	s.follower().answers(t)
	leaders := []world{s.leader(), s.leader()}
	for i := range 5 {
		moved := fmt.Sprintf("r3000%d-0000000000", i)
		s.up.Release("SNAPSHOT", moved)
		var g sync.WaitGroup
		for _, l := range leaders {
			g.Go(func() {
				if err := l.Refresh(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		g.Go(func() { s.follower().answers(t) })
		g.Wait()
		leaders[i%2].refresh(t)
		if r, err := s.recluse().Revision(t.Context(), "SNAPSHOT", x86); r != moved || err != nil {
			t.Errorf("revision %q, %v; want %q", r, err, moved)
		}
	}
	s.recluse().answers(t)
}

// wait waits, but not longer than the request's sender.
func wait(r *http.Request, d time.Duration) {
	select {
	case <-r.Context().Done():
	case <-time.After(d):
	}
}

// What takes longer than a client waits is left to the leader.
func TestWanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, wide(t))
		s.leader().refresh(t)
		s.up.SetFault(func(rw http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "profiles.json") {
				wait(r, 20*time.Second)
			}
			return false
		})
		w := s.follower()
		before := time.Now()
		_, err := w.Device(t.Context(), "24.10.5", x86, "", "")
		refused(t, err, build.CodeUnavailable, "is being fetched")
		if waited := time.Since(before); waited != patience {
			t.Errorf("waited %s, want %s", waited, patience)
		}
		if !slices.Contains(s.keys(), "catalog/.wanted/24.10.5/x86/64") {
			t.Errorf("the store has %v", s.keys())
		}
		s.leader().refresh(t)
		if slices.Contains(s.keys(), "catalog/.wanted/24.10.5/x86/64") {
			t.Error("the wish is still there")
		}
		if r, err := s.recluse().Revision(t.Context(), "24.10.5", x86); r == "" || err != nil {
			t.Errorf("revision %q, %v", r, err)
		}
		time.Sleep(time.Minute)
		w.device(t, "24.10.5", x86, "", "")
	})
}

// stopped keeps requests for an hour, whatever their context says, as if the
// process were frozen.
type stopped struct {
	http.RoundTripper
	once sync.Once
}

func (s *stopped) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasSuffix(r.URL.Path, "sha256sums") {
		s.once.Do(func() { time.Sleep(time.Hour) })
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return s.RoundTripper.RoundTrip(r)
}

// A process may be frozen in the middle of a fetch.
func TestFrozen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, wide(t))
		s.leader().refresh(t)
		w := s.open(true, &http.Client{Transport: &stopped{RoundTripper: s.up.Client().Transport}})
		go w.Device(context.WithoutCancel(t.Context()), "24.10.5", x86, "", "")
		synctest.Wait()
		time.Sleep(time.Hour)
		before := time.Now()
		w.device(t, "24.10.5", x86, "", "")
		if took := time.Since(before); took > time.Second {
			t.Errorf("the next answer takes %s", took)
		}
	})
}

// What the upstream does not have any more stays for a while.
func TestGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, wide(t))
		leader := s.leader()
		leader.refresh(t)
		s.follower().answers(t)
		leader.refresh(t)
		n := len(s.keys())
		s.up.Drop("releases/24.10.5/targets/ath79")
		s.up.Versions("25.12.0-rc1", "", "", "24.10.5") // no 24.10.4
		for range 29 {
			time.Sleep(24 * time.Hour)
			leader.refresh(t)
		}
		if len(s.keys()) != n {
			t.Errorf("after 29 days the store has %v", s.keys())
		}
		s.recluse().device(t, "24.10.5", ath79, "carambola2", "")
		for range 3 {
			time.Sleep(24 * time.Hour)
			leader.refresh(t)
		}
		for _, key := range s.keys() {
			if strings.Contains(key, "24.10.4") || strings.Contains(key, "24.10.5/ath79") {
				t.Errorf("after 32 days the store has %s", key)
			}
		}
		if len(s.keys()) != n-4 {
			t.Errorf("after 32 days the store has %v", s.keys())
		}
		s.recluse().device(t, "24.10.5", x86, "", "")
	})
}

// A round that has no time left stores what it has learnt.
func TestRoundOutOfTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, wide(t))
		leader := s.leader()
		leader.refresh(t)
		s.follower().answers(t)
		leader.refresh(t)
		s.up.SetFault(func(rw http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "sha256sums") {
				wait(r, time.Minute)
			}
			return false
		})
		time.Sleep(2 * time.Hour)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
		defer cancel()
		began := time.Now()
		if err := leader.Refresh(ctx); err != nil {
			t.Error(err)
		}
		if age, _ := leader.Age(); time.Since(began) > 150*time.Second || age != time.Since(began).Truncate(time.Second) {
			t.Errorf("the round took %s, its look is %s old", time.Since(began), age)
		}
		s.recluse().answers(t)
		s.up.SetFault(nil)
		leader.refresh(t)
		if n := strings.Count(s.log.text.String(), "given up"); n > 12 {
			t.Errorf("%d lines in the log about what could not be done", n)
		}
	})
}

func TestKeyTakenAwayOverStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, wide(t))
		s.leader().refresh(t)
		s.follower().answers(t)
		w := s.follower()
		w.keys = nil
		refused(t, w.Ready(), build.CodeUnavailable, "--upstream-key")
		_, err := w.Device(t.Context(), "24.10.5", x86, "", "")
		refused(t, err, build.CodeUnsupported, "--upstream-key")
		// It takes nothing out of the store.
		s.recluse().answers(t)
	})
}

// What a follower fetches is verified like everything else.
func TestLiesOverStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, wide(t))
		s.leader().refresh(t)
		evil, err := usign.Generate("evil")
		if err != nil {
			t.Fatal(err)
		}
		const dir = "releases/24.10.5/targets/x86/64/"
		s.up.Put(dir+"sha256sums.sig", evil.Sign(s.up.Get(dir+"sha256sums")).Marshal())
		w := s.follower()
		n := len(s.keys())
		for range 600 { // over a minute
			_, err := w.Device(t.Context(), "24.10.5", x86, "", "")
			refused(t, err, build.CodeUnavailable, "--upstream-key")
			time.Sleep(100 * time.Millisecond)
		}
		if asked := s.up.Asked(dir + "sha256sums").Asked; asked < 2 || asked > 3 {
			t.Errorf("asked %d times, want twice or three times", asked)
		}
		if len(s.keys()) != n {
			t.Errorf("the store has %v", s.keys())
		}
	})
}

func TestBeforeTheFirstRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, wide(t))
		w := s.recluse()
		refused(t, w.Ready(), build.CodeUnavailable, "not been stored yet")
		if _, known := w.Age(); known {
			t.Error("the age of no look is known")
		}
		s.leader().refresh(t)
		time.Sleep(storeRest)
		if err := w.Ready(); err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.leader().Run(ctx) }()
		time.Sleep(16 * time.Minute)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if n := s.up.Asked(".versions.json").Asked; n != 5 {
			t.Errorf("the versions were asked for %d times, want 5 times", n)
		}
	})
}

func TestAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, sample(t), t.TempDir())
		if _, known := w.Age(); known {
			t.Error("the age of no look is known")
		}
		w.refresh(t)
		time.Sleep(time.Hour)
		if age, known := w.Age(); age != time.Hour || !known {
			t.Errorf("the last look is %s ago, %v", age, known)
		}
		w.up.SetFault(func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) })
		w.Refresh(t.Context())
		if age, _ := w.Age(); age < time.Hour {
			t.Errorf("a look that failed counts: %s", age)
		}
	})
}

func TestOptionsOverStore(t *testing.T) {
	for _, o := range []Options{{Follow: true, Dir: t.TempDir()}, {Objects: buildtest.NewObjects(t), Dir: t.TempDir()}} {
		o.Upstream = "https://upstream.test"
		if _, err := New(o); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
}

func TestBundle(t *testing.T) {
	b := newBundle("https://a.test")
	m := meta{Form: form, Source: "https://a.test/x", ETag: strings.Repeat("e", maxMeta), Sum: "s"}
	for _, text := range []string{"", "line\nline", strings.Repeat("x", 100_000)} {
		if err := b.write(fmt.Sprint("a", len(text)), m, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	packed, err := b.pack()
	if err != nil {
		t.Fatal(err)
	}
	again, err := unpack(packed, "https://a.test")
	if err != nil || !reflect.DeepEqual(again.files, b.files) || again.changed {
		t.Errorf("unpacked %+v, %v", again, err)
	}
	if repacked, err := again.pack(); err != nil || string(repacked) != string(packed) {
		t.Errorf("equal bundles differ when they are packed: %v", err)
	}
	if other, err := unpack(packed, "https://a.test.evil"); err != nil || len(other.files) != 0 {
		t.Errorf("of another upstream: %+v, %v", other, err)
	}
	plain, err := unzip(packed, maxUnpacked)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{string(plain) + "x", string(plain[:len(plain)-1]), strings.Replace(string(plain), fmt.Sprintf(`"form":%d`, form), `"form":0`, 1), ""} {
		if _, err := parseBundle([]byte(bad), "https://a.test"); !errors.Is(err, errDamaged) {
			t.Errorf("%d bytes in place of %d: %v", len(bad), len(plain), err)
		}
	}
	b.write("big", m, make([]byte, maxUnpacked))
	if _, err := b.pack(); err == nil {
		t.Error("a unit without an end is packed")
	}
}

func FuzzBundle(f *testing.F) {
	const base, target, feeds = "https://upstream.test", "24.10.5/x86/64", "24.10.5/x86_64"
	b := newBundle(base)
	for key, text := range map[string]string{
		".versions": `{"stable_version":"24.10.5","versions_list":["24.10.5"]}`, "24.10.5/.targets": `{"x86/64":"x86_64"}`,
		"24.10.5/.signer": "d310c6f2833e97f7", ".contents": `{"looked":"2026-01-02T03:04:05Z","stamps":{"24.10.5/x86/64":"00"}}`, ".ledger": `{"units":{}}`,
		target + "/.target":               `{"signer":"d310c6f2833e97f7","revision":"r1","arch":"x86_64","kernel":"6.6.1-1-abc","archive":{"name":"x-imagebuilder-x.tar.zst"},"indices":{},"profiles":[{"id":"generic"}]}`,
		target + "/.packages":             "abi known\na\ta\t1\n",
		feedsKey(feeds) + "/.names":       `["base","luci"]`,
		feedsKey(feeds) + "/base":         "abi lost\nnano\tnano\t1\n",
		"24.10.5/.feeds/../../etc/passwd": "x",
	} {
		b.write(key, meta{Form: form, Source: base + "/x", Sum: "s"}, []byte(text))
	}
	packed, err := b.pack()
	if err != nil {
		f.Fatal(err)
	}
	plain, err := unzip(packed, maxUnpacked)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(plain)
	c, err := New(Options{Upstream: base, Objects: buildtest.NewObjects(f), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	defer c.Close()
	_, err1 := c.loadTarget(b, target)
	_, err2 := c.loadFeeds(b, feeds)
	if err := errors.Join(err1, err2, c.adopt(b)); err != nil {
		f.Fatalf("the seed is of no use: %v", err)
	}
	f.Add(fmt.Appendf(nil, `{"form":%d,"files":[{"name":"a","size":-1}]}`+"\n", form))
	f.Fuzz(func(t *testing.T, plain []byte) {
		unpack(plain, base)
		b, err := parseBundle(plain, base)
		if err != nil {
			if !errors.Is(err, errDamaged) {
				t.Fatalf("damage is told as %v", err)
			}
			return
		}
		packed, err := b.pack()
		if err != nil {
			t.Fatal(err)
		}
		again, err := unpack(packed, base)
		if err != nil || !reflect.DeepEqual(again.files, b.files) {
			t.Fatalf("packed and unpacked: %+v, %v; was %+v", again, err, b)
		}
		if target, err := c.loadTarget(b, target); err == nil {
			for i := range target.Profiles {
				target.find(target.Profiles[i].ID, "")
				target.packagesOf(&target.Profiles[i])
			}
		}
		if feeds, err := c.loadFeeds(b, feeds); err == nil {
			feeds.find("nano")
		}
		feedSources(b, feeds)
		c.targetSources(b, target)
		if c.adopt(b) == nil {
			for version := range c.view.Load().trouble {
				if !releasePattern.MatchString(version) {
					t.Fatalf("a version is called %q", version)
				}
			}
		}
	})
}

func FuzzUnitNames(f *testing.F) {
	for _, name := range []string{"24.10.5/x86/64", "24.10.5/.feeds/x86_64", "24.10.4/.targets", ".index", "../x/y", "a/b"} {
		f.Add(name)
	}
	c := newSite(f, wide(f)).leader()
	f.Fuzz(func(t *testing.T, name string) {
		u, ok := c.parseUnit(name)
		if !ok {
			return
		}
		if strings.Contains(name, "//") || strings.Contains("/"+name+"/", "/../") || !strings.HasPrefix(name, u.version+"/") {
			t.Fatalf("%q is taken for a unit of %q", name, u.version)
		}
		if err := buildtest.NewObjects(t).Put(t.Context(), storePrefix+name, strings.NewReader(""), policyUnit); err != nil {
			t.Fatal(err)
		}
	})
}
