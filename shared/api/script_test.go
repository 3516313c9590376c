package api

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// TestScripts runs conversations with clients, requests as they send them.
// The commands are those of conversation.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup:               setUpScript,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"send":   inConversation((*conversation).send),
			"status": inConversation((*conversation).status),
			"header": inConversation((*conversation).header),
			"json":   inConversation((*conversation).json),
			"body":   inConversation((*conversation).body),
			"keep":   inConversation((*conversation).keep),
			"worker": inConversation((*conversation).worker),
			"builds": inConversation((*conversation).builds),
			"server": inConversation((*conversation).server),
		},
	})
}

// conversation is one script's server and the last answer.
type conversation struct {
	*rig
	address string
	resp    *http.Response
	text    []byte
	value   any // the body's JSON, nil if it is none
}

type conversationKey struct{}

func setUpScript(env *testscript.Env) error {
	c := &conversation{rig: newRig(env.T().(testing.TB))}
	c.config.Client = func(r *http.Request) string { return r.Header.Get("X-Test-Client") }
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.handler().ServeHTTP(w, r)
	}))
	env.Defer(server.Close)
	c.address = server.Listener.Addr().String()
	env.Values[conversationKey{}] = c
	return nil
}

func inConversation(f func(*conversation, *testscript.TestScript, bool, []string)) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		f(ts.Value(conversationKey{}).(*conversation), ts, neg, args)
	}
}

