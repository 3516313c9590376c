package pack

import (
	"bytes"
	"compress/flate"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
)

// APKIndexName is the file name of apk's index.
const APKIndexName = "packages.adb"

// ErrUntrusted says that an index is not signed by any of the given keys.
var ErrUntrusted = errors.New("UNTRUSTED signature")

// An index of apk 3 is a container: "ADBd", then, deflated, "ADB.", a schema and blocks. The first block
// holds values that refer to each other by their offsets, the second a signature over its digest.
const (
	adbSchema     = 0x78646e69 // "indx"
	adbMaxSize    = 64 << 20   // of the inflated index
	adbHeader     = 8          // of the payload: versions and the root value
	adbSigHead    = 18         // of a signature: version, hash, key id
	hashSHA512    = 4
	blockADB      = 0
	blockSig      = 1
	matchConflict = 16
)

// Types of values, in the upper four bits; the others hold the value or its offset.
const (
	typeInt    = 0x1
	typeInt32  = 0x2
	typeBlob8  = 0x8
	typeBlob16 = 0x9
	typeArray  = 0xd
	typeObject = 0xe
	immediate  = 1<<28 - 1
)

// Slots of a package and of a dependency.
const (
	slotName = iota + 1
	slotVersion
	slotHashes // or a dependency's match
	slotDescription
	slotArch
	slotInstalledSize = 12
	slotFileSize      = 13
	slotDepends       = 15
	slotProvides      = 16
	slots             = 22
)

// adbWriter puts values behind one another.
type adbWriter struct{ b []byte }

func (w *adbWriter) align(n int) {
	for len(w.b)%n != 0 {
		w.b = append(w.b, 0)
	}
}

func (w *adbWriter) number(n int64) uint32 {
	if n == 0 {
		return 0
	}
	if n <= immediate {
		return typeInt<<28 | uint32(n)
	}
	w.align(4)
	w.b = binary.LittleEndian.AppendUint32(w.b, uint32(n))
	return typeInt32<<28 | uint32(len(w.b)-4)
}

func (w *adbWriter) blob(s string) uint32 {
	switch {
	case s == "":
		return 0
	case len(s) < 1<<8:
		at := len(w.b)
		w.b = append(append(w.b, byte(len(s))), s...)
		return typeBlob8<<28 | uint32(at)
	}
	w.align(2)
	at := len(w.b)
	s = s[:min(len(s), 1<<16-1)]
	w.b = append(binary.LittleEndian.AppendUint16(w.b, uint16(len(s))), s...)
	return typeBlob16<<28 | uint32(at)
}

// slots writes an object or array; the first value is slot 1.
func (w *adbWriter) slots(kind uint32, values []uint32) uint32 {
	for len(values) > 0 && values[len(values)-1] == 0 {
		values = values[:len(values)-1]
	}
	if len(values) == 0 {
		return 0
	}
	w.align(4)
	at := len(w.b)
	w.b = binary.LittleEndian.AppendUint32(w.b, uint32(len(values)+1))
	for _, v := range values {
		w.b = binary.LittleEndian.AppendUint32(w.b, v)
	}
	return kind<<28 | uint32(at)
}

func (w *adbWriter) dependencies(wanted, unwanted []string) uint32 {
	var list []uint32
	for _, d := range wanted {
		name, version := Dependency(d)
		list = append(list, w.slots(typeObject, []uint32{w.blob(name), w.blob(version)}))
	}
	for _, name := range unwanted {
		list = append(list, w.slots(typeObject, []uint32{w.blob(name), 0, w.number(matchConflict)}))
	}
	return w.slots(typeArray, list)
}

// pkg writes a package. Its identity, where apk has a digest of its own, is the file's SHA-256.
func (w *adbWriter) pkg(m Meta) (uint32, error) {
	identity, err := hex.DecodeString(m.SHA256)
	if err != nil {
		return 0, err
	}
	var v [slots - 1]uint32
	set := func(slot int, value uint32) { v[slot-1] = value }
	set(slotName, w.blob(m.Name))
	set(slotVersion, w.blob(m.Version))
	set(slotHashes, w.blob(string(identity)))
	set(slotDescription, w.blob(m.Description))
	set(slotArch, w.blob(m.Arch))
	set(slotInstalledSize, w.number(m.InstalledSize))
	set(slotFileSize, w.number(m.Size))
	set(slotDepends, w.dependencies(m.Depends, m.Conflicts))
	set(slotProvides, w.dependencies(append([]string{m.Name + "-any"}, m.Provides...), nil))
	return w.slots(typeObject, v[:]), nil
}

