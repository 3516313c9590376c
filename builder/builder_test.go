package builder_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/builder"
	"github.com/attended-sysupgrade/sysup/builder/imagebuilder"
	"github.com/attended-sysupgrade/sysup/builder/sandbox"
	"github.com/attended-sysupgrade/sysup/scripts/instant"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
	"github.com/attended-sysupgrade/sysup/shared/dir"
	"github.com/attended-sysupgrade/sysup/shared/sqlite"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

func TestMain(m *testing.M) {
	sandbox.Init()
	// These tests wait more than they compute.
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// site is a whole builder with all that it works with: an upstream with the
// instant ImageBuilder, a catalogue, drivers, workers.
type site struct {
	testing.TB
	up      instant.Upstream
	url     string
	web     *upstream
	records build.Records
	memory  *buildtest.MemoryRecords // what is behind them, if they are fakes
	waiting *buildtest.MemoryQueue
	queue   build.Queue
	objects build.Objects
	service *build.Service
	catalog *catalog.Catalog
	trees   *imagebuilder.Store
	support sandbox.Support
	keys    *builder.Keys
	server  usign.SecretKey
	folder  string
	uids    []int // of the workers
	log     *logBuffer
	counts  *counts
	defects *atomic.Int64 // told to workers
	change  func(*builder.Config)
	setting setting
}

// setting is what sets one site apart from the usual.
type setting struct {
	upstream    instant.Options
	fakes       bool // in memory and strict, else SQLite and a directory
	flaws       []buildtest.Flaw
	faults      *buildtest.Faults
	mechanism   sandbox.Mechanism // "" = the best there is
	copy        bool              // no overlay
	limits      sandbox.Limits
	hide        []string
	denyNetwork bool
	timeLimit   time.Duration
	budget      int64         // of unpacked trees
	scratch     string        // folder for jobs, "" = below the test's own
	store       string        // folder for objects, likewise
	trees       string        // folder for ImageBuilders, likewise
	workers     int           // -1: none is started
	certify     time.Duration // how long the server takes to certify a key
	hook        build.Hook

	publishedKey bool // the workers know the server's key from the store alone
}

func newSite(t testing.TB, o setting) *site {
	t.Helper()
	s := &site{TB: t, folder: t.TempDir(), setting: o, log: &logBuffer{}, counts: &counts{}, defects: new(atomic.Int64)}
	// At the weakest level of confinement jobs reach their folder by its path.
	if err := errors.Join(os.Chmod(s.folder, 0o711), os.Chmod(filepath.Dir(s.folder), 0o711)); err != nil {
		t.Fatal(err)
	}
	s.serveUpstream()
	s.openDrivers()
	s.openCatalog("catalog")
	s.openSandbox()
	var err error
	if s.server, err = usign.Generate("test server"); err != nil {
		t.Fatal(err)
	}
	s.keys = builder.NewKeys(s.certify)
	s.service = &build.Service{Records: s.records, Queue: s.queue, Secret: []byte("secret")}
	for range max(1, o.workers) {
		if o.workers >= 0 {
			s.start()
		}
	}
	return s
}

// uids differ between all workers of all tests, of other runs of them too: at the weakest level of
// confinement a job's end is the end of all processes of its user.
var uids atomic.Int64

func nextUID() int { return 1<<24 + os.Getpid()%(1<<20)<<8 + int(uids.Add(1)) }

func (s *site) serveUpstream() {
	s.web = &upstream{files: http.FileServer(http.Dir(filepath.Join(s.folder, "upstream")))}
	server := httptest.NewServer(s.web)
	s.Cleanup(server.Close)
	s.url = server.URL
	o := s.setting.upstream
	if o.Versions == nil {
		o.Versions = []string{"24.10.0"}
	}
	if o.URL == "" {
		o.URL = server.URL
	}
	s.setting.upstream = o
	var err error
	if s.up, err = instant.Write(filepath.Join(s.folder, "upstream"), o); err != nil {
		s.Fatal(err)
	}
}

// upstream is a file server that can be made to misbehave.
type upstream struct {
	files http.Handler
	mu    sync.Mutex
	fault func(http.Handler) http.Handler
	asked []string
}

// misbehave puts something between the clients and the files; nil takes it away.
func (u *upstream) misbehave(fault func(http.Handler) http.Handler) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.fault = fault
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	h := u.files
	if u.fault != nil {
		h = u.fault(h)
	}
	u.asked = append(u.asked, r.URL.Path)
	u.mu.Unlock()
	h.ServeHTTP(w, r)
}

