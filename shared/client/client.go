package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Client talks to one server. Only URL is needed.
type Client struct {
	URL       string        // "http://127.0.0.1:8000", with or without a final slash
	HTTP      *http.Client  // nil for one with time limits on connecting and on the answer's start
	Poll      time.Duration // pause between two polls, 0 for 2 s
	UserAgent string        // "" for "sysup"
}

const (
	defaultPoll  = 2 * time.Second
	callTime     = 30 * time.Second // of one call of the API
	maxAnswer    = 8 << 20
	maxTroubles  = 10              // polls in a row that a Wait forgives
	maxPause     = 2 * time.Minute // that a Wait makes for Retry-After; a longer one is the caller's to make
	defaultAgent = "sysup"
)

var defaultHTTP = &http.Client{Transport: &http.Transport{
	Proxy:                 http.ProxyFromEnvironment,
	TLSHandshakeTimeout:   10 * time.Second,
	ResponseHeaderTimeout: callTime,
	IdleConnTimeout:       time.Minute,
}}

// Error is a refusal or a failed build, as the server tells it. Its text is
// the server's sentence.
type Error struct {
	Status         int // of HTTP
	Detail         string
	Stdout, Stderr string        // tails of make's output, if a build failed
	Log            string        // path of the whole log below the server's address, if there is one
	Package        string        // the package that it is about, if one
	RetryAfter     time.Duration // when to try again, 0 if the server does not say
}

func (e *Error) Error() string { return e.Detail }

// Temporary tells whether the same call may succeed a little later.
func (e *Error) Temporary() bool {
	switch e.Status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// Submit sends a request. It starts a build, or joins the one that an equal
// request started.
func (c *Client) Submit(ctx context.Context, r Request) (Status, error) {
	result, err := c.submit(ctx, r)
	return result.Status, err
}

// Status asks how the build with that request hash is getting on.
func (c *Client) Status(ctx context.Context, hash string) (Status, error) {
	result, err := c.poll(ctx, hash)
	return result.Status, err
}

// Wait submits a request and polls until its build is done. progress, if not
// nil, is called with every answer. A server that is busy, or out of reach
// after it took the request, is asked again for a while, after the pause that
// it names; progress is then told its sentence, or the fault, without a hash.
// If that pause is longer than two minutes or than ctx lasts, Wait ends with
// the *Error and says when to come back.
func (c *Client) Wait(ctx context.Context, r Request, progress func(Status)) (Result, error) {
	if progress == nil {
		progress = func(Status) {}
	}
	hash := ""
	for troubles := 0; ; {
		result, err := c.ask(ctx, r, hash)
		pause := c.pause()
		if err == nil {
			troubles, hash = 0, result.RequestHash
			progress(result.Status)
			if result.Done() {
				return result, nil
			}
		} else {
			if troubles++; troubles > maxTroubles || !temporary(err, hash != "") {
				return Result{}, err
			}
			wait, tooLong := bearable(ctx, err, pause)
			if tooLong != nil {
				return Result{}, tooLong
			}
			pause = wait
			progress(Status{Detail: err.Error()})
		}
		if err := sleep(ctx, pause); err != nil {
			return Result{}, err
		}
	}
}

// ask submits the request, or polls its build once it has a hash.
func (c *Client) ask(ctx context.Context, r Request, hash string) (Result, error) {
	if hash == "" {
		return c.submit(ctx, r)
	}
	return c.poll(ctx, hash)
}

func (c *Client) pause() time.Duration {
	if c.Poll > 0 {
		return c.Poll
	}
	return defaultPoll
}

// temporary tells whether it is worth asking again. A server that was never
// reached may not exist.
func temporary(err error, reached bool) bool {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Temporary()
	}
	_, network := errors.AsType[*url.Error](err)
	return network && reached && !errors.Is(err, context.Canceled)
}

// bearable lengthens the pause to what the server asks for. It returns an error
// if nobody would sit that out.
func bearable(ctx context.Context, trouble error, pause time.Duration) (time.Duration, error) {
	e, ok := errors.AsType[*Error](trouble)
	if !ok || e.RetryAfter <= pause {
		return pause, nil
	}
	end, limited := ctx.Deadline()
	if e.RetryAfter > maxPause || limited && time.Until(end) < e.RetryAfter {
		return 0, fmt.Errorf("%w (not waited for: the server is not to be asked again for %s)", e, inWords(e.RetryAfter))
	}
	return e.RetryAfter, nil
}

// inWords rounds up: who comes too early is sent away again.
func inWords(d time.Duration) string {
	unit, name := time.Second, "seconds"
	switch {
	case d > 2*time.Hour:
		unit, name = time.Hour, "hours"
	case d > 2*time.Minute:
		unit, name = time.Minute, "minutes"
	}
	return fmt.Sprintf("%d %s", (d+unit-1)/unit, name)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *Client) submit(ctx context.Context, r Request) (Result, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return Result{}, fmt.Errorf("encode the request: %w", err)
	}
	return c.build(ctx, http.MethodPost, "/api/v1/build", body)
}

func (c *Client) poll(ctx context.Context, hash string) (Result, error) {
	return c.build(ctx, http.MethodGet, "/api/v1/build/"+url.PathEscape(hash), nil)
}

// build makes a call whose answer is about a build.
func (c *Client) build(ctx context.Context, method, path string, body []byte) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return Result{}, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return Result{}, &url.Error{Op: method, URL: c.address(path), Err: err}
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusAccepted {
		return Result{}, newError(resp, answer)
	}
	var result Result
	if err := json.Unmarshal(answer, &result); err != nil {
		return Result{}, fmt.Errorf("%s does not answer as a sysup server does: %w", c.URL, err)
	}
	if result.Code != resp.StatusCode || result.RequestHash == "" {
		return Result{}, fmt.Errorf("%s does not answer as a sysup server does: status %d with %q in its body", c.URL, resp.StatusCode, result.RequestHash)
	}
	return result, nil
}

func (c *Client) do(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, c.address(path), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%q is not the address of a server: %w", c.URL, err)
	}
	r.Header.Set("User-Agent", c.UserAgent)
	if c.UserAgent == "" {
		r.Header.Set("User-Agent", defaultAgent)
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	client := c.HTTP
	if client == nil {
		client = defaultHTTP
	}
	return client.Do(r)
}

func (c *Client) address(path string) string { return strings.TrimRight(c.URL, "/") + path }

// newError reads what a server says about a status that is neither 200 nor
// 202. Not every server, and no proxy, says it in JSON.
func newError(resp *http.Response, body []byte) *Error {
	var said Status
	if json.Unmarshal(body, &said) != nil || said.Detail == "" {
		said = Status{Detail: fmt.Sprintf("The server answered %s.", resp.Status)}
	}
	seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
	return &Error{
		Status: resp.StatusCode, Detail: said.Detail, Stdout: said.Stdout, Stderr: said.Stderr, Log: said.Log,
		Package:    resp.Header.Get("X-Unknown-Package"),
		RetryAfter: time.Duration(min(max(0, seconds), 86400)) * time.Second,
	}
}
