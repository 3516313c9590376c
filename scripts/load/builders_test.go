package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
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
	wait     = flag.Duration("wait", 2*time.Second, "what the ImageBuilder waits")
	poll     = flag.Duration("poll", 10*time.Second, "pause between two polls of a client")
	killing  = flag.Bool("kill", false, "kill one of the builders half way")
)

const (
	functions   = 4  // API functions at once
	posting     = 16 // clients that send at once
	housekeeper = 5 * time.Minute
	// longPoll is how long a queue may go on with the poll of a builder that has
	// left. It would hide a message for a minute.
	longPoll = 21 * time.Second
)

// BenchmarkBuilders has one builder make some images, then several of them many
// more. Each request differs; each has to be built once.
func BenchmarkBuilders(b *testing.B) {
	r := newRegion(b, *wait, functions)
	r.keepHouseOften()
	fmt.Println()
	one := r.measure(plan{requests: *alone, builders: 1, poll: *poll, wait: *wait})
	time.Sleep(longPoll)
	all := r.measure(plan{first: *alone, requests: *requests, builders: *crew, kill: *killing, poll: *poll, wait: *wait})
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
	m := r.measure(plan{requests: 12, builders: 2, poll: time.Second, wait: 100 * time.Millisecond})
	r.check(m.records, 0)
}

func line(what, format string, args ...any) {
	fmt.Printf("%-34s %s\n", what, fmt.Sprintf(format, args...))
}

// keepHouseOften keeps house until the benchmark ends.
func (r *region) keepHouseOften() {
	var kept sync.WaitGroup
	r.Cleanup(kept.Wait)
	kept.Go(func() {
		for {
			select {
			case <-r.Context().Done():
				return
			case <-time.After(housekeeper):
				if err := r.keepHouse(); err != nil {
					r.Errorf("the housekeeper: %v", err)
				}
			}
		}
	})
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
	kill                      bool // one builder, half way
	poll, wait                time.Duration
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
	r.follow(remote, ids, p.poll, half)
	took := time.Since(began)
	busy = busyTime() - busy
	m.records = r.read(ids)
	line(fmt.Sprintf("%d requests, %d builders", p.requests, p.builders), "%.1f builds a minute, %.2f s each, processors busy to %.0f %%",
		m.rate(), m.span().Seconds()*float64(p.builders)/float64(p.requests), 100*busy.Seconds()/took.Seconds()/processors())
	var between []time.Duration
	for _, b := range builders {
		own := b.built(m.records)
		b.print(own)
		b.stop(r)
		for i := range max(1, len(own)) - 1 {
			between = append(between, own[i+1].StartedAt.Sub(own[i].EndedAt))
		}
	}
	m.print(p.wait)
	printTimes("  end to the next claim", between)
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
func (r *region) follow(remote *client.Client, ids []build.ID, poll time.Duration, half func()) {
	r.Helper()
	var done atomic.Int64
	group, ctx := errgroup.WithContext(r.Context())
	for i, id := range ids {
		group.Go(func() error {
			pause := poll / time.Duration(len(ids)) * time.Duration(i) // so that they do not all come at once
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
				pause = poll
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
	line("builds", "%d requests, %d claims, %d objects, messages left %s", len(records), claims, len(keys), r.waiting(r.settings.QueueURL))
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
	var whole, made, rest []time.Duration
	for _, rec := range m.records {
		took, inMake := rec.EndedAt.Sub(rec.StartedAt), time.Duration(rec.Result.Timings["make"])*time.Millisecond
		whole, made, rest = append(whole, took-wait), append(made, inMake-wait), append(rest, took-inMake)
	}
	printTimes("  claim to end, without the wait", whole)
	printTimes("    of it in make", made)
	printTimes("    of it in the builder", rest)
}