// APKIndex is the signed index over the given packages, sorted by name. Conflicts stand among the
// dependencies, and each package also provides <name>-any.
func APKIndex(metas []Meta, key *ecdsa.PrivateKey) ([]byte, error) {
	w := &adbWriter{b: make([]byte, adbHeader)}
	var list []uint32
	for _, m := range Sorted(metas) {
		p, err := w.pkg(m)
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	root := w.slots(typeObject, []uint32{0, w.slots(typeArray, list)})
	binary.LittleEndian.PutUint32(w.b[4:], root)
	signature, err := signADB(w.b, key)
	if err != nil {
		return nil, err
	}
	plain := binary.LittleEndian.AppendUint32([]byte("ADB."), adbSchema)
	plain = appendBlock(appendBlock(plain, blockADB, w.b), blockSig, signature)
	return deflate(plain)
}

func appendBlock(b []byte, kind uint32, payload []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, kind<<30|uint32(len(payload)+4))
	b = append(b, payload...)
	return append(b, make([]byte, -len(b)&7)...)
}

func deflate(plain []byte) ([]byte, error) {
	var out bytes.Buffer
	out.WriteString("ADBd")
	w, err := flate.NewWriter(&out, flate.BestCompression)
	if err != nil {
		return nil, err
	}
	_, err = w.Write(plain)
	err = errors.Join(err, w.Close())
	return out.Bytes(), err
}

// keyID names a key: the beginning of the SHA-512 of its uncompressed point.
func keyID(key *ecdsa.PublicKey) ([]byte, error) {
	point, err := key.Bytes()
	digest := sha512.Sum512(point)
	return digest[:16], err
}

// signedDigest is what a signature with that head signs.
func signedDigest(head, payload []byte) []byte {
	inner := sha512.Sum512(payload)
	message := binary.LittleEndian.AppendUint32(nil, adbSchema)
	digest := sha512.Sum512(append(append(message, head...), inner[:]...))
	return digest[:]
}

func signADB(payload []byte, key *ecdsa.PrivateKey) ([]byte, error) {
	id, err := keyID(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	head := append([]byte{0, hashSHA512}, id...)
	der, err := ecdsa.SignASN1(rand.Reader, key, signedDigest(head, payload))
	return append(head, der...), err
}

// ParseAPKIndex returns what an index says once one of keys is seen to have signed it.
func ParseAPKIndex(data []byte, keys []*ecdsa.PublicKey) ([]Meta, error) {
	payload, signatures, err := openADB(data)
	if err != nil {
		return nil, fmt.Errorf("not a package index: %w", err)
	}
	if !slices.ContainsFunc(signatures, func(s []byte) bool { return verifyADB(payload, s, keys) }) {
		return nil, ErrUntrusted
	}
	metas, err := readADB(payload)
	if err != nil {
		return nil, fmt.Errorf("a damaged package index: %w", err)
	}
	return metas, nil
}

// openADB inflates a container and cuts it into its blocks.
func openADB(data []byte) (payload []byte, signatures [][]byte, err error) {
	if !bytes.HasPrefix(data, []byte("ADBd")) {
		return nil, nil, errors.New("it does not begin with ADBd")
	}
	plain, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(data[4:])), adbMaxSize))
	if err != nil {
		return nil, nil, err
	}
	if len(plain) < 8 || string(plain[:4]) != "ADB." || binary.LittleEndian.Uint32(plain[4:]) != adbSchema {
		return nil, nil, errors.New("it holds no index")
	}
	for rest := plain[8:]; len(rest) >= 4; {
		head := binary.LittleEndian.Uint32(rest)
		size := int(head & (1<<30 - 1))
		if size < 4 || size > len(rest) {
			return nil, nil, errors.New("a block goes beyond its end")
		}
		switch block := rest[4:size]; head >> 30 {
		case blockADB:
			payload = block
		case blockSig:
			signatures = append(signatures, block)
		}
		rest = rest[min(len(rest), (size+7)&^7):]
	}
	if len(payload) < adbHeader {
		return nil, nil, errors.New("it has no data")
	}
	return payload, signatures, nil
}

