package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/attended-sysupgrade/sysup/shared/usign"
)

type keysCmd struct {
	New         keysNew         `cmd:"" help:"Make a key pair: DIR/server.sec (secret) and DIR/server.pub, or the keys of a deployment on AWS."`
	Show        keysShow        `cmd:"" help:"Print the public key."`
	Fingerprint keysFingerprint `cmd:"" help:"Print the public key's fingerprint."`
}

type keysNew struct {
	Dir     string `arg:"" optional:"" help:"Folder for the pair, made if needed. A key that lies there is never overwritten." type:"path"`
	SSM     string `name:"ssm" help:"Make the keys of a deployment on AWS instead, as parameters of SSM below this path, like /sysup/main." placeholder:"PATH"`
	KMS     string `name:"kms" help:"With --ssm: the server's key is this one of KMS (ECC_NIST_EDWARDS25519), an ID, ARN or alias." placeholder:"KEY"`
	Comment string `help:"Comment line of the public key." default:"sysup server"`
}

func (c keysNew) Validate() error {
	switch {
	case (c.Dir == "") == (c.SSM == ""):
		return errors.New("the keys go either into a folder, <dir>, or below --ssm PATH; give one of these")
	case c.SSM == "" && c.KMS != "":
		return errors.New("--kms goes with --ssm only")
	case c.SSM != "" && (len(c.SSM) > len("/sysup/")+32 || !parameterPath.MatchString(c.SSM)):
		return fmt.Errorf("--ssm has to be /sysup/ and a name of at most 32 lower-case letters, digits and '-', it is %.200q", c.SSM)
	}
	return nil
}

func (c keysNew) Run(ctx context.Context, out io.Writer, log *slog.Logger) error {
	if c.SSM != "" {
		return c.newInCloud(ctx, out, log)
	}
	key, err := makeKey(c.Dir, c.Comment)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "fingerprint %s\npublic key  %s\nsecret key  %s (keep it; who has it can sign images)\n",
		key.Public().Fingerprint, filepath.Join(c.Dir, publicName), filepath.Join(c.Dir, secretName))
	return err
}

type keysShow struct {
	File string `arg:"" help:"A public or secret key file." type:"existingfile"`
}

func (c keysShow) Run(out io.Writer) error {
	key, err := readPublic(c.File)
	if err != nil {
		return err
	}
	_, err = out.Write(key.Marshal())
	return err
}

type keysFingerprint struct {
	File string `arg:"" help:"A public or secret key file." type:"existingfile"`
}

func (c keysFingerprint) Run(out io.Writer) error {
	key, err := readPublic(c.File)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, key.Fingerprint)
	return err
}

const (
	secretName  = "server.sec"
	publicName  = "server.pub"
	privateName = "request.secret" // HMAC key for the hashes of private requests
)

// readPublic reads the public half of either kind of key file.
func readPublic(file string) (usign.PublicKey, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return usign.PublicKey{}, err
	}
	public, err := usign.ParsePublicKey(text)
	if err == nil {
		return public, nil
	}
	secret, secretErr := usign.ParseSecretKey(text)
	if secretErr != nil {
		return usign.PublicKey{}, fmt.Errorf("%s is not a key: %w", file, err)
	}
	return secret.Public(), nil
}

func readPublics(files []string) ([]usign.PublicKey, error) {
	var keys []usign.PublicKey
	for _, file := range files {
		key, err := readPublic(file)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// makeKey writes a new pair. The public key is written last, so that a folder
// with one has both.
func makeKey(dir, comment string) (usign.SecretKey, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return usign.SecretKey{}, fmt.Errorf("make the folder for the keys: %w", err)
	}
	for _, name := range []string{secretName, publicName} {
		if file := filepath.Join(dir, name); exists(file) {
			return usign.SecretKey{}, existsAlready(file)
		}
	}
	key, err := usign.Generate(comment)
	if err != nil {
		return usign.SecretKey{}, err
	}
	if err := writeNew(filepath.Join(dir, secretName), key.Marshal(), 0o600); err != nil {
		return usign.SecretKey{}, err
	}
	return key, writeNew(filepath.Join(dir, publicName), key.Public().Marshal(), 0o644)
}

func exists(file string) bool {
	_, err := os.Lstat(file)
	return !errors.Is(err, fs.ErrNotExist)
}

func existsAlready(file string) error {
	return fmt.Errorf("%s exists already; move it away first", file)
}

// writeNew never overwrites: a lost key cannot be had back.
func writeNew(file string, text []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, fs.ErrExist) {
		return existsAlready(file)
	}
	if err != nil {
		return err
	}
	if _, err := f.Write(text); err != nil {
		return errors.Join(err, f.Close())
	}
	return errors.Join(f.Sync(), f.Close())
}

// readWhole reads what writeNew wrote. An empty file is what it left when the
// process died; nothing is lost with it.
func readWhole(file string) ([]byte, error) {
	text, err := os.ReadFile(file)
	if err == nil && len(text) == 0 {
		return nil, errors.Join(os.Remove(file), fs.ErrNotExist)
	}
	return text, err
}

// serverKeys are what a server must not lose: its signing key and the secret
// that private requests are hashed under.
type serverKeys struct {
	sign   usign.SecretKey
	secret []byte
}

// openKeys reads the keys of a data folder and makes those that are not there.
func openKeys(dir string) (serverKeys, error) {
	var k serverKeys
	text, err := readWhole(filepath.Join(dir, secretName))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		k.sign, err = makeKey(dir, "sysup server")
	case err == nil:
		k.sign, err = usign.ParseSecretKey(text)
	}
	if err != nil {
		return k, fmt.Errorf("the server's key in %s: %w", dir, err)
	}
	// A process may have died between the two halves; the public one follows
	// from the secret one.
	if _, err := os.Stat(filepath.Join(dir, publicName)); errors.Is(err, fs.ErrNotExist) {
		if err := writeNew(filepath.Join(dir, publicName), k.sign.Public().Marshal(), 0o644); err != nil {
			return k, err
		}
	}
	k.secret, err = openSecret(filepath.Join(dir, privateName))
	return k, err
}

func openSecret(file string) ([]byte, error) {
	secret, err := readWhole(file)
	if err == nil && len(secret) != 32 {
		return nil, fmt.Errorf("%s must hold 32 bytes, it has %d; move it away to have a new one made", file, len(secret))
	}
	if errors.Is(err, fs.ErrNotExist) {
		secret = make([]byte, 32)
		rand.Read(secret)
		err = writeNew(file, secret, 0o600)
	}
	return secret, err
}
