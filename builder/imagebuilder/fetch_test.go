package imagebuilder

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
)

// shelf is an archive store that can be made to misbehave.
type shelf struct {
	build.Objects
	open func(context.Context) (io.ReadCloser, build.ObjectInfo, error)
	put  func(context.Context) error
}

func (s *shelf) Open(ctx context.Context, key string) (io.ReadCloser, build.ObjectInfo, error) {
	if s.open != nil {
		return s.open(ctx)
	}
	return s.Objects.Open(ctx, key)
}

func (s *shelf) Put(ctx context.Context, key string, r io.Reader, policy build.Policy) error {
	if s.put != nil {
		return s.put(ctx)
	}
	return s.Objects.Put(ctx, key, r, policy)
}

// archives is a store of trees with a store of archives behind it.
type archives struct {
	shelf    *shelf
	memory   *buildtest.MemoryObjects
	upstream atomic.Int64 // how often it was asked
	src      Source
	archive  []byte
}

func newArchives(t *testing.T) *archives {
	a := &archives{memory: buildtest.NewObjects(t), archive: pack(t, map[string]string{"Makefile": "all:\n"})}
	a.shelf = &shelf{Objects: a.memory}
	url := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		a.upstream.Add(1)
		_, _ = w.Write(a.archive)
	})
	a.src = source(url, a.archive)
	a.src.Key = "imagebuilder/24.10.0/x86/64/" + a.src.Name
	return a
}

