// Package usign reads and writes OpenWrt's keys and signatures (Ed25519, the
// text format of usign and of OpenBSD's signify), the chain of signatures that
// binds a built image to the server's key, lists of SHA-256 sums, and the
// trailer that OpenWrt's fwtool appends to images.
//
// A key or signature file has two lines: "untrusted comment: " with any text,
// and base64 of "Ed", an 8 byte fingerprint and the key or signature. The
// comment proves nothing, unless the file as a whole is signed by another key.
package usign

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
)

var (
	// ErrFormat is the kind of every error about bytes that are not what they
	// should be: a key, a signature, a list.
	ErrFormat = errors.New("malformed")
	// ErrUnknownKey says that none of the given keys made the signature.
	ErrUnknownKey = errors.New("signed by an unknown key")
	// ErrBadSignature says that the key is known and the signature is not its
	// signature over this message.
	ErrBadSignature = errors.New("wrong signature")
)

const (
	commentPrefix = "untrusted comment: "
	maxComment    = 1023 // signify's limit, without the prefix
	maxText       = 4096 // no key or signature file is longer

	algorithm = "Ed" // Ed25519
	kdf       = "BK" // bcrypt; with 0 rounds the key is not encrypted
)

// Fingerprint names a key. It is not derived from the key in general (usign
// and signify draw it at random), so it only selects a key, it proves nothing.
type Fingerprint [8]byte

// String returns 16 lower-case hex digits, the key's file name in
// /etc/opkg/keys.
func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// ParseFingerprint reads exactly 16 lower-case hex digits.
func ParseFingerprint(s string) (Fingerprint, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(Fingerprint{}) || hex.EncodeToString(b) != s {
		return Fingerprint{}, malformed("fingerprint %.40q is not 16 lower-case hex digits", s)
	}
	return Fingerprint(b), nil
}

// FingerprintOf is the fingerprint of the keys made here: the first 8 bytes of
// the SHA-256 of the public key. Whoever has the key can name it.
func FingerprintOf(key ed25519.PublicKey) Fingerprint {
	sum := sha256.Sum256(key)
	return Fingerprint(sum[:8])
}

// PublicKey is what verifies signatures. Comment is the first line of its file
// without the prefix.
type PublicKey struct {
	Fingerprint Fingerprint
	Key         ed25519.PublicKey
	Comment     string
}

// ParsePublicKey reads a public key file. Blanks and newlines after its end are
// passed over: keys are pasted, and printed by tools that add a newline.
func ParsePublicKey(b []byte) (PublicKey, error) {
	if len(b) <= maxText {
		b = bytes.TrimRight(b, " \t\r\n")
	}
	return parsePublicKey(b)
}

func parsePublicKey(b []byte) (PublicKey, error) {
	comment, body, err := decodeText(b, 42)
	if err != nil {
		return PublicKey{}, fmt.Errorf("public key: %w", err)
	}
	return PublicKey{Fingerprint(body[2:10]), bytes.Clone(body[10:]), comment}, nil
}

// Marshal returns the key's file.
func (k PublicKey) Marshal() []byte {
	return encodeText(k.Comment, "public key "+k.Fingerprint.String(), k.Fingerprint, k.Key)
}

// SecretKey signs. It is kept unencrypted, in a file that only its owner can
// read. The zero SecretKey is not a key.
type SecretKey struct {
	fingerprint Fingerprint
	key         ed25519.PrivateKey
	comment     string
}

// Generate makes a key. An empty comment stands for "public key" or "private
// key" and the fingerprint.
func Generate(comment string) (SecretKey, error) {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return SecretKey{}, fmt.Errorf("make a key: %w", err)
	}
	return SecretKey{FingerprintOf(public), key, comment}, nil
}

// ParseSecretKey reads an unencrypted secret key file as usign and signify -n
// write it.
func ParseSecretKey(b []byte) (SecretKey, error) {
	comment, body, err := decodeText(b, 104)
	if err != nil {
		return SecretKey{}, fmt.Errorf("secret key: %w", err)
	}
	sum, fingerprint, key := body[24:32], Fingerprint(body[32:40]), ed25519.PrivateKey(bytes.Clone(body[40:]))
	switch {
	case string(body[2:4]) != kdf:
		return SecretKey{}, malformed("secret key: unknown encryption %q", body[2:4])
	case !bytes.Equal(body[4:8], make([]byte, 4)):
		return SecretKey{}, malformed("secret key %s is protected by a passphrase: make one without (usign -G, or signify -G -n)", fingerprint)
	case subtle.ConstantTimeCompare(checksum(key), sum) == 0:
		return SecretKey{}, malformed("secret key %s is damaged: its checksum differs", fingerprint)
	case !bytes.Equal(ed25519.NewKeyFromSeed(key.Seed()), key):
		return SecretKey{}, malformed("secret key %s is damaged: its two halves do not belong together", fingerprint)
	}
	return SecretKey{fingerprint, key, comment}, nil
}

// Marshal returns the key's file, unencrypted. The salt, which nothing uses
// without encryption, is zero, so that equal keys have equal files.
func (k SecretKey) Marshal() []byte {
	body := make([]byte, 0, 104)
	body = append(body, algorithm+kdf...)
	body = append(body, make([]byte, 4+16)...)
	body = append(body, checksum(k.key)...)
	body = append(body, k.fingerprint[:]...)
	body = append(body, k.key...)
	return textFile(k.comment, "private key "+k.fingerprint.String(), body)
}

