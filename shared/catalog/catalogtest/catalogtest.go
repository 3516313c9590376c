// Package catalogtest is an upstream for tests: small or as large as a real
// branch, signed, in memory, and faulty at will.
package catalogtest

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/feed"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// Upstream is a set of files, laid out like downloads.openwrt.org, that
// answers requests with ETags. It may change while it is used.
type Upstream struct {
	// Fault, if set, may answer a request itself: then it returns true.
	Fault func(w http.ResponseWriter, r *http.Request) bool

	key     usign.SecretKey // signs
	apkKey  *ecdsa.PrivateKey
	trusted usign.PublicKey // of the first key

	mu      sync.Mutex
	files   map[string]file
	targets map[string]map[string]string // version → .targets.json
	asked   map[string]Count
}

type file struct {
	body []byte
	etag string
}

// Count is how often a file was asked for, and how often it was unchanged.
type Count struct{ Asked, Unchanged int }

// New returns an empty upstream with a key of its own.
func New() (*Upstream, error) {
	key, err := usign.Generate("test upstream")
	if err != nil {
		return nil, err
	}
	apkKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return &Upstream{
		key: key, apkKey: apkKey, trusted: key.Public(), files: map[string]file{}, targets: map[string]map[string]string{}, asked: map[string]Count{},
	}, nil
}

// Keys is the list with the upstream's key.
func (u *Upstream) Keys() []usign.PublicKey { return []usign.PublicKey{u.trusted} }

// APKKeys is the list with the key that signs apk's indices.
func (u *Upstream) APKKeys() []*ecdsa.PublicKey { return []*ecdsa.PublicKey{&u.apkKey.PublicKey} }

// SignBy makes another key sign what is put from now on; Keys stays.
func (u *Upstream) SignBy(key usign.SecretKey) { u.key = key }

// Put makes or replaces a file.
func (u *Upstream) Put(name string, body []byte) {
	sum := sha256.Sum256(body)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.files[name] = file{body, `"` + hex.EncodeToString(sum[:8]) + `"`}
}

// Drop removes every file whose path begins with the prefix.
func (u *Upstream) Drop(prefix string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	maps.DeleteFunc(u.files, func(name string, _ file) bool { return strings.HasPrefix(name, prefix) })
}

// Get returns a file, or nil.
func (u *Upstream) Get(name string) []byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.files[name].body
}

func (u *Upstream) putJSON(name string, v any) {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		panic(err) // of the types below, all can be marshalled
	}
	u.Put(name, b)
}

func (u *Upstream) putSigned(name, signature string, body []byte) {
	u.Put(name, body)
	u.Put(signature, u.key.Sign(body).Marshal())
}

// Versions puts .versions.json; the list holds the first three, too.
func (u *Upstream) Versions(stable, oldstable, upcoming string, others ...string) {
	list := slices.DeleteFunc(append(others, stable, oldstable, upcoming), func(s string) bool { return s == "" })
	u.putJSON(".versions.json", map[string]any{
		"stable_version": stable, "oldstable_version": oldstable, "upcoming_version": upcoming, "versions_list": list,
	})
}

// Folder is where a version lies.
func Folder(version string) string {
	if version == "SNAPSHOT" {
		return "snapshots"
	}
	return "releases/" + version
}

// Target is a target and what is built for it.
type Target struct {
	Name, Arch, Revision string // "x86/64", "x86_64", "r1-0123456789"
	Defaults             []string
	Profiles             map[string]Profile
	Packages, Kmods      []Package
	APK                  bool
}

// Profile is a device as profiles.json has it.
type Profile struct {
	Packages []string            `json:"device_packages"`
	Devices  []string            `json:"supported_devices"`
	Titles   []map[string]string `json:"titles"`
	Prefix   string              `json:"image_prefix,omitempty"`
	Images   []map[string]string `json:"images,omitempty"`
}

// Package is one of a feed. Name is without the ABI version. The lists are
// spelled as opkg does; with none, a package needs libc.
type Package struct {
	Name, ABI, Version, Provides, Depends, Conflicts string
	Size                                             int // installed, in bytes; 10 KiB if zero
}

const kernel = "6.6.1-1-0123456789abcdef"

// Target puts a target's folder and lists it among the version's.
func (u *Upstream) Target(version string, t Target) {
	dir := Folder(version) + "/targets/" + t.Name
	u.putJSON(dir+"/profiles.json", map[string]any{
		"arch_packages": t.Arch, "default_packages": t.Defaults, "metadata_version": 1, "profiles": t.Profiles,
		"linux_kernel": map[string]string{"version": "6.6.1", "release": "1", "vermagic": "0123456789abcdef"},
		"target":       t.Name, "version_code": t.Revision, "version_number": version, "source_date_epoch": 1700000000,
	})
	flat := strings.ReplaceAll(t.Name, "/", "-")
	u.Put(fmt.Sprintf("%s/openwrt-imagebuilder-%s-%s.Linux-x86_64.tar.zst", dir, version, flat), []byte("an archive of "+t.Revision))
	u.feed(dir+"/packages", t.APK, t.Packages)
	u.Sign(dir)
	if t.Kmods != nil {
		u.feed(dir+"/kmods/"+kernel, t.APK, t.Kmods)
	}
	u.mu.Lock()
	if u.targets[version] == nil {
		u.targets[version] = map[string]string{}
	}
	u.targets[version][t.Name] = t.Arch
	list := maps.Clone(u.targets[version])
	u.mu.Unlock()
	u.putJSON(Folder(version)+"/.targets.json", list)
}

