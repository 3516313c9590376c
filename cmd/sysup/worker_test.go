package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/attended-sysupgrade/sysup/builder/sandbox"
	"github.com/attended-sysupgrade/sysup/scripts/instant"
	"github.com/attended-sysupgrade/sysup/shared/api"
	"github.com/attended-sysupgrade/sysup/shared/aws"
	"github.com/attended-sysupgrade/sysup/shared/aws/awstest"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
	"github.com/attended-sysupgrade/sysup/shared/certify"
	"github.com/attended-sysupgrade/sysup/shared/client"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// container is the image in which the workers of these tests run, as ECS would
// run it; without one they are processes of this machine.
var container = flag.String("container", "", "run workers in this image, which scripts/builder-image makes")

// program is the real binary, static and without the race detector.
var program = sync.OnceValues(func() (string, error) {
	file, err := filepath.Abs("../../build/test/sysup") // kept, for it is big
	if err != nil {
		return "", err
	}
	compile := exec.Command("go", "build", "-o", file, ".")
	compile.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := compile.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, output)
	}
	return file, nil
})

// region is all that a worker meets: the engines, an upstream, a certifier,
// an API that fills the queue.
type region struct {
	*testing.T
	settings aws.Settings
	env      []string
	upstream instant.Upstream
	records  build.Records
	queue    *aws.Queue
	objects  build.Objects
	client   *client.Client
	server   usign.SecretKey
}

// environ is set once for the process: the engines are its own.
var environ sync.Once

func newRegion(t *testing.T, options instant.Options) *region {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test runs builds as another user; run it as root")
	}
	environ.Do(func() {
		for _, variable := range awstest.Environment(t) {
			name, value, _ := strings.Cut(variable, "=")
			os.Setenv(name, value)
		}
	})
	options.Versions = []string{"24.10.0"}
	up, upstream := instantUpstream(t, options)
	r := &region{T: t, upstream: up}
	r.settings = aws.Settings{Table: awstest.Table(t, aws.CreateTable), Bucket: awstest.Bucket(t)}
	r.settings.QueueURL, r.settings.DeadLettersURL = awstest.Queue(t, time.Minute, 20)
	cloud, err := aws.Open(t.Context(), r.settings, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	r.records, r.queue, r.objects = cloud.Records(), cloud.Queue(), cloud.Objects()
	if r.server, err = usign.Generate("test server"); err != nil {
		t.Fatal(err)
	}
	r.env = append(awstest.Environment(t),
		"PATH="+os.Getenv("PATH"), "SYSUP_TABLE="+r.settings.Table, "SYSUP_BUCKET="+r.settings.Bucket, "SYSUP_QUEUE_URL="+r.settings.QueueURL,
		"SYSUP_UPSTREAM="+upstream, "SYSUP_UPSTREAM_KEY="+strings.Split(string(up.Key.Public().Marshal()), "\n")[1])
	r.serveCertifier()
	r.serveAPI(upstream)
	return r
}

func (r *region) serveCertifier() {
	token := strings.Repeat("t", 32)
	file := filepath.Join(r.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		r.Fatal(err)
	}
	authority := certify.New(r.server, r.objects)
	if err := authority.Publish(r.Context()); err != nil {
		r.Fatal(err)
	}
	web := httptest.NewServer(certifyHandler(token, authority.Certify, testLog(r.T)))
	r.Cleanup(web.Close)
	r.env = append(r.env, "SYSUP_CERTIFIER="+web.URL, "SYSUP_CERTIFIER_TOKEN_FILE="+file)
}

func (r *region) serveAPI(upstream string) {
	known, err := catalog.New(catalog.Options{Upstream: upstream, Keys: []usign.PublicKey{r.upstream.Key.Public()}, Objects: r.objects, Log: testLog(r.T)})
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { known.Close() })
	if err := known.Refresh(r.Context()); err != nil {
		r.Fatal(err)
	}
	service := &build.Service{Records: r.records, Queue: r.queue, Secret: []byte("secret")}
	web := httptest.NewServer(api.New(api.Config{Service: service, Objects: r.objects, Catalog: known, Version: "test", Log: testLog(r.T)}))
	r.Cleanup(web.Close)
	r.client = &client.Client{URL: web.URL, Poll: 100 * time.Millisecond}
}

