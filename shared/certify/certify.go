// Package certify vouches for workers' keys with a server's key, wherever that
// is kept: it makes the certificates by which clients trust what a worker has
// signed, and stores them where clients find them.
package certify

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

const (
	life      = 24 * time.Hour  // of a certificate
	remaining = life / 2        // what one that is given out again must have left: a worker uses its key so long
	clockSkew = 5 * time.Minute // how far the clocks of server and worker may differ
)

// Authority is a server's key and where its certificates are stored.
type Authority struct {
	public  usign.PublicKey
	sign    func(message []byte) (usign.Signature, error)
	objects build.Objects
}

// New returns the authority of a key that this process holds.
func New(key usign.SecretKey, objects build.Objects) *Authority {
	sign := func(message []byte) (usign.Signature, error) { return key.Sign(message), nil }
	return &Authority{key.Public(), sign, objects}
}

// NewRemote returns the authority of an Ed25519 key that is held elsewhere, as
// in a key management service. Its fingerprint is usign.FingerprintOf.
func NewRemote(signer crypto.Signer, objects build.Objects) (*Authority, error) {
	key, ok := signer.Public().(ed25519.PublicKey)
	if !ok || len(key) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("the server's key is a %T: it has to be an Ed25519 key", signer.Public())
	}
	public := usign.PublicKey{Fingerprint: usign.FingerprintOf(key), Key: key, Comment: "sysup server"}
	sign := func(message []byte) (usign.Signature, error) { return usign.SignWith(signer, public, message) }
	return &Authority{public, sign, objects}, nil
}

// Public is the key that clients trust.
func (a *Authority) Public() usign.PublicKey { return a.public }

// ErrWorker is the kind of every error about the worker's own words: its name
// is not its key's fingerprint, or its key is too old to be certified again.
var ErrWorker = errors.New("the key cannot be certified")

// Certify is a build.Certifier. The worker's name has to be its key's
// fingerprint. A key that was certified before, by a call whose answer got
// lost, gets the same certificate.
func (a *Authority) Certify(ctx context.Context, worker string, key ed25519.PublicKey) (build.Certificate, error) {
	if len(key) != ed25519.PublicKeySize {
		return build.Certificate{}, fmt.Errorf("%w: it has %d bytes, an Ed25519 public key has %d", ErrWorker, len(key), ed25519.PublicKeySize)
	}
	if want := usign.FingerprintOf(key).String(); worker != want {
		return build.Certificate{}, fmt.Errorf("%w: its worker has to be named %s by its fingerprint, not %.100q", ErrWorker, want, worker)
	}
	now := time.Now()
	certificate, err := usign.NewCertificate(worker, key, now.Add(-clockSkew), now.Add(life))
	if err != nil {
		return build.Certificate{}, err
	}
	public, name := certificate.Marshal(), "keys/worker-"+worker+".pub"
	if err := put(ctx, a.objects, name, public, build.PolicyText); errors.Is(err, build.ErrExists) {
		public, err = a.again(ctx, name, certificate)
		if err != nil {
			return build.Certificate{}, err
		}
	} else if err != nil {
		return build.Certificate{}, err
	}
	sig, err := a.sign(public)
	if err != nil {
		return build.Certificate{}, err
	}
	signature := sig.Marshal()
	return build.Certificate{PublicKey: public, Signature: signature}, put(ctx, a.objects, name+".sig", signature, build.PolicyText)
}

// again reads the certificate that an earlier call stored for the key. Equal
// keys and messages give equal signatures, so it can be signed anew.
func (a *Authority) again(ctx context.Context, name string, fresh usign.Certificate) ([]byte, error) {
	text, err := read(ctx, a.objects, name)
	if err != nil {
		return nil, err
	}
	stored, err := usign.ParseCertificate(text)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	// Nothing is signed but what would have been written here, only earlier.
	same, err := usign.NewCertificate(fresh.Worker, fresh.Key.Key, stored.NotBefore, stored.NotBefore.Add(life+clockSkew))
	if err != nil || !bytes.Equal(same.Marshal(), text) || stored.NotAfter.After(fresh.NotAfter.Add(clockSkew)) {
		return nil, fmt.Errorf("%s is not what this server wrote: remove it", name)
	}
	if time.Until(stored.NotAfter) < remaining {
		return nil, fmt.Errorf("%w: it was certified before %s and is too old; restart the worker, it makes a new one", ErrWorker, stored.NotAfter.Add(-remaining).Format(time.RFC3339))
	}
	return text, nil
}

// Publish stores the server's public key for clients unless it is there.
func (a *Authority) Publish(ctx context.Context) error {
	return Publish(ctx, a.objects, a.public)
}

// Publish stores a server's public key for clients unless it is there, with
// whatever comment.
func Publish(ctx context.Context, objects build.Objects, key usign.PublicKey) error {
	const name = "keys/server.pub"
	text, err := read(ctx, objects, name)
	if err != nil && !errors.Is(err, build.ErrNotFound) {
		return err
	}
	if stored, err := usign.ParsePublicKey(text); err == nil && stored.Fingerprint == key.Fingerprint && stored.Key.Equal(key.Key) {
		return nil
	}
	return put(ctx, objects, name, key.Marshal(), build.PolicyIndex)
}

// maxKey is more than any key file has, in bytes.
const maxKey = 8 << 10

func read(ctx context.Context, objects build.Objects, name string) ([]byte, error) {
	r, _, err := objects.Open(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, maxKey))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return text, nil
}

func put(ctx context.Context, objects build.Objects, name string, text []byte, policy build.Policy) error {
	if err := objects.Put(ctx, name, bytes.NewReader(text), policy); err != nil {
		return fmt.Errorf("store %s: %w", name, err)
	}
	return nil
}
