package client_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/client"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// published is a server's files by their address, and the answer about them.
type published struct {
	files  map[string][]byte
	result client.Result
	keys   []usign.PublicKey
	server usign.SecretKey
	worker usign.SecretKey
}

const folder = "/store/" + hash + "/0123456789abcdef0123456789abcdef/"

var noon = time.Date(2026, 5, 6, 12, 0, 0, 0, time.UTC)

// publish signs a small result as a builder does.
func publish(t *testing.T) *published {
	t.Helper()
	server, err := usign.Generate("server")
	worker, workerErr := usign.Generate("")
	if err := errors.Join(err, workerErr); err != nil {
		t.Fatal(err)
	}
	p := &published{files: map[string][]byte{}, keys: []usign.PublicKey{server.Public()}, server: server, worker: worker}
	provenance, err := json.Marshal(build.Provenance{Schema: 1, RequestHash: hash, BuiltAt: noon, Plan: build.Plan{Profile: "generic"}})
	if err != nil {
		t.Fatal(err)
	}
	content := map[string][]byte{
		"a-squashfs-combined.img.gz": []byte(strings.Repeat("image ", 10_000)), "a.manifest": []byte("busybox - 1"),
		"profiles.json": []byte("{}"), "build.log": []byte("make"), usign.BuildFile: provenance,
	}
	sums := usign.Sums{}
	for name, b := range content {
		sums[name] = sha256.Sum256(b)
		p.files[folder+name] = b
	}
	p.sign(t, sums)
	image := sums["a-squashfs-combined.img.gz"]
	p.result = client.Result{
		BinDir: strings.Trim(strings.TrimPrefix(folder, "/store/"), "/"),
		Images: []client.Image{{Name: "a-squashfs-combined.img.gz", SHA256: fmt.Sprintf("%x", image)}},
	}
	return p
}

func (p *published) sign(t *testing.T, sums usign.Sums) {
	t.Helper()
	list, err := sums.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	public, sig, err := usign.Certify(p.server, "worker-1", ed25519.PublicKey(p.worker.Public().Key), noon.Add(-time.Hour), noon.Add(23*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	p.files[folder+usign.SumsFile], p.files[folder+usign.SumsSigFile] = list, p.worker.Sign(list).Marshal()
	p.files[folder+usign.WorkerFile], p.files[folder+usign.WorkerSigFile] = public, sig
}

func (p *published) revoke(keys ...usign.Fingerprint) {
	list := usign.Revoked{Issued: noon, Keys: keys}.Marshal()
	p.files["/keys/revoked"], p.files["/keys/revoked.sig"] = list, p.server.Sign(list).Marshal()
}

func (p *published) serve(t *testing.T) *client.Client {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, ok := p.files[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, `{"status":404,"detail":"no such file"}`)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
		w.Write(b)
	}))
	t.Cleanup(s.Close)
	return &client.Client{URL: s.URL + "/"}
}

