package aws

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/attended-sysupgrade/sysup/shared/aws/awstest"
)

// emulator starts ministack (SSM, KMS, Lambda, ECS) when a test first asks for
// it. A shell stops it when its standard input ends, which the test process
// holds: it ends however that process dies.
var emulator = sync.OnceValues(func() (string, error) {
	start := exec.Command("../../scripts/emulator", "start")
	var problem bytes.Buffer
	start.Stderr = &problem
	out, err := start.Output()
	if err != nil {
		return "", errors.New("scripts/emulator start: " + err.Error() + ": " + problem.String())
	}
	address := strings.TrimSpace(string(out))
	keeper := exec.Command("/bin/sh", "-c", `cat > /dev/null; exec ../../scripts/emulator stop "$1"`, "keeper", address)
	read, write, err := os.Pipe()
	if err != nil {
		return "", err
	}
	keeper.Stdin, emulatorGuard = read, write
	return address, errors.Join(keeper.Start(), read.Close())
})

var emulatorGuard io.Closer // must not be collected

// emulated is a Cloud on the emulator.
func emulated(t *testing.T, settings Settings, hooks ...func(*middleware.Stack) error) *Cloud {
	t.Helper()
	address, err := emulator()
	if err != nil {
		t.Fatalf("the emulator is needed and does not start (scripts/emulator install installs it): %v", err)
	}
	cfg := sdk.Config{
		Region: "us-east-1", BaseEndpoint: &address,
		Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""),
	}
	return New(cfg, settings, quietLog(), hooks...)
}

func quietLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

// onEngine is a Cloud on one of the engines.
func onEngine(endpoint string, settings Settings, hooks ...func(*middleware.Stack) error) *Cloud {
	return New(awstest.Config(endpoint), settings, quietLog(), hooks...)
}

// answering is a Cloud whose calls get their answers from f.
func answering(f func(*http.Request) (*http.Response, error), settings Settings) *Cloud {
	cfg := awstest.Config("http://127.0.0.1:9")
	cfg.HTTPClient = client(f)
	return New(cfg, settings, quietLog())
}

type client func(*http.Request) (*http.Response, error)

func (c client) Do(r *http.Request) (*http.Response, error) { return c(r) }

// reply is an answer in the protocol of SQS, SSM, KMS and ECS.
func reply(r *http.Request, status int, body string) *http.Response {
	return &http.Response{
		StatusCode: status, Status: http.StatusText(status), Request: r, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {"application/x-amz-json-1.1"}},
		Body:   io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)),
	}
}

// mishap is what becomes of an attempt of a call.
type mishap int

const (
	works     mishap = iota
	throttled        // refused, nothing happens
	failing          // status 500, nothing happens
	lost             // it happens, but the answer says status 500
	hanging          // no answer at all
)

// mishaps makes the attempts of one operation fail in that order, the last for
// ever after.
type mishaps struct {
	operation string
	plan      []mishap

	mu    sync.Mutex
	calls int
}

func (f *mishaps) hook(stack *middleware.Stack) error {
	return stack.Finalize.Insert(middleware.FinalizeMiddlewareFunc("Faults", f.handle), "Retry", middleware.After)
}

func (f *mishaps) next() mishap {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	return f.plan[min(f.calls, len(f.plan))-1]
}

func (f *mishaps) attempts() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

func (f *mishaps) handle(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (
	out middleware.FinalizeOutput, metadata middleware.Metadata, err error,
) {
	if awsmiddleware.GetOperationName(ctx) != f.operation {
		return next.HandleFinalize(ctx, in)
	}
	switch f.next() {
	case throttled:
		return out, metadata, &smithy.GenericAPIError{Code: "ThrottlingException", Message: "injected"}
	case failing:
		return out, metadata, serverError()
	case lost:
		_, _, _ = next.HandleFinalize(ctx, in) // whatever it says, nobody hears it
		return out, metadata, serverError()
	case hanging:
		<-ctx.Done()
		return out, metadata, &smithy.CanceledError{Err: ctx.Err()}
	}
	return next.HandleFinalize(ctx, in)
}

func serverError() error {
	response := &smithyhttp.Response{Response: &http.Response{StatusCode: http.StatusInternalServerError}}
	return &awshttp.ResponseError{ResponseError: &smithyhttp.ResponseError{Response: response, Err: errors.New("injected")}}
}

// plans are the ways in which a call can fail, and whether the caller sees an
// error and whether it happens.
var plans = []struct {
	name             string
	plan             []mishap
	fails, happens   bool
	attempts, repeat int // calls that reach the service and how often more than once
}{
	{name: "throttled twice", plan: []mishap{throttled, throttled, works}, happens: true, attempts: 3},
	{name: "failing twice", plan: []mishap{failing, failing, works}, happens: true, attempts: 3},
	{name: "the first answer is lost", plan: []mishap{lost, works}, happens: true, attempts: 2, repeat: 1},
	{name: "throttled for ever", plan: []mishap{throttled}, fails: true, attempts: attempts},
	{name: "failing for ever", plan: []mishap{failing}, fails: true, attempts: attempts},
	{name: "every answer is lost", plan: []mishap{lost}, fails: true, happens: true, attempts: attempts, repeat: attempts - 1},
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func contains(text string, all ...string) bool {
	return !slices.ContainsFunc(all, func(s string) bool { return !strings.Contains(text, s) })
}
