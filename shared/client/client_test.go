package client_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/client"
)

// answers is a server that gives one answer after the other.
type answers struct {
	t    *testing.T
	list []answer
	seen []string // "METHOD path body"
	at   []time.Duration
	from time.Time
}

type answer struct {
	status int
	header string // "Name: value"
	body   string
	err    error
}

func (a *answers) RoundTrip(r *http.Request) (*http.Response, error) {
	body := []byte{}
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
	}
	a.seen = append(a.seen, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+string(body)))
	a.at = append(a.at, time.Since(a.from))
	if len(a.list) == 0 {
		a.t.Errorf("one call too many: %s", a.seen[len(a.seen)-1])
		return nil, errors.New("no answer left")
	}
	next := a.list[0]
	a.list = a.list[1:]
	if next.err != nil {
		return nil, next.err
	}
	header := http.Header{}
	if name, value, ok := strings.Cut(next.header, ": "); ok {
		header.Set(name, value)
	}
	return &http.Response{
		StatusCode: next.status, Status: http.StatusText(next.status), Header: header, Request: r,
		Body: io.NopCloser(strings.NewReader(next.body)), ContentLength: int64(len(next.body)),
	}, nil
}

const hash = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

const (
	queuedBody   = `{"status":202,"detail":"queued","request_hash":"` + hash + `","queue_position":7}`
	buildingBody = `{"status":202,"detail":"started","request_hash":"` + hash + `","imagebuilder_status":"building_image"}`
	doneBody     = `{"status":200,"detail":"done","request_hash":"` + hash + `","bin_dir":"x/y","images":[{"name":"a.img","type":"combined"}]}`
)

// TestWait: what is submitted, how it is polled, and what ends it.
func TestWait(t *testing.T) {
	tests := []struct {
		name  string
		list  []answer
		at    []time.Duration // of each call
		fails string          // in the error
	}{
		{"queued, building, done",
			[]answer{{202, "", queuedBody, nil}, {202, "", buildingBody, nil}, {200, "", doneBody, nil}},
			[]time.Duration{0, 2 * time.Second, 4 * time.Second}, ""},
		{"done at once", []answer{{200, "", doneBody, nil}}, []time.Duration{0}, ""},
		{"busy: it waits as long as it is told and submits again",
			[]answer{{503, "Retry-After: 30", `{"status":503,"detail":"busy"}`, nil}, {200, "", doneBody, nil}},
			[]time.Duration{0, 30 * time.Second}, ""},
		{"busy for two minutes, which can be sat out",
			[]answer{{503, "Retry-After: 120", `{"status":503,"detail":"Busy."}`, nil}, {200, "", doneBody, nil}},
			[]time.Duration{0, 2 * time.Minute}, ""},
		{"busy for longer: the caller is told until when",
			[]answer{{503, "Retry-After: 121", `{"status":503,"detail":"Busy."}`, nil}},
			[]time.Duration{0}, "Busy. (not waited for: the server is not to be asked again for 3 minutes)"},
		{"an hour's limit is used up",
			[]answer{{503, "Retry-After: 3540", `{"status":503,"detail":"No more builds in this hour."}`, nil}},
			[]time.Duration{0}, "No more builds in this hour. (not waited for: the server is not to be asked again for 59 minutes)"},
		{"a day's, by a server that builds already",
			[]answer{{202, "", queuedBody, nil}, {503, "Retry-After: 86000", `{"status":503,"detail":"Busy."}`, nil}},
			[]time.Duration{0, 2 * time.Second}, "Busy. (not waited for: the server is not to be asked again for 24 hours)"},
		{"a proxy's fault passes",
			[]answer{{202, "", queuedBody, nil}, {502, "", "<html>", nil}, {200, "", doneBody, nil}},
			[]time.Duration{0, 2 * time.Second, 4 * time.Second}, ""},
		{"a connection that breaks is made again",
			[]answer{{202, "", queuedBody, nil}, {0, "", "", io.ErrUnexpectedEOF}, {200, "", doneBody, nil}},
			[]time.Duration{0, 2 * time.Second, 4 * time.Second}, ""},
		{"a server that was never reached may not exist", []answer{{0, "", "", io.ErrUnexpectedEOF}}, []time.Duration{0}, "unexpected EOF"},
		{"a failed build is the server's sentence",
			[]answer{{202, "", queuedBody, nil}, {500, "", `{"status":500,"detail":"Too big.","stderr":"x"}`, nil}},
			[]time.Duration{0, 2 * time.Second}, "Too big."},
		{"a refusal is not repeated", []answer{{400, "", `{"status":400,"detail":"No such version."}`, nil}}, []time.Duration{0}, "No such version."},
		{"a page that is no answer", []answer{{200, "", "<html>", nil}}, []time.Duration{0}, "does not answer as a sysup server does"},
		{"another service", []answer{{200, "", `{"status":"ok"}`, nil}}, []time.Duration{0}, "does not answer as a sysup server does"},
		{"an error without a sentence", []answer{{418, "", "", nil}}, []time.Duration{0}, "The server answered I'm a teapot."},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := &answers{t: t, list: test.list, from: time.Now()}
				c := &client.Client{URL: "http://sysup.example/", HTTP: &http.Client{Transport: server}}
				var seen []client.Status
				result, err := c.Wait(t.Context(), client.Request{Version: "24.10.5", Target: "x86/64"}, func(s client.Status) { seen = append(seen, s) })
				if (err == nil) != (test.fails == "") || err != nil && !strings.Contains(err.Error(), test.fails) {
					t.Fatalf("%v, want %q", err, test.fails)
				}
				if err == nil && (result.BinDir != "x/y" || result.Images[0].Name != "a.img" || !seen[len(seen)-1].Done()) {
					t.Errorf("%+v", result)
				}
				if !reflect.DeepEqual(server.at, test.at) {
					t.Errorf("called at %v, want %v: %v", server.at, test.at, server.seen)
				}
			})
		})
	}
}

