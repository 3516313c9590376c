// Package deploytest_test deploys the whole of template.yaml by SAM to an
// emulator of AWS on this machine, with the functions' real binaries and the
// builder's container, and does to it what clients, time and bad luck do.
package deploytest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/smithy-go/logging"

	"github.com/attended-sysupgrade/sysup/scripts/instant"
	"github.com/attended-sysupgrade/sysup/shared/aws"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/client"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// root is the module's folder.
const root = "../.."

// Time limits: generous, since other tests may share the machine.
const (
	deployTime = 10 * time.Minute // the builder's base image is made the first time
	stopTime   = 90 * time.Second
	buildTime  = 2 * time.Minute
	soon       = time.Minute
)

// stack is the running deployment.
type stack struct {
	*testing.T
	outputs  outputs
	folder   string // of scripts/deploy-local
	upstream *upstream
	client   *client.Client
	key      string // file of the server's public key
	keys     []usign.PublicKey
	config   sdk.Config // of the account's root

	settings aws.Settings
	records  *aws.Records
	queue    *aws.Queue
	objects  *aws.Objects
	secret   func(context.Context, string) ([]byte, error)
}

// outputs are those of the stack, and what scripts/deploy-local adds.
type outputs struct {
	Emulator, Builders                   string
	URL                                  string `json:"Url"`
	Bucket, Table, Queue, DeadLetters    string
	Cluster, TaskDefinition, Housekeeper string
	Fingerprint                          string
}

// deploy runs scripts/deploy-local until the test ends.
func deploy(t *testing.T) *stack {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test runs builds as another user; run it as root")
	}
	for _, tool := range []string{"podman", "runc", "debootstrap", "jq", "node"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is missing; run scripts/setup", tool)
		}
	}
	readSources(t)
	s := &stack{T: t, folder: filepath.Join(openFolder(t), "deployment"), upstream: serveUpstream(t)}
	s.start(freePort(t))
	s.read()
	fmt.Printf("builders run as: %s\n", s.outputs.Builders)
	return s
}

// openFolder is one that the users of builds can pass through.
func openFolder(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	if err := errors.Join(os.Chmod(folder, 0o711), os.Chmod(filepath.Dir(folder), 0o711)); err != nil {
		t.Fatal(err)
	}
	return folder
}

