package aws

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

func base64Text(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// certificateOf is what a function answers that certifies the key.
func certificateOf(key ed25519.PublicKey) build.Certificate {
	file := func(comment string, rest []byte) []byte {
		return []byte("untrusted comment: " + comment + "\n" + base64Text(append([]byte("Ed12345678"), rest...)) + "\n")
	}
	return build.Certificate{
		PublicKey: file("sysup worker x not-before=2026-01-01T00:00:00Z not-after=2026-01-02T00:00:00Z", key),
		Signature: file("signed by key 3132333435363738", make([]byte, ed25519.SignatureSize)),
	}
}

func answerText(t testing.TB, c build.Certificate) string {
	text, err := json.Marshal(CertifyAnswer(c))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestCertifier asks a function and judges each answer.
func TestCertifier(t *testing.T) {
	key, _, _ := ed25519.GenerateKey(nil)
	other, _, _ := ed25519.GenerateKey(nil)
	good := certificateOf(key)
	for _, test := range []struct{ name, function, payload, want string }{
		{"good", "", answerText(t, good), ""},
		{"the function failed", "Unhandled", `{"errorMessage":"s3cret"}`, "failed"},
		{"another key", "", answerText(t, certificateOf(other)), "the worker's key"},
		{"no signature", "", answerText(t, build.Certificate{PublicKey: good.PublicKey}), "signature"},
		{"a key as signature", "", answerText(t, build.Certificate{PublicKey: good.PublicKey, Signature: good.PublicKey}), "signature"},
		{"bytes behind the key", "", answerText(t, build.Certificate{PublicKey: append(good.PublicKey[:len(good.PublicKey):len(good.PublicKey)], 'x'), Signature: good.Signature}), "the worker's key"},
		{"null", "", "null", "the worker's key"},
		{"no JSON", "", "<html>", "JSON"},
		{"too much", "", `"` + strings.Repeat("x", maxAnswer) + `"`, "8192 bytes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var path, sent string
			cloud := answering(func(r *http.Request) (*http.Response, error) {
				b, err := io.ReadAll(r.Body)
				path, sent = r.URL.Path, string(b)
				answer := reply(r, 200, test.payload)
				if test.function != "" {
					answer.Header.Set("X-Amz-Function-Error", test.function)
				}
				return answer, err
			}, Settings{})
			certify, err := cloud.Certifier("lambda:certify")
			if err != nil {
				t.Fatal(err)
			}
			certificate, err := certify(t.Context(), "w-1", key)
			if test.want == "" && (err != nil || string(certificate.PublicKey) != string(good.PublicKey) || string(certificate.Signature) != string(good.Signature)) {
				t.Errorf("the certificate is %+v (%v)", certificate, err)
			}
			if test.want != "" && (err == nil || !contains(err.Error(), test.want, "certify") || contains(err.Error(), "s3cret")) {
				t.Errorf("the error is %v", err)
			}
			if path != "/2015-03-31/functions/certify/invocations" || sent != `{"worker":"w-1","key":"`+base64Text(key)+`"}` {
				t.Errorf("it is asked %s at %s", sent, path)
			}
		})
	}
	for _, ref := range []string{"", "lambda:", "lambda:a b", "https://certifier.example", "certify"} {
		if _, err := answering(nil, Settings{}).Certifier(ref); err == nil || !contains(err.Error(), "lambda:FUNCTION") {
			t.Errorf("the reference %q: %v", ref, err)
		}
	}
}

// FuzzCertifyAnswer accepts only what holds the key, in files of a bounded size.
func FuzzCertifyAnswer(f *testing.F) {
	key := ed25519.PublicKey(pattern(ed25519.PublicKeySize, 3))
	f.Add([]byte(answerText(f, certificateOf(key))))
	f.Add([]byte(`{"public_key":"","signature":""}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := ParseCertifyAnswer(text, key)
		if err != nil {
			return
		}
		_, line, _ := strings.Cut(strings.TrimSuffix(string(c.PublicKey), "\n"), "\n")
		raw, err := base64.StdEncoding.DecodeString(line)
		if err != nil || !strings.HasSuffix(string(raw), string(key)) || len(c.PublicKey)+len(c.Signature) > 2*maxKeyFile {
			t.Errorf("accepted %q as a certificate", c.PublicKey)
		}
		if again, err := ParseCertifyAnswer([]byte(answerText(t, c)), key); err != nil || string(again.Signature) != string(c.Signature) {
			t.Errorf("its own form is refused: %v", err)
		}
	})
}