// workerProcess is a `sysup worker`, or another process of the program.
type workerProcess struct {
	t     *testing.T
	cmd   *exec.Cmd
	name  string // of its container
	begun time.Time
	log   *lockedBuffer
	ended chan struct{}
	err   error
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

var workerUID atomic.Int64

// start runs a worker, with more variables.
func (r *region) start(env ...string) *workerProcess {
	r.Helper()
	var cmd *exec.Cmd
	name := ""
	if *container == "" {
		file, err := program()
		if err != nil {
			r.Fatal(err)
		}
		cmd = exec.Command(file, "worker")
		cmd.Env = append(r.env, "SYSUP_DATA="+filepath.Join(r.TempDir(), "data"), fmt.Sprint("SYSUP_BUILD_UID=", 67000+workerUID.Add(1)))
	} else {
		cmd = exec.Command("../../scripts/builder-run", *container)
		name = "sysup-test-" + strings.ToLower(rand.Text())
		cmd.Env = append(r.env, "NAME="+name, "HOME="+os.Getenv("HOME"))
	}
	cmd.Env = append(cmd.Env, env...)
	return launch(r.T, cmd, name)
}

// launch starts the process and has it ended with the test. name is that of
// its container, if it has one.
func launch(t *testing.T, cmd *exec.Cmd, name string) *workerProcess {
	t.Helper()
	w := &workerProcess{t: t, cmd: cmd, name: name, log: &lockedBuffer{}, ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = w.log, w.log
	w.begun = time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { w.err = cmd.Wait(); close(w.ended) }()
	t.Cleanup(func() {
		if !w.hasEnded(0) {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			if !w.hasEnded(20 * time.Second) {
				_ = w.kill()
				<-w.ended
			}
		}
		if t.Failed() {
			t.Logf("the log of %q:\n%s", cmd.Args[1:], w.log)
		}
	})
	return w
}

func (w *workerProcess) hasEnded(within time.Duration) bool {
	select {
	case <-w.ended:
		return true
	case <-time.After(within):
		return false
	}
}

// reaches waits for what the worker is to come upon, or fails if it ends before.
func (w *workerProcess) reaches(event <-chan bool) {
	w.t.Helper()
	select {
	case <-event:
	case <-w.ended:
		w.t.Fatalf("the worker has ended: %v", w.err)
	}
}

// leaves holds that the worker ends by itself in time and well.
func (w *workerProcess) leaves(within time.Duration) {
	w.t.Helper()
	if !w.hasEnded(within) {
		w.t.Fatalf("the worker does not end within %v", within)
	}
	if w.err != nil {
		w.t.Errorf("the worker ended with %v", w.err)
	}
}

// stop sends SIGTERM and holds that the worker lets go in time.
func (w *workerProcess) stop() {
	w.t.Helper()
	begin := time.Now()
	if err := w.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		w.t.Fatal(err)
	}
	w.leaves(10 * time.Second)
	w.t.Logf("ended %v after SIGTERM", time.Since(begin).Round(time.Millisecond))
}

// submit sends the usual request and returns its ID.
func (r *region) submit(packages ...string) build.ID {
	r.Helper()
	accepted, err := r.client.Submit(r.Context(), usual(packages...))
	if err != nil {
		r.Fatal(err)
	}
	return build.ID(accepted.RequestHash)
}

func usual(packages ...string) client.Request {
	return client.Request{Version: "24.10.0", Target: "x86/64", Profile: "generic", Packages: packages}
}

// until waits for the record.
func (r *region) until(id build.ID, what string, good func(build.Record) bool) build.Record {
	r.Helper()
	for begin := time.Now(); time.Since(begin) < 60*time.Second; time.Sleep(50 * time.Millisecond) {
		if rec, err := r.records.Get(r.Context(), id); err == nil && good(rec) {
			return rec
		}
	}
	rec, err := r.records.Get(r.Context(), id)
	r.Fatalf("%s: not within a minute; the record is %s, %s, %d attempts (%v)", what, rec.State, rec.Stage, rec.Attempts, err)
	panic("unreachable")
}

func making(rec build.Record) bool { return rec.Stage == build.StagePackages }

// verified downloads the result as a client and checks the whole chain, and
// that nothing but this result is stored of the build.
func (r *region) verified(id build.ID, attempts int, packages ...string) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), 90*time.Second)
	defer cancel()
	result, err := r.client.Wait(ctx, usual(packages...), nil)
	if err != nil {
		r.Fatal(err)
	}
	dir := r.TempDir()
	if err := r.client.Download(ctx, result, dir, nil); err != nil {
		r.Fatal(err)
	}
	if _, err := client.Verify(dir, []usign.PublicKey{r.server.Public()}, time.Now()); err != nil {
		r.Error(err)
	}
	if rec := r.until(id, "done", build.Record.Ended); rec.Attempts != attempts {
		r.Errorf("it took %d attempts, want %d", rec.Attempts, attempts)
	}
	for _, key := range r.stored("store/") {
		if !strings.HasPrefix(key, "store/"+result.BinDir+"/") {
			r.Errorf("beside the result there is %s", key)
		}
	}
}

