package main

import (
	"maps"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/functions/lambdatest"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
	"github.com/attended-sysupgrade/sysup/shared/catalog/catalogtest"
)

// TestBinary takes requests through the compiled function, its gateway and the
// engines, without a builder.
func TestBinary(t *testing.T) {
	t.Parallel()
	r := sample(t)
	f := lambdatest.Start(t, binary(t), r.variables()...)
	first := post(t, f, request(1))
	if first.status != 202 || len(first.body.RequestHash) != 64 || first.header["X-Imagebuilder-Status"] == "" || first.header["Access-Control-Allow-Origin"] != "*" {
		t.Fatalf("a new request: %+v", first)
	}
	hash := first.body.RequestHash
	if again := post(t, f, request(1)); again.status != 202 || again.body.RequestHash != hash {
		t.Errorf("the same request: %+v", again)
	}
	if other := post(t, f, request(2)); other.status != 202 || other.body.RequestHash == hash {
		t.Errorf("another request: %+v", other)
	}
	if got := poll(t, f, hash); got.status != 202 {
		t.Errorf("a poll: %+v", got)
	}
	if got := ask(t, f, "HEAD", "/api/v1/build/"+hash, ""); got.status != 202 || got.text != "" {
		t.Errorf("HEAD: %+v", got)
	}
	if got := ask(t, f, "GET", "//api//v1/build/"+hash+"/", ""); got.status != 202 {
		t.Errorf("slashes: %+v", got)
	}
	r.finish(t, hash)
	done := poll(t, f, hash)
	if done.status != 200 || !strings.Contains(done.text, "openwrt.img.gz") {
		t.Errorf("after its end: %+v", done)
	}
	for path, status := range map[string]int{"/readyz": 200, "/healthz": 200, "/json/v1/overview.json": 200, "/nothing": 404, "/api/v1/build/short": 404} {
		if got := ask(t, f, "GET", path, ""); got.status != status {
			t.Errorf("%s: %+v", path, got)
		}
	}
	if bad := post(t, f, `{"version":"24.10.5","target":"x86/64","profile":"generic","packages":["no;package"]}`); bad.status != 400 || bad.body.Detail == "" {
		t.Errorf("a bad request: %+v", bad)
	}
	if n := r.upstream.Load(); n != 0 {
		t.Errorf("the upstream was asked %d times", n)
	}
	if strings.Contains(f.Output(), hash) || strings.Contains(f.Output(), "0123456789abcdef") {
		t.Errorf("the log has the request hash or the secret: %s", f.Output())
	}
}

// TestClientsLimit has clients behind the CDN, and one that pretends to be.
func TestClientsLimit(t *testing.T) {
	t.Parallel()
	r := sample(t)
	f := lambdatest.Start(t, binary(t), r.variables("SYSUP_BUILDS_PER_CLIENT", "1")...)
	const secret = "the secret of the origin"
	for i, c := range []struct {
		name, secret, forwarded string
		status                  int
	}{
		{"a client's first", secret, "203.0.113.1, 192.0.2.7", 202},
		{"its second", secret, "203.0.113.1, 192.0.2.7", 503},
		{"its third, lying to the CDN", secret, "10.0.0.1, 203.0.113.1, 192.0.2.7", 503},
		{"another client's first", secret, "203.0.113.2, 192.0.2.7", 202},
		{"past the CDN", "a guess of the secret", "203.0.113.3, 192.0.2.7", 202},
		{"past the CDN again", "a guess of the secret", "203.0.113.4, 192.0.2.7", 503},
	} {
		got := ask(t, f, "POST", "/api/v1/build", request(i), "x-sysup-origin", c.secret, "x-forwarded-for", c.forwarded)
		if got.status != c.status {
			t.Errorf("%s: %+v", c.name, got)
		}
		if c.status == 503 {
			if seconds, err := strconv.Atoi(got.header["Retry-After"]); err != nil || seconds < 1 || got.body.Detail == "" {
				t.Errorf("%s: %+v", c.name, got)
			}
		}
	}
	if strings.Contains(f.Output(), secret) || strings.Contains(f.Output(), "203.0.113.1") {
		t.Errorf("the log has the origin's secret or a client's address: %s", f.Output())
	}
}

