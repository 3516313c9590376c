package pack_test

import (
	"archive/tar"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/scripts/demo/pack"
)

var sample = pack.Package{
	Meta: pack.Meta{
		Name: "libfoo2-3", Version: "1.0-r1", Arch: "x86_64", ABI: "-3", Section: "libs", Description: "A library",
		Depends: []string{"libc", "kernel (=6.1-r1)"}, Conflicts: []string{"bar"}, Provides: []string{"libfoo2"},
	},
	Scripts: map[string]string{"postinst": "#!/bin/sh\nexit 0\n"},
	Files: []pack.File{
		{Path: "usr/lib/libfoo.so.3", Mode: 0o755, Data: []byte("content")},
		{Path: "usr/lib/libfoo.so", Link: "libfoo.so.3"},
		{Path: "var", Mode: fs.ModeDir | 0o755},
	},
}

func TestPackages(t *testing.T) {
	for _, format := range []pack.Format{pack.IPK, pack.APK} {
		t.Run(string(format), func(t *testing.T) {
			content, meta, err := format.Encode(sample, time.Unix(1700000000, 0))
			if err != nil {
				t.Fatal(err)
			}
			again, _, err := format.Encode(sample, time.Unix(1700000000, 0))
			if err != nil || !bytes.Equal(content, again) {
				t.Error("packing twice gives other bytes")
			}
			name := filepath.Join(t.TempDir(), meta.Filename)
			if err := os.WriteFile(name, content, 0o644); err != nil {
				t.Fatal(err)
			}
			seen := map[string]string{}
			got, err := pack.Read(name, func(h *tar.Header, r io.Reader) error {
				text, err := io.ReadAll(r)
				seen[h.Name] = string(h.Typeflag) + h.Linkname + string(text)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]string{"usr": "5", "usr/lib": "5", "usr/lib/libfoo.so": "2libfoo.so.3", "usr/lib/libfoo.so.3": "0content", "var": "5"}
			if !reflect.DeepEqual(seen, want) {
				t.Errorf("the package holds %q, not %q", seen, want)
			}
			got.InstalledSize = 0
			if !reflect.DeepEqual(got.Meta, sample.Meta) || !reflect.DeepEqual(got.Scripts, sample.Scripts) {
				t.Errorf("read %+v, not %+v", got, sample)
			}
		})
	}
}

func TestFilename(t *testing.T) {
	m := pack.Meta{Name: "nano", Version: "7.2-r1", Arch: "x86_64"}
	if got := pack.IPK.Filename(m) + " " + pack.APK.Filename(m); got != "nano_7.2-r1_x86_64.ipk nano-7.2-r1.apk" {
		t.Errorf("the files are called %s", got)
	}
}

func TestABIName(t *testing.T) {
	for _, c := range [][3]string{{"libubox", "20240329", "libubox20240329"}, {"libnl3", "200", "libnl3-200"}, {"nano", "", "nano"}} {
		if got := pack.ABIName(c[0], c[1]); got != c[2] {
			t.Errorf("%s with ABI version %q is called %s, not %s", c[0], c[1], got, c[2])
		}
	}
}

func key(t testing.TB) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// indexed is what an apk index keeps of a package.
func indexed(m pack.Meta) pack.Meta {
	m.Section = ""
	m.Depends = slices.Sorted(slices.Values(m.Depends))
	m.Filename = pack.APK.Filename(m)
	return m
}

func TestAPKIndex(t *testing.T) {
	k := key(t)
	big := sample.Meta
	big.Name, big.InstalledSize, big.Size = "big", 1<<30, 12345
	big.SHA256 = strings.Repeat("ab", 32)
	big.Description = strings.Repeat("long", 100)
	data, err := pack.APKIndex([]pack.Meta{sample.Meta, big}, k)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pack.ParseAPKIndex(data, []*ecdsa.PublicKey{&key(t).PublicKey, &k.PublicKey})
	if want := []pack.Meta{indexed(big), indexed(sample.Meta)}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, %v; not %+v", got, err, want)
	}
	if _, err := pack.ParseAPKIndex(data, []*ecdsa.PublicKey{&key(t).PublicKey}); !errors.Is(err, pack.ErrUntrusted) {
		t.Errorf("another key: %v", err)
	}
}

func FuzzParseControl(f *testing.F) {
	f.Add([]byte(pack.Index([]pack.Meta{sample.Meta, {Name: "nano", Version: "1"}})))
	f.Add([]byte("Package: a\nSize: -1\nDepends: ,,\n\nPackage: b"))
	f.Fuzz(func(t *testing.T, text []byte) {
		metas, err := pack.ParseControl(bytes.NewReader(text))
		if err != nil {
			return
		}
		once := pack.Index(metas)
		again, err := pack.ParseControl(strings.NewReader(once))
		if err != nil || pack.Index(again) != once {
			t.Errorf("an index changes by being read: %q", once)
		}
	})
}
