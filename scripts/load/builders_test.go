package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs"
	sqstypes "github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"golang.org/x/sync/errgroup"

	"github.com/attended-sysupgrade/sysup/shared/aws/awstest"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/client"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// scripts/bench-aws sets these.
var (
	requests = flag.Int("requests", 200, "distinct requests for all builders")
	alone    = flag.Int("alone", 60, "distinct requests for one builder")
	crew     = flag.Int("builders", 4, "builder processes")
	waits    = flag.Duration("wait", 2*time.Second, "what the ImageBuilder waits")
	polls    = flag.Duration("poll", 10*time.Second, "pause between two polls of a client")
	killing  = flag.Bool("kill", false, "kill one of the builders half way")
)

const (
	functions   = 4  // API functions at once
	posting     = 16 // clients that send at once
	housekeeper = 5 * time.Minute
)

// BenchmarkBuilders has one builder make some images, then several of them many
// more. Each request differs; each has to be built once.
func BenchmarkBuilders(b *testing.B) {
	r := newRegion(b, *waits, functions)
	go r.keepHouseOften()
	fmt.Println()
	one := r.measure(plan{first: 0, requests: *alone, builders: 1})
	all := r.measure(plan{first: *alone, requests: *requests, builders: *crew, kill: *killing})
	r.check(append(one.records, all.records...), all.killed)
	ratio := all.rate() / one.rate()
	line("builders against one", "%.2f times as fast", ratio)
	for i, f := range r.api {
		line(fmt.Sprintf("API function %d", i), "VmHWM %.1f MB", float64(f.Peak(b))/1e6)
	}
	b.ReportMetric(ratio, "ratio")
	b.ReportMetric(0, "ns/op")
}

// TestBuilders keeps the benchmark working.
func TestBuilders(t *testing.T) {
	r := newRegion(t, 100*time.Millisecond, 2)
	*polls = time.Second
	m := r.measure(plan{requests: 12, builders: 2})
	r.check(m.records, 0)
}

func line(what, format string, args ...any) {
	fmt.Printf("%-34s %s\n", what, fmt.Sprintf(format, args...))
}

// keepHouseOften ends with the process.
func (r *region) keepHouseOften() {
	for range time.Tick(housekeeper) {
		if r.Context().Err() == nil {
			r.keepHouse()
		}
	}
}

// optional are packages of the instant upstream. Each request has a choice of
// its own.
var optional = []string{"asterisk", "babeld", "htop", "iperf3", "jansson", "libfoo2", "luci", "nano", "tmux", "vim", "wget-ssl", "wireguard-tools"}

func request(n int) client.Request {
	order := client.Request{Version: "24.10.0", Target: "x86/64", Profile: "generic", Client: "load/1"}
	for bit, name := range optional {
		if n>>bit&1 == 1 {
			order.Packages = append(order.Packages, name)
		}
	}
	return order
}

// plan is what measure does: send the requests, then start the builders.
type plan struct {
	first, requests, builders int
	kill                      bool
}

// measured is what came of it.
type measured struct {
	records []build.Record
	killed  int
}

// rate is builds per minute, from the first claim to the last end.
func (m measured) rate() float64 {
	return float64(len(m.records)) / m.span().Minutes()
}

func (m measured) span() time.Duration {
	first := slices.MinFunc(m.records, func(a, b build.Record) int { return a.StartedAt.Compare(b.StartedAt) })
	last := slices.MaxFunc(m.records, func(a, b build.Record) int { return a.EndedAt.Compare(b.EndedAt) })
	return last.EndedAt.Sub(first.StartedAt)
}

func (r *region) measure(p plan) measured {
	r.Helper()
	remote := &client.Client{URL: r.url}
	ids := r.send(remote, p)
	busy := busyTime()
	began := time.Now()
	var builders []*builderProcess
	for range p.builders {
		builders = append(builders, r.startBuilder())
	}
	m := measured{}
	half := func() {}
	if p.kill {
		m.killed = 1
		half = func() { builders[0].kill(r) }
	}
	r.follow(remote, ids, half)
	took := time.Since(began)
	busy = busyTime() - busy
	m.records = r.read(ids)
	line(fmt.Sprintf("%d requests, %d builders", p.requests, p.builders), "%.1f builds a minute, %.2f s each, processors busy to %.0f %%",
		m.rate(), m.span().Seconds()*float64(p.builders)/float64(p.requests), 100*busy.Seconds()/took.Seconds()/processors())
	m.print(*waits)
	for _, b := range builders {
		b.print(m.records)
		b.stop(r)
	}
	return m
}

