package build

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
)

// The domains keep hashes of different meaning apart. A change of what is
// hashed or how needs a new one.
const (
	domainPublic  = "sysup request 1"
	domainPrivate = "sysup private request 1"
	domainImage   = "sysup image 1"
	domainClient  = "sysup client 1"
)

// ID is the identity of the plan: SHA-256 over the canonical form, in which
// every text is preceded by its length and every list by its count, so that no
// two plans share one. A private plan is hashed by HMAC-SHA-256 under the
// server's secret, so that its script cannot be guessed from the ID.
func (p *Plan) ID(secret []byte) ID {
	if !p.Private {
		e := encoder{sha256.New()}
		e.text(domainPublic)
		p.encode(e)
		return e.id()
	}
	e := encoder{hmac.New(sha256.New, secret)}
	e.text(domainPrivate)
	p.encode(e)
	e.text(p.Defaults)
	return e.id()
}

func (p *Plan) encode(e encoder) {
	e.text(p.Distribution)
	e.text(p.Version)
	e.text(p.Target)
	e.text(p.Profile)
	if p.Snapshot {
		e.list([]string{p.Revision})
	} else {
		e.list(nil)
	}
	e.list(p.Add)
	e.list(p.Remove)
	e.count(len(p.Pins))
	for _, pin := range p.Pins {
		e.text(pin.Name)
		e.text(pin.Version)
	}
	e.text(p.Filesystem)
	e.count(p.RootfsSizeMB)
	e.count(len(p.Repositories))
	for _, repo := range p.Repositories {
		e.text(repo.Name)
		e.text(repo.URL)
	}
	e.text(p.RepositoriesMode)
	e.list(p.RepositoryKeys)
	e.list(p.Settings)
	e.text(p.Rules)
}

// ImageHash is the identity of a result: what was built for what, whatever
// was asked. manifest is sorted "name version" lines, images the sorted
// sha256_unsigned of all images.
func ImageHash(p *Plan, manifest []string, images []string) string {
	e := encoder{sha256.New()}
	e.text(domainImage)
	e.text(p.Distribution)
	e.text(p.Version)
	e.text(p.Target)
	e.text(p.Profile)
	e.list(manifest)
	e.list(images)
	return string(e.id())
}

// encoder feeds a hash with length-prefixed values.
type encoder struct{ h hash.Hash }

func (e encoder) count(n int) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(n))
	e.h.Write(b[:])
}

func (e encoder) text(s string) {
	e.count(len(s))
	e.h.Write([]byte(s))
}

func (e encoder) list(ss []string) {
	e.count(len(ss))
	for _, s := range ss {
		e.text(s)
	}
}

func (e encoder) id() ID { return ID(hex.EncodeToString(e.h.Sum(nil))) }
