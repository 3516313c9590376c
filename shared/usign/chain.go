package usign

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"time"
)

// Names of the files of a result that carry its chain of signatures:
// server key → worker.pub → sha256sums → every other file, build.json too.
const (
	WorkerFile    = "worker.pub"
	WorkerSigFile = "worker.pub.sig"
	SumsFile      = "sha256sums"
	SumsSigFile   = "sha256sums.sig"
	BuildFile     = "build.json"
)

// Grace is how long after a worker key's last day its results are accepted:
// they are served for a week.
const Grace = 8 * 24 * time.Hour

// plausible is a time before which a clock is taken to be unset: routers start
// in 1970 or on the day their firmware was made. Such a clock judges nothing.
var plausible = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

// maxChainFile bounds the files of the chain that have no limit of their own.
const maxChainFile = 16 << 20

// Trust is what a client holds against a result: the server's keys, usually
// one, and the worker keys that were revoked.
type Trust struct {
	Server  []PublicKey
	Revoked Revoked
}

// Chain is the content of the files named above.
type Chain struct {
	Worker, WorkerSig, Sums, SumsSig, Build []byte
}

// Verified is what a chain proves.
type Verified struct {
	Certificate Certificate
	Sums        Sums
	BuiltAt     time.Time
}

// VerifyChain checks all that can be checked without the other files: the
// server's signature, the worker's, that the key was valid at built_at and is
// not revoked, that build.json is the signed one. now is the client's clock,
// which matters only if it is plausible. Errors name the file and match
// ErrFormat, ErrUnknownKey, ErrBadSignature, ErrExpired, ErrRevoked or ErrSum.
func (t Trust) VerifyChain(c Chain, now time.Time) (Verified, error) {
	certificate, err := t.verifyWorker(c)
	if err != nil {
		return Verified{}, err
	}
	if err := VerifyFile([]PublicKey{certificate.Key}, c.Sums, c.SumsSig); err != nil {
		return Verified{}, fmt.Errorf("%s is not the worker's signature of %s: %w; fetch both again", SumsSigFile, SumsFile, err)
	}
	sums, err := ParseSums(c.Sums)
	if err != nil {
		return Verified{}, err
	}
	if err := sums.Check(BuildFile, bytes.NewReader(c.Build)); err != nil {
		return Verified{}, err
	}
	builtAt, err := builtAt(c.Build)
	if err != nil {
		return Verified{}, err
	}
	if err := certificate.covers(builtAt, now); err != nil {
		return Verified{}, fmt.Errorf("%s: %w", WorkerFile, err)
	}
	return Verified{certificate, sums, builtAt}, nil
}

func (t Trust) verifyWorker(c Chain) (Certificate, error) {
	if err := VerifyFile(t.Server, c.Worker, c.WorkerSig); err != nil {
		return Certificate{}, fmt.Errorf("%s is not the server's signature of %s: %w; give the key of the server that built this", WorkerSigFile, WorkerFile, err)
	}
	certificate, err := ParseCertificate(c.Worker)
	if err != nil {
		return Certificate{}, fmt.Errorf("%s: %w", WorkerFile, err)
	}
	if slices.Contains(t.Revoked.Keys, certificate.Key.Fingerprint) {
		return Certificate{}, fmt.Errorf("%s: key %s is %w: do not use these files, ask for a new build", WorkerFile, certificate.Key.Fingerprint, ErrRevoked)
	}
	return certificate, nil
}

func (c Certificate) covers(builtAt, now time.Time) error {
	switch {
	case builtAt.Before(c.NotBefore) || builtAt.After(c.NotAfter):
		return fmt.Errorf("signed at %s, %w from %s to %s: ask for a new build",
			builtAt.Format(dateFormat), ErrExpired, c.NotBefore.Format(dateFormat), c.NotAfter.Format(dateFormat))
	case now.After(plausible) && now.After(c.NotAfter.Add(Grace)):
		return fmt.Errorf("valid until %s, today is %s, %w: ask for a new build, or set the clock",
			c.NotAfter.Format(dateFormat), now.UTC().Format(dateFormat), ErrExpired)
	}
	return nil
}

// builtAt is the one field of build.json that the chain needs.
func builtAt(b []byte) (time.Time, error) {
	var build struct {
		BuiltAt string `json:"built_at"`
	}
	if err := json.Unmarshal(b, &build); err != nil {
		return time.Time{}, malformed("%s: %v", BuildFile, err)
	}
	at, err := time.Parse(time.RFC3339, build.BuiltAt)
	if _, offset := at.Zone(); err != nil || offset != 0 {
		return time.Time{}, malformed("%s: built_at %.40q is not a date in UTC like 2026-01-31T12:00:00Z", BuildFile, build.BuiltAt)
	}
	return at, nil
}

// VerifyDir checks the chain and the sums of the files in a folder: of the
// named ones, which have to be there, or of all, and then nothing may be there
// that the signed list does not name.
func (t Trust) VerifyDir(dir fs.FS, now time.Time, names ...string) (Verified, error) {
	chain, err := readChain(dir)
	if err != nil {
		return Verified{}, err
	}
	verified, err := t.VerifyChain(chain, now)
	if err != nil {
		return Verified{}, err
	}
	if len(names) == 0 {
		names = slices.Sorted(maps.Keys(verified.Sums))
		if err := noOthers(dir, verified.Sums); err != nil {
			return Verified{}, err
		}
	}
	for _, name := range names {
		if err := verified.Sums.checkFile(dir, name); err != nil {
			return Verified{}, err
		}
	}
	return verified, nil
}

func readChain(dir fs.FS) (Chain, error) {
	var c Chain
	for name, to := range map[string]*[]byte{
		WorkerFile: &c.Worker, WorkerSigFile: &c.WorkerSig, SumsFile: &c.Sums, SumsSigFile: &c.SumsSig, BuildFile: &c.Build,
	} {
		b, err := readFile(dir, name)
		if err != nil {
			return Chain{}, err
		}
		*to = b
	}
	return c, nil
}

func readFile(dir fs.FS, name string) ([]byte, error) {
	f, err := openFile(dir, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxChainFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(b) > maxChainFile {
		return nil, malformed("%s is longer than %d bytes", name, maxChainFile)
	}
	return b, nil
}

// openFile opens a regular file: a pipe would wait for ever.
func openFile(dir fs.FS, name string) (fs.File, error) {
	info, err := fs.Stat(dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is missing, fetch it again: %w", name, err)
	}
	if err == nil && !info.Mode().IsRegular() {
		return nil, malformed("%s is not a regular file", name)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return dir.Open(name)
}

func (s Sums) checkFile(dir fs.FS, name string) error {
	f, err := openFile(dir, name)
	if err != nil {
		return err
	}
	defer f.Close()
	return s.Check(name, f)
}

// noOthers refuses files that no signature covers.
func noOthers(dir fs.FS, sums Sums) error {
	chain := []string{WorkerFile, WorkerSigFile, SumsFile, SumsSigFile}
	return fs.WalkDir(dir, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || slices.Contains(chain, name) {
			return err
		}
		if _, listed := sums[name]; !listed {
			return fmt.Errorf("%w: %s is not listed in %s: take it out of the folder, nobody signed it", ErrSum, name, SumsFile)
		}
		return nil
	})
}