// finish ends the build as a builder would.
func (r *rig) finish(t testing.TB, hash string) {
	t.Helper()
	records := r.own.Records()
	rec, err := records.Get(t.Context(), build.ID(hash))
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []func(build.Record) build.Record{
		func(rec build.Record) build.Record { return rec.Claim("test", build.NewAttempt(), build.Now()) },
		func(rec build.Record) build.Record {
			return rec.Finish(&build.Result{
				Prefix: build.Prefix(rec.ID, rec.Attempt, false), BuiltAt: build.Now(), ImageHash: strings.Repeat("a", 64),
				Images: []build.Image{{Name: "openwrt.img.gz", Type: "combined", Filesystem: "ext4", Size: 1, SHA256: strings.Repeat("1", 64)}},
			}, build.DefaultLifetimes, build.Now())
		},
	} {
		next := step(rec)
		if err := records.Replace(t.Context(), rec, next); err != nil {
			t.Fatal(err)
		}
		next.Rev = rec.Rev + 1
		rec = next
	}
}

// TestCalls pins what each kind of request costs.
func TestCalls(t *testing.T) {
	r := sample(t)
	f := lambdatest.Start(t, binary(t), r.variables(
		"SYSUP_CLUSTER", "cluster", "SYSUP_TASK_DEFINITION", "builder", "SYSUP_SUBNETS", "subnet-1", "SYSUP_SECURITY_GROUP", "sg-1")...)
	create := map[string]int{"GetItem": 1, "UpdateItem": 2, "PutItem": 1, "SendMessage": 1}
	rest := maps.Clone(create)
	rest["UpdateItem"]++
	rest["RunTask"] = 1
	if got := ask(t, f, "GET", "/healthz", ""); got.status != 200 {
		t.Fatal(got)
	}
	if got := post(t, f, request(0)); got.status != 202 { // the catalogue's units come into memory
		t.Fatalf("%+v", got)
	}
	if r.cloud.Started() != 1 {
		t.Errorf("%d builders were started at the first build, want 1", r.cloud.Started())
	}
	t.Logf("the cold request: %v", r.cloud.Counts())

	hash := post(t, f, request(1)).body.RequestHash
	for _, body := range r.cloud.Bodies("GetItem") {
		if !strings.Contains(body, `"ConsistentRead":true`) {
			t.Errorf("a request is looked up by %s", body)
		}
	}
	for _, c := range []struct {
		name string
		send func()
		want map[string]int
	}{
		{"new, above", func() {}, create},
		{"known", func() { post(t, f, request(1)) }, map[string]int{"GetItem": 1}},
		{"poll", func() { poll(t, f, hash) }, map[string]int{"GetItem": 1}},
		{"refused", func() { post(t, f, `{"version":"1.0","target":"x86/64","profile":"generic"}`) }, map[string]int{}},
		{"overview", func() { ask(t, f, "GET", "/json/v1/overview.json", "") }, map[string]int{}},
	} {
		c.send()
		if got := r.cloud.Counts(); !maps.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	fresh := sample(t)
	fresh.beginDay(t)
	f = lambdatest.Start(t, binary(t), fresh.variables(
		"SYSUP_CLUSTER", "cluster", "SYSUP_TASK_DEFINITION", "builder", "SYSUP_SUBNETS", "subnet-1", "SYSUP_SECURITY_GROUP", "sg-1")...)
	ask(t, f, "POST", "/api/v1/build", `{"version":"24.10.5","target":"x86/64","profile":"generic","packages":["no-such-package"]}`) // warms without a build
	fresh.cloud.Counts()
	post(t, f, request(1))
	if got := fresh.cloud.Counts(); !maps.Equal(got, rest) {
		t.Errorf("the first build from rest: %v, want %v", got, rest)
	}
}

// beginDay counts a build, as an earlier request of today did: the first one of
// a day costs one update more, since a counter begins anew.
func (r *rig) beginDay(t testing.TB) {
	t.Helper()
	today := build.Now().Unix() / (24 * 60 * 60)
	_, err := r.own.Records().Board(t.Context(), "", build.Change{Max: build.Board{build.BoardToday: today*build.BoardDay + 1}})
	if err != nil {
		t.Fatal(err)
	}
}

// TestSize compiles for both architectures.
func TestSize(t *testing.T) {
	t.Parallel()
	const most = 16_000_000
	for _, arch := range []string{"amd64", "arm64"} {
		info, err := os.Stat(lambdatest.Build(t, arch))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %.1f MB", arch, float64(info.Size())/1e6)
		if info.Size() > most {
			t.Errorf("for %s the function has %d bytes, it may have %d", arch, info.Size(), most)
		}
	}
}

// TestMemory has a cold function work against a catalogue of a real branch's
// size.
func TestMemory(t *testing.T) {
	const most = 128 << 20
	upstream, err := catalogtest.Big(60, 9000)
	if err != nil {
		t.Fatal(err)
	}
	var targets []string
	for _, n := range []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"} {
		targets = append(targets, "board"+n+"/generic")
	}
	r := newRig(t, upstream, func(c *catalog.Catalog) {
		for _, target := range targets {
			wantDevice(t, c, target, "vendor_device-3")
		}
	})
	f := lambdatest.Start(t, binary(t), r.variables()...)
	for i := range 300 {
		body := strings.NewReplacer("x86/64", targets[i%len(targets)], "generic\",", "vendor_device-3\",").Replace(`{"version":"24.10.5","target":"x86/64","profile":"generic","rootfs_size_mb":` + strconv.Itoa(100+i) + `}`)
		if i == 0 {
			began := time.Now()
			if got := post(t, f, body); got.status != 202 {
				t.Fatalf("%+v", got)
			}
			t.Logf("the first answer after %v, %.0f MB", time.Since(began), float64(f.Peak(t))/1e6)
			continue
		}
		if got := post(t, f, body); got.status != 202 {
			t.Fatalf("%+v", got)
		}
	}
	t.Logf("after 300 requests for %d targets: %.0f MB", len(targets), float64(f.Peak(t))/1e6)
	if peak := f.Peak(t); peak > most {
		t.Errorf("the function takes %d bytes, it may take %d", peak, most)
	}
	if n := r.upstream.Load(); n != 0 {
		t.Errorf("the upstream was asked %d times", n)
	}
}

