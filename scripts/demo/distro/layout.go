package distro

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/attended-sysupgrade/sysup/scripts/demo/pack"
	"github.com/attended-sysupgrade/sysup/scripts/upstream"
)

// layOut writes the upstream's folder, unless it is there for the same parts and options.
func (m *maker) layOut(ctx context.Context) error {
	stamp, err := json.Marshal([]any{m.parts.Key, m.options.URL, m.options.Snapshot, m.options.Versions})
	if err != nil {
		return err
	}
	mark := filepath.Join(m.options.Output, ".demo")
	if old, err := os.ReadFile(mark); err == nil && bytes.Equal(old, stamp) {
		return nil
	}
	defer m.step("upstream")()
	work, err := os.MkdirTemp(m.dir, "work-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	l := &layout{maker: m, work: work, metas: map[string]pack.Meta{}}
	if err := l.write(ctx); err != nil {
		return err
	}
	return os.WriteFile(mark, stamp, 0o644)
}

// layout writes one upstream.
type layout struct {
	*maker
	work  string               // for files on the way
	metas map[string]pack.Meta // of each package's file
}

func (l *layout) write(ctx context.Context) error {
	versions, err := l.chosen()
	if err != nil {
		return err
	}
	u := upstream.Upstream{Stable: "25.12.90", Oldstable: "24.10.90"}
	for _, v := range versions {
		r, err := l.release(ctx, v)
		if err != nil {
			return fmt.Errorf("version %s: %w", v.Number, err)
		}
		u.Releases = append(u.Releases, r)
	}
	if err := u.Write(l.options.Output, l.key); err != nil {
		return err
	}
	return l.writeAPKIndices(u.Releases)
}

var revisionForm = regexp.MustCompile(`^r([0-9]{1,8})-[0-9a-f]{10}$`)

// chosen are the versions that the options want; a snapshot is as old as its revision's number says.
func (l *layout) chosen() ([]version, error) {
	var chosen []version
	for _, v := range l.plan.versions {
		if l.options.Versions != nil && !slices.Contains(l.options.Versions, v.Number) {
			continue
		}
		if v.Number == "SNAPSHOT" {
			v.Revision = cmp.Or(l.options.Snapshot, v.Revision)
			number := revisionForm.FindStringSubmatch(v.Revision)
			if number == nil {
				return nil, fmt.Errorf("the snapshot's revision %q is not like r34001-0123456789", v.Revision)
			}
			n, err := strconv.ParseInt(number[1], 10, 64)
			if err != nil {
				return nil, err
			}
			v.Epoch += n
		}
		chosen = append(chosen, v)
	}
	if l.options.Versions != nil && len(chosen) != len(l.options.Versions) {
		return nil, fmt.Errorf("not all of the versions %v exist", l.options.Versions)
	}
	return chosen, nil
}

func (l *layout) release(ctx context.Context, v version) (upstream.Release, error) {
	r := upstream.Release{Version: v.Number, APK: v.Format == pack.APK, Bare: v.Old, Feeds: map[string]upstream.Feeds{}}
	for _, t := range l.plan.targets {
		made, err := l.target(ctx, v, t)
		if err != nil {
			return r, err
		}
		r.Targets = append(r.Targets, made)
		r.Feeds[t.Arch] = upstream.Feeds{}
		for _, feed := range commonFeeds {
			r.Feeds[t.Arch][feed] = l.feed(v, feed)
		}
	}
	return r, nil
}

// commonFeeds are those that all targets of an architecture share.
var commonFeeds = []string{"base", "luci", "packages"}

func (l *layout) feed(v version, feed string) []upstream.Package {
	var list []upstream.Package
	for _, e := range l.parts.Packages[v.Format] {
		if e.Feed == feed {
			list = append(list, l.listed(e))
		}
	}
	return list
}

// listed is how the upstream's indices carry a package.
func (l *layout) listed(e entry) upstream.Package {
	l.metas[e.File] = e.Meta
	return upstream.Package{
		Name: e.Base, Version: e.Version, ABIVersion: e.ABI, Depends: e.Depends, Conflicts: e.Conflicts,
		Provides: slices.DeleteFunc(slices.Clone(e.Provides), func(name string) bool { return name == e.Base }),
		Section:  e.Section, Description: e.Description, InstalledSize: e.InstalledSize,
		File: upstream.File{Path: e.File},
	}
}

func (l *layout) target(ctx context.Context, v version, t target) (upstream.Target, error) {
	base, err := l.baseFiles(v, t)
	if err != nil {
		return upstream.Target{}, err
	}
	archive, err := l.archive(ctx, v, t, base)
	if err != nil {
		return upstream.Target{}, err
	}
	made := upstream.Target{Profiles: l.profiles(v, t), Archive: archive, Packages: []upstream.Package{l.listed(base)}}
	if v.Format == pack.APK {
		made.Packages = append(made.Packages, l.feed(v, "core")...) // opkg's indices leave out libc and kernel
	}
	if kmods := l.feed(v, "kmods"); v.Kmods {
		made.Kmods = kmods
	} else {
		made.Packages = append(made.Packages, kmods...)
	}
	return made, nil
}

// baseFiles packs the one package that knows what it was made for.
func (l *layout) baseFiles(v version, t target) (entry, error) {
	i := slices.IndexFunc(l.plan.packages, func(r recipe) bool { return r.Name == "base-files" })
	r := l.plan.packages[i]
	r.Version = "1700~" + strings.SplitN(v.Revision, "-", 2)[1]
	b, err := new(packer).fromRecipe(r)
	if err != nil {
		return entry{}, err
	}
	b.Files = append(b.Files, releaseFiles(v, t)...)
	folder := filepath.Join(l.work, v.Number, t.board())
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return entry{}, err
	}
	return writePackage(folder, v.Format, b.Package, "core")
}

