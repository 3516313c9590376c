package catalog

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog/catalogtest"
	"github.com/attended-sysupgrade/sysup/shared/dir"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

const (
	bigTargets  = 60
	bigPackages = 9000
)

func big(t testing.TB, targets, packages int) *catalogtest.Upstream {
	t.Helper()
	u, err := catalogtest.Big(targets, packages)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func asJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Whatever was asked for, little of it stays in memory.
func TestLittleInMemory(t *testing.T) {
	const many = targetsInMemory + feedsInMemory
	w := fetched(t, big(t, many, 700))
	for i := range many {
		w.device(t, "24.10.5", fmt.Sprintf("board%d/generic", i), "device-1", "")
	}
	if n := len(w.targets.keys()); n != targetsInMemory {
		t.Errorf("%d targets in memory, want %d", n, targetsInMemory)
	}
	if n := len(w.feeds.keys()); n != feedsInMemory {
		t.Errorf("%d architectures' feeds in memory, want %d", n, feedsInMemory)
	}
}

// Names of the environment of the process whose memory is measured.
const (
	childUpstream = "SYSUP_TEST_CATALOG_UPSTREAM"
	childKey      = "SYSUP_TEST_CATALOG_KEY"
	childDir      = "SYSUP_TEST_CATALOG_DIR"
	childStore    = "SYSUP_TEST_CATALOG_STORE" // in place of the folder
)

func TestMain(m *testing.M) {
	if os.Getenv(childUpstream) == "" {
		os.Exit(m.Run())
	}
	if err := child(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// BenchmarkMemory starts a process with nothing but a catalogue of a real
// branch's size, has it fetch and look at everything, and reports its memory.
func BenchmarkMemory(b *testing.B) {
	u := big(b, bigTargets, bigPackages)
	server := httptest.NewServer(u)
	defer server.Close()
	b.Run("folder", func(b *testing.B) { benchmarkMemory(b, u, server.URL, childDir, b.TempDir()) })
	// Where all that is looked at comes from the store.
	folder := b.TempDir()
	fill(b, u, server.URL, folder)
	b.Run("follower", func(b *testing.B) { benchmarkMemory(b, u, server.URL, childStore, folder) })
	b.Run("cold", func(b *testing.B) { benchmarkCold(b, u, server.URL, folder) })
}

// fill has all of the upstream stored.
func fill(b *testing.B, u *catalogtest.Upstream, upstream, folder string) {
	b.Helper()
	objects, err := dir.Open(folder)
	if err != nil {
		b.Fatal(err)
	}
	defer objects.Close()
	c, err := New(Options{Upstream: upstream, Keys: u.Keys(), Objects: objects})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	if err := errors.Join(c.Refresh(b.Context()), lookAtAll(b.Context(), c), c.Refresh(b.Context())); err != nil {
		b.Fatal(err)
	}
}

// benchmarkCold is the first answer of a process that follows.
func benchmarkCold(b *testing.B, u *catalogtest.Upstream, upstream, folder string) {
	objects, err := dir.Open(folder)
	if err != nil {
		b.Fatal(err)
	}
	defer objects.Close()
	for b.Loop() {
		c, err := New(Options{Upstream: upstream, Keys: u.Keys(), Objects: objects, Follow: true})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := c.Device(b.Context(), "24.10.5", "board7/generic", "vendor_device-7", ""); err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}

func benchmarkMemory(b *testing.B, u *catalogtest.Upstream, upstream, cache, folder string) {
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		cmd := exec.CommandContext(b.Context(), exe)
		cmd.Env = append(os.Environ(), childUpstream+"="+upstream, childKey+"="+string(u.Keys()[0].Marshal()), cache+"="+folder)
		out, err := cmd.CombinedOutput()
		if err != nil {
			b.Fatalf("%v\n%s", err, out)
		}
		for _, field := range []string{"VmRSS", "VmHWM"} {
			b.ReportMetric(figure(b, out, field), "kB-"+field)
		}
	}
}

// figure reads a line "VmRSS:    1234 kB".
func figure(b *testing.B, status []byte, field string) float64 {
	b.Helper()
	for lines := bufio.NewScanner(bytes.NewReader(status)); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), field+":"); ok {
			kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			if err != nil {
				b.Fatal(err)
			}
			return kb
		}
	}
	b.Fatalf("the process tells no %s: this benchmark needs Linux", field)
	return 0
}

// child is the other process.
func child() error {
	key, err := usign.ParsePublicKey([]byte(os.Getenv(childKey)))
	if err != nil {
		return err
	}
	o := Options{Upstream: os.Getenv(childUpstream), Keys: []usign.PublicKey{key}, Dir: os.Getenv(childDir)}
	if folder := os.Getenv(childStore); folder != "" {
		objects, err := dir.Open(folder)
		if err != nil {
			return err
		}
		defer objects.Close()
		o.Objects, o.Follow = objects, true
	}
	c, err := New(o)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx := context.Background()
	if err := errors.Join(c.Refresh(ctx), lookAtAll(ctx, c)); err != nil {
		return err
	}
	debug.FreeOSMemory() // an idle process does so by itself, within minutes
	time.Sleep(100 * time.Millisecond)
	status, err := os.ReadFile("/proc/self/status")
	os.Stdout.Write(status)
	return err
}

