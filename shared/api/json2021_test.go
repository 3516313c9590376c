package api

import (
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestFilesOf2021: below /json are the files of /json/v1 with what auc demanded
// then, under the same names, with ETags, and none of them is stored.
func TestFilesOf2021(t *testing.T) {
	overBoth(t, func(t *testing.T, s *stall) {
		for path, other := range map[string]string{
			"/json/branches.json":                            "", // a few members more
			x86Folder + "generic.json":                       "",
			ath79Folder + "carambola2.json":                  "", // an alias
			"/json/v1/snapshots/targets/x86/64/generic.json": "",
			ath79Folder + "index.json":                       ath79Folder + "index.json",
			mipsFeeds:                                        mipsFeeds, movingIndex: movingIndex, movingFeeds: movingFeeds,
		} {
			path = strings.Replace(path, "/v1/", "/", 1)
			w := s.get(path, 200)
			if other != "" && w.Body.String() != s.get(other, 200).Body.String() {
				t.Errorf("%s is %s", path, w.Body)
			}
			r := httptest.NewRequest("GET", path, nil)
			r.Header.Set("If-None-Match", w.Header().Get("ETag"))
			again := httptest.NewRecorder()
			s.handler.ServeHTTP(again, r)
			if w.Header().Get("ETag") == "" || again.Code != 304 {
				t.Errorf("%s: %v, then %d", path, w.Header(), again.Code)
			}
		}
		for info := range s.objects.List(t.Context(), "json/") {
			if !strings.HasPrefix(info.Key, staticPrefix) {
				t.Errorf("%s is stored", info.Key)
			}
		}
	})
}

// TestMembersOf2021: the members that auc demands have the types that it
// demands, and the rest is what /json/v1 has.
func TestMembersOf2021(t *testing.T) {
	s := newStall(t, false)
	type object = map[string]any
	equal := func(name string, a, b object) {
		t.Helper()
		x, _ := json.Marshal(a)
		y, _ := json.Marshal(b)
		if string(x) != string(y) {
			t.Errorf("%s: without what is of 2021 it is\n%s, not\n%s", name, x, y)
		}
	}
	branches, today := decoded[[]object](s, "/json/branches.json"), decoded[[]object](s, "/json/v1/branches.json")
	if len(branches) != len(today) || len(branches) == 0 {
		t.Fatalf("%d branches, %d in /json/v1", len(branches), len(today))
	}
	for i, branch := range branches {
		_, updates := branch["updates"].(string)
		_, pubkey := branch["pubkey"].(string)
		if _, repos := branch["repos"].([]any); !updates || !pubkey || !repos {
			t.Errorf("a branch is %v", branch)
		}
		delete(branch, "updates")
		delete(branch, "pubkey")
		delete(branch, "repos")
		equal("a branch", branch, today[i])
	}
	const path = "releases/24.10.5/targets/x86/64/generic.json"
	profile, now := decoded[object](s, "/json/"+path), decoded[object](s, "/json/v1/"+path)
	if profile["source_date_epoch"] != "1700000000" {
		t.Errorf("the date is %v", profile["source_date_epoch"])
	}
	profile["source_date_epoch"] = now["source_date_epoch"]
	equal(path, profile, now)
}
