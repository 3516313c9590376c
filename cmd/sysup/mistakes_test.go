package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attended-sysupgrade/sysup/scripts/instant"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
	"github.com/attended-sysupgrade/sysup/shared/client"
)

// mistaken is a whole server in which each mistake of TestMistakes would show.
type mistaken struct {
	testServer
	t             *testing.T
	up            instant.Upstream
	asked         atomic.Int64 // requests that the upstream got
	down          atomic.Bool  // the upstream
	created, made atomic.Int64 // records, runs of make
}

// hostile is what every build of it does before it installs packages: it
// leaves a mark in the ImageBuilder, rewrites one of its tools, and says what
// it may use.
const hostile = `[ ! -e mark ] || echo "MARKED BY ANOTHER BUILD" >&2
touch mark; echo 'echo TOOL OF ANOTHER BUILD >&2' >>scripts/after.sh
while read -r line; do echo "limit: $line"; done </proc/self/limits`

func startMistaken(t *testing.T) *mistaken {
	m := &mistaken{t: t}
	dir := t.TempDir()
	files := http.FileServer(http.Dir(dir))
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.asked.Add(1)
		if m.down.Load() {
			panic(http.ErrAbortHandler)
		}
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(web.Close)
	var err error
	if m.up, err = instant.Write(dir, instant.Options{URL: web.URL, Versions: []string{"24.10.0"}, LocalSignature: true, Before: hostile}); err != nil {
		t.Fatal(err)
	}
	m.testServer = startServer(t, serveCmd{Upstream: web.URL, UpstreamKey: []string{m.up.KeyFile}, Workers: 2, AllowDefaults: true, hook: func(step build.Step, after bool) {
		switch {
		case step == build.StepCreate && after:
			m.created.Add(1)
		case step == build.StepMake && !after:
			m.made.Add(1)
		}
	}})
	for status := 0; status != 200; time.Sleep(10 * time.Millisecond) {
		status, _ = m.get("/readyz")
	}
	return m
}

// request is a good one for the packages.
func (m *mistaken) request(packages ...string) client.Request {
	return client.Request{Version: "24.10.0", Target: "ath79/generic", Profile: "tplink_archer-c7-v2", Packages: packages}
}

func (m *mistaken) build(r client.Request) client.Result {
	m.t.Helper()
	result, err := (&client.Client{URL: m.url, Poll: 20 * time.Millisecond}).Wait(m.t.Context(), r, nil)
	if err != nil {
		m.t.Fatalf("%v\n%s", err, lastWords(err))
	}
	return result
}

// post sends a body and returns the status and the answer.
func (m *mistaken) post(body string, headers ...string) (int, string) {
	m.t.Helper()
	r, err := http.NewRequest("POST", m.url+"/api/v1/build", strings.NewReader(body))
	if err != nil {
		m.t.Fatal(err)
	}
	for _, name := range headers {
		r.Header[name] = nil // Go sends none then
	}
	return m.do(r)
}

func (m *mistaken) get(path string) (int, string) {
	m.t.Helper()
	r, err := http.NewRequest("GET", m.url, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	r.URL.Opaque = "//" + r.URL.Host + path // as it stands
	return m.do(r)
}

func (m *mistaken) do(r *http.Request) (int, string) {
	m.t.Helper()
	web := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := web.Do(r)
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		m.t.Fatal(err)
	}
	if location := resp.Header.Get("Location"); location != "" {
		m.t.Errorf("%s leads to %s", r.URL, location)
	}
	return resp.StatusCode, string(text)
}

// refused wants a sentence with status 400.
func (m *mistaken) refused(what, body string) {
	m.t.Helper()
	status, answer := m.post(body)
	var said struct{ Detail string }
	if err := json.Unmarshal([]byte(answer), &said); err != nil || status != 400 || said.Detail == "" || len(answer) > 1000 {
		m.t.Errorf("%s: %d %.300s", what, status, answer)
	}
}

const goodBody = `{"version":"24.10.0","target":"ath79/generic","profile":"tplink_archer-c7-v2"%s}`

