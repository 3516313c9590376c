package catalog

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog/catalogtest"
)

const oldTarget = "releases/24.10.5/targets/ath79/generic"

// old is a sample with a target that has no profiles.json, and what would stand
// there.
func old(t testing.TB) (*catalogtest.Upstream, []byte) {
	t.Helper()
	u := sample(t)
	profiles := u.Get(oldTarget + "/profiles.json")
	u.Drop(oldTarget + "/profiles.json")
	u.Sign(oldTarget)
	return u, profiles
}

// oracle is a builder as the catalogue knows it.
type oracle struct {
	mu      sync.Mutex
	asked   []Archive
	answer  func(ctx context.Context) ([]byte, error)
	version string
	target  string
}

func (o *oracle) inspect(ctx context.Context, version, target string, a Archive) ([]byte, error) {
	o.mu.Lock()
	o.asked = append(o.asked, a)
	o.version, o.target = version, target
	answer := o.answer
	o.mu.Unlock()
	return answer(ctx)
}

func (o *oracle) says(answer func(ctx context.Context) ([]byte, error)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answer = answer
}

func (o *oracle) times() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.asked)
}

func always(profiles []byte) *oracle {
	return &oracle{answer: func(context.Context) ([]byte, error) { return profiles, nil }}
}

// asking is a catalogue in a folder that can ask ImageBuilders.
func asking(t testing.TB, u *catalogtest.Upstream, dir string, o *oracle) world {
	t.Helper()
	var log bytes.Buffer
	options := Options{
		Upstream: "https://upstream.test/", Keys: u.Keys(), Dir: dir, Client: u.Client(),
		Log: slog.New(slog.NewTextHandler(&lockedWriter{w: &log}, nil)),
	}
	if o != nil {
		options.Inspect = o.inspect
	}
	c, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	return world{c, u, dir, &log}
}

func carambola(w world) (*Device, error) {
	return w.Device(context.Background(), "24.10.5", "ath79/generic", "8dev,carambola2", "")
}

// TestMade: what an ImageBuilder says takes the place of a profiles.json, once
// for each archive, whatever becomes of the process and of the sums.
func TestMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, profiles := old(t)
		dir, o := t.TempDir(), always(profiles)
		w := asking(t, u, dir, o)
		d := w.device(t, "24.10.5", "ath79/generic", "8dev,carambola2", "")
		if d.Facts.Profile != "8dev_carambola2" || d.Facts.Revision != "r29233-443ec4032a" || d.Arch != "mips_24kc" || len(d.Facts.Defaults) != 8 {
			t.Errorf("the device is %+v", d.Facts)
		}
		if err := d.CheckPackages([]string{"nano"}); err != nil {
			t.Errorf("the packages of the upstream are not known: %v", err)
		}
		a, err := w.ImageBuilder(t.Context(), "24.10.5", "ath79/generic")
		if err != nil || o.times() != 1 || o.asked[0] != a || o.version != "24.10.5" || o.target != "ath79/generic" {
			t.Errorf("asked %+v of %s %s, the archive is %+v (%v)", o.asked, o.version, o.target, a, err)
		}
		w.Close()

		again := asking(t, u, dir, o)
		if !again.device(t, "24.10.5", "ath79/generic", "8dev,carambola2", "").Made() || again.device(t, "24.10.5", "x86/64", "", "").Made() {
			t.Error("who said what a target builds is forgotten")
		}
		u.Put(oldTarget+"/other.bin", []byte("something else"))
		u.Sign(oldTarget)
		time.Sleep(2 * time.Hour)
		again.device(t, "24.10.5", "ath79/generic", "8dev,carambola2", "")
		synctest.Wait()
		if n := o.times(); n != 1 {
			t.Errorf("asked %d times of one archive", n)
		}
		u.Put(oldTarget+"/"+a.Name, []byte("another archive"))
		u.Sign(oldTarget)
		o.says(func(context.Context) ([]byte, error) {
			return bytes.ReplaceAll(profiles, []byte("r29233-443ec4032a"), []byte("r29234-0123456789")), nil
		})
		time.Sleep(2 * time.Hour)
		again.device(t, "24.10.5", "ath79/generic", "8dev,carambola2", "")
		synctest.Wait()
		if d, err := carambola(again); err != nil || d.Facts.Revision != "r29234-0123456789" || o.times() != 2 {
			t.Errorf("after a change of the archive it is %+v, asked %d times (%v)", d, o.times(), err)
		}
	})
}

