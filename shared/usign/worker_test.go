package usign

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)

func TestCertificate(t *testing.T) {
	key := generate(t, "")
	zone := time.FixedZone("elsewhere", 3600)
	c := must(NewCertificate("w-1", key.Public().Key, noon.In(zone).Add(time.Millisecond), noon.Add(24*time.Hour)))(t)
	file := c.Marshal()
	if want := "untrusted comment: sysup worker w-1 not-before=2026-01-31T12:00:00Z not-after=2026-02-01T12:00:00Z\n"; !bytes.HasPrefix(file, []byte(want)) {
		t.Errorf("the file is %q", file)
	}
	back := must(ParseCertificate(file))(t)
	if back.Worker != "w-1" || !back.NotBefore.Equal(noon) || !back.NotAfter.Equal(noon.Add(24*time.Hour)) || back.Key.Fingerprint != FingerprintOf(key.Public().Key) {
		t.Errorf("read back as %+v", back)
	}
	plain := must(ParsePublicKey(file))(t)
	if err := Verify([]PublicKey{plain}, []byte("m"), key.Sign([]byte("m"))); err != nil {
		t.Errorf("as an ordinary public key: %v", err)
	}
}

func TestCertify(t *testing.T) {
	server, worker := generate(t, "server"), generate(t, "")
	public, sig, err := Certify(server, "w", worker.Public().Key, noon, noon)
	if err != nil {
		t.Fatal(err)
	}
	if err := VerifyFile([]PublicKey{server.Public()}, public, sig); err != nil {
		t.Error(err)
	}
	if c := must(ParseCertificate(public))(t); c.Key.Fingerprint != worker.Public().Fingerprint {
		t.Errorf("certified %s, the worker signs as %s", c.Key.Fingerprint, worker.Public().Fingerprint)
	}
	if _, _, err := Certify(server, "W W", worker.Public().Key, noon, noon); !errors.Is(err, ErrFormat) {
		t.Errorf("an odd id: %v", err)
	}
}

func TestMalformedCertificates(t *testing.T) {
	key := generate(t, "").Public()
	for _, worker := range []string{"", "W", "a b", "-a", "a\nb", strings.Repeat("a", 64)} {
		if c, err := NewCertificate(worker, key.Key, noon, noon); !errors.Is(err, ErrFormat) {
			t.Errorf("worker %q: %v, %v", worker, c, err)
		}
	}
	if _, err := NewCertificate("w", key.Key[1:], noon, noon); !errors.Is(err, ErrFormat) {
		t.Errorf("a short key: %v", err)
	}
	if _, err := NewCertificate("w", key.Key, noon, noon.Add(-time.Second)); !errors.Is(err, ErrFormat) {
		t.Errorf("an end before the beginning: %v", err)
	}
	for _, comment := range []string{
		"",
		"sysup worker w",
		"sysup worker w not-before=2026-01-31T12:00:00Z",
		"sysup worker w not-after=2026-02-01T12:00:00Z not-before=2026-01-31T12:00:00Z",
		"sysup worker w not-before=2026-01-31T12:00:00+00:00 not-after=2026-02-01T12:00:00Z",
		"sysup worker w not-before=2026-01-31T12:00:00.5Z not-after=2026-02-01T12:00:00Z",
		"sysup worker w not-before=2026-01-32T12:00:00Z not-after=2026-02-01T12:00:00Z",
		"sysup worker w not-before=2026-01-31T12:00:00Z not-after=2026-02-01T12:00:00Z not-after=2027-01-01T00:00:00Z",
		" sysup worker w not-before=2026-01-31T12:00:00Z not-after=2026-02-01T12:00:00Z",
		"sysup worker w  not-before=2026-01-31T12:00:00Z not-after=2026-02-01T12:00:00Z",
	} {
		key.Comment = comment
		if c, err := ParseCertificate(key.Marshal()); !errors.Is(err, ErrFormat) {
			t.Errorf("comment %q: %+v, %v", comment, c, err)
		}
	}
	key.Comment = "sysup worker w not-before=2026-01-31T12:00:00Z not-after=2026-02-01T12:00:00Z"
	if c, err := ParseCertificate(append(key.Marshal(), '\n')); !errors.Is(err, ErrFormat) {
		t.Errorf("one that was pasted, whose signature cannot fit: %+v, %v", c, err)
	}
}

