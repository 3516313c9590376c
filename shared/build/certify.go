package build

import (
	"context"
	"crypto/ed25519"
)

// Certifier has a worker's public key signed by the server's. It is the only
// way in which a builder meets the server key: a function in this process, a
// Lambda, or HTTP.
type Certifier func(ctx context.Context, worker string, key ed25519.PublicKey) (Certificate, error)

// Certificate is a worker's public key file, which carries its dates, and the
// server's signature over that file's bytes.
type Certificate struct {
	PublicKey []byte // worker.pub
	Signature []byte // worker.pub.sig
}
