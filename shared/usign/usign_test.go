package usign

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func testdata(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func generate(t testing.TB, comment string) SecretKey {
	t.Helper()
	return must(Generate(comment))(t)
}

// The files were made by OpenBSD's signify and by OpenWrt's usign.
func TestVectors(t *testing.T) {
	message := testdata(t, "message")
	for _, tool := range []string{"signify", "usign"} {
		t.Run(tool, func(t *testing.T) {
			public := must(ParsePublicKey(testdata(t, tool+".pub")))(t)
			secret := must(ParseSecretKey(testdata(t, tool+".sec")))(t)
			sig := must(ParseSignature(testdata(t, tool+".sig")))(t)
			if err := Verify([]PublicKey{public}, message, sig); err != nil {
				t.Error(err)
			}
			if got := public.Marshal(); !bytes.Equal(got, testdata(t, tool+".pub")) {
				t.Errorf("the public key is written as %q", got)
			}
			if got := secret.Public(); !got.Key.Equal(public.Key) || got.Fingerprint != public.Fingerprint {
				t.Errorf("the secret key's public key is %v, not %v", got, public)
			}
			made := secret.Sign(message)
			made.Comment = sig.Comment
			if got := made.Marshal(); !bytes.Equal(got, testdata(t, tool+".sig")) {
				t.Errorf("the signature is written as %q", got)
			}
			if back := must(ParseSecretKey(secret.Marshal()))(t); !bytes.Equal(back.key, secret.key) || back.fingerprint != secret.fingerprint {
				t.Error("the secret key does not survive being written and read")
			}
		})
	}
}

// OpenWrt's published keys, whose file names are their fingerprints.
func TestPublishedFingerprints(t *testing.T) {
	for print, key := range map[string]string{
		"792d9d9b39f180dc": "RWR5LZ2bOfGA3FGliZosEDhodiAKDOISmQs/mmjo4rhcbFtqkibJqMzo",
		"2f8b0b98e08306bf": "RWQviwuY4IMGvwLfs6842A0m4EZU1IjczTxKMSk3BQP8DAQLHBwdQiaU",
		"d310c6f2833e97f7": "RWTTEMbygz6X95lKDAulctZy3aj15823THXfyrfXgwGbxZlXBd2brNcw",
	} {
		parsed := must(ParsePublicKey([]byte(commentPrefix + "a release\n" + key)))(t)
		if parsed.Fingerprint.String() != print {
			t.Errorf("fingerprint %s, not %s", parsed.Fingerprint, print)
		}
		if back, err := ParseFingerprint(print); err != nil || back != parsed.Fingerprint {
			t.Errorf("ParseFingerprint(%s) = %s, %v", print, back, err)
		}
	}
}

func TestMalformedFingerprints(t *testing.T) {
	for _, s := range []string{"", "792d9d9b39f180d", "792d9d9b39f180dcc", "792d9d9b39f180dc00", "792D9D9B39F180DC", "792d9d9b39f180dg", " 92d9d9b39f180dc"} {
		if f, err := ParseFingerprint(s); !errors.Is(err, ErrFormat) {
			t.Errorf("%q: %v, %v", s, f, err)
		}
	}
}

// signify runs OpenBSD's tool in dir.
func signify(t *testing.T, dir string, args ...string) error {
	t.Helper()
	tool, err := exec.LookPath("signify-openbsd")
	if err != nil {
		t.Fatal("signify-openbsd is not installed: run scripts/setup")
	}
	cmd := exec.Command(tool, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func write(t *testing.T, dir, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestSignifyReadsOurs(t *testing.T) {
	for _, comment := range []string{"", "a comment", strings.Repeat("c", 3000), "two\nlines"} {
		dir := t.TempDir()
		key := generate(t, comment)
		message := []byte("something to sign\n")
		write(t, dir, "m", message)
		write(t, dir, "k.pub", key.Public().Marshal())
		write(t, dir, "k.sec", key.Marshal())
		write(t, dir, "m.sig", key.Sign(message).Marshal())
		if err := signify(t, dir, "-V", "-q", "-p", "k.pub", "-m", "m"); err != nil {
			t.Errorf("comment %.20q: signify refuses our signature: %v", comment, err)
		}
		if err := signify(t, dir, "-S", "-s", "k.sec", "-m", "m", "-x", "theirs.sig"); err != nil {
			t.Fatalf("comment %.20q: signify refuses our secret key: %v", comment, err)
		}
		theirs := must(os.ReadFile(filepath.Join(dir, "theirs.sig")))(t)
		if err := VerifyFile([]PublicKey{key.Public()}, message, theirs); err != nil {
			t.Errorf("comment %.20q: %v", comment, err)
		}
		write(t, dir, "m", []byte("something else\n"))
		if signify(t, dir, "-V", "-q", "-p", "k.pub", "-m", "m") == nil {
			t.Error("signify accepts the signature for another message")
		}
	}
}

func TestWeReadSignifys(t *testing.T) {
	dir := t.TempDir()
	if err := signify(t, dir, "-G", "-n", "-c", "theirs", "-p", "k.pub", "-s", "k.sec"); err != nil {
		t.Fatal(err)
	}
	message := []byte("something to sign")
	write(t, dir, "m", message)
	if err := signify(t, dir, "-S", "-s", "k.sec", "-m", "m"); err != nil {
		t.Fatal(err)
	}
	public := must(ParsePublicKey(must(os.ReadFile(filepath.Join(dir, "k.pub")))(t)))(t)
	secret := must(ParseSecretKey(must(os.ReadFile(filepath.Join(dir, "k.sec")))(t)))(t)
	file := must(os.ReadFile(filepath.Join(dir, "m.sig")))(t)
	if err := VerifyFile([]PublicKey{public}, message, file); err != nil {
		t.Error(err)
	}
	ours := secret.Sign(message)
	ours.Comment = "verify with k.pub"
	if !bytes.Equal(ours.Marshal(), file) {
		t.Errorf("our signature %q differs from signify's %q", ours.Marshal(), file)
	}
	if !bytes.Equal(public.Marshal(), must(os.ReadFile(filepath.Join(dir, "k.pub")))(t)) {
		t.Error("the public key is written in another way")
	}
}

func TestVerify(t *testing.T) {
	a, b := generate(t, "a"), generate(t, "b")
	sameName := b
	sameName.fingerprint = a.fingerprint
	message := []byte("message")
	sig := a.Sign(message)
	changed := sig
	changed.Sig[7] ^= 1
	for _, c := range []struct {
		name string
		keys []PublicKey
		msg  string
		sig  Signature
		want error
	}{
		{"the key", []PublicKey{a.Public()}, "message", sig, nil},
		{"the key among others", []PublicKey{b.Public(), a.Public()}, "message", sig, nil},
		{"another key of that name first", []PublicKey{sameName.Public(), a.Public()}, "message", sig, nil},
		{"no key", nil, "message", sig, ErrUnknownKey},
		{"another key", []PublicKey{b.Public()}, "message", sig, ErrUnknownKey},
		{"only another key of that name", []PublicKey{sameName.Public()}, "message", sig, ErrBadSignature},
		{"another message", []PublicKey{a.Public()}, "massage", sig, ErrBadSignature},
		{"a changed signature", []PublicKey{a.Public()}, "message", changed, ErrBadSignature},
		{"an empty key of that name", []PublicKey{{Fingerprint: a.fingerprint}}, "message", sig, ErrUnknownKey},
		{"nothing at all", []PublicKey{{}}, "", Signature{}, ErrUnknownKey},
	} {
		if err := Verify(c.keys, []byte(c.msg), c.sig); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, not %v", c.name, err, c.want)
		}
	}
}

func TestMalformedFiles(t *testing.T) {
	key := generate(t, "k")
	good := string(key.Public().Marshal())
	first, second, _ := strings.Cut(strings.TrimSuffix(good, "\n"), "\n")
	short := base64.StdEncoding.EncodeToString([]byte("Ed345678901234567890123456789012345678901"))
	other := base64.StdEncoding.EncodeToString(append([]byte("RS"), make([]byte, 40)...))
	for name, file := range map[string]string{
		"empty":              "",
		"one line":           first,
		"no comment":         second + "\n" + second + "\n",
		"no second line":     first + "\n",
		"CRLF":               first + "\r\n" + second + "\r\n",
		"CR in the base64":   first + "\n" + second[:10] + "\r" + second[10:] + "\n",
		"newline inside":     first + "\n" + second[:10] + "\n" + second[10:] + "\n",
		"a third line":       good + "more\n",
		"more after blanks":  good + "\n \n" + second + "\n",
		"blanks without end": good + strings.Repeat("\n", maxText),
		"blank before":       first + "\n " + second + "\n",
		"too short":          first + "\n" + short + "\n",
		"another algorithm":  first + "\n" + other + "\n",
		"not base64":         first + "\n" + strings.Repeat("!", 56) + "\n",
		"control characters": commentPrefix + "\x1b[2J\n" + second + "\n",
		"comment too long":   commentPrefix + strings.Repeat("c", 1024) + "\n" + second + "\n",
		"huge":               first + "\n" + strings.Repeat("A", maxText),
		"a secret key":       string(key.Marshal()),
		"a signature":        string(key.Sign(nil).Marshal()),
	} {
		if got, err := ParsePublicKey([]byte(file)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for name, file := range map[string]string{
		"no last newline": first + "\n" + second,
		"empty comment":   commentPrefix + "\n" + second + "\n",
		"UTF-8":           commentPrefix + "Schlüssel\n" + second + "\n",
		"two newlines":    good + "\n",
		"blank lines":     good + "\n \t\r\n\n",
		"a blank after":   first + "\n" + second + " ",
	} {
		if got, err := ParsePublicKey([]byte(file)); err != nil || !got.Key.Equal(key.Public().Key) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestDamagedSecretKeys(t *testing.T) {
	key := generate(t, "k")
	line := strings.Split(string(key.Marshal()), "\n")
	body, _ := base64.StdEncoding.DecodeString(line[1])
	for name, at := range map[string]int{"encryption": 2, "rounds": 7, "checksum": 24, "seed": 40, "public half": 103} {
		damaged := bytes.Clone(body)
		damaged[at] ^= 1
		file := line[0] + "\n" + base64.StdEncoding.EncodeToString(damaged) + "\n"
		if _, err := ParseSecretKey([]byte(file)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	stranger := generate(t, "")
	mixed := append(bytes.Clone(body[:72]), stranger.key[32:]...)
	copy(mixed[24:], checksum(mixed[40:]))
	if _, err := ParseSecretKey([]byte(line[0] + "\n" + base64.StdEncoding.EncodeToString(mixed))); !errors.Is(err, ErrFormat) {
		t.Errorf("halves of two keys: %v", err)
	}
}

func TestSecretKeysAreNotPrinted(t *testing.T) {
	key := generate(t, "k")
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if got := fmt.Sprintf(verb, key); got != "secret key "+key.fingerprint.String() {
			t.Errorf("%s prints %q", verb, got)
		}
	}
}

// elsewhere is a signer as a key management service is one; flip spoils its
// answers.
type elsewhere struct {
	ed25519.PrivateKey
	flip byte
}

func (e elsewhere) Sign(rand io.Reader, msg []byte, opts crypto.SignerOpts) ([]byte, error) {
	sig, err := e.PrivateKey.Sign(rand, msg, opts)
	if err == nil {
		sig[0] ^= e.flip
	}
	return sig, err
}

func TestSignWith(t *testing.T) {
	key, other := generate(t, ""), generate(t, "")
	message := []byte("message")
	sig, err := SignWith(elsewhere{key.key, 0}, key.Public(), message)
	if err != nil || sig != key.Sign(message) {
		t.Errorf("%v, %v", sig, err)
	}
	if _, err := SignWith(elsewhere{key.key, 0}, other.Public(), message); err == nil {
		t.Error("a signer that holds another key was used")
	}
	if _, err := SignWith(elsewhere{key.key, 1}, key.Public(), message); !errors.Is(err, ErrBadSignature) {
		t.Errorf("a wrong answer: %v", err)
	}
}

func FuzzParsePublicKey(f *testing.F) {
	for _, name := range []string{"signify.pub", "usign.pub", "usign.sec", "usign.sig"} {
		f.Add(testdata(f, name))
		f.Add(append(testdata(f, name), "\n \r\n"...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		key, err := ParsePublicKey(b)
		if err != nil {
			refused(t, err)
			return
		}
		if back, err := ParsePublicKey(key.Marshal()); err != nil || back.Fingerprint != key.Fingerprint || !back.Key.Equal(key.Key) {
			t.Errorf("%v is read back as %v, %v", key, back, err)
		}
		if kept := len(bytes.TrimRight(b, " \t\r\n")); !strings.HasPrefix(string(b), commentPrefix) || bytes.Count(b[:kept], []byte("\n")) != 1 {
			t.Errorf("%q is taken for a key's file of two lines", b)
		}
	})
}

func FuzzParseSecretKey(f *testing.F) {
	f.Add(testdata(f, "signify.sec"))
	f.Add(testdata(f, "usign.sec"))
	f.Fuzz(func(t *testing.T, b []byte) {
		key, err := ParseSecretKey(b)
		if err != nil {
			refused(t, err)
			return
		}
		if err := Verify([]PublicKey{key.Public()}, b, key.Sign(b)); err != nil {
			t.Error(err)
		}
	})
}

func FuzzParseSignature(f *testing.F) {
	f.Add(testdata(f, "signify.sig"))
	f.Add(testdata(f, "usign.sig"))
	f.Add(testdata(f, "usign.pub"))
	f.Fuzz(func(t *testing.T, b []byte) {
		sig, err := ParseSignature(b)
		if err != nil {
			refused(t, err)
			return
		}
		back, err := ParseSignature(sig.Marshal())
		if sig.Comment == "" {
			sig.Comment = back.Comment
		}
		if err != nil || back != sig {
			t.Errorf("%v is read back as %v, %v", sig, back, err)
		}
	})
}

// refused fails unless a parser said that its bytes are malformed.
func refused(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ErrFormat) {
		t.Errorf("the error is of no kind: %v", err)
	}
}
