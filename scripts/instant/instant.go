// Package instant makes an upstream in miniature whose ImageBuilders take no
// time: a Makefile with the real interface and the real words, images of a few
// hundred bytes that depend on the packages, a handful of packages of every
// awkward kind. Tests and benchmarks of everything above run against it.
//
// # What there is
//
// Versions 23.05.5 (opkg, tar.xz), 24.10.0 (opkg, tar.zst), 25.12.0 (apk,
// tar.zst) and SNAPSHOT (apk, tar.gz), each with two targets: x86/64 with the
// sole profile "generic", and ath79/generic with several profiles, of which
// sample_factory-only has no sysupgrade image.
//
// In the feeds, beside ordinary packages: libubox and jansson with an ABI
// version, wget-ssl that provides wget, conflict-a and conflict-b,
// broken-dep that needs a package which does not exist, too-big, and
// dnsmasq-full, which clashes with dnsmasq on opkg.
//
// # Faults
//
// Options.Before and Options.After are shell lines that each build runs, so a
// test can have what it needs:
//
//	Before: `sleep 5`, `exit 1`, `kill -9 $$`
//	Before: `echo "Signature check failed." >&2`
//	After:  `rm "$BIN_DIR/profiles.json"`
//	After:  `touch -- "$BIN_DIR/-rf"; ln -s /etc/passwd "$BIN_DIR/x.bin"`
//	After:  `setsid sleep 4242 </dev/null >/dev/null 2>&1 &`
package instant

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/attended-sysupgrade/sysup/scripts/upstream"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// Versions that Write can make, newest last.
var Versions = []string{"23.05.5", "24.10.0", "25.12.0", "SNAPSHOT"}

// Options say what to make. The zero value makes all of it without a fault.
type Options struct {
	Versions []string // some of Versions; nil: all
	Snapshot string   // revision of SNAPSHOT, default "r28000-0123456789"
	Revision string   // revision that the ImageBuilders tell, if not the one in profiles.json
	URL      string   // base of the feeds' addresses, default https://downloads.openwrt.org

	Before string // shell, run by each build before it installs packages
	After  string // shell, run by each build at its end, with $BIN_DIR

	// Bare are those of the versions that are like 17.01 to 19.07: neither the
	// upstream nor the ImageBuilders have a profiles.json, nor is there an
	// index.json, and make info prints less.
	Bare []string

	// Listing makes the trees of Bare versions write a profiles.json all the same.
	Listing bool

	// LocalSignature makes the trees sign their images with a fwtool trailer,
	// as those up to 24.10 do.
	LocalSignature bool
}

// Upstream is a folder made by Write. A file server over Dir serves it.
type Upstream struct {
	Dir     string
	Key     usign.SecretKey
	KeyFile string // the public key, as --upstream-key takes it
}

// Write makes an upstream in dir, signed by a new key.
func Write(dir string, o Options) (Upstream, error) {
	key, err := usign.Generate("instant upstream")
	if err != nil {
		return Upstream{}, err
	}
	u := Upstream{Dir: dir, Key: key, KeyFile: filepath.Join(dir, "upstream.pub")}
	if err := u.Update(o); err != nil {
		return Upstream{}, err
	}
	return u, os.WriteFile(u.KeyFile, key.Public().Marshal(), 0o644)
}

// Update makes the upstream anew in place with the same key: a snapshot that
// has moved, an ImageBuilder with another fault. Unchanged files stay.
func (u Upstream) Update(o Options) error {
	o = o.withDefaults()
	data := upstream.Upstream{Stable: o.among("24.10.0"), Oldstable: o.among("23.05.5"), Upcoming: o.among("25.12.0")}
	for _, version := range o.Versions {
		at := slices.IndexFunc(releases, func(r release) bool { return r.version == version })
		if at < 0 {
			return fmt.Errorf("there is no instant version %q: take some of %q", version, Versions)
		}
		made, err := releases[at].make(o, u.Key.Public())
		if err != nil {
			return fmt.Errorf("make the instant ImageBuilders of %s: %w", version, err)
		}
		data.Releases = append(data.Releases, made)
	}
	return data.Write(u.Dir, u.Key)
}

// among returns version if it is made, else nothing.
func (o Options) among(version string) string {
	if slices.Contains(o.Versions, version) {
		return version
	}
	return ""
}

func (o Options) withDefaults() Options {
	if o.Versions == nil {
		o.Versions = Versions
	}
	if o.Snapshot == "" {
		o.Snapshot = "r28000-0123456789"
	}
	if o.URL == "" {
		o.URL = "https://downloads.openwrt.org"
	}
	return o
}