// TestMistakes has a subtest for each mistake that the best-known server for
// the same clients makes or made, its CVE included, which shows that this one
// does not.
func TestMistakes(t *testing.T) {
	m := startMistaken(t)
	for _, mistake := range []struct {
		name string
		show func(*mistaken)
	}{
		{"hash input joined without separators", (*mistaken).joinedHash},
		{"hash looked up before validation", (*mistaken).lookedUpFirst},
		{"check and enqueue without a lock", (*mistaken).enqueuedTwice},
		{"an error for a request without User-Agent", (*mistaken).withoutUserAgent},
		{"tracebacks with server paths in answers", (*mistaken).tracebacks},
		{"50,000 packages, a name of 1 MB, 10 MB of keys", (*mistaken).hugeRequests},
		{"+ in package names refused", (*mistaken).plusRefused},
		{"open redirect", (*mistaken).openRedirect},
		{"overview fetched upstream at each call", (*mistaken).overviewFetched},
		{"no start without upstream", (*mistaken).startsWithUpstream},
		{"result files never deleted", (*mistaken).neverDeleted},
		{"no limits on a build", (*mistaken).unlimited},
		{"first-boot script echoed to whoever has the hash", (*mistaken).scriptEchoed},
		{"no health route", (*mistaken).noHealth},
		{"sha256 taken before signing", (*mistaken).sumBeforeSigning},
		{"another build for an alias of a device", (*mistaken).builtForAlias},
		{"CVE-2024-54143: a hash cut to 48 bits", (*mistaken).cutHash},
		{"CVE-2024-54143: package names run commands", (*mistaken).namesRun},
		{"CVE-2024-54143: a build changes the ImageBuilder of the next", (*mistaken).changedTree},
	} {
		t.Run(mistake.name, func(t *testing.T) {
			old := m.t
			m.t = t
			defer func() { m.t = old }()
			mistake.show(m)
		})
	}
}

func (m *mistaken) joinedHash() {
	joined := map[build.ID]string{}
	for _, plan := range []build.Plan{
		{Version: "24.10.10", Revision: "", Snapshot: true}, {Version: "24.10.1", Revision: "0", Snapshot: true},
		{Target: "a/b", Profile: "c"}, {Target: "a/bc"}, {Add: []string{"a", "b"}}, {Add: []string{"ab"}}, {Add: []string{"a b"}}, {Add: []string{"a"}, Remove: []string{"b"}},
	} {
		id := plan.ID([]byte("secret"))
		if other, ok := joined[id]; ok {
			m.t.Errorf("%+v and %s are one build", plan, other)
		}
		joined[id] = fmt.Sprintf("%+v", plan)
	}
}

func (m *mistaken) lookedUpFirst() {
	for _, bad := range []string{`,"version_code":"r1-0000000000"`, `,"filesystem":"squashfs;id"`, `,"packages":["nano\nhtop"]`} {
		m.refused(bad, fmt.Sprintf(goodBody, bad))
	}
	m.build(m.request())
	for _, bad := range []string{`,"version_code":"r1-0000000000"`, `,"filesystem":"squashfs;id"`} { // nor after it
		m.refused(bad, fmt.Sprintf(goodBody, bad))
	}
}

func (m *mistaken) enqueuedTwice() {
	created, made := m.created.Load(), m.made.Load()
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() { m.build(m.request("htop")) })
	}
	all.Wait()
	if c, n := m.created.Load()-created, m.made.Load()-made; c != 1 || n != 1 {
		m.t.Errorf("16 equal requests at once made %d records and %d builds", c, n)
	}
}

func (m *mistaken) withoutUserAgent() {
	if status, answer := m.post(fmt.Sprintf(goodBody, ""), "User-Agent"); status != 200 {
		m.t.Errorf("%d %s", status, answer)
	}
}

func (m *mistaken) tracebacks() {
	for _, body := range []string{"", "{", "[]", `{"version":{}}`, fmt.Sprintf(goodBody, `,"packages":[null]`), fmt.Sprintf(goodBody, `,"packages":["too-big"]`)} {
		_, answer := m.post(body)
		if strings.Contains(answer, m.data) || strings.Contains(answer, ".go:") || strings.Contains(answer, "goroutine") {
			m.t.Errorf("%s: %s", body, answer)
		}
	}
	_, err := (&client.Client{URL: m.url, Poll: 20 * time.Millisecond}).Wait(m.t.Context(), m.request("too-big"), nil)
	if failed, ok := err.(*client.Error); !ok || strings.Contains(fmt.Sprintf("%+v", *failed), m.data) {
		m.t.Errorf("a failed build: %+v", err)
	}
}

