// Package imagebuilder drives one OpenWrt ImageBuilder: it fetches and checks
// the archive, unpacks it once, runs make in a confined view of it, reads what
// make says, and collects what it left.
package imagebuilder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/attended-sysupgrade/sysup/builder/archive"
	"github.com/attended-sysupgrade/sysup/builder/sandbox"
	"github.com/attended-sysupgrade/sysup/shared/build"
)

// Source is where an ImageBuilder archive lies and what it must be. SHA256
// comes from the target's signed sha256sums.
type Source struct {
	URL    string
	Name   string // file name; its ending says how it is packed
	SHA256 string // 64 hex digits
	Key    string // where it lies in Options.Archives, "" for nowhere
}

// Options of a Store.
type Options struct {
	Client *http.Client
	// Budget is how many bytes the unpacked trees may take together before
	// those used longest ago are removed. Trees in use are never removed.
	Budget int64
	// Archives keeps archives as they came from upstream, for machines that
	// begin with an empty disk; nil for none. Nothing in it is trusted.
	Archives build.Objects
	Log      *slog.Logger
}

// Limits of what comes from upstream.
const (
	maxArchive = 2 << 30
	fetchLimit = time.Hour
	fetchTries = 4
)

// Store keeps unpacked ImageBuilders by the checksum of their archive.
//
// Below its folder, <sha256>/tree is a tree that was verified whole before it
// was moved there; quarantine-* is what is being fetched or removed.
type Store struct {
	dir     string
	options Options
	stall   time.Duration // how long a transfer may go without a byte
	pause   time.Duration // before the second try; longer each time
	flights singleflight.Group

	keeping chan struct{} // a place for each archive that is being stored

	// A fetch outlives the job that asked for it, since others may wait for
	// the same tree. It ends with the store, as does the storing of archives.
	ctx     context.Context
	stop    context.CancelFunc
	fetches sync.WaitGroup

	mu     sync.Mutex
	used   map[string]map[*Tree]bool // trees that were asked for and not released, by checksum
	misses map[string]bool           // base roots that were wanted and not there

	preparing sync.Mutex // held by who prepares a tree
}

// OpenStore opens the folder and removes what an earlier process left half
// done. The caller calls Close.
func OpenStore(dir string, options Options) (*Store, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the folder for ImageBuilders: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, quarantine+"*"))
	if err != nil {
		return nil, err
	}
	for _, folder := range left {
		if err := sandbox.RemoveAll(folder); err != nil {
			return nil, fmt.Errorf("remove a half fetched ImageBuilder: %w", err)
		}
	}
	if left, err = filepath.Glob(filepath.Join(dir, "*", ".new-*")); err != nil {
		return nil, err
	}
	for _, file := range left {
		if err := os.Remove(file); err != nil {
			return nil, fmt.Errorf("remove a half written file: %w", err)
		}
	}
	s := &Store{
		dir: dir, options: options, stall: 30 * time.Second, pause: time.Second,
		keeping: make(chan struct{}, keepsAtOnce), used: map[string]map[*Tree]bool{},
		misses: map[string]bool{},
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s, nil
}

// Close ends what is being fetched and waits until nothing of it is left.
func (s *Store) Close() {
	s.stop()
	s.fetches.Wait()
}

const quarantine = "quarantine-"

// Tree is an unpacked, verified ImageBuilder. Nobody writes to it: jobs get
// views.
type Tree struct {
	Path string

	store *Store
	sum   string
	stage func(build.Stage)
}

// Release tells the store that the tree may be removed.
func (t *Tree) Release() {
	t.store.mu.Lock()
	defer t.store.mu.Unlock()
	delete(t.store.used[t.sum], t)
	if len(t.store.used[t.sum]) == 0 {
		delete(t.store.used, t.sum)
	}
}

var checksumPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Tree returns the unpacked ImageBuilder, fetching it if it is not there.
// Many callers at once share one fetch, and stage of each is told what is going
// on. The caller releases the tree. Errors are *build.Failure where upstream or
// the disk is to blame.
func (s *Store) Tree(ctx context.Context, src Source, stage func(build.Stage)) (*Tree, error) {
	if !checksumPattern.MatchString(src.SHA256) {
		return nil, fmt.Errorf("%q is not a SHA-256 checksum", src.SHA256)
	}
	tree := s.hold(src.SHA256, stage)
	if _, err := os.Stat(tree.Path); err == nil {
		s.touch(src.SHA256)
		return tree, nil
	}
	stage(build.StageDownload)
	if err := s.share(ctx, src); err != nil {
		tree.Release()
		return nil, err
	}
	s.trim()
	return tree, nil
}

// share waits for the fetch that is under way, or starts it.
func (s *Store) share(ctx context.Context, src Source) error {
	s.fetches.Add(1)
	flight := s.flights.DoChan(src.SHA256, func() (any, error) { return nil, s.fetch(s.ctx, src) })
	ended := make(chan error, 1)
	go func() {
		defer s.fetches.Done()
		ended <- (<-flight).Err
	}()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// hold keeps the tree of that checksum, whether it is there yet or not.
func (s *Store) hold(sum string, stage func(build.Stage)) *Tree {
	s.mu.Lock()
	defer s.mu.Unlock()
	tree := &Tree{Path: filepath.Join(s.dir, sum, "tree"), store: s, sum: sum, stage: stage}
	if s.used[sum] == nil {
		s.used[sum] = map[*Tree]bool{}
	}
	s.used[sum][tree] = true
	return tree
}

// tell tells everybody who waits for the tree what is going on.
func (s *Store) tell(sum string, stage build.Stage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for tree := range s.used[sum] {
		tree.stage(stage)
	}
}

// touch notes the time of use, by which trim chooses.
func (s *Store) touch(sum string) {
	now := time.Now()
	_ = os.Chtimes(filepath.Join(s.dir, sum), now, now) // only makes the choice worse
}

// fetch brings the archive into a quarantine folder and makes it visible when
// its checksum held and all of it is unpacked.
func (s *Store) fetch(ctx context.Context, src Source) error {
	ctx, cancel := context.WithTimeout(ctx, fetchLimit)
	defer cancel()
	folder, err := os.MkdirTemp(s.dir, quarantine)
	if err != nil {
		return fault("store an ImageBuilder", err)
	}
	defer s.remove(folder)
	packed := filepath.Join(folder, "archive")
	kept := s.takeKept(ctx, src, packed)
	if !kept {
		if err := s.download(ctx, src, packed); err != nil {
			return err
		}
	}
	s.tell(src.SHA256, build.StageUnpack)
	if err := s.unpack(ctx, src, folder, packed, !kept); err != nil {
		return err
	}
	if err := syncDisk(folder); err != nil {
		return fault("store an ImageBuilder", err)
	}
	target := filepath.Join(s.dir, src.SHA256)
	if err := os.Rename(folder, target); err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, syscall.ENOTEMPTY) {
		return fault("store an ImageBuilder", err)
	}
	return nil
}

func (s *Store) remove(folder string) {
	if err := sandbox.RemoveAll(folder); err != nil {
		s.options.Log.Warn("a folder of an ImageBuilder cannot be removed", "error", err)
	}
}

// unpack makes the tree of an archive, which it removes. keep says that the
// archive is to be stored for others.
func (s *Store) unpack(ctx context.Context, src Source, folder, packed string, keep bool) error {
	f, err := os.Open(packed)
	if err != nil {
		return fault("open an ImageBuilder", err)
	}
	defer f.Close()
	tree := filepath.Join(folder, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		return fault("unpack an ImageBuilder", err)
	}
	if err := archive.Unpack(ctx, f, src.Name, tree, archive.Limits{}, archive.StripTop); err != nil {
		return unpackFailure(src, err)
	}
	if keep {
		s.keep(src, packed)
	}
	if err := os.Remove(packed); err != nil {
		return fault("unpack an ImageBuilder", err)
	}
	size, err := treeSize(tree)
	if err != nil {
		return fault("measure an ImageBuilder", err)
	}
	err = os.WriteFile(filepath.Join(folder, sizeFile), []byte(strconv.FormatInt(size, 10)), 0o644)
	return fault("store an ImageBuilder", err)
}

