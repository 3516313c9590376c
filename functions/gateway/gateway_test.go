package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/events"
)

const secret = "an origin secret of some length"

func call(t testing.TB, h http.HandlerFunc, event events.APIGatewayV2HTTPRequest) events.APIGatewayV2HTTPResponse {
	t.Helper()
	answer, err := New(h, []byte(secret), slog.New(slog.DiscardHandler))(t.Context(), event)
	if err != nil {
		t.Fatalf("the function returned the error %v, which a client could not read", err)
	}
	return answer
}

func get(path string) events.APIGatewayV2HTTPRequest { return event("GET", path, "") }

func event(method, path, body string) events.APIGatewayV2HTTPRequest {
	e := events.APIGatewayV2HTTPRequest{Version: "2.0", RouteKey: "$default", RawPath: path, Headers: map[string]string{"host": "api.example.org"}, Body: body}
	e.RequestContext.HTTP.Method, e.RequestContext.HTTP.SourceIP = method, "192.0.2.7"
	return e
}

// recorded reads an event in the form that AWS documents.
func recorded(t testing.TB, name string) events.APIGatewayV2HTTPRequest {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	var e events.APIGatewayV2HTTPRequest
	if err := json.Unmarshal(text, &e); err != nil {
		t.Fatal(err)
	}
	return e
}

func TestRecordedPost(t *testing.T) {
	var seen *http.Request
	var body []byte
	answer := call(t, func(w http.ResponseWriter, r *http.Request) {
		seen = r
		body, _ = io.ReadAll(r.Body)
		w.Header().Add("Set-Cookie", "a=1")
		w.Header().Add("Set-Cookie", "b=2")
		w.Header().Add("Vary", "Origin")
		w.Header().Add("Vary", "Accept")
		w.WriteHeader(http.StatusAccepted)
		io.WriteString(w, `{"status":202}`)
	}, recorded(t, "post.json"))

	if got, want := string(body), `{"version":"24.10.5","target":"x86/64","profile":"generic"}`; got != want {
		t.Errorf("the body is %q, want %q", got, want)
	}
	for _, c := range []struct{ what, got, want string }{
		{"method", seen.Method, "POST"},
		{"path", seen.URL.Path, "//api/v1/build"},
		{"query", seen.URL.RawQuery, "parameter1=value1&parameter1=value2&parameter2=a%20b"},
		{"request URI", seen.RequestURI, "//api/v1/build?parameter1=value1&parameter1=value2&parameter2=a%20b"},
		{"host", seen.Host, "id.execute-api.us-east-1.amazonaws.com"},
		{"host among headers", seen.Header.Get("Host"), ""},
		{"repeated header", seen.Header.Get("Header2"), "value1,value2"},
		{"cookies", seen.Header.Get("Cookie"), "cookie1=one; cookie2=two"},
		{"address", seen.RemoteAddr, "203.0.113.9:0"},
		{"origin secret", seen.Header.Get(OriginHeader), ""},
	} {
		if c.got != c.want {
			t.Errorf("%s is %q, want %q", c.what, c.got, c.want)
		}
	}
	if answer.StatusCode != 202 || answer.Body != `{"status":202}` || answer.IsBase64Encoded {
		t.Errorf("the answer is %+v", answer)
	}
	if !slices.Equal(answer.Cookies, []string{"a=1", "b=2"}) || answer.Headers["Vary"] != "Origin, Accept" || answer.Headers["Set-Cookie"] != "" {
		t.Errorf("the answer has the cookies %q and the headers %q", answer.Cookies, answer.Headers)
	}
}

