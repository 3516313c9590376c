package feed

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
)

// KeyID is apk's name for a key: the beginning of the SHA-512 of its
// uncompressed point.
type KeyID [16]byte

func (id KeyID) String() string { return hex.EncodeToString(id[:]) }

// IDOf is the id of a key, and all zero for one that is no point on its curve.
func IDOf(key *ecdsa.PublicKey) KeyID {
	point, err := key.Bytes()
	if err != nil {
		return KeyID{}
	}
	digest := sha512.Sum512(point)
	return KeyID(digest[:16])
}

const maxKeyText = 4 << 10

var errNoKey = errors.New(`it must be one PEM block "PUBLIC KEY" with an elliptic curve key on P-256, alone or below one line that begins with "untrusted comment:"`)

// ParsePublicKey reads a key with which apk verifies indices, as OpenWrt
// publishes it.
func ParsePublicKey(text []byte) (*ecdsa.PublicKey, error) {
	block, rest := pem.Decode(text)
	if block == nil || len(text) > maxKeyText || !onlyComment(text) ||
		block.Type != "PUBLIC KEY" || len(block.Headers) > 0 || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errNoKey
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, errNoKey
	}
	if key, ok := key.(*ecdsa.PublicKey); ok && key.Curve == elliptic.P256() {
		return key, nil
	}
	return nil, errNoKey
}

// onlyComment tells whether at most one line of comment stands above the key.
func onlyComment(text []byte) bool {
	above, _, _ := bytes.Cut(text, []byte("-----BEGIN "))
	above = bytes.TrimSpace(above)
	return len(above) == 0 || bytes.HasPrefix(above, []byte("untrusted comment:")) && !bytes.ContainsAny(above, "\r\n")
}
