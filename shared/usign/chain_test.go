package usign

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"
)

// result is a folder as a worker publishes it; each test spoils it in one way
// and the caller signs what has to be signed again.
type result struct {
	server, worker SecretKey
	files          map[string]string
}

func newResult(t testing.TB) *result {
	r := &result{generate(t, "server"), generate(t, "worker"), map[string]string{
		"openwrt-sysupgrade.bin": "an image",
		"profiles.json":          "{}",
		BuildFile:                `{"request_hash":"abc","built_at":"2026-01-31T12:00:00Z"}`,
	}}
	r.certify(t, noon.Add(-time.Hour), noon.Add(23*time.Hour))
	r.sign(t)
	return r
}

func (r *result) certify(t testing.TB, notBefore, notAfter time.Time) {
	c := must(NewCertificate("w-1", r.worker.Public().Key, notBefore, notAfter))(t)
	r.files[WorkerFile] = string(c.Marshal())
	r.files[WorkerSigFile] = string(r.server.Sign(c.Marshal()).Marshal())
}

func (r *result) sign(t testing.TB) {
	sums := Sums{}
	for name, content := range r.files {
		switch name {
		case WorkerFile, WorkerSigFile, SumsFile, SumsSigFile:
		default:
			sums[name] = sha256.Sum256([]byte(content))
		}
	}
	r.list(string(must(sums.Marshal())(t)))
}

func (r *result) list(sums string) {
	r.files[SumsFile] = sums
	r.files[SumsSigFile] = string(r.worker.Sign([]byte(sums)).Marshal())
}

func (r *result) build(t testing.TB, content string) {
	r.files[BuildFile] = content
	r.sign(t)
}

func (r *result) fs() fs.FS {
	dir := fstest.MapFS{}
	for name, content := range r.files {
		dir[name] = &fstest.MapFile{Data: []byte(content)}
	}
	return dir
}

func (r *result) trust() Trust { return Trust{Server: []PublicKey{r.server.Public()}} }

