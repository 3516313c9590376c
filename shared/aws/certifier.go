package aws

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// CertifyRequest is what a builder asks the certifying function, as JSON.
// Worker is the name for the certificate, Key the worker's Ed25519 public key of 32
// bytes.
type CertifyRequest struct {
	Worker string `json:"worker"`
	Key    []byte `json:"key"`
}

// CertifyAnswer is the function's answer, as JSON: the files worker.pub and
// worker.pub.sig.
type CertifyAnswer struct {
	PublicKey []byte `json:"public_key"`
	Signature []byte `json:"signature"`
}

// maxAnswer and maxKeyFile bound what a certifier may answer, in bytes.
const (
	maxAnswer  = 8 << 10
	maxKeyFile = 1 << 10
)

// Certifier has keys certified by the Lambda function of the reference
// "lambda:<name or ARN>".
func (c *Cloud) Certifier(ref string) (build.Certifier, error) {
	function, ok := strings.CutPrefix(ref, "lambda:")
	if !ok || !certifierPattern.MatchString(ref) || len(ref) > maxSetting {
		return nil, fmt.Errorf("the certifier %.200q has to be lambda:FUNCTION", ref)
	}
	client := lambda.NewFromConfig(c.config)
	return func(ctx context.Context, worker string, key ed25519.PublicKey) (build.Certificate, error) {
		request, err := json.Marshal(CertifyRequest{worker, key})
		if err != nil {
			return build.Certificate{}, err
		}
		out, err := client.Invoke(ctx, &lambda.InvokeInput{FunctionName: &function, Payload: request})
		if err != nil {
			return build.Certificate{}, fmt.Errorf("ask the function %s: %w", function, err)
		}
		if out.FunctionError != nil { // what went wrong stands in the function's own log
			return build.Certificate{}, fmt.Errorf("the function %s failed (%.100q); look at its log", function, sdk.ToString(out.FunctionError))
		}
		certificate, err := ParseCertifyAnswer(out.Payload, key)
		if err != nil {
			return build.Certificate{}, fmt.Errorf("the function %s answers what is no certificate: %w", function, err)
		}
		return certificate, nil
	}, nil
}

// ParseCertifyAnswer reads a CertifyAnswer, whose certificate has to be for
// the key. Who verifies it against the server's key is the client.
func ParseCertifyAnswer(text []byte, key ed25519.PublicKey) (build.Certificate, error) {
	var answer CertifyAnswer
	if len(text) > maxAnswer {
		return build.Certificate{}, fmt.Errorf("it may have %d bytes, it has %d", maxAnswer, len(text))
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return build.Certificate{}, errors.New("it has to be a JSON object with public_key and signature in base64")
	}
	// Files of usign: a comment line, and "Ed", 8 bytes of fingerprint, the key
	// or the signature in base64.
	public, ok := keyFile(answer.PublicKey, ed25519.PublicKeySize)
	if !ok || !bytes.Equal(public, key) {
		return build.Certificate{}, errors.New("public_key has to be the file of the worker's key")
	}
	if _, ok := keyFile(answer.Signature, ed25519.SignatureSize); !ok {
		return build.Certificate{}, errors.New("signature has to be a signature file")
	}
	return build.Certificate{PublicKey: answer.PublicKey, Signature: answer.Signature}, nil
}

func keyFile(text []byte, size int) ([]byte, bool) {
	comment, body, _ := bytes.Cut(text, []byte("\n"))
	raw, err := base64.StdEncoding.Strict().DecodeString(string(bytes.TrimSuffix(body, []byte("\n"))))
	good := len(text) <= maxKeyFile && bytes.HasPrefix(comment, []byte("untrusted comment: ")) &&
		err == nil && len(raw) == 10+size && string(raw[:2]) == "Ed"
	if !good {
		return nil, false
	}
	return raw[10:], true
}
