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
