package api

import (
	"context"
	"errors"
	"io"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// TestPublish: what a CDN serves is, byte for byte, what the handler answers,
// and follows the catalogue.
func TestPublish(t *testing.T) {
	rig := newRig(t)
	for _, version := range []string{"24.10.5", "24.10.6"} {
		rig.catalog.offer = offered(version)
		if err := Publish(t.Context(), rig.config); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{"json/v1/overview.json", "json/v1/latest.json", "json/v1/branches.json", "json/latest.json"} {
			w := httptest.NewRecorder()
			New(rig.config).ServeHTTP(w, httptest.NewRequest("GET", "/"+path, nil))
			object, _, err := rig.objects.Open(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			stored, err := io.ReadAll(object)
			object.Close()
			if err != nil || string(stored) != w.Body.String() {
				t.Errorf("%s: stored is\n%s, the handler answers\n%s (%v)", path, stored, w.Body, err)
			}
		}
	}
}

// TestPublishNothingNew: what did not change is not written again.
func TestPublishNothingNew(t *testing.T) {
	rig := newRig(t)
	counting := &countingObjects{Objects: rig.objects}
	rig.config.Objects = counting
	for range 3 {
		if err := Publish(t.Context(), rig.config); err != nil {
			t.Fatal(err)
		}
	}
	if counting.puts != 4 {
		t.Errorf("three rounds over one catalogue make %d writes, want 4", counting.puts)
	}
}

// TestPublishWithoutCatalogue: what was published stays.
func TestPublishWithoutCatalogue(t *testing.T) {
	rig := newRig(t)
	rig.catalog.err = &build.Refusal{Code: build.CodeUnavailable, Detail: "Not yet."}
	rig.config.Objects = &countingObjects{Objects: rig.objects}
	if err := Publish(t.Context(), rig.config); !errors.Is(err, rig.catalog.err) {
		t.Errorf("without a catalogue: %v", err)
	}
	if n := rig.config.Objects.(*countingObjects).puts; n != 0 {
		t.Errorf("%d writes without a catalogue", n)
	}
}

// countingObjects count what is asked of them, call stop when left writes are
// done, and refuse to write keys with fail in them.
type countingObjects struct {
	build.Objects
	mu          sync.Mutex
	puts, opens int
	left        int
	stop        func()
	fail        string
}

var errObjects = errors.New("the disk is on fire")

func (c *countingObjects) Open(ctx context.Context, key string) (io.ReadCloser, build.ObjectInfo, error) {
	c.mu.Lock()
	c.opens++
	c.mu.Unlock()
	return c.Objects.Open(ctx, key)
}

func (c *countingObjects) Put(ctx context.Context, key string, r io.Reader, policy build.Policy) error {
	c.mu.Lock()
	c.puts++
	if c.left--; c.left == 0 && c.stop != nil {
		c.stop()
	}
	c.mu.Unlock()
	if c.fail != "" && strings.Contains(key, c.fail) {
		return errObjects
	}
	return c.Objects.Put(ctx, key, r, policy)
}
