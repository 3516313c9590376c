package buildtest

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// Objects runs the contract of build.Objects over the driver that open opens,
// fresh and empty for each case.
func Objects(t *testing.T, open func(testing.TB) build.Objects) { objectsContract.run(t, open) }

var objectsContract = contract[build.Objects]{
	{"what is stored is read back, with what is known of it", func(t testing.TB, o build.Objects) {
		start := time.Now()
		put(t, o, "a/b.txt", "hello")
		wantBytes(t, o, "a/b.txt", "hello")
		info := stat(t, o, "a/b.txt")
		if info.Key != "a/b.txt" || info.Size != 5 || info.Modified.Sub(start).Abs() > time.Minute {
			t.Errorf("Open tells %+v", info)
		}
	}},
	{"an empty object is an object", func(t testing.TB, o build.Objects) {
		put(t, o, "empty", "")
		wantBytes(t, o, "empty", "")
		wantKeys(t, o, "", "empty")
	}},
	{"a large object comes back whole", func(t testing.TB, o build.Objects) {
		large := strings.Repeat("0123456789abcdef", 1<<20) // 16 MB
		put(t, o, "large", large)
		if got := read(t, o, "large"); got != large || stat(t, o, "large").Size != 16<<20 {
			t.Errorf("%d bytes come back as others", len(large))
		}
	}},
	{"an object that nobody stored is not found", func(t testing.TB, o build.Objects) {
		put(t, o, "a/b", "x")
		for _, key := range []string{"b", "a", "a/b/c", "a/bc"} {
			wantGone(t, o, key)
		}
	}},
	{"every key that may be can be", func(t testing.TB, o build.Objects) {
		for _, key := range goodKeys {
			put(t, o, key, key)
		}
		for _, key := range goodKeys {
			wantBytes(t, o, key, key)
		}
		wantKeys(t, o, "", goodKeys...)
	}},
	{"a key that cannot be is an error to write and not there to read", func(t testing.TB, o build.Objects) {
		for _, key := range badKeys {
			if err := o.Put(t.Context(), key, strings.NewReader("x"), build.PolicyText); err == nil {
				t.Errorf("Put takes the key %.40q", key)
			}
			wantGone(t, o, key)
		}
		wantKeys(t, o, "")
	}},
	{"equal bytes can be stored again", func(t testing.TB, o build.Objects) {
		put(t, o, "k", "same")
		put(t, o, "k", "same")
		wantBytes(t, o, "k", "same")
	}},
	{"other bytes cannot replace immutable ones", func(t testing.TB, o build.Objects) {
		put(t, o, "k", "first")
		for _, other := range []string{"other", "firs", "first!", ""} {
			err := o.Put(t.Context(), "k", strings.NewReader(other), build.PolicyText)
			wantError(t, err, build.ErrExists, "Put of other bytes")
		}
		wantBytes(t, o, "k", "first")
	}},
	{"a mutable object is replaced", func(t testing.TB, o build.Objects) {
		for _, b := range []string{"one", "three", ""} {
			check(t, o.Put(t.Context(), "index/k", strings.NewReader(b), build.PolicyIndex), "Put")
			wantBytes(t, o, "index/k", b)
		}
		wantKeys(t, o, "", "index/k")
	}},
	{"a reader that fails leaves nothing", func(t testing.TB, o build.Objects) {
		err := o.Put(t.Context(), "k", brokenReader(1<<20), build.PolicyText)
		wantBroken(t, err)
		wantGone(t, o, "k")
		wantKeys(t, o, "")
	}},
	{"a reader that fails leaves what was there", func(t testing.TB, o build.Objects) {
		check(t, o.Put(t.Context(), "index/k", strings.NewReader("old"), build.PolicyIndex), "Put")
		wantBroken(t, o.Put(t.Context(), "index/k", brokenReader(100), build.PolicyIndex))
		wantBytes(t, o, "index/k", "old")
	}},
	{"a part is never visible", nothingPartial},
	{"readers of a mutable object see one version whole", wholeVersions},
	{"an open reader outlives its object", func(t testing.TB, o build.Objects) {
		check(t, o.Put(t.Context(), "index/k", strings.NewReader("old"), build.PolicyIndex), "Put")
		r, _, err := o.Open(t.Context(), "index/k")
		check(t, err, "Open")
		defer r.Close()
		check(t, o.Put(t.Context(), "index/k", strings.NewReader("newer"), build.PolicyIndex), "Put")
		check(t, o.Delete(t.Context(), "index/k"), "Delete")
		if b, err := io.ReadAll(r); err != nil || string(b) != "old" {
			t.Errorf("the reader returns %q (%v)", b, err)
		}
	}},
	{"of many that store one key with other bytes one wins", oneStores},
	{"many can store one key with equal bytes", func(t testing.TB, o build.Objects) {
		atOnce(16, func(int) {
			if err := o.Put(t.Context(), "a/b/c", strings.NewReader("same"), build.PolicyText); err != nil {
				t.Errorf("Put: %v", err)
			}
		})
		wantBytes(t, o, "a/b/c", "same")
	}},
	{"a reader that can seek does", func(t testing.TB, o build.Objects) {
		put(t, o, "k", "0123456789")
		r, _, err := o.Open(t.Context(), "k")
		check(t, err, "Open")
		defer r.Close()
		s, ok := r.(io.Seeker)
		if !ok {
			return
		}
		n, err := s.Seek(-3, io.SeekEnd)
		check(t, err, "Seek")
		if b, err := io.ReadAll(r); err != nil || n != 7 || string(b) != "789" {
			t.Errorf("after Seek to 7 (%d) it reads %q (%v)", n, b, err)
		}
	}},
	{"list takes its prefix as text, not as a folder", func(t testing.TB, o build.Objects) {
		for _, key := range listed {
			put(t, o, key, "x")
		}
		wantKeys(t, o, "a", "a+/x", "a-b", "a.b", "a/b", "a/b0", "a/c/d", "a0", "ab/c")
		wantKeys(t, o, "a/", "a/b", "a/b0", "a/c/d")
		wantKeys(t, o, "a/b", "a/b", "a/b0")
		wantKeys(t, o, "a/c", "a/c/d")
		wantKeys(t, o, "a/c/d", "a/c/d")
		wantKeys(t, o, "a/c/d/")
		wantKeys(t, o, "c")
	}},
	{"list goes by key order", func(t testing.TB, o build.Objects) {
		for _, key := range listed {
			put(t, o, key, "x")
		}
		wantKeys(t, o, "", "B", "a+/x", "a-b", "a.b", "a/b", "a/b0", "a/c/d", "a0", "ab/c", "b/a")
	}},
	{"list never leaves the store", func(t testing.TB, o build.Objects) {
		put(t, o, "k", "x")
		for _, prefix := range []string{"..", "../", "/", "./", "a/../", "//", "\x00"} {
			for info := range o.List(t.Context(), prefix) {
				if info.Key != "" {
					t.Errorf("List(%q) yields %q", prefix, info.Key)
				}
			}
		}
	}},
	{"list tells sizes and times", func(t testing.TB, o build.Objects) {
		put(t, o, "k", "12345")
		for info, err := range o.List(t.Context(), "k") {
			check(t, err, "List")
			if want := stat(t, o, "k"); info.Size != 5 || !info.Modified.Truncate(time.Second).Equal(want.Modified.Truncate(time.Second)) {
				t.Errorf("List tells %+v, Open %+v", info, want)
			}
		}
	}},
	{"list can be left early", func(t testing.TB, o build.Objects) {
		put(t, o, "a/1", "x")
		put(t, o, "a/2", "x")
		for range o.List(t.Context(), "a") {
			break
		}
	}},
	{"what is listed can be deleted meanwhile", func(t testing.TB, o build.Objects) {
		for _, key := range []string{"a/1", "a/2", "a/b/3", "a/b/4", "b"} {
			put(t, o, key, "x")
		}
		for info, err := range o.List(t.Context(), "a/") {
			check(t, err, "List")
			check(t, o.Delete(t.Context(), info.Key), "Delete")
		}
		wantKeys(t, o, "", "b")
	}},
	{"list passes over what vanishes meanwhile", func(t testing.TB, o build.Objects) {
		put(t, o, "a/1", "x")
		put(t, o, "a/2", "x")
		for _, err := range o.List(t.Context(), "a/") {
			check(t, err, "List")
			check(t, o.Delete(t.Context(), "a/2"), "Delete")
		}
	}},
	{"a deleted object is gone, the others stay", func(t testing.TB, o build.Objects) {
		put(t, o, "a/b/c", "x")
		put(t, o, "a/b/d", "x")
		check(t, o.Delete(t.Context(), "a/b/c"), "Delete")
		wantGone(t, o, "a/b/c")
		wantKeys(t, o, "", "a/b/d")
		check(t, o.Delete(t.Context(), "a/b/d"), "Delete")
		wantKeys(t, o, "")
		put(t, o, "a/b/c", "something else")
		wantBytes(t, o, "a/b/c", "something else")
	}},
	{"deleting what is not there is no error and harms nothing", func(t testing.TB, o build.Objects) {
		put(t, o, "a", "x")
		for _, key := range []string{"b", "a/b", "b/c/d", "../a"} {
			check(t, o.Delete(t.Context(), key), "Delete of "+key)
		}
		wantKeys(t, o, "", "a")
	}},
	{"storing and deleting side by side disturb each other not", sideBySide},
}

