// Package upstream lays out a folder like downloads.openwrt.org: releases,
// targets, ImageBuilder archives and package feeds with their indices, sums
// and signatures. A plain file server over the folder is a whole upstream.
package upstream

import (
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/attended-sysupgrade/sysup/shared/feed"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// Upstream is what one download server offers. Releases that are no snapshots
// are listed in .versions.json in their order here.
type Upstream struct {
	Stable, Oldstable, Upcoming string // versions, or empty
	Releases                    []Release
}

// Release is one version: "24.10.0", "24.10-SNAPSHOT", or "SNAPSHOT" for the
// main branch.
type Release struct {
	Version string
	APK     bool // feeds as of 25.12: index.json and .apk names, no Packages
	ADB     bool // with APK: packages.adb, too, signed by a key made of the upstream's
	Bare    bool // as up to 19.07: neither profiles.json nor index.json
	Targets []Target
	Feeds   map[string]Feeds // by package architecture
}

// Feeds are the packages of each feed ("base", "luci", …).
type Feeds map[string][]Package

// Target is one target and subtarget of a release.
type Target struct {
	Profiles Profiles  // names the target and its architecture, too
	Archive  File      // the ImageBuilder
	Packages []Package // what belongs to the target: kernel, base-files
	Kmods    []Package // in kmods/<version>-<release>-<vermagic>, from 24.10 on
}

// File is a file by its content or, if Path is not empty, by where it lies.
type File struct {
	Name string
	Data []byte
	Path string
}

// Profiles is a profiles.json.
type Profiles struct {
	ArchPackages    string             `json:"arch_packages"`
	DefaultPackages []string           `json:"default_packages"`
	Kernel          *Kernel            `json:"linux_kernel,omitempty"`
	MetadataVersion int                `json:"metadata_version"` // 1
	Profiles        map[string]Profile `json:"profiles"`
	SourceDateEpoch int64              `json:"source_date_epoch"`
	Target          string             `json:"target"` // x86/64
	VersionCode     string             `json:"version_code"`
	VersionNumber   string             `json:"version_number"`
}

// Kernel is the kernel for which a target's modules were built.
type Kernel struct {
	Release  string `json:"release"`
	Vermagic string `json:"vermagic"`
	Version  string `json:"version"`
}

// Profile is one device, or one family of boards.
type Profile struct {
	DevicePackages   []string `json:"device_packages"`
	ImagePrefix      string   `json:"image_prefix"`
	Images           []Image  `json:"images"`
	SupportedDevices []string `json:"supported_devices"`
	Titles           []Title  `json:"titles"`
}

// Image is one file of a profile; the sums are of the file as it is and
// without its fwtool signature.
type Image struct {
	Filesystem     string `json:"filesystem,omitempty"`
	Name           string `json:"name"`
	SHA256         string `json:"sha256"`
	SHA256Unsigned string `json:"sha256_unsigned"`
	Type           string `json:"type"`
}

// Title is a device's name for people: Vendor, Model and Variant, or Title.
type Title struct {
	Vendor  string `json:"vendor,omitempty"`
	Model   string `json:"model,omitempty"`
	Variant string `json:"variant,omitempty"`
	Title   string `json:"title,omitempty"`
}

// Path is a version's folder: "snapshots" or "releases/<version>".
func Path(version string) string {
	if version == "SNAPSHOT" {
		return "snapshots"
	}
	return path.Join("releases", version)
}

// Write makes or updates the folder; key signs the targets' sums and the
// feeds. Files are replaced one by one, whole, and left alone where nothing
// changed, so a server may go on reading. Nothing is removed.
func (u Upstream) Write(dir string, key usign.SecretKey) error {
	w, err := newWriter(dir, key)
	if err != nil {
		return err
	}
	defer w.root.Close()
	for _, release := range u.Releases {
		w.release(release)
	}
	w.json(".versions.json", map[string]any{
		"stable_version": u.Stable, "oldstable_version": u.Oldstable,
		"upcoming_version": u.Upcoming, "versions_list": u.versions(),
	})
	return w.err
}

func (u Upstream) versions() []string {
	list := []string{}
	for _, release := range u.Releases {
		if !strings.HasSuffix(release.Version, "SNAPSHOT") {
			list = append(list, release.Version)
		}
	}
	return list
}

func (w *writer) release(r Release) {
	targets := map[string]string{}
	for _, target := range r.Targets {
		targets[target.Profiles.Target] = target.Profiles.ArchPackages
		w.target(r, target)
	}
	for arch, feeds := range r.Feeds {
		w.feeds(r, arch, feeds)
	}
	w.json(path.Join(Path(r.Version), ".targets.json"), targets)
}

func (w *writer) feeds(r Release, arch string, feeds Feeds) {
	dir := path.Join(Path(r.Version), "packages", arch)
	for name, packages := range feeds {
		w.feed(path.Join(dir, name), arch, r, packages)
	}
	w.data(path.Join(dir, "feeds.conf"), feedsConf(feeds))
}

// feedsConf names the feeds beside base, as the build system's list of feed
// sources does.
func feedsConf(feeds Feeds) []byte {
	var b bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(feeds)) {
		if name != "base" {
			fmt.Fprintf(&b, "src-git %s https://git.example.org/feed/%s.git^%040x\n", name, name, len(name))
		}
	}
	return b.Bytes()
}

