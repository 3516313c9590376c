package instant

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/attended-sysupgrade/sysup/scripts/upstream"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

//go:embed tree
var tree embed.FS

// imageBuilder packs the archive of one target.
func (r release) imageBuilder(t target, o Options, key usign.PublicKey) (upstream.File, error) {
	files, err := r.tree(t, o, key)
	if err != nil {
		return upstream.File{}, err
	}
	name := "openwrt-imagebuilder-" + r.infix() + dashed(t.name) + ".Linux-x86_64"
	data, err := pack(name, files, r.archive, time.Unix(r.epoch, 0))
	return upstream.File{Name: name + "." + r.archive, Data: data}, err
}

// infix is the version as file names carry it: "24.10.0-", nothing for a snapshot.
func (r release) infix() string {
	if r.version == "SNAPSHOT" {
		return ""
	}
	return r.version + "-"
}

func dashed(target string) string { return strings.ReplaceAll(target, "/", "-") }

// tree is the content of the archive by name.
func (r release) tree(t target, o Options, key usign.PublicKey) (map[string]string, error) {
	files := map[string]string{
		".config":                           r.config(t),
		".profiles.mk":                      r.profilesMk(t, o),
		".info":                             r.info(t, o),
		"packages/.all":                     resolverIndex(r.all(t)),
		"scripts/before.sh":                 o.Before,
		"scripts/after.sh":                  o.After,
		"keys/" + key.Fingerprint.String():  string(key.Marshal()),
		"staging_dir/host/bin/.keep":        "",
		"target/linux/" + t.name + "/.keep": "",
	}
	for from, to := range map[string]string{"Makefile": "Makefile", "keys.sh": "scripts/keys.sh",
		"image.sh": "scripts/image.sh", "resolve.awk": "scripts/resolve.awk"} {
		b, err := tree.ReadFile("tree/" + from)
		if err != nil {
			return nil, err
		}
		files[to] = string(b)
	}
	for _, d := range t.devices {
		settings, err := r.deviceSettings(t, d)
		if err != nil {
			return nil, err
		}
		files[".profiles/"+d.id+".sh"] = settings
	}
	if o.LocalSignature && !r.apk {
		files[".local-signature"] = ""
	}
	if r.apk {
		files["repositories"] = r.repositories(t, o)
	} else {
		files["repositories.conf"] = r.repositories(t, o)
	}
	return files, nil
}

func (r release) config(t target) string {
	var b strings.Builder
	for _, fs := range t.config {
		fmt.Fprintf(&b, "CONFIG_TARGET_ROOTFS_%s=y\n", fs)
	}
	if t.partsize > 0 {
		fmt.Fprintf(&b, "CONFIG_TARGET_ROOTFS_PARTSIZE=%d\n", t.partsize)
	}
	if r.apk {
		b.WriteString("CONFIG_USE_APK=y\n")
	}
	if r.bare && !r.listing {
		b.WriteString("# CONFIG_JSON_OVERVIEW_IMAGE_INFO is not set\n")
	} else {
		b.WriteString("CONFIG_JSON_OVERVIEW_IMAGE_INFO=y\n")
	}
	b.WriteString("CONFIG_SIGNATURE_CHECK=y\n")
	return b.String()
}

func (r release) profilesMk(t target, o Options) string {
	board, subtarget, _ := strings.Cut(t.name, "/")
	var b, names strings.Builder
	fmt.Fprintf(&b, "BOARD := %s\nSUBTARGET := %s\nDEFAULT_PACKAGES := %s\n", board, subtarget, strings.Join(r.defaultPackages(), " "))
	for _, d := range t.devices {
		fmt.Fprintf(&names, " DEVICE_%s", d.id)
		fmt.Fprintf(&b, "DEVICE_%s_NAME := %s %s\nDEVICE_%s_PACKAGES := %s\n", d.id, d.vendor, d.model, d.id, strings.Join(d.packages, " "))
	}
	return b.String() + "PROFILE_NAMES :=" + names.String() + "\n"
}