func namesIn(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestDownloadAndVerify: everything arrives and the chain holds.
func TestDownloadAndVerify(t *testing.T) {
	p := publish(t)
	p.revoke(usign.Fingerprint{1})
	dir := filepath.Join(t.TempDir(), "new", "folder")
	done := map[string]int64{}
	err := p.serve(t).Download(t.Context(), p.result, dir, func(name string, n, total int64) {
		if done[name] = n; total != int64(len(p.files[folder+name])) && !strings.HasPrefix(name, "revoked") {
			t.Errorf("%s: total %d", name, total)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if done["a-squashfs-combined.img.gz"] != 60_000 {
		t.Errorf("progress: %v", done)
	}
	want := []string{"a-squashfs-combined.img.gz", "a.manifest", "build.json", "build.log", "profiles.json", "revoked", "revoked.sig",
		"sha256sums", "sha256sums.sig", "worker.pub", "worker.pub.sig"}
	if got := namesIn(t, dir); !slices.Equal(got, want) {
		t.Errorf("files %v, want %v", got, want)
	}
	report, err := client.Verify(dir, p.keys, noon)
	if err != nil {
		t.Fatal(err)
	}
	if report.Worker.Worker != "worker-1" || report.Build.Plan.Profile != "generic" || !report.Build.BuiltAt.Equal(noon) || len(report.Files) != 5 || !report.Revoked.Equal(noon) {
		t.Errorf("%+v", report)
	}
	// Again into the same folder, and now the server has no list any more.
	delete(p.files, "/keys/revoked")
	if err := p.serve(t).Download(t.Context(), p.result, dir, nil); err != nil {
		t.Fatal(err)
	}
	if got := namesIn(t, dir); slices.Contains(got, "revoked") || slices.Contains(got, "revoked.sig") {
		t.Errorf("an old list stays: %v", got)
	}
	if _, err := client.Verify(dir, p.keys, noon); err != nil {
		t.Error(err)
	}
}

// TestVerifyRefuses: each link of the chain is looked at.
func TestVerifyRefuses(t *testing.T) {
	other, err := usign.Generate("")
	if err != nil {
		t.Fatal(err)
	}
	write := func(dir, name, text string) error { return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600) }
	tests := []struct {
		name  string
		spoil func(p *published, dir string) error
		want  error
	}{
		{"an image changed", func(p *published, dir string) error { return write(dir, "a-squashfs-combined.img.gz", "evil") }, usign.ErrSum},
		{"a file is missing", func(p *published, dir string) error { return os.Remove(filepath.Join(dir, "a.manifest")) }, os.ErrNotExist},
		{"a file that nobody signed", func(p *published, dir string) error { return write(dir, "b.img", "evil") }, usign.ErrSum},
		{"one hidden below", func(p *published, dir string) error {
			return errors.Join(os.Mkdir(filepath.Join(dir, "sub"), 0o700), write(dir, "sub/revoked", "evil"))
		}, usign.ErrSum},
		{"another server", func(p *published, dir string) error { p.keys = []usign.PublicKey{other.Public()}; return nil }, usign.ErrUnknownKey},
		{"no key at all", func(p *published, dir string) error { p.keys = nil; return nil }, usign.ErrUnknownKey},
		{"the list of sums changed", func(p *published, dir string) error { return write(dir, "sha256sums", "") }, usign.ErrBadSignature},
		{"the worker's key was revoked", func(p *published, dir string) error {
			list := usign.Revoked{Issued: noon, Keys: []usign.Fingerprint{p.worker.Public().Fingerprint}}.Marshal()
			return errors.Join(write(dir, "revoked", string(list)), write(dir, "revoked.sig", string(p.server.Sign(list).Marshal())))
		}, usign.ErrRevoked},
		{"a list of revoked keys that somebody else signed", func(p *published, dir string) error {
			list := usign.Revoked{Issued: noon}.Marshal()
			return errors.Join(write(dir, "revoked", string(list)), write(dir, "revoked.sig", string(other.Sign(list).Marshal())))
		}, usign.ErrUnknownKey},
		{"a list without its signature", func(p *published, dir string) error { return write(dir, "revoked", "x") }, os.ErrNotExist},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p, dir := publish(t), t.TempDir()
			if err := p.serve(t).Download(t.Context(), p.result, dir, nil); err != nil {
				t.Fatal(err)
			}
			if err := test.spoil(p, dir); err != nil {
				t.Fatal(err)
			}
			if _, err := client.Verify(dir, p.keys, noon); !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
		})
	}
}

// TestHostileServer: names and sizes from the server are data. Nothing is
// written outside the folder, and nothing half under its name inside.
func TestHostileServer(t *testing.T) {
	line := func(name string) []byte { return fmt.Appendf(nil, "%064x *%s\n", 0, name) }
	tests := []struct {
		name  string
		spoil func(p *published)
		text  string
	}{
		{"the folder goes up", func(p *published) { p.result.BinDir = "../../secret" }, "folder that cannot be one"},
		{"the folder is an address", func(p *published) { p.result.BinDir = "http://evil.example/x" }, "folder that cannot be one"},
		{"no folder", func(p *published) { p.result.BinDir = "" }, "folder that cannot be one"},
		{"a name goes up", func(p *published) { p.files[folder+"sha256sums"] = line("../evil") }, "sha256sums"},
		{"a name in a folder", func(p *published) { p.files[folder+"sha256sums"] = line("a/evil"); p.result.Images = nil }, "file that cannot be one"},
		{"a name from the root", func(p *published) { p.files[folder+"sha256sums"] = line("/etc/passwd") }, "sha256sums"},
		{"a hidden name", func(p *published) { p.files[folder+"sha256sums"] = line(".profile") }, "cannot be one"},
		{"no list", func(p *published) { p.files[folder+"sha256sums"] = []byte("hello") }, "sha256sums"},
		{"too many files", func(p *published) {
			for i := range 300 {
				p.files[folder+"sha256sums"] = append(p.files[folder+"sha256sums"], line(fmt.Sprintf("f%d", i))...)
			}
		}, "at most 256"},
		{"an image that the list lacks", func(p *published) { p.result.Images[0].Name = "b.img" }, "disagree"},
		{"an image with another sum", func(p *published) { p.result.Images[0].SHA256 = strings.Repeat("0", 64) }, "disagree"},
		{"a file is missing", func(p *published) { delete(p.files, folder+"a.manifest") }, "no such file"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p, outer := publish(t), t.TempDir()
			p.result.Images = slices.Clone(p.result.Images)
			if p.result.Images[0].SHA256 == "" {
				t.Fatal("nothing to spoil")
			}
			if strings.HasPrefix(test.name, "a hidden") {
				p.result.Images = nil
			}
			test.spoil(p)
			err := p.serve(t).Download(t.Context(), p.result, filepath.Join(outer, "in"), nil)
			if err == nil || !strings.Contains(err.Error(), test.text) {
				t.Errorf("%v, want %q", err, test.text)
			}
			if got := namesIn(t, outer); len(got) > 1 {
				t.Errorf("outside the folder: %v", got)
			}
		})
	}
}