// fetched counts the requests for archives.
func (u *upstream) fetched() (n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, path := range u.asked {
		if strings.Contains(path, "imagebuilder") {
			n++
		}
	}
	return n
}

func (s *site) openDrivers() {
	if s.setting.fakes {
		s.memory = buildtest.NewRecords(s, s.setting.flaws...)
		s.waiting = buildtest.NewQueue(s, time.Second)
		s.records, s.queue = s.memory, s.waiting
		s.objects = buildtest.NewObjects(s, s.setting.flaws...)
	} else {
		s.openRealDrivers()
	}
	if f := s.setting.faults; f != nil {
		s.records, s.queue, s.objects = f.Records(s.records), f.Queue(s.queue), f.Objects(s.objects)
	}
}

func (s *site) openRealDrivers() {
	db, err := sqlite.Open(filepath.Join(s.folder, "sysup.db"))
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { db.Close() })
	s.records, s.queue = db.Records(), db.QueueFor("builds", time.Second)
	objects, err := dir.Open(s.storeFolder())
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { objects.Close() })
	s.objects = objects
}

func (s *site) storeFolder() string {
	if s.setting.store != "" {
		return s.setting.store
	}
	return filepath.Join(s.folder, "objects")
}

func (s *site) openCatalog(folder string) {
	var err error
	s.catalog, err = catalog.New(catalog.Options{
		Upstream: s.url, Keys: []usign.PublicKey{s.up.Key.Public()}, Dir: filepath.Join(s.folder, folder), Log: s.logger(),
		Inspect: s.inspect,
	})
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { s.catalog.Close() })
	if err := s.catalog.Refresh(s.Context()); err != nil {
		s.Fatal(err)
	}
}

// machine is what the sandbox can do here; it is found out once.
var machine = sync.OnceValues(func() (sandbox.Support, error) {
	folder, err := os.MkdirTemp("", "sysup-probe-")
	if err != nil {
		return sandbox.Support{}, err
	}
	defer os.RemoveAll(folder)
	if err := os.Chmod(folder, 0o711); err != nil {
		return sandbox.Support{}, err
	}
	return sandbox.Probe(context.Background(), folder, sandbox.Spec{UID: nextUID(), GID: nextUID()})
})

func (s *site) openSandbox() {
	var err error
	if s.support, err = machine(); err != nil {
		s.Fatal(err)
	}
	if s.setting.scratch == "" {
		s.setting.scratch = filepath.Join(s.folder, "scratch")
	}
	if err := os.MkdirAll(s.setting.scratch, 0o711); err != nil {
		s.Fatal(err)
	}
	if s.setting.mechanism == "" {
		s.setting.mechanism = s.support.Mechanism
		s.setting.copy = s.setting.copy || s.support.View != "overlay"
	}
	if s.setting.timeLimit == 0 {
		s.setting.timeLimit = time.Minute
	}
	if s.setting.budget == 0 {
		s.setting.budget = 1 << 30
	}
	if s.setting.trees == "" {
		s.setting.trees = filepath.Join(s.folder, "imagebuilder")
	}
	s.trees, err = imagebuilder.OpenStore(s.setting.trees, imagebuilder.Options{
		Client: http.DefaultClient, Budget: s.setting.budget, Log: s.logger(),
	})
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(s.trees.Close)
}