func TestVerifyDir(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(*result)
		want  error
		file  string // named in the error
	}{
		{"nothing", func(*result) {}, nil, ""},
		{"another server", func(r *result) {
			r.server = generate(t, "other")
			r.certify(t, noon, noon)
		}, ErrUnknownKey, WorkerSigFile},
		{"a server of the same name", func(r *result) {
			print := r.server.fingerprint
			r.server = generate(t, "other")
			r.server.fingerprint = print
			r.certify(t, noon, noon)
		}, ErrBadSignature, WorkerSigFile},
		{"a certificate for longer", func(r *result) {
			r.files[WorkerFile] = strings.Replace(r.files[WorkerFile], "not-after=2026", "not-after=2036", 1)
		}, ErrBadSignature, WorkerSigFile},
		{"a key file without dates", func(r *result) {
			key := r.worker.Public().Marshal()
			r.files[WorkerFile], r.files[WorkerSigFile] = string(key), string(r.server.Sign(key).Marshal())
		}, ErrFormat, WorkerFile},
		{"a certificate signed by its own key", func(r *result) {
			r.files[WorkerSigFile] = string(r.worker.Sign([]byte(r.files[WorkerFile])).Marshal())
		}, ErrUnknownKey, WorkerSigFile},
		{"sums signed by the server", func(r *result) {
			r.files[SumsSigFile] = string(r.server.Sign([]byte(r.files[SumsFile])).Marshal())
		}, ErrUnknownKey, SumsSigFile},
		{"a changed image and its sum", func(r *result) {
			r.files["openwrt-sysupgrade.bin"] = "evil"
			sums := must(ParseSums([]byte(r.files[SumsFile])))(t)
			sums["openwrt-sysupgrade.bin"] = sha256.Sum256([]byte("evil"))
			r.files[SumsFile] = string(must(sums.Marshal())(t))
		}, ErrBadSignature, SumsSigFile},
		{"a changed image", func(r *result) { r.files["openwrt-sysupgrade.bin"] = "evil" }, ErrSum, "openwrt-sysupgrade.bin"},
		{"an image that is cut off", func(r *result) { r.files["openwrt-sysupgrade.bin"] = "an im" }, ErrSum, "openwrt-sysupgrade.bin"},
		{"a missing image", func(r *result) { delete(r.files, "openwrt-sysupgrade.bin") }, fs.ErrNotExist, "openwrt-sysupgrade.bin"},
		{"a file that nobody signed", func(r *result) { r.files["more.bin"] = "" }, ErrSum, "more.bin"},
		{"a folder's file that nobody signed", func(r *result) { r.files["sub/more.bin"] = "" }, ErrSum, "sub/more.bin"},
		{"no worker.pub", func(r *result) { delete(r.files, WorkerFile) }, fs.ErrNotExist, WorkerFile},
		{"no worker.pub.sig", func(r *result) { delete(r.files, WorkerSigFile) }, fs.ErrNotExist, WorkerSigFile},
		{"no sha256sums", func(r *result) { delete(r.files, SumsFile) }, fs.ErrNotExist, SumsFile},
		{"no sha256sums.sig", func(r *result) { delete(r.files, SumsSigFile) }, fs.ErrNotExist, SumsSigFile},
		{"no build.json", func(r *result) { delete(r.files, BuildFile) }, fs.ErrNotExist, BuildFile},
		{"a build.json that is not listed", func(r *result) { r.list("") }, ErrSum, BuildFile},
		{"a changed build.json", func(r *result) { r.files[BuildFile] += " " }, ErrSum, BuildFile},
		{"a build.json that is none", func(r *result) { r.build(t, "[]") }, ErrFormat, BuildFile},
		{"no built_at", func(r *result) { r.build(t, "{}") }, ErrFormat, BuildFile},
		{"built_at is no date", func(r *result) { r.build(t, `{"built_at":"today"}`) }, ErrFormat, BuildFile},
		{"built_at is not in UTC", func(r *result) { r.build(t, `{"built_at":"2026-01-31T12:00:00+02:00"}`) }, ErrFormat, BuildFile},
		{"built before the certificate", func(r *result) { r.build(t, `{"built_at":"2026-01-31T10:59:59Z"}`) }, ErrExpired, WorkerFile},
		{"built after the certificate", func(r *result) { r.build(t, `{"built_at":"2026-02-01T11:00:01Z"}`) }, ErrExpired, WorkerFile},
		{"built in its first second", func(r *result) { r.build(t, `{"built_at":"2026-01-31T11:00:00Z"}`) }, nil, ""},
		{"built in its last second", func(r *result) { r.build(t, `{"built_at":"2026-02-01T11:00:00Z"}`) }, nil, ""},
		{"sums that are none", func(r *result) { r.list("nothing\n") }, ErrFormat, SumsFile},
		{"sums that name files elsewhere", func(r *result) { r.list(r.files[SumsFile] + hexA + " *../x\n") }, ErrFormat, SumsFile},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newResult(t)
			trust := r.trust()
			c.spoil(r)
			verified, err := trust.VerifyDir(r.fs(), noon)
			if !errors.Is(err, c.want) || (err != nil && !strings.Contains(err.Error(), c.file)) {
				t.Fatalf("%v, not %v about %s", err, c.want, c.file)
			}
			if err == nil && (verified.Certificate.Worker != "w-1" || len(verified.Sums) != 3) {
				t.Errorf("%+v", verified)
			}
		})
	}
}

func TestRevokedWorker(t *testing.T) {
	r := newResult(t)
	trust := r.trust()
	trust.Revoked.Keys = []Fingerprint{{1}, FingerprintOf(r.worker.Public().Key)}
	if _, err := trust.VerifyDir(r.fs(), noon); !errors.Is(err, ErrRevoked) {
		t.Errorf("%v", err)
	}
}