// unpackFailure tells an archive that is no good from a fault of this machine.
func unpackFailure(src Source, err error) error {
	for _, reason := range []error{archive.ErrCorrupt, archive.ErrUnsafe, archive.ErrLimit} {
		if errors.Is(err, reason) {
			return upstreamFailure(src, "it cannot be unpacked: %v", reason)
		}
	}
	return fault("unpack an ImageBuilder", err)
}

// sizeFile lies beside a tree and holds its size in bytes.
const sizeFile = "size"

// treeSize is what the files of a tree take, in bytes.
func treeSize(tree string) (size int64, err error) {
	err = filepath.WalkDir(tree, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		size += info.Size()
		return nil
	})
	return size, err
}

// trim removes the trees used longest ago until the rest keeps the budget.
func (s *Store) trim() {
	for _, folder := range s.discard() {
		s.remove(folder)
	}
}

// discard moves what is too much away, so that a tree is visible whole or not
// at all, and returns where it is now.
func (s *Store) discard() (folders []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	trees, total := s.trees()
	for _, tree := range trees {
		if total <= s.options.Budget {
			break
		}
		if tree.root != "" {
			_ = os.Remove(strings.TrimSuffix(tree.root, rootEnding) + autoEnding)
			if os.Remove(tree.root) == nil { // who reads it now has it open
				total -= tree.size
			}
			continue
		}
		if s.used[tree.sum] != nil {
			continue
		}
		away, err := os.MkdirTemp(s.dir, quarantine)
		if err == nil {
			folders = append(folders, away)
			err = os.Rename(filepath.Join(s.dir, tree.sum), filepath.Join(away, "old"))
		}
		if err != nil {
			s.options.Log.Warn("an ImageBuilder cannot be removed", "error", err)
			break
		}
		total -= tree.size
	}
	return folders
}

type storedTree struct {
	sum  string
	root string // the file, if it is a base root of the tree
	size int64
	used time.Time
}

// trees lists what is stored, trees and their base roots, that used longest ago first.
func (s *Store) trees() (list []storedTree, total int64) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, 0
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || !checksumPattern.MatchString(entry.Name()) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(s.dir, entry.Name(), sizeFile))
		if err != nil {
			continue
		}
		size, _ := strconv.ParseInt(string(text), 10, 64)
		list = append(list, storedTree{sum: entry.Name(), size: size, used: info.ModTime()})
		list = append(list, s.roots(entry.Name())...)
	}
	for _, one := range list {
		total += one.size
	}
	sortByUse(list)
	return list, total
}

func upstreamFailure(src Source, format string, args ...any) error {
	return build.Fail(build.KindUpstream, "The ImageBuilder %s could not be fetched: %s. This is tried again by itself.", src.Name, fmt.Sprintf(format, args...))
}

// fault is an error of this machine: a full disk is one that clients are told
// of, any other is for the log alone.
func fault(doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case IsFull(err):
		return DiskFull()
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// DiskFull is the failure of a job that found no space.
func DiskFull() *build.Failure {
	return build.Fail(build.KindDisk, "The server's disk is full. Try again later, or tell its operator.")
}

// IsFull tells whether the error comes from a disk without space.
func IsFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, build.ErrFull)
}

// plain leaves the URL out of an HTTP client's error: it may be internal.
func plain(err error) string {
	text := err.Error()
	if i := strings.LastIndex(text, ": "); i >= 0 {
		return text[i+2:]
	}
	return text
}