// TestMadeSlowly: nobody waits long for an ImageBuilder, the upstream is left
// alone meanwhile, and soon after its answer the target is there.
func TestMadeSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, profiles := old(t)
		answer := make(chan struct{})
		o := &oracle{answer: func(ctx context.Context) ([]byte, error) {
			select {
			case <-answer:
				return profiles, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}}
		w := asking(t, u, t.TempDir(), o)
		begin := time.Now()
		_, err := carambola(w)
		if r := refused(t, err, build.CodeUnavailable, "is being prepared", "Try again"); r.RetryAfter != 30*time.Second {
			t.Errorf("it says to come back after %s", r.RetryAfter)
		}
		if waited := time.Since(begin); waited > 2*inspectPatience {
			t.Errorf("the client waited %s", waited)
		}
		asked := u.AskedAll().Asked
		for range 20 { // minutes
			time.Sleep(time.Minute)
			_, err := carambola(w)
			refused(t, err, build.CodeUnavailable, "is being prepared")
		}
		if n := u.AskedAll().Asked - asked; n > 4 {
			t.Errorf("the upstream was asked %d times meanwhile", n)
		}
		close(answer)
		time.Sleep(2 * unmadeRest)
		if _, err := carambola(w); err != nil || o.times() != 1 {
			t.Errorf("after the answer: %v, asked %d times", err, o.times())
		}
	})
}

// TestMadeWrong: an answer of no use is refused by a sentence, kept nowhere, and
// asked for again later.
func TestMadeWrong(t *testing.T) {
	_, profiles := old(t)
	for _, test := range []struct {
		name   string
		answer []byte
		err    error
		says   string
	}{
		{"no answer", nil, build.Fail(build.KindUpstream, "The ImageBuilder x.tar could not be fetched."), "could not be fetched"},
		{"a fault with a path", nil, errors.New("open /secret/path: no such file"), "does not say what it builds"},
		{"nonsense", []byte("nonsense"), nil, "does not say what it builds"},
		{"another version", bytes.ReplaceAll(profiles, []byte("24.10.5"), []byte("24.10.4")), nil, "does not say"},
		{"another target", bytes.ReplaceAll(profiles, []byte("ath79"), []byte("ath78")), nil, "does not say"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u, profiles := old(t)
				o := &oracle{answer: func(context.Context) ([]byte, error) { return test.answer, test.err }}
				w := asking(t, u, t.TempDir(), o)
				_, err := carambola(w)
				if r := refused(t, err, build.CodeUnavailable, "cannot be prepared", test.says); strings.Contains(r.Detail, "/secret") {
					t.Errorf("the sentence tells clients %q", r.Detail)
				}
				time.Sleep(updateRest + time.Second)
				carambola(w)
				if n := o.times(); n != 1 {
					t.Errorf("asked %d times within a minute", n)
				}
				o.says(func(context.Context) ([]byte, error) { return profiles, nil })
				time.Sleep(2 * failedRest)
				if _, err := carambola(w); err != nil {
					t.Errorf("after the ImageBuilder was mended: %v", err)
				}
			})
		})
	}
}

// TestNotMade: only what never had a profiles.json is made, and only where
// somebody can.
func TestNotMade(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(u *catalogtest.Upstream)
		o     *oracle
		code  build.Code
	}{
		{"listed, and not there", func(u *catalogtest.Upstream) {
			u.Put(oldTarget+"/profiles.json", []byte("{}"))
			u.Sign(oldTarget)
			u.Drop(oldTarget + "/profiles.json")
		}, always(nil), build.CodeUnsupported},
		{"there, and not listed", func(u *catalogtest.Upstream) { u.Put(oldTarget+"/profiles.json", []byte("{}")) }, always(nil), build.CodeUnavailable},
		{"no ImageBuilder", func(u *catalogtest.Upstream) {
			u.Drop(oldTarget + "/openwrt-imagebuilder")
			u.Sign(oldTarget)
		}, always(nil), build.CodeUnsupported},
		{"a server without workers", func(*catalogtest.Upstream) {}, nil, build.CodeUnsupported},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u, _ := old(t)
				test.spoil(u)
				w := asking(t, u, t.TempDir(), test.o)
				_, err := carambola(w)
				refused(t, err, test.code)
				if test.o != nil && test.o.times() != 0 {
					t.Errorf("the ImageBuilder was asked")
				}
			})
		})
	}
}

