package main

import (
	"encoding/json"
	"fmt"

	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/events"

	"github.com/attended-sysupgrade/sysup/functions/lambdatest"
	"github.com/attended-sysupgrade/sysup/shared/aws"
	"github.com/attended-sysupgrade/sysup/shared/aws/awstest"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
	"github.com/attended-sysupgrade/sysup/shared/catalog/catalogtest"
)

// rig is a cloud with everything that the function uses.
type rig struct {
	cloud    *lambdatest.Cloud
	upstream atomic.Int64 // requests that reached it from the function
	settings aws.Settings
	environ  map[string]string
	own      *aws.Cloud // the test's way to the same things
}

const secretPath = "/sysup/main/request-secret"

// newRig has a catalogue of the upstream in its bucket. The function itself
// meets an upstream that only fails, and tells that it was asked.
func newRig(t testing.TB, upstream *catalogtest.Upstream, want func(*catalog.Catalog)) *rig {
	t.Helper()
	r := &rig{cloud: lambdatest.NewCloud(t)}
	down := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		r.upstream.Add(1)
		w.WriteHeader(http.StatusInternalServerError)
	}))
	t.Cleanup(down.Close)
	queue, _ := awstest.Queue(t, time.Minute, 20)
	r.settings = aws.Settings{Table: awstest.Table(t, aws.CreateTable), QueueURL: queue, Bucket: awstest.Bucket(t)}
	r.environ = map[string]string{
		"SYSUP_TABLE": r.settings.Table, "SYSUP_QUEUE_URL": queue, "SYSUP_BUCKET": r.settings.Bucket, "SYSUP_UPSTREAM": down.URL,
		"SYSUP_REQUEST_SECRET": "ssm:" + secretPath, "SYSUP_PUBLIC_URL": "https://sysup.example.org", "SYSUP_ORIGIN_SECRET": "the secret of the origin",
		"SYSUP_BUILDS_PER_CLIENT": "1000", "SYSUP_REPOSITORY_ALLOW": "", "SYSUP_ALLOW_DEFAULTS": "true",
		"SYSUP_UPSTREAM_KEY": strings.Split(string(upstream.Keys()[0].Marshal()), "\n")[1],
	}
	r.cloud.SetParameter(secretPath, strings.Repeat("0123456789abcdef", 4))
	ownEnvironment(t)
	var err error
	if r.own, err = aws.Open(t.Context(), r.settings, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	r.store(t, upstream, down.URL, want)
	r.cloud.Counts()
	return r
}

var environmentOnce sync.Once

// ownEnvironment leads the test's own calls to the engines, past the cloud that
// counts and fails.
func ownEnvironment(t testing.TB) {
	environmentOnce.Do(func() {
		for _, variable := range awstest.Environment(t) {
			name, value, _ := strings.Cut(variable, "=")
			if err := os.Setenv(name, value); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// store is what the housekeeper does, and what others have asked for.
func (r *rig) store(t testing.TB, upstream *catalogtest.Upstream, base string, want func(*catalog.Catalog)) {
	t.Helper()
	leader, err := catalog.New(catalog.Options{
		Upstream: base, Keys: upstream.Keys(), Objects: r.own.Objects(), Client: upstream.Client(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer leader.Close()
	if err := leader.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(leader)
}

// sample has x86/64 of 24.10.5 in the store.
func sample(t testing.TB) *rig {
	t.Helper()
	upstream, err := catalogtest.Sample()
	if err != nil {
		t.Fatal(err)
	}
	return newRig(t, upstream, func(c *catalog.Catalog) { wantDevice(t, c, "x86/64", "generic") })
}

func wantDevice(t testing.TB, c *catalog.Catalog, target, profile string) {
	t.Helper()
	device, err := c.Device(t.Context(), "24.10.5", target, profile, "")
	if err == nil {
		err = device.CheckPackages([]string{"kmod-module-3"})
	}
	if err != nil && !strings.Contains(err.Error(), "kmod-module-3") {
		t.Fatal(err)
	}
}

// with sets or, by "", removes variables.
func (r *rig) variables(pairs ...string) []string {
	list := append([]string{}, r.cloud.Environ()...)
	own := map[string]string{}
	for key, value := range r.environ {
		own[key] = value
	}
	for i := 0; i < len(pairs); i += 2 {
		own[pairs[i]] = pairs[i+1]
	}
	for key, value := range own {
		list = append(list, key+"="+value)
	}
	return list
}

// binary is the compiled function of this machine's architecture.
func binary(t testing.TB) string {
	t.Helper()
	return lambdatest.Build(t, runtime.GOARCH)
}

// answer is what a client gets.
type answer struct {
	status int
	header map[string]string
	body   struct {
		RequestHash string `json:"request_hash"`
		Detail      string `json:"detail"`
		Status      int    `json:"status"`
	}
	text string
}

// ask sends a request through the gateway's event, with more headers as pairs.
func ask(t testing.TB, f *lambdatest.Function, method, path, body string, headers ...string) answer {
	t.Helper()
	event := events.APIGatewayV2HTTPRequest{
		Version: "2.0", RouteKey: "$default", RawPath: path, Body: body,
		Headers: map[string]string{"host": "id.execute-api.us-east-1.amazonaws.com", "content-type": "application/json"},
	}
	for i := 0; i < len(headers); i += 2 {
		event.Headers[headers[i]] = headers[i+1]
	}
	event.RequestContext.HTTP.Method, event.RequestContext.HTTP.SourceIP = method, "192.0.2.7"
	var got events.APIGatewayV2HTTPResponse
	f.Invoke(t, event, &got)
	a := answer{status: got.StatusCode, header: got.Headers, text: got.Body}
	if strings.HasPrefix(got.Headers["Content-Type"], "application/json") && method != "HEAD" {
		if err := json.Unmarshal([]byte(got.Body), &a.body); err != nil {
			t.Fatalf("%s %s: %q: %v", method, path, got.Body, err)
		}
	}
	return a
}

// request is the n-th of many distinct ones.
func request(n int) string {
	return fmt.Sprintf(`{"version":"24.10.5","target":"x86/64","profile":"generic","rootfs_size_mb":%d,"packages":[],"client":"test/1"}`, 100+n)
}

func post(t testing.TB, f *lambdatest.Function, body string) answer {
	t.Helper()
	return ask(t, f, "POST", "/api/v1/build", body)
}

func poll(t testing.TB, f *lambdatest.Function, hash string) answer {
	t.Helper()
	return ask(t, f, "GET", "/api/v1/build/"+hash, "")
}
