package awstest

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// engine is a program of build/engines that is started when a test first asks
// for it and lives as long as the test process.
type engine struct {
	folder  string // below build/engines
	command func(folder, scratch, port string) []string
	environ []string

	once     sync.Once
	endpoint string
	banner   string
	err      error
	guard    *os.File // its end is the end of the engine, so it must not be collected
}

// patience is how long an engine may take to answer; two seconds are usual.
const patience = time.Minute

// url starts the engine, unless it runs, and returns its endpoint.
func (e *engine) url(t testing.TB) string {
	t.Helper()
	e.once.Do(func() {
		// The port was free a moment ago. Somebody else may have taken it.
		for range 3 {
			if e.err = e.start(); e.err == nil {
				t.Logf("engine: %s at %s", e.banner, e.endpoint)
				return
			}
		}
	})
	if e.err != nil {
		t.Fatalf("the engine %s is needed and does not run: %v", e.folder, e.err)
	}
	return e.endpoint
}

// keeper runs an engine and ends it when file 3 ends, which the test process
// holds: the kernel closes it however that process dies. Then the scratch
// folder goes too.
const keeper = `
scratch=$1
shift
"$@" < /dev/null 3<&- &
engine=$!
exec > /dev/null 2>&1 # nobody may be left to read it
{ read -r _; kill -9 "$engine"; } <&3 &
guard=$!
wait "$engine"
status=$?
kill "$guard"
rm -rf "$scratch"
exit "$status"
`

func (e *engine) start() error {
	folder, banner, err := installed(e.folder)
	if err != nil {
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "sysup-"+e.folder+"-")
	if err != nil {
		return err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	output := &opening{}
	args := append([]string{"-c", keeper, "keeper", scratch}, e.command(folder, scratch, port)...)
	cmd := exec.Command("/bin/sh", args...)
	cmd.Env = append(os.Environ(), e.environ...)
	cmd.Stdout, cmd.Stderr = output, output
	cmd.ExtraFiles = []*os.File{read}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt from the terminal ends the tests, and they the engine
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return errors.Join(err, write.Close())
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	endpoint := "http://127.0.0.1:" + port
	if err := answers(endpoint, ended); err != nil {
		return errors.Join(fmt.Errorf("%w; its output: %s", err, output), write.Close())
	}
	e.endpoint, e.banner, e.guard = endpoint, banner, write
	return nil
}

// answers waits until the endpoint speaks HTTP, whatever it says.
func answers(endpoint string, ended <-chan error) error {
	client := http.Client{Timeout: 5 * time.Second}
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if resp, err := client.Get(endpoint); err == nil {
			return resp.Body.Close()
		}
		select {
		case err := <-ended:
			return fmt.Errorf("it ended before it answered: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	return fmt.Errorf("it did not answer within %v", patience)
}

// installed returns the absolute folder of an engine and its name with version.
func installed(name string) (folder, banner string, err error) {
	root, err := os.Getwd()
	if err != nil {
		return "", "", err
	}
	for !isFile(filepath.Join(root, "go.mod")) {
		if root == filepath.Dir(root) {
			return "", "", errors.New("no folder above the test has a go.mod")
		}
		root = filepath.Dir(root)
	}
	folder = filepath.Join(root, "build", "engines", name)
	version, err := os.ReadFile(filepath.Join(folder, "version"))
	if err != nil {
		return "", "", fmt.Errorf("it is not installed; run scripts/engines, which `make setup` does too: %w", err)
	}
	return folder, strings.TrimSpace(string(version)), nil
}

func isFile(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.Mode().IsRegular()
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, errors.Join(err, l.Close())
}

// opening keeps the first few kilobytes of an engine's output: why it did not
// start stands there.
type opening struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *opening) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if room := 4096 - o.buf.Len(); room > 0 {
		o.buf.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}

func (o *opening) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}