func TestClientAddress(t *testing.T) {
	for _, c := range []struct {
		name, secret, forwarded, peer, want string
	}{
		{"the CDN's entry, the gateway's after it", secret, "203.0.113.9, 192.0.2.7", "192.0.2.7", "203.0.113.9"},
		{"a client that lies", secret, "10.9.9.9, 203.0.113.9, 192.0.2.7", "192.0.2.7", "203.0.113.9"},
		{"a gateway that appends nothing", secret, "10.9.9.9, 203.0.113.9", "192.0.2.7", "203.0.113.9"},
		{"IPv6", secret, "2001:db8::9,192.0.2.7", "192.0.2.7", "2001:db8::9"},
		{"spelled at length", secret, "2001:0db8:0:0::9,192.0.2.7", "192.0.2.7", "2001:db8::9"},
		{"only the peer", secret, "192.0.2.7", "192.0.2.7", "192.0.2.7"},
		{"no list", secret, "", "192.0.2.7", "192.0.2.7"},
		{"no address", secret, "unknown, 192.0.2.7", "192.0.2.7", "192.0.2.7"},
		{"no secret", "", "203.0.113.9, 192.0.2.7", "192.0.2.7", "192.0.2.7"},
		{"another secret", secret + "x", "203.0.113.9, 192.0.2.7", "192.0.2.7", "192.0.2.7"},
	} {
		e := get("/")
		e.Headers["x-forwarded-for"], e.RequestContext.HTTP.SourceIP = c.forwarded, c.peer
		if c.secret != "" {
			e.Headers["x-sysup-origin"] = c.secret
		}
		call(t, func(w http.ResponseWriter, r *http.Request) {
			if host, _, err := net.SplitHostPort(r.RemoteAddr); err != nil || host != c.want {
				t.Errorf("%s: the client is %q (%v), want %q", c.name, r.RemoteAddr, err, c.want)
			}
			if _, ok := r.Header[OriginHeader]; ok {
				t.Errorf("%s: the handler sees the origin secret", c.name)
			}
		}, e)
	}
	if client(http.Header{OriginHeader: {""}, "X-Forwarded-For": {"203.0.113.9"}}, "192.0.2.7", nil) != "192.0.2.7" {
		t.Error("without a secret, an empty header proves to be the CDN")
	}
}

func TestBodies(t *testing.T) {
	long := strings.Repeat("long text ", maxText/10+1)
	for _, c := range []struct {
		name, body string
		encoded    bool
	}{
		{"text", "a text with ümlauts\n", false},
		{"binary", "\x1f\x8b\x00\xff", true},
		{"long", long, true},
		{"none", "", false},
	} {
		e := event("POST", "/", base64.StdEncoding.EncodeToString([]byte(c.body)))
		e.IsBase64Encoded = true
		answer := call(t, func(w http.ResponseWriter, r *http.Request) {
			if r.ContentLength != int64(len(c.body)) {
				t.Errorf("%s: the content length is %d", c.name, r.ContentLength)
			}
			io.Copy(w, r.Body)
		}, e)
		if answer.IsBase64Encoded != c.encoded || decoded(t, answer) != c.body {
			t.Errorf("%s: %d bytes came back, base64 %t", c.name, len(answer.Body), answer.IsBase64Encoded)
		}
		if want := fmt.Sprint(len(c.body)); c.body != "" && answer.Headers["Content-Length"] != want {
			t.Errorf("%s: Content-Length is %q, want %s", c.name, answer.Headers["Content-Length"], want)
		}
	}
}

