package usign

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

var (
	// ErrExpired says that a worker's key was used, or its result is looked
	// at, outside the key's dates.
	ErrExpired = errors.New("outside its dates")
	// ErrRevoked says that the server has revoked the worker's key.
	ErrRevoked = errors.New("revoked")
)

// Certificate is a worker's public key with the dates between which it may
// sign. Its file, worker.pub, is an ordinary public key file; the dates stand
// in its comment, and worker.pub.sig is the server's signature over the file.
type Certificate struct {
	Worker              string // id: lower-case letters, digits and '-', at most 63
	Key                 PublicKey
	NotBefore, NotAfter time.Time // whole seconds
}

const dateFormat = "2006-01-02T15:04:05Z"

var (
	workerID      = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	workerComment = regexp.MustCompile(`^sysup worker (\S+) not-before=(\S+) not-after=(\S+)$`)
)

// NewCertificate is the certificate of a worker's key, to be signed by the
// server. Fractions of seconds are cut off.
func NewCertificate(worker string, key ed25519.PublicKey, notBefore, notAfter time.Time) (Certificate, error) {
	c := Certificate{Worker: worker, NotBefore: notBefore.UTC().Truncate(time.Second), NotAfter: notAfter.UTC().Truncate(time.Second)}
	if len(key) != ed25519.PublicKeySize {
		return Certificate{}, malformed("worker key of %d bytes: it has to be an Ed25519 public key", len(key))
	}
	c.Key = PublicKey{Fingerprint: FingerprintOf(key), Key: key}
	c.Key.Comment = fmt.Sprintf("sysup worker %s not-before=%s not-after=%s", c.Worker, c.NotBefore.Format(dateFormat), c.NotAfter.Format(dateFormat))
	return ParseCertificate(c.Marshal())
}

// Certify makes a worker's certificate: the content of worker.pub, and the
// server's signature over it, worker.pub.sig.
func Certify(server SecretKey, worker string, key ed25519.PublicKey, notBefore, notAfter time.Time) (public, sig []byte, err error) {
	c, err := NewCertificate(worker, key, notBefore, notAfter)
	if err != nil {
		return nil, nil, err
	}
	public = c.Marshal()
	return public, server.Sign(public).Marshal(), nil
}

// ParseCertificate reads a worker.pub, whose signature the caller checks.
func ParseCertificate(b []byte) (Certificate, error) {
	key, err := parsePublicKey(b)
	if err != nil {
		return Certificate{}, err
	}
	m := workerComment.FindStringSubmatch(key.Comment)
	if m == nil || !workerID.MatchString(m[1]) {
		return Certificate{}, malformed("the comment has to be \"sysup worker <id> not-before=<date> not-after=<date>\", not %.200q", key.Comment)
	}
	c := Certificate{Worker: m[1], Key: key}
	if c.NotBefore, err = parseDate(m[2]); err != nil {
		return Certificate{}, err
	}
	if c.NotAfter, err = parseDate(m[3]); err != nil {
		return Certificate{}, err
	}
	if c.NotAfter.Before(c.NotBefore) {
		return Certificate{}, malformed("not-after %s lies before not-before %s", m[3], m[2])
	}
	return c, nil
}

// Marshal returns the certificate's file, worker.pub.
func (c Certificate) Marshal() []byte { return c.Key.Marshal() }

// parseDate reads RFC 3339 in UTC and whole seconds, the only form written here.
func parseDate(s string) (time.Time, error) {
	t, err := time.Parse(dateFormat, s)
	if err != nil || t.Format(dateFormat) != s {
		return time.Time{}, malformed("date %.40q: it has to be like 2026-01-31T12:00:00Z", s)
	}
	return t, nil
}

// Revoked is the server's list of worker keys that are not to be trusted any
// more, whatever their dates. Its file, keys/revoked, is a line "sysup revoked
// <date of the list>" and one fingerprint per line, sorted; keys/revoked.sig is
// the server's signature over it. A newer list replaces an older one.
type Revoked struct {
	Issued time.Time // whole seconds
	Keys   []Fingerprint
}

const (
	maxRevoked    = 100_000
	revokedHeader = "sysup revoked "
)

// Marshal returns the list's file.
func (r Revoked) Marshal() []byte {
	keys := slices.Clone(r.Keys)
	slices.SortFunc(keys, func(a, b Fingerprint) int { return bytes.Compare(a[:], b[:]) })
	out := fmt.Appendf(nil, "%s%s\n", revokedHeader, r.Issued.UTC().Format(dateFormat))
	for _, key := range slices.Compact(keys) {
		out = fmt.Appendln(out, key)
	}
	return out
}

// ParseRevoked reads a list whose signature the caller checks.
func ParseRevoked(b []byte) (Revoked, error) {
	header, rest, _ := strings.Cut(string(b), "\n")
	date, ok := strings.CutPrefix(header, revokedHeader)
	if !ok || !bytes.HasSuffix(b, []byte("\n")) || len(b) > 17*maxRevoked {
		return Revoked{}, malformed("revoked: it has to begin with %q and a date, to end with a newline, and to have at most %d lines", revokedHeader, maxRevoked)
	}
	issued, err := parseDate(date)
	if err != nil {
		return Revoked{}, fmt.Errorf("revoked: %w", err)
	}
	r := Revoked{Issued: issued}
	for line := range strings.Lines(rest) {
		key, err := ParseFingerprint(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return Revoked{}, fmt.Errorf("revoked: %w", err)
		}
		if n := len(r.Keys); n > 0 && bytes.Compare(r.Keys[n-1][:], key[:]) >= 0 {
			return Revoked{}, malformed("revoked: %s is not in order", key)
		}
		r.Keys = append(r.Keys, key)
	}
	return r, nil
}

// VerifyRevoked reads a list that one of the server's keys has signed.
func VerifyRevoked(server []PublicKey, list, sig []byte) (Revoked, error) {
	if err := VerifyFile(server, list, sig); err != nil {
		return Revoked{}, fmt.Errorf("revoked.sig: %w", err)
	}
	return ParseRevoked(list)
}
