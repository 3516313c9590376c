package certify

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

func generate(t testing.TB) usign.SecretKey {
	t.Helper()
	key, err := usign.Generate("")
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// worker is a key as builders make them.
func worker(t testing.TB) (name string, key ed25519.PublicKey) {
	public := generate(t).Public()
	return public.Fingerprint.String(), public.Key
}

func object(t testing.TB, objects build.Objects, name string) []byte {
	t.Helper()
	r, _, err := objects.Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// authorities are the kinds of keys.
func authorities(t testing.TB, objects build.Objects) map[string]*Authority {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	remote, err := NewRemote(private, objects)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]*Authority{"held": New(generate(t), objects), "remote": remote}
}

func TestCertify(t *testing.T) {
	objects := buildtest.NewObjects(t)
	for kind, a := range authorities(t, objects) {
		name, key := worker(t)
		got, err := a.Certify(t.Context(), name, key)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if err := usign.VerifyFile([]usign.PublicKey{a.Public()}, got.PublicKey, got.Signature); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		certificate, err := usign.ParseCertificate(got.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		if !certificate.Key.Key.Equal(key) || certificate.Worker != name || now.Sub(certificate.NotBefore) < clockSkew || certificate.NotAfter.After(now.Add(life)) || certificate.NotAfter.Before(now.Add(life-time.Minute)) {
			t.Errorf("%s: the certificate is %+v", kind, certificate)
		}
		if !bytes.Equal(object(t, objects, "keys/worker-"+name+".pub"), got.PublicKey) || !bytes.Equal(object(t, objects, "keys/worker-"+name+".pub.sig"), got.Signature) {
			t.Errorf("%s: what is stored is not what was returned", kind)
		}
	}
}

func TestRefused(t *testing.T) {
	objects := buildtest.NewObjects(t)
	a := New(generate(t), objects)
	name, key := worker(t)
	other, _ := worker(t)
	for what, c := range map[string]struct {
		name string
		key  ed25519.PublicKey
	}{
		"another key's name": {other, key},
		"no name":            {"", key},
		"a path":             {"../server", key},
		"capitals":           {strings.ToUpper("ab" + name[2:]), key},
		"a short key":        {name, key[:31]},
		"no key":             {name, nil},
	} {
		if _, err := a.Certify(t.Context(), c.name, c.key); !errors.Is(err, ErrWorker) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if keys := objects.Keys(); len(keys) > 0 {
		t.Errorf("%q was stored for what was refused", keys)
	}
}

func TestRemoteKeyOfAnotherKind(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewRemote(key, nil); err == nil || !strings.Contains(err.Error(), "Ed25519") {
		t.Errorf("a P-256 key is taken: %v", err)
	}
}

// liar signs something else.
type liar struct{ ed25519.PrivateKey }

func (l liar) Sign(random io.Reader, _ []byte, o crypto.SignerOpts) ([]byte, error) {
	return l.PrivateKey.Sign(random, []byte("something else"), o)
}

func TestRemoteSignatureIsChecked(t *testing.T) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a, err := NewRemote(liar{private}, buildtest.NewObjects(t))
	if err != nil {
		t.Fatal(err)
	}
	name, key := worker(t)
	if _, err := a.Certify(t.Context(), name, key); !errors.Is(err, usign.ErrBadSignature) {
		t.Errorf("a wrong signature is handed out: %v", err)
	}
}

// TestLostAnswer has each write fail in both ways: the next call succeeds and
// gives what is stored.
func TestLostAnswer(t *testing.T) {
	for nth := 1; nth <= 2; nth++ {
		for _, fault := range []buildtest.Fault{buildtest.FailsBefore, buildtest.FailsAfter} {
			synctest.Test(t, func(t *testing.T) {
				objects, faults := buildtest.NewObjects(t), &buildtest.Faults{}
				a := New(generate(t), faults.On(buildtest.OpPut, nth, fault).Objects(objects))
				name, key := worker(t)
				if _, err := a.Certify(t.Context(), name, key); !errors.Is(err, buildtest.ErrInjected) {
					t.Fatalf("write %d, fault %v: %v", nth, fault, err)
				}
				time.Sleep(time.Minute)
				got, err := a.Certify(t.Context(), name, key)
				if err != nil {
					t.Fatalf("write %d, fault %v: the second call: %v", nth, fault, err)
				}
				stored := object(t, objects, "keys/worker-"+name+".pub")
				if !bytes.Equal(stored, got.PublicKey) || !bytes.Equal(object(t, objects, "keys/worker-"+name+".pub.sig"), got.Signature) {
					t.Errorf("write %d, fault %v: what is stored is not what was returned", nth, fault)
				}
				if err := usign.VerifyFile([]usign.PublicKey{a.Public()}, got.PublicKey, got.Signature); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestOldKeyIsNotCertifiedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := New(generate(t), buildtest.NewObjects(t))
		name, key := worker(t)
		first, err := a.Certify(t.Context(), name, key)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(life - remaining - time.Second)
		if again, err := a.Certify(t.Context(), name, key); err != nil || !bytes.Equal(again.PublicKey, first.PublicKey) {
			t.Errorf("within half of its life: %v", err)
		}
		time.Sleep(2 * time.Second)
		if _, err := a.Certify(t.Context(), name, key); !errors.Is(err, ErrWorker) {
			t.Errorf("after half of its life: %v", err)
		}
	})
}

// TestPlantedCertificate: who can write to the bucket gets nothing signed that
// this server would not have written.
func TestPlantedCertificate(t *testing.T) {
	name, key := worker(t)
	_, foreign := worker(t)
	now := time.Now()
	certificate := func(worker string, key ed25519.PublicKey, from, to time.Time) string {
		c, err := usign.NewCertificate(worker, key, from, to)
		if err != nil {
			t.Fatal(err)
		}
		return string(c.Marshal())
	}
	good := certificate(name, key, now.Add(-clockSkew), now.Add(life))
	for what, text := range map[string]string{
		"a foreign key":     certificate(name, foreign, now.Add(-clockSkew), now.Add(life)),
		"another name":      certificate("somebody", key, now.Add(-clockSkew), now.Add(life)),
		"good for a year":   certificate(name, key, now.Add(-clockSkew), now.AddDate(1, 0, 0)),
		"from the future":   certificate(name, key, now.Add(life), now.Add(2*life+clockSkew)),
		"no last newline":   strings.TrimSuffix(good, "\n"),
		"more than a key":   good + "x",
		"not a key":         "<html>",
		"nothing":           "",
		"longer than a key": strings.Repeat("x", 2*maxKey),
	} {
		objects := buildtest.NewObjects(t)
		a := New(generate(t), objects)
		if err := objects.Put(t.Context(), "keys/worker-"+name+".pub", strings.NewReader(text), build.PolicyText); err != nil {
			t.Fatal(err)
		}
		if got, err := a.Certify(t.Context(), name, key); err == nil {
			t.Errorf("%s was signed: %s", what, got.PublicKey)
		}
		if len(objects.Keys()) != 1 {
			t.Errorf("%s: a signature was stored", what)
		}
	}
}

// FuzzPlanted stores any bytes as an earlier certificate. What is signed then is
// a certificate for the same key and worker, for no more than its usual time.
func FuzzPlanted(f *testing.F) {
	name, key := worker(f)
	for _, days := range []int{0, 1, 365} {
		c, err := usign.NewCertificate(name, key, time.Now().Add(-clockSkew), time.Now().Add(life).AddDate(0, 0, days))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(c.Marshal())
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		objects := buildtest.NewObjects(t)
		if err := objects.Put(t.Context(), "keys/worker-"+name+".pub", bytes.NewReader(text), build.PolicyText); err != nil {
			t.Fatal(err)
		}
		got, err := New(generate(t), objects).Certify(t.Context(), name, key)
		if err != nil {
			return
		}
		c, err := usign.ParseCertificate(got.PublicKey)
		if err != nil || !bytes.Equal(got.PublicKey, text) || c.Worker != name || !c.Key.Key.Equal(key) || c.NotAfter.Sub(c.NotBefore) > life+clockSkew || time.Until(c.NotAfter) > life+clockSkew {
			t.Errorf("signed was %q (%v)", got.PublicKey, err)
		}
	})
}

func TestPublish(t *testing.T) {
	memory, faults := buildtest.NewObjects(t), &buildtest.Faults{}
	objects := faults.Objects(memory)
	first, second := New(generate(t), objects), New(generate(t), objects)
	for i, c := range []struct {
		a      *Authority
		writes int
	}{{first, 1}, {first, 1}, {second, 2}, {second, 2}} {
		if err := c.a.Publish(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(object(t, objects, "keys/server.pub"), c.a.Public().Marshal()) {
			t.Errorf("call %d: another key is stored", i)
		}
		if got := faults.Calls(buildtest.OpPut); got != c.writes {
			t.Errorf("call %d: %d writes until now, want %d", i, got, c.writes)
		}
	}
}

// TestPublishCompares: two that write one key with other comments would write
// for ever. Any other difference is another key, and what is no key is replaced.
func TestPublishCompares(t *testing.T) {
	faults := &buildtest.Faults{}
	objects := faults.Objects(buildtest.NewObjects(t))
	if err := objects.Put(t.Context(), "keys/server.pub", strings.NewReader("no key"), build.PolicyIndex); err != nil {
		t.Fatal(err)
	}
	first, other := generate(t).Public(), generate(t).Public()
	renamed, another, renumbered := first, first, first
	renamed.Comment, another.Key, renumbered.Fingerprint = "another comment", other.Key, other.Fingerprint
	for i, c := range []struct {
		key    usign.PublicKey
		writes bool
	}{{first, true}, {first, false}, {renamed, false}, {another, true}, {first, true}, {renumbered, true}} {
		before := faults.Calls(buildtest.OpPut)
		if err := Publish(t.Context(), objects, c.key); err != nil {
			t.Fatal(err)
		}
		if wrote := faults.Calls(buildtest.OpPut) > before; wrote != c.writes {
			t.Errorf("call %d: it wrote: %t, want %t", i, wrote, c.writes)
		}
	}
	if got := object(t, objects, "keys/server.pub"); !bytes.Equal(got, renumbered.Marshal()) {
		t.Errorf("it holds %q", got)
	}
}
