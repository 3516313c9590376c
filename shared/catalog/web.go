package catalog

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
)

var (
	// errUnchanged says that the upstream still has what we have.
	errUnchanged = errors.New("unchanged since the last time")
	// errAbsent says that the upstream answered and has no such file.
	errAbsent = errors.New("the upstream has no such file")
)

const (
	requestLimit = time.Minute // one request with its answer
	maxRequests  = 6           // at the same time
)

// web asks the upstream.
type web struct {
	base   string // without a slash at its end
	client *http.Client
	slots  chan struct{}
}

func newWeb(upstream string, client *http.Client) (*web, error) {
	u, err := url.Parse(upstream)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%q cannot be an upstream: give its address as https://host/folder, without a name, a query or a fragment", upstream)
	}
	if client == nil {
		client = &http.Client{Transport: defaultTransport()}
	}
	return &web{strings.TrimRight(upstream, "/"), client, make(chan struct{}, maxRequests)}, nil
}

func defaultTransport() *http.Transport {
	dialer := net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           dialer.DialContext,
		TLSHandshakeTimeout:   5 * time.Second,
		ResponseHeaderTimeout: 10 * time.Second,
		MaxConnsPerHost:       maxRequests,
		MaxIdleConnsPerHost:   maxRequests,
		IdleConnTimeout:       90 * time.Second,
		ForceAttemptHTTP2:     true,
	}
}

// get fetches a file of at most limit bytes. If old is of the same file, the
// upstream is only asked whether it changed: errUnchanged. A file that is not
// there is errAbsent. Every other error may pass.
func (w *web) get(ctx context.Context, path string, limit int64, old meta) ([]byte, meta, error) {
	release, err := w.slot(ctx)
	if err != nil {
		return nil, meta{}, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	fresh := meta{Form: form, Source: w.base + "/" + path}
	if old.Source != fresh.Source {
		old = meta{}
	}
	resp, err := w.ask(ctx, fresh.Source, old)
	if err != nil {
		return nil, meta{}, err
	}
	defer resp.Body.Close()
	if err := checkStatus(resp, old); err != nil {
		return nil, meta{}, fmt.Errorf("%s: %w", fresh.Source, err)
	}
	body, err := readLimited(resp.Body, limit)
	if err != nil {
		return nil, meta{}, fmt.Errorf("read %s: %w", fresh.Source, err)
	}
	fresh.ETag, fresh.Modified = resp.Header.Get("ETag"), resp.Header.Get("Last-Modified")
	if fresh.Sum = sumOf(body); fresh.Sum == old.Sum {
		return nil, meta{}, errUnchanged
	}
	return body, fresh, nil
}

// changed asks whether the upstream has a file otherwise than then. It may say
// so of one that is the same.
func (w *web) changed(ctx context.Context, old meta) (bool, error) {
	release, err := w.slot(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	resp, err := w.ask(ctx, old.Source, old)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	switch err := checkStatus(resp, old); {
	case err == nil:
		return old.ETag == "" || resp.Header.Get("ETag") != old.ETag, nil
	case errors.Is(err, errUnchanged):
		return false, nil
	case errors.Is(err, errAbsent):
		return old.Sum != "", nil
	default:
		return false, fmt.Errorf("%s: %w", old.Source, err)
	}
}

func (w *web) slot(ctx context.Context) (release func(), err error) {
	select {
	case w.slots <- struct{}{}:
		return func() { <-w.slots }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (w *web) ask(ctx context.Context, address string, old meta) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, backoff.Permanent(err)
	}
	req.Header.Set("User-Agent", "sysup")
	if old.ETag != "" {
		req.Header.Set("If-None-Match", old.ETag)
	}
	if old.Modified != "" {
		req.Header.Set("If-Modified-Since", old.Modified)
	}
	return w.client.Do(req)
}

func checkStatus(resp *http.Response, old meta) error {
	switch resp.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusNotModified:
		if old.Sum != "" {
			return errUnchanged
		}
	case http.StatusNotFound, http.StatusGone:
		return errAbsent
	}
	return fmt.Errorf("the upstream answers %s", resp.Status)
}

// readLimited reads everything and fails if that is more than limit bytes.
func readLimited(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("it is longer than the %d bytes that are allowed", limit)
	}
	return b, nil
}

func sumOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