func decoded(t testing.TB, answer events.APIGatewayV2HTTPResponse) string {
	t.Helper()
	if !answer.IsBase64Encoded {
		return answer.Body
	}
	b, err := base64.StdEncoding.DecodeString(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// lambdaLimit is what Lambda takes as one answer, in bytes of JSON.
const lambdaLimit = 6 << 20

func TestLargestAnswer(t *testing.T) {
	for _, size := range []int{maxText, maxText + 1, maxAnswer, maxAnswer + 1, 3 * maxAnswer} {
		answer := call(t, func(w http.ResponseWriter, r *http.Request) {
			piece := bytes.Repeat([]byte{1}, 64<<10) // the worst text within JSON
			for left := size; left > 0; left -= min(left, len(piece)) {
				w.Write(piece[:min(left, len(piece))])
			}
		}, get("/"))
		text, err := json.Marshal(answer)
		if err != nil || len(text) > lambdaLimit {
			t.Errorf("an answer of %d bytes takes %d (%v)", size, len(text), err)
		}
		if wantRefused := size > maxAnswer; wantRefused != (answer.StatusCode == 500) || !wantRefused && len(decoded(t, answer)) != size {
			t.Errorf("an answer of %d bytes has status %d", size, answer.StatusCode)
		}
		if answer.StatusCode == 500 {
			wantDetail(t, answer, "too large")
		}
	}
}

// TestLargeAnswerIsNotRead: an object that is too large is not fetched to its
// end, and not at all if its size is known.
func TestLargeAnswerIsNotRead(t *testing.T) {
	const size, buffer = 64 << 20, 32 << 10 // the buffer is io.Copy's
	for _, c := range []struct {
		method, length string
		most, status   int
	}{
		{"GET", "", maxAnswer + buffer, 500},
		{"GET", strconv.Itoa(size), buffer, 500},
		{"HEAD", "", size, 200},
		{"HEAD", strconv.Itoa(size), size, 200},
	} {
		read := 0
		source := readerFunc(func(p []byte) (int, error) {
			n := min(len(p), size-read)
			if n == 0 {
				return 0, io.EOF
			}
			read += n
			return n, nil
		})
		answer := call(t, func(w http.ResponseWriter, r *http.Request) {
			if c.length != "" {
				w.Header().Set("Content-Length", c.length)
			}
			io.Copy(w, source)
		}, event(c.method, "/", ""))
		if answer.StatusCode != c.status || read > c.most {
			t.Errorf("%s with the length %q has status %d after %d bytes were read, want at most %d", c.method, c.length, answer.StatusCode, read, c.most)
		}
		if c.status == 500 {
			wantDetail(t, answer, "too large")
		} else if answer.Headers["Content-Length"] != strconv.Itoa(size) {
			t.Errorf("%s has the length %s", c.method, answer.Headers["Content-Length"])
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func wantDetail(t testing.TB, answer events.APIGatewayV2HTTPResponse, want string) {
	t.Helper()
	var problem struct {
		Status int    `json:"status"`
		Detail string `json:"detail"`
	}
	if err := json.Unmarshal([]byte(answer.Body), &problem); err != nil {
		t.Fatalf("%q: %v", answer.Body, err)
	}
	if problem.Status != answer.StatusCode || !strings.Contains(problem.Detail, want) || answer.Headers["Access-Control-Allow-Origin"] != "*" {
		t.Errorf("the answer is %d %+v with %v, want a detail with %q", answer.StatusCode, problem, answer.Headers, want)
	}
}

func TestHead(t *testing.T) {
	for _, explicit := range []bool{true, false} {
		answer := call(t, func(w http.ResponseWriter, r *http.Request) {
			if explicit {
				w.Header().Set("Content-Length", "11")
			}
			io.WriteString(w, "hello world")
		}, event("HEAD", "/", ""))
		if answer.Body != "" || answer.IsBase64Encoded || answer.Headers["Content-Length"] != "11" || answer.StatusCode != 200 {
			t.Errorf("explicit %t: %+v", explicit, answer)
		}
	}
	broken := call(t, func(http.ResponseWriter, *http.Request) { panic("no") }, event("HEAD", "/", ""))
	if broken.Body != "" || broken.StatusCode != 500 {
		t.Errorf("a HEAD that panics is answered by %+v", broken)
	}
}

func TestEarlyStatusIsNotTheAnswers(t *testing.T) {
	answer := call(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusAccepted)
		w.WriteHeader(http.StatusTeapot) // too late
	}, get("/"))
	if answer.StatusCode != http.StatusAccepted {
		t.Errorf("the status is %d", answer.StatusCode)
	}
}

func TestPanic(t *testing.T) {
	var log bytes.Buffer
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "half of a secret")
		panic("the defect at /srv/place.go")
	})
	e := get("/")
	e.Headers["x-sysup-origin"] = secret
	answer, err := New(h, []byte(secret), slog.New(slog.NewTextHandler(&log, nil)))(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	wantDetail(t, answer, "went wrong")
	if answer.StatusCode != 500 || strings.Contains(answer.Body, "defect") || strings.Contains(answer.Body, "half") {
		t.Errorf("the answer is %+v", answer)
	}
	if !strings.Contains(log.String(), "the defect at") || strings.Contains(log.String(), secret) {
		t.Errorf("the log is %s", &log)
	}
}

func TestRefusedEvents(t *testing.T) {
	for _, c := range []struct {
		name, want string
		change     func(*events.APIGatewayV2HTTPRequest)
	}{
		{"another kind of event", "method", func(e *events.APIGatewayV2HTTPRequest) { *e = events.APIGatewayV2HTTPRequest{} }},
		{"method", "method", func(e *events.APIGatewayV2HTTPRequest) { e.RequestContext.HTTP.Method = "GET /" }},
		{"path", "path", func(e *events.APIGatewayV2HTTPRequest) { e.RawPath = "api" }},
		{"newline in the path", "path", func(e *events.APIGatewayV2HTTPRequest) { e.RawPath = "/a\nb" }},
		{"header name", "header", func(e *events.APIGatewayV2HTTPRequest) { e.Headers["a b"] = "c" }},
		{"newline in a header", "header", func(e *events.APIGatewayV2HTTPRequest) { e.Headers["a"] = "c\r\nd: e" }},
		{"host", "host", func(e *events.APIGatewayV2HTTPRequest) { e.Headers["host"] = "example.org/path" }},
		{"base64", "body", func(e *events.APIGatewayV2HTTPRequest) { e.Body, e.IsBase64Encoded = "=", true }},
		{"size", "body", func(e *events.APIGatewayV2HTTPRequest) { e.Body = strings.Repeat("x", 15<<20) }},
	} {
		e := get("/")
		c.change(&e)
		answer := call(t, func(http.ResponseWriter, *http.Request) { t.Errorf("%s: the handler was called", c.name) }, e)
		if answer.StatusCode != 400 {
			t.Errorf("%s: status %d", c.name, answer.StatusCode)
		}
		wantDetail(t, answer, c.want)
	}
}

func TestDeadline(t *testing.T) {
	until := time.Now().Add(time.Hour)
	ctx, cancel := context.WithDeadline(t.Context(), until)
	defer cancel()
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got, ok := r.Context().Deadline(); !ok || !got.Equal(until) {
			t.Errorf("the deadline is %v, want that of the invocation, %v", got, until)
		}
	})
	if _, err := New(h, nil, slog.New(slog.DiscardHandler))(ctx, get("/")); err != nil {
		t.Fatal(err)
	}
}

