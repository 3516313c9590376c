package builder_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/attended-sysupgrade/sysup/builder"
	"github.com/attended-sysupgrade/sysup/builder/imagebuilder"
	"github.com/attended-sysupgrade/sysup/scripts/instant"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
)

func (s *site) inspector() *builder.Inspector {
	uid := nextUID()
	return builder.NewInspector(builder.Inspector{
		Trees: s.trees, Scratch: s.setting.scratch, Log: s.logger(),
		Sandbox: imagebuilder.Confinement{Mechanism: s.setting.mechanism, Copy: s.setting.copy, UID: uid, GID: uid},
	})
}

// inspect is for the catalogue, which is there before the rest of the site.
func (s *site) inspect(ctx context.Context, version, target string, a catalog.Archive) ([]byte, error) {
	return s.inspector().Inspect(ctx, version, target, a)
}

// bare is like 17.01 to 19.07.
var bare = instant.Options{Versions: []string{"23.05.5"}, Bare: []string{"23.05.5"}}

// TestOldVersion: a version whose upstream has no profiles.json, and whose
// ImageBuilder writes none, is built all the same.
func TestOldVersion(t *testing.T) {
	t.Parallel()
	s := newSite(t, setting{upstream: bare})
	r := build.Request{Version: "23.05.5", Target: "ath79/generic", Profile: "tplink,archer-c7-v2", Packages: []string{"nano"}}
	result := s.done(s.build(r))
	var kinds []string
	for _, image := range result.Images {
		kinds = append(kinds, image.Type+" "+image.Filesystem)
	}
	if !slices.Equal(kinds, []string{"factory squashfs", "sysupgrade squashfs"}) {
		t.Errorf("the images are %q", kinds)
	}
	p := result.Profile
	if p.VersionCode != "r24106-10cc5fcd00" || p.ArchPackages != "mips_24kc" || p.VersionNumber != "23.05.5" || p.SourceDateEpoch != 1727094886 ||
		!slices.Equal(p.SupportedDevices, []string{"tplink,archer-c7-v2", "archer-c7-v2"}) || string(p.Titles) != `[{"title":"TP-Link Archer C7 v2"}]` ||
		!slices.Contains(p.DevicePackages, "kmod-ath10k-ct") || result.Manifest["nano"] == "" {
		t.Errorf("the profile is %+v, the manifest %v", p, result.Manifest)
	}
	var served struct {
		Profiles map[string]struct {
			Images []build.Image `json:"images"`
		} `json:"profiles"`
	}
	text := s.object(result.Prefix + "profiles.json")
	if err := json.Unmarshal(text, &served); err != nil || !slices.Equal(served.Profiles["tplink_archer-c7-v2"].Images, result.Images) {
		t.Errorf("profiles.json is %s (%v)", text, err)
	}

	r.Packages = []string{"too-big"}
	s.failed(s.build(r), build.KindTooBig, "15859712")
	disk := build.Request{Version: "23.05.5", Target: "x86/64", Filesystem: "ext4"}
	result = s.done(s.build(disk))
	if len(result.Notes) != 1 || !strings.Contains(result.Notes[0], "cannot make ext4 images alone") || len(result.Images) != 6 {
		t.Errorf("with a wish for a file system: %q, %+v", result.Notes, result.Images)
	}
	s.clean()
}

// TestUnlistedTarget is one of a release of today, whose tree can write a
// profiles.json, and writes none for this target.
func TestUnlistedTarget(t *testing.T) {
	t.Parallel()
	s := newSite(t, setting{upstream: instant.Options{Versions: []string{"24.10.0"}, Bare: []string{"24.10.0"}, Listing: true, After: `rm "$BIN_DIR/profiles.json"`}})
	result := s.done(s.build(request("nano")))
	if len(result.Images) != 6 || result.Profile.VersionCode != "r28427-6df0e3d02a" || result.Profile.ArchPackages != "x86_64" {
		t.Errorf("the images are %+v, the profile %+v", result.Images, result.Profile)
	}
}

// TestInspect: many that ask at once share one fetch, and nothing is left
// behind.
func TestInspect(t *testing.T) {
	t.Parallel()
	s := newSite(t, setting{upstream: bare, workers: -1})
	a, err := s.catalog.Prepare(t.Context(), "23.05.5", "ath79/generic")
	if err != nil {
		t.Fatal(err)
	}
	inspector := s.inspector()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			text, err := inspector.Inspect(t.Context(), "23.05.5", "ath79/generic", a)
			var p struct {
				Version  string         `json:"version_number"`
				Target   string         `json:"target"`
				Profiles map[string]any `json:"profiles"`
			}
			if err == nil {
				err = json.Unmarshal(text, &p)
			}
			if err != nil || p.Version != "23.05.5" || p.Target != "ath79/generic" || len(p.Profiles) != 4 {
				t.Errorf("it says %s (%v)", text, err)
			}
		})
	}
	all.Wait()
	if n := s.web.fetched(); n != 1 {
		t.Errorf("the archive was fetched %d times", n)
	}
	if left, err := os.ReadDir(s.setting.scratch); err != nil || len(left) > 0 {
		t.Errorf("left behind are %v (%v)", left, err)
	}
}

// TestInspectFails: a tree that does not say what it builds, or runs for too
// long, ends by a sentence.
func TestInspectFails(t *testing.T) {
	t.Parallel()
	s := newSite(t, setting{upstream: bare, workers: -1})
	a, err := s.catalog.Prepare(t.Context(), "23.05.5", "x86/64")
	if err != nil {
		t.Fatal(err)
	}
	makefile := filepath.Join(s.setting.trees, a.SHA256, "tree", "Makefile")
	whole, err := os.ReadFile(makefile)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, info, target, says string }{
		{"fails", "echo broken >&2; exit 3", "x86/64", "ended with status 2 (broken"},
		{"says nothing", "true", "x86/64", "does not say what it builds"},
		{"says too much", "cat /dev/zero", "x86/64", "says too much"},
		{"another target", "cat .info", "ath79/generic", "one for x86/64, not for ath79/generic"},
	} {
		text := strings.Replace(string(whole), "@cat .info", "@"+test.info, 1)
		if err := os.WriteFile(makefile, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := s.inspector().Inspect(t.Context(), "23.05.5", test.target, a)
		if failure, ok := errors.AsType[*build.Failure](err); !ok || failure.Kind != build.KindOutput || !strings.Contains(failure.Detail, test.says) {
			t.Errorf("%s: %v, want %q", test.name, err, test.says)
		}
	}
	gone := a
	gone.SHA256, gone.URL = strings.Repeat("0", 64), a.URL+".gone"
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.inspector().Inspect(ctx, "23.05.5", "x86/64", gone); !errors.Is(err, context.Canceled) {
		t.Errorf("after the caller left: %v", err)
	}
}