func (r *region) stored(prefix string) (keys []string) {
	r.Helper()
	for info, err := range r.objects.List(r.Context(), prefix) {
		if err != nil {
			r.Fatal(err)
		}
		keys = append(keys, info.Key)
	}
	return keys
}

// visible takes a message from the queue, which has to come at once, and puts
// it back.
func (r *region) visible(id build.ID) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	m, err := r.queue.Receive(ctx)
	if err != nil || m.ID != id {
		r.Fatalf("the message is not visible: %v", err)
	}
	if err := r.queue.Extend(r.Context(), m, 0); err != nil {
		r.Fatal(err)
	}
}

// TestWorker: a queued build is claimed within five seconds of the process's
// start, built and published; then the worker leaves, and the archive is there
// for the next one.
func TestWorker(t *testing.T) {
	t.Parallel()
	r := newRegion(t, instant.Options{})
	id := r.submit("nano")
	w := r.start("SYSUP_IDLE=2s", "SYSUP_METRICS=true")
	r.verified(id, 1, "nano")
	rec := r.until(id, "done", build.Record.Ended)
	took := rec.StartedAt.Sub(w.begun)
	t.Logf("%v from the process's start to the claim", took.Round(time.Millisecond))
	if took > 5*time.Second {
		t.Errorf("the claim came %v after the process's start", took)
	}
	if alive := r.board()[build.BoardAlive]; time.UnixMilli(alive).Before(rec.StartedAt) {
		t.Errorf("the board says alive until %v", time.UnixMilli(alive))
	}
	w.leaves(30 * time.Second)
	if pending := r.board().Pending(); pending != 0 {
		t.Errorf("%d builds are pending", pending)
	}
	if archives := r.stored("imagebuilder/24.10.0/x86/64/"); len(archives) != 1 {
		t.Errorf("the archives for the next worker: %q", archives)
	}
	if log := w.log.String(); !strings.Contains(log, `"BuildsDone":1`) || !strings.Contains(log, `"BuildsFailed":0`) || !strings.Contains(log, `"BuildSeconds":`) {
		t.Error("the log has no figures of the build")
	}
	if strings.Contains(w.log.String(), string(id)) {
		t.Error("the log names the build, which opens its files")
	}
}

func (r *region) board() build.Board {
	r.Helper()
	board, err := r.records.Board(r.Context(), "", build.Change{})
	if err != nil {
		r.Fatal(err)
	}
	return board
}

// TestWorkerStops: told to stop while make runs, more often than a build has
// attempts, each worker gives the build back at once.
func TestWorkerStops(t *testing.T) {
	t.Parallel()
	r := newRegion(t, instant.Options{Before: "sleep 4"})
	id := r.submit("nano")
	for range build.MaxAttempts {
		w := r.start()
		r.until(id, "make runs", making)
		w.stop()
		rec := r.until(id, "given back", func(rec build.Record) bool { return rec.State == build.Queued })
		if rec.Attempts != 0 {
			t.Errorf("after a shutdown it has %d attempts", rec.Attempts)
		}
		r.visible(id)
	}
	r.start()
	r.verified(id, 1, "nano")
}

