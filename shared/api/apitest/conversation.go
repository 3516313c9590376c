// Package apitest lets text scripts speak with a server as its clients do:
// requests go out as they stand in the script, and the script asks what a
// client would make of the answer.
//
// Requests are written as on the wire, but for line ends and for the length of
// their bodies:
//
//	POST /api/v1/build?1696506154265
//	Content-Type: application/json
//
//	{"version":"24.10.5"}
//
// Whatever is answered to any of them has to be sound (see Answer.Sound).
package apitest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"encoding/json"

	"github.com/rogpeppe/go-internal/testscript"
)

// conversation is what a script has said and heard.
type conversation struct {
	request string // the last one's first line
	url     string // and its address, as the client would write it
	agent   string // and its User-Agent
	answer  Answer
	result  Answer            // the last one with images in it
	index   map[string]string // package versions of the index files read so far
}

type conversationKey struct{}

// Begin gives a script a conversation. The server's address is the script's
// variable ADDRESS ("127.0.0.1:8000"), which may be set later and may change.
func Begin(env *testscript.Env) {
	env.Values[conversationKey{}] = &conversation{index: map[string]string{}}
}

// Commands are those of a script that has a conversation:
//
//	send FILE                sends a request; $NAME in it is a variable of the script
//	status N                 the answer has that status
//	header NAME [PATTERN]    it has that header, and the whole value matches
//	json PATH [VALUE]        its JSON has something there, equal to the JSON value or
//	                         matching "/pattern/"
//	body TEXT                that is its body
//	keep NAME PATH           sets a variable to a text in its JSON
//	preflight METHOD         a browser goes on to send that method with a Content-Type
//	reads CLIENT PATTERN     what the client makes of it (see Clients) matches as a whole
//	until FILE PATH VALUE    sends the request until its answer has that JSON there
//	polls CLIENT FILE PATTERN
//	                         sends it for as long as the client asks on; what it makes of the
//	                         last answer matches
//	picks CLIENT FS bios|efi which image of the last result the client takes; sets IMAGE,
//	                         SHA256 and UNSIGNED
//	flashes FILE             sends it: the answer is the image, whole, as its sum says
//	offers luci|owut|auc|auc-2021 INSTALLED VERSION…
//	                         the versions that the client finds in it, in its order
//	index                    remembers the package versions in it
//	agrees NAME…             the last result's manifest has these, in the versions of the index
//
// "!" before header, json and picks means that there is none.
func Commands() map[string]func(*testscript.TestScript, bool, []string) {
	commands := map[string]func(*testscript.TestScript, bool, []string){}
	for name, f := range map[string]func(*conversation, *testscript.TestScript, bool, []string){
		"send": (*conversation).send, "status": (*conversation).status, "header": (*conversation).header,
		"json": (*conversation).json, "body": (*conversation).body, "keep": (*conversation).keep,
		"preflight": (*conversation).preflight, "reads": (*conversation).reads, "until": (*conversation).until,
		"polls": (*conversation).polls, "picks": (*conversation).picks, "flashes": (*conversation).flashes,
		"offers": (*conversation).offers, "index": (*conversation).remember, "agrees": (*conversation).agrees,
	} {
		commands[name] = func(ts *testscript.TestScript, neg bool, args []string) {
			if neg && name != "header" && name != "json" && name != "picks" {
				ts.Fatalf("%s cannot be negated", name)
			}
			f(ts.Value(conversationKey{}).(*conversation), ts, neg, args)
		}
	}
	return commands
}

// send writes the file to the server with CRLF after header lines. A body gets
// a Content-Length, or comes in chunks if the file's Transfer-Encoding says so.
// Without a Host header it is sysup.example.
func (c *conversation) send(ts *testscript.TestScript, neg bool, args []string) {
	text := os.Expand(ts.ReadFile(args[0]), ts.Getenv)
	head, body, _ := strings.Cut(text, "\n\n")
	lines := strings.Split(strings.TrimRight(head, "\n"), "\n")
	c.note(lines)
	raw := framed(lines, strings.TrimSuffix(body, "\n"))
	method := strings.Fields(lines[0])[0]
	var err error
	c.answer, err = exchange(ts.Getenv("ADDRESS"), method, raw)
	if err == nil {
		err = c.answer.Sound()
	}
	if err != nil {
		ts.Fatalf("%s: %v\n%d %v\n%.2000s", lines[0], err, c.answer.Status, c.answer.Header, c.answer.Body)
	}
	if _, ok := c.answer.object()["images"]; ok {
		c.result = c.answer
	}
	if n := len(c.url); strings.HasPrefix(c.agent, "auc") && n > 255 {
		ts.Fatalf("auc cuts off this address, which has %d bytes: %s", n, c.url)
	}
}

// note keeps what later checks need of a request.
func (c *conversation) note(lines []string) {
	c.request, c.agent = lines[0], ""
	host := "sysup.example"
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, ": ")
		switch strings.ToLower(name) {
		case "user-agent":
			c.agent = value
		case "host":
			host = value
		}
	}
	c.url = "https://" + host + strings.Fields(lines[0])[1]
}

// framed is a request in the form of the wire.
func framed(lines []string, body string) string {
	head := strings.ToLower(strings.Join(lines, "\n")) + "\n"
	var raw strings.Builder
	raw.WriteString(lines[0] + " HTTP/1.1\r\n")
	if !strings.Contains(head, "\nhost:") {
		lines = append(lines, "Host: sysup.example")
	}
	for _, line := range append(lines[1:len(lines):len(lines)], "Connection: close") {
		raw.WriteString(line + "\r\n")
	}
	switch {
	case strings.Contains(head, "\ntransfer-encoding: chunked"):
		half := len(body) / 2
		raw.WriteString("\r\n")
		for _, chunk := range []string{body[:half], body[half:]} {
			if chunk != "" {
				fmt.Fprintf(&raw, "%x\r\n%s\r\n", len(chunk), chunk)
			}
		}
		raw.WriteString("0\r\n\r\n")
	case strings.HasPrefix(lines[0], "POST") && !strings.Contains(head, "\ncontent-length:"):
		fmt.Fprintf(&raw, "Content-Length: %d\r\n\r\n%s", len(body), body)
	default:
		raw.WriteString("\r\n" + body)
	}
	return raw.String()
}

