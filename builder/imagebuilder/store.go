// Package imagebuilder drives one OpenWrt ImageBuilder: it fetches and checks
// the archive, unpacks it once, runs make in a confined view of it, reads what
// make says, and collects what it left.
package imagebuilder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
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

	"github.com/cenkalti/backoff/v5"
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
}

// Options of a Store.
type Options struct {
	Client *http.Client
	// Budget is how many bytes the unpacked trees may take together before
	// those used longest ago are removed. Trees in use are never removed.
	Budget int64
	Log    *slog.Logger
}

// Limits of what comes from upstream.
const (
	maxArchive = 2 << 30
	stallTime  = 30 * time.Second // without a byte
	fetchTries = 4
)

// Store keeps unpacked ImageBuilders by the checksum of their archive.
//
// Below its folder, <sha256>/tree is a tree that was verified whole before it
// was moved there; quarantine-* is what is being fetched.
type Store struct {
	dir     string
	options Options
	flights singleflight.Group

	mu   sync.Mutex
	used map[string]int // trees in use, by checksum
}

// OpenStore opens the folder and removes what an earlier process left half done.
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
	return &Store{dir: dir, options: options, used: map[string]int{}}, nil
}

const quarantine = "quarantine-"

// Tree is an unpacked, verified ImageBuilder. Nobody writes to it: jobs get
// views. Release gives it back to the store.
type Tree struct {
	Path    string
	release func()
}

// Release tells the store that the tree may be removed.
func (t *Tree) Release() { t.release() }

var checksumPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Tree returns the unpacked ImageBuilder, fetching it if it is not there.
// Many callers at once share one fetch. stage is told what is going on.
// Errors are *build.Failure where upstream or the disk is to blame.
func (s *Store) Tree(ctx context.Context, src Source, stage func(build.Stage)) (*Tree, error) {
	if !checksumPattern.MatchString(src.SHA256) {
		return nil, fmt.Errorf("%q is not a SHA-256 checksum", src.SHA256)
	}
	tree := s.hold(src.SHA256)
	if _, err := os.Stat(tree.Path); err == nil {
		s.touch(src.SHA256)
		return tree, nil
	}
	stage(build.StageDownload)
	flight := s.flights.DoChan(src.SHA256, func() (any, error) {
		return nil, s.fetch(context.WithoutCancel(ctx), src, stage)
	})
	var err error
	select {
	case result := <-flight:
		err = result.Err
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		tree.Release()
		return nil, err
	}
	s.trim()
	return tree, nil
}

func (s *Store) hold(sum string) *Tree {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used[sum]++
	release := sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.used[sum]--; s.used[sum] == 0 {
			delete(s.used, sum)
		}
	})
	return &Tree{Path: filepath.Join(s.dir, sum, "tree"), release: release}
}

// touch notes the time of use, by which trim chooses.
func (s *Store) touch(sum string) {
	now := time.Now()
	_ = os.Chtimes(filepath.Join(s.dir, sum), now, now) // only makes the choice worse
}

// fetch brings the archive into a quarantine folder and makes it visible when
// its checksum held and all of it is unpacked.
func (s *Store) fetch(ctx context.Context, src Source, stage func(build.Stage)) error {
	ctx, cancel := context.WithTimeout(ctx, time.Hour)
	defer cancel()
	folder, err := os.MkdirTemp(s.dir, quarantine)
	if err != nil {
		return diskFailure(err)
	}
	defer sandbox.RemoveAll(folder)
	packed := filepath.Join(folder, "archive")
	if err := s.download(ctx, src, packed); err != nil {
		return err
	}
	stage(build.StageUnpack)
	if err := s.unpack(ctx, src, folder, packed); err != nil {
		return err
	}
	target := filepath.Join(s.dir, src.SHA256)
	if err := os.Rename(folder, target); err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, syscall.ENOTEMPTY) {
		return diskFailure(err)
	}
	return nil
}