// send FILE writes the file to the server as it stands, with variables
// replaced and CRLF after header lines. A body gets a Content-Length, or comes
// in chunks if the file's Transfer-Encoding says so. Without a Host header it
// is sysup.example.
func (c *conversation) send(ts *testscript.TestScript, neg bool, args []string) {
	text := os.Expand(ts.ReadFile(args[0]), ts.Getenv)
	head, body, _ := strings.Cut(text, "\n\n")
	var raw strings.Builder
	lines := strings.Split(strings.TrimRight(head, "\n"), "\n")
	lower := strings.ToLower(head)
	raw.WriteString(lines[0] + " HTTP/1.1\r\n")
	if !strings.Contains(lower, "\nhost:") {
		lines = append(lines, "Host: sysup.example")
	}
	for _, line := range lines[1:] {
		raw.WriteString(line + "\r\n")
	}
	switch body = strings.TrimSuffix(body, "\n"); {
	case strings.Contains(lower, "\ntransfer-encoding: chunked"):
		half := len(body) / 2
		fmt.Fprintf(&raw, "Connection: close\r\n\r\n%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n", half, body[:half], len(body)-half, body[half:])
	case strings.HasPrefix(lines[0], "POST"):
		fmt.Fprintf(&raw, "Connection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	default:
		raw.WriteString("Connection: close\r\n\r\n")
	}
	ts.Check(c.exchange(strings.Fields(lines[0])[0], raw.String()))
}

func (c *conversation) exchange(method, raw string) error {
	conn, err := net.DialTimeout("tcp", c.address, 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, raw); err != nil {
		return err
	}
	r := bufio.NewReader(conn)
	if c.resp, err = http.ReadResponse(r, &http.Request{Method: method}); err != nil {
		return err
	}
	if c.text, err = io.ReadAll(c.resp.Body); err != nil {
		return err
	}
	if rest, _ := io.ReadAll(r); len(rest) > 0 {
		return fmt.Errorf("the server wrote more than its answer: %q", rest)
	}
	d := json.NewDecoder(bytes.NewReader(c.text))
	d.UseNumber()
	if c.value = nil; d.Decode(&c.value) != nil {
		c.value = nil
	}
	return nil
}

// status N: the last answer had that status, and that in its JSON too, if its
// JSON has one.
func (c *conversation) status(ts *testscript.TestScript, neg bool, args []string) {
	if got := strconv.Itoa(c.resp.StatusCode); got != args[0] {
		ts.Fatalf("status %s, want %s; body: %s", got, args[0], c.text)
	}
	if said, ok := lookUp(c.value, "status"); ok && said != json.Number(args[0]) {
		ts.Fatalf("the JSON's status is %v, want %s", said, args[0])
	}
}

// header NAME [PATTERN]: the last answer had that header, and its whole value
// matches. With "!" it had none.
func (c *conversation) header(ts *testscript.TestScript, neg bool, args []string) {
	values := c.resp.Header.Values(args[0])
	if args[0] == "Content-Length" && c.resp.ContentLength >= 0 {
		values = []string{strconv.FormatInt(c.resp.ContentLength, 10)}
	}
	switch {
	case neg && len(values) > 0:
		ts.Fatalf("there is a header %s: %q", args[0], values)
	case !neg && len(values) != 1:
		ts.Fatalf("header %s: %q, want one", args[0], values)
	case !neg && len(args) > 1 && !regexp.MustCompile("^("+args[1]+")$").MatchString(values[0]):
		ts.Fatalf("header %s: %q does not match %q", args[0], values[0], args[1])
	}
}

// json PATH [VALUE]: the last answer's JSON has something there, equal to the
// JSON value, or matching it where it is "/pattern/". With "!" it has nothing.
func (c *conversation) json(ts *testscript.TestScript, neg bool, args []string) {
	got, ok := lookUp(c.value, args[0])
	if neg != !ok {
		ts.Fatalf("%s: present %v; body: %s", args[0], ok, c.text)
	}
	if neg || len(args) < 2 {
		return
	}
	if pattern, ok := strings.CutPrefix(args[1], "/"); ok {
		text, isText := got.(string)
		if !isText || !regexp.MustCompile(strings.TrimSuffix(pattern, "/")).MatchString(text) {
			ts.Fatalf("%s: %v does not match %s", args[0], got, args[1])
		}
		return
	}
	d := json.NewDecoder(strings.NewReader(os.Expand(args[1], ts.Getenv)))
	d.UseNumber()
	var want any
	ts.Check(d.Decode(&want))
	if !reflect.DeepEqual(got, want) {
		ts.Fatalf("%s: %v, want %v", args[0], got, want)
	}
}

// lookUp follows names and indices joined by dots.
func lookUp(value any, path string) (any, bool) {
	for part := range strings.SplitSeq(path, ".") {
		switch v := value.(type) {
		case map[string]any:
			inner, ok := v[part]
			if !ok {
				return nil, false
			}
			value = inner
		case []any:
			i, err := strconv.Atoi(part)
			if err != nil || i >= len(v) {
				return nil, false
			}
			value = v[i]
		default:
			return nil, false
		}
	}
	return value, true
}

// body TEXT: the last answer's body is that text.
func (c *conversation) body(ts *testscript.TestScript, neg bool, args []string) {
	if string(c.text) != args[0] {
		ts.Fatalf("body %q, want %q", c.text, args[0])
	}
}

// keep NAME PATH: sets a variable to a text in the last answer's JSON.
func (c *conversation) keep(ts *testscript.TestScript, neg bool, args []string) {
	got, _ := lookUp(c.value, args[1])
	text, ok := got.(string)
	if !ok {
		ts.Fatalf("%s is no text: %v", args[1], got)
	}
	ts.Setenv(args[0], text)
}

// worker stage WORD | finish IMAGE... | fail KIND PACKAGE SENTENCE | expire IMAGE...:
// what becomes of the one build that there is.
func (c *conversation) worker(ts *testscript.TestScript, neg bool, args []string) {
	switch args[0] {
	case "stage":
		c.claim(build.Stage(args[1]))
	case "finish":
		rec := c.finish(args[1:]...)
		ts.Setenv("BINDIR", binDir(rec.Result.Prefix))
		ts.Setenv("IMAGEHASH", rec.Result.ImageHash)
	case "fail":
		rec := c.fail(build.Kind(args[1]), args[2], args[3])
		ts.Setenv("BINDIR", binDir(rec.Failure.Prefix))
	case "expire":
		c.lifetimes = brief
		rec := c.finish(args[1:]...)
		ts.Setenv("BINDIR", binDir(rec.Result.Prefix))
		c.outlive(rec)
	default:
		ts.Fatalf("unknown: %v", args)
	}
}

// builds N: so many there are.
func (c *conversation) builds(ts *testscript.TestScript, neg bool, args []string) {
	if got := strconv.Itoa(len(c.records.All())); got != args[0] {
		ts.Fatalf("%s builds, want %s", got, args[0])
	}
}

// server SETTING VALUE changes the server for what follows.
func (c *conversation) server(ts *testscript.TestScript, neg bool, args []string) {
	switch args[0] {
	case "public-url":
		c.config.PublicURL = args[1]
	case "allow-defaults":
		c.config.AllowDefaults = args[1] == "true"
	case "max-pending", "builds-per-day", "builds-per-client":
		n, err := strconv.ParseInt(args[1], 10, 64)
		ts.Check(err)
		limits := &c.config.Service.Limits
		*map[string]*int64{"max-pending": &limits.Pending, "builds-per-day": &limits.PerDay, "builds-per-client": &limits.PerClient}[args[0]] = n
	case "snapshot":
		c.catalog.revision = args[1]
	case "snapshot-moves-to":
		c.catalog.moved = args[1]
	default:
		ts.Fatalf("unknown: %v", args)
	}
}

func (r *rig) handler() http.Handler { return New(r.config) }
