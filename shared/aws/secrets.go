package aws

import (
	"bytes"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	"github.com/aws/aws-sdk-go-v2/service/ssm/types"
	"github.com/aws/smithy-go"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// maxSecret is the size of the largest secret, in bytes: what a standard
// parameter of SSM holds.
const maxSecret = 4096

// Secret returns what a reference leads to: "ssm:/path" is a parameter, which
// is decrypted, "file:/path" a file. Its errors name the reference, never the
// value; no parameter and no file is build.ErrNotFound.
func (c *Cloud) Secret(ctx context.Context, ref string) ([]byte, error) {
	kind, path, _ := strings.Cut(ref, ":")
	var value []byte
	err := errors.New("it has to be ssm:/PATH or file:/PATH")
	switch {
	case !secretPattern.MatchString(ref) || len(ref) > maxSetting:
	case kind == "ssm":
		value, err = c.parameter(ctx, path)
	default:
		value, err = secretFile(path)
	}
	if err == nil && (len(value) == 0 || len(value) > maxSecret) {
		err = fmt.Errorf("it has to hold 1 to %d bytes, it has %d or more", maxSecret, len(value))
	}
	if err != nil {
		return nil, fmt.Errorf("read the secret %.200q: %w", ref, err)
	}
	return value, nil
}

func secretFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: there is no such file", build.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxSecret+1))
}

func (c *Cloud) parameter(ctx context.Context, path string) ([]byte, error) {
	out, err := ssm.NewFromConfig(c.config).GetParameter(ctx, &ssm.GetParameterInput{Name: &path, WithDecryption: sdk.Bool(true)})
	if _, ok := errors.AsType[*types.ParameterNotFound](err); ok {
		return nil, fmt.Errorf("%w: there is no such parameter in this account and region; make it with sysup keys new --ssm", build.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	if out.Parameter == nil {
		return nil, errors.New("the answer has no parameter")
	}
	return []byte(sdk.ToString(out.Parameter.Value)), nil
}

// CreateSecret makes a SecureString parameter, which is encrypted. It never
// overwrites one: if another value is there it returns build.ErrExists, if the
// same, nil. The value is text of 1 to 4096 bytes.
func (c *Cloud) CreateSecret(ctx context.Context, path string, value []byte) error {
	return c.create(ctx, path, value, types.ParameterTypeSecureString)
}

// CreateText makes a parameter that is no secret, like CreateSecret.
func (c *Cloud) CreateText(ctx context.Context, path string, value []byte) error {
	return c.create(ctx, path, value, types.ParameterTypeString)
}

func (c *Cloud) create(ctx context.Context, path string, value []byte, kind types.ParameterType) error {
	err := errors.New("its path has to be like /sysup/main/server-key and its value text of 1 to 4096 bytes")
	if good := secretPattern.MatchString("ssm:"+path) && len(value) > 0 && len(value) <= maxSecret && !bytes.ContainsRune(value, 0); good {
		_, err = ssm.NewFromConfig(c.config).PutParameter(ctx, &ssm.PutParameterInput{
			Name: &path, Value: sdk.String(string(value)), Type: kind, Overwrite: sdk.Bool(false),
		})
	}
	if _, ok := errors.AsType[*types.ParameterAlreadyExists](err); ok {
		err = c.sameParameter(ctx, path, value)
	}
	if err != nil {
		return fmt.Errorf("make the parameter %.200q: %w", path, quiet(err))
	}
	return nil
}

// sameParameter tells what an existing parameter is: one that an attempt of
// ours made whose answer was lost, or somebody else's.
func (c *Cloud) sameParameter(ctx context.Context, path string, value []byte) error {
	stored, err := c.parameter(ctx, path)
	if err == nil && subtle.ConstantTimeCompare(stored, value) != 1 {
		return fmt.Errorf("%w with another value; it is never overwritten: choose another name, or delete it first", build.ErrExists)
	}
	return err
}

// quiet keeps the code of an answer alone: its message may quote the value.
func quiet(err error) error {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		return fmt.Errorf("SSM says %s", api.ErrorCode())
	}
	return err
}
