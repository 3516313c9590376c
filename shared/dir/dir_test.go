package dir

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// The contract of build.Objects is tested in shared/build/buildtest; here is
// what only this driver promises.

// TestMain lets a test run this binary as a second process, to be killed.
func TestMain(m *testing.M) {
	if path := os.Getenv("SYSUP_TEST_PATH"); path != "" {
		storeForEver(path)
	}
	os.Exit(m.Run())
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open1(t testing.TB) (o *Objects, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "objects")
	o, err := Open(path)
	check(t, err)
	t.Cleanup(func() { check(t, o.Close()) })
	return o, path
}

func put(t testing.TB, o *Objects, key, content string) {
	t.Helper()
	check(t, o.Put(t.Context(), key, strings.NewReader(content), build.PolicyText))
}

// files lists all there is below the folder, folders with a slash.
func files(t testing.TB, path string) string {
	t.Helper()
	var names []string
	check(t, filepath.WalkDir(path, func(name string, entry os.DirEntry, err error) error {
		name, _ = filepath.Rel(path, name)
		if entry != nil && entry.IsDir() {
			name += "/"
		}
		names = append(names, name)
		return err
	}))
	return strings.Join(names, " ")
}

func TestFoldersComeAndGo(t *testing.T) {
	o, path := open1(t)
	put(t, o, "a/b/c", "x")
	put(t, o, "a/d", "x")
	if got, want := files(t, path), "./ #tmp/ a/ a/b/ a/b/c a/d"; got != want {
		t.Errorf("there are %s, not %s", got, want)
	}
	check(t, o.Delete(t.Context(), "a/b/c"))
	if got, want := files(t, path), "./ #tmp/ a/ a/d"; got != want {
		t.Errorf("there are %s, not %s", got, want)
	}
	check(t, o.Delete(t.Context(), "a/d/e")) // a file is no empty folder
	check(t, o.Delete(t.Context(), "a"))     // nor is a folder an object
	if got, want := files(t, path), "./ #tmp/ a/ a/d"; got != want {
		t.Errorf("there are %s, not %s", got, want)
	}
	check(t, o.Delete(t.Context(), "a/d"))
	if got, want := files(t, path), "./ #tmp/"; got != want {
		t.Errorf("there are %s, not %s", got, want)
	}
}

func TestFailedPutLeavesNothing(t *testing.T) {
	o, path := open1(t)
	put(t, o, "taken", "x")
	broken := io.MultiReader(strings.NewReader("half"), iotest.ErrReader(errors.New("broken")))
	if err := o.Put(t.Context(), "a/b", broken, build.PolicyText); err == nil || !strings.Contains(err.Error(), "store a/b: broken") {
		t.Errorf("Put returns %v", err)
	}
	if err := o.Put(t.Context(), "taken", strings.NewReader("y"), build.PolicyText); !errors.Is(err, build.ErrExists) {
		t.Errorf("Put returns %v", err)
	}
	if got, want := files(t, path), "./ #tmp/ taken"; got != want {
		t.Errorf("there are %s, not %s", got, want)
	}
}

func TestOpenEmptiesTemporaryFiles(t *testing.T) {
	o, path := open1(t)
	put(t, o, ".tmp/keep", "a key like any other")
	check(t, os.WriteFile(filepath.Join(path, temporary, "LEFTOVER"), []byte("half"), 0o600))
	again, err := Open(path)
	check(t, err)
	defer again.Close()
	if got, want := files(t, path), "./ #tmp/ .tmp/ .tmp/keep"; got != want {
		t.Errorf("there are %s, not %s", got, want)
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	check(t, os.WriteFile(file, nil, 0o600))
	if _, err := Open(file); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("Open of a file returns %v", err)
	}
}

// TestNobodyElseReads: private results lie there, and builds run as another
// user.
func TestNobodyElseReads(t *testing.T) {
	o, path := open1(t)
	put(t, o, "a/b", "x")
	check(t, filepath.Walk(path, func(name string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
		return err
	}))
}

