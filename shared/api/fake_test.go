package api

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
)

// epoch is SOURCE_DATE_EPOCH of everything that is built here.
var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// rig is a whole server over fakes, and a worker that does as it is told.
type rig struct {
	t         testing.TB
	records   *buildtest.MemoryRecords
	queue     *buildtest.MemoryQueue
	objects   *buildtest.MemoryObjects
	catalog   *fakeCatalog
	config    Config
	lifetimes build.Lifetimes
	log       *bytes.Buffer
}

func newRig(t testing.TB) *rig {
	r := &rig{
		t: t, records: buildtest.NewRecords(t), queue: buildtest.NewQueue(t, time.Minute), objects: buildtest.NewObjects(t),
		catalog: &fakeCatalog{offer: offered("24.10.5"), revision: "r30000-0123456789"}, lifetimes: build.DefaultLifetimes, log: &bytes.Buffer{},
	}
	r.config = Config{
		Service: &build.Service{Records: r.records, Queue: r.queue, Secret: []byte("0123456789abcdef0123456789abcdef")},
		Objects: r.objects, Catalog: r.catalog, AllowDefaults: true,
		RepositoryAllow: []string{"https://feeds.example.org/packages"},
		Version:         "test",
		Log:             slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	return r
}

// only is the build that there is.
func (r *rig) only() build.Record {
	r.t.Helper()
	all := r.records.All()
	if len(all) != 1 {
		r.t.Fatalf("there are %d builds, want 1", len(all))
	}
	return all[0]
}

func (r *rig) replace(old, new build.Record) build.Record {
	r.t.Helper()
	if err := r.records.Replace(context.Background(), old, new); err != nil {
		r.t.Fatal(err)
	}
	new.Rev++
	return new
}

func (r *rig) put(key, text string) {
	r.t.Helper()
	policy := build.PolicyImage
	if strings.HasPrefix(key, "store/private/") {
		policy = policy.Private()
	}
	if err := r.objects.Put(context.Background(), key, strings.NewReader(text), policy); err != nil {
		r.t.Fatal(err)
	}
}

// claim takes the build into the stage.
func (r *rig) claim(stage build.Stage) build.Record {
	r.t.Helper()
	rec := r.only()
	if rec.State == build.Queued {
		rec = r.replace(rec, rec.Claim("worker-1", build.NewAttempt(), build.Now()))
		if _, err := r.records.Board(context.Background(), "", build.Change{Max: build.Board{build.BoardClaimed: rec.Sequence}}); err != nil {
			r.t.Fatal(err)
		}
	}
	return r.replace(rec, rec.Beat(stage, build.Now()))
}

// finish ends the build with images of those types and file systems
// ("squashfs-combined"), whose content is their name.
func (r *rig) finish(images ...string) build.Record {
	r.t.Helper()
	rec := r.claim(build.StageImage)
	prefix := build.Prefix(rec.ID, rec.Attempt, rec.Plan.Private)
	result := &build.Result{
		Prefix: prefix, BuiltAt: epoch, Manifest: map[string]string{"busybox": "1.37.0-r1", "luci": "26.1~abc"},
		Log: "build-" + strings.Repeat("a", 64) + ".log", Command: "make image PROFILE=" + rec.Plan.Profile,
		ImageHash: strings.Repeat("a", 64), Stdout: "Building images...\n", Stderr: "warning\n",
		Profile: build.Profile{
			ArchPackages: "x86_64", SourceDateEpoch: epoch.Unix(), VersionCode: rec.Plan.Revision, VersionNumber: rec.Plan.Version,
			Titles: []byte(`[{"title":"Generic x86/64"}]`),
		},
	}
	for _, kind := range images {
		filesystem, typ, _ := strings.Cut(kind, "-")
		name := "openwrt-" + kind + ".img.gz"
		result.Images = append(result.Images, build.Image{
			Name: name, Type: typ, Filesystem: filesystem, Size: int64(len(name)),
			SHA256: strings.Repeat("1", 64), SHA256Unsigned: strings.Repeat("2", 64),
		})
		r.put(prefix+name, name)
	}
	r.put(prefix+result.Log, "all of the log")
	r.put(prefix+"sha256sums", "sums")
	if rec.Plan.Private {
		result.ImageHash = string(rec.ID)
	} else {
		r.put(build.ImageIndex(result.ImageHash), string(rec.ID))
	}
	return r.replace(rec, rec.Finish(result, r.lifetimes, build.Now()))
}

// fail ends the build for a reason of that kind.
func (r *rig) fail(kind build.Kind, pkg, detail string) build.Record {
	r.t.Helper()
	rec := r.claim(build.StageImage)
	f := build.Fail(kind, "%s", detail)
	f.Package, f.Prefix = pkg, build.Prefix(rec.ID, rec.Attempt, rec.Plan.Private)
	f.Stdout, f.Stderr, f.Command = "out\n", "images are too big\n", "make image"
	r.put(f.Prefix+rec.ID.LogName(), "why it failed")
	return r.replace(rec, rec.FailWith(f, r.lifetimes, build.Now()))
}

// outlive waits until the build, which lives for a millisecond, is gone.
func (r *rig) outlive(rec build.Record) {
	for !rec.Expired(build.Now()) {
		time.Sleep(time.Millisecond)
	}
}

var brief = build.Lifetimes{Pinned: time.Millisecond, Plain: time.Millisecond, Private: time.Millisecond, Failed: time.Millisecond}

// fakeCatalog knows one release and a snapshot, a target with the one profile
// "generic" and one with two profiles.
type fakeCatalog struct {
	offer    catalog.Overview
	revision string // of the snapshot
	moved    string // its revision once somebody looks again
	err      error  // of every call
	panics   bool
}

const released = "r29233-443ec4032a"

var knownPackages = []string{"luci", "luci-ssl", "nano", "tcpdump", "libstdcpp6", "libstdc++6", "wpad-mbedtls", "dnsmasq-full"}

func (c *fakeCatalog) Ready() error { return c.err }

func (c *fakeCatalog) Overview(ctx context.Context) (catalog.Overview, error) { return c.offer, c.err }

func offered(version string) catalog.Overview {
	targets := map[string]string{"x86/64": "x86_64", "ath79/generic": "mips_24kc"}
	return catalog.Overview{
		Latest: []string{version, "23.05.6"}, Upstream: "https://downloads.example.org",
		Branches: []catalog.Branch{
			{Name: "24.10", Path: "releases/{version}", Enabled: true, Versions: []string{version}, Targets: targets},
			{Name: "SNAPSHOT", Path: "snapshots", Enabled: true, Snapshot: true, Versions: []string{"SNAPSHOT"}, Targets: targets},
		},
	}
}

func (c *fakeCatalog) Revision(ctx context.Context, version, target string) (string, error) {
	if c.moved != "" {
		c.revision, c.moved = c.moved, ""
	}
	device, err := c.Device(ctx, version, target, "generic", "")
	if err != nil {
		return "", err
	}
	return device.Facts.Revision, nil
}

func (c *fakeCatalog) Device(ctx context.Context, version, target, profile, model string) (*catalog.Device, error) {
	facts := build.Facts{
		Distribution: "OpenWrt", Version: version, Revision: released, Target: target, Profile: "generic",
		Defaults: []string{"base-files", "libc", "kernel", "busybox", "dnsmasq", "dropbear"},
	}
	switch {
	case c.panics:
		panic("the catalogue has a defect in /srv/secret/place.go")
	case c.err != nil:
		return nil, c.err
	case strings.EqualFold(version, "snapshot"):
		facts.Version, facts.Snapshot, facts.Revision = "SNAPSHOT", true, c.revision
	case version != "24.10.5":
		return nil, refuse(build.CodeUnsupported, "There is no version %s.", version)
	}
	switch target {
	case "x86/64":
	case "ath79/generic":
		ids := []string{"tplink_archer-c7-v2", "8dev_carambola2"}
		if facts.Profile = strings.ReplaceAll(profile, ",", "_"); !slices.Contains(ids, facts.Profile) {
			return nil, refuse(build.CodeUnknownDevice, "ath79/generic has no profile %s; it has %s.", profile, strings.Join(ids, ", "))
		}
	default:
		return nil, refuse(build.CodeUnsupported, "Version %s has no target %s.", version, target)
	}
	return catalog.NewDevice(facts, knownPackages...), nil
}

// Of packages and profiles it has no lists.
func (c *fakeCatalog) Parts(context.Context) (map[catalog.Part]string, error) { return nil, c.err }

func (c *fakeCatalog) Stamp(_ context.Context, p catalog.Part) (string, error) {
	return "", cmp.Or(c.err, refuse(build.CodeUnsupported, "There is no list of %s.", p))
}

func (c *fakeCatalog) Listing(ctx context.Context, p catalog.Part) (*catalog.Listing, error) {
	_, err := c.Stamp(ctx, p)
	return nil, err
}

func refuse(code build.Code, format string, args ...any) error {
	return &build.Refusal{Code: code, Detail: fmt.Sprintf(format, args...)}
}