// readSources opens what is deployed, since Go takes a test that passed for
// passed until what it was made of or what it opened has changed.
func readSources(t *testing.T) {
	t.Helper()
	for _, name := range []string{"builder", "cmd", "functions", "infra", "scripts", "shared"} {
		err := filepath.WalkDir(filepath.Join(root, name), func(_ string, _ os.DirEntry, err error) error { return err })
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"go.mod", "Makefile", "samconfig.toml", "template.yaml"} {
		if _, err := os.ReadFile(filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
}

// start returns when the deployment answers.
func (s *stack) start(port int) {
	s.Helper()
	cmd := exec.Command("scripts/deploy-local")
	cmd.Dir = root
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "AWS_") && !strings.HasPrefix(variable, "SYSUP_") {
			cmd.Env = append(cmd.Env, variable)
		}
	}
	cmd.Env = append(cmd.Env, fmt.Sprint("PORT=", port), "FOLDER="+s.folder, "UPSTREAM="+s.upstream.url, "UPSTREAM_KEY="+s.upstream.KeyFile,
		"BUILDERS=either", "BASE=debootstrap", "IMAGE=sysup-builder:test-aws", "PARAMETERS=AllowDefaults=true")
	// A file, and not a pipe, which would break before the deployment has ended.
	output, err := os.Create(s.folder + ".log")
	if err != nil {
		s.Fatal(err)
	}
	defer output.Close()
	cmd.Stdout, cmd.Stderr = output, output
	// It ends with this process, however that ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	ended := make(chan error, 1)
	begun := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the signal is sent when the thread ends that began it
		err := cmd.Start()
		begun <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	if err := <-begun; err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { s.stop(cmd.Process, ended) })
	limit := time.After(deployTime)
	for {
		if _, err := os.Stat(filepath.Join(s.folder, "outputs.json")); err == nil {
			return
		}
		select {
		case err := <-ended:
			ended <- err
			s.Fatalf("scripts/deploy-local ended: %v\n%s", err, s.said())
		case <-limit:
			s.Fatalf("scripts/deploy-local is not ready after %v:\n%s", deployTime, s.said())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// said is what scripts/deploy-local printed.
func (s *stack) said() string {
	text, err := os.ReadFile(s.folder + ".log")
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// stop tells what the deployment said if the test failed, and ends it.
func (s *stack) stop(process *os.Process, ended chan error) {
	if s.Failed() {
		s.Logf("scripts/deploy-local:\n%s", s.said())
		if s.outputs.Emulator != "" {
			logs, err := s.logs()
			s.Logf("logs (%v):\n%s", err, logs)
		}
	}
	_ = process.Signal(syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(stopTime):
		_ = syscall.Kill(-process.Pid, syscall.SIGKILL)
		s.Errorf("scripts/deploy-local did not end within %v:\n%s", stopTime, s.said())
	}
}

// read takes up what the deployment tells about itself.
func (s *stack) read() {
	s.Helper()
	text, err := os.ReadFile(filepath.Join(s.folder, "outputs.json"))
	if err == nil {
		err = json.Unmarshal(text, &s.outputs)
	}
	if err != nil {
		s.Fatal(err)
	}
	for _, variable := range s.outputs.environ() {
		name, value, _ := strings.Cut(variable, "=")
		s.Setenv(name, value)
	}
	if s.config, err = config.LoadDefaultConfig(s.Context(), config.WithLogger(logging.Nop{})); err != nil {
		s.Fatal(err)
	}
	s.settings = aws.Settings{Table: s.outputs.Table, QueueURL: s.outputs.Queue, DeadLettersURL: s.outputs.DeadLetters, Bucket: s.outputs.Bucket}
	cloud, err := aws.Open(s.Context(), s.settings, slog.New(slog.DiscardHandler))
	if err != nil {
		s.Fatal(err)
	}
	s.records, s.queue, s.objects, s.secret = cloud.Records(), cloud.Queue(), cloud.Objects(), cloud.Secret
	s.client = &client.Client{URL: s.outputs.URL, Poll: 200 * time.Millisecond}
	s.readKey()
}

// readKey takes the server's key from where its operator has it, as a client
// that trusts it would.
func (s *stack) readKey() {
	text, err := s.secret(s.Context(), "ssm:/sysup/main/server-pub")
	if err != nil {
		s.Fatal(err)
	}
	key, err := usign.ParsePublicKey(text)
	if err != nil {
		s.Fatal(err)
	}
	s.key, s.keys = filepath.Join(s.TempDir(), "server.pub"), []usign.PublicKey{key}
	if err := os.WriteFile(s.key, text, 0o644); err != nil {
		s.Fatal(err)
	}
}

// keepHouse does at once what comes every five minutes.
func (s *stack) keepHouse() {
	s.Helper()
	out, err := lambda.NewFromConfig(s.config).Invoke(s.Context(), &lambda.InvokeInput{FunctionName: &s.outputs.Housekeeper})
	if err != nil || out.FunctionError != nil {
		s.Errorf("the housekeeper failed: %v %s", err, out.Payload)
	}
}

// within waits until the condition holds. ok says in words how far it is.
func within(t *testing.T, limit time.Duration, what string, ok func() (bool, string)) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		done, state := ok()
		switch {
		case done:
			return
		case time.Since(began) > limit:
			t.Fatalf("%s: not within %v; now: %s", what, limit, state)
		}
	}
}

// task is a builder that ECS was asked for.
type task struct{ id, folder string }

// tasks are all that were ever started.
func (s *stack) tasks() (list []task) {
	folders, err := filepath.Glob(filepath.Join(s.folder, "tasks", "*", "pid"))
	if err != nil {
		s.Fatal(err)
	}
	for _, file := range folders {
		folder := filepath.Dir(file)
		list = append(list, task{filepath.Base(folder), folder})
	}
	return list
}

// of finds the task of a worker by its log.
func (s *stack) of(worker string) task {
	name := worker[:strings.LastIndexByte(worker, '-')]
	for _, t := range s.tasks() {
		if log, err := os.ReadFile(filepath.Join(t.folder, "log")); err == nil && strings.Contains(string(log), "name="+name+" ") {
			return t
		}
	}
	s.Fatalf("no task is the worker %s", worker)
	return task{}
}

// kill leaves the task no time for anything.
func (s *stack) kill(t task) {
	s.Helper()
	command := exec.Command("podman", "kill", "--signal", "KILL", "sysup-"+t.id)
	if s.outputs.Builders != "container" {
		pid, err := os.ReadFile(filepath.Join(t.folder, "pid"))
		if err != nil {
			s.Fatal(err)
		}
		command = exec.Command("kill", "-9", strings.TrimSpace(string(pid)))
	}
	if out, err := command.CombinedOutput(); err != nil {
		s.Fatalf("kill the builder: %v\n%s", err, out)
	}
}

// readLogs prints the log groups of the functions.
const readLogs = `
import boto3
logs = boto3.client("logs")
for group in logs.describe_log_groups()["logGroups"]:
    print("==", group["logGroupName"])
    for page in logs.get_paginator("filter_log_events").paginate(logGroupName=group["logGroupName"]):
        for event in page["events"]:
            print(event["message"].rstrip())
`

// logs are those of functions and builders, with what could be read of them
// beside an error.
func (s *stack) logs() (string, error) {
	var all bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	command := exec.CommandContext(ctx, filepath.Join(root, "build/emulator/tools/bin/python"), "-c", readLogs)
	command.Env = append(os.Environ(), s.outputs.environ()...)
	command.Stdout, command.Stderr = &all, &all
	err := command.Run()
	files, _ := filepath.Glob(filepath.Join(s.folder, "tasks", "*", "log"))
	for _, file := range append(files, filepath.Join(s.folder, "local.log"), filepath.Join(s.folder, "housekeeper.log")) {
		text, e := os.ReadFile(file)
		err = errors.Join(err, e)
		fmt.Fprintf(&all, "== %s\n%s", strings.TrimPrefix(file, s.folder), text)
	}
	return all.String(), err
}

// environ are the variables of who may do everything in the emulator.
func (o outputs) environ() []string {
	return []string{
		"AWS_ENDPOINT_URL=" + o.Emulator, "AWS_REGION=us-east-1", "AWS_DEFAULT_REGION=us-east-1", "AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test",
	}
}

// upstream is the tiny one whose ImageBuilder takes no time. Builds for the
// profile slow wait while the gate is shut.
type upstream struct {
	instant.Upstream
	url  string
	mu   sync.Mutex
	gate *gate
}

const (
	version = "24.10.0"
	slow    = "tplink_archer-c7-v5"
)

// gate stops one build in the middle.
type gate struct {
	arrived, open chan struct{}
	once          sync.Once
}

func serveUpstream(t *testing.T) *upstream {
	t.Helper()
	u := &upstream{}
	folder := t.TempDir()
	files := http.FileServer(http.Dir(folder))
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/gate" {
			u.pass(r.Context())
			return
		}
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(web.Close)
	u.url = web.URL
	var err error
	u.Upstream, err = instant.Write(folder, instant.Options{
		Versions: []string{version}, URL: web.URL,
		Before: fmt.Sprintf(`case $USER_PROFILE in *%s) wget -q -O /dev/null %s/gate ;; esac`, slow, web.URL),
	})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// shut makes the next build for the slow profile wait.
func (u *upstream) shut() *gate {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.gate = &gate{arrived: make(chan struct{}), open: make(chan struct{})}
	return u.gate
}

func (u *upstream) pass(ctx context.Context) {
	u.mu.Lock()
	g := u.gate
	u.gate = nil // for one build
	u.mu.Unlock()
	if g == nil {
		return
	}
	close(g.arrived)
	select {
	case <-g.open:
	case <-ctx.Done():
	}
}

// release lets the build go on.
func (g *gate) release() { g.once.Do(func() { close(g.open) }) }

// reached waits until a build is at the gate.
func (g *gate) reached(t *testing.T) {
	t.Helper()
	t.Cleanup(g.release)
	select {
	case <-g.arrived:
	case <-time.After(buildTime):
		t.Fatalf("no build began within %v", buildTime)
	}
}

// freePort is below those that the system gives to connections.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		port := 20000 + rand.IntN(12000)
		if l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port of this machine is free")
	return 0
}

// get asks through the CDN, as a page of another origin.
func (s *stack) get(t *testing.T, method, path string, body io.Reader) (*http.Response, []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, strings.TrimPrefix(path, s.outputs.URL), body)
	if err != nil {
		t.Fatal(err)
	}
	r.URL, err = r.URL.Parse(s.outputs.URL + r.URL.String())
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Origin", "https://page.example")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, answer
}

// record reads what the table says of a build.
func (s *stack) record(t *testing.T, hash string) build.Record {
	t.Helper()
	rec, err := s.records.Get(t.Context(), build.ID(hash))
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

// status asks for a build until the API does not put us off.
func (s *stack) status(t *testing.T, hash string) (client.Status, error) {
	t.Helper()
	status, err := s.client.Status(t.Context(), hash)
	if e, ok := errors.AsType[*client.Error](err); ok && e.Temporary() {
		return client.Status{Code: e.Status, Detail: e.Detail}, nil
	}
	return status, err
}