// TestOneKeyBelowAnother: what S3 allows and folders do not is an error that
// says so, and harms nothing.
func TestOneKeyBelowAnother(t *testing.T) {
	o, _ := open1(t)
	put(t, o, "a", "x")
	put(t, o, "b/c", "x")
	for _, policy := range []build.Policy{build.PolicyText, build.PolicyIndex} {
		for _, key := range []string{"a/b", "a/b/c", "b"} {
			err := o.Put(t.Context(), key, strings.NewReader("y"), policy)
			if err == nil || errors.Is(err, build.ErrExists) {
				t.Errorf("Put of %s returns %v", key, err)
			}
		}
	}
	for _, key := range []string{"a", "b/c"} {
		r, _, err := o.Open(t.Context(), key)
		check(t, err)
		b, err := io.ReadAll(r)
		check(t, errors.Join(err, r.Close()))
		if string(b) != "x" {
			t.Errorf("%s holds %q", key, b)
		}
	}
}

// TestLinksLeadNowhere: whatever lies in the folder, nothing outside it is
// read or removed.
func TestLinksLeadNowhere(t *testing.T) {
	o, path := open1(t)
	outside := filepath.Join(filepath.Dir(path), "outside")
	check(t, os.Mkdir(outside, 0o700))
	check(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("s"), 0o600))
	check(t, os.Symlink("../outside", filepath.Join(path, "folder")))
	check(t, os.Symlink("../outside/secret", filepath.Join(path, "file")))
	for _, key := range []string{"folder/secret", "file"} {
		if _, _, err := o.Open(t.Context(), key); err == nil {
			t.Errorf("%s is opened through a link", key)
		}
		_ = o.Delete(t.Context(), key) // may say that it cannot
		_ = o.Put(t.Context(), key, strings.NewReader("x"), build.PolicyText)
	}
	if err := o.Put(t.Context(), "folder/new", strings.NewReader("x"), build.PolicyIndex); err == nil {
		t.Error("something is stored through a link")
	}
	for info, err := range o.List(t.Context(), "") {
		if err != nil || info.Key != "" {
			t.Errorf("List yields %+v (%v)", info, err)
		}
	}
	if got, want := files(t, outside), "./ secret"; got != want {
		t.Errorf("outside there are %s, not %s", got, want)
	}
	if b, err := os.ReadFile(filepath.Join(outside, "secret")); err != nil || string(b) != "s" {
		t.Errorf("the file outside holds %q (%v)", b, err)
	}
}

func TestListPassesOverWhatIsNoObject(t *testing.T) {
	o, path := open1(t)
	put(t, o, "a", "x")
	check(t, os.WriteFile(filepath.Join(path, "no key"), nil, 0o600))
	check(t, os.Mkdir(filepath.Join(path, "empty"), 0o700))
	for info, err := range o.List(t.Context(), "") {
		check(t, err)
		if info.Key != "a" {
			t.Errorf("List yields %+v", info)
		}
	}
}

// TestFullDisk holds the error of a really full device against the sentinel.
func TestFullDisk(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	check(t, err)
	defer full.Close()
	_, err = full.WriteString("x")
	if err = explain(err); !errors.Is(err, build.ErrFull) || !strings.Contains(err.Error(), "free some space") {
		t.Errorf("a full disk is %v", err)
	}
}

func TestContext(t *testing.T) {
	o, _ := open1(t)
	put(t, o, "a", "x")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := o.Open(ctx, "a")
	var listed error
	for _, err := range o.List(ctx, "") {
		listed = err
	}
	for what, err := range map[string]error{
		"Put": o.Put(ctx, "b", strings.NewReader("x"), build.PolicyText), "Open": err, "Delete": o.Delete(ctx, "a"), "List": listed,
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s returns %v although its context has ended", what, err)
		}
	}
}

// killed is the content of the key n in TestKill.
func killed(n int) string { return strings.Repeat(fmt.Sprintf("%8d", n), 20_000+n) }

