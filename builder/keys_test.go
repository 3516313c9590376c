package builder_test

import (
	"context"
	"crypto/ed25519"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attended-sysupgrade/sysup/builder"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// TestKeyDates: no key is used outside the dates of its certificate, which
// come from another clock: clients would refuse what it signs.
func TestKeyDates(t *testing.T) {
	t.Parallel()
	server, err := usign.Generate("")
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		skew, begins, ends time.Duration // the certifier's clock is ahead of this one by skew
		good               bool
	}{
		"equal clocks":                 {0, -5 * time.Minute, 24 * time.Hour, true},
		"four minutes ahead":           {4 * time.Minute, -5 * time.Minute, 24 * time.Hour, true},
		"six minutes ahead":            {6 * time.Minute, -5 * time.Minute, 24 * time.Hour, false},
		"two days behind":              {-48 * time.Hour, -5 * time.Minute, 24 * time.Hour, false},
		"given out again, half a day":  {0, -12 * time.Hour, 12*time.Hour - time.Second, true},
		"twenty hours behind, a while": {-20 * time.Hour, -5 * time.Minute, 24 * time.Hour, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys := builder.NewKeys(func(_ context.Context, worker string, key ed25519.PublicKey) (build.Certificate, error) {
					theirs := time.Now().Add(test.skew)
					public, sig, err := usign.Certify(server, worker, key, theirs.Add(test.begins), theirs.Add(test.ends))
					return build.Certificate{PublicKey: public, Signature: sig}, err
				})
				if !test.good {
					if _, err := keys.Current(t.Context()); err == nil || !strings.Contains(err.Error(), "clock") {
						t.Errorf("the key is used: %v", err)
					}
					return
				}
				for range 48 {
					key, err := keys.Current(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					c, err := usign.ParseCertificate(key.Certificate.PublicKey)
					if now := time.Now(); err != nil || now.Before(c.NotBefore) || now.After(c.NotAfter) {
						t.Fatalf("used at %v: %+v (%v)", now, c, err)
					}
					time.Sleep(time.Hour)
				}
			})
		})
	}
}

// TestKeyOfAnother: a certificate is for the key that was to be certified.
func TestKeyOfAnother(t *testing.T) {
	t.Parallel()
	server, err := usign.Generate("")
	if err != nil {
		t.Fatal(err)
	}
	public, sig, err := usign.Certify(server, "other", server.Public().Key, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range [][]byte{public, []byte("no key"), nil} {
		keys := builder.NewKeys(func(context.Context, string, ed25519.PublicKey) (build.Certificate, error) {
			return build.Certificate{PublicKey: text, Signature: sig}, nil
		})
		if key, err := keys.Current(t.Context()); err == nil {
			t.Errorf("%q is used for %s", text, key.Secret.Public().Fingerprint)
		}
	}
}