// TestLikeNetHTTP sends the same bytes to a handler behind net/http and behind
// a gateway: it must see, and answer, the same.
func TestLikeNetHTTP(t *testing.T) {
	for _, raw := range []string{
		"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
		"GET //api//v1/build/ HTTP/1.1\r\nHost: example.org:8000\r\n\r\n",
		"GET /a%2Fb/c%20d?x=%20&x=2;&&y HTTP/1.1\r\nHost: example.org\r\nAccept: text/html\r\nX-Twice: 1\r\nX-Twice: 2\r\n\r\n",
		"GET /a+b/%C3%BC HTTP/1.1\r\nHost: example.org\r\nCookie: a=1; b=2\r\n\r\n",
		"POST /api/v1/build HTTP/1.1\r\nHost: example.org\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
		"POST /b HTTP/1.1\r\nHost: example.org\r\nContent-Length: 4\r\n\r\n\x00\xff\x1f\x8b",
		"HEAD /image?n=30 HTTP/1.1\r\nHost: example.org\r\n\r\n",
		"OPTIONS /api HTTP/1.1\r\nHost: example.org\r\nOrigin: https://page.example\r\n\r\n",
		"DELETE /nocontent HTTP/1.1\r\nHost: example.org\r\n\r\n",
	} {
		direct, seenDirect := overNet(t, raw)
		answer, seenEvent := overEvent(t, raw)
		if seenDirect != seenEvent {
			t.Errorf("%q\nnet/http sees %s\nthe gateway's handler %s", raw, seenDirect, seenEvent)
		}
		if direct != answer {
			t.Errorf("%q\nnet/http answers %s\nthe gateway        %s", raw, direct, answer)
		}
	}
}