// info is what make info prints.
func (r release) info(t target, o Options) string {
	revision := r.revision
	if o.Revision != "" {
		revision = o.Revision
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Current Target: %q\n", t.name)
	if !r.bare {
		fmt.Fprintf(&b, "Current Architecture: %q\n", t.cpu)
	}
	fmt.Fprintf(&b, "Current Revision: %q\n", revision)
	fmt.Fprintf(&b, "Default Packages: %s\nAvailable Profiles:\n\n", strings.Join(r.defaultPackages(), " "))
	for _, d := range t.devices {
		fmt.Fprintf(&b, "%s:\n    %s %s\n    Packages: %s\n", d.id, d.vendor, d.model, strings.Join(d.packages, " "))
		if len(d.boards) == 0 {
			b.WriteString("    hasImageMetadata: 0\n")
			continue
		}
		fmt.Fprintf(&b, "    hasImageMetadata: 1\n    SupportedDevices: %s\n", strings.Join(d.boards, " "))
	}
	return b.String()
}

// repositories names the feeds in the version's format.
func (r release) repositories(t target, o Options) string {
	base := o.URL + "/" + upstream.Path(r.version)
	urls := map[string]string{"core": base + "/targets/" + t.name + "/packages"}
	if r.kmods {
		urls["kmods"] = fmt.Sprintf("%s/targets/%s/kmods/%s-%s-%s", base, t.name, r.kernel.Version, r.kernel.Release, r.kernel.Vermagic)
	}
	for name := range feedTable {
		urls[name] = base + "/packages/" + t.arch + "/" + name
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(urls)) {
		if r.apk {
			fmt.Fprintf(&b, "%s/packages.adb\n", urls[name])
		} else {
			fmt.Fprintf(&b, "src/gz openwrt_%s %s\n", name, urls[name])
		}
	}
	if !r.apk {
		b.WriteString("src imagebuilder file:packages\noption check_signature\n")
	}
	return b.String()
}

// resolverIndex is the index that scripts/resolve.awk reads.
func resolverIndex(packages []upstream.Package) string {
	var b strings.Builder
	for _, p := range packages {
		file := ""
		if strings.HasPrefix(p.Name, "dnsmasq") {
			file = "/etc/init.d/dnsmasq"
		}
		fields := []string{p.FullName(), p.Name, p.Version, fmt.Sprint(p.Size), strings.Join(p.Depends, " "),
			strings.Join(p.Provides, " "), strings.Join(p.Conflicts, " "), file}
		b.WriteString(strings.Join(fields, "\t") + "\n")
	}
	return b.String()
}

// deviceSettings are the shell variables of one profile for scripts/image.sh:
// names, the constant parts of profiles.json, the images.
func (r release) deviceSettings(t target, d device) (string, error) {
	all := r.profiles(t)
	profile := all.Profiles[d.id]
	static, err := members(all, "profiles")
	if err != nil {
		return "", err
	}
	constant, err := members(profile, "images", "image_prefix")
	if err != nil {
		return "", err
	}
	flash := ""
	if t.flash > 0 {
		flash = fmt.Sprint(t.flash)
	}
	var b strings.Builder
	for _, v := range [][2]string{
		{"prefix", strings.TrimSuffix("openwrt-"+r.infix(), "-")}, {"suffix", dashed(t.name) + "-" + d.id},
		{"static", static}, {"device", constant}, {"images", strings.Join(d.images, " ")}, {"flash", flash},
	} {
		fmt.Fprintf(&b, "%s='%s'\n", v[0], strings.ReplaceAll(v[1], "'", `'\''`))
	}
	return b.String(), nil
}

// members is a value's JSON without its braces and without some members.
func members(v any, without ...string) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(b, &fields); err != nil {
		return "", err
	}
	for _, name := range without {
		delete(fields, name)
	}
	b, err = json.Marshal(fields)
	return string(b[1 : len(b)-1]), err
}

// profiles is the target's profiles.json; the images are those of the stock
// build, with sums of their names, since nothing was built.
func (r release) profiles(t target) upstream.Profiles {
	kernel := r.kernel
	p := upstream.Profiles{
		ArchPackages: t.arch, DefaultPackages: r.defaultPackages(), Kernel: &kernel, MetadataVersion: 1,
		Profiles: map[string]upstream.Profile{}, SourceDateEpoch: r.epoch,
		Target: t.name, VersionCode: r.revision, VersionNumber: r.version,
	}
	for _, d := range t.devices {
		prefix := "openwrt-" + r.infix() + dashed(t.name) + "-" + d.id
		profile := upstream.Profile{DevicePackages: d.packages, ImagePrefix: prefix,
			SupportedDevices: append([]string{}, d.boards...), Titles: []upstream.Title{{Vendor: d.vendor, Model: d.model}}}
		for _, word := range d.images {
			f := strings.Split(word, "|")
			if f[1] == "" {
				continue
			}
			name := prefix + "-" + f[2]
			sum := fmt.Sprintf("%x", sha256.Sum256([]byte(name)))
			profile.Images = append(profile.Images, upstream.Image{Filesystem: f[0], Name: name, SHA256: sum, SHA256Unsigned: sum, Type: f[1]})
		}
		p.Profiles[d.id] = profile
	}
	return p
}

// pack makes a tar of the files below one folder, compressed by the end of its
// name.
func pack(folder string, files map[string]string, end string, at time.Time) ([]byte, error) {
	var out bytes.Buffer
	z, err := compressor(&out, end)
	if err != nil {
		return nil, err
	}
	w := tar.NewWriter(z)
	made := map[string]bool{".": true}
	add := func(h tar.Header, content string) {
		h.ModTime, h.Uname, h.Gname = at, "root", "root"
		if err == nil {
			err = w.WriteHeader(&h)
		}
		if err == nil {
			_, err = io.WriteString(w, content)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		name, content := path.Join(folder, name), files[name]
		for _, dir := range parents(name) {
			if !made[dir] {
				made[dir] = true
				add(tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}, "")
			}
		}
		add(tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))}, content)
	}
	for _, c := range []io.Closer{w, z} {
		if e := c.Close(); err == nil {
			err = e
		}
	}
	return out.Bytes(), err
}

// parents are the folders above name, the outermost first.
func parents(name string) []string {
	var list []string
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		list = append(list, dir)
	}
	slices.Reverse(list)
	return list
}

func compressor(w io.Writer, end string) (io.WriteCloser, error) {
	switch end {
	case "tar.xz":
		return xz.WriterConfig{DictCap: 1 << 20}.NewWriter(w)
	case "tar.zst":
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	default:
		return gzip.NewWriter(w), nil
	}
}
