package builder

import (
	"context"
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
	k.current, k.renew = Key{secret, certificate}, time.Now().Add(keyLife)
	return k.current, nil
}
