package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/aws"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
	"github.com/attended-sysupgrade/sysup/shared/certify"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

const testToken = "0123456789abcdef0123456789abcdef"

func newKey(t testing.TB) usign.SecretKey {
	t.Helper()
	key, err := usign.Generate("")
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestCertifyOverHTTP: what a worker gets is what clients find and trust.
func TestCertifyOverHTTP(t *testing.T) {
	objects, server, worker := buildtest.NewObjects(t), newKey(t), newKey(t).Public()
	web := httptest.NewServer(certifyHandler(testToken, certify.New(server, objects).Certify, testLog(t)))
	defer web.Close()
	ask := askCertifier(web.URL+"/", testToken)
	certificate, err := ask(t.Context(), worker.Fingerprint.String(), worker.Key)
	if err != nil {
		t.Fatal(err)
	}
	if err := usign.VerifyFile([]usign.PublicKey{server.Public()}, certificate.PublicKey, certificate.Signature); err != nil {
		t.Error(err)
	}
	r, _, err := objects.Open(t.Context(), "keys/worker-"+worker.Fingerprint.String()+".pub")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if text, _ := io.ReadAll(r); !bytes.Equal(text, certificate.PublicKey) {
		t.Errorf("clients find %q, the worker has %q", text, certificate.PublicKey)
	}
	if _, err := ask(t.Context(), "another-name", worker.Key); err == nil || !strings.Contains(err.Error(), "422") {
		t.Errorf("a key under another name: %v", err)
	}
}

// TestCertifyRefuses: nobody without the token reaches the certifier, and no
// answer says more than it must.
func TestCertifyRefuses(t *testing.T) {
	var asked atomic.Int64
	fault := errors.New("the secret place is not there")
	var log bytes.Buffer
	handler := certifyHandler(testToken, func(context.Context, string, ed25519.PublicKey) (build.Certificate, error) {
		asked.Add(1)
		return build.Certificate{}, fault
	}, slog.New(slog.NewTextHandler(&log, nil)))
	const good = `{"worker":"w","key":"AAAA"}`
	for _, test := range []struct {
		name, method, path, authorization, body string
		status                                  int
		asked                                   int64
	}{
		{"no token", "POST", "/certify", "", good, 401, 0},
		{"another token", "POST", "/certify", "Bearer " + testToken + "x", good, 401, 0},
		{"part of the token", "POST", "/certify", "Bearer " + testToken[:31], good, 401, 0},
		{"the token alone", "POST", "/certify", testToken, good, 401, 0},
		{"a GET", "GET", "/certify", "Bearer " + testToken, "", 405, 0},
		{"a preflight", "OPTIONS", "/certify", "", "", 405, 0},
		{"another path", "POST", "/", "Bearer " + testToken, good, 404, 0},
		{"no JSON", "POST", "/certify", "Bearer " + testToken, "worker", 400, 0},
		{"an unknown field", "POST", "/certify", "Bearer " + testToken, `{"worker":"w","key":"AAAA","days":1000}`, 400, 0},
		{"too long", "POST", "/certify", "Bearer " + testToken, `{"worker":"` + strings.Repeat("w", certifyBody) + `"}`, 400, 0},
		{"a fault", "POST", "/certify", "Bearer " + testToken, good, 503, 1},
	} {
		asked.Store(0)
		request := httptest.NewRequest(test.method, test.path, strings.NewReader(test.body))
		if test.authorization != "" {
			request.Header.Set("Authorization", test.authorization)
		}
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, request)
		if answer.Code != test.status || asked.Load() != test.asked {
			t.Errorf("%s: %d, the certifier was asked %d times; want %d and %d", test.name, answer.Code, asked.Load(), test.status, test.asked)
		}
		if strings.Contains(answer.Body.String(), "secret place") || answer.Header().Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: the answer is %q with %v", test.name, answer.Body, answer.Header())
		}
	}
	if strings.Contains(log.String(), testToken[:20]) || !strings.Contains(log.String(), "secret place") {
		t.Errorf("the log says %s", log.String())
	}
}

// TestCertifyAtOnce: no more than a few questions reach the store at once.
func TestCertifyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var inside, refused atomic.Int64
		hold := make(chan bool)
		handler := certifyHandler(testToken, func(context.Context, string, ed25519.PublicKey) (build.Certificate, error) {
			inside.Add(1)
			<-hold
			return build.Certificate{}, nil
		}, testLog(t))
		for range certifyAtOnce + 3 {
			go func() {
				request := httptest.NewRequest("POST", certifyPath, strings.NewReader(`{"worker":"w","key":"AAAA"}`))
				request.Header.Set("Authorization", "Bearer "+testToken)
				answer := httptest.NewRecorder()
				if handler.ServeHTTP(answer, request); answer.Code == http.StatusServiceUnavailable {
					refused.Add(1)
				}
			}()
		}
		synctest.Wait()
		if inside.Load() != certifyAtOnce || refused.Load() != 3 {
			t.Errorf("%d were let in, %d refused", inside.Load(), refused.Load())
		}
		close(hold)
		synctest.Wait()
	})
}

