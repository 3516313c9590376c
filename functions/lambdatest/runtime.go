// Package lambdatest runs the functions' binaries as Lambda does, on this
// machine: a runtime API that hands them events, and a cloud that counts their
// calls, fails at will and passes the rest on to the engines of awstest.
//
// Nothing of this belongs into a product.
package lambdatest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience is how long anything may take here, and what a function is given
// for one event.
const patience = 30 * time.Second

// Build compiles the function in the test's own folder with the settings of
// the template and returns the binary.
func Build(t testing.TB, arch string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "bootstrap")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-tags", "lambda.norpc", "-trimpath", "-ldflags", "-s -w", "-o", binary, ".")
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the function for %s: %v\n%s", arch, err, out)
	}
	return binary
}

// Function is a running binary. It ends with the test.
type Function struct {
	calls   chan *call
	process *os.Process
	output  *output
	ended   chan struct{} // closed when it has
	status  error         // then
}

// call is one event on its way. result is an answer, or the error that the
// function reported.
type call struct {
	event  []byte
	result chan result
}

type result struct {
	answer []byte
	err    error
}

// Start runs the binary with these variables, and no others. If the test
// process dies, its end of the runtime API goes, and with it the function.
func Start(t testing.TB, binary string, environ ...string) *Function {
	t.Helper()
	f := &Function{calls: make(chan *call), output: &output{}, ended: make(chan struct{})}
	api := httptest.NewServer(f.runtimeAPI())
	cmd := exec.Command(binary)
	cmd.Env = append(environ, "AWS_LAMBDA_RUNTIME_API="+strings.TrimPrefix(api.URL, "http://"), "AWS_LAMBDA_FUNCTION_NAME=test", "TMPDIR="+t.TempDir())
	cmd.Stdout, cmd.Stderr = f.output, f.output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f.process = cmd.Process
	go func() {
		f.status = cmd.Wait()
		close(f.ended)
	}()
	t.Cleanup(func() {
		_ = f.process.Kill() // it may have ended by itself
		<-f.ended
		api.CloseClientConnections()
		api.Close()
		if t.Failed() {
			t.Logf("the function's output: %s", f.Output())
		}
	})
	return f
}

// runtimeAPI is Lambda's side: https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
func (f *Function) runtimeAPI() http.Handler {
	var mu sync.Mutex
	waiting := map[string]*call{}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /2018-06-01/runtime/invocation/next", func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case c := <-f.calls:
			mu.Lock()
			id := fmt.Sprintf("%08d-0000-0000-0000-000000000000", len(waiting)+1)
			waiting[id] = c
			mu.Unlock()
			w.Header().Set("Lambda-Runtime-Aws-Request-Id", id)
			w.Header().Set("Lambda-Runtime-Deadline-Ms", strconv.FormatInt(time.Now().Add(patience).UnixMilli(), 10))
			w.Header().Set("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:us-east-1:123456789012:function:test")
			w.Write(c.event)
		}
	})
	mux.HandleFunc("POST /2018-06-01/runtime/invocation/{id}/{what}", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		mu.Lock()
		c := waiting[r.PathValue("id")]
		mu.Unlock()
		if c == nil {
			http.NotFound(w, r)
			return
		}
		if r.PathValue("what") != "response" {
			err = fmt.Errorf("the function reports %s", body)
		}
		c.result <- result{body, err}
		w.WriteHeader(http.StatusAccepted)
	})
	return mux
}

// Call hands the event, as JSON, to the function and returns its answer or the
// error that it reports.
func (f *Function) Call(event any) ([]byte, error) {
	text, err := json.Marshal(event)
	if err != nil {
		return nil, err
	}
	c := &call{text, make(chan result, 1)}
	timeout := time.After(patience)
	select {
	case f.calls <- c:
	case <-f.ended:
		return nil, fmt.Errorf("the function has ended with %v: %s", f.status, f.Output())
	case <-timeout:
		return nil, errors.New("the function asks for no event")
	}
	select {
	case r := <-c.result:
		return r.answer, r.err
	case <-f.ended:
		return nil, fmt.Errorf("the function died of the event with %v: %s", f.status, f.Output())
	case <-timeout:
		return nil, errors.New("the function does not answer")
	}
}

// Invoke is Call, decoding the answer into answer.
func (f *Function) Invoke(t testing.TB, event, answer any) {
	t.Helper()
	text, err := f.Call(event)
	if err == nil {
		err = json.Unmarshal(text, answer)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Refused runs a binary that has to end by itself with an error, before it asks
// for an event, and returns what it printed.
func Refused(t testing.TB, binary string, environ ...string) string {
	t.Helper()
	f := Start(t, binary, environ...)
	select {
	case <-f.ended:
	case f.calls <- &call{[]byte("{}"), make(chan result, 1)}:
		t.Fatal("the function starts with wrong settings")
	case <-time.After(patience):
		t.Fatal("the function neither starts nor ends")
	}
	if f.status == nil {
		t.Errorf("the function ends with success")
	}
	return f.Output()
}

// Output is what the function has printed until now.
func (f *Function) Output() string { return f.output.String() }

// Peak is the most memory that the function had until now, in bytes.
func (f *Function) Peak(t testing.TB) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", f.process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) == 3 && fields[0] == "VmHWM:" {
			kilobytes, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kilobytes << 10
		}
	}
	t.Fatal("the kernel does not tell the function's memory")
	return 0
}

type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}
