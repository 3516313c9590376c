package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// audit returns what is wrong with the records and the keys below store/ when
// each record's build had to be made once. A killed builder may have left one
// attempt more, which is not complete.
func audit(records []build.Record, keys []string, killed int) error {
	var errs []error
	attempts := map[string]int{} // prefixes to their files build.json
	for _, key := range keys {
		at := strings.LastIndex(key, "/") + 1
		attempts[key[:at]] += 0
		if key[at:] == "build.json" {
			attempts[key[:at]]++
		}
	}
	claims, seen := 0, map[build.ID]bool{}
	for _, rec := range records {
		claims += rec.Attempts
		switch {
		case seen[rec.ID]:
			errs = append(errs, fmt.Errorf("%s stands for two requests", rec.ID.Short()))
		case rec.State != build.Done || rec.Result == nil:
			errs = append(errs, fmt.Errorf("%s is %s", rec.ID.Short(), rec.State))
		case attempts[rec.Result.Prefix] != 1:
			errs = append(errs, fmt.Errorf("the result of %s is not complete", rec.ID.Short()))
		default:
			delete(attempts, rec.Result.Prefix)
		}
		seen[rec.ID] = true
	}
	for prefix, complete := range attempts {
		if complete > 0 {
			errs = append(errs, fmt.Errorf("%.20s… has a second complete result", prefix))
		}
	}
	if len(attempts) > killed {
		errs = append(errs, fmt.Errorf("%d attempts left files beside the results, at most %d may have", len(attempts), killed))
	}
	if claims > len(records)+killed {
		errs = append(errs, fmt.Errorf("%d builds were claimed %d times", len(records), claims))
	}
	return errors.Join(errs...)
}

func TestAudit(t *testing.T) {
	done := func(id, attempt string, claims int) build.Record {
		return build.Record{ID: build.ID(id), State: build.Done, Attempts: claims, Result: &build.Result{Prefix: "store/" + id + "/" + attempt + "/"}}
	}
	files := func(id, attempt string) []string {
		prefix := "store/" + id + "/" + attempt + "/"
		return []string{prefix + "a.img", prefix + "build.json"}
	}
	two := []build.Record{done("aaaaaaaa", "1", 1), done("bbbbbbbb", "1", 1)}
	both := append(files("aaaaaaaa", "1"), files("bbbbbbbb", "1")...)
	for name, c := range map[string]struct {
		records []build.Record
		keys    []string
		killed  int
		good    bool
	}{
		"all well":                 {two, both, 0, true},
		"a killed builder's rest":  {two, append(both[:4:4], "store/aaaaaaaa/2/a.img"), 1, true},
		"a killed builder's claim": {[]build.Record{two[0], done("bbbbbbbb", "1", 2)}, both, 1, true},
		"a rest":                   {two, append(both[:4:4], "store/aaaaaaaa/2/a.img"), 0, false},
		"a second claim":           {[]build.Record{two[0], done("bbbbbbbb", "1", 2)}, both, 0, false},
		"a second result":          {two, append(both[:4:4], files("aaaaaaaa", "2")...), 1, false},
		"somebody else's result":   {two, append(both[:4:4], files("cccccccc", "1")...), 1, false},
		"a lost one":               {[]build.Record{two[0], {ID: "bbbbbbbb", State: build.Queued}}, both[:2], 0, false},
		"not complete":             {two, both[:3], 0, false},
		"the same twice":           {[]build.Record{two[0], two[0]}, both[:2], 0, false},
	} {
		if err := audit(c.records, c.keys, c.killed); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}