// send sends the requests from several clients at once.
func (r *region) send(remote *client.Client, p plan) []build.ID {
	r.Helper()
	began, ids := time.Now(), make([]build.ID, p.requests)
	group, ctx := errgroup.WithContext(r.Context())
	group.SetLimit(posting)
	for i := range ids {
		group.Go(func() error {
			status, err := patiently(ctx, func() (client.Status, error) { return remote.Submit(ctx, request(p.first+i)) })
			ids[i] = build.ID(status.RequestHash)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		r.Fatalf("send: %v", err)
	}
	line(fmt.Sprintf("%d new requests", p.requests), "%.0f/s through %d functions", float64(p.requests)/time.Since(began).Seconds(), len(r.api))
	return ids
}

// patiently asks again while the server is busy, as clients do.
func patiently(ctx context.Context, ask func() (client.Status, error)) (client.Status, error) {
	for tries := 0; ; tries++ {
		status, err := ask()
		busy, ok := errors.AsType[*client.Error](err)
		if !ok || !busy.Temporary() || tries == 10 {
			return status, err
		}
		select {
		case <-ctx.Done():
			return status, ctx.Err()
		case <-time.After(max(time.Second, busy.RetryAfter)):
		}
	}
}

// follow polls each build as a client of its own until all are done. It calls
// half once, when half of them are.
func (r *region) follow(remote *client.Client, ids []build.ID, half func()) {
	r.Helper()
	var done atomic.Int64
	group, ctx := errgroup.WithContext(r.Context())
	for i, id := range ids {
		group.Go(func() error {
			pause := *polls / time.Duration(len(ids)) * time.Duration(i) // so that they do not all come at once
			for {
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(pause):
				}
				status, err := patiently(ctx, func() (client.Status, error) { return remote.Status(ctx, string(id)) })
				if err != nil {
					return fmt.Errorf("poll %s: %w", id.Short(), err)
				}
				if status.Done() {
					if done.Add(1) == int64(len(ids)/2) {
						half()
					}
					return nil
				}
				pause = *polls
			}
		})
	}
	if err := group.Wait(); err != nil {
		r.Fatal(err)
	}
}

func (r *region) read(ids []build.ID) (records []build.Record) {
	r.Helper()
	for _, id := range ids {
		rec, err := r.records.Get(r.Context(), id)
		if err != nil {
			r.Fatal(err)
		}
		records = append(records, rec)
	}
	return records
}

// check holds that each record was built once, that nothing is left over and
// that a result verifies.
func (r *region) check(records []build.Record, killed int) {
	r.Helper()
	var keys []string
	for info, err := range r.objects.List(r.Context(), "store/") {
		if err != nil {
			r.Fatal(err)
		}
		keys = append(keys, info.Key)
	}
	if err := audit(records, keys, killed); err != nil {
		r.Error(err)
	}
	board, err := r.records.Board(r.Context(), "", build.Change{})
	if err != nil || board.Pending() != 0 || board[build.BoardCreated] != int64(len(records)) {
		r.Errorf("the board has %d of %d builds pending, %d were made (%v)", board.Pending(), board[build.BoardCreated], len(records), err)
	}
	if n := r.waiting(r.settings.DeadLettersURL); n != "0" {
		r.Errorf("%s dead letters", n)
	}
	r.verify(len(records) - 1)
	claims := 0
	for _, rec := range records {
		claims += rec.Attempts
	}
	line("builds", "%d requests, %d claims, %d objects, no dead letters, none pending; a result verifies", len(records), claims, len(keys))
}

// waiting is how many messages a queue says to have.
func (r *region) waiting(queue string) string {
	r.Helper()
	name := sqstypes.QueueAttributeNameApproximateNumberOfMessages
	out, err := awstest.SQSClient(r).GetQueueAttributes(r.Context(), &sqs.GetQueueAttributesInput{
		QueueUrl: &queue, AttributeNames: []sqstypes.QueueAttributeName{name},
	})
	if err != nil {
		r.Fatal(err)
	}
	return out.Attributes[string(name)]
}

// verify downloads the result of a request and checks the whole chain.
func (r *region) verify(n int) {
	r.Helper()
	remote, dir := &client.Client{URL: r.url}, filepath.Join(r.folder, "result")
	result, err := remote.Wait(r.Context(), request(n), nil)
	if err == nil {
		err = remote.Download(r.Context(), result, dir, nil)
	}
	if err == nil {
		_, err = client.Verify(dir, []usign.PublicKey{r.server}, time.Now())
	}
	if err != nil {
		r.Error(err)
	}
}

// print tells where the time of a build goes, beside the wait.
func (m measured) print(wait time.Duration) {
	var whole, made, rest, between []time.Duration
	byWorker := map[string][]build.Record{}
	for _, rec := range m.records {
		took, inMake := rec.EndedAt.Sub(rec.StartedAt), time.Duration(rec.Result.Timings["make"])*time.Millisecond
		whole, made, rest = append(whole, took-wait), append(made, inMake-wait), append(rest, took-inMake)
		byWorker[rec.Worker] = append(byWorker[rec.Worker], rec)
	}
	for _, list := range byWorker {
		slices.SortFunc(list, func(a, b build.Record) int { return a.StartedAt.Compare(b.StartedAt) })
		for i := range list[1:] {
			between = append(between, list[i+1].StartedAt.Sub(list[i].EndedAt))
		}
	}
	printTimes("  claim to end, without the wait", whole)
	printTimes("    of it in make", made)
	printTimes("    of it in the builder", rest)
	printTimes("  end to the next claim", between)
}

// builderProcess is a `sysup worker`.
type builderProcess struct {
	cmd   *exec.Cmd
	begun time.Time
	log   *safeBuffer
	ended chan struct{}
	was   bool // killed
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
	b.was = true
	if err := b.cmd.Process.Kill(); err != nil {
		r.Errorf("kill a builder: %v", err)
	}
	line("  one builder is killed", "process %d", b.cmd.Process.Pid)
}

// stop asks the process to end, and ends it if it does not.
func (b *builderProcess) stop(r *region) {
	_ = b.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-b.ended:
	case <-time.After(20 * time.Second):
		_ = b.cmd.Process.Kill()
		<-b.ended
	}
	if !b.was && !b.cmd.ProcessState.Success() {
		r.Errorf("a builder ended with %v", b.cmd.ProcessState)
		b.was = true
	}
}

