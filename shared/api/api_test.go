package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
)

// call answers one request in this process.
func call(h http.Handler, method, target, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// sentence is the text of the error in a body, "" if there is none.
func sentence(w *httptest.ResponseRecorder) string {
	var said struct {
		Detail *string `json:"detail"`
		Error  *string `json:"error"`
	}
	if json.Unmarshal(w.Body.Bytes(), &said) != nil || said.Detail == nil {
		return ""
	}
	return *said.Detail
}

const stock = `{"version":"24.10.5","target":"x86/64","profile":"generic"}`

// with is the stock request with one more member, or another value for one.
func with(member string) string {
	name, _, _ := strings.Cut(member, ":")
	var kept []string
	for _, m := range []string{`"version":"24.10.5"`, `"target":"x86/64"`, `"profile":"generic"`} {
		if !strings.HasPrefix(m, name+":") {
			kept = append(kept, m)
		}
	}
	return "{" + strings.Join(append(kept, member), ",") + "}"
}

func deep(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }

// TestMalformed: what is no JSON object, or one that two readers could take
// for two things, is refused in every dialect.
func TestMalformed(t *testing.T) {
	refuses(t, []string{"/api/v1/build", "/api/upgrade-request"}, []badInput{
		{"nothing", "", "empty"},
		{"not JSON", "hello", "not valid JSON"},
		{"broken off", `{"version":"24.10.5"`, "unexpected end"},
		{"broken off in a string", `{"version":"24.1`, "unexpected end"},
		{"list", `[]`, "JSON object"},
		{"null", `null`, "JSON object"},
		{"number", `7`, "JSON object"},
		{"something after it", stock + `{}`, "after top-level"},
		{"a comma after it", stock + `,`, "after top-level"},
		{"a bracket after it", stock + `]`, "after top-level"},
		{"a name twice among many", `{` + strings.Repeat(" ", 10) + manyNames(40) + `,"n7":1}`, `"n7" twice`},
		{"comma before the end", `{"version":"24.10.5",}`, "not valid JSON"},
		{"no UTF-8", "{\"version\":\"\xff\"}", "UTF-8"},
		{"too deep", with(`"x":` + deep(100)), "deep"},
		{"far too deep", with(`"x":` + deep(100_000)), "depth"},
		{"just too deep", with(`"x":` + deep(maxDepth)), "deep"},
		{"a name twice", `{"version":"24.10.5","version":"23.05.6","target":"x86/64"}`, `"version" twice`},
		{"a name twice, escaped", `{"version":"24.10.5","\u0076ersion":"23.05.6"}`, `"version" twice`},
		{"a package's version twice", with(`"packages_versions":{"luci":"1","luci":"2"}`), `"luci" twice`},
		{"too large", with(`"x":"` + strings.Repeat("a", maxBody) + `"`), "larger than 256 KiB"},
	})
}

// badInput is a body whose refusal has to hold the text.
type badInput struct{ name, body, text string }

// refuses posts each body to each path. Nothing may be built, looked up or
// stored because of it, and the answer must not repeat much of it.
func refuses(t *testing.T, paths []string, tests []badInput) {
	rig := newRig(t)
	h := rig.handler()
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, path := range paths {
				w := call(h, "POST", path, test.body)
				if w.Code != http.StatusBadRequest || !strings.Contains(sentence(w), test.text) {
					t.Errorf("%s: %d %.300s, want 400 with %q in its detail", path, w.Code, w.Body, test.text)
				}
				if w.Body.Len() > 1000 {
					t.Errorf("%s: an answer of %d bytes repeats too much of the request", path, w.Body.Len())
				}
			}
		})
	}
	if rig.records.Writes() != 0 {
		t.Errorf("bad input wrote %d times", rig.records.Writes())
	}
}

