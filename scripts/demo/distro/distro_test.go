package distro_test

import (
	"bytes"
	"crypto/ecdsa"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/scripts/demo/demotest"
	"github.com/attended-sysupgrade/sysup/scripts/demo/distro"
	"github.com/attended-sysupgrade/sysup/scripts/demo/pack"
	"github.com/attended-sysupgrade/sysup/shared/feed"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// TestSigned follows the signatures from the published key to every file.
func TestSigned(t *testing.T) {
	u := demotest.Start(t, distro.Options{Versions: []string{opkg}}, nil)
	text := read(t, u.KeyFile)
	key, err := usign.ParsePublicKey(text)
	if err != nil {
		t.Fatal(err)
	}
	signed := 0
	for _, pattern := range []string{"releases/*/targets/*/*/sha256sums", "releases/*/targets/*/*/packages/Packages", "releases/*/packages/*/*/Packages"} {
		names, err := filepath.Glob(filepath.Join(u.Dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			signed++
			if err := usign.VerifyFile([]usign.PublicKey{key}, read(t, name), read(t, name+".sig")); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if filepath.Base(name) == "sha256sums" {
				checkSums(t, name)
			}
		}
	}
	if signed != 7 {
		t.Errorf("%d lists are signed, not those of 2 targets, their packages and 3 feeds", signed)
	}
}

// TestAPKIndicesSigned reads apk's indices as the server does.
func TestAPKIndicesSigned(t *testing.T) {
	u := demotest.Start(t, distro.Options{Versions: []string{apk}}, nil)
	key, err := feed.ParsePublicKey(read(t, u.APKKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	indices, names := 0, map[string]bool{}
	for _, pattern := range []string{"releases/*/targets/*/*/packages", "releases/*/targets/*/*/kmods/*", "releases/*/packages/*/*"} {
		files, err := filepath.Glob(filepath.Join(u.Dir, pattern, pack.APKIndexName))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			indices++
			list, signer, err := feed.OpenADB(read(t, file), []*ecdsa.PublicKey{key})
			if err != nil || signer != feed.IDOf(key) {
				t.Errorf("%s: signed by %v, %v", file, signer, err)
			}
			for _, p := range list {
				names[p.Name], names[p.Free()] = true, true
				if info, err := os.Stat(filepath.Join(filepath.Dir(file), p.File)); err != nil || info.Size() != p.Size {
					t.Errorf("%s lists %s of %d bytes: %v", file, p.File, p.Size, err)
				}
			}
		}
	}
	if indices != 7 || !names["base-files"] || !names["luci"] {
		t.Errorf("%d indices, not those of 2 targets, their kernel modules and 3 feeds, list %v", indices, names)
	}
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func checkSums(t *testing.T, list string) {
	t.Helper()
	sums, err := usign.ParseSums(read(t, list))
	if err != nil {
		t.Fatal(err)
	}
	archives := 0
	for name := range sums {
		if err := sums.Check(name, bytes.NewReader(read(t, filepath.Join(filepath.Dir(list), name)))); err != nil {
			t.Errorf("%s: %v", list, err)
		}
		if strings.HasPrefix(name, "openwrt-imagebuilder-") {
			archives++
		}
	}
	if archives != 1 {
		t.Errorf("%s names %d ImageBuilders", list, archives)
	}
}

// TestKept shows that nothing is made twice.
func TestKept(t *testing.T) {
	u := demotest.Start(t, distro.Options{Versions: []string{apk}}, nil)
	root, err := distro.Root()
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	options := distro.Options{Versions: []string{apk}, URL: u.URL, Output: u.Dir, Log: &log}
	if again, err := distro.Make(t.Context(), filepath.Join(root, demotest.Folder), options); err != nil || again != u.Upstream || log.Len() > 0 {
		t.Errorf("the second time gives %+v, %v and makes again: %s", again, err, &log)
	}
}

func TestBadOptions(t *testing.T) {
	root, err := distro.Root()
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]distro.Options{
		"revision": {Snapshot: "r1"},
		"version":  {Versions: []string{"24.10.1"}},
	} {
		o.Output = t.TempDir()
		if _, err := distro.Make(t.Context(), filepath.Join(root, demotest.Folder), o); err == nil {
			t.Errorf("a bad %s passes", name)
		}
	}
}
