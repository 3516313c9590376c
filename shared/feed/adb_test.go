package feed

import (
	"bytes"
	"compress/flate"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// testdata/apk holds packages of our own, made by apk-tools 3.0.5 (mkpkg and
// mkndx), and what its adbdump prints of their index.
func testdata(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "apk", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func publicKey(t testing.TB) *ecdsa.PublicKey {
	t.Helper()
	key, err := ParsePublicKey(testdata(t, "public.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestOpenADBOfRealApk(t *testing.T) {
	key := publicKey(t)
	list, signer, err := OpenADB(testdata(t, "packages.adb"), []*ecdsa.PublicKey{&newKey(t).PublicKey, key})
	if err != nil || signer != IDOf(key) {
		t.Fatalf("signed by %v, %v; want %v", signer, err, IDOf(key))
	}
	dump := string(testdata(t, "adbdump.txt"))
	if !strings.Contains(dump, "# sig v00 h04 "+signer.String()) {
		t.Errorf("the dump names another key than %v", signer)
	}
	if want := parseDump(t, dump); len(want) != 3 || !reflect.DeepEqual(list, want) {
		t.Errorf("packages are\n%+v, want\n%+v", list, want)
	}
}

// parseDump reads what apk's adbdump prints.
func parseDump(t *testing.T, dump string) (list []Package) {
	var field string
	for line := range strings.Lines(dump) {
		line = strings.TrimSuffix(line, "\n")
		if name, ok := strings.CutPrefix(line, "  - name: "); ok {
			list = append(list, Package{Name: name})
			continue
		}
		if len(list) == 0 || !strings.HasPrefix(line, "    ") {
			continue
		}
		p := &list[len(list)-1]
		if item := line[4:]; item[0] != ' ' {
			var value string
			field, value, _ = strings.Cut(item, ": ")
			dumpField(t, p, field, value)
		} else {
			dumpItem(p, field, strings.TrimSpace(item))
		}
	}
	for i := range list {
		list[i].Description = strings.TrimSpace(list[i].Description)
		list[i].File = list[i].Name + "-" + list[i].Version + ".apk"
	}
	return list
}

func dumpField(t *testing.T, p *Package, field, value string) {
	number := func() int {
		n, err := strconv.Atoi(value)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	switch field {
	case "version":
		p.Version = value
	case "hashes":
		p.Identity = value
	case "arch":
		p.Arch = value
	case "description":
		p.Description = strings.Trim(value, "'|")
	case "installed-size":
		p.InstalledSize = int64(number())
	case "file-size":
		p.Size = int64(number())
	case "provider-priority":
		p.Priority = number()
	}
}

var dumpedDependency = regexp.MustCompile(`^'?(!?)([a-z0-9-]+)(?:([<>=~]+)(.*?))?'?$`)

func dumpItem(p *Package, field, item string) {
	text := strings.TrimPrefix(item, "- ")
	var d Dependency
	m := dumpedDependency.FindStringSubmatch(text)
	if m != nil {
		d = Dependency{Name: m[2], Op: m[3], Version: m[4]}
	}
	switch field {
	case "description":
		p.Description += "\n" + item
	case "depends":
		if m[1] == "!" {
			p.Conflicts = append(p.Conflicts, d)
		} else {
			p.Depends = append(p.Depends, d)
		}
	case "provides":
		p.Provides = append(p.Provides, d)
	case "install-if":
		p.InstallIf = append(p.InstallIf, d)
	case "tags":
		if abi, ok := strings.CutPrefix(text, "openwrt:abiversion="); ok {
			p.ABI = abi
		}
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// sample has every field that an index of apk holds, as it is read again.
func sample() []Package {
	return []Package{
		{Name: "bare", Version: "1", File: "bare-1.apk"},
		{
			Name: "libfoo2-3", ABI: "3", Version: "1.2~ab-r1", Arch: "x86_64",
			Depends: []Dependency{
				{Name: "a"}, {Name: "b", Op: "=", Version: "1"}, {Name: "c", Op: "<", Version: "1"}, {Name: "d", Op: "<=", Version: "1"},
				{Name: "e", Op: ">", Version: "1"}, {Name: "f", Op: ">=", Version: "1"}, {Name: "g", Op: "~", Version: "1"},
			},
			Conflicts: []Dependency{{Name: "old"}, {Name: "older", Op: "=", Version: "1"}, {Name: "oldest", Op: "<", Version: "2"}},
			Provides:  []Dependency{{Name: "libfoo2", Op: "=", Version: "1.2~ab-r1"}, {Name: "libfoo2-3-any"}},
			InstallIf: []Dependency{{Name: "bare"}, {Name: "other", Op: ">", Version: "1"}},
			Priority:  100, File: "libfoo2-3-1.2~ab-r1.apk", Size: 1 << 29, InstalledSize: 1 << 33, Identity: "00ff",
			Description: strings.Repeat("long, ", 100) + "end",
		},
	}
}

func write(t testing.TB, list []Package, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	b, err := WriteADB(list, key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestWriteADB(t *testing.T) {
	key, want := newKey(t), sample()
	mixed := sample()
	slices.Reverse(mixed)
	slices.Reverse(mixed[0].Depends)
	b := write(t, mixed, key)
	if !bytes.Equal(b, write(t, want, key)) {
		t.Error("the same packages give other bytes")
	}
	got, signer, err := OpenADB(b, []*ecdsa.PublicKey{&key.PublicKey})
	if err != nil || signer != IDOf(&key.PublicKey) || !reflect.DeepEqual(got, want) {
		t.Errorf("read again:\n%+v, %v, %v; want\n%+v", got, signer, err, want)
	}
	if mixed[0].Name != "libfoo2-3" || mixed[0].Depends[0].Name != "g" {
		t.Error("the caller's packages are in another order now")
	}
}

// TestForApk holds the writer to what apk asks for and our reader does not.
func TestForApk(t *testing.T) {
	empty, err := writeIndex(nil)
	if err != nil || len(empty) < 16 {
		t.Errorf("an empty index has a payload of %d bytes, %v; apk takes none below 16", len(empty), err)
	}
	w := &writer{b: make([]byte, payloadHead), written: map[string]uint32{}}
	value, err := w.dependency(Dependency{Name: "a", Op: "~", Version: "1"}, false)
	if err != nil {
		t.Fatal(err)
	}
	r := &payload{text: string(w.b), values: 100}
	if match := r.number(r.slot(r.list(value), slotMatch)); match != 9 {
		t.Errorf("~ is written as %d: apk meets it with the bit of = only", match)
	}
}

func TestWriteADBRefuses(t *testing.T) {
	key := newKey(t)
	for what, change := range map[string]func(p *Package){
		"name":             func(p *Package) { p.Name = "a b" },
		"version":          func(p *Package) { p.Version = "" },
		"architecture":     func(p *Package) { p.Arch = "../x" },
		"ABI version":      func(p *Package) { p.ABI = "$" },
		"file size":        func(p *Package) { p.Size = -1 },
		"installed size":   func(p *Package) { p.InstalledSize = maxSize + 1 },
		"priority":         func(p *Package) { p.Priority = maxPriority + 1 },
		"identity":         func(p *Package) { p.Identity = "xy" },
		"long identity":    func(p *Package) { p.Identity = strings.Repeat("00", maxIdentity+1) },
		"dependencies":     func(p *Package) { p.Provides = make([]Dependency, maxList+1) },
		"alternatives":     func(p *Package) { p.Depends = []Dependency{{Name: "a", Or: names("b")}} },
		"dependency":       func(p *Package) { p.Depends = names("a b") },
		"operator":         func(p *Package) { p.Provides = []Dependency{{Name: "a", Op: "==", Version: "1"}} },
		"unknown operator": func(p *Package) { p.Conflicts = []Dependency{{Name: "a", Op: "?", Version: "1"}} },
		"bare operator":    func(p *Package) { p.InstallIf = []Dependency{{Name: "a", Op: "<"}} },
		"bare version":     func(p *Package) { p.InstallIf = []Dependency{{Name: "a", Version: "1"}} },
	} {
		p := sample()[0]
		change(&p)
		if _, err := WriteADB([]Package{p}, key); err == nil {
			t.Errorf("%s: %+v is written", what, p)
		}
	}
	if _, err := WriteADB(slices.Repeat(sample()[:1], maxPackages+1), key); err == nil {
		t.Error("an index without an end is written")
	}
}

// plain returns what is compressed in an index.
func plain(t testing.TB, b []byte) []byte {
	t.Helper()
	p, err := io.ReadAll(flate.NewReader(bytes.NewReader(b[4:])))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// container puts blocks behind a head.
func container(blocks ...[]byte) []byte {
	return append([]byte("ADB.indx"), slices.Concat(blocks...)...)
}

func blockOf(kind uint32, content []byte) []byte { return appendBlock(nil, kind, content) }

// extended is a block with the long head.
func extended(kind uint32, content []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, blockExtended<<30|kind)
	b = binary.LittleEndian.AppendUint64(append(b, 0, 0, 0, 0), uint64(16+len(content)))
	b = append(b, content...)
	return append(b, make([]byte, -len(b)&7)...)
}

func TestContainers(t *testing.T) {
	key := newKey(t)
	keys := []*ecdsa.PublicKey{&key.PublicKey}
	good := write(t, sample(), key)
	p := plain(t, good)
	a, err := parseADB(good)
	if err != nil {
		t.Fatal(err)
	}
	data, sig := blockOf(blockADB, a.payload), blockOf(blockSig, a.signatures[0])
	for what, b := range map[string][]byte{
		"deflated": good, "plain": p, "nothing": append([]byte("ADBc\x00\x00"), p...), "by number": append([]byte("ADBc\x01\x09"), good[4:]...),
		"without the last padding": bytes.TrimRight(p, "\x00"), "extended": container(extended(blockADB, a.payload), extended(blockSig, a.signatures[0])),
		"with more": container(data, sig, blockOf(blockData, []byte("x")), blockOf(blockData, nil)), "two signatures": container(data, sig, sig),
	} {
		if list, _, err := OpenADB(b, keys); err != nil || !reflect.DeepEqual(list, sample()) {
			t.Errorf("%s: %+v, %v", what, list, err)
		}
	}
	short := binary.LittleEndian.AppendUint32(nil, blockData<<30|3)
	for what, b := range map[string][]byte{
		"nothing": nil, "magic alone": []byte("ADBd"), "half": good[:len(good)/2], "another magic": []byte("ADB?" + string(p[4:])), "inner magic": append([]byte("ADBc\x00\x00"), good...),
		"zstd": []byte("ADBc\x02\x03\x28\xb5\x2f\xfd"), "short head": []byte("ADBc\x01"), "a package": []byte("ADB.pckg" + string(p[8:])), "no blocks": container(),
		"half a block": p[:len(p)-20], "half a head": container(data, []byte{1, 0}), "half an extended head": container(data, extended(blockSig, nil)[:12]),
		"short block": container(data, short), "signature first": container(sig, data), "data twice": container(data, data), "late signature": container(data, blockOf(blockData, nil), sig),
		"unknown block": container(data, extended(7, nil)), "signatures without end": container(append([][]byte{data}, slices.Repeat([][]byte{sig}, maxSignatures+1)...)...),
		"no payload": container(blockOf(blockADB, a.payload[:7])), "another version": container(blockOf(blockADB, append([]byte{1}, a.payload[1:]...))),
	} {
		if list, err := ReadADBUnverified(b); err == nil {
			t.Errorf("%s is taken for %+v", what, list)
		}
	}
	for what, b := range map[string][]byte{"a bomb": bomb(t), "a long one": append(p, make([]byte, maxADB)...)} {
		if _, err := ReadADBUnverified(b); !errors.Is(err, errTooLong) {
			t.Errorf("%s gives %v", what, err)
		}
	}
	if _, err := ReadADBUnverified([]byte("ADBc\x02\x03")); err == nil || !strings.Contains(err.Error(), "deflate") {
		t.Errorf("zstd gives %v", err)
	}
}

// bomb is small and inflates beyond the limit: the same megabyte of zeros again
// and again.
func bomb(t testing.TB) []byte {
	t.Helper()
	var one bytes.Buffer
	w, err := flate.NewWriter(&one, flate.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(make([]byte, 1<<20))
	if err := errors.Join(err, w.Flush()); err != nil {
		t.Fatal(err)
	}
	return append([]byte(deflateMagic), bytes.Repeat(one.Bytes(), maxADB>>20+1)...)
}

func TestSignatures(t *testing.T) {
	key, other := newKey(t), newKey(t)
	a, err := parseADB(write(t, sample(), key))
	if err != nil {
		t.Fatal(err)
	}
	b, err := parseADB(write(t, sample()[:1], key))
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := sign(a.payload, other)
	if err != nil {
		t.Fatal(err)
	}
	odd := slices.Clone(a.signatures[0])
	odd[1] = 3 // another hash
	data, own, wrong := blockOf(blockADB, a.payload), blockOf(blockSig, a.signatures[0]), blockOf(blockSig, b.signatures[0])
	for _, c := range []struct {
		name   string
		blocks [][]byte
		keys   []*ecdsa.PublicKey
		want   error
	}{
		{"own", [][]byte{data, own}, []*ecdsa.PublicKey{&key.PublicKey}, nil},
		{"one of two keys", [][]byte{data, own}, []*ecdsa.PublicKey{&other.PublicKey, &key.PublicKey}, nil},
		{"one of two signatures", [][]byte{data, blockOf(blockSig, foreign), own}, []*ecdsa.PublicKey{&key.PublicKey}, nil},
		{"one of two is bad", [][]byte{data, wrong, own}, []*ecdsa.PublicKey{&key.PublicKey}, nil},
		{"none", [][]byte{data}, []*ecdsa.PublicKey{&key.PublicKey}, ErrUnsigned},
		{"of another kind", [][]byte{data, blockOf(blockSig, odd), blockOf(blockSig, nil)}, []*ecdsa.PublicKey{&key.PublicKey}, ErrUnsigned},
		{"without keys", [][]byte{data, own}, nil, ErrUnknownKey},
		{"another key", [][]byte{data, own}, []*ecdsa.PublicKey{&other.PublicKey}, ErrUnknownKey},
		{"of another index", [][]byte{data, wrong}, []*ecdsa.PublicKey{&key.PublicKey}, ErrBadSignature},
		{"bad and foreign", [][]byte{data, wrong, blockOf(blockSig, foreign)}, []*ecdsa.PublicKey{&key.PublicKey}, ErrBadSignature},
	} {
		list, signer, err := OpenADB(container(c.blocks...), c.keys)
		if !errors.Is(err, c.want) || (err == nil) != (len(list) == 2) || (err == nil) != (signer == IDOf(&key.PublicKey)) {
			t.Errorf("%s: %d packages, %v, %v; want %v", c.name, len(list), signer, err, c.want)
		}
	}
}

// Each byte of the data and of the signature counts, the padding between
// blocks does not.
func TestEveryByteIsSigned(t *testing.T) {
	key := newKey(t)
	p := plain(t, write(t, sample()[:1], key))
	unsigned := 0
	for i := range p {
		changed := slices.Clone(p)
		changed[i] ^= 1
		if _, _, err := OpenADB(changed, []*ecdsa.PublicKey{&key.PublicKey}); err == nil {
			unsigned++
		}
	}
	if unsigned > 2*7 {
		t.Errorf("%d of %d bytes can be changed", unsigned, len(p))
	}
}

// damaged is a payload of words behind its head; the root stands first.
func damaged(words ...uint32) []byte {
	b := make([]byte, 4)
	for _, w := range words {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}

func TestDamagedPayloads(t *testing.T) {
	const object, array = typeObject << 28, typeArray << 28
	for what, b := range map[string][]byte{
		"the root is no list":       damaged(typeInt<<28 | 1),
		"the root is true":          damaged(1),
		"beyond the end":            damaged(object | immediate),
		"a list beyond the end":     damaged(object|8, 3, 0),
		"a list of nothing":         damaged(object|8, 0, 0, 0, 0, 0),
		"a package is no list":      damaged(object|8, 3, 0, array|20, 0, 2, typeInt<<28|1),
		"a name is no text":         damaged(object|8, 3, 0, array|20, 2, object|28, 2, typeInt<<28|7),
		"a name beyond the end":     damaged(object|8, 3, 0, array|20, 2, object|28, 2, typeBlob8<<28|39, 1<<24),
		"a long name":               damaged(object|8, 3, 0, array|20, 2, object|28, 2, typeBlob32<<28|36, 0xffffffff),
		"packages in a circle":      damaged(object|8, 3, object|8, object|8),
		"packages without an end":   damaged(append([]uint32{object | 8, 3, 0, array | 20, maxPackages + 2}, make([]uint32, maxPackages+1)...)...),
		"shared beyond all measure": blowup(t, 1_000, 900),
		"dependencies without end":  append(blowup(t, 1_200, 900), make([]byte, 4<<20)...),
	} {
		if list, err := readIndex(b); err == nil {
			t.Errorf("%s: %d packages are read", what, len(list))
		}
	}
	if list, err := readIndex(damaged(0)); err != nil || len(list) != 0 {
		t.Errorf("an empty payload: %v, %v", list, err)
	}
}

// blowup is an index in which many packages are one, with many dependencies.
func blowup(t testing.TB, packages, dependencies int) []byte {
	t.Helper()
	w := &writer{b: make([]byte, payloadHead), written: map[string]uint32{}}
	p, err := w.pkg(&Package{Name: "a", Version: "1", Depends: slices.Repeat(names("b"), dependencies)})
	if err != nil {
		t.Fatal(err)
	}
	root := w.list(typeObject, 0, w.list(typeArray, slices.Repeat([]uint32{p}, packages)...))
	binary.LittleEndian.PutUint32(w.b[4:], root)
	return w.b
}

// What breaks a pattern does not leave the reader.
func TestReadADBPatterns(t *testing.T) {
	w := &writer{b: make([]byte, payloadHead), written: map[string]uint32{}}
	dep := func(name, version string, match uint32) uint32 {
		return w.list(typeObject, w.blob(name), w.blob(version), match)
	}
	number := func(n uint32) uint32 { return typeInt<<28 | n }
	depends := w.list(typeArray, dep("a", "1", 0), dep("so:b", "", 0), dep("c", "$", 0), dep("d", "1", number(10)), dep("e", "1", number(7)),
		dep("f", "1", number(6)), dep("g", "1", number(1<<20)), dep("h", "", number(16)), dep("i", "1", number(8|1|16)), 0)
	p := w.list(typeObject, w.blob("p"), w.blob("1"), w.blob(strings.Repeat("x", 65)), w.blob("\xff"), w.blob("a/b"), 0, 0, 0, 0, 0, 0,
		w.put(typeInt64, 8, bytes.Repeat([]byte{0xff}, 8)), w.put(typeInt32, 4, bytes.Repeat([]byte{0xff}, 4)), w.put(typeInt64, 8, bytes.Repeat([]byte{0xff}, 8)),
		depends, 0, 0, w.list(typeArray, dep("a", "", 0), dep("so:b", "", 0)), 0, 0, w.list(typeArray, w.blob("x"), w.blob("openwrt:abiversion=$(x)")))
	odd := w.list(typeObject, w.blob("$(x)"), w.blob("1"))
	q := w.list(typeObject, w.blob("q"), w.blob("2"), 0, 0, w.blob("arm"), 0, 0, 0, 0, 0, 0, 0, 0, number(1<<20), 0, 0, 0, w.list(typeArray, dep("a", "", 0), dep("b", "", number(16))))
	want := []Package{
		{Name: "p", Version: "1", File: "", Size: 1<<32 - 1,
			Depends: []Dependency{{Name: "a", Op: "=", Version: "1"}, {Name: "c", Op: "?"}, {Name: "d", Op: "?"}, {Name: "e"},
				{Name: "f", Op: "?"}, {Name: "g", Op: "?"}},
			Conflicts: []Dependency{{Name: "h"}, {Name: "i", Op: "~", Version: "1"}}},
		{Name: "q", Version: "2", Arch: "arm"},
	}
	for spec, files := range map[string][2]string{
		"": {"p-1.apk", "q-2.apk"}, "${arch}/${name}_${version}.apk": {"", "arm/q_2.apk"}, "${name}.${hash:8}.apk": {}, "../${name}": {},
		strings.Repeat("x", 256): {"p-1.apk", "q-2.apk"},
	} {
		root := w.list(typeObject, 0, w.list(typeArray, p, odd, q, 0), w.blob(spec))
		binary.LittleEndian.PutUint32(w.b[4:], root)
		want[0].File, want[1].File = files[0], files[1]
		if got, err := readIndex(w.b); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("files named %.40q are\n%+v, %v; want\n%+v", spec, got, err, want)
		}
	}
}

func TestParsePublicKey(t *testing.T) {
	text := string(testdata(t, "public.pem"))
	rsa := "-----BEGIN PUBLIC KEY-----\nMA0GCSqGSIb3DQEBAQUAAwEA\n-----END PUBLIC KEY-----\n"
	for what, good := range map[string]string{
		"bare": text, "commented": "untrusted comment: Local build key\n" + text, "CRLF": strings.ReplaceAll(text, "\n", "\r\n"), "blanks": "\n" + text + "\n\n",
	} {
		if key, err := ParsePublicKey([]byte(good)); err != nil || !key.Equal(publicKey(t)) {
			t.Errorf("%s: %v", what, err)
		}
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&p384.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	long := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	for what, bad := range map[string]string{
		"empty": "", "two": text + text, "other text": "x\n" + text, "two comments": "untrusted comment: a\nb\n" + text, "more": text + "x", "private": strings.ReplaceAll(text, "PUBLIC", "EC PRIVATE"),
		"no key": rsa, "P-384": string(long), "long": "untrusted comment: " + strings.Repeat("x", maxKeyText) + "\n" + text,
		"headers": strings.Replace(text, "KEY-----\n", "KEY-----\nA: b\n\n", 1),
	} {
		if _, err := ParsePublicKey([]byte(bad)); err == nil {
			t.Errorf("%s is taken for a key", what)
		}
	}
}

// FuzzReadADB reads payloads that a trusted key might have signed: what comes
// of them keeps its promises, is bounded by their size and can be written and
// read again.
func FuzzReadADB(f *testing.F) {
	key := newKey(f)
	payload, err := writeIndex(sample())
	if err != nil {
		f.Fatal(err)
	}
	golden, err := parseADB(testdata(f, "packages.adb"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(payload)
	f.Add(golden.payload)
	f.Add(blowup(f, 50, 50))
	f.Add(damaged(typeObject<<28|8, 3, 0, typeArray<<28|20, 2, typeObject<<28|28, 2, 0))
	f.Fuzz(func(t *testing.T, payload []byte) {
		if len(payload) < payloadHead {
			return
		}
		list, err := readIndex(payload)
		if err != nil {
			return
		}
		checkPackages(t, list)
		dependencies := 0
		for i := range list {
			p := &list[i]
			dependencies += len(p.Depends) + len(p.Conflicts) + len(p.Provides) + len(p.InstallIf)
			if list[i].File != p.Name+"-"+p.Version+".apk" {
				return // another pattern, which is not written
			}
			if slices.ContainsFunc(slices.Concat(p.Depends, p.Conflicts, p.Provides, p.InstallIf), func(d Dependency) bool { return d.Op == "?" }) {
				return
			}
		}
		if 4*len(list) > len(payload) || dependencies > 4*len(payload)+1024 {
			t.Fatalf("%d bytes hold %d packages, %d dependencies", len(payload), len(list), dependencies)
		}
		written, err := WriteADB(list, key)
		if errors.Is(err, errShared) {
			return // equal packages take so little that nobody would read them again
		}
		if err != nil {
			t.Fatal(err)
		}
		once, err := ReadADBUnverified(written)
		if err != nil || len(once) != len(list) {
			t.Fatalf("%d packages become %d, %v", len(list), len(once), err)
		}
		twice, err := ReadADBUnverified(write(t, once, key))
		if err != nil || !reflect.DeepEqual(once, twice) {
			t.Fatalf("%+v becomes %+v, %v", once, twice, err)
		}
		if fmt.Sprintf("%+v", sortedAll(list)) != fmt.Sprintf("%+v", once) {
			t.Fatalf("%+v becomes %+v", sortedAll(list), once)
		}
	})
}

// sortedAll sorts as the writer does.
func sortedAll(list []Package) []Package {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b Package) int { return strings.Compare(a.Name+"\x00"+a.Version, b.Name+"\x00"+b.Version) })
	for i := range list {
		p := &list[i]
		for _, deps := range []*[]Dependency{&p.Depends, &p.Conflicts, &p.Provides, &p.InstallIf} {
			*deps = slices.Clone(*deps)
			slices.SortStableFunc(*deps, func(a, b Dependency) int { return strings.Compare(a.Name, b.Name) })
		}
	}
	return list
}

// FuzzOpenADB: no change of an index passes for signed but one that leaves the
// packages as they are.
func FuzzOpenADB(f *testing.F) {
	keys := []*ecdsa.PublicKey{publicKey(f)}
	good := testdata(f, "packages.adb")
	want, _, err := OpenADB(good, keys)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(plain(f, good))
	f.Add([]byte("ADBc\x00\x00ADB.indx"))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, _, err := OpenADB(b, keys)
		if err == nil && !reflect.DeepEqual(list, want) {
			t.Fatalf("a changed index passes: %+v", list)
		}
		if err != nil && list != nil {
			t.Fatalf("packages in spite of %v", err)
		}
		if unverified, err := ReadADBUnverified(b); err == nil {
			checkPackages(t, unverified)
		}
	})
}

// FuzzParsePublicKey: a key's text says nothing but the key.
func FuzzParsePublicKey(f *testing.F) {
	f.Add(testdata(f, "public.pem"))
	f.Add([]byte("untrusted comment: x\n-----BEGIN PUBLIC KEY-----\n\n-----END PUBLIC KEY-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		key, err := ParsePublicKey(text)
		if err != nil {
			return
		}
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil || IDOf(key) == (KeyID{}) || bytes.Count(text, []byte("-----BEGIN")) != 1 {
			t.Fatalf("%q is a key: %v", text, err)
		}
		again, err := ParsePublicKey(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
		if err != nil || !again.Equal(key) {
			t.Fatalf("%q is another key when written again: %v", text, err)
		}
	})
}
