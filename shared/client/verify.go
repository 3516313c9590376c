package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// Report is what Verify has proved about a folder.
type Report struct {
	Worker  usign.Certificate // who signed, and between which dates it may
	Files   []string          // names of the files that are as they were signed
	Revoked time.Time         // date of the list of revoked keys, zero if the server had none
	Build   build.Provenance  // what was asked, what was built and when
}

// Verify checks a folder that Download filled: one of the server's keys →
// worker.pub → sha256sums → every file. Nothing else may lie in it. now is
// this machine's clock.
func Verify(dir string, keys []usign.PublicKey, now time.Time) (Report, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Report{}, fmt.Errorf("open the folder: %w", err)
	}
	defer root.Close()
	trust := usign.Trust{Server: keys}
	if trust.Revoked, err = readRevoked(root.FS(), keys); err != nil {
		return Report{}, err
	}
	verified, err := trust.VerifyDir(result{root.FS()}, now)
	if err != nil {
		return Report{}, err
	}
	report := Report{Worker: verified.Certificate, Files: slices.Sorted(maps.Keys(verified.Sums)), Revoked: trust.Revoked.Issued}
	text, err := readSmall(root.FS(), usign.BuildFile)
	if err != nil {
		return Report{}, err
	}
	if err := json.Unmarshal(text, &report.Build); err != nil {
		return Report{}, fmt.Errorf("%s is signed, but this version of sysup cannot read it: %w", usign.BuildFile, err)
	}
	return report, nil
}

// readRevoked reads the list of revoked keys, if the folder has one: it is
// signed by the server itself and not part of the result.
func readRevoked(dir fs.FS, keys []usign.PublicKey) (usign.Revoked, error) {
	list, err := readSmall(dir, revokedFile)
	if errors.Is(err, fs.ErrNotExist) {
		return usign.Revoked{}, nil
	}
	if err != nil {
		return usign.Revoked{}, err
	}
	sig, err := readSmall(dir, revokedSigFile)
	if err != nil {
		return usign.Revoked{}, err
	}
	return usign.VerifyRevoked(keys, list, sig)
}

func readSmall(dir fs.FS, name string) ([]byte, error) {
	info, err := fs.Stat(dir, name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxList {
		return nil, fmt.Errorf("%s is not a file of at most %d bytes: fetch it again", name, maxList)
	}
	f, err := dir.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxList))
}

// result is the folder without the list of revoked keys.
type result struct{ fs.FS }

func (r result) Stat(name string) (fs.FileInfo, error) { return fs.Stat(r.FS, name) }

func (r result) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(r.FS, name)
	return slices.DeleteFunc(entries, func(e fs.DirEntry) bool {
		return name == "." && (e.Name() == revokedFile || e.Name() == revokedSigFile)
	}), err
}
