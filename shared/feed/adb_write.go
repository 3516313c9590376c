package feed

import (
	"bytes"
	"cmp"
	"compress/flate"
	"crypto"
	"crypto/ecdsa"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// WriteADB writes a packages.adb, signed and compressed as OpenWrt's are:
// packages are sorted by name, their dependencies too, and equal input gives
// equal bytes. What an index of apk does not hold (SHA256, File) is left out, a
// description is cut; alternatives and all else that would not be read again
// are errors.
func WriteADB(packages []Package, key *ecdsa.PrivateKey) ([]byte, error) {
	payload, err := writeIndex(packages)
	if err != nil {
		return nil, err
	}
	signature, err := sign(payload, key)
	if err != nil {
		return nil, fmt.Errorf("sign the index: %w", err)
	}
	plain := binary.LittleEndian.AppendUint32([]byte(plainMagic), schemaIndex)
	plain = appendBlock(appendBlock(plain, blockADB, payload), blockSig, signature)
	if len(plain) > maxADB {
		return nil, errTooLong
	}
	return deflate(plain)
}

// sign makes the content of a signature's block. Without a source of random
// numbers ECDSA's are derived from the key and the digest (RFC 6979).
func sign(payload []byte, key *ecdsa.PrivateKey) ([]byte, error) {
	id := IDOf(&key.PublicKey)
	head := append([]byte{0, hashSHA512}, id[:]...)
	der, err := key.Sign(nil, signedDigest(head, payload), crypto.SHA512)
	return append(head, der...), err
}

func appendBlock(b []byte, kind uint32, content []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, kind<<30|uint32(len(content)+4))
	b = append(b, content...)
	return append(b, make([]byte, -len(b)&7)...)
}

func deflate(plain []byte) ([]byte, error) {
	out := bytes.NewBufferString(deflateMagic)
	w, err := flate.NewWriter(out, flate.BestCompression)
	if err != nil {
		return nil, err
	}
	_, err = w.Write(plain)
	err = errors.Join(err, w.Close())
	return out.Bytes(), err
}

// minPayload is the shortest payload that apk takes.
const minPayload = 16

func writeIndex(packages []Package) ([]byte, error) {
	if len(packages) > maxPackages {
		return nil, fmt.Errorf("an index holds at most %d packages", maxPackages)
	}
	packages = slices.Clone(packages)
	slices.SortStableFunc(packages, func(a, b Package) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Version, b.Version))
	})
	w := &writer{b: make([]byte, payloadHead), written: map[string]uint32{}}
	var list []uint32
	for i := range packages {
		p, err := w.pkg(&packages[i])
		if err != nil {
			return nil, fmt.Errorf("package %q cannot stand in an index: %w", packages[i].Name, err)
		}
		list = append(list, p)
	}
	root := w.list(typeObject, 0, w.list(typeArray, list...))
	if w.values > maxValues(len(w.b)) {
		return nil, fmt.Errorf("the packages are too much alike for an index: %w", errShared)
	}
	binary.LittleEndian.PutUint32(w.b[4:], root)
	return append(w.b, make([]byte, max(0, minPayload-len(w.b)))...), nil
}

// writer puts values behind one another, equal ones once.
type writer struct {
	b       []byte
	written map[string]uint32 // values by type and content
	values  int               // that a reader will read
}

func (w *writer) put(kind uint32, align int, content []byte) uint32 {
	id := string(append([]byte{byte(kind)}, content...))
	if at, ok := w.written[id]; ok {
		return kind<<28 | at
	}
	for len(w.b)%align != 0 {
		w.b = append(w.b, 0)
	}
	at := uint32(len(w.b)) // below 1<<28, or the index is refused as too long
	w.b = append(w.b, content...)
	w.written[id] = at
	return kind<<28 | at
}

func (w *writer) number(n int64) uint32 {
	switch {
	case n == 0:
		return 0
	case n <= immediate:
		return typeInt<<28 | uint32(n)
	case n < 1<<32:
		return w.put(typeInt32, 4, binary.LittleEndian.AppendUint32(nil, uint32(n)))
	}
	return w.put(typeInt64, 8, binary.LittleEndian.AppendUint64(nil, uint64(n)))
}

