package builder_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/scripts/instant"
	"github.com/attended-sysupgrade/sysup/shared/build"
)

// only lets the fault act on files whose path has the text.
func only(text string, fault http.HandlerFunc) func(http.Handler) http.Handler {
	return func(files http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, text) {
				fault(w, r)
				return
			}
			files.ServeHTTP(w, r)
		})
	}
}

func hangUp(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// altered serves the file with its bytes changed.
func altered(folder string, change func([]byte) []byte, length func(int) int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		text, err := os.ReadFile(filepath.Join(folder, filepath.FromSlash(r.URL.Path)))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(length(len(text))))
		w.Write(change(text))
	}
}

// TestUpstream: an upstream that is down, cuts off or lies makes the build wait;
// nothing of what it sent is unpacked or seen, and once it is mended the build
// goes on by itself.
func TestUpstream(t *testing.T) {
	t.Parallel()
	whole := func(n int) int { return n }
	half := func(b []byte) []byte { return b[:len(b)/2] }
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	for _, test := range []struct {
		name  string
		fault func(folder string) func(http.Handler) http.Handler
		says  string
	}{
		{"answers with an error", func(string) func(http.Handler) http.Handler {
			return only("imagebuilder", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
		}, "answered 502"},
		{"is down", func(string) func(http.Handler) http.Handler { return only("imagebuilder", hangUp) }, "does not answer"},
		{"cuts off", func(folder string) func(http.Handler) http.Handler {
			return only("imagebuilder", altered(folder, half, whole))
		}, "broke after"},
		{"sends a part for the whole", func(folder string) func(http.Handler) http.Handler {
			return only("imagebuilder", altered(folder, half, func(n int) int { return n / 2 }))
		}, "checksum is not the signed one"},
		{"sends other bytes", func(folder string) func(http.Handler) http.Handler {
			return only("imagebuilder", altered(folder, flip, whole))
		}, "checksum is not the signed one"},
		{"has sums with a bad signature", func(folder string) func(http.Handler) http.Handler {
			return only("sha256sums.sig", altered(folder, func(b []byte) []byte { b[len(b)-10] ^= 1; return b }, whole))
		}, "cannot be verified"},
		{"has sums that were changed", func(folder string) func(http.Handler) http.Handler {
			return only("sha256sums", func(w http.ResponseWriter, r *http.Request) {
				change := whole
				if strings.HasSuffix(r.URL.Path, ".sig") {
					altered(folder, func(b []byte) []byte { return b }, change)(w, r)
					return
				}
				altered(folder, flip, change)(w, r)
			})
		}, "cannot be verified"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, setting{workers: -1})
			id := s.submit(request())
			s.web.misbehave(test.fault(s.up.Dir))
			if strings.Contains(test.name, "sums") {
				s.agedCatalog()
			}
			s.start()
			rec := s.until(id, "an attempt has failed", func(rec build.Record) bool { return rec.Failure != nil })
			s.failed(rec, build.KindUpstream, test.says)
			if rec.State != build.Queued || strings.Contains(rec.Failure.Detail, s.folder) {
				t.Errorf("the build is %s: %s", rec.State, rec.Failure.Detail)
			}
			if seen, _ := filepath.Glob(filepath.Join(s.folder, "imagebuilder", "*")); len(seen) > 0 {
				t.Errorf("something was unpacked: %q", seen)
			}
			s.web.misbehave(nil)
			rec = s.wait(id)
			s.done(rec)
			if rec.Attempts != 2 {
				t.Errorf("it took %d attempts", rec.Attempts)
			}
			s.clean()
		})
	}
}

// TestSharedFetch: many builds of one version at once fetch its ImageBuilder
// once, and each tells that it waits for it.
func TestSharedFetch(t *testing.T) {
	t.Parallel()
	s := newSite(t, setting{workers: 3})
	hold := make(chan struct{})
	s.web.misbehave(func(files http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "imagebuilder") {
				<-hold
			}
			files.ServeHTTP(w, r)
		})
	})
	var ids []build.ID
	for _, name := range []string{"nano", "htop", "vim"} {
		ids = append(ids, s.submit(request(name)))
	}
	for _, id := range ids {
		s.until(id, "it waits for the ImageBuilder", func(rec build.Record) bool { return rec.Stage == build.StageDownload })
	}
	close(hold)
	for _, id := range ids {
		s.done(s.wait(id))
	}
	if n := s.web.fetched(); n != 1 {
		t.Errorf("the ImageBuilder was fetched %d times", n)
	}
}

// TestTrim: trees that are not used give way; what is used stays.
func TestTrim(t *testing.T) {
	t.Parallel()
	var during int
	var s *site
	s = newSite(t, setting{budget: 1, workers: 2, upstream: instant.Options{Versions: []string{"23.05.5", "24.10.0"}},
		hook: func(step build.Step, after bool) {
			if step == build.StepCollect && after {
				trees, _ := filepath.Glob(filepath.Join(s.folder, "imagebuilder", "*", "tree"))
				during = max(during, len(trees))
			}
		}})
	for _, packages := range [][]string{nil, {"htop"}} {
		for _, version := range []string{"23.05.5", "24.10.0"} {
			s.done(s.build(build.Request{Version: version, Target: "x86/64", Profile: "generic", Packages: packages}))
		}
	}
	trees, _ := filepath.Glob(filepath.Join(s.folder, "imagebuilder", "*"))
	if n := s.web.fetched(); n != 4 || len(trees) != 1 || during != 1 {
		t.Errorf("%d fetches, %d trees, at most %d at once; want 4, 1, 1", n, len(trees), during)
	}
}