// target writes one target's folder; its sha256sums covers all of it.
func (w *writer) target(r Release, t Target) {
	dir := path.Join(Path(r.Version), "targets", t.Profiles.Target)
	w.sums = usign.Sums{}
	w.sumsDir = dir
	w.file(path.Join(dir, t.Archive.Name), t.Archive)
	if !r.Bare {
		w.json(path.Join(dir, "profiles.json"), t.Profiles)
	}
	w.data(path.Join(dir, "feeds.buildinfo"), feedsConf(r.Feeds[t.Profiles.ArchPackages]))
	w.data(path.Join(dir, "version.buildinfo"), []byte(t.Profiles.VersionCode+"\n"))
	w.feed(path.Join(dir, "packages"), t.Profiles.ArchPackages, r, t.Packages)
	sums, err := w.sums.Marshal()
	w.fail(err)
	w.sums = nil
	w.signed(path.Join(dir, "sha256sums"), sums)
	if kernel := t.Profiles.Kernel; kernel != nil && t.Kmods != nil {
		abi := fmt.Sprintf("%s-%s-%s", kernel.Version, kernel.Release, kernel.Vermagic)
		w.feed(path.Join(dir, "kmods", abi), t.Profiles.ArchPackages, r, t.Kmods)
	}
}

// feed writes the packages that have a file, and their index in each of the
// version's formats.
func (w *writer) feed(dir, arch string, r Release, packages []Package) {
	versions := map[string]string{}
	var index bytes.Buffer
	for _, p := range slices.SortedFunc(slices.Values(packages), Package.compare) {
		p.sum = sha256.Sum256([]byte(p.filename(arch, r.APK)))
		if p.File.Data != nil || p.File.Path != "" {
			p.Size, p.sum = w.file(path.Join(dir, p.filename(arch, r.APK)), p.File)
		}
		versions[p.Name] = p.Version
		p.stanza(&index, arch)
	}
	if !r.Bare {
		w.json(path.Join(dir, "index.json"), map[string]any{"version": 2, "architecture": arch, "packages": versions})
	}
	if r.APK && r.ADB {
		list, err := feed.ParsePackages(index.Bytes())
		w.fail(err)
		adb, err := feed.WriteADB(list, apkKey(w.key))
		w.fail(err)
		w.data(path.Join(dir, "packages.adb"), adb)
	}
	if r.APK {
		return
	}
	w.data(path.Join(dir, "Packages.gz"), compress(index.Bytes()))
	w.data(path.Join(dir, "Packages.manifest"), index.Bytes())
	w.signed(path.Join(dir, "Packages"), index.Bytes())
}

// apkKey is the key of apk's indices: equal keys of the upstream give equal
// files.
func apkKey(key usign.SecretKey) *ecdsa.PrivateKey {
	sig := key.Sign([]byte("packages.adb")).Sig
	seed := sha256.Sum256(sig[:])
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), seed[:])
	if err != nil {
		panic(err) // one in 2^32
	}
	return private
}

func compress(b []byte) []byte {
	var out bytes.Buffer
	z, _ := gzip.NewWriterLevel(&out, gzip.BestCompression)
	z.Write(b)
	z.Close()
	return out.Bytes()
}

func (w *writer) json(name string, v any) {
	b, err := json.MarshalIndent(v, "", "  ")
	w.fail(err)
	w.data(name, append(b, '\n'))
}

func (w *writer) signed(name string, b []byte) {
	w.data(name, b)
	w.data(name+".sig", w.key.Sign(b).Marshal())
}
