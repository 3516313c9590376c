package feed

import (
	"bytes"
	"compress/flate"
	"crypto/ecdsa"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// An index of apk 3 is a database, "ADB.", maybe compressed: a schema, then
// blocks. The first block holds values that refer to each other by their
// offsets, the ones behind it are signatures over its digest.
const (
	plainMagic   = "ADB."
	deflateMagic = "ADBd"
	otherMagic   = "ADBc"     // the algorithm and its level follow
	schemaIndex  = 0x78646e69 // "indx"

	blockADB      = 0
	blockSig      = 1
	blockData     = 2
	blockExtended = 3
	maxBlock      = 1<<30 - 1

	payloadHead   = 8  // two versions, then the root value at 4
	sigHead       = 18 // version, hash, key id
	hashSHA512    = 4
	maxSignatures = 16

	maxADB = 32 << 20 // uncompressed; OpenWrt's longest has about 4 MB
)

// Whether an index can be trusted.
var (
	ErrUnsigned     = errors.New("the index has no signature of a kind that is known here")
	ErrUnknownKey   = errors.New("the index is signed by none of the given keys")
	ErrBadSignature = errors.New("the index differs from what was signed")
)

// OpenADB returns the packages of a packages.adb, and which of keys, all on
// P-256, has signed it. Without a sound signature by one of them nothing is
// returned but ErrUnsigned, ErrUnknownKey or ErrBadSignature.
//
// Packages whose name or version breaks its pattern are left out, other fields
// that do are empty. The result's strings share the memory of one copy of the
// index: clone what is kept for long.
func OpenADB(b []byte, keys []*ecdsa.PublicKey) ([]Package, KeyID, error) {
	a, err := parseADB(b)
	if err != nil {
		return nil, KeyID{}, err
	}
	signer, err := a.verify(keys)
	if err != nil {
		return nil, KeyID{}, err
	}
	list, err := readIndex(a.payload)
	return list, signer, err
}

// ReadADBUnverified is OpenADB for an index whose origin is proved in another
// way or does not matter: anybody may have written what it returns.
func ReadADBUnverified(b []byte) ([]Package, error) {
	a, err := parseADB(b)
	if err != nil {
		return nil, err
	}
	return readIndex(a.payload)
}

// adb is an index cut into its blocks.
type adb struct {
	payload    []byte
	signatures [][]byte
}

func parseADB(b []byte) (*adb, error) {
	plain, err := unpackADB(b)
	if err != nil {
		return nil, fmt.Errorf("the index cannot be unpacked: %w", err)
	}
	a := new(adb)
	if err := a.cut(plain); err != nil {
		return nil, fmt.Errorf("the index is damaged: %w", err)
	}
	return a, nil
}

// unpackADB returns what follows the magic of an uncompressed database.
func unpackADB(b []byte) ([]byte, error) {
	switch {
	case bytes.HasPrefix(b, []byte(deflateMagic)):
		return inflate(b[4:])
	case bytes.HasPrefix(b, []byte(otherMagic)) && len(b) >= 6:
		switch b[4] {
		case 0:
			b = b[6:]
		case 1:
			return inflate(b[6:])
		default:
			return nil, fmt.Errorf("its compression, number %d of apk's, is not supported; deflate is", b[4])
		}
	}
	if len(b) > maxADB {
		return nil, errTooLong
	}
	return afterMagic(b)
}

var errTooLong = fmt.Errorf("it has more than %d bytes", maxADB)

func inflate(b []byte) ([]byte, error) {
	plain, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(b)), maxADB+1))
	if err != nil {
		return nil, err
	}
	if len(plain) > maxADB {
		return nil, errTooLong
	}
	return afterMagic(plain)
}

func afterMagic(b []byte) ([]byte, error) {
	rest, ok := bytes.CutPrefix(b, []byte(plainMagic))
	if !ok {
		return nil, errors.New("it is no database of apk")
	}
	return rest, nil
}

// cut reads the schema and the blocks: one with data, then signatures, then
// others, which an index does not have.
func (a *adb) cut(b []byte) error {
	if len(b) < 4 || binary.LittleEndian.Uint32(b) != schemaIndex {
		return errors.New("it is no index of packages")
	}
	last := -1
	for b = b[4:]; len(b) > 0; {
		kind, block, rest, err := cutBlock(b)
		if err != nil {
			return err
		}
		switch {
		case kind == blockADB && last < 0:
			a.payload = block
		case kind == blockSig && (last == blockADB || last == blockSig) && len(a.signatures) < maxSignatures:
			a.signatures = append(a.signatures, block)
		case kind == blockData && last >= 0:
		default:
			return fmt.Errorf("a block of kind %d is in a wrong place", kind)
		}
		last, b = int(kind), rest
	}
	if len(a.payload) < payloadHead || a.payload[0] != 0 {
		return errors.New("it has no data that can be read by this version")
	}
	return nil
}

// cutBlock returns the first block's content and what follows it.
func cutBlock(b []byte) (kind uint32, content, rest []byte, err error) {
	errShort := errors.New("a block goes beyond the end")
	if len(b) < 4 {
		return 0, nil, nil, errShort
	}
	word := binary.LittleEndian.Uint32(b)
	kind, head, size := word>>30, uint64(4), uint64(word&maxBlock)
	if kind == blockExtended {
		if len(b) < 16 {
			return 0, nil, nil, errShort
		}
		kind, head, size = word&maxBlock, 16, binary.LittleEndian.Uint64(b[8:])
	}
	if size < head || size > uint64(len(b)) {
		return 0, nil, nil, errShort
	}
	return kind, b[head:size], b[min(uint64(len(b)), (size+7)&^7):], nil
}

// verify finds the key that has signed the payload.
func (a *adb) verify(keys []*ecdsa.PublicKey) (KeyID, error) {
	known := map[KeyID]*ecdsa.PublicKey{}
	for _, key := range keys {
		known[IDOf(key)] = key
	}
	err := ErrUnsigned
	for _, s := range a.signatures {
		if len(s) <= sigHead || s[0] != 0 || s[1] != hashSHA512 {
			continue
		}
		id := KeyID(s[2:sigHead])
		switch key := known[id]; {
		case key == nil && err == ErrUnsigned:
			err = ErrUnknownKey
		case key == nil:
		case ecdsa.VerifyASN1(key, signedDigest(s[:sigHead], a.payload), s[sigHead:]):
			return id, nil
		default:
			err = ErrBadSignature
		}
	}
	return KeyID{}, err
}

// signedDigest is what a signature with that head signs.
func signedDigest(head, payload []byte) []byte {
	inner := sha512.Sum512(payload)
	message := binary.LittleEndian.AppendUint32(nil, schemaIndex)
	digest := sha512.Sum512(append(append(message, head...), inner[:]...))
	return digest[:]
}