// releaseFiles say on the device what it runs.
func releaseFiles(v version, t target) []pack.File {
	release := fmt.Sprintf("DISTRIB_ID='OpenWrt'\nDISTRIB_RELEASE='%s'\nDISTRIB_REVISION='%s'\nDISTRIB_TARGET='%s'\n"+
		"DISTRIB_ARCH='%s'\nDISTRIB_DESCRIPTION='sysup demo distribution %[1]s'\n", v.Number, v.Revision, t.Name, t.Arch)
	os := fmt.Sprintf("NAME=\"sysup demo distribution\"\nID=sysup-demo\nVERSION=\"%s\"\nBUILD_ID=\"%s\"\n"+
		"OPENWRT_BOARD=\"%s\"\nOPENWRT_ARCH=\"%s\"\n", v.Number, v.Revision, t.Name, t.Arch)
	return []pack.File{
		{Path: "etc/openwrt_release", Mode: 0o644, Data: []byte(release)},
		{Path: "etc/openwrt_version", Mode: 0o644, Data: []byte(v.Revision + "\n")},
		{Path: "usr/lib/os-release", Mode: 0o644, Data: []byte(os)},
		{Path: "etc/os-release", Link: "../usr/lib/os-release"},
	}
}

// archive joins the ImageBuilder's two parts.
func (l *layout) archive(ctx context.Context, v version, t target, base entry) (upstream.File, error) {
	files, err := l.treeFiles(v, t, base)
	if err != nil {
		return upstream.File{}, err
	}
	name := folderName(v, t) + "." + v.Archive
	joined := filepath.Join(l.work, name)
	if err := packPart(ctx, joined, v, t, files, false); err != nil {
		return upstream.File{}, err
	}
	bulk, err := os.Open(bulkName(l.parts.Folder, v, t))
	if err != nil {
		return upstream.File{}, err
	}
	defer bulk.Close()
	out, err := os.OpenFile(joined, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return upstream.File{}, err
	}
	_, err = io.Copy(out, bulk)
	return upstream.File{Name: name, Path: joined}, errors.Join(err, out.Close())
}