// TestColdStart takes the best of several, without the engines' time: others
// compute on this machine too.
func TestColdStart(t *testing.T) {
	const most, tries = 150 * time.Millisecond, 5
	r := sample(t)
	bootstrap, best := binary(t), time.Hour
	for i := range tries {
		began, waited := time.Now(), r.cloud.Waited()
		f := lambdatest.Start(t, bootstrap, r.variables()...)
		if got := post(t, f, request(i)); got.status != 202 {
			t.Fatalf("%+v", got)
		}
		best = min(best, time.Since(began)-(r.cloud.Waited()-waited))
	}
	t.Logf("from the start of the process to its first answer: %v", best)
	if best > most {
		t.Errorf("the first answer takes %v, it may take %v", best, most)
	}
}

// BenchmarkColdStart is from the start of the process to its first answer to a
// new request.
func BenchmarkColdStart(b *testing.B) {
	r := sample(b)
	bootstrap := lambdatest.Build(b, runtime.GOARCH)
	waited := r.cloud.Waited()
	for i := 0; b.Loop(); i++ {
		f := lambdatest.Start(b, bootstrap, r.variables()...)
		if got := post(b, f, request(i)); got.status != 202 {
			b.Fatalf("%+v", got)
		}
	}
	own := b.Elapsed() - (r.cloud.Waited() - waited)
	b.ReportMetric(float64(own.Microseconds())/1e3/float64(b.N), "own-ms/start")
}
