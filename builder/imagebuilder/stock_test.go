package imagebuilder

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// TestStockTrees: trees are unpacked ahead as long as none has to go for it.
func TestStockTrees(t *testing.T) {
	packed := map[string][]byte{}
	for _, name := range []string{"a", "b", "c"} {
		packed["/"+name] = pack(t, map[string]string{"Makefile": strings.Repeat(name, 1000)})
	}
	asked := map[string]int{}
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked[r.URL.Path]++
		_, _ = w.Write(packed[r.URL.Path])
	})
	size := func() int64 { // of a tree, as this disk counts
		s := openStore(t, 1<<20)
		if err := s.Stock(t.Context(), source(url+"/a", packed["/a"])); err != nil {
			t.Fatal(err)
		}
		_, total := s.trees()
		return total
	}()
	s := openStore(t, 2*size+size/2)
	for range 2 {
		for _, name := range []string{"/a", "/b"} {
			if err := s.Stock(t.Context(), source(url+name, packed[name])); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if err := s.Stock(t.Context(), source(url+"/c", packed["/c"])); !errors.Is(err, ErrNoRoom) {
		t.Errorf("a third, where two fit: %v", err)
	}
	if trees, _ := s.trees(); len(trees) != 2 || asked["/a"] != 2 || asked["/b"] != 1 || asked["/c"] != 0 {
		t.Errorf("there are %d trees, the upstream was asked %v", len(trees), asked)
	}
	if len(s.used) != 0 {
		t.Errorf("%d trees are held", len(s.used))
	}
}

// TestStockArchives: where machines begin with an empty disk, the archive goes
// to where they look, verified and only once.
func TestStockArchives(t *testing.T) {
	a := newArchives(t)
	s := a.fresh(t)
	for range 2 {
		if err := s.Stock(t.Context(), a.src); err != nil {
			t.Fatal(err)
		}
	}
	r, _, err := a.memory.Open(t.Context(), a.src.Key)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if kept, err := io.ReadAll(r); err != nil || !bytes.Equal(kept, a.archive) || a.upstream.Load() != 1 {
		t.Errorf("%d of %d bytes are stored, the upstream was asked %d times (%v)", len(kept), len(a.archive), a.upstream.Load(), err)
	}
	if left := content(t, s); len(left) != 0 {
		t.Errorf("left behind are %q", left)
	}

	wrong := a.src
	wrong.SHA256, wrong.Key = strings.Repeat("0", 64), a.src.Key+".wrong"
	err = s.Stock(t.Context(), wrong)
	if failure, ok := errors.AsType[*build.Failure](err); !ok || failure.Kind != build.KindUpstream {
		t.Errorf("an archive of another sum: %v", err)
	}
	if _, _, err := a.memory.Open(t.Context(), wrong.Key); !errors.Is(err, build.ErrNotFound) {
		t.Errorf("it was stored (%v)", err)
	}
	full := a.src
	full.Key += ".full"
	a.shelf.put = func(context.Context) error { return build.ErrFull }
	if err := s.Stock(t.Context(), full); !errors.Is(err, build.ErrFull) {
		t.Errorf("a store without space: %v", err)
	}
	if left, err := os.ReadDir(filepath.Clean(s.dir)); err != nil || len(left) != 0 {
		t.Errorf("left behind are %v (%v)", left, err)
	}
}
