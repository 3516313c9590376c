// Command certifier is the Lambda that holds the server's key: it certifies a
// worker's public key for a day. Only the builders' role may invoke it.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/attended-sysupgrade/sysup/functions/start"
	"github.com/attended-sysupgrade/sysup/shared/aws"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/certify"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

type config struct {
	aws.Settings `embed:""`
}

func main() { start.Main("certifier", open) }

// Validate names each key whose value breaks its rule.
func (c config) Validate() error {
	return errors.Join(c.Settings.Validate(), start.Set("SYSUP_BUCKET", c.Bucket), start.Set("SYSUP_SERVER_KEY", c.ServerKey))
}

func open(ctx context.Context, c config, log *slog.Logger) (any, error) {
	cloud, err := aws.OpenLambda(ctx, c.Settings, log)
	if err != nil {
		return nil, err
	}
	return newFunc(func(ctx context.Context) (*certify.Authority, error) {
		return authority(ctx, cloud, c.ServerKey)
	}, log), nil
}

// authority reads the key, or has KMS keep it.
func authority(ctx context.Context, cloud *aws.Cloud, ref string) (*certify.Authority, error) {
	if strings.HasPrefix(ref, "kms:") {
		signer, err := cloud.Signer(ctx, ref)
		if err != nil {
			return nil, err
		}
		return certify.NewRemote(signer, cloud.Objects())
	}
	text, err := cloud.Secret(ctx, ref)
	if err != nil {
		return nil, err
	}
	key, err := usign.ParseSecretKey(text)
	if err != nil {
		return nil, fmt.Errorf("the server's key in %s: %w", ref, err)
	}
	return certify.New(key, cloud.Objects()), nil
}

// function answers one invocation. Its errors go to the log and, as such, to
// the builder.
type function func(context.Context, aws.CertifyRequest) (aws.CertifyAnswer, error)

// newFunc reads the key anew each time: it is asked a few times a day, and a
// key that was rotated is used from then on.
func newFunc(open func(context.Context) (*certify.Authority, error), log *slog.Logger) function {
	return func(ctx context.Context, request aws.CertifyRequest) (aws.CertifyAnswer, error) {
		certificate, err := answer(ctx, open, request)
		if err != nil {
			log.Error("a worker's key was not certified", "error", err)
			return aws.CertifyAnswer{}, err
		}
		log.Info("a worker's key was certified", "worker", request.Worker)
		return aws.CertifyAnswer{PublicKey: certificate.PublicKey, Signature: certificate.Signature}, nil
	}
}

func answer(ctx context.Context, open func(context.Context) (*certify.Authority, error), request aws.CertifyRequest) (build.Certificate, error) {
	a, err := open(ctx)
	if err != nil {
		return build.Certificate{}, err
	}
	if err := a.Publish(ctx); err != nil {
		return build.Certificate{}, err
	}
	return a.Certify(ctx, request.Worker, request.Key)
}