func (m *mistaken) hugeRequests() {
	names := strings.TrimSuffix(strings.Repeat(`"a",`, 50_000), ",")
	m.refused("50,000 packages", fmt.Sprintf(goodBody, `,"packages":[`+names+`]`))
	m.refused("a name of 200 KB", fmt.Sprintf(goodBody, `,"packages":["`+strings.Repeat("a", 200<<10)+`"]`))
	m.refused("a name of 1 MB", fmt.Sprintf(goodBody, `,"packages":["`+strings.Repeat("a", 1<<20)+`"]`))
	m.refused("10 MB of anything", fmt.Sprintf(goodBody, `,"x":"`+strings.Repeat("A", 10<<20)+`"`))
	m.refused("10 MB of keys", fmt.Sprintf(goodBody, `,"repository_keys":["`+strings.Repeat("A", 10<<20)+`"]`))
}

func (m *mistaken) plusRefused() {
	if result := m.build(m.request("lib++")); result.Manifest["lib++"] == "" {
		m.t.Errorf("the manifest is %v", result.Manifest)
	}
}

func (m *mistaken) openRedirect() {
	for _, path := range []string{"///evil.example/x", "//evil.example/%2e%2e", "//evil.example/api/v1/overview/", "/%5cevil.example"} {
		if status, answer := m.get(path); status != 404 {
			m.t.Errorf("%s: %d %s", path, status, answer)
		}
	}
}

func (m *mistaken) overviewFetched() {
	before := m.asked.Load()
	m.down.Store(true)
	defer m.down.Store(false)
	for range 20 {
		if status, answer := m.get("/json/v1/overview.json"); status != 200 {
			m.t.Fatalf("%d %s", status, answer)
		}
	}
	if n := m.asked.Load() - before; n > 0 {
		m.t.Errorf("20 looks at the overview made %d requests to the upstream", n)
	}
}

func (m *mistaken) startsWithUpstream() {
	alone := &mistaken{t: m.t, testServer: startServer(m.t, serveCmd{Upstream: "http://127.0.0.1:1", UpstreamKey: []string{m.up.KeyFile}})}
	if status, answer := alone.get("/healthz"); status != 200 {
		m.t.Errorf("%d %s", status, answer)
	}
	if status, answer := alone.post(fmt.Sprintf(goodBody, "")); status != 503 || !strings.Contains(answer, `"detail":"`) {
		m.t.Errorf("%d %s", status, answer)
	}
}

func (m *mistaken) unlimited() {
	limits := m.build(m.request("tmux")).Stdout
	for name, most := range map[string]int{"Max processes": 4096, "Max file size": 16 << 30, "Max open files": 4096} {
		found := regexp.MustCompile(`limit: ` + name + `\s+\d+\s+(\d+) `).FindStringSubmatch(limits)
		if found == nil {
			m.t.Fatalf("a build may have any number of %s: %s", name, limits)
		}
		if n, err := strconv.Atoi(found[1]); err != nil || n > most {
			m.t.Errorf("%s is %s, want at most %d", name, found[1], most)
		}
	}
	endless, url := instantUpstream(m.t, instant.Options{Versions: []string{"24.10.0"}, Before: "while :; do :; done"})
	slow := startServer(m.t, serveCmd{Upstream: url, UpstreamKey: []string{endless.KeyFile}, TimeLimit: time.Second, BuildUID: 64700})
	_, err := (&client.Client{URL: slow.url, Poll: 20 * time.Millisecond}).Wait(m.t.Context(), m.request(), nil)
	if err == nil || !strings.Contains(err.Error(), "did not finish within 1s") {
		m.t.Errorf("a build without end: %v", err)
	}
}

func (m *mistaken) scriptEchoed() {
	r := m.request()
	r.Defaults = "echo hunter2"
	result := m.build(r)
	_, answer := m.get("/api/v1/build/" + result.RequestHash)
	if strings.Contains(answer, "hunter2") || !strings.Contains(answer, `"defaults":"(private)"`) {
		m.t.Error(answer)
	}
	for _, name := range []string{"build.json", "profiles.json", "sha256sums", filepath.Base(result.Log)} {
		if status, text := m.get("/store/" + result.BinDir + "/" + name); status != 200 || strings.Contains(text, "hunter2") {
			m.t.Errorf("%s: %d %s", name, status, text)
		}
	}
}

func (m *mistaken) noHealth() {
	for _, path := range []string{"/healthz", "/readyz"} {
		if status, answer := m.get(path); status != 200 {
			m.t.Errorf("%s: %d %s", path, status, answer)
		}
	}
}