// blob takes at most 64 KB.
func (w *writer) blob(s string) uint32 {
	switch {
	case s == "":
		return 0
	case len(s) < 1<<8:
		return w.put(typeBlob8, 1, append([]byte{byte(len(s))}, s...))
	}
	return w.put(typeBlob16, 2, append(binary.LittleEndian.AppendUint16(nil, uint16(len(s))), s...))
}

// list writes an object or array; the first value is slot 1.
func (w *writer) list(kind uint32, values ...uint32) uint32 {
	for len(values) > 0 && values[len(values)-1] == 0 {
		values = values[:len(values)-1]
	}
	if len(values) == 0 {
		return 0
	}
	w.values += len(values) + 1
	content := binary.LittleEndian.AppendUint32(nil, uint32(len(values)+1))
	for _, v := range values {
		content = binary.LittleEndian.AppendUint32(content, v)
	}
	return w.put(kind, 4, content)
}

func (w *writer) pkg(p *Package) (uint32, error) {
	digest, err := hex.DecodeString(p.Identity)
	if err := errors.Join(err, writable(p)); err != nil {
		return 0, err
	}
	depends, err1 := w.dependencies(p.Depends, p.Conflicts)
	provides, err2 := w.dependencies(p.Provides, nil)
	installIf, err3 := w.dependencies(p.InstallIf, nil)
	v := [slotTags]uint32{
		slotName - 1: w.blob(p.Name), slotVersion - 1: w.blob(p.Version), slotIdentity - 1: w.blob(string(digest)),
		slotDescription - 1: w.blob(describe(p.Description)), slotArch - 1: w.blob(p.Arch),
		slotInstalledSize - 1: w.number(p.InstalledSize), slotFileSize - 1: w.number(p.Size),
		slotPriority - 1: w.number(int64(p.Priority)),
		slotDepends - 1:  depends, slotProvides - 1: provides, slotInstallIf - 1: installIf,
	}
	if p.ABI != "" {
		v[slotTags-1] = w.list(typeArray, w.blob(abiTag+p.ABI))
	}
	return w.list(typeObject, v[:]...), errors.Join(err1, err2, err3)
}

// writable tells what of a package would not be read again.
func writable(p *Package) error {
	for _, c := range []struct {
		field string
		good  bool
	}{
		{"name", isName(p.Name)},
		{"version", isVersion(p.Version)},
		{"architecture", p.Arch == "" || isName(p.Arch)},
		{"ABI version", p.ABI == "" || isABI(p.ABI)},
		{"identity", len(p.Identity) <= 2*maxIdentity},
		{"file size", p.Size == sizeOf(p.Size)},
		{"installed size", p.InstalledSize == sizeOf(p.InstalledSize)},
		{"priority", p.Priority >= 0 && p.Priority <= maxPriority},
		{"number of dependencies", max(len(p.Depends)+len(p.Conflicts), len(p.Provides), len(p.InstallIf)) <= maxList},
	} {
		if !c.good {
			return fmt.Errorf("its %s breaks the pattern or limit", c.field)
		}
	}
	return nil
}

func (w *writer) dependencies(wanted, unwanted []Dependency) (uint32, error) {
	type item struct {
		Dependency
		conflict bool
	}
	var items []item
	for i, d := range slices.Concat(wanted, unwanted) {
		items = append(items, item{d, i >= len(wanted)})
	}
	slices.SortStableFunc(items, func(a, b item) int { return strings.Compare(a.Name, b.Name) })
	var values []uint32
	for _, item := range items {
		value, err := w.dependency(item.Dependency, item.conflict)
		if err != nil {
			return 0, err
		}
		values = append(values, value)
	}
	return w.list(typeArray, values...), nil
}

func (w *writer) dependency(d Dependency, conflict bool) (uint32, error) {
	match := slices.Index(matchOps[:], d.Op)
	if !isName(d.Name) || d.Or != nil || match <= 0 || (d.Version == "") != (d.Op == "") || d.Op != "" && !isVersion(d.Version) {
		return 0, fmt.Errorf("apk cannot express the dependency on %q", d.Name)
	}
	switch {
	case conflict:
		match |= matchConflict
	case match == matchEqual || match == matchAny: // what is meant without one
		match = 0
	}
	if match&matchFuzzy != 0 {
		match |= matchEqual // apk compares with the other bits
	}
	return w.list(typeObject, w.blob(d.Name), w.blob(d.Version), w.number(int64(match))), nil
}