func lookAtAll(ctx context.Context, c *Catalog) error {
	for range 3 {
		for i := range bigTargets {
			d, err := c.Device(ctx, "24.10.5", fmt.Sprintf("board%d/generic", i), "vendor_device-7", "")
			if err != nil {
				return err
			}
			if err := d.CheckPackages([]string{catalogtest.PackageName(i * 100), "kmod-module-599"}); err != nil {
				return err
			}
		}
	}
	return nil
}

func BenchmarkDevice(b *testing.B) {
	w := fetched(b, big(b, 1, bigPackages))
	for b.Loop() {
		if _, err := w.Device(b.Context(), "24.10.5", "board0/generic", "vendor,device-7", ""); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDeviceOfFollower(b *testing.B) {
	s := newSite(b, big(b, 1, bigPackages))
	s.leader().refresh(b)
	w := s.follower()
	for b.Loop() {
		if _, err := w.Device(b.Context(), "24.10.5", "board0/generic", "vendor,device-7", ""); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkResolve is the validation of a request for 20 packages beside the
// default ones: all that an image would hold is found and held together.
func BenchmarkResolve(b *testing.B) {
	for _, version := range []string{"24.10.5", "25.12.0"} {
		u, err := catalogtest.BigBranches(1, bigPackages, version)
		if err != nil {
			b.Fatal(err)
		}
		d := fetched(b, u).device(b, version, "board0/generic", "vendor,device-7", "")
		var plan build.Plan
		for i := range 20 {
			plan.Add = append(plan.Add, catalogtest.PackageName(i*419))
		}
		b.Run(version, func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				begin := time.Now()
				s, err := d.Resolve(&plan)
				if err != nil || !s.Sure || len(s.Packages) < 100 {
					b.Fatalf("%d packages, sure %v, %v", len(s.Packages), s.Sure, err)
				}
				took = append(took, time.Since(begin))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-median")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs-p99")
		})
	}
}

// BenchmarkCompile has a leader store all of four branches, from an upstream on
// the same machine.
func BenchmarkCompile(b *testing.B) {
	versions := []string{"25.12.0", "24.10.5", "23.05.6", "22.03.7"}
	u, err := catalogtest.BigBranches(bigTargets, bigPackages, versions...)
	if err != nil {
		b.Fatal(err)
	}
	before := cpuTime(b)
	for b.Loop() {
		objects, err := dir.Open(b.TempDir())
		if err != nil {
			b.Fatal(err)
		}
		c, err := New(Options{Upstream: "https://upstream.test", Client: u.Client(), Keys: u.Keys(), APKKeys: u.APKKeys(), Objects: objects})
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Refresh(b.Context()); err != nil {
			b.Fatal(err)
		}
		for _, version := range versions {
			for i := range bigTargets {
				if _, err := c.Device(b.Context(), version, fmt.Sprintf("board%d/generic", i), "vendor_device-7", ""); err != nil {
					b.Fatal(err)
				}
			}
		}
		if err := errors.Join(c.Close(), objects.Close()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric((cpuTime(b)-before).Seconds()/float64(b.N), "cpu-s")
	b.ReportMetric(float64(len(versions)*bigTargets*bigPackages*b.N)/b.Elapsed().Seconds(), "packages/s")
}

// cpuTime is what this process has used of all cores: other work on the machine
// does not count.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func BenchmarkUnknownPackage(b *testing.B) {
	w := fetched(b, big(b, 1, bigPackages))
	d := w.device(b, "24.10.5", "board0/generic", "vendor,device-7", "")
	for b.Loop() {
		if d.CheckPackages([]string{"luci-app-wireguarrd"}) == nil {
			b.Fatal("found")
		}
	}
}

// BenchmarkLoad is from disk into memory, as after a restart or for a target
// rarely asked for.
func BenchmarkLoad(b *testing.B) {
	w := fetched(b, big(b, 1, bigPackages))
	w.device(b, "24.10.5", "board0/generic", "vendor,device-7", "")
	b.Run("feeds", func(b *testing.B) {
		for b.Loop() {
			if _, err := w.loadFeeds(w.disk, "24.10.5/arch_0"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("target", func(b *testing.B) {
		for b.Loop() {
			if _, err := w.loadTarget(w.disk, "24.10.5/board0/generic"); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkFetch is the first use of a target, without a network between.
func BenchmarkFetch(b *testing.B) {
	u := big(b, 1, bigPackages)
	for b.Loop() {
		w := fetched(b, u)
		w.device(b, "24.10.5", "board0/generic", "vendor,device-7", "")
	}
}
