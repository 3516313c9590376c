package imagebuilder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sys/unix"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// download tries a few times, since mirrors fail now and then.
func (s *Store) download(ctx context.Context, src Source, to string) error {
	pauses := backoff.NewExponentialBackOff()
	pauses.InitialInterval = s.pause
	tries := 0
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		tries++
		err := s.downloadOnce(ctx, src, to)
		if err != nil {
			s.options.Log.Warn("fetch of an ImageBuilder failed", "name", src.Name, "try", tries, "error", err)
		}
		return struct{}{}, err
	}, backoff.WithMaxTries(fetchTries), backoff.WithBackOff(pauses))
	return err
}

func (s *Store) downloadOnce(ctx context.Context, src Source, to string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, src.URL, nil)
	if err != nil {
		return err
	}
	stall := time.AfterFunc(s.stall, cancel)
	defer stall.Stop()
	resp, err := s.options.Client.Do(req)
	if err != nil {
		return upstreamFailure(src, "the server does not answer (%v)", plain(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return upstreamFailure(src, "the server answered %d", resp.StatusCode)
	}
	body := &watched{r: io.LimitReader(resp.Body, maxArchive), timer: stall, stall: s.stall}
	sum, err := save(to, body)
	switch {
	case body.err != nil:
		return upstreamFailure(src, "the transfer broke after %d bytes", body.n)
	case err != nil:
		return backoff.Permanent(fault("store an ImageBuilder", err))
	case sum != src.SHA256:
		return upstreamFailure(src, "%v", errWrongSum)
	}
	return nil
}

// save writes what it reads into the file and returns its SHA-256.
func save(to string, body io.Reader) (string, error) {
	f, err := os.Create(to)
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, hash), body)
	return hex.EncodeToString(hash.Sum(nil)), errors.Join(err, f.Close())
}

// watched puts a timer off with each byte that arrives, and keeps the reader's
// error apart from the writer's.
type watched struct {
	r     io.Reader
	timer *time.Timer
	stall time.Duration
	n     int64
	err   error
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if w.n += int64(n); n > 0 {
		w.timer.Reset(w.stall)
	}
	if err != nil && err != io.EOF {
		w.err = err
	}
	return n, err
}

// What storing archives for others may take: memory, time, the network.
const (
	keepsAtOnce = 2
	keepLimit   = 10 * time.Minute
)

// takeKept takes the archive from Options.Archives. Whatever is wrong with it
// there, upstream has it too; wrong bytes are removed, so that good ones can
// take their place.
func (s *Store) takeKept(ctx context.Context, src Source, to string) bool {
	if s.options.Archives == nil || src.Key == "" {
		return false
	}
	err := s.readKept(ctx, src, to)
	if errors.Is(err, errWrongSum) {
		err = errors.Join(err, s.options.Archives.Delete(ctx, src.Key))
	}
	if err != nil && !errors.Is(err, build.ErrNotFound) {
		s.options.Log.Warn("a stored ImageBuilder could not be used", "name", src.Name, "error", err)
	}
	return err == nil
}

var errWrongSum = errors.New("its checksum is not the signed one")

func (s *Store) readKept(ctx context.Context, src Source, to string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stall := time.AfterFunc(s.stall, cancel)
	defer stall.Stop()
	r, info, err := s.options.Archives.Open(ctx, src.Key)
	if err != nil {
		return err
	}
	defer r.Close()
	body := &watched{r: io.LimitReader(r, maxArchive), timer: stall, stall: s.stall}
	sum, err := save(to, body)
	switch {
	case err != nil:
		return err
	case body.n < min(info.Size, maxArchive):
		return io.ErrUnexpectedEOF // of the transfer, not of what is stored
	case sum != src.SHA256:
		return errWrongSum
	}
	return nil
}

// keep stores the archive in Options.Archives while the build goes on. It is
// for later builds alone: if it fails, or too many are stored already, nobody
// is told. The caller may remove the file at once.
func (s *Store) keep(src Source, packed string) {
	if s.options.Archives == nil || src.Key == "" {
		return
	}
	select {
	case s.keeping <- struct{}{}:
	default:
		return
	}
	f, err := os.Open(packed)
	if err != nil {
		<-s.keeping
		return
	}
	s.fetches.Go(func() {
		defer func() { <-s.keeping }()
		defer f.Close()
		ctx, cancel := context.WithTimeout(s.ctx, keepLimit)
		defer cancel()
		if err := s.options.Archives.Put(ctx, src.Key, f, keptPolicy); err != nil {
			s.options.Log.Warn("an ImageBuilder could not be stored", "name", src.Name, "error", err)
		}
	})
}

// keptPolicy: a snapshot's archive changes under its name.
var keptPolicy = build.Policy{ContentType: "application/octet-stream", CacheControl: build.CacheBriefly, Mutable: true}

// syncDisk makes durable what was written to the folder's file system. One call
// for all of it is much faster than one for each of ten thousand files; without
// it a tree could come out of a power cut with its name and empty files.
func syncDisk(folder string) error {
	f, err := os.Open(folder)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}
