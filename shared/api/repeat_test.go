package api

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
)

// TestRepeatedBody: what one body said is remembered as it was, but neither
// what is private nor what is large.
func TestRepeatedBody(t *testing.T) {
	large := `"repository_keys":["` + strings.Repeat("A", keptRequest) + `"]`
	for _, test := range []struct {
		name, body string
		kept       int
	}{
		{"a list", with(`"packages":["nano","-tcpdump"]`), 1},
		{"versions and a feed", with(`"packages_versions":{"nano":"1"},"repositories":{"own":"https://feeds.example.org/packages/x"}`), 1},
		{"a first-boot script", with(`"defaults":"echo geheim"`), 0},
		{"large", with(large), 0},
		{"not for this server", with(`"version":"99.99"`), 1},
		{"no JSON", `{"version":`, 0},
		{"no request", with(`"packages":7`), 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			rig := newRig(t)
			s := rig.handler().(*server)
			first := call(s, "POST", "/api/v1/build", test.body)
			if got := s.requests.Len(); got != test.kept {
				t.Fatalf("%d requests are remembered, want %d", got, test.kept)
			}
			before := copies(s)
			var wait sync.WaitGroup
			for range 4 {
				wait.Go(func() {
					again := call(s, "POST", "/api/v1/build", test.body)
					if again.Code != first.Code || again.Body.String() != first.Body.String() {
						t.Errorf("the answer was %d %s, then %d %s", first.Code, first.Body, again.Code, again.Body)
					}
				})
			}
			wait.Wait()
			if after := copies(s); !reflect.DeepEqual(before, after) {
				t.Errorf("what was remembered changed: %s, then %s", before, after)
			}
			if test.kept > 0 {
				call(s, "POST", "/api/v1/build", test.body+" ")
				if got := s.requests.Len(); got != 2 {
					t.Errorf("%d requests are remembered of two bodies", got)
				}
			}
		})
	}
}

// copies are the remembered requests as texts.
func copies(s *server) (texts []string) {
	for _, request := range s.requests.Values() {
		texts = append(texts, fmt.Sprintf("%+v", request))
	}
	return texts
}