// TestAskCertifier: a worker endures faults of the server, believes no answer
// that is not about its key, and takes its token to nobody else.
func TestAskCertifier(t *testing.T) {
	worker := newKey(t).Public()
	good := certifyHandler(testToken, certify.New(newKey(t), buildtest.NewObjects(t)).Certify, testLog(t))
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("another server was asked, with %q", r.Header.Get("Authorization"))
	}))
	defer elsewhere.Close()
	for _, test := range []struct {
		name  string
		fault http.HandlerFunc // of the first answers
		n     int64
		tries int64
		says  string
	}{
		{"two faults", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, 2, 3, ""},
		{"no answer", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 1, 2, ""},
		{"faults for ever", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(502) }, 100, certifyTries, "502"},
		{"refused", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) }, 100, 1, "401"},
		{"sent elsewhere", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}, 100, 1, "307"},
		{"nonsense", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }, 100, 1, "no certificate"},
		{"too much", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1<<20)) }, 100, 1, "no certificate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int64
			web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if asked.Add(1) <= test.n {
					test.fault(w, r)
					return
				}
				good.ServeHTTP(w, r)
			}))
			defer web.Close()
			_, err := askCertifier(web.URL, testToken)(t.Context(), worker.Fingerprint.String(), worker.Key)
			if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("it ended with %v", err)
			}
			if err != nil && strings.Contains(err.Error(), testToken) {
				t.Error("the error holds the token")
			}
			if asked.Load() != test.tries {
				t.Errorf("the server was asked %d times, want %d", asked.Load(), test.tries)
			}
		})
	}
}

// TestAskCertifierEnds: SIGTERM does not wait for a server that says nothing.
func TestAskCertifierEnds(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	defer web.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	worker := newKey(t).Public()
	begin := time.Now()
	if _, err := askCertifier(web.URL, testToken)(ctx, worker.Fingerprint.String(), worker.Key); err == nil || time.Since(begin) > 2*time.Second {
		t.Errorf("it ended after %v with %v", time.Since(begin), err)
	}
}

func TestReadToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	for text, good := range map[string]bool{
		testToken: true, testToken + "\n": true, "\n" + testToken + "\r\n": true,
		"": false, "short": false, strings.Repeat("x", 201): false, strings.Repeat("x", 1<<20): false,
		testToken + "\n" + testToken: false, "with blanks in it 0123456789": false, "caf\u00e9 0123456789012345678901": false,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		token, err := readToken(file)
		if (err == nil) != good || good && token != testToken {
			t.Errorf("%.40q is read as %q, %v", text, token, err)
		}
		if err != nil && text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("the error holds the token: %v", err)
		}
	}
}

// TestCertifyListener: the listener of `sysup serve` certifies until its end.
func TestCertifyListener(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(testToken), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, flags := range []certifyFlags{{CertifyListen: "127.0.0.1:0"}, {CertifyTokenFile: file}} {
		if err := flags.Validate(); err == nil {
			t.Errorf("%+v is taken", flags)
		}
	}
	flags := certifyFlags{CertifyListen: "127.0.0.1:0", CertifyTokenFile: file}
	if err := flags.Validate(); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var log lockedBuffer
	ended := make(chan error, 1)
	certifier := certify.New(newKey(t), buildtest.NewObjects(t)).Certify
	go func() { ended <- flags.serve(ctx, certifier, slog.New(slog.NewTextHandler(&log, nil))) }()
	var address []string
	for begin := time.Now(); address == nil && time.Since(begin) < 10*time.Second; time.Sleep(time.Millisecond) {
		address = regexp.MustCompile(`address=(http://\S+)/certify`).FindStringSubmatch(log.String())
	}
	if address == nil {
		t.Fatal("it does not listen")
	}
	worker := newKey(t).Public()
	if _, err := askCertifier(address[1], testToken)(t.Context(), worker.Fingerprint.String(), worker.Key); err != nil {
		t.Error(err)
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it does not end")
	}
	if err := (certifyFlags{}).serve(t.Context(), nil, testLog(t)); err != nil {
		t.Errorf("without an address: %v", err)
	}
}

// FuzzCertify: whatever a worker sends, only a key under its own fingerprint
// is certified, and nothing but that is stored.
func FuzzCertify(f *testing.F) {
	worker := newKey(f).Public()
	key := base64.StdEncoding.EncodeToString(worker.Key)
	f.Add(fmt.Sprintf(`{"worker":%q,"key":%q}`, worker.Fingerprint, key))
	f.Add(fmt.Sprintf(`{"worker":"../server","key":%q}`, key))
	f.Add(`{"worker":"","key":null}`)
	f.Add(`[]`)
	f.Fuzz(func(t *testing.T, body string) {
		objects := buildtest.NewObjects(t)
		request := httptest.NewRequest("POST", certifyPath, strings.NewReader(body))
		request.Header.Set("Authorization", "Bearer "+testToken)
		answer := httptest.NewRecorder()
		certifyHandler(testToken, certify.New(fuzzServer(), objects).Certify, slog.New(slog.DiscardHandler)).ServeHTTP(answer, request)
		if answer.Code != http.StatusOK {
			if keys := objects.Keys(); len(keys) > 0 {
				t.Fatalf("answered %d, stored %q", answer.Code, keys)
			}
			return
		}
		var question aws.CertifyRequest
		if err := json.NewDecoder(strings.NewReader(body)).Decode(&question); err != nil {
			t.Fatal(err)
		}
		certificate, err := aws.ParseCertifyAnswer(answer.Body.Bytes(), question.Key)
		if err != nil {
			t.Fatal(err)
		}
		if err := usign.VerifyFile([]usign.PublicKey{fuzzServer().Public()}, certificate.PublicKey, certificate.Signature); err != nil {
			t.Fatal(err)
		}
		name := "keys/worker-" + usign.FingerprintOf(question.Key).String() + ".pub"
		if keys := objects.Keys(); !slices.Equal(keys, []string{name, name + ".sig"}) {
			t.Fatalf("stored %q, want %s", keys, name)
		}
	})
}

var fuzzServer = sync.OnceValue(func() usign.SecretKey {
	key, err := usign.Generate("")
	if err != nil {
		panic(err)
	}
	return key
})