func TestClientsClock(t *testing.T) {
	r := newResult(t)
	end := noon.Add(23 * time.Hour).Add(Grace)
	for _, c := range []struct {
		name string
		now  time.Time
		want error
	}{
		{"today", noon, nil},
		{"the last second", end, nil},
		{"too late", end.Add(time.Second), ErrExpired},
		{"a year later", end.AddDate(1, 0, 0), ErrExpired},
		{"no clock", time.Time{}, nil},
		{"a router that has just started", time.Unix(100, 0), nil},
		{"a clock that is a little behind", noon.Add(-time.Hour), nil},
	} {
		if _, err := r.trust().VerifyDir(r.fs(), c.now); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestVerifySomeFiles(t *testing.T) {
	r := newResult(t)
	delete(r.files, "profiles.json")
	r.files["unrelated"] = ""
	if _, err := r.trust().VerifyDir(r.fs(), noon, "openwrt-sysupgrade.bin"); err != nil {
		t.Errorf("the one file: %v", err)
	}
	for name, want := range map[string]error{"profiles.json": fs.ErrNotExist, "unrelated": ErrSum, "nothing": fs.ErrNotExist} {
		if _, err := r.trust().VerifyDir(r.fs(), noon, name); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Every single changed byte of a result is noticed.
func TestEveryByteCounts(t *testing.T) {
	r := newResult(t)
	for name, content := range maps.Clone(r.files) {
		for i := range content {
			b := []byte(content)
			b[i] ^= 1
			r.files[name] = string(b)
			_, err := r.trust().VerifyDir(r.fs(), noon)
			comment := strings.HasSuffix(name, ".sig") && i < strings.Index(content, "\n")
			if err == nil && !comment {
				t.Errorf("byte %d of %s may be changed", i, name)
			}
		}
		r.files[name] = content
	}
}

// A pipe in the folder must not stop the verifier, nor a huge file fill its memory.
func TestVerifyOddFiles(t *testing.T) {
	r := newResult(t)
	dir := t.TempDir()
	fill := func() {
		for name, content := range r.files {
			write(t, dir, name, []byte(content))
		}
	}
	fill()
	if _, err := r.trust().VerifyDir(os.DirFS(dir), noon); err != nil {
		t.Fatalf("from the disk: %v", err)
	}
	for _, name := range []string{WorkerFile, "openwrt-sysupgrade.bin"} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, err := r.trust().VerifyDir(os.DirFS(dir), noon); !errors.Is(err, ErrFormat) {
			t.Errorf("%s is a pipe: %v", name, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		fill()
	}
	if err := os.Truncate(filepath.Join(dir, BuildFile), 1<<40); err != nil {
		t.Fatal(err)
	}
	if _, err := r.trust().VerifyDir(os.DirFS(dir), noon); !errors.Is(err, ErrFormat) {
		t.Errorf("a build.json of a terabyte: %v", err)
	}
}

func FuzzVerifyChain(f *testing.F) {
	r := newResult(f)
	chain := func(r *result) Chain {
		return Chain{[]byte(r.files[WorkerFile]), []byte(r.files[WorkerSigFile]), []byte(r.files[SumsFile]), []byte(r.files[SumsSigFile]), []byte(r.files[BuildFile])}
	}
	c := chain(r)
	f.Add(c.Worker, c.WorkerSig, c.Sums, c.SumsSig, c.Build)
	f.Add(c.Worker, c.WorkerSig, []byte(hexA+" *x\n"), c.SumsSig, c.Build)
	f.Fuzz(func(t *testing.T, worker, workerSig, sums, sumsSig, build []byte) {
		got, err := r.trust().VerifyChain(Chain{worker, workerSig, sums, sumsSig, build}, noon)
		if err == nil && (string(worker) != r.files[WorkerFile] || string(sums) != r.files[SumsFile] || string(build) != r.files[BuildFile]) {
			t.Errorf("accepted what nobody signed: %+v", got)
		}
	})
}

func Example() {
	server, _ := Generate("server")
	worker, _ := Generate("worker")

	certificate, _ := NewCertificate("worker-1", worker.Public().Key, noon, noon.Add(24*time.Hour))
	image, build := []byte("an image"), []byte(`{"built_at":"2026-01-31T12:30:00Z"}`)
	sums, _ := Sums{"image.bin": sha256.Sum256(image), BuildFile: sha256.Sum256(build)}.Marshal()

	verified, err := Trust{Server: []PublicKey{server.Public()}}.VerifyChain(Chain{
		Worker:    certificate.Marshal(),
		WorkerSig: server.Sign(certificate.Marshal()).Marshal(),
		Sums:      sums,
		SumsSig:   worker.Sign(sums).Marshal(),
		Build:     build,
	}, noon.Add(time.Hour))
	fmt.Println(verified.Certificate.Worker, verified.BuiltAt, err)
	// Output: worker-1 2026-01-31 12:30:00 +0000 UTC <nil>
}