var namePattern = regexp.MustCompile(`msg="sysup works" name=(\S+)`)

// print tells of a process what it took until its first claim, and what it
// used.
func (b *builderProcess) print(records []build.Record) {
	name := "none"
	if match := namePattern.FindStringSubmatch(b.log.String()); match != nil {
		name = match[1]
	}
	builds, first := 0, time.Time{}
	for _, rec := range records {
		if strings.HasPrefix(rec.Worker, name+"-") {
			builds++
			if first.IsZero() || rec.StartedAt.Before(first) {
				first = rec.StartedAt
			}
		}
	}
	if b.was || builds == 0 {
		line("  a builder", "%d builds", builds)
		return
	}
	own, children := processorTimes(b.cmd.Process.Pid)
	each := time.Duration(builds)
	line("  a builder", "%d builds, %.2f s from its start to its first claim, VmHWM %.1f MB, processor %d ms a build + %d ms in make",
		builds, first.Sub(b.begun).Seconds(), peak(b.cmd.Process.Pid), (own / each).Milliseconds(), (children / each).Milliseconds())
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

// processorTimes are what a process has spent, and those that it waited for.
func processorTimes(pid int) (own, children time.Duration) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(after)
	if len(fields) < 15 {
		return 0, 0
	}
	return ticks(fields[11:13]), ticks(fields[13:15])
}

// ticks adds times of the kernel, which are in hundredths of a second.
func ticks(fields []string) (sum time.Duration) {
	for _, field := range fields {
		n, _ := strconv.ParseInt(field, 10, 64)
		sum += time.Duration(n) * (time.Second / 100)
	}
	return sum
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
