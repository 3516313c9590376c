package imagebuilder

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// pack makes an archive of one folder with these files.
func pack(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for name, text := range files {
		if err := w.WriteHeader(&tar.Header{Name: "top/" + name, Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func source(url string, archive []byte) Source {
	sum := sha256.Sum256(archive)
	return Source{URL: url, Name: "x.tar.gz", SHA256: hex.EncodeToString(sum[:])}
}

func openStore(t *testing.T, budget int64) *Store {
	t.Helper()
	s, err := OpenStore(filepath.Join(t.TempDir(), "store"), Options{Client: http.DefaultClient, Budget: budget, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	s.stall, s.pause = 100*time.Millisecond, time.Millisecond
	t.Cleanup(s.Close)
	return s
}

func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.URL
}

func ignore(build.Stage) {}

// content lists what is in the store's folder.
func content(t *testing.T, s *Store) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(s.dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestStoreRetries(t *testing.T) {
	archive := pack(t, map[string]string{"Makefile": "all:\n"})
	for _, test := range []struct {
		name  string
		fault func(w http.ResponseWriter, r *http.Request)
		says  string
	}{
		{"an error", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }, "answered 503"},
		{"no answer", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "does not answer"},
		{"silence", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "does not answer"},
		{"a stall", func(w http.ResponseWriter, r *http.Request) {
			w.Write(archive[:len(archive)/2])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, "broke after"},
		{"other bytes", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("sorry")) }, "checksum"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var asked atomic.Int64
			good := int64(3) // the try from which on the upstream is well
			url := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if asked.Add(1) < good {
					test.fault(w, r)
					return
				}
				w.Write(archive)
			})
			s := openStore(t, 1<<20)
			tree, err := s.Tree(t.Context(), source(url, archive), ignore)
			if err != nil {
				t.Fatalf("two faults were not endured: %v", err)
			}
			tree.Release()

			asked.Store(0)
			good = 1000
			s = openStore(t, 1<<20)
			_, err = s.Tree(t.Context(), source(url, archive), ignore)
			failure, ok := errors.AsType[*build.Failure](err)
			if !ok || failure.Kind != build.KindUpstream || !strings.Contains(failure.Detail, test.says) || strings.Contains(failure.Detail, url) {
				t.Errorf("it failed as %v", err)
			}
			// net/http tries once more by itself where a kept connection broke.
			if n := asked.Load(); n < fetchTries || n > 2*fetchTries {
				t.Errorf("it was tried %d times", n)
			}
			if left := content(t, s); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

// What the checksum vouches for may still be no ImageBuilder.
func TestStoreBadArchive(t *testing.T) {
	for name, archive := range map[string][]byte{
		"no archive":      []byte("hello"),
		"cut":             pack(t, map[string]string{"a": strings.Repeat("x", 1000)})[:60],
		"a way out of it": pack(t, map[string]string{"../../evil": "x"}),
	} {
		t.Run(name, func(t *testing.T) {
			url := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.Write(archive) })
			s := openStore(t, 1<<20)
			_, err := s.Tree(t.Context(), source(url, archive), ignore)
			failure, ok := errors.AsType[*build.Failure](err)
			if !ok || failure.Kind != build.KindUpstream || strings.Contains(failure.Detail, s.dir) {
				t.Errorf("it failed as %v", err)
			}
			if left := content(t, s); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
	s := openStore(t, 1)
	if _, err := s.Tree(t.Context(), Source{SHA256: "../../etc"}, ignore); err == nil {
		t.Error("a checksum that is a path was taken")
	}
}

// TestStoreShares: a fetch outlives the caller that began it, serves all others,
// and each of them hears what is going on.
func TestStoreShares(t *testing.T) {
	archive := pack(t, map[string]string{"Makefile": "all:\n"})
	var asked atomic.Int64
	arrived, hold := make(chan struct{}), make(chan struct{})
	url := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) == 1 {
			close(arrived)
		}
		<-hold
		w.Write(archive)
	})
	s := openStore(t, 1<<20)
	s.stall = time.Minute
	src := source(url, archive)
	reason := errors.New("the job was lost")
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := make(chan error)
	go func() {
		_, err := s.Tree(ctx, src, ignore)
		gone <- err
	}()
	<-arrived
	cancel(reason)
	if err := <-gone; !errors.Is(err, reason) {
		t.Errorf("the caller that was cancelled got %v", err)
	}
	var wait, waiting sync.WaitGroup
	waiting.Add(5)
	for range 5 {
		wait.Go(func() {
			var stages []build.Stage
			tree, err := s.Tree(t.Context(), src, func(stage build.Stage) {
				if stages = append(stages, stage); stage == build.StageDownload {
					waiting.Done()
				}
			})
			if err != nil {
				t.Errorf("a caller that waited got %v", err)
				return
			}
			defer tree.Release()
			if _, err := os.Stat(filepath.Join(tree.Path, "Makefile")); err != nil {
				t.Error(err)
			}
			if !slices.Equal(stages, []build.Stage{build.StageDownload, build.StageUnpack}) {
				t.Errorf("it heard %q", stages)
			}
		})
	}
	waiting.Wait()
	close(hold)
	wait.Wait()
	if n := asked.Load(); n != 1 {
		t.Errorf("the archive was fetched %d times", n)
	}
	if len(s.used) != 0 {
		t.Errorf("held although released: %v", s.used)
	}
}

// TestStoreClose: nothing of a fetch is left when the store is closed.
func TestStoreClose(t *testing.T) {
	archive := pack(t, map[string]string{"Makefile": "all:\n"})
	arrived := make(chan struct{}, 1)
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Write(archive[:10])
		w.(http.Flusher).Flush()
		arrived <- struct{}{}
		<-r.Context().Done()
	})
	s := openStore(t, 1<<20)
	s.stall = time.Minute
	ended := make(chan error)
	go func() {
		_, err := s.Tree(t.Context(), source(url, archive), ignore)
		ended <- err
	}()
	<-arrived
	s.Close()
	if left := content(t, s); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if err := <-ended; err == nil {
		t.Error("a fetch that was ended gave a tree")
	}
}

// TestStoreTrim: beyond the budget the tree used longest ago goes, but never one
// that is in use.
func TestStoreTrim(t *testing.T) {
	archives := map[string][]byte{}
	url := serve(t, func(w http.ResponseWriter, r *http.Request) { w.Write(archives[r.URL.Path]) })
	s := openStore(t, 75_000) // room for two
	get := func(name string) *Tree {
		t.Helper()
		path := "/" + name
		if archives[path] == nil {
			archives[path] = pack(t, map[string]string{"Makefile": strings.Repeat(name, 30_000)})
		}
		tree, err := s.Tree(t.Context(), source(url+path, archives[path]), ignore)
		if err != nil {
			t.Fatal(err)
		}
		return tree
	}
	there := func(tree *Tree) bool { _, err := os.Stat(tree.Path); return err == nil }
	old := func(tree *Tree, age time.Duration) {
		when := time.Now().Add(-age)
		if err := os.Chtimes(filepath.Dir(tree.Path), when, when); err != nil {
			t.Fatal(err)
		}
	}
	a := get("a")
	old(a, 3*time.Hour)
	b := get("b")
	b.Release()
	old(b, 2*time.Hour)
	c := get("c") // a is older, but in use
	if !there(a) || there(b) || !there(c) {
		t.Fatalf("a %t, b %t, c %t; b had to go", there(a), there(b), there(c))
	}
	a.Release()
	c.Release()
	old(c, time.Hour)
	get("a").Release() // used again: c is the oldest now
	d := get("d")
	if !there(a) || there(c) || !there(d) {
		t.Errorf("a %t, c %t, d %t; c had to go", there(a), there(c), there(d))
	}
	if left, _ := filepath.Glob(filepath.Join(s.dir, quarantine+"*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestOpenStore: what a killed process left half done goes, the rest stays.
func TestOpenStore(t *testing.T) {
	dir := t.TempDir()
	whole := filepath.Join(dir, strings.Repeat("a", 64), "tree")
	for _, folder := range []string{filepath.Join(dir, quarantine+"123", "tree", "x"), whole} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s, err := OpenStore(dir, Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if left := content(t, s); !slices.Equal(left, []string{filepath.Dir(whole)}) {
		t.Errorf("there is %q", left)
	}
}
