package main

import (
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/scripts/demo/pack"
	"github.com/attended-sysupgrade/sysup/shared/client"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// privateFeed is somebody's own feed with one package, "ours", in both
// formats, signed by keys that nobody else has.
type privateFeed struct {
	url         string
	usign, ec   string // the public keys, as clients send them
	wrong       string // another key of usign's
	wrongEC     string // and of apk's
	fingerprint string
}

func servePrivateFeed(t *testing.T) privateFeed {
	t.Helper()
	dir := t.TempDir()
	web := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(web.Close)
	f := privateFeed{url: web.URL + "/feeds"}
	key, other := newUsignKey(t), newUsignKey(t)
	f.usign, f.wrong, f.fingerprint = string(key.Public().Marshal()), string(other.Public().Marshal()), key.Public().Fingerprint.String()
	ec, otherEC := newECKey(t), newECKey(t)
	f.ec, f.wrongEC = ecPublic(t, ec), ecPublic(t, otherEC)

	index := pack.Index([]pack.Meta{writePackage(t, filepath.Join(dir, "feeds", "opkg"), pack.IPK)})
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write([]byte(index))
	z.Close()
	adb, err := pack.APKIndex([]pack.Meta{writePackage(t, filepath.Join(dir, "feeds", "apk"), pack.APK)}, ec)
	for name, text := range map[string][]byte{
		"opkg/Packages": []byte(index), "opkg/Packages.gz": packed.Bytes(), "opkg/Packages.sig": key.Sign([]byte(index)).Marshal(),
		"apk/packages.adb": adb,
	} {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, "feeds", name), text, 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func newUsignKey(t *testing.T) usign.SecretKey {
	key, err := usign.Generate("our feed")
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newECKey(t *testing.T) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// ecPublic is a key in the way in which people paste it: with the comment that
// OpenWrt puts before it and the line ends of a text area.
func ecPublic(t *testing.T, key *ecdsa.PrivateKey) string {
	text, err := pack.MarshalECPublic(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll("untrusted comment: our feed\n"+string(text), "\n", "\r\n")
}

func writePackage(t *testing.T, folder string, format pack.Format) pack.Meta {
	t.Helper()
	ours := pack.Package{
		Meta:  pack.Meta{Name: "ours", Version: "1.0-r1", Arch: "x86_64", Section: "net", Description: "Ours"},
		Files: []pack.File{{Path: "etc/ours", Mode: 0o644, Data: []byte("ours\n")}},
	}
	data, meta, err := format.Encode(ours, time.Unix(1700000000, 0))
	if err == nil {
		err = errors.Join(os.MkdirAll(folder, 0o755), os.WriteFile(filepath.Join(folder, meta.Filename), data, 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	return meta
}

// TestPrivateFeed builds with a feed of the client's own, in both formats: its
// key counts for that one build, a wrong one ends it with a sentence, and
// whoever comes next has neither feed nor key.
func TestPrivateFeed(t *testing.T) {
	f := servePrivateFeed(t)
	d := startDemo(t, f.url, "http://"+demoPort)
	for _, format := range []struct {
		name, version, feed, right, wrong string
	}{
		{"opkg", "24.10.90", f.url + "/opkg", f.usign, f.wrong},
		{"apk", "25.12.90", f.url + "/apk", f.ec, f.wrongEC},
	} {
		t.Run(format.name, func(t *testing.T) {
			t.Parallel()
			ask := func(mode string, packages []string, keys ...string) client.Request {
				return client.Request{
					Version: format.version, Target: "x86/64", Profile: "generic", Filesystem: "squashfs", Packages: packages,
					Repositories: client.Repositories{{Name: "imagebuilder", URL: format.feed}}, RepositoriesMode: mode, RepositoryKeys: keys,
				}
			}
			result, dir := d.build(t, ask("append", []string{"ours", "nano"}, format.right))
			if result.Manifest["ours"] != "1.0-r1" || result.Manifest["nano"] == "" {
				t.Errorf("the manifest is %v", result.Manifest)
			}
			if got := squashFile(t, filepath.Join(dir, imageOf(t, result, "rootfs", "squashfs").Name), "etc/ours"); got != "ours\n" {
				t.Errorf("our file in the image is %q", got)
			}
			for _, ending := range []struct {
				name     string
				request  client.Request
				status   int
				sentence string
			}{
				{"a wrong key", ask("append", []string{"ours", "less"}, format.wrong), 500, "whether repository_keys has the key"},
				{"no key any more", ask("append", []string{"ours", "jq"}), 500, "whether repository_keys has the key"},
				{"no feed any more", client.Request{Version: format.version, Target: "x86/64", Profile: "generic", Packages: []string{"ours"}}, 422, "ours"},
				{"no other feed", ask("replace", []string{"ours", "jq"}, format.right), 422, "with the feeds of this request has no package"},
			} {
				t.Run(ending.name, func(t *testing.T) {
					t.Parallel()
					sentence := d.fails(t, ending.request, ending.status)
					if t.Log(sentence); !strings.Contains(sentence, ending.sentence) {
						t.Errorf("the sentence lacks %q", ending.sentence)
					}
				})
			}
		})
	}
	t.Cleanup(func() { f.leftNothing(t, filepath.Join(d.data, imagebuilderFolder)) })
}

// leftNothing looks whether the trees that the next job starts from know of
// the feed.
func (f privateFeed) leftNothing(t *testing.T, folder string) {
	trees, _ := filepath.Glob(filepath.Join(folder, "*", "tree"))
	if len(trees) != 2 {
		t.Fatalf("the ImageBuilders are %q", trees)
	}
	for _, text := range []string{"request_imagebuilder", f.url, f.fingerprint} {
		if out, err := exec.Command("grep", append([]string{"-rlaF", text}, trees...)...).Output(); err == nil {
			t.Errorf("%q stands in %s", text, out)
		}
	}
	for _, tree := range trees {
		for _, name := range []string{f.fingerprint, "request-0.pem"} {
			if _, err := os.Stat(filepath.Join(tree, "keys", name)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the key %s stayed: %v", name, err)
			}
		}
	}
}