func TestRevoked(t *testing.T) {
	server, stranger := generate(t, "server"), generate(t, "stranger")
	a, b := Fingerprint{1}, Fingerprint{2}
	list := Revoked{Issued: noon, Keys: []Fingerprint{b, a, b}}.Marshal()
	if want := "sysup revoked 2026-01-31T12:00:00Z\n0100000000000000\n0200000000000000\n"; string(list) != want {
		t.Fatalf("%q, not %q", list, want)
	}
	got, err := VerifyRevoked([]PublicKey{server.Public()}, list, server.Sign(list).Marshal())
	if err != nil || !got.Issued.Equal(noon) || !slices.Equal(got.Keys, []Fingerprint{a, b}) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := VerifyRevoked([]PublicKey{server.Public()}, list, stranger.Sign(list).Marshal()); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("signed by a stranger: %v", err)
	}
	if _, err := VerifyRevoked([]PublicKey{server.Public()}, list[:len(list)-17], server.Sign(list).Marshal()); !errors.Is(err, ErrBadSignature) {
		t.Errorf("a line less: %v", err)
	}
	if empty, err := ParseRevoked(Revoked{Issued: noon}.Marshal()); err != nil || len(empty.Keys) != 0 {
		t.Errorf("the empty list: %v, %v", empty, err)
	}
}

func TestMalformedRevoked(t *testing.T) {
	const header = "sysup revoked 2026-01-31T12:00:00Z\n"
	for name, list := range map[string]string{
		"empty":           "",
		"no header":       "0100000000000000\n",
		"no date":         "sysup revoked \n",
		"another date":    "sysup revoked yesterday\n",
		"no last newline": header + "0100000000000000",
		"upper case":      header + "010000000000000A\n",
		"short":           header + "01\n",
		"long":            header + "000000000000000000\n",
		"empty line":      header + "\n0100000000000000\n",
		"out of order":    header + "0200000000000000\n0100000000000000\n",
		"twice":           header + "0100000000000000\n0100000000000000\n",
		"a comment":       header + "0100000000000000 stolen\n",
		"CRLF":            header + "0100000000000000\r\n",
		"too long":        header + strings.Repeat("0100000000000000\n", maxRevoked),
	} {
		if got, err := ParseRevoked([]byte(list)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func FuzzParseCertificate(f *testing.F) {
	c, err := NewCertificate("w", make([]byte, 32), noon, noon)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(c.Marshal())
	f.Add([]byte("untrusted comment: sysup worker w not-before=x not-after=y\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseCertificate(b)
		if err != nil {
			refused(t, err)
			return
		}
		if !bytes.Equal(bytes.TrimSuffix(b, []byte("\n")), bytes.TrimSuffix(c.Marshal(), []byte("\n"))) {
			t.Errorf("%q has two spellings, the other is %q", b, c.Marshal())
		}
		if c.NotAfter.Before(c.NotBefore) || !workerID.MatchString(c.Worker) {
			t.Errorf("accepted %+v", c)
		}
	})
}

func FuzzParseRevoked(f *testing.F) {
	f.Add(Revoked{Issued: noon, Keys: []Fingerprint{{1}, {2}}}.Marshal())
	f.Add([]byte("sysup revoked 2026-01-31T12:00:00Z\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRevoked(b)
		if err != nil {
			refused(t, err)
			return
		}
		if !bytes.Equal(r.Marshal(), b) {
			t.Errorf("%q has two spellings, the other is %q", b, r.Marshal())
		}
	})
}