// TestWorkerStopsInUpload: told to stop while a large file is on its way in
// parts, the worker gives up both the upload and the build.
func TestWorkerStopsInUpload(t *testing.T) {
	t.Parallel()
	r := newRegion(t, instant.Options{After: `head -c 50000000 /dev/zero > "$BIN_DIR/openwrt-24.10.0-x86-64-generic-big.bin"`})
	proxy, stalled := r.proxy(func(req *http.Request) bool { return req.URL.Query().Get("partNumber") == "2" })
	id := r.submit("nano")
	w := r.start("AWS_ENDPOINT_URL_S3=" + proxy)
	w.reaches(stalled)
	w.stop()
	rec := r.until(id, "given back", func(rec build.Record) bool { return rec.State == build.Queued })
	if rec.Attempts != 0 {
		t.Errorf("after a shutdown it has %d attempts", rec.Attempts)
	}
	r.visible(id)
	left, err := awstest.S3Client(t).ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: &r.settings.Bucket})
	if err != nil || len(left.Uploads) > 0 {
		t.Errorf("%d uploads are left (%v)", len(left.Uploads), err)
	}
	if keys := r.stored("store/"); len(keys) > 0 {
		t.Errorf("of the attempt there is %q", keys)
	}
	r.start()
	r.verified(id, 1, "nano")
}

// TestWorkerStopsWithoutStore: what the worker lets go in time does not hang on
// a store that has stopped to answer.
func TestWorkerStopsWithoutStore(t *testing.T) {
	t.Parallel()
	r := newRegion(t, instant.Options{})
	proxy, stalled := r.proxy(func(req *http.Request) bool { return strings.Contains(req.URL.RequestURI(), "/store/") })
	id := r.submit("nano")
	w := r.start("AWS_ENDPOINT_URL_S3=" + proxy)
	w.reaches(stalled)
	w.stop()
	r.until(id, "given back", func(rec build.Record) bool { return rec.State == build.Queued && rec.Attempts == 0 })
	r.visible(id)
}

// proxy stands between a worker and the objects and never answers what is to
// be held; of that it tells.
func (r *region) proxy(hold func(*http.Request) bool) (address string, held <-chan bool) {
	target, err := url.Parse(awstest.S3(r.T))
	if err != nil {
		r.Fatal(err)
	}
	forward := &httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
		p.SetURL(target)
		p.Out.Host = p.In.Host // which is signed
	}}
	tell, end := make(chan bool, 100), make(chan bool)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if !hold(req) {
			forward.ServeHTTP(w, req)
			return
		}
		tell <- true
		<-end
	}))
	r.Cleanup(func() { close(end); web.Close() })
	return web.URL, tell
}

// TestWorkerKilled: a worker that vanishes loses its lease, and the next one
// builds. (The lease is ended by hand: it lasts a minute.)
func TestWorkerKilled(t *testing.T) {
	t.Parallel()
	r := newRegion(t, instant.Options{Before: "sleep 3"})
	id := r.submit("nano")
	first := r.start()
	r.until(id, "make runs", making)
	if err := first.kill(); err != nil {
		t.Fatal(err)
	}
	<-first.ended
	lost := r.until(id, "still building", func(rec build.Record) bool { return rec.State == build.Building })
	stale := lost
	stale.LeaseUntil = build.Now().Add(-build.LeaseMargin - time.Second)
	if err := r.records.Replace(t.Context(), lost, stale); err != nil {
		t.Fatal(err)
	}
	r.start()
	if err := r.queue.Send(t.Context(), id, build.ClassInteractive, ""); err != nil {
		t.Fatal(err)
	}
	r.verified(id, 2, "nano")
}

// kill ends the worker as a power cut does.
func (w *workerProcess) kill() error {
	if w.name == "" {
		return w.cmd.Process.Kill()
	}
	return exec.Command("podman", "kill", w.name).Run()
}

// TestWorkersCompete: many messages about one build for two workers are one
// build.
func TestWorkersCompete(t *testing.T) {
	t.Parallel()
	r := newRegion(t, instant.Options{Before: "sleep 1"})
	id := r.submit("nano")
	for range 3 {
		if err := r.queue.Send(t.Context(), id, build.ClassInteractive, ""); err != nil {
			t.Fatal(err)
		}
	}
	r.start("SYSUP_WORKERS=2")
	r.start("SYSUP_WORKERS=2")
	r.verified(id, 1, "nano")
}

// TestSecondSignal: who does not want to wait for a worker to let go says so
// twice.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	r := newRegion(t, instant.Options{})
	proxy, stalled := r.proxy(func(req *http.Request) bool { return strings.Contains(req.URL.RequestURI(), "/store/") })
	r.submit("nano")
	w := r.start("AWS_ENDPOINT_URL_S3=" + proxy)
	w.reaches(stalled)
	if err := w.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if w.hasEnded(500 * time.Millisecond) {
		t.Fatal("nothing held the worker up after the first signal")
	}
	if err := w.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if !w.hasEnded(time.Second) || w.err == nil {
		t.Errorf("the second signal did not end it: %v", w.err)
	}
}

