package imagebuilder

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// A base root is the folder to which packages are installed as it is once those
// of a profile are, less those that the request takes out: packed by the second
// job that has use for it, between two runs of make, before anything that is the
// request's comes in. It is named by the packages and by the digests of the
// feeds' indices, which each job fetches and has verified itself, so it is never
// one of other packages than this job would install.
type baseRoot struct {
	tree *Tree
	name string
}

const (
	maxRoot    = 1 << 30
	rootsName  = "root-" + recipe + "-"
	rootEnding = ".tar"
	// Lists beside roots: see auto.
	autoEnding = ".auto"
	maxStatus  = 16 << 20
)

// baseRoot is where the root for the facts lies, whether it is there or not.
func (t *Tree) baseRoot(f facts) baseRoot {
	h := sha256.New()
	for _, text := range []string{f.root, f.packages, f.indices} {
		_ = binary.Write(h, binary.BigEndian, uint64(len(text)))
		_, _ = io.WriteString(h, text)
	}
	return baseRoot{t, rootsName + hex.EncodeToString(h.Sum(nil))}
}

func (b baseRoot) file(ending string) string { return b.tree.beside(b.name + ending) }

// there tells whether the root is of use for the plan. Where it is not, worth
// tells whether to make it.
func (b baseRoot) there(plan *build.Plan) (use, worth bool) {
	now := time.Now()
	if os.Chtimes(b.file(rootEnding), now, now) != nil {
		return false, b.tree.store.missed(b.tree.sum + b.name)
	}
	return b.suits(plan), false
}

// suits is the exception of opkg: it notes what was installed by name, and does
// not note it anymore for what is there as somebody's dependency.
func (b baseRoot) suits(plan *build.Plan) bool {
	var auto []string
	text, err := os.ReadFile(b.file(autoEnding))
	if err != nil || json.Unmarshal(text, &auto) != nil {
		return false
	}
	return !slices.ContainsFunc(plan.Add, func(name string) bool { return slices.Contains(auto, name) })
}

// keep stores the root from the tar file packed.
func (b baseRoot) keep(packed io.ReadSeeker) error {
	auto, err := automatic(packed)
	if err != nil {
		return err
	}
	text, err := json.Marshal(auto)
	if err != nil {
		return err
	}
	if _, err := packed.Seek(0, io.SeekStart); err != nil {
		return err
	}
	write := func(r io.Reader) func(io.Writer) error {
		return func(w io.Writer) error { _, err := io.Copy(w, r); return err }
	}
	return errors.Join(
		install(b.file(autoEnding), write(strings.NewReader(string(text)))),
		install(b.file(rootEnding), write(packed)),
	)
}

// automatic lists what opkg's status file in a root says was installed as a
// dependency only, and what that provides, which are names for it, too.
func automatic(packed io.Reader) ([]string, error) {
	in := tar.NewReader(packed)
	names := []string{}
	found := false
	for {
		header, err := in.Next()
		if err == io.EOF && found {
			return names, nil
		}
		if err == io.EOF {
			err = errNoStatus
		}
		if err != nil {
			return nil, err
		}
		if ok, _ := path.Match("*/usr/lib/opkg/status", path.Clean(header.Name)); ok && header.Typeflag == tar.TypeReg {
			found = true
			if names, err = automaticOf(io.LimitReader(in, maxStatus)); err != nil {
				return nil, err
			}
		}
	}
}

var errNoStatus = errors.New("the base root has no status of packages")

func automaticOf(status io.Reader) ([]string, error) {
	names, of, auto := []string{}, []string{}, false
	end := func() {
		if auto {
			names = append(names, of...)
		}
		of, auto = nil, false
	}
	scanner := bufio.NewScanner(status)
	scanner.Buffer(nil, maxStatus)
	for scanner.Scan() {
		field, value, _ := strings.Cut(scanner.Text(), ":")
		switch {
		case scanner.Text() == "":
			end()
		case field == "Package", field == "Provides":
			for name := range strings.SplitSeq(value, ",") {
				name, _, _ = strings.Cut(strings.TrimSpace(name), " ")
				of = append(of, name)
			}
		case field == "Auto-Installed":
			auto = strings.TrimSpace(value) == "yes"
		}
	}
	end()
	return names, scanner.Err()
}

// roots are the base roots of a tree with what they take and when they were used.
func (s *Store) roots(sum string) (list []storedTree) {
	names, _ := filepath.Glob(filepath.Join(s.dir, sum, rootsName+"*"+rootEnding))
	for _, name := range names {
		if info, err := os.Stat(name); err == nil {
			list = append(list, storedTree{sum: sum, root: name, size: info.Size(), used: info.ModTime()})
		}
	}
	return list
}

// missed counts how often something was wanted that is not there, and tells
// whether it was before.
func (s *Store) missed(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.misses) >= maxMisses {
		clear(s.misses)
	}
	before := s.misses[name]
	s.misses[name] = true
	return before
}

const maxMisses = 10_000