// Sign lists the sums of a folder's files, but for kernel modules, and signs
// the list.
func (u *Upstream) Sign(dir string) {
	u.mu.Lock()
	sums := usign.Sums{}
	for name, f := range u.files {
		rel, below := strings.CutPrefix(name, dir+"/")
		if below && !strings.HasPrefix(rel, "sha256sums") && !strings.HasPrefix(rel, "kmods/") {
			sums[rel] = sha256.Sum256(f.body)
		}
	}
	u.mu.Unlock()
	list, err := sums.Marshal()
	if err != nil {
		panic(err) // names come from tests
	}
	u.putSigned(dir+"/sha256sums", dir+"/sha256sums.sig", list)
}

// Feed puts one feed of an architecture and lists it in feeds.conf.
func (u *Upstream) Feed(version, arch, name string, apk bool, packages ...Package) {
	dir := Folder(version) + "/packages/" + arch
	u.feed(dir+"/"+name, apk, packages)
	conf := u.Get(dir + "/feeds.conf")
	if name != "base" && !bytes.Contains(conf, []byte("src-git "+name+" ")) {
		u.Put(dir+"/feeds.conf", fmt.Appendf(bytes.Clone(conf), "src-git %s https://git.example.org/%s.git^%040x\n", name, name, 1))
	} else if conf == nil {
		u.Put(dir+"/feeds.conf", []byte{})
	}
}

func (u *Upstream) feed(dir string, apk bool, packages []Package) {
	var b bytes.Buffer
	for _, p := range packages {
		p.stanza(&b)
	}
	if apk {
		u.adb(dir, packages, b.Bytes())
		return
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write(b.Bytes())
	z.Close()
	u.putSigned(dir+"/Packages", dir+"/Packages.sig", b.Bytes())
	u.Put(dir+"/Packages.gz", packed.Bytes())
}

// adb puts the index of apk and what of it is in index.json.
func (u *Upstream) adb(dir string, packages []Package, stanzas []byte) {
	list, err := feed.ParsePackages(stanzas)
	for i := range list {
		list[i].Provides = append(list[i].Provides, feed.Dependency{Name: list[i].Name + "-any"})
		if list[i].ABI != "" {
			list[i].Priority = 10
		}
	}
	index, err2 := feed.WriteADB(list, u.apkKey)
	if err := errors.Join(err, err2); err != nil {
		panic(err) // packages come from tests
	}
	u.Put(dir+"/packages.adb", index)
	versions := map[string]string{}
	for _, p := range packages {
		versions[p.Name] = p.Version
	}
	u.putJSON(dir+"/index.json", map[string]any{"version": 2, "architecture": "any", "packages": versions})
}

// stanza has the length of a real one.
func (p Package) stanza(b *bytes.Buffer) {
	provides := p.Provides
	if p.ABI != "" {
		provides = strings.TrimSuffix(p.Name+", "+provides, ", ")
	}
	fmt.Fprintf(b, "Package: %s%s\nVersion: %s\nDepends: %s\n", p.Name, p.ABI, p.Version, cmp.Or(p.Depends, "libc"))
	if p.Conflicts != "" {
		fmt.Fprintf(b, "Conflicts: %s\n", p.Conflicts)
	}
	if provides != "" {
		fmt.Fprintf(b, "Provides: %s\n", provides)
	}
	if p.ABI != "" {
		fmt.Fprintf(b, "ABIVersion: %s\n", p.ABI)
	}
	fmt.Fprintf(b, "License: GPL-2.0\nSection: utils\nCPE-ID: cpe:/a:example:%s\nArchitecture: any\nInstalled-Size: %d\n", p.Name, cmp.Or(p.Size, 10240))
	fmt.Fprintf(b, "Filename: %s_%s_any.ipk\nSize: 4096\nSHA256sum: %x\n", p.Name, p.Version, sha256.Sum256([]byte(p.Name)))
	fmt.Fprintf(b, "Description:  The package %s does what\n  its name says, in as many words as\n  the descriptions of packages have.\n\n", p.Name)
}

// Asked returns the count for a path.
func (u *Upstream) Asked(name string) Count {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.asked[name]
}

// AskedAll returns the sum of all counts.
func (u *Upstream) AskedAll() (sum Count) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, c := range u.asked {
		sum.Asked, sum.Unchanged = sum.Asked+c.Asked, sum.Unchanged+c.Unchanged
	}
	return sum
}

// ServeHTTP answers with a file.
func (u *Upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(path.Clean(r.URL.Path), "/")
	u.mu.Lock()
	f, ok := u.files[name]
	count := u.asked[name]
	count.Asked++
	if r.Header.Get("If-None-Match") == f.etag && ok {
		count.Unchanged++
	}
	u.asked[name] = count
	fault := u.Fault
	u.mu.Unlock()
	if fault != nil && fault(w, r) {
		return
	}
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("ETag", f.etag)
	http.ServeContent(w, r, path.Base(name), time.Time{}, bytes.NewReader(f.body))
}

// SetFault sets Fault while the upstream is in use.
func (u *Upstream) SetFault(fault func(w http.ResponseWriter, r *http.Request) bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.Fault = fault
}

// Client returns a client that reaches the upstream under any address without
// a network. A fault that panics with http.ErrAbortHandler breaks the
// connection.
func (u *Upstream) Client() *http.Client {
	return &http.Client{Transport: roundTripper{u}}
}

type roundTripper struct{ u *Upstream }

func (t roundTripper) RoundTrip(r *http.Request) (resp *http.Response, err error) {
	defer func() {
		if p := recover(); p == http.ErrAbortHandler {
			err = fmt.Errorf("connection lost")
		} else if p != nil {
			panic(p)
		}
	}()
	rec := httptest.NewRecorder()
	t.u.ServeHTTP(rec, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return rec.Result(), nil
}