// mirror answers in various ways and tells what it saw.
func mirror(seen *string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		header := maps.Clone(r.Header)
		for name, values := range header {
			header[name] = []string{strings.Join(values, ",")} // as the gateway has it
		}
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		*seen = fmt.Sprintf("%s %s %q %q %q %q %s %v %d %q %v %s", r.Method, r.Proto, r.URL.Path, r.URL.RawPath, r.URL.RawQuery, r.RequestURI, r.Host, header, r.ContentLength, body, err, host)
		switch {
		case r.URL.Path == "/nocontent":
			w.WriteHeader(http.StatusNoContent)
			io.WriteString(w, "not sent")
		case r.Method == http.MethodPost:
			w.Header().Set("X-Before", "1")
			w.WriteHeader(http.StatusAccepted)
			w.Header().Set("X-After", "1")
			w.Write(append([]byte{0xff, 0}, body...))
		default:
			io.WriteString(w, "<html>hello</html>")
		}
	}
}

func overNet(t *testing.T, raw string) (answer, seen string) {
	server := httptest.NewServer(mirror(&seen))
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, raw); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(raw, " ")
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return wire(resp.StatusCode, resp.Header, string(body)), seen
}

func wire(status int, header http.Header, body string) string {
	header.Del("Date")
	return fmt.Sprint(status, " ", header, " ", []byte(body))
}

// overEvent words the request as the gateway does.
func overEvent(t *testing.T, raw string) (answer, seen string) {
	head, body, _ := strings.Cut(raw, "\r\n\r\n")
	lines := strings.Split(head, "\r\n")
	first := strings.Split(lines[0], " ")
	e := event(first[0], "", body)
	e.RawPath, e.RawQueryString, _ = strings.Cut(first[1], "?")
	e.RequestContext.HTTP.SourceIP = "127.0.0.1"
	delete(e.Headers, "host")
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, ": ")
		if name = strings.ToLower(name); name == "cookie" {
			e.Cookies = strings.Split(value, "; ")
		} else if before, ok := e.Headers[name]; ok {
			e.Headers[name] = before + "," + value
		} else {
			e.Headers[name] = value
		}
	}
	e.Body, e.IsBase64Encoded = base64.StdEncoding.EncodeToString([]byte(body)), true
	a := call(t, mirror(&seen), e)
	header := http.Header{}
	for name, value := range a.Headers {
		header.Set(name, value)
	}
	return wire(a.StatusCode, header, decoded(t, a)), seen
}

// FuzzEvent feeds events of any content. Whatever comes, the handler sees a
// request that it can rely on, and the client an answer that it can read.
func FuzzEvent(f *testing.F) {
	for _, name := range []string{"post.json", "get.json"} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`{"rawPath":"/%zz","isBase64Encoded":true,"body":"eA==","requestContext":{"http":{"method":"HEAD"}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var e events.APIGatewayV2HTTPRequest
		if json.Unmarshal(text, &e) != nil {
			return
		}
		answer := call(t, func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil || int64(len(body)) != r.ContentLength {
				t.Errorf("the body has %d bytes (%v), announced are %d", len(body), err, r.ContentLength)
			}
			if _, ok := r.Header[OriginHeader]; ok {
				t.Error("the handler sees the origin header")
			}
			if !strings.HasPrefix(r.URL.Path, "/") || r.URL.RawPath == "" && e.RawPath != r.URL.Path && r.URL.EscapedPath() != e.RawPath {
				t.Errorf("the path %q became %q", e.RawPath, r.URL.Path)
			}
			host, _, err := net.SplitHostPort(r.RemoteAddr)
			if _, parsed := netip.ParseAddr(host); r.RemoteAddr != net.JoinHostPort(e.RequestContext.HTTP.SourceIP, "0") && (err != nil || parsed != nil) {
				t.Errorf("the client's address is %q", r.RemoteAddr)
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			if err := r.Write(io.Discard); err != nil && r.Host != "" {
				t.Errorf("the request could not be sent on: %v", err)
			}
			w.Write(body)
		}, e)
		if answer.StatusCode != 200 && answer.StatusCode != 400 {
			t.Errorf("the status is %d", answer.StatusCode)
		}
		if e.RequestContext.HTTP.Method == "HEAD" && answer.Body != "" {
			t.Error("HEAD has a body")
		}
		decoded(t, answer)
	})
}