// String names the key without giving it away, however it is printed.
func (k SecretKey) String() string { return "secret key " + k.fingerprint.String() }

// GoString is String, for %#v.
func (k SecretKey) GoString() string { return k.String() }

// Public returns the key that verifies what k signs.
func (k SecretKey) Public() PublicKey {
	return PublicKey{k.fingerprint, k.key.Public().(ed25519.PublicKey), k.comment}
}

// Sign signs msg. Equal keys and messages give equal signatures.
func (k SecretKey) Sign(msg []byte) Signature {
	return Signature{Fingerprint: k.fingerprint, Sig: [64]byte(ed25519.Sign(k.key, msg))}
}

// SignWith signs msg by an Ed25519 key that is kept elsewhere, as in a key
// management service. key says under which fingerprint it is known.
func SignWith(signer crypto.Signer, key PublicKey, msg []byte) (Signature, error) {
	if held, ok := signer.Public().(ed25519.PublicKey); !ok || !held.Equal(key.Key) {
		return Signature{}, fmt.Errorf("sign: the signer does not hold the key %s: give the public key that belongs to it", key.Fingerprint)
	}
	sig, err := signer.Sign(rand.Reader, msg, crypto.Hash(0))
	if err != nil {
		return Signature{}, fmt.Errorf("sign with key %s: %w", key.Fingerprint, err)
	}
	if !ed25519.Verify(key.Key, msg, sig) {
		return Signature{}, fmt.Errorf("sign with key %s: the signer's answer: %w", key.Fingerprint, ErrBadSignature)
	}
	return Signature{Fingerprint: key.Fingerprint, Sig: [64]byte(sig)}, nil
}

// Signature is one key's signature over some message. Comment is the first
// line of its file without the prefix; empty stands for "signed by key" and
// the fingerprint.
type Signature struct {
	Fingerprint Fingerprint
	Sig         [64]byte
	Comment     string
}

// ParseSignature reads a signature file.
func ParseSignature(b []byte) (Signature, error) {
	comment, body, err := decodeText(b, 74)
	if err != nil {
		return Signature{}, fmt.Errorf("signature: %w", err)
	}
	return Signature{Fingerprint(body[2:10]), [64]byte(body[10:]), comment}, nil
}

// Marshal returns the signature's file.
func (s Signature) Marshal() []byte {
	return encodeText(s.Comment, "signed by key "+s.Fingerprint.String(), s.Fingerprint, s.Sig[:])
}

// Verify returns nil if one of the keys made the signature over msg, else
// ErrUnknownKey or ErrBadSignature with the fingerprint.
func Verify(keys []PublicKey, msg []byte, sig Signature) error {
	known := false
	for _, key := range keys {
		if key.Fingerprint != sig.Fingerprint || len(key.Key) != ed25519.PublicKeySize {
			continue
		}
		if known = true; ed25519.Verify(key.Key, msg, sig.Sig[:]) {
			return nil
		}
	}
	if known {
		return fmt.Errorf("%w of key %s", ErrBadSignature, sig.Fingerprint)
	}
	return fmt.Errorf("%w, %s", ErrUnknownKey, sig.Fingerprint)
}

// VerifyFile is Verify with the bytes of a signature file.
func VerifyFile(keys []PublicKey, msg, sigFile []byte) error {
	sig, err := ParseSignature(sigFile)
	if err != nil {
		return err
	}
	return Verify(keys, msg, sig)
}

func checksum(key ed25519.PrivateKey) []byte {
	sum := sha512.Sum512(key)
	return sum[:8]
}

func encodeText(comment, fallback string, f Fingerprint, rest []byte) []byte {
	body := append([]byte(algorithm), f[:]...)
	return textFile(comment, fallback, append(body, rest...))
}

func textFile(comment, fallback string, body []byte) []byte {
	if comment == "" {
		comment = fallback
	}
	line := []byte(comment[:min(len(comment), maxComment)])
	for i, c := range line {
		if control(c) {
			line[i] = ' '
		}
	}
	return fmt.Appendf(nil, "%s%s\n%s\n", commentPrefix, line, base64.StdEncoding.EncodeToString(body))
}

func control(c byte) bool { return c < ' ' || c == 0x7f }

// decodeText reads a file of two lines whose second one holds size bytes that
// begin with the algorithm. The last newline may be missing.
func decodeText(b []byte, size int) (comment string, body []byte, err error) {
	if len(b) > maxText {
		return "", nil, malformed("%d bytes are too many, at most %d are allowed", len(b), maxText)
	}
	first, rest, ok := bytes.Cut(b, []byte("\n"))
	text, commented := bytes.CutPrefix(first, []byte(commentPrefix))
	if !ok || !commented || len(text) > maxComment || slices.ContainsFunc(text, control) {
		return "", nil, malformed("the first line has to be %q with a comment and a newline", commentPrefix)
	}
	rest = bytes.TrimSuffix(rest, []byte("\n"))
	body, err = base64.StdEncoding.Strict().DecodeString(string(rest))
	// The decoder passes over newlines; the length shows them.
	if err != nil || len(rest) != base64.StdEncoding.EncodedLen(size) || len(body) != size || string(body[:2]) != algorithm {
		return "", nil, malformed("the second line has to be base64 of %d bytes that begin with %q", size, algorithm)
	}
	return string(text), body, nil
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrFormat}, args...)...)
}