// TestMakeWanted: over a store, a process without a builder leaves a wish and wakes
// one; the builder's answer serves all.
func TestMakeWanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, profiles := old(t)
		s := newSite(t, u)
		leader := s.leader()
		if err := leader.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		api := s.follower()
		woken := 0
		api.wake = func(context.Context) error { woken++; return nil }
		_, err := carambola(api)
		refused(t, err, build.CodeUnavailable, "is being prepared")
		if wanted, err := api.store.wanted(t.Context()); err != nil || len(wanted) != 1 || wanted["24.10.5/ath79/generic"].Key == "" || woken != 1 {
			t.Fatalf("wanted are %v (%v), a builder was woken %d times", wanted, err, woken)
		}
		if err := leader.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		builder, o := s.follower(), always(profiles)
		builder.inspect = o.inspect
		s.store.setFault(func(_ context.Context, verb, key string) error {
			if verb != "open" && verb != "list" && !strings.HasPrefix(key, "catalog/.made/") {
				t.Errorf("the builder's call: %s %s", verb, key)
			}
			return nil
		})
		if err := builder.MakeWanted(t.Context()); err != nil || o.times() != 1 {
			t.Fatalf("MakeWanted: %v, asked %d times", err, o.times())
		}
		if err := builder.MakeWanted(t.Context()); err != nil || o.times() != 1 {
			t.Errorf("the same wish again: %v, asked %d times", err, o.times())
		}
		s.store.setFault(nil)
		time.Sleep(unmadeRest + time.Second)
		if d, err := carambola(api); err != nil || d.Facts.Profile != "8dev_carambola2" {
			t.Errorf("then it is %+v, %v", d, err)
		}
		if err := leader.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := carambola(s.recluse()); err != nil {
			t.Errorf("the store has not all of it: %v", err)
		}
		if wanted, err := api.store.wanted(t.Context()); err != nil || len(wanted) != 0 {
			t.Errorf("still wanted are %v (%v)", wanted, err)
		}
		if err := builder.MakeWanted(t.Context()); err != nil || o.times() != 1 {
			t.Errorf("without a wish: %v, asked %d times", err, o.times())
		}
		time.Sleep(3 * time.Hour)
		if err := leader.Refresh(t.Context()); err != nil || o.times() != 1 {
			t.Errorf("the leader keeps it up to date: %v, asked %d times", err, o.times())
		}
	})
}

// TestWishEnds: one that nobody fulfils is not renewed for ever by those who
// cannot either.
func TestWishEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, _ := old(t)
		s := newSite(t, u)
		leader := s.leader()
		if err := leader.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err := carambola(s.follower())
		refused(t, err, build.CodeUnavailable)
		for range 30 {
			time.Sleep(time.Hour)
			if err := leader.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if wanted, err := leader.store.wanted(t.Context()); err != nil || len(wanted) != 0 {
			t.Errorf("after a day wanted are %v (%v)", wanted, err)
		}
	})
}

// TestPrepare waits for all that the first request would wait for.
func TestPrepare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, profiles := old(t)
		o := &oracle{answer: func(ctx context.Context) ([]byte, error) {
			select {
			case <-time.After(20 * time.Minute):
				return profiles, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}}
		w := asking(t, u, t.TempDir(), o)
		a, err := w.Prepare(t.Context(), "24.10.5", "ath79/generic")
		if err != nil || !strings.HasPrefix(a.URL, "https://upstream.test/"+oldTarget+"/") || o.times() != 1 {
			t.Fatalf("Prepare: %+v, %v, asked %d times", a, err, o.times())
		}
		u.SetFault(func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) })
		if _, err := carambola(w); err != nil {
			t.Errorf("then something is missing still: %v", err)
		}
		if _, err := w.Prepare(t.Context(), "24.10.5", "ath79/nothing"); err == nil {
			t.Error("a target that there is not was prepared")
		}
		u.SetFault(nil)
		o.says(func(context.Context) ([]byte, error) { return nil, build.Fail(build.KindOutput, "It is broken.") })
		u.Put(oldTarget+"/"+a.Name, []byte("another archive"))
		u.Sign(oldTarget)
		u.Drop("releases/24.10.5/targets/x86/64/profiles.json")
		u.Sign("releases/24.10.5/targets/x86/64")
		_, err = w.Prepare(t.Context(), "24.10.5", "x86/64")
		refused(t, err, build.CodeUnavailable, "It is broken.")
	})
}

// TestOldGeneric: up to 19.07 the profile of all PCs was called Generic.
func TestOldGeneric(t *testing.T) {
	pcs := &target{Profiles: []profile{{ID: "Generic"}}}
	if p, err := pcs.find("pcengines,apu2", "PC Engines apu2"); err != nil || p.ID != "Generic" {
		t.Errorf("a PC is %v, %v", p, err)
	}
}
