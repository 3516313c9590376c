// Package gateway lets a http.Handler answer the events of an API Gateway HTTP
// API (payload format 2.0), so that it sees what it would see behind net/http.
//
// The format as AWS documents it: header names in lower case with repeated
// values joined by commas, cookies apart, bodies as text or as base64.
package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"runtime/debug"
	"strings"

	"github.com/aws/aws-lambda-go/events"
)

// Func is what lambda.Start takes. It never returns an error: a Lambda's
// error would reach the client as an answer of the gateway's, without a detail.
type Func func(context.Context, events.APIGatewayV2HTTPRequest) (events.APIGatewayV2HTTPResponse, error)

// OriginHeader is how the CDN proves to be the CDN. Handlers never see it.
const OriginHeader = "X-Sysup-Origin"

const (
	maxRequest = 10 << 20 // bytes of a body that the gateway lets through
	maxAnswer  = 4 << 20  // bytes of a body; as base64 it fits into Lambda's 6 MB with its headers
	maxText    = 512 << 10
)

// New returns the function that answers events by h.
//
// origin is the secret that the CDN sends in OriginHeader, nil if there is no
// CDN. With it the client's address is the one that the CDN saw; without it, or
// with a wrong one, it is that of the gateway's peer: the gateway's own address
// is public, and whoever comes that way is served, but counted as who he is.
func New(h http.Handler, origin []byte, log *slog.Logger) Func {
	return func(ctx context.Context, event events.APIGatewayV2HTTPRequest) (events.APIGatewayV2HTTPResponse, error) {
		answer := answer(ctx, &event, h, origin, log)
		if event.RequestContext.HTTP.Method == http.MethodHead {
			answer.Body, answer.IsBase64Encoded = "", false
		}
		return answer, nil
	}
}

func answer(ctx context.Context, event *events.APIGatewayV2HTTPRequest, h http.Handler, origin []byte, log *slog.Logger) events.APIGatewayV2HTTPResponse {
	r, err := request(ctx, event, origin)
	if err != nil {
		return problem(http.StatusBadRequest, "This request is not understood: "+err.Error()+".")
	}
	w := &recorder{header: http.Header{}, head: r.Method == http.MethodHead}
	if err := serve(h, w, r); err != nil {
		log.Error("a request broke", "error", err)
		return problem(http.StatusInternalServerError, "Something went wrong inside this server; its operator can read in its log what. Try again later.")
	}
	return w.answer()
}

// serve turns a panic into an error.
func serve(h http.Handler, w http.ResponseWriter, r *http.Request) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	h.ServeHTTP(w, r)
	return nil
}

var (
	methodPattern = regexp.MustCompile(`^[A-Z]{1,20}$`)
	headerPattern = regexp.MustCompile(`^[!#$%&'*+.^_|~0-9A-Za-z` + "`" + `-]+$`)
	hostPattern   = regexp.MustCompile(`^[0-9A-Za-z.:\[\]_-]*$`)
)

// request is the event as net/http would have read it. Its errors say to the
// client what is wrong.
func request(ctx context.Context, event *events.APIGatewayV2HTTPRequest, origin []byte) (*http.Request, error) {
	call := event.RequestContext.HTTP
	if !methodPattern.MatchString(call.Method) {
		return nil, errors.New("its method cannot be read")
	}
	header, err := headers(event)
	if err != nil {
		return nil, err
	}
	address, err := address(event.RawPath, event.RawQueryString)
	if err != nil {
		return nil, err
	}
	body, err := body(event)
	if err != nil {
		return nil, err
	}
	r := (&http.Request{
		Method: call.Method, URL: address, RequestURI: address.RequestURI(), Header: header, Host: header.Get("Host"),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Body: http.NoBody, ContentLength: int64(len(body)), RemoteAddr: net.JoinHostPort(client(header, call.SourceIP, origin), "0"),
	}).WithContext(ctx)
	if len(body) > 0 {
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	if r.Host == "" {
		r.Host = event.RequestContext.DomainName
	}
	if len(r.Host) > 255 || !hostPattern.MatchString(r.Host) {
		return nil, errors.New("its host name cannot be read")
	}
	header.Del("Host")
	header.Del(OriginHeader)
	return r, nil
}

func headers(event *events.APIGatewayV2HTTPRequest) (http.Header, error) {
	header := http.Header{}
	for name, value := range event.Headers {
		if !headerPattern.MatchString(name) || strings.ContainsAny(value, "\r\n\x00") {
			return nil, errors.New("one of its headers cannot be read")
		}
		header.Add(name, value)
	}
	if len(event.Cookies) > 0 {
		header.Set("Cookie", strings.Join(event.Cookies, "; "))
	}
	return header, nil
}

// address keeps escapes and double slashes as they were sent. A path that is
// not escaped rightly was decoded by the gateway already.
func address(path, query string) (*url.URL, error) {
	if !strings.HasPrefix(path, "/") || strings.ContainsFunc(path+query, control) {
		return nil, errors.New("its path cannot be read")
	}
	decoded, err := url.PathUnescape(path)
	if err != nil {
		return &url.URL{Path: path, RawQuery: query}, nil
	}
	u := &url.URL{Path: decoded, RawPath: path, RawQuery: query}
	if (&url.URL{Path: decoded}).EscapedPath() == path {
		u.RawPath = "" // as url.Parse has it
	}
	return u, nil
}

func control(r rune) bool { return r < ' ' || r == 0x7f }

func body(event *events.APIGatewayV2HTTPRequest) ([]byte, error) {
	if len(event.Body) > base64.StdEncoding.EncodedLen(maxRequest) {
		return nil, errors.New("its body is too large")
	}
	if !event.IsBase64Encoded {
		return []byte(event.Body), nil
	}
	decoded, err := base64.StdEncoding.DecodeString(event.Body)
	if err != nil {
		return nil, errors.New("its body cannot be read")
	}
	return decoded, nil
}

// client is the address of who asks. A CDN appends the address it saw to
// X-Forwarded-For, and the gateway then the one it saw, which is the CDN's.
func client(header http.Header, peer string, origin []byte) string {
	if !proven(header.Get(OriginHeader), origin) {
		return peer
	}
	entries := strings.Split(header.Get("X-Forwarded-For"), ",")
	if n := len(entries) - 1; n > 0 && strings.TrimSpace(entries[n]) == peer {
		entries = entries[:n]
	}
	seen, err := netip.ParseAddr(strings.TrimSpace(entries[len(entries)-1]))
	if err != nil {
		return peer
	}
	return seen.String()
}

// proven compares sums, so that not even the secret's length can be measured.
func proven(sent string, origin []byte) bool {
	a, b := sha256.Sum256([]byte(sent)), sha256.Sum256(origin)
	return len(origin) > 0 && subtle.ConstantTimeCompare(a[:], b[:]) == 1
}