func (s *site) certify(_ context.Context, worker string, key ed25519.PublicKey) (build.Certificate, error) {
	time.Sleep(s.setting.certify)
	now := time.Now()
	public, signature, err := usign.Certify(s.server, worker, key, now, now.Add(24*time.Hour))
	return build.Certificate{PublicKey: public, Signature: signature}, err
}

// start runs one more worker until the test ends, and returns what stops it.
func (s *site) start() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	w := s.worker()
	go func() {
		defer close(ended)
		if err := w.Run(ctx); err != nil {
			s.Errorf("a worker ended with %v", err)
		}
	}()
	stop = func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			s.Error("a worker does not end")
		}
	}
	s.Cleanup(stop)
	return stop
}

func (s *site) worker() *builder.Worker {
	uid := nextUID()
	s.uids = append(s.uids, uid)
	serverKeys := []usign.PublicKey{s.server.Public()}
	if s.setting.publishedKey {
		serverKeys = nil
	}
	config := builder.Config{
		Records: s.records, Queue: s.queue, Objects: s.objects, Catalog: s.catalog, Trees: s.trees,
		Keys: s.keys, ServerKeys: serverKeys,
		Scratch: s.setting.scratch, TimeLimit: s.setting.timeLimit, Lifetimes: build.DefaultLifetimes,
		Sandbox: imagebuilder.Confinement{
			Mechanism: s.setting.mechanism, Copy: s.setting.copy, UID: uid, GID: uid, Limits: s.setting.limits,
			Hide: s.setting.hide, DenyNetwork: s.setting.denyNetwork,
		},
		Log: s.logger(), Hook: s.hook, Defect: func() { s.defects.Add(1) },
	}
	if s.change != nil {
		s.change(&config)
	}
	return builder.New(fmt.Sprint("worker-", uid), config)
}

// hook counts the steps that were begun, then asks the test's own hook.
func (s *site) hook(step build.Step, after bool) {
	if !after {
		s.counts.add(step)
	}
	if s.setting.hook != nil {
		s.setting.hook(step, after)
	}
}

type counts struct {
	mu sync.Mutex
	n  map[build.Step]int
}

func (c *counts) add(step build.Step) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[build.Step]int{}
	}
	c.n[step]++
}

// of is how often the step was begun.
func (c *counts) of(step build.Step) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[step]
}

// logBuffer keeps what was logged.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (s *site) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// apart gives the request an ID of its own, one for each n below 512, and the
// same image: it pins default packages to the versions that they have.
func apart(r build.Request, n int) build.Request {
	r.PackagesVersions = map[string]string{}
	for i, pin := range []build.Pin{
		{Name: "busybox", Version: "1.36.1-r2"}, {Name: "dnsmasq", Version: "2.90-r4"}, {Name: "dropbear", Version: "2024.86-r1"},
		{Name: "fstools", Version: "2024.07.14~408c2cc4-r1"}, {Name: "logd", Version: "2024.04.26~85f10530-r1"}, {Name: "mtd", Version: "26"},
		{Name: "netifd", Version: "2024.12.17~ea01ed41-r1"}, {Name: "uci", Version: "2023.08.10~5781664d-r1"}, {Name: "urandom-seed", Version: "3"},
	} {
		if n>>i&1 == 1 {
			r.PackagesVersions[pin.Name] = pin.Version
		}
	}
	return r
}

// request is the usual one, with these packages.
func request(packages ...string) build.Request {
	return build.Request{Version: "24.10.0", Target: "x86/64", Profile: "generic", Packages: packages}
}

