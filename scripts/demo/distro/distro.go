// Package distro makes the demo distribution: a small real Linux from Debian's packages, laid out like
// downloads.openwrt.org, with ImageBuilders that behave like OpenWrt's.
//
// # What there is
//
// Versions 23.05.90 (opkg, tar.xz), 24.10.90 (opkg, tar.zst), 25.12.90 (apk, tar.zst) and SNAPSHOT (apk,
// tar.zst), each with two targets: x86/64 with the sole profile "generic", whose combined images start
// by GRUB from BIOS and EFI, and demo/flash with boards of limited flash. data/versions.toml and
// data/packages.toml say it all. 19.07.90 has no profiles.json, neither upstream nor beside its images.
//
// Among the packages: libraries with an ABI version (libncurses, libopenssl, libjq, libpcap, libnl3),
// conflict-a and conflict-b, dnsmasq and dnsmasq-full that clash, broken-dep that needs what does not
// exist, too-big, demo-postinst-fails, and demo-hostile, whose script attacks the build host.
//
// What is not as in OpenWrt: no apk library carries an ABI version; the file inside .apk packages is a
// tar; local signatures are two usign signatures in place of a ucert chain; the images' gzip is quick;
// image recipes run in parallel; names of applets are links of one busybox package.
//
// # How it is made
//
// Make downloads Debian packages by apt from wherever the machine's apt is set to, once, and keeps them,
// what it makes of them and its keys in one folder. Only what depends on the upstream's address,
// the keys and the snapshot's revision is made again for each upstream.
package distro

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/attended-sysupgrade/sysup/scripts/demo/pack"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// Options say what to lay out. The zero value lays out everything for DefaultURL.
type Options struct {
	URL      string   // where the upstream will be served: the ImageBuilders' feeds begin with it
	Snapshot string   // revision of SNAPSHOT, like "r34001-0123456789"
	Versions []string // some of the versions; nil: all
	Output   string   // folder of the upstream, default "upstream" in the demo's folder

	Log io.Writer // says what takes its time; nil: nobody
}

// DefaultURL is where the command serves the upstream.
const DefaultURL = "http://127.0.0.1:8079"

// Upstream is a folder made by Make.
type Upstream struct {
	Dir     string // to be served at URL
	URL     string
	KeyFile string // usign public key, as --upstream-key takes it
	// APKKeyFile is the public key, as PEM, that verifies apk's indices.
	APKKeyFile string
}

// Handler serves the upstream.
func (u Upstream) Handler() http.Handler { return http.FileServer(http.Dir(u.Dir)) }

// Make makes the distribution in the folder dir, or finds it there, and lays out an upstream. It must
// run inside this module, since it compiles a tool of it. Several processes may share a folder.
func Make(ctx context.Context, dir string, o Options) (Upstream, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Upstream{}, err
	}
	if o.Output == "" {
		o.Output = filepath.Join(dir, "upstream")
	}
	if o.URL == "" {
		o.URL = DefaultURL
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	unlock, err := lock(dir)
	if err != nil {
		return Upstream{}, err
	}
	defer unlock()
	root, err := Root()
	if err != nil {
		return Upstream{}, err
	}
	m := &maker{root: root, dir: dir, options: o}
	if err := m.make(ctx); err != nil {
		return Upstream{}, fmt.Errorf("make the demo distribution: %w", err)
	}
	keys := filepath.Join(dir, "keys")
	return Upstream{
		Dir: o.Output, URL: o.URL,
		KeyFile: filepath.Join(keys, "upstream.pub"), APKKeyFile: filepath.Join(keys, "upstream.pem"),
	}, nil
}

func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { f.Close() }, nil
}

// Root is the folder of this module, above the current one.
func Root() (string, error) {
	here, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := here; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "scripts/demo/hosttool/main.go")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not inside sysup's repository", here)
		}
	}
}

// maker makes one upstream.
type maker struct {
	root    string // of the module
	dir     string // of the demo
	options Options

	plan  plan
	parts parts
	key   usign.SecretKey   // signs sums, and opkg's feeds
	ec    *ecdsa.PrivateKey // signs apk's feeds
}

// parts are what is made once, as kept in parts.json.
type parts struct {
	Key      string // digest of the sources it was made from
	Folder   string
	Kernel   kernelID
	Packages map[pack.Format][]entry
}

// kernelID names a kernel as profiles.json does.
type kernelID struct{ Version, Vermagic string }

func (m *maker) make(ctx context.Context) error {
	var err error
	if m.plan, err = readPlan(); err != nil {
		return err
	}
	if err := m.loadKeys(); err != nil {
		return err
	}
	if err := m.loadParts(ctx); err != nil {
		return err
	}
	return m.layOut(ctx)
}

// loadKeys reads the distribution's keys, or makes them.
func (m *maker) loadKeys() error {
	dir := filepath.Join(m.dir, "keys")
	if _, err := os.Stat(filepath.Join(dir, "apk.pem")); errors.Is(err, fs.ErrNotExist) {
		if err := newKeys(dir); err != nil {
			return err
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "upstream.sec"))
	if err != nil {
		return err
	}
	if m.key, err = usign.ParseSecretKey(text); err != nil {
		return err
	}
	if text, err = os.ReadFile(filepath.Join(dir, "apk.pem")); err != nil {
		return err
	}
	if m.ec, err = pack.ParseECKey(text); err != nil {
		return err
	}
	public, err := pack.MarshalECPublic(&m.ec.PublicKey)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "upstream.pem"), public, 0o644)
}

func newKeys(dir string) error {
	key, err := usign.Generate("demo distribution")
	if err != nil {
		return err
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	pem, err := pack.MarshalECKey(ec)
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(dir, 0o755),
		os.WriteFile(filepath.Join(dir, "upstream.sec"), key.Marshal(), 0o600),
		os.WriteFile(filepath.Join(dir, "upstream.pub"), key.Public().Marshal(), 0o644),
		os.WriteFile(filepath.Join(dir, "apk.pem"), pem, 0o600))
}

// loadParts finds the parts or makes them.
func (m *maker) loadParts(ctx context.Context) error {
	key, err := m.sourceKey()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(m.dir, "parts.json"))
	if err == nil && json.Unmarshal(text, &m.parts) == nil && m.parts.Key == key {
		return nil
	}
	m.parts = parts{Key: key, Folder: filepath.Join(m.dir, "parts"), Packages: map[pack.Format][]entry{}}
	if err := m.makeParts(ctx); err != nil {
		return err
	}
	if text, err = json.MarshalIndent(m.parts, "", "  "); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(m.dir, "parts.json"), text, 0o644)
}

// sources are the folders whose files decide what is made.
var sources = []string{"scripts/demo", "scripts/upstream", "shared/usign"}

// sourceKey is a digest of all that the distribution is made from, but for what Debian offers.
func (m *maker) sourceKey() (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version(), m.dir)
	for _, folder := range sources {
		err := filepath.WalkDir(filepath.Join(m.root, folder), func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || strings.HasSuffix(name, "_test.go") {
				return err
			}
			text, err := os.ReadFile(name)
			fmt.Fprintf(h, "%s %d\n%s", strings.TrimPrefix(name, m.root), len(text), text)
			return err
		})
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