// profiles is the target's profiles.json. Its images are those that a plain build makes, with digests
// of their names, since none was made.
func (l *layout) profiles(v version, t target) upstream.Profiles {
	p := upstream.Profiles{
		ArchPackages: t.Arch, DefaultPackages: v.defaults(t), MetadataVersion: 1, Profiles: map[string]upstream.Profile{},
		Kernel:          &upstream.Kernel{Release: "1", Vermagic: l.parts.Kernel.Vermagic, Version: l.parts.Kernel.Version},
		SourceDateEpoch: v.Epoch, Target: t.Name, VersionCode: v.Revision, VersionNumber: v.Number,
	}
	for _, board := range t.Profile {
		prefix := "openwrt-" + v.infix() + strings.ReplaceAll(t.Name, "/", "-") + "-" + board.ID
		made := upstream.Profile{
			DevicePackages: board.Packages, ImagePrefix: prefix, SupportedDevices: append([]string{}, board.Supported...),
			Titles: []upstream.Title{{Title: board.Title, Vendor: board.Vendor, Model: board.Model}},
		}
		for _, image := range t.images(board) {
			name := strings.Join(slices.DeleteFunc([]string{prefix, image[0], image[1]}, func(s string) bool { return s == "" }), "-") + "." + image[2]
			sum := fmt.Sprintf("%x", sha256.Sum256([]byte(name)))
			made.Images = append(made.Images, upstream.Image{Filesystem: image[0], Name: name, SHA256: sum, SHA256Unsigned: sum, Type: image[1]})
		}
		p.Profiles[board.ID] = made
	}
	return p
}

func (t target) images(p profile) [][]string {
	images := slices.Clone(t.Images)
	for _, kind := range p.Images {
		images = append(images, []string{"squashfs", kind, "bin"})
	}
	return images
}

// defaults are the default packages: the target's and the version's package manager.
func (v version) defaults(t target) []string {
	manager := "opkg"
	if v.Format == pack.APK {
		manager = "apk-mbedtls"
	}
	return slices.Sorted(slices.Values(append(slices.Clone(t.Default), manager)))
}

// writeAPKIndices adds the indices that the demo's apk reads to every feed of the apk-like versions.
func (l *layout) writeAPKIndices(releases []upstream.Release) error {
	for _, r := range releases {
		if !r.APK {
			continue
		}
		folder := upstream.Path(r.Version)
		feeds := map[string][]upstream.Package{}
		for _, t := range r.Targets {
			base := path.Join(folder, "targets", t.Profiles.Target)
			feeds[path.Join(base, "packages")] = t.Packages
			feeds[path.Join(base, "kmods", kmodsName(*t.Profiles.Kernel))] = t.Kmods
		}
		for arch, common := range r.Feeds {
			for name, list := range common {
				feeds[path.Join(folder, "packages", arch, name)] = list
			}
		}
		for _, name := range slices.Sorted(maps.Keys(feeds)) {
			if err := l.writeAPKIndex(filepath.Join(l.options.Output, name), feeds[name]); err != nil {
				return err
			}
		}
	}
	return nil
}

func kmodsName(k upstream.Kernel) string { return k.Version + "-" + k.Release + "-" + k.Vermagic }

func (l *layout) writeAPKIndex(folder string, packages []upstream.Package) error {
	var metas []pack.Meta
	for _, p := range packages {
		metas = append(metas, l.metas[p.File.Path])
	}
	index, err := pack.APKIndex(metas, l.ec)
	if err != nil {
		return err
	}
	name := filepath.Join(folder, pack.APKIndexName)
	return errors.Join(os.WriteFile(name+".new", index, 0o644), os.Rename(name+".new", name))
}
