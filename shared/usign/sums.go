package usign

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// ErrSum says that a file is not the one that a list of sums means.
var ErrSum = errors.New("wrong checksum")

// Limits of a list of sums. The longest lists upstream have a few thousand
// lines (every kernel module of a target).
const (
	maxSums     = 8 << 20
	maxSumLines = 100_000
	maxSumName  = 512
)

// Sums is a sha256sums file: SHA-256 by file name. Names may lie in folders
// ("packages/foo.ipk"), relative to the list, never outside.
type Sums map[string][sha256.Size]byte

var sumLine = regexp.MustCompile(`^([0-9a-f]{64}) [* ]([0-9A-Za-z._+][0-9A-Za-z._+~@:,=%/-]*)$`)

// ParseSums reads lines "<64 hex digits> *<name>" (or with two blanks).
func ParseSums(b []byte) (Sums, error) {
	if len(b) > maxSums {
		return nil, malformed("sha256sums: %d bytes are too many, at most %d are allowed", len(b), maxSums)
	}
	sums := Sums{}
	for line := range bytes.Lines(b) {
		m := sumLine.FindSubmatch(bytes.TrimSuffix(line, []byte("\n")))
		if m == nil || !sumName(string(m[2])) {
			return nil, malformed("sha256sums: line %d is not \"<64 hex digits> *<name>\": %.80q", len(sums)+1, line)
		}
		var sum [sha256.Size]byte
		hex.Decode(sum[:], m[1])
		if _, twice := sums[string(m[2])]; twice {
			return nil, malformed("sha256sums: %q is listed twice", m[2])
		}
		sums[string(m[2])] = sum
		if len(sums) > maxSumLines {
			return nil, malformed("sha256sums: more than %d lines", maxSumLines)
		}
	}
	return sums, nil
}

func sumName(name string) bool {
	return len(name) <= maxSumName && fs.ValidPath(name) && name != "."
}

// Marshal returns the list's file, sorted by name, as ParseSums reads it. It
// fails on a name that ParseSums would refuse.
func (s Sums) Marshal() ([]byte, error) {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s)) {
		fmt.Fprintf(&b, "%x *%s\n", s[name], name)
	}
	if parsed, err := ParseSums([]byte(b.String())); err != nil || len(parsed) != len(s) {
		return nil, errors.Join(malformed("sha256sums: a name cannot be written"), err)
	}
	return []byte(b.String()), nil
}

// Check reads r to its end and returns nil if it is the file of that name,
// else ErrSum with a sentence.
func (s Sums) Check(name string, r io.Reader) error {
	want, ok := s[name]
	if !ok {
		return fmt.Errorf("%w: sha256sums has no %s", ErrSum, name)
	}
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if got := [sha256.Size]byte(h.Sum(nil)); got != want {
		return fmt.Errorf("%w: %s has %x, sha256sums says %x: it is damaged or was changed, fetch it again", ErrSum, name, got, want)
	}
	return nil
}