// listed are keys whose order is not that of a walk over folders.
var listed = []string{"a/b", "a/b0", "a/c/d", "a-b", "a.b", "a+/x", "a0", "ab/c", "b/a", "B"}

var goodKeys = []string{
	"store/" + strings.Repeat("a", 64) + "/" + strings.Repeat("0", 32) + "/openwrt-24.10.5-x86-64-generic-squashfs-combined.img.gz",
	"store/private/x", ".hidden/.x", "..x/x..", "...", "a=b@c,d~e+f_g-h", ".tmp/x", "-", "UPPER/lower", "~",
	strings.Repeat(strings.Repeat("k", 63)+"/", 7) + strings.Repeat("k", 64), // 512 bytes
}

var badKeys = []string{
	"", ".", "..", "/", "/abs", "../x", "a/../b", "a/..", "./a", "a/./b", "a/.", "a//b", "a/", "//a", "a\\b", "..\\x", "a b", "a\x00b",
	"a\nb", "ä", "a#b", "a%2fb", "a?b", "a*b", "a:b", strings.Repeat("k/", 299) + "kk", strings.Repeat("k", 513),
}

func put(t testing.TB, o build.Objects, key, content string) {
	t.Helper()
	policy := build.PolicyText
	if strings.HasPrefix(key, "store/private/") {
		policy = policy.Private()
	}
	check(t, o.Put(t.Context(), key, strings.NewReader(content), policy), "Put "+key)
}