func TestWorkerNames(t *testing.T) {
	t.Setenv("ECS_CONTAINER_METADATA_URI_V4", "")
	if one, two := workerName(), workerName(); one == two || len(one) > 100 {
		t.Errorf("two workers of one machine are %s and %s", one, two)
	}
	t.Setenv("ECS_CONTAINER_METADATA_URI_V4", "http://169.254.170.2/v4/0123456789abcdef0123456789abcdef-527074092")
	if name := workerName(); !strings.HasPrefix(name, "0123456789abcdef0123456789abcdef-") {
		t.Errorf("the worker of a task is %s", name)
	}
}

// TestWorkerKeepsSecrets: no build reads what the worker has itself certified
// with. Where that cannot be, as in a container, the worker does not begin.
func TestWorkerKeepsSecrets(t *testing.T) {
	dir := t.TempDir()
	for folder := dir; folder != os.TempDir(); folder = filepath.Dir(folder) {
		if err := os.Chmod(folder, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	token, credentials := filepath.Join(dir, "token"), filepath.Join(dir, "credentials")
	for _, file := range []string{token, credentials} {
		if err := os.WriteFile(file, []byte("secret"), 0o444); err != nil { // as Docker mounts secrets
			t.Fatal(err)
		}
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", credentials)
	t.Setenv("AWS_CONFIG_FILE", os.DevNull)
	c := &workerCmd{CertifierTokenFile: token, BuildUID: 64646}
	secrets := c.secrets()
	if slices.Contains(secrets, os.DevNull) {
		t.Errorf("%s is among %q", os.DevNull, secrets)
	}
	for _, file := range []string{token, credentials} {
		if !slices.Contains(secrets, file) {
			t.Errorf("%s is not among %q", file, secrets)
		}
		spec := sandbox.Spec{Mechanism: sandbox.Plain, UID: c.BuildUID, GID: c.BuildUID, Tree: dir, Scratch: filepath.Join(dir, "scratch"), Hide: []string{file}}
		if _, err := sandbox.Prepare(t.Context(), spec); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("a build could read %s: %v", file, err)
		}
	}
}

// TestWorkerSettings: a wrong setting stops the start with the key, the rule
// and the value.
func TestWorkerSettings(t *testing.T) {
	good := []string{"worker", "--table", "builds", "--queue-url", "http://127.0.0.1:1/0/q", "--bucket", "bucket", "--certifier", "lambda:x"}
	for _, test := range []struct {
		args []string
		says []string
	}{
		{[]string{"worker"}, []string{"SYSUP_TABLE", "SYSUP_QUEUE_URL", "SYSUP_BUCKET", "SYSUP_CERTIFIER"}},
		{append(good, "--workers", "0"), []string{"--workers", "between 1 and 256", `"0"`}},
		{append(good, "--idle=-1s"), []string{"--idle", "0 or more", `"-1s"`}},
		{append(good, "--time-limit", "1ms"), []string{"--time-limit", "a second or more", `"1ms"`}},
		{append(good, "--build-uid", "4294967296"), []string{"--build-uid", "ordinary user", `"4294967296"`}},
		{append(good, "--bucket", "UPPER"), []string{"SYSUP_BUCKET", "lower-case", `"UPPER"`}},
		{append(good, "--certifier", "ftp://x"), []string{"SYSUP_CERTIFIER", "lambda:FUNCTION", `"ftp://x"`}},
		{append(good, "--certifier", "http://127.0.0.1:1"), []string{"--certifier-token-file", `""`}},
		{append(good, "--upstream", "x"), []string{"--upstream", "http or https", `"x"`}},
	} {
		text := sysup(t, exitUsage, test.args...)
		for _, want := range test.says {
			if !strings.Contains(text, want) {
				t.Errorf("%q does not say %q:\n%s", test.args, want, text)
			}
		}
	}
	if err := new(catalog.Options).Trust([]string{"no key"}); err == nil || !strings.Contains(err.Error(), "SYSUP_UPSTREAM_KEY") {
		t.Errorf("a wrong key of the upstream: %v", err)
	}
}
