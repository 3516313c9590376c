package api

import (
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// TestForeignRecords: of a build that another version of sysup keeps, in
// whatever state, every dialect says to come back, and says nothing else.
func TestForeignRecords(t *testing.T) {
	for _, state := range []build.State{build.Queued, build.Building, build.Done, build.Failed, "paused"} {
		for _, c := range []struct{ method, path, body, agent string }{
			{"POST", "/api/v1/build", small, ""},
			{"POST", "/api/v1/build", small, "auc/0.3.2"},
			{"GET", "/api/v1/build/{hash}", "", ""},
			{"HEAD", "/api/v1/build/{hash}", "", ""},
			{"POST", "/api/upgrade-request", small2018, ""},
			{"GET", "/api/upgrade-request/{hash}", "", ""},
			{"GET", "/api/upgrade-request/{image}", "", ""},
			{"GET", "/api/files/{hash}/", "", ""},
			{"GET", "/store/{hash}/{attempt}/a.img", "", ""},
		} {
			rig := newRig(t)
			h := New(rig.config)
			send := func(method, path, body, agent string) *httptest.ResponseRecorder {
				w, r := httptest.NewRecorder(), httptest.NewRequest(method, path, strings.NewReader(body))
				r.Header.Set("User-Agent", agent)
				h.ServeHTTP(w, r)
				return w
			}
			if strings.Contains(c.path, "upgrade") {
				send("POST", "/api/upgrade-request", small2018, "")
			} else {
				send("POST", "/api/v1/build", small, "")
			}
			rec := rig.claim(build.StageImage)
			foreign := rec
			foreign.Schema, foreign.State = build.Schema+1, state
			rig.replace(rec, foreign)
			image := strings.Repeat("e", 64)
			rig.put(build.ImageIndex(image), string(rec.ID))

			path := strings.NewReplacer("{hash}", string(rec.ID), "{image}", image, "{attempt}", rec.Attempt).Replace(c.path)
			w := send(c.method, path, c.body, c.agent)
			want := http.StatusServiceUnavailable
			if c.agent != "" {
				want = http.StatusInternalServerError // with the sentence, which auc prints
			}
			seconds, err := strconv.Atoi(w.Header().Get("Retry-After"))
			if w.Code != want || err != nil || seconds < 1 || c.method != "HEAD" && !strings.Contains(w.Body.String(), "Try again") {
				t.Errorf("%s %s of a record that is %q: %d, Retry-After %q, %s", c.method, c.path, state, w.Code, w.Header().Get("Retry-After"), w.Body)
			}
			if word := w.Header().Get("X-Imagebuilder-Status"); word != "" {
				t.Errorf("%s %s of a record that is %q calls it %q", c.method, c.path, state, word)
			}
		}
	}
}

const (
	small     = `{"version":"24.10.5","target":"x86/64","profile":"generic","packages":["luci"]}`
	small2018 = `{"version":"24.10.5","target":"x86","subtarget":"64","board":"generic","packages":["luci"]}`
)
