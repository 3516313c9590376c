package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"regexp"

	"github.com/attended-sysupgrade/sysup/shared/aws"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// The parameters of SSM below the path. The fingerprint is written last: where
// it is, all are.
const (
	parameterKey         = "server-key"     // SecureString: the secret key file; none with KMS
	parameterSecret      = "request-secret" // SecureString: 64 characters that private requests are hashed under
	parameterPublic      = "server-pub"     // the public key file
	parameterFingerprint = "fingerprint"
)

var parameterPath = regexp.MustCompile(`^/sysup/[a-z0-9][a-z0-9-]*$`)

// parameters are those below one path.
type parameters struct {
	cloud *aws.Cloud
	path  string
}

func (p parameters) name(of string) string { return p.path + "/" + of }

// read returns build.ErrNotFound if there is none.
func (p parameters) read(ctx context.Context, of string) ([]byte, error) {
	return p.cloud.Secret(ctx, "ssm:"+p.name(of))
}

// newInCloud makes what a deployment on AWS needs. Nothing that is there is
// changed, and what a run that died has left is completed by the next one.
func (c keysNew) newInCloud(ctx context.Context, out io.Writer, log *slog.Logger) error {
	cloud, err := aws.Open(ctx, aws.Settings{}, log)
	if err != nil {
		return err
	}
	p := parameters{cloud, c.SSM}
	switch had, err := p.read(ctx, parameterFingerprint); {
	case err == nil:
		return fmt.Errorf("%s has its keys already, with the fingerprint %.40s; nothing was changed. Choose another path for new ones", c.SSM, had)
	case !errors.Is(err, build.ErrNotFound):
		return err
	}
	public, err := c.serverKey(ctx, p)
	if err != nil {
		return err
	}
	if err := p.makeSecret(ctx); err != nil {
		return err
	}
	if err := cloud.CreateText(ctx, p.name(parameterPublic), public.Marshal()); err != nil {
		return err
	}
	if err := cloud.CreateText(ctx, p.name(parameterFingerprint), []byte(public.Fingerprint.String())); err != nil {
		return err
	}
	return c.report(out, public)
}

// serverKey is the public half of the key in SSM, which is made unless it is
// there, or of the one in KMS.
func (c keysNew) serverKey(ctx context.Context, p parameters) (usign.PublicKey, error) {
	text, err := p.read(ctx, parameterKey)
	switch {
	case err != nil && !errors.Is(err, build.ErrNotFound):
		return usign.PublicKey{}, err
	case c.KMS != "" && err == nil:
		return usign.PublicKey{}, fmt.Errorf("%s holds a key already, so that of KMS cannot be the server's. Choose another path", p.name(parameterKey))
	case c.KMS != "":
		return c.remoteKey(ctx, p)
	case err != nil:
		return c.makeKey(ctx, p)
	}
	key, err := usign.ParseSecretKey(text)
	if err != nil {
		return usign.PublicKey{}, fmt.Errorf("%s is there and is no key: %w", p.name(parameterKey), err)
	}
	return key.Public(), nil
}

func (c keysNew) remoteKey(ctx context.Context, p parameters) (usign.PublicKey, error) {
	signer, err := p.cloud.Signer(ctx, "kms:"+c.KMS)
	if err != nil {
		return usign.PublicKey{}, err
	}
	key := signer.Public().(ed25519.PublicKey) // Signer has no others
	return usign.PublicKey{Fingerprint: usign.FingerprintOf(key), Key: key, Comment: c.Comment}, nil
}

func (c keysNew) makeKey(ctx context.Context, p parameters) (usign.PublicKey, error) {
	switch _, err := p.read(ctx, parameterPublic); {
	case err == nil:
		return usign.PublicKey{}, fmt.Errorf("%s is there, but the secret key to it is not in SSM: choose another path, or repeat the command with --kms if that has it", p.name(parameterPublic))
	case !errors.Is(err, build.ErrNotFound):
		return usign.PublicKey{}, err
	}
	key, err := usign.Generate(c.Comment)
	if err != nil {
		return usign.PublicKey{}, err
	}
	return key.Public(), p.cloud.CreateSecret(ctx, p.name(parameterKey), key.Marshal())
}

func (p parameters) makeSecret(ctx context.Context) error {
	stored, err := p.read(ctx, parameterSecret)
	if err == nil && len(stored) < 32 {
		return fmt.Errorf("%s is there and too short, it has %d characters; choose another path", p.name(parameterSecret), len(stored))
	}
	if !errors.Is(err, build.ErrNotFound) {
		return err
	}
	secret := make([]byte, 32)
	rand.Read(secret) // never fails, by its documentation
	return p.cloud.CreateSecret(ctx, p.name(parameterSecret), []byte(hex.EncodeToString(secret)))
}

func (c keysNew) report(out io.Writer, public usign.PublicKey) error {
	next := "deploy the stack"
	if name := path.Base(c.SSM); name != "main" {
		next += fmt.Sprintf(" with KeyName=%s and KeyFingerprint=%s/%s", name, c.SSM, parameterFingerprint)
	}
	if c.KMS != "" {
		next += "; its parameter ServerKeyArn is the ARN of this KMS key"
	}
	_, err := fmt.Fprintf(out, "fingerprint %s\npublic key  %s/%s\n\n%s\nNext: %s.\n", public.Fingerprint, c.SSM, parameterPublic, public.Marshal(), next)
	return err
}