func verifyADB(payload, signature []byte, keys []*ecdsa.PublicKey) bool {
	if len(signature) <= adbSigHead || signature[0] != 0 || signature[1] != hashSHA512 {
		return false
	}
	digest := signedDigest(signature[:adbSigHead], payload)
	return slices.ContainsFunc(keys, func(key *ecdsa.PublicKey) bool {
		return ecdsa.VerifyASN1(key, digest, signature[adbSigHead:])
	})
}

// adbReader reads values and keeps the first error. What is read is bounded by left, since offsets may
// be shared.
type adbReader struct {
	b    []byte
	left int
	err  error
}

func (r *adbReader) fail(what string) {
	if r.err == nil {
		r.err = errors.New(what)
	}
}

// take returns n bytes at an offset.
func (r *adbReader) take(at, n uint32) []byte {
	if r.left -= int(n); r.err != nil || uint64(at)+uint64(n) > uint64(len(r.b)) || r.left < 0 {
		r.fail("a value goes beyond its end")
		return nil
	}
	return r.b[at : at+n]
}

func (r *adbReader) uint32(at uint32) uint32 {
	if b := r.take(at, 4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *adbReader) blob(v uint32) string {
	at := v & immediate
	switch v >> 28 {
	case 0:
		return ""
	case typeBlob8:
		if n := r.take(at, 1); n != nil {
			return string(r.take(at+1, uint32(n[0])))
		}
	case typeBlob16:
		if n := r.take(at, 2); n != nil {
			return string(r.take(at+2, uint32(binary.LittleEndian.Uint16(n))))
		}
	default:
		r.fail("a value is no text")
	}
	return ""
}

func (r *adbReader) number(v uint32) int64 {
	switch v >> 28 {
	case 0, typeInt:
		return int64(v & immediate)
	case typeInt32:
		return int64(r.uint32(v & immediate))
	}
	r.fail("a value is no number")
	return 0
}

// slots are the values of an object or array; the first is slot 1.
func (r *adbReader) slots(kind, v uint32) []uint32 {
	if v == 0 {
		return nil
	}
	if v>>28 != kind {
		r.fail("a value is of the wrong type")
		return nil
	}
	at := v & immediate
	count := r.uint32(at)
	if count == 0 || count > uint32(len(r.b)/4) {
		r.fail("a list has a wrong length")
		return nil
	}
	raw := r.take(at, 4*count)
	var values []uint32
	for i := 4; i < len(raw); i += 4 {
		values = append(values, binary.LittleEndian.Uint32(raw[i:]))
	}
	return values
}

func slot(values []uint32, n int) uint32 {
	if n <= len(values) {
		return values[n-1]
	}
	return 0
}

func readADB(payload []byte) ([]Meta, error) {
	r := &adbReader{b: payload, left: 8*len(payload) + 1024}
	root := r.slots(typeObject, r.uint32(4))
	var metas []Meta
	for _, v := range r.slots(typeArray, slot(root, 2)) {
		metas = append(metas, r.pkg(r.slots(typeObject, v)))
	}
	return metas, r.err
}

func (r *adbReader) pkg(v []uint32) Meta {
	m := Meta{
		Name: r.blob(slot(v, slotName)), Version: r.blob(slot(v, slotVersion)),
		SHA256:      hex.EncodeToString([]byte(r.blob(slot(v, slotHashes)))),
		Description: r.blob(slot(v, slotDescription)), Arch: r.blob(slot(v, slotArch)),
		InstalledSize: r.number(slot(v, slotInstalledSize)), Size: r.number(slot(v, slotFileSize)),
	}
	m.Depends, m.Conflicts = r.dependencies(slot(v, slotDepends))
	m.Provides, _ = r.dependencies(slot(v, slotProvides))
	m.Provides = slices.DeleteFunc(m.Provides, func(name string) bool { return name == m.Name+"-any" })
	m.Filename = APK.Filename(m)
	return m
}

func (r *adbReader) dependencies(v uint32) (wanted, unwanted []string) {
	for _, item := range r.slots(typeArray, v) {
		d := r.slots(typeObject, item)
		name, version := r.blob(slot(d, slotName)), r.blob(slot(d, slotVersion))
		switch {
		case r.number(slot(d, slotHashes))&matchConflict != 0:
			unwanted = append(unwanted, name)
		case version != "":
			wanted = append(wanted, name+" (="+version+")")
		default:
			wanted = append(wanted, name)
		}
	}
	return wanted, unwanted
}
