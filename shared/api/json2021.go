package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/attended-sysupgrade/sysup/shared/catalog"
	"github.com/attended-sysupgrade/sysup/shared/client"
)

// What auc 0.2 of 2021 and early 2022 needs beyond today's API. It reads the
// files below /json/v1 without "v1", demands more of them, and takes the status
// of a build for a word. Nothing else is in here, so that it can go one day.

func (s *server) routes2021() []route {
	return []route{
		{path: "/json/branches.json", dialect: v1, get: s.getBranches2021},
		{path: "/json/snapshots/targets/{target}/{subtarget}/{file}", dialect: v1, get: versioned(s.getTargetFile2021)},
		{path: "/json/snapshots/packages/{file}", dialect: v1, get: versioned(s.getFeedsFile)},
		{path: "/json/releases/{version}/targets/{target}/{subtarget}/{file}", dialect: v1, get: versioned(s.getTargetFile2021)},
		{path: "/json/releases/{version}/packages/{file}", dialect: v1, get: versioned(s.getFeedsFile)},
	}
}

// versioned has a request answered as if its address had "v1".
func versioned(h handler) handler {
	return func(w *response, r *http.Request) error {
		url, copied := *r.URL, *r
		url.Path = "/" + staticPrefix + strings.TrimPrefix(url.Path, "/json/")
		copied.URL = &url
		return h(w, &copied)
	}
}

// branch2021 has what auc demands, and never looks at.
type branch2021 struct {
	branch
	Updates string   `json:"updates"` // always empty
	Pubkey  string   `json:"pubkey"`  // always empty
	Repos   []string `json:"repos"`   // always empty
}

func (s *server) getBranches2021(w *response, r *http.Request) error {
	ctx, cancel := withTime(r)
	defer cancel()
	known, err := s.Catalog.Overview(ctx)
	if err != nil {
		return err
	}
	list := []branch2021{}
	for _, b := range s.branches(known) {
		list = append(list, branch2021{branch: b, Repos: []string{}})
	}
	return s.catalogue(w, r, list)
}

// profile2021 has the date as text.
type profile2021 struct {
	catalog.Profile
	SourceDateEpoch string `json:"source_date_epoch"` // Unix time
}

func (s *server) getTargetFile2021(w *response, r *http.Request) error {
	if r.PathValue("file") == indexName+".json" {
		return s.getTargetFile(w, r)
	}
	whole := *r // neither what is new since nor a part
	whole.Method, whole.Header = http.MethodGet, nil
	today := &heldAnswer{header: http.Header{}}
	if err := s.getTargetFile(&response{ResponseWriter: today}, &whole); err != nil {
		return err
	}
	var p catalog.Profile
	if err := json.Unmarshal(today.body.Bytes(), &p); err != nil {
		return fmt.Errorf("read a profile of the static catalogue: %w", err)
	}
	return s.catalogue(w, r, profile2021{p, strconv.FormatInt(p.Profile.SourceDateEpoch, 10)})
}

// heldAnswer is an answer to ourselves.
type heldAnswer struct {
	header http.Header
	body   bytes.Buffer
}

func (h *heldAnswer) Header() http.Header         { return h.header }
func (h *heldAnswer) WriteHeader(int)             {}
func (h *heldAnswer) Write(b []byte) (int, error) { return h.body.Write(b) }

// forAuc2021 has auc 0.2 answered in its own words.
func forAuc2021(h handler) handler {
	return func(w *response, r *http.Request) error {
		if strings.HasPrefix(r.UserAgent(), "auc (0.2") {
			w.dialect = auc2021
		}
		return h(w, r)
	}
}

// auc2021 is LuCI's of that year, but for the status of a build under way: with
// a number auc would send its POST again, at once and without end. A number
// with the result is right: it would ask on for a word that it does not know.
var auc2021 = &dialect{
	refusals: v2021.refusals,
	failures: v2021.failures,
	body: func(status client.Status) any {
		if status.Code == http.StatusAccepted {
			return word2021{status, status.Detail}
		}
		return v2021.body(status)
	},
}

// word2021 is client.Status with "queued" or "started" for the number.
type word2021 struct {
	client.Status
	Word string `json:"status"`
}