func exchange(address, method, raw string) (Answer, error) {
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return Answer{}, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(15 * time.Second)) // what the least patient client waits
	if _, err := io.WriteString(conn, raw); err != nil {
		return Answer{}, err
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		return Answer{}, err
	}
	a := Answer{Head: method == http.MethodHead, Status: resp.StatusCode, Header: resp.Header, Length: resp.ContentLength, Chunked: len(resp.TransferEncoding) > 0}
	if a.Body, err = io.ReadAll(resp.Body); err != nil {
		return a, err
	}
	if rest, _ := io.ReadAll(r); len(rest) > 0 {
		return a, fmt.Errorf("the server wrote more than its answer: %q", rest)
	}
	return a, nil
}

func (c *conversation) status(ts *testscript.TestScript, neg bool, args []string) {
	if got := strconv.Itoa(c.answer.Status); got != args[0] {
		ts.Fatalf("status %s, want %s; body: %s", got, args[0], c.answer.Body)
	}
}

func (c *conversation) header(ts *testscript.TestScript, neg bool, args []string) {
	values := c.answer.Header.Values(args[0])
	if args[0] == "Content-Length" && c.answer.Length >= 0 {
		values = []string{strconv.FormatInt(c.answer.Length, 10)}
	}
	switch {
	case neg && len(values) > 0:
		ts.Fatalf("there is a header %s: %q", args[0], values)
	case !neg && len(values) != 1:
		ts.Fatalf("header %s: %q, want one", args[0], values)
	case !neg && len(args) > 1 && !matches(args[1], values[0]):
		ts.Fatalf("header %s: %q does not match %q", args[0], values[0], args[1])
	}
}

// matches tells whether the pattern matches all of the text.
func matches(pattern, text string) bool {
	return regexp.MustCompile(`^(?s:` + pattern + `)$`).MatchString(text)
}

func (c *conversation) json(ts *testscript.TestScript, neg bool, args []string) {
	got, ok := lookUp(c.answer.value(), args[0])
	if neg != !ok {
		ts.Fatalf("%s: present %v; body: %s", args[0], ok, c.answer.Body)
	}
	if !neg && len(args) > 1 && !equals(ts, got, args[1]) {
		ts.Fatalf("%s is %v, want %s", args[0], got, args[1])
	}
}

// equals compares with a JSON value, or with "/pattern/".
func equals(ts *testscript.TestScript, got any, want string) bool {
	if pattern, ok := strings.CutPrefix(want, "/"); ok {
		text, isText := got.(string)
		return isText && regexp.MustCompile(strings.TrimSuffix(pattern, "/")).MatchString(text)
	}
	d := json.NewDecoder(strings.NewReader(os.Expand(want, ts.Getenv)))
	d.UseNumber()
	var value any
	ts.Check(d.Decode(&value))
	return reflect.DeepEqual(got, value)
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

func (c *conversation) body(ts *testscript.TestScript, neg bool, args []string) {
	if string(c.answer.Body) != args[0] {
		ts.Fatalf("body %q, want %q", c.answer.Body, args[0])
	}
}

func (c *conversation) keep(ts *testscript.TestScript, neg bool, args []string) {
	got, _ := lookUp(c.answer.value(), args[1])
	text, ok := got.(string)
	if !ok {
		ts.Fatalf("%s is no text: %v", args[1], got)
	}
	ts.Setenv(args[0], text)
}

func (c *conversation) preflight(ts *testscript.TestScript, neg bool, args []string) {
	if err := c.answer.preflight(args[0]); err != nil {
		ts.Fatalf("%s: %v: %d %v", c.request, err, c.answer.Status, c.answer.Header)
	}
}

func (c *conversation) reads(ts *testscript.TestScript, neg bool, args []string) {
	if got := reader(ts, args[0])(c.answer); !matches(args[1], got) {
		ts.Fatalf("%s reads %q, want %q; %d %v\n%s", args[0], got, args[1], c.answer.Status, c.answer.Header, c.answer.Body)
	}
}

func reader(ts *testscript.TestScript, name string) func(Answer) string {
	read, ok := Clients[name]
	if !ok {
		ts.Fatalf("there is no client %q", name)
	}
	return read
}

// patience is how long a script waits for a build, and nap between two looks.
const (
	patience = time.Minute
	nap      = 20 * time.Millisecond
)

func (c *conversation) until(ts *testscript.TestScript, neg bool, args []string) {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(nap) {
		c.send(ts, false, args)
		if got, ok := lookUp(c.answer.value(), args[1]); ok && equals(ts, got, args[2]) {
			return
		}
	}
	ts.Fatalf("%s does not become %s: %d %s", args[1], args[2], c.answer.Status, c.answer.Body)
}

func (c *conversation) polls(ts *testscript.TestScript, neg bool, args []string) {
	read := reader(ts, args[0])
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(nap) {
		c.send(ts, false, args[1:])
		if got := read(c.answer); !strings.HasPrefix(got, AsksOn) {
			c.reads(ts, false, []string{args[0], args[2]})
			return
		}
	}
	ts.Fatalf("%s still asks: %d %s", args[0], c.answer.Status, c.answer.Body)
}
