package catalog

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestGet(t *testing.T) {
	seen := meta{Form: form, ETag: `"1"`, Modified: "Mon, 02 Jan 2006 15:04:05 GMT", Sum: sumOf([]byte("old"))}
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
		known   bool // we have it already
		body    string
		err     error  // errors.Is
		says    string // or part of its sentence
	}{
		{"new", func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("new")) }, false, "new", nil, ""},
		{"changed", func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("new")) }, true, "new", nil, ""},
		{"unchanged", func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("If-None-Match") != seen.ETag || r.Header.Get("If-Modified-Since") != seen.Modified {
				t.Errorf("not asked on conditions: %v", r.Header)
			}
			w.WriteHeader(http.StatusNotModified)
		}, true, "", errUnchanged, ""},
		{"unchanged, but sent again", func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("old")) }, true, "", errUnchanged, ""},
		{"unchanged, says one whom we did not ask that", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusNotModified)
		}, false, "", nil, "304"},
		{"absent", http.NotFound, true, "", errAbsent, ""},
		{"gone", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusGone) }, true, "", errAbsent, ""},
		{"broken", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusBadGateway) }, true, "", nil, "502"},
		{"truncated", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100")
			w.Write([]byte("a part"))
		}, false, "", nil, "unexpected EOF"},
		{"too long", func(w http.ResponseWriter, r *http.Request) { w.Write([]byte(strings.Repeat("x", 1001))) }, false, "", nil, "1000 bytes"},
		{"just not too long", func(w http.ResponseWriter, r *http.Request) { w.Write([]byte(strings.Repeat("x", 1000))) }, false, strings.Repeat("x", 1000), nil, ""},
		{"a bomb", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(pack(make([]byte, 100_000)))
		}, false, "", nil, "1000 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := httptest.NewServer(c.handler)
			defer server.Close()
			w, err := newWeb(server.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			var old meta
			if c.known {
				old = seen
				old.Source = server.URL + "/file"
			}
			body, m, err := w.get(t.Context(), "file", 1000, old)
			switch {
			case c.err != nil:
				if !errors.Is(err, c.err) {
					t.Errorf("%v, want %v", err, c.err)
				}
			case c.says != "":
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%v, want %q", err, c.says)
				}
			case err != nil || string(body) != c.body || m.Sum != sumOf(body) || m.Source != server.URL+"/file":
				t.Errorf("%q, %+v, %v", body, m, err)
			}
		})
	}
}

func TestChanged(t *testing.T) {
	const tag = `"1"`
	answer := func(status int, etag string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("If-None-Match") != tag {
				t.Errorf("not asked on conditions: %v", r.Header)
			}
			w.Header().Set("ETag", etag)
			w.WriteHeader(status)
		}
	}
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
		sum     string // "" if the upstream did not have it then
		changed bool
		says    string
	}{
		{"unchanged", answer(304, tag), "s", false, ""},
		{"unchanged, but sent again", answer(200, tag), "s", false, ""},
		{"changed", answer(200, `"2"`), "s", true, ""},
		{"changed, says one without tags", answer(200, ""), "s", true, ""},
		{"gone", answer(404, ""), "s", true, ""},
		{"still not there", answer(404, ""), "", false, ""},
		{"there now", answer(200, `"2"`), "", true, ""},
		{"broken", answer(502, ""), "s", false, "502"},
		{"unchanged, though it was not there", answer(304, ""), "", false, "304"},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := httptest.NewServer(c.handler)
			defer server.Close()
			w, err := newWeb(server.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			changed, err := w.changed(t.Context(), meta{Form: form, Source: server.URL + "/file", ETag: tag, Sum: c.sum})
			if changed != c.changed || (err != nil) != (c.says != "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, %v; want %v, %q", changed, err, c.changed, c.says)
			}
		})
	}
}

func TestDisk(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, tmpFolder), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, tmpFolder, "1"), []byte("left by a crash"), 0o644); err != nil {
		t.Fatal(err)
	}
	d, err := openDisk(dir, "https://a.test")
	if err != nil {
		t.Fatal(err)
	}
	defer d.root.Close()
	m := meta{Form: form, Source: "https://a.test/x", ETag: strings.Repeat("e", maxMeta), Sum: "s"}
	if err := d.write("a/b", m, []byte("line\nline")); err != nil {
		t.Fatal(err)
	}
	got, text, err := d.read("a/b")
	if err != nil || text != "line\nline" || got.Source != m.Source || got != d.meta("a/b") {
		t.Errorf("read %+v, %q, %v; its first line is %+v", got, text, err, d.meta("a/b"))
	}
	left, err := os.ReadDir(filepath.Join(dir, tmpFolder))
	if err != nil || len(left) != 0 {
		t.Errorf("temporary files are left: %v, %v", left, err)
	}
	now := fmt.Sprintf(`{"form":%d`, form)
	for _, head := range []string{"", "{", `{"form":0,"source":"https://a.test/x"}`, now + `,"source":"https://a.test.evil/x"}`, now + `}`} {
		if err := os.WriteFile(filepath.Join(dir, "a", "b"), []byte(head+"\ntext"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, _, err := d.read("a/b"); !errors.Is(err, fs.ErrNotExist) || d.meta("a/b") != (meta{}) {
			t.Errorf("with the first line %q: %v, %+v", head, err, d.meta("a/b"))
		}
	}
	if err := d.write("../evil", m, nil); err == nil {
		t.Error("wrote outside of the cache folder")
	}
}
