package builder_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/builder"
	"github.com/attended-sysupgrade/sysup/builder/sandbox"
	"github.com/attended-sysupgrade/sysup/scripts/demo/demotest"
	"github.com/attended-sysupgrade/sysup/scripts/demo/distro"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// demoSite is a site over the demo distribution, whose ImageBuilders are ones
// that the fast path knows. Each build is made on both paths.
func demoSite(t *testing.T, o setting) (s *site, differs *atomic.Int64) {
	t.Helper()
	o.timeLimit = 5 * time.Minute
	differs = new(atomic.Int64)
	s = &site{TB: t, folder: t.TempDir(), counts: &counts{}, log: &logBuffer{}, defects: new(atomic.Int64), setting: o}
	if err := errors.Join(os.Chmod(s.folder, 0o711), os.Chmod(filepath.Dir(s.folder), 0o711)); err != nil {
		t.Fatal(err)
	}
	up := demotest.Start(t, distro.Options{}, nil)
	s.url = up.URL
	s.openDrivers()
	options := catalog.Options{Upstream: up.URL, Dir: filepath.Join(s.folder, "catalog"), Log: s.logger()}
	var err error
	if err = options.Trust([]string{up.KeyFile, up.APKKeyFile}); err == nil {
		s.catalog, err = catalog.New(options)
	}
	if err == nil {
		t.Cleanup(func() { s.catalog.Close() })
		err = s.catalog.Refresh(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	s.openSandbox()
	if s.server, err = usign.Generate("test server"); err != nil {
		t.Fatal(err)
	}
	s.keys = builder.NewKeys(s.certify)
	s.service = &build.Service{Records: s.records, Queue: s.queue, Secret: []byte("secret")}
	s.change = func(c *builder.Config) {
		c.Repeat, c.Differs = 1, func() { differs.Add(1) }
	}
	s.start()
	return s, differs
}

func router(packages ...string) build.Request {
	return build.Request{Version: "24.10.90", Target: "demo/flash", Profile: "demo_router-a1", Packages: packages}
}

func withScript(r build.Request) build.Request { r.Defaults = "echo one"; return r }

// compared waits for the worker to say that it compared two paths for the n-th
// time.
func (s *site) compared(n int) {
	s.Helper()
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		text := s.log.String()
		if strings.Count(text, "both paths give the same bytes")+strings.Count(text, "the fast path is off") >= n {
			return
		}
		if time.Since(begin) > 3*time.Minute {
			s.Fatalf("nothing was compared for the %d. time:\n%s", n, text)
		}
	}
}

// TestFastPath: the first build with an ImageBuilder is plain, the next ones are
// fast, and all images are those of make image.
func TestFastPath(t *testing.T) {
	t.Parallel()
	s, differs := demoSite(t, setting{})
	compared := 0
	for _, test := range []struct {
		about   string
		request build.Request
		path    string
	}{
		{"the first", router("nano"), "plain"},
		{"another, with a script", withScript(router("nano", "htop")), "fast"},
		{"a base is missed", router("nano", "-mtd"), "fast"},
		{"it is made", router("htop", "-mtd"), "fast"},
		{"disks, the first", build.Request{Version: "24.10.90", Target: "x86/64", Profile: "generic", Packages: []string{"nano"}}, "plain"},
		{"apk, the first", build.Request{Version: "25.12.90", Target: "x86/64", Profile: "generic", Packages: []string{"nano"}, Filesystem: "squashfs"}, "plain"},
		{"apk", build.Request{Version: "25.12.90", Target: "x86/64", Profile: "generic", Packages: []string{"tree"}, Filesystem: "squashfs", RootfsSizeMB: 80}, "fast"},
	} {
		s := s.in(t)
		result := s.done(s.build(test.request))
		if result.Path != test.path {
			t.Errorf("%s is made on the path %q, want %q", test.about, result.Path, test.path)
		}
		if test.request.Private() { // what is private goes with its build
			continue
		}
		compared++
		s.compared(compared)
	}
	if differs.Load() != 0 || strings.Contains(s.log.String(), "level=ERROR") || strings.Contains(s.log.String(), "takes the plain path") {
		t.Errorf("%d differences:\n%s", differs.Load(), s.log)
	}
	s.clean()
}

// TestFastPathConfined: the same where no overlay can be mounted, and where jobs
// see their trees at places that differ.
func TestFastPathConfined(t *testing.T) {
	t.Parallel()
	for _, o := range []setting{{copy: true}, {mechanism: sandbox.Plain}} {
		s, differs := demoSite(t, o)
		s.done(s.build(router("nano")))
		s.compared(1)
		if result := s.done(s.build(router("htop"))); result.Path != "fast" {
			t.Errorf("%+v: the path is %q\n%s", o, result.Path, s.log)
		}
		s.compared(2)
		if differs.Load() != 0 {
			t.Errorf("%+v: the paths differ:\n%s", o, s.log)
		}
		s.clean()
	}
}

// TestFastPathBroken: whatever is wrong with what the fast path uses, the first
// build with an ImageBuilder and those that are repeated find it out.
func TestFastPathBroken(t *testing.T) {
	t.Parallel()
	s, differs := demoSite(t, setting{})
	s.done(s.build(router("nano")))
	s.compared(1)
	names, _ := filepath.Glob(filepath.Join(s.setting.trees, "*", "root-*.tar"))
	if len(names) != 1 {
		t.Fatalf("there are the base roots %q", names)
	}
	text, err := os.ReadFile(names[0])
	if err == nil {
		err = os.WriteFile(names[0], spoiled(t, text), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	if result := s.done(s.build(router("tree"))); result.Path != "fast" {
		t.Fatalf("the path is %q", result.Path)
	}
	s.compared(2)
	wantText(t, s.log.String(), "the fast path is off for an ImageBuilder")
	if result := s.done(s.build(router("tree", "htop"))); result.Path != "plain" {
		t.Errorf("after a difference the path is %q", result.Path)
	}
	s.tamper(filepath.Dir(names[0]), "fast-*", "fast-*") // as if there was no build before
	if result := s.done(s.build(router("less"))); result.Path != "plain" {
		t.Errorf("the first build's path is %q", result.Path)
	}
	s.compared(3)
	if differs.Load() != 2 {
		t.Errorf("%d differences were told, want 2", differs.Load())
	}
}

// spoiled is the tar with another content of its first file of some size.
func spoiled(t *testing.T, text []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	in, out := tar.NewReader(bytes.NewReader(text)), tar.NewWriter(&b)
	done := false
	for {
		header, err := in.Next()
		if err == io.EOF {
			break
		}
		content, err2 := io.ReadAll(in)
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(header.Name, "/etc/banner") {
			done = true
			content[0] ^= 1
		}
		err = out.WriteHeader(header)
		if _, err2 := out.Write(content); err != nil || err2 != nil {
			t.Fatal(errors.Join(err, err2))
		}
	}
	if err := out.Close(); err != nil || !done {
		t.Fatalf("nothing was spoiled: %v", err)
	}
	return b.Bytes()
}