func (m *mistaken) sumBeforeSigning() {
	result := m.build(m.request("vim"))
	for _, image := range result.Images {
		_, content := m.get("/store/" + result.BinDir + "/" + image.Name)
		if sum := sha256.Sum256([]byte(content)); hex.EncodeToString(sum[:]) != image.SHA256 {
			m.t.Errorf("%s is said to be %s, but is %x", image.Name, image.SHA256, sum)
		}
	}
}

func (m *mistaken) builtForAlias() {
	hashes := map[string]bool{}
	for _, profile := range []string{"tplink_archer-c7-v2", "tplink,archer-c7-v2", "archer-c7-v2"} {
		r := m.request("iperf3")
		r.Profile = profile
		hashes[m.build(r).RequestHash] = true
	}
	if len(hashes) != 1 {
		m.t.Errorf("three names of one device are %d builds", len(hashes))
	}
}

func (m *mistaken) cutHash() {
	result := m.build(m.request("babeld"))
	if !regexp.MustCompile(`^[0-9a-f]{64}$`).MatchString(result.RequestHash) {
		m.t.Errorf("the hash is %q", result.RequestHash)
	}
	for _, short := range []string{result.RequestHash[:12], result.RequestHash[:12] + strings.Repeat("0", 52)} {
		if status, answer := m.get("/api/v1/build/" + short); status != 404 {
			m.t.Errorf("%s: %d %s", short, status, answer)
		}
	}
}

func (m *mistaken) namesRun() {
	for _, name := range []string{"nano; touch x", "$(shell touch x)", "`id`", "a\\nb", "a&b", "$$(id)", "a'b", "-$(id)"} {
		m.refused(name, fmt.Sprintf(goodBody, `,"packages":["`+name+`"]`))
		plan := build.Plan{Distribution: "OpenWrt", Version: "24.10.0", Target: "x86/64", Profile: "generic", Add: []string{name}}
		if plan.Check() == nil { // what the builder asks once more, just before make
			m.t.Errorf("the builder takes %q", name)
		}
	}
}

func (m *mistaken) changedTree() {
	for _, name := range []string{"luci", "luci-ssl"} {
		result := m.build(m.request(name))
		for _, text := range []string{"MARKED BY ANOTHER", "TOOL OF ANOTHER"} {
			if strings.Count(result.Stderr, text) != strings.Count(text, "TOOL") { // its own change it sees
				m.t.Errorf("%s: %s", name, result.Stderr)
			}
		}
	}
}

// neverDeleted has a time of its own, in which a result and its record go when
// theirs is over.
func (m *mistaken) neverDeleted() {
	synctest.Test(m.t, func(t *testing.T) {
		ctx := context.Background()
		records, queue, objects := buildtest.NewRecords(t), buildtest.NewQueue(t, time.Minute), buildtest.NewObjects(t)
		service := &build.Service{Records: records, Queue: queue, Secret: []byte("secret")}
		status, err := service.Submit(ctx, build.Submission{Plan: build.Plan{Distribution: "OpenWrt", Version: "24.10.0", Target: "x86/64", Profile: "generic"}})
		if err != nil {
			t.Fatal(err)
		}
		rec := status.Record.Claim("worker", build.NewAttempt(), build.Now())
		result := &build.Result{Prefix: build.Prefix(rec.ID, rec.Attempt, false)}
		if err := objects.Put(ctx, result.Prefix+"image.bin", strings.NewReader("image"), build.PolicyImage); err != nil {
			t.Fatal(err)
		}
		if err := records.Replace(ctx, status.Record, rec); err != nil {
			t.Fatal(err)
		}
		rec.Rev++
		if err := records.Replace(ctx, rec, rec.Finish(result, build.DefaultLifetimes, build.Now())); err != nil {
			t.Fatal(err)
		}
		sweeper := &build.Sweeper{Records: records, Queue: queue, Objects: objects, Lifetimes: build.DefaultLifetimes}
		for _, round := range []struct {
			wait time.Duration
			left int
		}{{build.DefaultLifetimes.Plain - time.Minute, 1}, {2 * time.Minute, 0}} {
			time.Sleep(round.wait)
			if _, err := sweeper.Sweep(ctx); err != nil {
				t.Fatal(err)
			}
			files := 0
			for _, err := range objects.List(ctx, "store/") {
				if err != nil {
					t.Fatal(err)
				}
				files++
			}
			if files != round.left || len(records.All()) != round.left {
				t.Errorf("%d files and %d records are left, want %d", files, len(records.All()), round.left)
			}
		}
	})
}
