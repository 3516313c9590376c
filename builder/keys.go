package builder

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// Keys makes the workers' signing keys. A key is made here, lives in memory
// only, and is certified by the server for a day; it is replaced after half of
// that.
type Keys struct {
	certify build.Certifier

	mu      sync.Mutex
	current Key
	renew   time.Time
}

// Key signs results. Certificate is what clients check it by.
type Key struct {
	Secret      usign.SecretKey
	Certificate build.Certificate
}

// keyLife is how long a key is used. Its certificate is good for a day, so a
// result signed at the last moment is still in time.
const keyLife = 12 * time.Hour

// NewKeys returns keys that the certifier vouches for. All workers of a
// process share one at a time.
func NewKeys(certify build.Certifier) *Keys {
	return &Keys{certify: certify}
}

// Current returns the key to sign with now.
func (k *Keys) Current(ctx context.Context) (Key, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Now().Before(k.renew) {
		return k.current, nil
	}
	secret, err := usign.Generate("sysup worker")
	if err != nil {
		return Key{}, fmt.Errorf("make a worker key: %w", err)
	}
	certificate, err := k.certify(ctx, secret.Public().Fingerprint.String(), secret.Public().Key)
	if err != nil {
		return Key{}, fmt.Errorf("have a worker key certified: %w", err)
	}
	renew, err := usable(certificate, secret.Public().Key)
	if err != nil {
		return Key{}, err
	}
	k.current, k.renew = Key{secret, certificate}, renew
	return k.current, nil
}

// usable returns until when to use a key that was just certified. What is
// signed by this clock outside the dates, which come from the certifier's, no
// client would accept.
func usable(certificate build.Certificate, key ed25519.PublicKey) (until time.Time, err error) {
	c, err := usign.ParseCertificate(certificate.PublicKey)
	if err != nil {
		return until, fmt.Errorf("read the certificate of a worker key: %w", err)
	}
	if !c.Key.Key.Equal(key) {
		return until, errors.New("the certifier answered with the certificate of another key")
	}
	now := time.Now().Round(0) // the clock on the wall, as in the dates: the other one stands while a machine sleeps
	if until = now.Add(keyLife); until.After(c.NotAfter) {
		until = c.NotAfter
	}
	if now.Before(c.NotBefore) || !now.Before(until) {
		return until, fmt.Errorf("the clock of this machine (%s) differs from the certifier's: its certificate is good from %s to %s; set the clock", now.UTC().Format(time.RFC3339), c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339))
	}
	return until, nil
}