// TestWaitTells: progress is told in the server's words, and polls ask for
// the hash.
func TestWaitTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &answers{t: t, list: []answer{{202, "", queuedBody, nil}, {202, "", buildingBody, nil}, {200, "", doneBody, nil}}}
		c := &client.Client{URL: "http://sysup.example", HTTP: &http.Client{Transport: server}}
		var seen []client.Status
		if _, err := c.Wait(t.Context(), client.Request{Version: "24.10.5"}, func(s client.Status) { seen = append(seen, s) }); err != nil {
			t.Fatal(err)
		}
		if seen[0].QueuePosition != 7 || seen[1].Stage != build.StageImage || seen[1].QueuePosition != 0 {
			t.Errorf("%+v", seen)
		}
		if !strings.HasPrefix(server.seen[0], "POST /api/v1/build {") || server.seen[1] != "GET /api/v1/build/"+hash {
			t.Errorf("%q", server.seen)
		}
	})
}

// TestWaitTellsTrouble: who waits for a busy server learns why.
func TestWaitTellsTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &answers{t: t, list: []answer{{503, "", `{"status":503,"detail":"busy"}`, nil}, {200, "", doneBody, nil}}}
		c := &client.Client{URL: "http://sysup.example", HTTP: &http.Client{Transport: server}}
		var seen []client.Status
		if _, err := c.Wait(t.Context(), client.Request{Version: "24.10.5"}, func(s client.Status) { seen = append(seen, s) }); err != nil {
			t.Fatal(err)
		}
		if len(seen) != 2 || seen[0].Detail != "busy" || seen[0].RequestHash != "" || !seen[1].Done() {
			t.Errorf("%+v", seen)
		}
	})
}