func stat(t testing.TB, o build.Objects, key string) build.ObjectInfo {
	t.Helper()
	r, info, err := o.Open(t.Context(), key)
	check(t, err, "Open "+key)
	check(t, r.Close(), "Close")
	return info
}

func read(t testing.TB, o build.Objects, key string) string {
	t.Helper()
	r, _, err := o.Open(t.Context(), key)
	check(t, err, "Open "+key)
	defer r.Close()
	b, err := io.ReadAll(r)
	check(t, err, "read "+key)
	return string(b)
}

func wantBytes(t testing.TB, o build.Objects, key, want string) {
	t.Helper()
	if got := read(t, o, key); got != want {
		t.Errorf("%s holds %.60q, not %.60q", key, got, want)
	}
}

func wantGone(t testing.TB, o build.Objects, key string) {
	t.Helper()
	r, _, err := o.Open(t.Context(), key)
	if err == nil {
		check(t, r.Close(), "Close")
	}
	if !errors.Is(err, build.ErrNotFound) {
		t.Errorf("Open of %.40q returns %v, not ErrNotFound", key, err)
	}
}

func wantKeys(t testing.TB, o build.Objects, prefix string, want ...string) {
	t.Helper()
	want = slices.Sorted(slices.Values(want))
	got := []string{}
	for info, err := range o.List(t.Context(), prefix) {
		check(t, err, "List")
		got = append(got, info.Key)
	}
	if !slices.Equal(got, want) {
		t.Errorf("List(%q) yields %q, not %q", prefix, got, want)
	}
}