// TestBadInput: every field has a type, a pattern and a limit.
func TestBadInput(t *testing.T) {
	refuses(t, []string{"/api/v1/build"}, []badInput{
		{"version is a number", with(`"version":24.10`), `"version" has to be a string`},
		{"version is a list", with(`"version":["24.10.5"]`), `"version" has to be a string`},
		{"version is null", with(`"version":null`), `lacks "version"`},
		{"no version", `{"target":"x86/64"}`, `lacks "version"`},
		{"no target", `{"version":"24.10.5"}`, `lacks "target"`},
		{"spelled otherwise", `{"VERSION":"24.10.5","target":"x86/64"}`, `lacks "version"`},
		{"packages is a string", with(`"packages":"luci"`), `"packages" has to be a list`},
		{"packages holds a number", with(`"packages":["luci",7]`), `item 2`},
		{"packages holds null", with(`"packages":[null]`), `item 1`},
		{"packages holds a list", with(`"packages":[["luci"]]`), `item 1`},
		{"packages_versions is a list", with(`"packages_versions":["luci"]`), "object of strings"},
		{"packages_versions holds a number", with(`"packages_versions":{"luci":1}`), `"luci"`},
		{"diff_packages is a string", with(`"diff_packages":"true"`), "true or false"},
		{"diff_packages is a number", with(`"diff_packages":1`), "true or false"},
		{"size is no number", with(`"rootfs_size_mb":"big"`), "whole number"},
		{"size is a fraction", with(`"rootfs_size_mb":1.5`), "whole number"},
		{"size is a list", with(`"rootfs_size_mb":[]`), "whole number"},
		{"size overflows", with(`"rootfs_size_mb":99999999999999999999`), "whole number"},
		{"size is too large", with(`"rootfs_size_mb":1025`), "between 1 and 1024"},
		{"size is negative", with(`"rootfs_size_mb":-1`), "between 1 and 1024"},
		{"repositories is a list", with(`"repositories":["https://feeds.example.org"]`), "object of strings"},
		{"repository_keys is a string", with(`"repository_keys":"key"`), "list of strings"},
		{"a key is none", with(`"repository_keys":["-----BEGIN"]`), "repository_keys"},
		{"mode is unknown", with(`"repositories_mode":"prepend"`), "repositories_mode"},
		{"script is a number", with(`"defaults":7`), `"defaults" has to be a string`},
		{"script is too long", with(`"defaults":"` + strings.Repeat("a", build.MaxDefaults+1) + `"`), "at most 20480"},
		{"script has a zero byte", with(`"defaults":"a\u0000b"`), "text"},

		{"shell in packages", with(`"packages":["nano; touch x"]`), "not a package name"},
		{"make in packages", with(`"packages":["$(shell touch x)"]`), "not a package name"},
		{"backquotes in packages", with("\"packages\":[\"`id`\"]"), "not a package name"},
		{"a new line in packages", with(`"packages":["nano\nluci"]`), "not a package name"},
		{"make in profile", with(`"profile":"$(shell id)"`), `"profile"`},
		{"blank in profile", with(`"profile":"a b"`), `"profile"`},
		{"shell in version", with(`"version":"24.10.5;id"`), `"version"`},
		{"folder in version", with(`"version":"../24.10.5"`), `"version"`},
		{"shell in version_code", with(`"version_code":"r1|id"`), `"version_code"`},
		{"three parts in target", with(`"target":"x86/64/.."`), `"target"`},
		{"up in target", with(`"target":"../x86"`), `"target"`},
		{"shell in filesystem", with(`"filesystem":"ext4 $(id)"`), "file system"},
		{"shell in distro", with(`"distro":"a;b"`), `"distro"`},
		{"control characters in client", with(`"client":"a\u0007b"`), `"client"`},
		{"a feed's name is an option", with(`"repositories":{"--x":"https://feeds.example.org/packages"}`), "repositories"},
		{"a feed's address has a blank", with(`"repositories":{"a":"https://feeds.example.org/packages /b"}`), "repositories"},
		{"a feed's address goes up", with(`"repositories":{"a":"https://feeds.example.org/packages/../secret"}`), "repositories"},
		{"a feed on the disk", with(`"repositories":{"a":"file:///etc/passwd"}`), "repositories"},
		{"a feed is null", with(`"repositories":{"a":null}`), `"a" with address ""`},
		{"a version with shell", with(`"packages_versions":{"luci":"1;id"}`), "packages_versions"},

		{"a name of a megabyte", with(`"packages":["` + strings.Repeat("a", 200<<10) + `"]`), "not a package name"},
		{"too many packages", with(`"packages":[` + strings.Repeat(`"a",`, build.MaxPackages) + `"a"]`), "at most 1000"},
		{"fifty thousand packages", with(`"packages":[` + strings.Repeat(`"a",`, 50_000) + `"a"]`), "at most 1000"},
		{"too many keys", with(`"repository_keys":[` + strings.Repeat(`"a",`, build.MaxKeys) + `"a"]`), "At most"},
		{"too many feeds", with(`"repositories":{` + many(build.MaxRepositories+1) + `}`), "At most"},
	})
}