// fresh is a store of trees with an empty disk, as of a task that has just
// started.
func (a *archives) fresh(t *testing.T) *Store {
	s, err := OpenStore(filepath.Join(t.TempDir(), "store"), Options{
		Client: http.DefaultClient, Budget: 1 << 20, Archives: a.shelf, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.stall, s.pause = 100*time.Millisecond, time.Millisecond
	t.Cleanup(s.Close)
	return s
}

func (a *archives) tree(t *testing.T, s *Store) {
	t.Helper()
	tree, err := s.Tree(t.Context(), a.src, ignore)
	if err != nil {
		t.Fatal(err)
	}
	tree.Release()
}

// store puts bytes in the place of the archive.
func (a *archives) store(t *testing.T, text []byte) {
	t.Helper()
	if err := a.memory.Put(t.Context(), a.src.Key, bytes.NewReader(text), keptPolicy); err != nil {
		t.Fatal(err)
	}
}

// stored waits until what lies in the store is the archive.
func (a *archives) stored(t *testing.T) {
	t.Helper()
	for range 200 {
		if r, _, err := a.memory.Open(t.Context(), a.src.Key); err == nil {
			text, _ := io.ReadAll(r)
			r.Close()
			if bytes.Equal(text, a.archive) {
				return
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the archive is not stored")
}

// TestArchives: what one machine fetched from upstream, the next finds in the
// store.
func TestArchives(t *testing.T) {
	a := newArchives(t)
	a.tree(t, a.fresh(t))
	a.stored(t)
	a.tree(t, a.fresh(t))
	if n := a.upstream.Load(); n != 1 {
		t.Errorf("upstream was asked %d times by two machines", n)
	}
	a.src.Key = ""
	a.tree(t, a.fresh(t))
	if keys := a.memory.Keys(); len(keys) != 1 || a.upstream.Load() != 2 {
		t.Errorf("an archive without a key: %q stored, upstream asked %d times", keys, a.upstream.Load())
	}
}

// TestArchivesFaults: whatever the store does, the build has its ImageBuilder
// from upstream, and wrong bytes are replaced.
func TestArchivesFaults(t *testing.T) {
	body := func(r io.Reader, size int) func(*archives) {
		return func(a *archives) {
			a.shelf.open = func(context.Context) (io.ReadCloser, build.ObjectInfo, error) {
				return io.NopCloser(r), build.ObjectInfo{Size: int64(size)}, nil
			}
		}
	}
	for name, test := range map[string]struct {
		fault func(*archives)
		wrong bool // what is stored, not only the way to it
	}{
		"missing":     {func(*archives) {}, false},
		"other bytes": {func(a *archives) { a.store(t, []byte("sorry")) }, true},
		"cut":         {func(a *archives) { a.store(t, a.archive[:len(a.archive)/2]) }, true},
		"empty":       {func(a *archives) { a.store(t, nil) }, true},
		"refused": {func(a *archives) {
			a.shelf.open = func(context.Context) (io.ReadCloser, build.ObjectInfo, error) {
				return nil, build.ObjectInfo{}, errors.New("access denied")
			}
		}, false},
		"silent": {func(a *archives) {
			a.shelf.open = func(ctx context.Context) (io.ReadCloser, build.ObjectInfo, error) {
				<-ctx.Done()
				return nil, build.ObjectInfo{}, ctx.Err()
			}
		}, false},
		"stalled": {func(a *archives) {
			a.store(t, a.archive)
			a.shelf.open = func(ctx context.Context) (io.ReadCloser, build.ObjectInfo, error) {
				r, w := io.Pipe()
				go func() {
					_, _ = w.Write(a.archive[:10])
					<-ctx.Done()
					w.CloseWithError(ctx.Err())
				}()
				return r, build.ObjectInfo{Size: int64(len(a.archive))}, nil
			}
		}, false},
		"broken off": {body(strings.NewReader("half"), 8), false},
	} {
		t.Run(name, func(t *testing.T) {
			a := newArchives(t)
			test.fault(a)
			a.tree(t, a.fresh(t))
			if n := a.upstream.Load(); n != 1 {
				t.Errorf("upstream was asked %d times", n)
			}
			if a.stored(t); !test.wrong {
				return
			}
			a.tree(t, a.fresh(t))
			if n := a.upstream.Load(); n != 1 {
				t.Errorf("wrong bytes were not replaced: upstream was asked %d times", n)
			}
		})
	}
}

// TestArchivesCutTransfer: a transfer that breaks says nothing about what is
// stored, so that stays.
func TestArchivesCutTransfer(t *testing.T) {
	a := newArchives(t)
	a.store(t, a.archive)
	a.shelf.open = func(context.Context) (io.ReadCloser, build.ObjectInfo, error) {
		return io.NopCloser(bytes.NewReader(a.archive[:10])), build.ObjectInfo{Size: int64(len(a.archive))}, nil
	}
	a.shelf.put = func(context.Context) error { return errors.New("access denied") }
	a.tree(t, a.fresh(t))
	if !slices.Equal(a.memory.Keys(), []string{a.src.Key}) {
		t.Error("a good archive was removed because its transfer broke")
	}
}

// TestArchivesWrong: what is wrong is removed even if nothing takes its place.
func TestArchivesWrong(t *testing.T) {
	a := newArchives(t)
	a.store(t, []byte("sorry"))
	a.shelf.put = func(context.Context) error { return errors.New("access denied") }
	a.tree(t, a.fresh(t))
	if keys := a.memory.Keys(); len(keys) > 0 {
		t.Errorf("%q is still stored", keys)
	}
}

// TestArchivesStoreFails: a store that takes nothing, or that takes for ever,
// is nothing to the build, and does not hold the end of the process up.
func TestArchivesStoreFails(t *testing.T) {
	for name, put := range map[string]func(context.Context) error{
		"full":    func(context.Context) error { return build.ErrFull },
		"stalled": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		t.Run(name, func(t *testing.T) {
			a := newArchives(t)
			a.shelf.put = put
			s := a.fresh(t)
			a.tree(t, s)
			begin := time.Now()
			s.Close()
			if took := time.Since(begin); took > 2*time.Second {
				t.Errorf("the end took %v", took)
			}
			if left := content(t, s); len(left) != 1 {
				t.Errorf("in the store's folder: %q", left)
			}
		})
	}
}

// TestArchivesAtOnce: of many archives at once only a few are stored.
func TestArchivesAtOnce(t *testing.T) {
	a := newArchives(t)
	var begun atomic.Int64
	a.shelf.put = func(ctx context.Context) error {
		begun.Add(1)
		<-ctx.Done()
		return ctx.Err()
	}
	s := a.fresh(t)
	for i := range keepsAtOnce + 3 {
		a.archive = pack(t, map[string]string{"Makefile": strings.Repeat("x", i)})
		url := a.src.URL
		a.src = source(url, a.archive)
		a.src.Key = "imagebuilder/24.10.0/x86/64/" + a.src.SHA256
		a.tree(t, s)
	}
	s.Close()
	if n := begun.Load(); n != keepsAtOnce {
		t.Errorf("%d archives were stored at once, want %d", n, keepsAtOnce)
	}
}
