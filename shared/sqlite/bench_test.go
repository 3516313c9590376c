package sqlite

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

func benchID(n int64) build.ID { return build.ID(fmt.Sprintf("%064x", n)) }

// benchRecord is of the size of a usual queued record, 2 KB.
func benchRecord(n int64) build.Record {
	plan := build.Plan{Distribution: "OpenWrt", Version: "24.10.5", Revision: "r29233-443ec4032a", Target: "x86/64", Profile: "generic"}
	request := build.Request{Distro: "openwrt", Version: "24.10.5", Target: "x86/64", DiffPackages: true}
	for i := range 60 {
		request.Packages = append(request.Packages, fmt.Sprintf("luci-app-package-%02d", i))
	}
	plan.Add = request.Packages[40:]
	return build.NewRecord(benchID(n), plan, request, n, build.Now())
}

// spread spreads n calls of f over the clients.
func spread(tb testing.TB, n int64, clients int, f func(n int64) error) {
	tb.Helper()
	var next atomic.Int64
	var wait sync.WaitGroup
	for range clients {
		wait.Go(func() {
			for i := next.Add(1); i <= n; i = next.Add(1) {
				if err := f(i); err != nil {
					tb.Error(err)
					return
				}
			}
		})
	}
	wait.Wait()
}

// run measures b.N calls of f spread over the clients.
func run(b *testing.B, clients int, f func(n int64) error) {
	b.Helper()
	b.ResetTimer()
	spread(b, int64(b.N), clients, f)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}

func each(b *testing.B, f func(b *testing.B, clients int)) {
	for _, clients := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) { f(b, clients) })
	}
}

// BenchmarkFsync is what the disk takes for one durable write of 4 KB, the
// floor of an ungrouped commit.
func BenchmarkFsync(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "fsync"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	page := make([]byte, 4096)
	for b.Loop() {
		if _, err := f.Write(page); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkNewBuild is the driver's part of a new POST: a look, a sequence
// number, a record, a message.
func BenchmarkNewBuild(b *testing.B) {
	each(b, func(b *testing.B, clients int) {
		db := open1(b)
		records, queue := db.Records(), db.Queue("builds")
		ctx := context.Background()
		run(b, clients, func(n int64) error {
			if _, err := records.Get(ctx, benchID(n)); err != build.ErrNotFound {
				return fmt.Errorf("want ErrNotFound, got %v", err)
			}
			if _, err := records.Board(ctx, "", build.Change{Add: build.Board{build.BoardDrawn: 1, build.BoardCreated: 1}}); err != nil {
				return err
			}
			if err := records.Create(ctx, benchRecord(n)); err != nil {
				return err
			}
			return queue.Send(ctx, benchID(n), build.ClassInteractive, "")
		})
	})
}

func BenchmarkBoard(b *testing.B) {
	each(b, func(b *testing.B, clients int) {
		records := open1(b).Records()
		run(b, clients, func(int64) error {
			_, err := records.Board(context.Background(), "", build.Change{Add: build.Board{build.BoardDrawn: 1, build.BoardCreated: 1}})
			return err
		})
	})
}

func BenchmarkCreate(b *testing.B) {
	each(b, func(b *testing.B, clients int) {
		records := open1(b).Records()
		run(b, clients, func(n int64) error { return records.Create(context.Background(), benchRecord(n)) })
	})
}

func BenchmarkReplace(b *testing.B) {
	each(b, func(b *testing.B, clients int) {
		records := open1(b).Records()
		ctx := context.Background()
		for n := range int64(clients) {
			if err := records.Create(ctx, benchRecord(n)); err != nil {
				b.Fatal(err)
			}
		}
		free := make(chan int64, clients)
		for n := range int64(clients) {
			free <- n
		}
		run(b, clients, func(int64) error {
			n := <-free
			defer func() { free <- n }()
			rec, err := records.Get(ctx, benchID(n))
			if err != nil {
				return err
			}
			return records.Replace(ctx, rec, rec.Beat(build.StageImage, build.Now()))
		})
	})
}

func BenchmarkGet(b *testing.B) {
	each(b, func(b *testing.B, clients int) {
		records := open1(b).Records()
		ctx := context.Background()
		for n := range int64(100) {
			if err := records.Create(ctx, benchRecord(n)); err != nil {
				b.Fatal(err)
			}
		}
		run(b, clients, func(n int64) error {
			_, err := records.Get(ctx, benchID(n%100))
			return err
		})
	})
}

func BenchmarkSend(b *testing.B) {
	each(b, func(b *testing.B, clients int) {
		queue := open1(b).Queue("builds")
		run(b, clients, func(n int64) error {
			return queue.Send(context.Background(), benchID(n), build.ClassInteractive, "")
		})
	})
}

// BenchmarkReceive receives and deletes one of at least 20,000 messages.
func BenchmarkReceive(b *testing.B) {
	each(b, func(b *testing.B, clients int) {
		queue := open1(b).Queue("builds")
		ctx := context.Background()
		spread(b, int64(20000+b.N), 64, func(n int64) error {
			return queue.Send(ctx, benchID(n), build.ClassInteractive, "")
		})
		run(b, clients, func(int64) error {
			m, err := queue.Receive(ctx)
			if err != nil {
				return err
			}
			return queue.Delete(ctx, m)
		})
	})
}