// plan resolves a request as the API does, but refuses nothing.
func (s *site) plan(r build.Request) build.Plan {
	s.Helper()
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		device, err := s.catalog.Device(s.Context(), r.Version, r.Target, r.Profile, "")
		if err == nil {
			return build.Resolve(&r, device.Facts, nil, device.Canonical)
		}
		// A busy machine may take longer to fetch than a client is made to wait.
		if refusal, ok := errors.AsType[*build.Refusal](err); !ok || refusal.Code != build.CodeUnavailable || time.Since(begin) > time.Minute {
			s.Fatal(err)
		}
	}
}

func (s *site) submit(r build.Request) build.ID { return s.submitPlan(s.plan(r)) }

func (s *site) submitPlan(plan build.Plan) build.ID {
	s.Helper()
	status, err := s.service.Submit(s.Context(), build.Submission{Plan: plan})
	if err != nil {
		s.Fatal(err)
	}
	return status.Record.ID
}

// build submits the request and waits for its end.
func (s *site) build(r build.Request) build.Record {
	s.Helper()
	return s.wait(s.submit(r))
}

// wait waits for the end of a build.
func (s *site) wait(id build.ID) build.Record {
	s.Helper()
	return s.until(id, "it has ended", build.Record.Ended)
}

// until waits for the record to be as it should.
func (s *site) until(id build.ID, what string, holds func(build.Record) bool) build.Record {
	s.Helper()
	var rec build.Record
	for begin := time.Now(); time.Since(begin) < time.Minute; time.Sleep(5 * time.Millisecond) {
		var err error
		if rec, err = s.records.Get(s.Context(), id); err != nil {
			s.Fatal(err)
		}
		if holds(rec) {
			return rec
		}
	}
	s.Fatalf("not within a minute: %s; the record is %s, stage %q, attempts %d, failure %v\n%s",
		what, rec.State, rec.Stage, rec.Attempts, rec.Failure, s.log)
	return rec
}

// done fails the test unless the build made images and the whole chain of its
// files holds.
func (s *site) done(rec build.Record) *build.Result {
	s.Helper()
	if rec.State != build.Done {
		s.Fatalf("the build is %s: %+v\n%s", rec.State, rec.Failure, s.log)
	}
	trust := usign.Trust{Server: []usign.PublicKey{s.server.Public()}}
	if _, err := trust.VerifyDir(os.DirFS(s.download(rec.Result.Prefix)), time.Now()); err != nil {
		s.Errorf("the result's chain: %v", err)
	}
	return rec.Result
}

// download copies everything below the prefix into a folder.
func (s *site) download(prefix string) string {
	s.Helper()
	folder := s.TempDir()
	for _, key := range s.keysBelow(prefix) {
		if err := os.WriteFile(filepath.Join(folder, filepath.Base(key)), s.object(key), 0o600); err != nil {
			s.Fatal(err)
		}
	}
	return folder
}

func (s *site) object(key string) []byte {
	s.Helper()
	r, _, err := s.objects.Open(context.Background(), key)
	if err != nil {
		s.Fatalf("open %s: %v", key, err)
	}
	defer r.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(r); err != nil {
		s.Fatal(err)
	}
	return b.Bytes()
}

func (s *site) keysBelow(prefix string) (keys []string) {
	s.Helper()
	for info, err := range s.objects.List(context.Background(), prefix) {
		if err != nil {
			s.Fatal(err)
		}
		keys = append(keys, info.Key)
	}
	return keys
}

// failed fails the test unless the build failed that way, and holds what is
// true of every failure: a sentence, and no image, signature or index in the
// store.
func (s *site) failed(rec build.Record, kind build.Kind, says ...string) *build.Failure {
	s.Helper()
	if rec.State == build.Done || rec.Failure == nil {
		s.Fatalf("the build is %s, it has to fail as %s", rec.State, kind)
	}
	f := rec.Failure
	if f.Kind != kind {
		s.Errorf("it failed as %s, want %s: %s\n%s%s", f.Kind, kind, f.Detail, f.Stdout, f.Stderr)
	}
	if len(strings.Fields(f.Detail)) < 4 {
		s.Errorf("%q is no sentence", f.Detail)
	}
	wantText(s, f.Detail, says...)
	s.onlyLogs(rec)
	return f
}