// TestBadInput2018: the same for the first API's own fields.
func TestBadInput2018(t *testing.T) {
	refuses(t, []string{"/api/upgrade-request"}, []badInput{
		{"no target", `{"version":"24.10.5","packages":["luci"]}`, `lacks "target"`},
		{"no subtarget", `{"version":"24.10.5","target":"x86"}`, `"target"`},
		{"three parts", `{"version":"24.10.5","target":"x86/64","subtarget":"64"}`, `"target"`},
		{"target is a number", `{"version":"24.10.5","target":86,"subtarget":"64"}`, `"target"`},
		{"shell in subtarget", `{"version":"24.10.5","target":"x86","subtarget":"64;id"}`, `"target"`},
		{"shell in board", `{"version":"24.10.5","target":"x86","subtarget":"64","board":"$(id)"}`, `"profile"`},
		{"shell in model", `{"version":"24.10.5","target":"x86","subtarget":"64","model":"` + "`id`" + `"}`, `"model"`},
		{"packages is a text", `{"version":"24.10.5","target":"x86","subtarget":"64","packages":"luci"}`, `"packages"`},
		{"shell in a list", `{"version":"24.10.5","target":"x86","subtarget":"64","packages":["a;b"]}`, "not a package name"},
		{"shell in a map", `{"version":"24.10.5","target":"x86","subtarget":"64","packages":{"a;b":"1"}}`, "not a package name"},
		{"a map of numbers", `{"version":"24.10.5","target":"x86","subtarget":"64","packages":{"luci":1}}`, `"luci"`},
	})
}

func manyNames(n int) string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf(`"n%d":%d`, i, i))
	}
	return strings.Join(list, ",")
}

func many(n int) string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf(`"f%d":"https://feeds.example.org/packages"`, i))
	}
	return strings.Join(list, ",")
}

// TestGoodInput: what clients really send is taken.
func TestGoodInput(t *testing.T) {
	for _, body := range []string{
		" \n" + stock + "\n ",
		with(`"unknown":{"deep":[[[{"a":null}]]]}`),
		with(`"x":` + deep(maxDepth-1)),
		with(`"packages":null,"packages_versions":null,"repositories":null,"repository_keys":null,"diff_packages":null`),
		with(`"defaults":null,"rootfs_size_mb":null,"filesystem":null,"client":null,"version_code":null,"distro":null`),
		with(`"defaults":"","filesystem":"","client":"","version_code":"","rootfs_size_mb":""`),
		with(`"packages":[],"packages_versions":[],"repositories":[]`), // Lua's empty tables
		with(`"packages":["","luci",""]`),
		with(`"packages":["+luci","-dnsmasq","nano=8.3-r1"]`),
		with(`"packages":["libstdc++6"],"packages_versions":{"luci":"26.1~abc:1"}`),
		with(`"rootfs_size_mb":"512"`),
		with(`"distro":"openwrt"`),
	} {
		rig := newRig(t)
		if w := call(rig.handler(), "POST", "/api/v1/build", body); w.Code != http.StatusAccepted {
			t.Errorf("%s\n%d %s", body, w.Code, w.Body)
			continue
		}
		request := rig.only().Request
		if err := request.Check(); err != nil {
			t.Errorf("%s was taken: %v", body, err)
		}
	}
}

// TestBodyThatBreaksOff: the sentence blames the connection and not the JSON.
func TestBodyThatBreaksOff(t *testing.T) {
	r := httptest.NewRequest("POST", "/api/v1/build", io.MultiReader(strings.NewReader(stock), unreadable{}))
	w := httptest.NewRecorder()
	newRig(t).handler().ServeHTTP(w, r)
	if w.Code != 400 || !strings.Contains(sentence(w), "did not arrive whole") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

type unreadable struct{}

func (unreadable) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// addresses are all routes, with something for what varies.
func addresses(h http.Handler) []string {
	fill := strings.NewReplacer("{hash}", strings.Repeat("0", 64), "{path...}", "a/b/c", "{name}", "server.pub", "{file}", "index.json",
		"{version}", "24.10.5", "{target}", "x86", "{subtarget}", "64")
	list := []string{"/nowhere", "/api", "/api/v1", "/json", "/keys", "/api/files"}
	for _, r := range h.(*server).routes() {
		list = append(list, fill.Replace(r.path))
	}
	return list
}

// TestEveryAddress: whatever the method and however slashes and queries look,
// an answer can be read by a page of another origin, is no redirect, and tells
// an error by a sentence. Odd spellings answer as plain ones do.
func TestEveryAddress(t *testing.T) {
	rig := newRig(t)
	rig.put("keys/server.pub", "a key")
	h := rig.handler()
	for _, address := range addresses(h) {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"} {
			plain := call(h, method, address, "")
			for _, odd := range []string{address + "/", "/" + address, strings.ReplaceAll(address, "/", "///") + "//", address + "?1696506154265", address + "?a&b=c"} {
				target, err := url.Parse("http://sysup.example" + odd)
				if err != nil {
					t.Fatal(err)
				}
				r := httptest.NewRequest(method, "/", nil)
				r.URL = target
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				if w.Code != plain.Code || w.Body.String() != plain.Body.String() {
					t.Errorf("%s %s: %d, but %d without the oddity", method, odd, w.Code, plain.Code)
				}
			}
			check := func(ok bool, what string) {
				if !ok {
					t.Errorf("%s %s: %s: %d %v %s", method, address, what, plain.Code, plain.Header(), plain.Body)
				}
			}
			header := plain.Header()
			check(header.Get("Access-Control-Allow-Origin") == "*", "CORS")
			check(strings.Contains(header.Get("Access-Control-Expose-Headers"), "X-Queue-Position"), "exposed headers")
			check(plain.Code < 300 || plain.Code >= 400, "a redirect")
			check(plain.Code < 500, "a fault")
			switch {
			case method == "OPTIONS":
				check(plain.Code == 204 && plain.Body.Len() == 0 && header.Get("Access-Control-Allow-Methods") != "", "preflight")
			case method == "HEAD":
				check(plain.Body.Len() == 0, "a body")
				check(header.Get("Content-Length") != "", "no Content-Length")
			case plain.Code >= 400:
				check(sentence(plain) != "", "no sentence")
				check(plain.Code != 405 || header.Get("Allow") != "", "no Allow")
				check(header.Get("Content-Length") == strconv.Itoa(plain.Body.Len()), "Content-Length")
				check(header.Get("Cache-Control") == build.CacheNever, "an error that is cached")
			}
		}
	}
}

