package aws

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"strings"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// maxSigned is the size of the largest message that KMS signs, in bytes.
const maxSigned = 4096

// signer is an Ed25519 key in KMS, which never leaves it.
type signer struct {
	client *kms.Client
	key    string
	public ed25519.PublicKey
}

var _ crypto.Signer = (*signer)(nil)

// Signer is the Ed25519 key (ECC_NIST_EDWARDS25519) of the reference "kms:<key
// ID, ARN or alias>". It signs whole messages of at most 4096 bytes, as
// ed25519.PrivateKey does without a hash. Each call of Sign may take ten
// seconds.
func (c *Cloud) Signer(ctx context.Context, ref string) (crypto.Signer, error) {
	key, ok := strings.CutPrefix(ref, "kms:")
	if !ok || !serverKeyPattern.MatchString(ref) || len(ref) > maxSetting {
		return nil, fmt.Errorf("the key %.200q has to be kms:KEY", ref)
	}
	s := &signer{client: kms.NewFromConfig(c.config), key: key}
	out, err := s.client.GetPublicKey(ctx, &kms.GetPublicKeyInput{KeyId: &key})
	if err == nil {
		s.public, err = parseEd25519(out.PublicKey)
	}
	if err != nil {
		return nil, fmt.Errorf("read the public key of %q: %w", ref, err)
	}
	return s, nil
}

func parseEd25519(der []byte) (ed25519.PublicKey, error) {
	if parsed, err := x509.ParsePKIXPublicKey(der); err == nil {
		if key, ok := parsed.(ed25519.PublicKey); ok {
			return key, nil
		}
	}
	return nil, errors.New("it is no Ed25519 key; make one with the key spec ECC_NIST_EDWARDS25519 and the usage SIGN_VERIFY")
}

// Public implements crypto.Signer.
func (s *signer) Public() crypto.PublicKey { return s.public }

// Sign implements crypto.Signer. What KMS answers is verified.
func (s *signer) Sign(_ io.Reader, message []byte, options crypto.SignerOpts) ([]byte, error) {
	if options.HashFunc() != 0 {
		return nil, errors.New("a key in KMS signs messages, not their hashes")
	}
	if len(message) > maxSigned {
		return nil, fmt.Errorf("a key in KMS signs at most %d bytes, these are %d; sign a list of their checksums", maxSigned, len(message))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*smallTime)
	defer cancel()
	out, err := s.client.Sign(ctx, &kms.SignInput{
		KeyId: sdk.String(s.key), Message: message, MessageType: types.MessageTypeRaw,
		SigningAlgorithm: types.SigningAlgorithmSpecEd25519Sha512,
	})
	if err != nil {
		return nil, fmt.Errorf("sign with KMS: %w", err)
	}
	if !ed25519.Verify(s.public, message, out.Signature) {
		return nil, errors.New("KMS returned a signature that its own public key refuses")
	}
	return out.Signature, nil
}
