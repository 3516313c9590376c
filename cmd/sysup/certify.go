package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/attended-sysupgrade/sysup/shared/aws"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/certify"
)

// certifyFlags are the settings by which `sysup serve` certifies the keys of
// workers on other machines: POST /certify on a listener of its own, with a
// token; the JSON is that of the Lambda function.
type certifyFlags struct {
	CertifyListen    string `help:"Address on which workers of other machines have their keys certified, for a private network or a proxy with TLS; nowhere without it." env:"SYSUP_CERTIFY_LISTEN" placeholder:"ADDRESS"`
	CertifyTokenFile string `help:"File with the token that these workers have: 20 to 200 visible characters." type:"existingfile" env:"SYSUP_CERTIFY_TOKEN_FILE" placeholder:"FILE"`
}

func (c certifyFlags) Validate() error {
	if (c.CertifyListen == "") != (c.CertifyTokenFile == "") {
		return fmt.Errorf("--certify-listen and --certify-token-file have to be set together, they are %q and %q", c.CertifyListen, c.CertifyTokenFile)
	}
	return nil
}

const (
	certifyPath   = "/certify"
	certifyAtOnce = 4        // each is two writes to the store
	certifyBody   = 1 << 10  // bytes of a question
	certifyAnswer = 16 << 10 // bytes of an answer
	certifyTime   = 10 * time.Second
	certifyTries  = 4
)

var tokenPattern = regexp.MustCompile(`^[!-~]{20,200}$`)

// readToken never puts what it read into an error.
func readToken(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 1<<10))
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(text))
	if !tokenPattern.MatchString(token) {
		return "", fmt.Errorf("%s has to hold a token of 20 to 200 visible characters, it has %d; make one: openssl rand -hex 32 > %s", file, len(token), file)
	}
	return token, nil
}

// check reads the token before anything is served.
func (c certifyFlags) check() error {
	if c.CertifyTokenFile == "" {
		return nil
	}
	_, err := readToken(c.CertifyTokenFile)
	return err
}

// serve certifies until ctx ends. Without an address there is nothing to do.
func (c certifyFlags) serve(ctx context.Context, certifier build.Certifier, log *slog.Logger) error {
	if c.CertifyListen == "" {
		return nil
	}
	token, err := readToken(c.CertifyTokenFile)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", c.CertifyListen)
	if err != nil {
		return fmt.Errorf("cannot listen on %s: %w; choose another address with --certify-listen", c.CertifyListen, err)
	}
	log.Info("sysup certifies workers", "address", "http://"+listener.Addr().String()+certifyPath)
	web := &http.Server{
		Handler: certifyHandler(token, certifier, log), ReadTimeout: certifyTime, WriteTimeout: 2 * certifyTime, IdleTimeout: time.Minute,
		MaxHeaderBytes: 4 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { web.Close() })
	defer stop()
	if err := web.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// certifyHandler answers an aws.CertifyRequest with an aws.CertifyAnswer. Who
// has no token costs one hash.
func certifyHandler(token string, certifier build.Certifier, log *slog.Logger) http.Handler {
	want := sha256.Sum256([]byte("Bearer " + token))
	places := make(chan struct{}, certifyAtOnce)
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+certifyPath, func(w http.ResponseWriter, r *http.Request) {
		got := sha256.Sum256([]byte(r.Header.Get("Authorization")))
		if subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			http.Error(w, "the token is not the one of --certify-token-file", http.StatusUnauthorized)
			return
		}
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
		default:
			http.Error(w, "too many at once, try again", http.StatusServiceUnavailable)
			return
		}
		answer, status, err := answerCertify(r, certifier)
		if err != nil {
			log.Warn("a worker's key was not certified", "status", status, "error", err)
			http.Error(w, certifySentences[status], status)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(answer)
	})
	return mux
}

// certifySentences say to a worker no more than it needs.
var certifySentences = map[int]string{
	http.StatusBadRequest:          "the question has to be a JSON object with worker and key",
	http.StatusUnprocessableEntity: "this key cannot be certified; the server's log says why",
	http.StatusServiceUnavailable:  "the server cannot certify now, try again",
}

func answerCertify(r *http.Request, certifier build.Certifier) (answer []byte, status int, err error) {
	var question aws.CertifyRequest
	body := json.NewDecoder(http.MaxBytesReader(nil, r.Body, certifyBody))
	body.DisallowUnknownFields()
	if err := body.Decode(&question); err != nil {
		return nil, http.StatusBadRequest, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), certifyTime)
	defer cancel()
	certificate, err := certifier(ctx, question.Worker, ed25519.PublicKey(question.Key))
	if errors.Is(err, certify.ErrWorker) {
		return nil, http.StatusUnprocessableEntity, err
	}
	if err == nil {
		answer, err = json.Marshal(aws.CertifyAnswer{PublicKey: certificate.PublicKey, Signature: certificate.Signature})
	}
	return answer, http.StatusServiceUnavailable, err
}

// askCertifier has keys certified by the server at the address. A fault is
// tried again, a refusal is not.
func askCertifier(address, token string) build.Certifier {
	client := &http.Client{
		Timeout:       certifyTime,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the token is for nobody else
	}
	address = strings.TrimRight(address, "/") + certifyPath
	return func(ctx context.Context, worker string, key ed25519.PublicKey) (build.Certificate, error) {
		question, err := json.Marshal(aws.CertifyRequest{Worker: worker, Key: key})
		if err != nil {
			return build.Certificate{}, err
		}
		return backoff.Retry(ctx, func() (build.Certificate, error) {
			text, err := post(ctx, client, address, token, question)
			if err != nil {
				return build.Certificate{}, err
			}
			certificate, err := aws.ParseCertifyAnswer(text, key)
			if err != nil {
				return certificate, backoff.Permanent(fmt.Errorf("%s answers what is no certificate: %w", address, err))
			}
			return certificate, nil
		}, backoff.WithMaxTries(certifyTries))
	}
}

func post(ctx context.Context, client *http.Client, address, token string, body []byte) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return nil, backoff.Permanent(err)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, certifyAnswer))
	switch status := response.StatusCode; {
	case status >= 500 || status == http.StatusTooManyRequests:
		return nil, fmt.Errorf("%s answered %d (%.200q)", address, status, text)
	case status != http.StatusOK:
		return nil, backoff.Permanent(fmt.Errorf("%s answered %d (%.200q)", address, status, text))
	}
	return text, err
}