// TestLinksInTheFolder: a link that lies in wait leads nowhere.
func TestLinksInTheFolder(t *testing.T) {
	p, dir := publish(t), t.TempDir()
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".sha256sums.part", "a.manifest"} {
		if err := os.Symlink(victim, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.serve(t).Download(t.Context(), p.result, dir, nil); err == nil {
		t.Error("it wrote through a link")
	}
	if err := os.Remove(filepath.Join(dir, ".sha256sums.part")); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if err := p.serve(t).Download(t.Context(), p.result, dir, nil); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(victim); err != nil || string(b) != "precious" {
		t.Errorf("%q %v", b, err)
	}
}

// bodies is a server whose bodies are readers.
type bodies func(r *http.Request) (io.Reader, int64)

func (b bodies) RoundTrip(r *http.Request) (*http.Response, error) {
	body, length := b(r)
	return &http.Response{StatusCode: 200, Status: "200 OK", Request: r, Body: io.NopCloser(body), ContentLength: length}, nil
}

// TestTruncated: a file that breaks off does not get its name.
func TestTruncated(t *testing.T) {
	p, dir := publish(t), t.TempDir()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100000")
		w.Write(p.files[r.URL.Path])
	}))
	t.Cleanup(s.Close)
	c := &client.Client{URL: s.URL}
	if err := c.Download(t.Context(), p.result, dir, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v", err)
	}
	if got := namesIn(t, dir); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
}

// TestSlowServer: one that sends nothing for a minute is given up, one that
// is merely slow is not.
func TestSlowServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := publish(t)
		began := time.Now()
		c := &client.Client{URL: "http://sysup.example", HTTP: &http.Client{Transport: bodies(func(r *http.Request) (io.Reader, int64) {
			b := p.files[r.URL.Path]
			if strings.HasSuffix(r.URL.Path, ".manifest") {
				return io.MultiReader(pause{50 * time.Second, nil}, strings.NewReader("bus"), pause{50 * time.Second, nil}, strings.NewReader("ybox - 1")), int64(len(b))
			}
			if strings.HasSuffix(r.URL.Path, "profiles.json") {
				return io.MultiReader(strings.NewReader("{"), pause{time.Hour, r.Context()}), 2
			}
			return strings.NewReader(string(b)), int64(len(b))
		})}}
		err := c.Download(t.Context(), p.result, t.TempDir(), nil)
		if err == nil || !strings.Contains(err.Error(), "sent nothing for 1m") || !strings.Contains(err.Error(), "profiles.json") {
			t.Errorf("%v", err)
		}
		if took := time.Since(began); took != 160*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// pause is a reader that takes its time before its end.
type pause struct {
	d   time.Duration
	ctx context.Context
}

func (p pause) Read([]byte) (int, error) {
	if p.ctx == nil {
		time.Sleep(p.d)
		return 0, io.EOF
	}
	select {
	case <-time.After(p.d):
		return 0, io.EOF
	case <-p.ctx.Done():
		return 0, p.ctx.Err()
	}
}

// FuzzDownload: whatever a server lists, all that is written lies in the
// folder under a sane name.
func FuzzDownload(f *testing.F) {
	f.Add(hash+"/0", []byte(strings.Repeat("0", 64)+" *a.img\n"))
	f.Add("../x", []byte(strings.Repeat("0", 64)+" *../a\n"))
	f.Add("private/a/b", []byte(strings.Repeat("0", 64)+"  .hidden\n"+strings.Repeat("1", 64)+" *a/b\n"))
	f.Fuzz(func(t *testing.T, binDir string, sums []byte) {
		outer := t.TempDir()
		c := &client.Client{URL: "http://sysup.example", HTTP: &http.Client{Transport: bodies(func(r *http.Request) (io.Reader, int64) {
			if !strings.HasPrefix(r.URL.Path, "/store/") && !strings.HasPrefix(r.URL.Path, "/keys/") || strings.Contains(r.URL.Path, "..") || r.URL.Host != "sysup.example" {
				t.Errorf("it asked for %s", r.URL)
			}
			if strings.HasSuffix(r.URL.Path, "/sha256sums") {
				return strings.NewReader(string(sums)), int64(len(sums))
			}
			return strings.NewReader("x"), 1
		})}}
		err := c.Download(t.Context(), client.Result{BinDir: binDir}, filepath.Join(outer, "in"), nil)
		for _, name := range namesIn(t, outer) {
			if name != "in" {
				t.Errorf("%q lies outside", name)
			}
		}
		if err != nil {
			return
		}
		listed, parseErr := usign.ParseSums(sums)
		if parseErr != nil {
			t.Fatalf("%q was accepted", sums)
		}
		for _, name := range namesIn(t, filepath.Join(outer, "in")) {
			_, known := listed[name]
			if strings.HasPrefix(name, ".") || !known && !slices.Contains([]string{"sha256sums", "sha256sums.sig", "worker.pub", "worker.pub.sig", "revoked", "revoked.sig"}, name) {
				t.Errorf("%q was written; listed are %v", name, slices.Collect(maps.Keys(listed)))
			}
		}
	})
}
