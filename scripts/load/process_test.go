package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// builderProcess is a `sysup worker`.
type builderProcess struct {
	cmd    *exec.Cmd
	begun  time.Time
	log    *safeBuffer
	ended  chan struct{}
	killed bool
	stops  sync.Once
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// firstUID is that of the first builder's ImageBuilder. No two share one.
const firstUID = 68001

func (r *region) startBuilder() *builderProcess {
	r.Helper()
	b := &builderProcess{cmd: exec.Command(filepath.Join(r.folder, "sysup"), "worker"), log: &safeBuffer{}, ended: make(chan struct{})}
	b.cmd.Env = append([]string{
		"SYSUP_DATA=" + filepath.Join(r.folder, fmt.Sprint("builder-", r.builders)), fmt.Sprint("SYSUP_BUILD_UID=", firstUID+r.builders),
		"SYSUP_CERTIFIER=lambda:certifier",
	}, r.environ...)
	b.cmd.Stdout, b.cmd.Stderr = b.log, b.log
	r.builders++
	b.begun = time.Now()
	if err := b.cmd.Start(); err != nil {
		r.Fatal(err)
	}
	go func() {
		_ = b.cmd.Wait() // stop looks at how it ended
		close(b.ended)
	}()
	r.Cleanup(func() {
		b.stop(r)
		if r.Failed() {
			r.Logf("a builder's log:\n%s", b.log)
		}
	})
	return b
}

func (b *builderProcess) kill(r *region) {
	b.killed = true
	if err := b.cmd.Process.Kill(); err != nil {
		r.Errorf("kill a builder: %v", err)
	}
	line("  one builder is killed", "process %d", b.cmd.Process.Pid)
}

// stop asks the process to end, and ends it if it does not.
func (b *builderProcess) stop(r *region) {
	b.stops.Do(func() {
		_ = b.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case <-b.ended:
		case <-time.After(20 * time.Second):
			_ = b.cmd.Process.Kill()
			<-b.ended
		}
		if !b.killed && !b.cmd.ProcessState.Success() {
			r.Errorf("a builder ended with %v", b.cmd.ProcessState)
		}
	})
}

var endPattern = regexp.MustCompile(`msg="a build ended" build=(\S+)`)

// built are the records of the builds that this builder ended, by its log, in
// the order of their claims.
func (b *builderProcess) built(records []build.Record) (own []build.Record) {
	ended := map[string]bool{}
	for _, match := range endPattern.FindAllStringSubmatch(b.log.String(), -1) {
		ended[match[1]] = true
	}
	for _, rec := range records {
		if ended[rec.ID.Short()] {
			own = append(own, rec)
		}
	}
	slices.SortFunc(own, func(a, b build.Record) int { return a.StartedAt.Compare(b.StartedAt) })
	return own
}

// print tells what it took a process until its first claim, and what it used.
func (b *builderProcess) print(own []build.Record) {
	if b.killed || len(own) == 0 {
		line("  a builder", "%d builds, killed: %t", len(own), b.killed)
		return
	}
	spent, children := processorTimes(strconv.Itoa(b.cmd.Process.Pid))
	each := time.Duration(len(own))
	line("  a builder", "%d builds, %.2f s from its start to its first claim, VmHWM %.1f MB, processor %d ms a build + %d ms in make",
		len(own), own[0].StartedAt.Sub(b.begun).Seconds(), peak(b.cmd.Process.Pid), (spent / each).Milliseconds(), (children / each).Milliseconds())
}

// peak is the most memory that a process had, in MB.
func peak(pid int) float64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, after, _ := strings.Cut(string(text), "VmHWM:")
	fields := strings.Fields(after)
	if len(fields) == 0 {
		return 0
	}
	kilobytes, _ := strconv.ParseFloat(fields[0], 64)
	return kilobytes * 1024 / 1e6
}

// processorLine is that of all processors: user, nice, system, idle, waiting for
// disks, and more.
func processorLine() (fields []string, processors int) {
	text, _ := os.ReadFile("/proc/stat")
	for part := range strings.Lines(string(text)) {
		if strings.HasPrefix(part, "cpu ") {
			fields = strings.Fields(part)[1:]
		} else if strings.HasPrefix(part, "cpu") {
			processors++
		}
	}
	return fields, processors
}

// busyTime is what all processors have worked since the machine's start, for
// whomever.
func busyTime() time.Duration {
	fields, _ := processorLine()
	if len(fields) < 8 {
		return 0
	}
	return ticks(fields[:3]) + ticks(fields[5:8])
}

func processors() float64 {
	_, n := processorLine()
	return float64(max(1, n))
}