// storeForEver stores numbered objects and prints the number of each that is
// stored.
func storeForEver(path string) {
	o, err := Open(path)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	var print sync.Mutex
	for i := range 4 {
		go func() {
			for n := i; ; n += 4 {
				err := o.Put(context.Background(), fmt.Sprintf("%d/%d", n%8, n), strings.NewReader(killed(n)), build.PolicyImage)
				print.Lock()
				fmt.Println(n, err)
				print.Unlock()
			}
		}()
	}
	select {}
}

// TestKill: after kill -9 everything that was acknowledged is there, nothing
// is there by half, and no temporary file is left.
func TestKill(t *testing.T) {
	path := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SYSUP_TEST_PATH="+path)
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	acknowledged := 0
	for lines := bufio.NewScanner(out); acknowledged < 60 && lines.Scan(); acknowledged++ {
		if !strings.HasSuffix(lines.Text(), "<nil>") {
			t.Errorf("the other process says %q", lines.Text())
		}
	}
	check(t, cmd.Process.Kill())
	_ = cmd.Wait() // says that it was killed
	if acknowledged < 60 {
		t.Fatalf("the other process ended by itself")
	}

	o, err := Open(path)
	check(t, err)
	defer o.Close()
	found := 0
	for info, err := range o.List(t.Context(), "") {
		check(t, err)
		var folder, n int
		_, err = fmt.Sscanf(info.Key, "%d/%d", &folder, &n)
		check(t, err)
		if b, err := os.ReadFile(filepath.Join(path, info.Key)); err != nil || string(b) != killed(n) {
			t.Errorf("%s holds %d bytes of %d (%v)", info.Key, len(b), len(killed(n)), err)
		}
		found++
	}
	if found < acknowledged {
		t.Errorf("%d objects were acknowledged and %d are there", acknowledged, found)
	}
	if left, err := os.ReadDir(filepath.Join(path, temporary)); err != nil || len(left) > 0 {
		t.Errorf("left are %v (%v)", left, err)
	}
}

// FuzzKey: no key reads or writes outside the folder, and what can be stored
// is listed under the same key.
func FuzzKey(f *testing.F) {
	for _, key := range []string{"a", "a/b", "../x", "/abs", "a//b", "a/./b", "a/../b", ".", "..", "", "#tmp/x", "a\\b", "a\x00", "...", strings.Repeat("k", 300)} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		o, path := open1(t)
		err := o.Put(t.Context(), key, strings.NewReader(key), build.PolicyText)
		if entries, e := os.ReadDir(filepath.Dir(path)); e != nil || len(entries) != 1 {
			t.Fatalf("beside the folder there are %v (%v)", entries, e)
		}
		r, _, openErr := o.Open(t.Context(), key)
		if (err == nil) != (openErr == nil) {
			t.Fatalf("Put returns %v, Open %v", err, openErr)
		}
		if err != nil {
			if got, want := strings.Fields(files(t, path))[1], "#tmp/"; got != want || !errors.Is(openErr, build.ErrNotFound) {
				t.Errorf("after a refused key there is %s, and Open returns %v", got, openErr)
			}
			return
		}
		b, err := io.ReadAll(r)
		check(t, errors.Join(err, r.Close()))
		var listed []string
		for info := range o.List(t.Context(), "") {
			listed = append(listed, info.Key)
		}
		if !bytes.Equal(b, []byte(key)) || len(listed) != 1 || listed[0] != key {
			t.Errorf("%q is read as %q and listed as %q", key, b, listed)
		}
	})
}

func BenchmarkPut(b *testing.B) {
	for _, size := range []int{1 << 10, 10 << 20} {
		b.Run(fmt.Sprintf("%dKB", size>>10), func(b *testing.B) {
			o, _ := open1(b)
			content := bytes.Repeat([]byte("x"), size)
			b.SetBytes(int64(size))
			for n := 0; b.Loop(); n++ {
				check(b, o.Put(b.Context(), fmt.Sprintf("store/%d/%d", n%100, n), bytes.NewReader(content), build.PolicyImage))
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	o, _ := open1(b)
	put(b, o, "store/a/b", "x")
	for b.Loop() {
		r, _, err := o.Open(b.Context(), "store/a/b")
		check(b, err)
		check(b, r.Close())
	}
}