var errBroken = errors.New("the reader broke")

func brokenReader(after int) io.Reader {
	return io.MultiReader(strings.NewReader(strings.Repeat("x", after)), errReader{})
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errBroken }

func wantBroken(t testing.TB, err error) {
	t.Helper()
	if err == nil {
		t.Errorf("Put succeeds although its reader failed")
	}
}

// nothingPartial looks at a key while its first half was read and its second
// is not there yet.
func nothingPartial(t testing.TB, o build.Objects) {
	r, w := io.Pipe()
	stored := make(chan error, 1)
	go func() { stored <- o.Put(t.Context(), "a/k", r, build.PolicyText) }()
	half := strings.Repeat("x", 1<<20)
	for range 2 {
		_, err := io.WriteString(w, half)
		check(t, err, "write")
		wantGone(t, o, "a/k")
		wantKeys(t, o, "")
	}
	check(t, w.Close(), "close")
	check(t, <-stored, "Put")
	wantBytes(t, o, "a/k", half+half)
}

func wholeVersions(t testing.TB, o build.Objects) {
	version := func(i int) string { return strings.Repeat(string(rune('a'+i%26)), 100_000+i) }
	check(t, o.Put(t.Context(), "index/k", strings.NewReader(version(0)), build.PolicyIndex), "Put")
	var stop atomic.Bool
	var readers sync.WaitGroup
	defer readers.Wait()
	defer stop.Store(true)
	for range 2 {
		readers.Go(func() {
			for !stop.Load() {
				r, _, err := o.Open(t.Context(), "index/k")
				if err != nil {
					t.Errorf("Open: %v", err)
					return
				}
				b, err := io.ReadAll(r)
				if err = errors.Join(err, r.Close()); err != nil || len(b) < 100_000 || string(b) != version(len(b)-100_000) {
					t.Errorf("a reader sees %d bytes of no version (%v)", len(b), err)
					return
				}
			}
		})
	}
	for i := range 20 {
		check(t, o.Put(t.Context(), "index/k", strings.NewReader(version(i)), build.PolicyIndex), "Put")
	}
}

func oneStores(t testing.TB, o build.Objects) {
	var winner atomic.Pointer[string]
	atOnce(16, func(i int) {
		content := strings.Repeat(string(rune('a'+i)), 10_000)
		switch err := o.Put(t.Context(), "a/b/c", strings.NewReader(content), build.PolicyText); {
		case err == nil && !winner.CompareAndSwap(nil, &content):
			t.Errorf("two that store other bytes under one key succeed")
		case err != nil && !errors.Is(err, build.ErrExists):
			t.Errorf("Put: %v", err)
		}
	})
	if w := winner.Load(); w == nil || read(t, o, "a/b/c") != *w {
		t.Errorf("stored are other bytes than the winner's")
	}
}

// sideBySide lets folders come and go under those who store in them.
func sideBySide(t testing.TB, o build.Objects) {
	atOnce(4, func(i int) {
		key := "a/b/" + string(rune('0'+i))
		for range 15 {
			err := o.Put(t.Context(), key, bytes.NewReader([]byte(key)), build.PolicyText)
			if err == nil {
				err = o.Delete(t.Context(), key)
			}
			if err != nil {
				t.Errorf("store and delete: %v", err)
				return
			}
		}
	})
	wantKeys(t, o, "")
}