// TestFaults: what is wrong inside is in the log and not in the answer.
func TestFaults(t *testing.T) {
	secret := errors.New("open /srv/data/sysup.db: permission denied")
	tests := []struct {
		name   string
		spoil  func(*rig)
		status int
		text   string // in the sentence
		logged string
	}{
		{"the catalogue panics", func(r *rig) { r.catalog.panics = true }, 500, "went wrong", "secret/place.go"},
		{"the catalogue fails", func(r *rig) { r.catalog.err = secret }, 500, "went wrong", "sysup.db"},
		{"the records fail", func(r *rig) { r.config.Service.Records = broken{r.records, secret} }, 503, "own storage", "sysup.db"},
		{"the catalogue is not there yet", func(r *rig) {
			r.catalog.err = &build.Refusal{Code: build.CodeUnavailable, Detail: "The list of versions is being fetched."}
		}, 503, "being fetched", "being fetched"},
		{"the upstream is down", func(r *rig) { r.catalog.err = build.Fail(build.KindUpstream, "The upstream is down.") }, 503, "upstream is down", "upstream"},
		{"it takes too long", func(r *rig) { r.catalog.err = fmt.Errorf("get it: %w", context.DeadlineExceeded) }, 503, "in time", "deadline"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			rig := newRig(t)
			test.spoil(rig)
			h := rig.handler()
			for path, body := range map[string]string{"/api/v1/build": stock, "/api/upgrade-request": `{"version":"24.10.5","target":"x86","subtarget":"64"}`} {
				w := call(h, "POST", path, body)
				if w.Code != test.status || !strings.Contains(sentence(w), test.text) || w.Header().Get("Access-Control-Allow-Origin") != "*" {
					t.Errorf("%s: %d %s, want %d with %q", path, w.Code, w.Body, test.status, test.text)
				}
				if strings.Contains(w.Body.String(), "/srv/") || strings.Contains(w.Body.String(), ".go") {
					t.Errorf("%s tells what is inside: %s", path, w.Body)
				}
				if retry := w.Header().Get("Retry-After"); (retry != "") != (test.status == 503) {
					t.Errorf("%s: %d with Retry-After %q", path, w.Code, retry)
				}
			}
			if !strings.Contains(rig.log.String(), test.logged) {
				t.Errorf("the log lacks %q:\n%s", test.logged, rig.log)
			}
		})
	}
}

// broken records fail at reading.
type broken struct {
	build.Records
	err error
}

func (b broken) Get(context.Context, build.ID) (build.Record, error) { return build.Record{}, b.err }

// TestPanicAfterTheHeader: nothing is added to an answer that has begun.
func TestPanicAfterTheHeader(t *testing.T) {
	rig := newRig(t)
	s := New(rig.config).(*server)
	s.handle(route{path: "/half", dialect: v1, get: func(w *response, r *http.Request) error {
		w.WriteHeader(http.StatusOK)
		panic("half way")
	}})
	if w := call(s, "GET", "/half", ""); w.Code != 200 || w.Body.Len() != 0 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if !strings.Contains(rig.log.String(), "half way") || !strings.Contains(rig.log.String(), "level=ERROR") {
		t.Errorf("not in the log: %s", rig.log)
	}
}