// onlyLogs holds that the store has nothing of a build but logs of failures.
func (s *site) onlyLogs(rec build.Record) {
	s.Helper()
	root := filepath.Dir(filepath.Dir(build.Prefix(rec.ID, "x", rec.Plan.Private))) + "/" + string(rec.ID) + "/"
	for _, key := range s.keysBelow(root) {
		if filepath.Base(key) != rec.ID.LogName() {
			s.Errorf("a failed build published %s", filepath.Base(key))
		}
	}
	for _, key := range s.keysBelow("index/") {
		if string(s.object(key)) == string(rec.ID) {
			s.Errorf("a failed build is in the index")
		}
	}
}

// forget removes a build and its files, so that it can be made again.
func (s *site) forget(id build.ID) {
	s.Helper()
	rec, err := s.records.Get(s.Context(), id)
	if err == nil {
		err = s.records.Delete(s.Context(), rec)
	}
	if err != nil {
		s.Fatal(err)
	}
	for _, key := range s.keysBelow("store/" + string(id) + "/") {
		if err := s.objects.Delete(s.Context(), key); err != nil {
			s.Fatal(err)
		}
	}
}

// sums are the images' digests by type and file system.
func sums(result *build.Result) map[string]string {
	m := map[string]string{}
	for _, image := range result.Images {
		m[image.Filesystem+" "+image.Type] = image.SHA256
	}
	return m
}

// clean holds that no job left anything on the disk and no process.
func (s *site) clean() {
	s.Helper()
	for _, pattern := range []string{s.setting.scratch + "/*", s.setting.trees + "/quarantine-*"} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			s.Errorf("left behind: %q", left)
		}
	}
	for _, uid := range s.uids {
		if left := processesOf(uid); len(left) > 0 {
			s.Errorf("processes of user %d are left: %q", uid, left)
		}
	}
}

// processesOf lists the processes of a job's user, if this is root; else jobs
// have no user of their own.
func processesOf(uid int) (list []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/status")
	for _, file := range files {
		text, _ := os.ReadFile(file) // it may be gone
		if bytes.Contains(text, fmt.Appendf(nil, "\nUid:\t%d\t", uid)) && !bytes.Contains(text, []byte("State:\tZ")) {
			name, _, _ := strings.Cut(string(text), "\n")
			list = append(list, name)
		}
	}
	return list
}

// treeDigest is the content of all unpacked trees.
func (s *site) treeDigest() []string {
	s.Helper()
	var list []string
	err := filepath.WalkDir(s.setting.trees, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprint(name, " ", info.Mode())
		if info.Mode().IsRegular() {
			text, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %x", info.ModTime().UnixNano(), sha256.Sum256(text))
		}
		list = append(list, line)
		return nil
	})
	if err != nil {
		s.Fatal(err)
	}
	slices.Sort(list)
	return list
}

// in is the site as a subtest uses it.
func (s *site) in(t testing.TB) *site {
	c := *s
	c.TB = t
	return &c
}

// slowed lets every answer of the upstream wait.
func slowed(d time.Duration) func(http.Handler) http.Handler {
	return func(files http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(d)
			files.ServeHTTP(w, r)
		})
	}
}

// tamper changes the files of a folder that match, or removes them.
func (s *site) tamper(folder, pattern string, gone ...string) {
	s.Helper()
	names, _ := filepath.Glob(filepath.Join(folder, pattern))
	if len(names) == 0 {
		s.Fatalf("there is no %s", pattern)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			s.Fatal(err)
		}
		text[len(text)/2] ^= 1
		if err = os.WriteFile(name, text, 0o600); len(gone) > 0 {
			err = os.Remove(name)
		}
		if err != nil {
			s.Fatal(err)
		}
	}
}
