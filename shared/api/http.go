package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/client"
)

// AnswerTime bounds an answer of the API, but for what Submit brings to an end
// (build.SubmitTime). The least patient client (auc) waits 15 s.
const AnswerTime = 12 * time.Second

// response is the ResponseWriter of one request, with what is logged of it.
type response struct {
	http.ResponseWriter
	head    bool // no body is sent
	status  int  // 0 until the header is written
	written int64

	pattern string // of the route
	dialect *dialect
	build   build.ID // that it is about, if one
	err     error    // of the handler
}

func (w *response) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(b)
	w.written += int64(n)
	return n, err
}

// ReadFrom lets the server send files without copying them through here.
func (w *response) ReadFrom(r io.Reader) (int64, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := io.Copy(w.ResponseWriter, r)
	w.written += n
	return n, err
}

// Unwrap is for http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// bytes answers with a whole body. Content-Length is always there: small
// clients rely on it.
func (w *response) bytes(status int, contentType string, body []byte) error {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if w.head {
		return nil
	}
	if _, err := w.Write(body); err != nil {
		return fmt.Errorf("%w: %w", errGone, err)
	}
	return nil
}

func (w *response) json(status int, body any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encode an answer: %w", err)
	}
	return w.bytes(status, "application/json", append(b, '\n'))
}

// errGone is what remains when a client does not wait for its answer.
var errGone = errors.New("the client is gone")

// ServeHTTP is the one place where answers begin and end.
func (s *server) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w := &response{ResponseWriter: rw, head: r.Method == http.MethodHead, dialect: v1}
	began := time.Now()
	defer func() {
		if p := recover(); p != nil {
			s.recovered(w, r, p)
		}
		s.log(w, r, time.Since(began))
	}()
	header := w.Header()
	header.Set("Access-Control-Allow-Origin", "*")
	header.Set("Access-Control-Expose-Headers", exposed)
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", build.CacheNever)
	if r.Method == http.MethodOptions {
		preflight(w)
		return
	}
	if tidy := normalise(r); tidy == nil {
		w.err = errNoRoute
	} else {
		s.mux.ServeHTTP(w, tidy)
	}
	if w.err != nil && w.status == 0 {
		s.fail(w, r, w.err)
	}
}

const (
	methods = "GET, POST, HEAD, OPTIONS"
	exposed = "X-Imagebuilder-Status, X-Queue-Position, X-Build-Queue-Position, X-Unknown-Package, Retry-After"
)

// preflight answers what browsers ask before a request to another origin, for
// any path: the request itself will be told what is wrong with it.
func preflight(w *response) {
	w.Header().Set("Access-Control-Allow-Methods", methods)
	w.Header().Set("Access-Control-Allow-Headers", "Content-Type, Range")
	w.Header().Set("Access-Control-Max-Age", "1728000")
	w.WriteHeader(http.StatusNoContent)
}

// normalise collapses slashes and drops a final one, because addresses in the
// field's configurations end in slashes and a redirect would lose the body of
// a POST. It returns nil for a path with "." or ".." in it.
func normalise(r *http.Request) *http.Request {
	path := r.URL.Path
	if !strings.HasPrefix(path, "/") {
		return nil
	}
	tidy := path == "/" || !strings.HasSuffix(path, "/") && !strings.Contains(path, "//")
	if tidy && !strings.Contains(path, "/.") && r.URL.RawPath == "" {
		return r
	}
	var clean strings.Builder
	for part := range strings.SplitSeq(path, "/") {
		if part == "." || part == ".." {
			return nil
		}
		if part != "" {
			clean.WriteString("/" + part)
		}
	}
	if clean.Len() == 0 {
		clean.WriteByte('/')
	}
	url, copied := *r.URL, *r
	url.Path, url.RawPath = clean.String(), ""
	copied.URL = &url
	return &copied
}

// handle registers a route. The multiplexer sees no methods, so that it never
// answers by itself.
func (s *server) handle(rt route) {
	s.mux.HandleFunc(rt.path, func(rw http.ResponseWriter, r *http.Request) {
		w := rw.(*response)
		w.pattern, w.dialect = rt.path, rt.dialect
		h, err := rt.choose(r.Method)
		if err != nil {
			w.Header().Set("Allow", rt.allow())
			w.err = err
			return
		}
		w.err = h(w, r)
	})
}

func (rt route) choose(method string) (handler, error) {
	switch {
	case rt.get == nil && rt.post == nil:
		return nil, errNoRoute
	case rt.get != nil && (method == http.MethodGet || method == http.MethodHead):
		return rt.get, nil
	case rt.post != nil && method == http.MethodPost:
		return rt.post, nil
	}
	return nil, errMethod
}

func (rt route) allow() string {
	var list []string
	if rt.get != nil {
		list = append(list, "GET, HEAD")
	}
	if rt.post != nil {
		list = append(list, "POST")
	}
	return strings.Join(append(list, "OPTIONS"), ", ")
}

// withTime bounds what an answer waits for. Work that a request began is not
// cut short because the client went away: its build outlives it.
func withTime(r *http.Request) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(r.Context()), AnswerTime)
}

func (s *server) recovered(w *response, r *http.Request, p any) {
	if p == http.ErrAbortHandler {
		panic(p)
	}
	w.err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
	if w.status == 0 {
		s.fail(w, r, w.err)
	}
}

// fail words an error in the dialect of the route.
func (s *server) fail(w *response, r *http.Request, err error) {
	p := w.dialect.problem(err)
	if p.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", strconv.Itoa(max(1, int(p.retry.Seconds()))))
		if strings.HasPrefix(r.UserAgent(), "auc") {
			p.status = http.StatusInternalServerError // the only status whose detail it prints
		}
	}
	if p.unknown != "" {
		w.Header().Set("X-Unknown-Package", p.unknown)
	}
	if err := w.json(p.status, w.dialect.body(client.Status{Code: p.status, Detail: p.detail})); err != nil {
		w.err = errors.Join(w.err, err)
	}
}

// log writes the line of a request. Paths are not in it, since a request hash
// opens a build's files.
func (s *server) log(w *response, r *http.Request, took time.Duration) {
	level := slog.LevelInfo
	switch {
	case faulty(w.err):
		level = slog.LevelError
	case w.status < 400 && r.Method != http.MethodPost:
		level = slog.LevelDebug
	}
	if !s.Log.Enabled(r.Context(), level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("method", clip(r.Method)), slog.String("route", w.pattern), slog.Int("status", w.status),
		slog.Int64("bytes", w.written), slog.Duration("took", took), slog.String("agent", clip(r.UserAgent())),
	}
	if w.build != "" {
		attrs = append(attrs, slog.String("build", w.build.Short()))
	}
	if w.err != nil {
		attrs = append(attrs, slog.Any("error", w.err))
	}
	s.Log.LogAttrs(r.Context(), level, "answered", attrs...)
}
