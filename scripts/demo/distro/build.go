package distro

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/attended-sysupgrade/sysup/scripts/demo/pack"
)

// built is a package before it is packed: names are without ABI versions.
type built struct {
	pack.Package
	feed string
	only pack.Format
}

// packer turns recipes into packages.
type packer struct {
	plan
	debian  *debian
	kernel  *kernel
	applets []byte            // names of busybox's programs
	inLibc  map[string]bool   // sonames that libc holds
	names   map[string]string // library package of a soname
	abis    map[string]string // ABI version of a library package
	made    map[string]*built
}

func newPacker(p plan, d *debian, k *kernel, applets []byte) *packer {
	w := &packer{p, d, k, applets, map[string]bool{}, map[string]string{}, map[string]string{}, map[string]*built{}}
	for _, l := range p.libraries {
		w.abis[l.Name] = l.ABI
		for _, soname := range l.Sonames {
			w.names[soname] = l.Name
		}
	}
	return w
}

// packages makes every package of the plan and every library that one of them needs.
func (w *packer) packages() (map[string]*built, error) {
	for _, r := range w.plan.packages {
		b, err := w.fromRecipe(r)
		if err != nil {
			return nil, fmt.Errorf("package %s: %w", r.Name, err)
		}
		w.made[r.Name] = b
	}
	for _, f := range w.made["libc"].Files {
		w.inLibc[path.Base(f.Path)] = true
	}
	for _, name := range slices.Sorted(maps.Keys(w.made)) {
		if err := w.addLibraries(w.made[name]); err != nil {
			return nil, fmt.Errorf("package %s: %w", name, err)
		}
	}
	return w.made, nil
}

func (w *packer) fromRecipe(r recipe) (*built, error) {
	files, scripts, err := r.own()
	if err != nil {
		return nil, err
	}
	b := &built{feed: r.Feed, only: r.Only, Package: pack.Package{Scripts: scripts, Files: files, Meta: pack.Meta{
		Name: r.Name, Version: r.Version, Arch: "x86_64", Section: r.Feed, Description: r.Description,
		Depends: r.Depends, Conflicts: r.Conflicts, Provides: r.Provides,
	}}}
	if len(r.Debian) > 0 {
		b.Version = w.debian.upstreamVersion(r.Debian[0]) + "-r1"
	}
	for _, spec := range r.Files {
		f, err := w.debian.file(r.Debian, spec)
		if err != nil {
			return nil, err
		}
		b.Files = append(b.Files, f)
	}
	for _, folder := range r.Folders {
		b.Files = append(b.Files, pack.File{Path: folder, Mode: os.ModeDir | 0o755})
	}
	b.Files = append(b.Files, filler(r)...)
	if err := w.addSpecial(r, b); err != nil {
		return nil, err
	}
	return b, nil
}

// filler is content that is only there for its size.
func filler(r recipe) []pack.File {
	var files []pack.File
	if r.Zeros > 0 {
		files = append(files, pack.File{Path: "usr/share/" + r.Name + "/zeros", Mode: 0o644, Data: make([]byte, r.Zeros)})
	}
	if r.Random > 0 {
		noise := make([]byte, r.Random)
		_, _ = rand.NewChaCha8([32]byte{}).Read(noise) // never fails, and is the same each time
		files = append(files, pack.File{Path: "usr/share/" + r.Name + "/random", Mode: 0o644, Data: noise})
	}
	return files
}

// addSpecial adds what no list of files can say.
func (w *packer) addSpecial(r recipe, b *built) error {
	switch r.Name {
	case "kernel":
		b.Version = w.kernel.version + "~" + w.kernel.vermagic + "-r1"
	case "busybox":
		links, err := appletLinks(string(w.applets))
		b.Files = append(b.Files, pack.File{Path: "usr/share/busybox.links.tar", Mode: 0o644, Data: links})
		return err
	case "ca-bundle":
		bundle, err := w.debian.certificates()
		b.Files = append(b.Files, pack.File{Path: "etc/ssl/certs/ca-certificates.crt", Mode: 0o644, Data: bundle})
		return err
	}
	if len(r.Modules) == 0 {
		return nil
	}
	b.Version = w.kernel.version + "-r1"
	b.Depends = append(b.Depends, "kernel (="+w.made["kernel"].Version+")")
	files, err := w.kernel.files(strings.TrimPrefix(r.Name, "kmod-"), r.Modules)
	b.Files = append(b.Files, files...)
	return err
}

// Folders of busybox's applets; those of the others are in usr/bin.
const (
	inBin = " ash sh cat chmod chown cp date dd df dmesg echo egrep false fgrep grep gunzip gzip hostname kill ln login ls mkdir mknod " +
		"mktemp mount mv netstat nice pidof ping ping6 ps pwd rm rmdir sed sleep stty sync tar touch true umount uname usleep vi zcat "
	inSbin = " blkid getty halt hwclock ifconfig init insmod ip klogd losetup lsmod mkswap modprobe poweroff reboot rmmod route sulogin " +
		"swapoff swapon switch_root sysctl syslogd udhcpc "
	notLinked = " busybox dpkg dpkg-deb linuxrc rpm "
)

