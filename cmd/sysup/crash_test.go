package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/scripts/instant"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/client"
)

// crashSettings is how the test binary is told to be a server, and where to
// die: "DATA|UPSTREAM|KEYFILE|UID|STEP|before or after".
const crashSettings = "CRASH_SERVER"

// crashServer is a server in a process of its own that kills itself at one
// step, the first time it gets there. It never returns.
func crashServer(settings string) {
	part := strings.Split(settings, "|")
	uid, _ := strconv.Atoi(part[3])
	var hit atomic.Bool
	c := withDefaults(serveCmd{Data: part[0], Upstream: part[1], UpstreamKey: []string{part[2]}, BuildUID: uid, MaxPending: 1, BuildsPerDay: 1000, BuildsPerClient: 100})
	c.ready = func(a net.Addr) { fmt.Printf("http://%s\n", a) }
	c.hook = func(step build.Step, after bool) {
		if string(step) == part[4] && after == (part[5] == "after") && !hit.Swap(true) {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	if err := c.Run(context.Background(), newLog(os.Stderr)); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(1)
}

type process struct {
	cmd   *exec.Cmd
	url   string
	ended chan struct{}
}

func startProcess(t *testing.T, settings ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command("/proc/self/exe"), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), crashSettings+"="+strings.Join(settings, "|"))
	p.cmd.Stderr = t.Output()
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(stdout).ReadString('\n')
	p.url = strings.TrimSpace(line)
	go func() { _ = p.cmd.Wait(); close(p.ended) }()
	t.Cleanup(p.kill)
	return p
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// TestKill9 kills the server before and after each step of a request's path
// and starts it again: every accepted request ends, nothing half done is seen,
// nothing is left behind.
func TestKill9(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test runs builds as another user; run it as root")
	}
	up, url := instantUpstream(t, instant.Options{Versions: []string{"24.10.0"}, Before: "sleep 0.3"})
	for i, step := range build.Steps() {
		for j, moment := range []string{"before", "after"} {
			uid := strconv.Itoa(65000 + 2*i + j)
			t.Run(moment+" "+string(step), func(t *testing.T) {
				t.Parallel()
				killAt(t, filepath.Join(t.TempDir(), "data"), url, up.KeyFile, uid, string(step), moment)
			})
		}
	}
}

func killAt(t *testing.T, data, upstream, key, uid, step, moment string) {
	first := startProcess(t, data, upstream, key, uid, step, moment)
	first.waitReady(t)
	request := client.Request{Version: "24.10.0", Target: "x86/64", Profile: "generic", Packages: []string{"nano"}}
	ctx, cancel := context.WithTimeout(context.Background(), 150*time.Second)
	defer cancel()
	accepted, err := (&client.Client{URL: first.url}).Submit(ctx, request)
	select {
	case <-first.ended:
	case <-time.After(60 * time.Second):
		t.Fatalf("the process was not killed %s %s; the answer was %v, %v", moment, step, accepted.Detail, err)
	}
	noProcess(t, uid)

	second := startProcess(t, data, upstream, key, uid, "none", "never")
	if !second.waitReady(t) {
		t.Fatal("the second process ended")
	}
	remote := &client.Client{URL: second.url, Poll: 50 * time.Millisecond}
	if err != nil {
		// Not accepted: the client asks again, as every client does.
		if accepted, err = remote.Submit(ctx, request); err != nil {
			t.Fatalf("asked again: %v", err)
		}
	}
	for accepted.Code == http.StatusAccepted {
		time.Sleep(50 * time.Millisecond)
		if accepted, err = remote.Status(ctx, accepted.RequestHash); err != nil {
			t.Fatalf("poll: %v", err)
		}
	}
	result, err := remote.Wait(ctx, request, nil)
	if err != nil {
		t.Fatal(err)
	}
	output := t.TempDir()
	if err := remote.Download(ctx, result, output, nil); err != nil {
		t.Fatal(err)
	}
	keys, err := readPublics([]string{filepath.Join(data, "keys", "server.pub")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Verify(output, keys, time.Now()); err != nil {
		t.Errorf("the result after a restart: %v", err)
	}
	onlyResult(t, second.url, data, result.BinDir)
	// The server has room for one pending build: the counts agree again if it
	// takes another one, once what it knows of the board is no longer the old.
	time.Sleep(time.Second)
	request.Packages = []string{"htop"}
	if _, err := remote.Submit(ctx, request); err != nil {
		t.Errorf("a request after the restart: %v", err)
	}
	second.kill()
	noProcess(t, uid)
}

// onlyResult holds that nothing else of the store is answered than the result,
// and that no temporary file is left.
func onlyResult(t *testing.T, url, data, binDir string) {
	t.Helper()
	store := filepath.Join(data, "objects", "store")
	err := filepath.WalkDir(store, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(store, name)
		if err != nil {
			return err
		}
		resp, err := http.Get(url + "/store/" + rel)
		if err != nil {
			return err
		}
		resp.Body.Close()
		want := http.StatusNotFound
		if strings.HasPrefix(rel, binDir+"/") {
			want = http.StatusOK
		}
		if resp.StatusCode != want {
			t.Errorf("%s is answered with %d, want %d", rel, resp.StatusCode, want)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for _, pattern := range []string{"objects/#tmp/*", "scratch/*", "imagebuilder/quarantine-*"} {
		if left, _ := filepath.Glob(filepath.Join(data, pattern)); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	}
}

// noProcess waits a moment for every process of the user to be gone: the
// kernel ends a job's namespace with the server, but not in the same instant.
func noProcess(t *testing.T, uid string) {
	t.Helper()
	var left []string
	for range 100 {
		if left = processesOf(uid); len(left) == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("processes of user %s are left: %q", uid, left)
}

func processesOf(uid string) (list []string) {
	status, _ := filepath.Glob("/proc/[0-9]*/status")
	for _, file := range status {
		text, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if strings.Contains(string(text), "\nUid:\t"+uid+"\t") && !strings.Contains(string(text), "State:\tZ") {
			list = append(list, file)
		}
	}
	return list
}

// waitReady returns false if the process ended before it was ready.
func (p *process) waitReady(t *testing.T) bool {
	t.Helper()
	for range 500 {
		select {
		case <-p.ended:
			return false
		case <-time.After(20 * time.Millisecond):
		}
		if resp, err := http.Get(p.url + "/readyz"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return true
			}
		}
	}
	t.Fatalf("%s does not become ready", p.url)
	return false
}