// download tries a few times, since mirrors fail now and then.
func (s *Store) download(ctx context.Context, src Source, to string) error {
	tries := 0
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		tries++
		err := s.downloadOnce(ctx, src, to)
		if err != nil {
			s.options.Log.Warn("fetch of an ImageBuilder failed", "name", src.Name, "try", tries, "error", err)
		}
		return struct{}{}, err
	}, backoff.WithMaxTries(fetchTries), backoff.WithBackOff(backoff.NewExponentialBackOff()))
	return err
}

func (s *Store) downloadOnce(ctx context.Context, src Source, to string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, src.URL, nil)
	if err != nil {
		return err
	}
	stall := time.AfterFunc(stallTime, cancel)
	defer stall.Stop()
	resp, err := s.options.Client.Do(req)
	if err != nil {
		return upstreamFailure(src, "the server does not answer (%v)", plain(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return upstreamFailure(src, "the server answered %d", resp.StatusCode)
	}
	f, err := os.Create(to)
	if err != nil {
		return backoff.Permanent(diskFailure(err))
	}
	defer f.Close()
	hash := sha256.New()
	body := &watched{r: io.LimitReader(resp.Body, maxArchive), timer: stall}
	n, err := io.Copy(io.MultiWriter(f, hash), body)
	switch {
	case IsFull(err):
		return backoff.Permanent(diskFailure(err))
	case err != nil:
		return upstreamFailure(src, "the transfer broke after %d bytes", n)
	case hex.EncodeToString(hash.Sum(nil)) != src.SHA256:
		return upstreamFailure(src, "its checksum is not the signed one")
	}
	return f.Close()
}

// watched puts a timer off with each byte that arrives.
type watched struct {
	r     io.Reader
	timer *time.Timer
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if n > 0 {
		w.timer.Reset(stallTime)
	}
	return n, err
}

func (s *Store) unpack(ctx context.Context, src Source, folder, packed string) error {
	f, err := os.Open(packed)
	if err != nil {
		return diskFailure(err)
	}
	defer f.Close()
	tree := filepath.Join(folder, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		return diskFailure(err)
	}
	if err := archive.Unpack(ctx, f, src.Name, tree, archive.Limits{}, archive.StripTop); err != nil {
		if IsFull(err) {
			return diskFailure(err)
		}
		return upstreamFailure(src, "it cannot be unpacked (%v)", err)
	}
	if err := os.Remove(packed); err != nil {
		return diskFailure(err)
	}
	size, err := treeSize(tree)
	if err != nil {
		return diskFailure(err)
	}
	return os.WriteFile(filepath.Join(folder, "size"), []byte(strconv.FormatInt(size, 10)), 0o644)
}

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
	s.mu.Lock()
	defer s.mu.Unlock()
	trees, total := s.trees()
	for _, tree := range trees {
		if total <= s.options.Budget {
			return
		}
		if s.used[tree.sum] > 0 {
			continue
		}
		// Moved away first: a tree is visible whole or not at all.
		away := filepath.Join(s.dir, quarantine+tree.sum)
		if err := os.Rename(filepath.Join(s.dir, tree.sum), away); err != nil {
			s.options.Log.Warn("an ImageBuilder cannot be removed", "error", err)
			continue
		}
		total -= tree.size
		if err := sandbox.RemoveAll(away); err != nil {
			s.options.Log.Warn("an ImageBuilder cannot be removed", "error", err)
		}
	}
}

type storedTree struct {
	sum  string
	size int64
	used time.Time
}

// trees lists what is stored, that used longest ago first.
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
		text, err := os.ReadFile(filepath.Join(s.dir, entry.Name(), "size"))
		if err != nil {
			continue
		}
		size, _ := strconv.ParseInt(string(text), 10, 64)
		list = append(list, storedTree{entry.Name(), size, info.ModTime()})
		total += size
	}
	sortByUse(list)
	return list, total
}

func upstreamFailure(src Source, format string, args ...any) error {
	return build.Fail(build.KindUpstream, "The ImageBuilder %s could not be fetched: %s. This is tried again by itself.", src.Name, fmt.Sprintf(format, args...))
}

func diskFailure(err error) error {
	if IsFull(err) {
		return build.Fail(build.KindDisk, "The server's disk is full. Try again later, or tell its operator.")
	}
	return fmt.Errorf("store an ImageBuilder: %w", err)
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
