package api

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
	"github.com/attended-sysupgrade/sysup/shared/catalog/catalogtest"
	"github.com/attended-sysupgrade/sysup/shared/dir"
)

// The two requests that make up nearly all traffic, without the network and
// over one record in memory.

func benchmarkRig(b *testing.B) (http.Handler, string, string) {
	rig := newRig(b)
	rig.config.Log = slog.New(slog.DiscardHandler)
	h := rig.handler()
	var packages []string
	for i := range 30 {
		packages = append(packages, fmt.Sprintf(`"%s"`, knownPackages[i%len(knownPackages)]))
	}
	body := with(`"diff_packages":true,"client":"luci/25.035.62793~4f7a183","packages":[` + strings.Join(packages, ",") + `]`)
	if w := call(h, "POST", "/api/v1/build", body); w.Code != 202 {
		b.Fatal(w.Code, w.Body)
	}
	rec := rig.finish("squashfs-combined", "squashfs-combined-efi", "ext4-combined")
	rig.config.Service.Records = constant{rig.records, rec}
	return h, string(rec.ID), body
}

// discard is a ResponseWriter without a client.
type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(status int)      { d.status = status }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }

func BenchmarkPoll(b *testing.B) {
	h, id, _ := benchmarkRig(b)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			w := &discard{header: http.Header{}}
			h.ServeHTTP(w, httptest.NewRequest("GET", "/api/v1/build/"+id, nil))
			if w.status != 200 {
				b.Fatal(w.status)
			}
		}
	})
}

func BenchmarkIdenticalPost(b *testing.B) {
	h, _, body := benchmarkRig(b)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			w := &discard{header: http.Header{}}
			h.ServeHTTP(w, httptest.NewRequest("POST", "/api/v1/build", strings.NewReader(body)))
			if w.status != 200 {
				b.Fatal(w.status)
			}
		}
	})
}

func BenchmarkOverview(b *testing.B) {
	h, _, _ := benchmarkRig(b)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			w := &discard{header: http.Header{}}
			h.ServeHTTP(w, httptest.NewRequest("GET", "/json/v1/overview.json", nil))
			if w.status != 200 {
				b.Fatal(w.status)
			}
		}
	})
}

// constant records hold one record, as a driver's cache does.
type constant struct {
	build.Records
	rec build.Record
}

func (c constant) Get(ctx context.Context, id build.ID) (build.Record, error) {
	if id != c.rec.ID {
		return build.Record{}, build.ErrNotFound
	}
	return c.rec, nil
}

// BenchmarkPublish publishes a branch from a warm cache into a folder: 60
// targets with 5 to 300 profiles, 9,000 packages for each architecture. First
// all of it, then comparing it with what is there, then without any change.
func BenchmarkPublish(b *testing.B) {
	up, err := catalogtest.Big(60, 9000)
	if err != nil {
		b.Fatal(err)
	}
	cache := openCatalog(b, catalog.Options{
		Upstream: "https://upstream.test", Keys: up.Keys(), Client: up.Client(), Log: slog.New(slog.DiscardHandler), Dir: b.TempDir(),
	})
	profiles := map[string]catalogtest.Profile{}
	image := map[string]string{"name": "openwrt-24.10.5-sysupgrade.bin", "type": "sysupgrade", "filesystem": "squashfs", "sha256": strings.Repeat("0a", 32)}
	for i := range 60 {
		for n := range 5 {
			profiles[fmt.Sprintf("vendor_device-%d-%d", i, n)] = catalogtest.Profile{
				Packages: []string{"kmod-module-1", "-kmod-module-2"}, Devices: []string{fmt.Sprintf("vendor,device-%d-%d", i, n)},
				Titles: []map[string]string{{"vendor": "Vendor", "model": fmt.Sprint("Device ", i, n)}}, Images: []map[string]string{image, image, image},
			}
		}
		up.Target("24.10.5", catalogtest.Target{
			Name: fmt.Sprintf("board%d/generic", i), Arch: fmt.Sprintf("arch_%d", i), Revision: "r29233-443ec4032a", Profiles: profiles,
			Packages: []catalogtest.Package{{Name: "base-files", Version: "1"}},
		})
	}
	if err := cache.Refresh(b.Context()); err != nil {
		b.Fatal(err)
	}
	for i := range 60 {
		for _, p := range []catalog.Part{{Version: "24.10.5", Target: fmt.Sprintf("board%d/generic", i)}, {Version: "24.10.5", Arch: fmt.Sprintf("arch_%d", i)}} {
			if _, err := cache.Stamp(b.Context(), p); err != nil {
				b.Fatal(err)
			}
		}
	}
	folder, err := dir.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		forget []string // before each round
	}{
		{"first", []string{staticPrefix, publishedKey}}, {"compared", []string{publishedKey}}, {"unchanged", nil},
	} {
		b.Run(c.name, func(b *testing.B) {
			objects := &countingObjects{Objects: folder}
			for b.Loop() {
				b.StopTimer()
				objects.puts = 0
				for _, prefix := range c.forget {
					for info := range folder.List(b.Context(), prefix) {
						folder.Delete(b.Context(), info.Key)
					}
				}
				b.StartTimer()
				if err := Publish(b.Context(), Config{Catalog: cache, Objects: objects}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(objects.puts), "puts/op")
		})
	}
}

// BenchmarkListing answers a profile from its object, as serve does.
func BenchmarkListing(b *testing.B) {
	s := newStall(b, false)
	folder, err := dir.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	s.config.Objects = folder
	s.restart()
	s.get(x86Folder+"generic.json", 200)
	for b.Loop() {
		s.get(x86Folder+"generic.json", 200)
	}
}