// appletLinks is a tar of links to busybox, one for each of the names. It is unpacked when all packages
// are installed, so that programs of other packages come first.
func appletLinks(names string) ([]byte, error) {
	var files []pack.File
	for name := range strings.FieldsSeq(names) {
		word, folder := " "+name+" ", "usr/bin/"
		switch {
		case strings.Contains(notLinked, word):
			continue
		case strings.Contains(inBin, word):
			folder = "bin/"
		case strings.Contains(inSbin, word):
			folder = "sbin/"
		}
		files = append(files, pack.File{Path: folder + name, Link: "/bin/busybox"})
	}
	var b bytes.Buffer
	err := writeTar(&b, ".", files, packageTime.Unix(), true)
	return b.Bytes(), err
}

// addLibraries lets b depend on what its programs need, and makes those library packages.
func (w *packer) addLibraries(b *built) error {
	for _, f := range b.Files {
		sonames, err := needed(f.Data)
		if err != nil {
			return err
		}
		for _, soname := range sonames {
			name, err := w.library(soname)
			if err != nil {
				return err
			}
			if name != b.Name && !slices.Contains(b.Depends, name) {
				b.Depends = append(b.Depends, name)
			}
		}
	}
	slices.Sort(b.Depends)
	return nil
}

// library is the name of the package that holds a soname; it is made when it is not there yet.
func (w *packer) library(soname string) (string, error) {
	if w.inLibc[soname] {
		return "libc", nil
	}
	name := w.names[soname]
	if name == "" {
		name, _, _ = strings.Cut(strings.ToLower(soname), ".so")
		w.names[soname] = name
	}
	b := w.made[name]
	if b != nil && slices.ContainsFunc(b.Files, func(f pack.File) bool { return path.Base(f.Path) == soname }) {
		return name, nil
	}
	content, err := w.debian.library(soname)
	if err != nil {
		return "", err
	}
	if b == nil {
		version := w.debian.upstreamVersion(w.debian.owner(w.debian.sonames[soname])) + "-r1"
		b = &built{feed: "packages", Package: pack.Package{Meta: pack.Meta{
			Name: name, Version: version, Arch: "x86_64", Section: "libs", Description: "Library " + name}}}
		w.made[name] = b
	}
	b.Files = append(b.Files, pack.File{Path: "usr/lib/" + soname, Mode: 0o644, Data: content})
	return name, w.addLibraries(b)
}

// spell gives a package the names that its format uses: opkg's libraries carry their ABI versions.
func (w *packer) spell(b *built, format pack.Format) pack.Package {
	p := b.Package
	if format == pack.APK {
		return p
	}
	full := func(name string) string { return pack.ABIName(name, w.abis[name]) }
	p.Name = full(b.Name)
	if p.ABI = strings.TrimPrefix(p.Name, b.Name); p.ABI != "" {
		p.Provides = append(slices.Clone(p.Provides), b.Name)
	}
	p.Depends = nil
	for _, d := range b.Depends {
		p.Depends = append(p.Depends, full(d))
	}
	return p
}

// entry is a packed package and where it belongs.
type entry struct {
	pack.Meta
	Base string // name without the ABI version
	Feed string
	ABI  string
	File string // path
}

// write packs all packages in one format into a folder; base-files, which differs from version to
// version, is left to later.
func (w *packer) write(folder string, format pack.Format) ([]entry, error) {
	var todo []*built
	for _, name := range slices.Sorted(maps.Keys(w.made)) {
		if b := w.made[name]; name != "base-files" && (b.only == "" || b.only == format) {
			todo = append(todo, b)
		}
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, err
	}
	entries := make([]entry, len(todo))
	var g errgroup.Group
	g.SetLimit(runtime.NumCPU())
	for i, b := range todo {
		g.Go(func() (err error) {
			entries[i], err = writePackage(folder, format, w.spell(b, format), b.feed)
			entries[i].Base = b.Name
			if format == pack.IPK {
				entries[i].ABI = w.abis[b.Name]
			}
			return err
		})
	}
	return entries, g.Wait()
}

// packageTime is the time of all packages' files.
var packageTime = time.Unix(1700000000, 0)

func writePackage(folder string, format pack.Format, p pack.Package, feed string) (entry, error) {
	content, meta, err := format.Encode(p, packageTime)
	if err != nil {
		return entry{}, err
	}
	file := filepath.Join(folder, meta.Filename)
	return entry{Meta: meta, Base: meta.Name, Feed: feed, File: file}, os.WriteFile(file, content, 0o644)
}