// TestHealth: liveness is the process's own; readiness needs catalogue and
// storage.
func TestHealth(t *testing.T) {
	tests := []struct {
		name         string
		catalog      error
		ready        error
		alive, state int
	}{
		{"all is there", nil, nil, 200, 200},
		{"no catalogue", &build.Refusal{Code: build.CodeUnavailable, Detail: "No list of versions yet."}, nil, 200, 503},
		{"no storage", nil, errors.New("disk is gone"), 200, 503},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			rig := newRig(t)
			rig.catalog.err = test.catalog
			rig.config.Ready = func(context.Context) error { return test.ready }
			h := rig.handler()
			if w := call(h, "GET", "/healthz", ""); w.Code != test.alive {
				t.Errorf("healthz: %d", w.Code)
			}
			w := call(h, "GET", "/readyz", "")
			if w.Code != test.state || sentence(w) == "" || strings.Contains(w.Body.String(), "disk") {
				t.Errorf("readyz: %d %s", w.Code, w.Body)
			}
		})
	}
}

// TestPrivate: neither the script nor what opens a private build is in the
// log, and nothing of it can be found by its content.
func TestPrivate(t *testing.T) {
	rig := newRig(t)
	h := rig.handler()
	body := with(`"defaults":"echo hunter2"`)
	if w := call(h, "POST", "/api/v1/build", body); w.Code != 202 || strings.Contains(w.Body.String(), "hunter2") {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	rec := rig.finish("squashfs-combined")
	hash := string(rec.ID)
	for _, path := range []string{"/api/v1/build/" + hash, "/" + rec.Result.Prefix + "sha256sums", "/api/files/" + hash, "/api/v1/build/" + hash + "/more"} {
		w := call(h, "GET", path, "")
		if strings.Contains(w.Body.String(), "hunter2") {
			t.Errorf("%s tells the script: %s", path, w.Body)
		}
		if w.Header().Get("Cache-Control") != build.CacheNever {
			t.Errorf("%s may be cached: %v", path, w.Header())
		}
	}
	if log := rig.log.String(); strings.Contains(log, hash) || strings.Contains(log, "hunter2") || !strings.Contains(log, rec.ID.Short()) {
		t.Errorf("the log names a private build, or does not label it:\n%s", log)
	}
}

// TestKeys: public keys and nothing else of their folder.
func TestKeys(t *testing.T) {
	rig := newRig(t)
	names := []string{"server.pub", "worker-a1.pub", "worker-a1.pub.sig", "revoked", "revoked.sig", "server.sec", "secret", "server.pub.sig", "worker-a1.sec", "hmac"}
	for _, name := range names {
		rig.put("keys/"+name, "content of "+name)
	}
	h := rig.handler()
	for i, name := range names {
		w := call(h, "GET", "/keys/"+name, "")
		if public := i < 5; (w.Code == 200) != public || public && w.Body.String() != "content of "+name {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
}

// TestUnnamedAttempt: files of an attempt that the record does not name do not
// exist, whether it is still being built, was lost, or is of the other kind.
func TestUnnamedAttempt(t *testing.T) {
	rig := newRig(t)
	h := rig.handler()
	call(h, "POST", "/api/v1/build", stock)
	rec := rig.claim(build.StageImage)
	running := build.Prefix(rec.ID, rec.Attempt, false) + "a.img"
	rig.put(running, "half")
	lost := build.Prefix(rec.ID, build.NewAttempt(), false) + "a.img"
	rig.put(lost, "lost")
	if w := call(h, "GET", "/"+running, ""); w.Code != 404 {
		t.Errorf("while it is built: %d %s", w.Code, w.Body)
	}
	rec = rig.finish("squashfs-combined")
	if w := call(h, "GET", "/"+running, ""); w.Code != 200 || w.Body.String() != "half" {
		t.Errorf("once it is done: %d %s", w.Code, w.Body)
	}
	private := build.Prefix(rec.ID, rec.Attempt, true) + "a.img"
	rig.put(private, "private")
	for _, key := range []string{lost, private, running + "/a.img", strings.ToUpper(running)} {
		if w := call(h, "GET", "/"+key, ""); w.Code != 404 {
			t.Errorf("%s: %d %s", key, w.Code, w.Body)
		}
	}
}

// TestStoreWithoutSeeking: a driver that cannot seek still gives the length.
func TestStoreWithoutSeeking(t *testing.T) {
	rig := newRig(t)
	rig.config.Objects = plain{rig.objects}
	h := rig.handler()
	call(h, "POST", "/api/v1/build", stock)
	rec := rig.finish("squashfs-combined")
	w := call(h, "GET", "/"+rec.Result.Prefix+"sha256sums", "")
	if w.Code != 200 || w.Body.String() != "sums" || w.Header().Get("Content-Length") != "4" {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	if w := call(h, "HEAD", "/"+rec.Result.Prefix+"sha256sums", ""); w.Code != 200 || w.Body.Len() != 0 || w.Header().Get("Content-Length") != "4" {
		t.Errorf("HEAD: %d %v %s", w.Code, w.Header(), w.Body)
	}
}

// TestFileBreaksOff: nothing is added to a file that the store cannot give to
// its end; the length tells the client that it is not whole.
func TestFileBreaksOff(t *testing.T) {
	rig := newRig(t)
	rig.config.Objects = short{plain{rig.objects}}
	h := rig.handler()
	call(h, "POST", "/api/v1/build", stock)
	rec := rig.finish("squashfs-combined")
	w := call(h, "GET", "/"+rec.Result.Prefix+"sha256sums", "")
	if w.Code != 200 || w.Body.String() != "sums" || w.Header().Get("Content-Length") != "5" {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
}

// short objects have a byte less than they say.
type short struct{ plain }

func (s short) Open(ctx context.Context, key string) (io.ReadCloser, build.ObjectInfo, error) {
	r, info, err := s.plain.Open(ctx, key)
	info.Size++
	return r, info, err
}

// plain objects are read from the first byte to the last.
type plain struct{ build.Objects }

func (p plain) Open(ctx context.Context, key string) (io.ReadCloser, build.ObjectInfo, error) {
	r, info, err := p.Objects.Open(ctx, key)
	if err != nil {
		return nil, info, err
	}
	return struct{ io.ReadCloser }{r}, info, nil
}

// TestExactlyThose: a list of the first API is the whole image, no list the
// stock one.
func TestExactlyThose(t *testing.T) {
	for packages, want := range map[string][]string{
		`["luci","dnsmasq"]`: {"busybox", "dropbear"}, `{"luci":"1","dropbear":"2"}`: {"busybox", "dnsmasq"}, `[]`: nil, `null`: nil,
	} {
		rig := newRig(t)
		w := call(rig.handler(), "POST", "/api/upgrade-request", `{"version":"24.10.5","target":"x86","subtarget":"64","packages":`+packages+`}`)
		if w.Code != 202 {
			t.Fatal(w.Code, w.Body)
		}
		if got := rig.only().Plan.Remove; !slices.Equal(got, want) {
			t.Errorf("%s removes %v, want %v", packages, got, want)
		}
	}
}

// TestListing: there is one only of a build that is done, and an index entry
// that points to another result counts for nothing.
func TestListing(t *testing.T) {
	rig := newRig(t)
	h := rig.handler()
	call(h, "POST", "/api/v1/build", stock)
	files := "/api/files/" + string(rig.only().ID)
	if w := call(h, "GET", files, ""); w.Code != 404 || sentence(w) == "" {
		t.Errorf("queued: %d %s", w.Code, w.Body)
	}
	rec := rig.finish("squashfs-combined")
	if w := call(h, "GET", files, ""); w.Code != 200 || !strings.Contains(w.Body.String(), "sha256sums") {
		t.Errorf("done: %d %s", w.Code, w.Body)
	}
	rig.put(build.ImageIndex(strings.Repeat("b", 64)), string(rec.ID))
	for image, want := range map[string]int{"a": 200, "b": 404, "c": 404} {
		if w := call(h, "GET", "/api/upgrade-request/"+strings.Repeat(image, 64), ""); w.Code != want {
			t.Errorf("image %s: %d, want %d", image, w.Code, want)
		}
	}
}

// TestNotModified: a file or a list that the client has is not sent again.
func TestNotModified(t *testing.T) {
	rig := newRig(t)
	h := rig.handler()
	call(h, "POST", "/api/v1/build", stock)
	rec := rig.finish("squashfs-combined")
	for _, path := range []string{"/" + rec.Result.Prefix + "sha256sums", "/json/v1/overview.json"} {
		first := call(h, "GET", path, "")
		tag := first.Header().Get("ETag")
		// Proxies that compress make the tag a weak one; caches send several.
		for _, has := range []string{tag, "W/" + tag, `"other", W/` + tag, "*"} {
			again := call(h, "GET", path, "", "If-None-Match: "+has)
			if first.Code != 200 || again.Code != 304 || again.Body.Len() != 0 || again.Header().Get("Access-Control-Allow-Origin") != "*" {
				t.Errorf("%s with %s: %d, then %d %v", path, has, first.Code, again.Code, again.Header())
			}
		}
		if other := call(h, "GET", path, "", `If-None-Match: "other"`); other.Code != 200 {
			t.Errorf("%s: %d for who has another one", path, other.Code)
		}
	}
}

// TestNewRelease: the overview is encoded once, and anew when it changed.
func TestNewRelease(t *testing.T) {
	rig := newRig(t)
	h := rig.handler()
	first := call(h, "GET", "/json/v1/overview.json", "")
	if again := call(h, "GET", "/json/v1/overview.json", ""); again.Body.String() != first.Body.String() {
		t.Errorf("%s\n%s", first.Body, again.Body)
	}
	rig.catalog.offer = offered("24.10.6")
	if next := call(h, "GET", "/overview", ""); !strings.Contains(next.Body.String(), "24.10.6") || next.Header().Get("ETag") == first.Header().Get("ETag") {
		t.Errorf("%v %s", next.Header(), next.Body)
	}
	rig.catalog.offer = catalog.Overview{}
	if empty := call(h, "GET", "/overview", ""); empty.Code != 200 || !strings.Contains(empty.Body.String(), `"latest":[],"branches":{}`) {
		t.Errorf("%d %s", empty.Code, empty.Body)
	}
}

// TestAnotherAttempt: a build that is made anew is not answered by what was
// kept of the old one, although its record has the same revisions.
func TestAnotherAttempt(t *testing.T) {
	rig := newRig(t)
	h := rig.handler()
	call(h, "POST", "/api/v1/build", stock)
	first := rig.finish("squashfs-combined")
	call(h, "GET", "/api/v1/build/"+string(first.ID), "")
	if err := rig.records.Delete(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	call(h, "POST", "/api/v1/build", stock)
	second := rig.finish("squashfs-combined")
	if first.Rev != second.Rev {
		t.Fatalf("the revisions differ, %d and %d: the test proves nothing", first.Rev, second.Rev)
	}
	w := call(h, "GET", "/api/v1/build/"+string(second.ID), "")
	if !strings.Contains(w.Body.String(), binDir(second.Result.Prefix)) {
		t.Errorf("the answer is about the old attempt: %s", w.Body)
	}
}

// TestPeersMistakes: what the peer gets wrong and no script above shows.
func TestPeersMistakes(t *testing.T) {
	id := func(t *testing.T, body string) build.ID {
		rig := newRig(t)
		if w := call(rig.handler(), "POST", "/api/v1/build", body); w.Code != 202 {
			t.Fatalf("%s: %d %s", body, w.Code, w.Body)
		}
		return rig.only().ID
	}
	t.Run("a board's two spellings are one build", func(t *testing.T) {
		a := id(t, `{"version":"24.10.5","target":"ath79/generic","profile":"8dev,carambola2"}`)
		b := id(t, `{"version":"24.10.5","target":"ath79/generic","profile":"8dev_carambola2"}`)
		if a != b {
			t.Error("two builds for one board")
		}
	})
	t.Run("the order of packages does not matter, that of feeds does", func(t *testing.T) {
		if id(t, with(`"packages":["nano","luci","nano"]`)) != id(t, with(`"packages":["+luci","nano"]`)) {
			t.Error("two builds for one list")
		}
		feeds := `"repositories":{"%s":"https://feeds.example.org/packages/1","%s":"https://feeds.example.org/packages/1"}`
		if id(t, with(fmt.Sprintf(feeds, "a", "b"))) == id(t, with(fmt.Sprintf(feeds, "b", "a"))) {
			t.Error("one build for two orders of feeds")
		}
	})
	t.Run("a request without User-Agent is answered", func(t *testing.T) {
		r := httptest.NewRequest("POST", "/api/v1/build", strings.NewReader(stock))
		r.Header["User-Agent"] = nil
		w := httptest.NewRecorder()
		if newRig(t).handler().ServeHTTP(w, r); w.Code != 202 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
	t.Run("a refused request does not poison a good one", func(t *testing.T) {
		rig := newRig(t)
		h := rig.handler()
		for _, bad := range []string{with(`"version_code":"r1-bad"`), with(`"packages":["no-such-package"]`), with(`"profile":"x y"`)} {
			if w := call(h, "POST", "/api/v1/build", bad); w.Code == 202 {
				t.Fatalf("%s: %d", bad, w.Code)
			}
		}
		if w := call(h, "POST", "/api/v1/build", stock); w.Code != 202 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
	t.Run("slashes lead to no other site", func(t *testing.T) {
		h := newRig(t).handler()
		for _, path := range []string{"///evil.example/x", "//evil.example/%2e%2e", "/%5Cevil.example", "//evil.example/api/v1/overview/"} {
			r := httptest.NewRequest("GET", "/", nil)
			r.URL = &url.URL{Path: path}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != 404 || w.Header().Get("Location") != "" {
				t.Errorf("%s: %d %q", path, w.Code, w.Header().Get("Location"))
			}
		}
	})
}

func TestSysupgradeImage(t *testing.T) {
	tests := []struct {
		images []string // file system-type
		want   string   // "" for none
	}{
		{[]string{"squashfs-factory", "squashfs-sysupgrade"}, "squashfs-sysupgrade"},
		{[]string{"ext4-combined", "squashfs-combined-efi", "squashfs-combined"}, "squashfs-combined"},
		{[]string{"squashfs-combined-efi"}, ""},
		{[]string{"ext4-combined"}, "ext4-combined"},
		{[]string{"ext4-sdcard", "squashfs-sdcard"}, "squashfs-sdcard"},
		{[]string{"ubifs-sysupgrade", "squashfs-combined"}, "ubifs-sysupgrade"},
		{[]string{"squashfs-factory", "initramfs-kernel"}, ""},
		{nil, ""},
	}
	for _, test := range tests {
		var images []build.Image
		for _, name := range test.images {
			filesystem, kind, _ := strings.Cut(name, "-")
			images = append(images, build.Image{Name: name, Filesystem: filesystem, Type: kind})
		}
		given := slices.Clone(images)
		got, ok := sysupgradeImage(images)
		if got.Name != test.want || ok != (test.want != "") {
			t.Errorf("%v: %q %v, want %q", test.images, got.Name, ok, test.want)
		}
		if !slices.Equal(given, images) {
			t.Errorf("%v was changed", test.images)
		}
	}
}

func TestPublicURL(t *testing.T) {
	tests := []struct{ setting, host, want string }{
		{"", "sysup.example", "http://sysup.example"},
		{"", "192.168.1.1:8000", "http://192.168.1.1:8000"},
		{"", "[fd00::1]:8000", "http://[fd00::1]:8000"},
		{"", "evil.example/x?", ""},
		{"", `a"b`, ""},
		{"https://firmware.example.org/", "evil.example", "https://firmware.example.org"},
	}
	for _, test := range tests {
		s := &server{Config: Config{PublicURL: test.setting}}
		if got := s.publicURL(&http.Request{Host: test.host}); got != test.want {
			t.Errorf("%+v: %q", test, got)
		}
	}
}

// TestFeedsBelow: the list of allowed feeds is compared by segments.
func TestFeedsBelow(t *testing.T) {
	tests := []struct {
		allowed, address string
		want             bool
	}{
		{"https://a.example", "https://a.example/x/y", true},
		{"https://a.example/", "https://a.example", true},
		{"https://a.example/x", "https://a.example/x", true},
		{"https://a.example/x/", "https://A.EXAMPLE:443/x/y", true},
		{"https://a.example/x", "https://a.example/xy", false},
		{"https://a.example", "https://a.example.evil", false},
		{"https://a.example", "http://a.example", false},
		{"https://a.example:8443", "https://a.example", false},
		{"https://a.example", "http://a.example:443", false},
		{"a.example", "https://a.example", false},
	}
	for _, test := range tests {
		if got := allows(parseAllowed([]string{test.allowed}), test.address); got != test.want {
			t.Errorf("%+v: %v", test, got)
		}
	}
}

// FuzzBuild: no body whatever is answered by a fault, every refusal is a
// sentence, and what is taken passes the check that the builder repeats.
func FuzzBuild(f *testing.F) {
	for _, seed := range []string{
		stock, with(`"packages":["luci","-dnsmasq"],"diff_packages":true`), with(`"repositories":{"b":"https://feeds.example.org/packages"}`),
		with(`"packages_versions":{"luci":"1"},"rootfs_size_mb":null,"defaults":""`), `{"a":{"a":[1e9,true,null,"\u0000"]}}`,
		`{"version":"24.10.5","target":"x86","subtarget":"64","packages":{"luci":"1"}}`, "[", "\xff", `{"a":1,"a":2}`, "",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, path := range []string{"/api/v1/build", "/api/upgrade-request"} {
			rig := newRig(t)
			w := call(rig.handler(), "POST", path, string(body))
			switch {
			case w.Code == 202:
				request := rig.only().Request
				if err := request.Check(); err != nil {
					t.Errorf("%s took %q: %v", path, body, err)
				}
				if !json.Valid(bytes.TrimSpace(body)) {
					t.Errorf("%s took what is no JSON: %q", path, body)
				}
			case w.Code != 400 && w.Code != 412 && w.Code != 422 || sentence(w) == "":
				t.Errorf("%s: %d %s for %q", path, w.Code, w.Body, body)
			}
		}
	})
}