// TestWaitGivesUp: a server that never comes back ends the wait with what it
// said last; so does the caller.
func TestWaitGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &answers{t: t, list: make([]answer, 100)}
		for i := range server.list {
			server.list[i] = answer{503, "", `{"status":503,"detail":"down for good"}`, nil}
		}
		c := &client.Client{URL: "http://sysup.example", HTTP: &http.Client{Transport: server}}
		if _, err := c.Wait(t.Context(), client.Request{}, nil); err == nil || err.Error() != "down for good" {
			t.Errorf("%v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		server.list = []answer{{202, "", queuedBody, nil}, {202, "", queuedBody, nil}}
		if _, err := c.Wait(ctx, client.Request{}, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
}

// TestWaitEndsInTime: a pause that the caller has no time for is not begun, and
// what the server said is not lost.
func TestWaitEndsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &answers{t: t, from: time.Now(), list: []answer{
			{503, "Retry-After: 40", `{"status":503,"detail":"Busy."}`, nil}, {503, "Retry-After: 40", `{"status":503,"detail":"Still busy."}`, nil},
		}}
		c := &client.Client{URL: "http://sysup.example", HTTP: &http.Client{Transport: server}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := c.Wait(ctx, client.Request{}, nil)
		said, ok := errors.AsType[*client.Error](err)
		if !ok || said.RetryAfter != 40*time.Second || !strings.HasPrefix(err.Error(), "Still busy. ") || time.Since(server.from) != 40*time.Second {
			t.Errorf("after %v: %v", time.Since(server.from), err)
		}
	})
}

// TestWaitForgives: troubles count only as long as they last.
func TestWaitForgives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &answers{t: t, list: []answer{{202, "", queuedBody, nil}}}
		for range 3 {
			for range 9 {
				server.list = append(server.list, answer{502, "", "", nil})
			}
			server.list = append(server.list, answer{202, "", buildingBody, nil})
		}
		server.list = append(server.list, answer{200, "", doneBody, nil})
		c := &client.Client{URL: "http://sysup.example", HTTP: &http.Client{Transport: server}}
		if result, err := c.Wait(t.Context(), client.Request{}, nil); err != nil || !result.Done() {
			t.Errorf("%v after %d calls", err, len(server.seen))
		}
	})
}

// TestError: everything that a server says about a failure.
func TestError(t *testing.T) {
	server := &answers{t: t, list: []answer{{422, "X-Unknown-Package: nanoo", `{"status":422,"detail":"No nanoo.","stdout":"o","stderr":"e","log":"/store/l"}`, nil}}}
	c := &client.Client{URL: "http://sysup.example", HTTP: &http.Client{Transport: server}}
	_, err := c.Submit(t.Context(), client.Request{})
	got, ok := errors.AsType[*client.Error](err)
	want := &client.Error{Status: 422, Detail: "No nanoo.", Stdout: "o", Stderr: "e", Log: "/store/l", Package: "nanoo"}
	if !ok || *got != *want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// TestRequestOnTheWire: feeds keep their order both ways, and what is not set
// is not sent where other servers would stumble over it.
func TestRequestOnTheWire(t *testing.T) {
	size := 512
	full := client.Request{
		Version: "24.10.5", Target: "x86/64", Profile: "generic", Packages: []string{"a"}, RootfsSizeMB: &size,
		Repositories: client.Repositories{{Name: "z", URL: "https://z.example/\""}, {Name: "a", URL: "https://a.example"}},
	}
	text, err := json.Marshal(full)
	if err != nil {
		t.Fatal(err)
	}
	if want := `"repositories":{"z":"https://z.example/\"","a":"https://a.example"}`; !bytes.Contains(text, []byte(want)) {
		t.Errorf("%s lacks %s", text, want)
	}
	var back client.Request
	if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(back, full) {
		t.Errorf("%+v, want %+v, %v", back, full, err)
	}
	text, err = json.Marshal(client.Request{Version: "24.10.5", Target: "x86/64"})
	want := `{"version":"24.10.5","version_code":"","target":"x86/64","profile":"","diff_packages":false,"rootfs_size_mb":null,"defaults":""}`
	if err != nil || string(text) != want {
		t.Errorf("%s, want %s, %v", text, want, err)
	}
	for _, bad := range []string{`[]`, `{"a":1}`, `{"a":`, `7`, `"x"`} {
		if err := json.Unmarshal([]byte(bad), new(client.Repositories)); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
	var none client.Repositories
	if err := json.Unmarshal([]byte(`null`), &none); err != nil || none != nil {
		t.Errorf("null: %v %v", none, err)
	}
}
