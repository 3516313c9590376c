package archive

import (
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
)

// The windows that the decompressors may allocate: what `xz -9` and `zstd --ultra -20` (which OpenWrt uses) need,
// and one step more for zstd.
const (
	maxDictionaryXZ = 64 << 20
	maxWindowZstd   = 256 << 20
)

var formats = []struct {
	ending, magic string
	open          func(io.Reader) (io.ReadCloser, error)
}{
	{"gz", "\x1f\x8b", func(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) }},
	{"xz", "\xfd7zXZ\x00", openXZ},
	{"zst", "\x28\xb5\x2f\xfd", openZstd},
}

func openXZ(r io.Reader) (io.ReadCloser, error) {
	plain, err := xz.NewReader(r, maxDictionaryXZ)
	return io.NopCloser(plain), err
}

func openZstd(r io.Reader) (io.ReadCloser, error) {
	plain, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindowZstd))
	if err != nil {
		return nil, err
	}
	return plain.IOReadCloser(), nil
}

// stream is the plain tar stream. It stops at a limit, reads ahead (so that decompressing and writing overlap), and
// knows how many zero bytes it ended in.
type stream struct {
	left  int64
	zeros int64

	chunk, rest   []byte      // the chunk being read, and what is left of it
	filled, spare chan []byte // chunks on the way to Read and back
	end           error       // why filled was closed: io.EOF or a decompressor's error; set before that
	stop, stopped chan struct{}
}

const (
	chunkSize  = 256 << 10
	chunkCount = 8
)

func newStream(plain io.ReadCloser, limit int64) *stream {
	s := &stream{
		left:   limit,
		filled: make(chan []byte, chunkCount), spare: make(chan []byte, chunkCount),
		stop: make(chan struct{}), stopped: make(chan struct{}),
	}
	for range chunkCount {
		s.spare <- make([]byte, chunkSize)
	}
	go s.readAhead(plain)
	return s
}

func (s *stream) readAhead(plain io.ReadCloser) {
	defer close(s.stopped)
	defer plain.Close()
	defer close(s.filled)
	for s.end == nil {
		select {
		case <-s.stop:
			s.end = io.ErrClosedPipe
		case chunk := <-s.spare:
			n := 0
			for n < chunkSize && s.end == nil {
				var more int
				more, s.end = plain.Read(chunk[n:chunkSize])
				n += more
			}
			s.filled <- chunk[:n] // never blocks: there are as many places as chunks
		}
	}
}

// close ends reading ahead and waits for it, so that the input is not touched any more.
func (s *stream) close() {
	close(s.stop)
	<-s.stopped
}

func (s *stream) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		if s.chunk != nil {
			s.spare <- s.chunk
		}
		chunk, more := <-s.filled
		s.chunk, s.rest = chunk, chunk
		if !more {
			return 0, s.end
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	if s.left -= int64(n); s.left < 0 {
		return 0, fmt.Errorf("%w of the whole", ErrLimit)
	}
	s.countZeros(p[:n])
	return n, nil
}

func (s *stream) countZeros(p []byte) {
	for i := len(p); i > 0; i-- {
		if p[i-1] != 0 {
			s.zeros = int64(len(p) - i)
			return
		}
	}
	s.zeros += int64(len(p))
}

// finish reads what follows the last entry, so that the decompressor compares its checksums. A tar archive ends in
// two blocks of zeros: without them it was cut before it was compressed.
func (s *stream) finish() error {
	if _, err := io.Copy(io.Discard, s); err != nil {
		return s.failure(err)
	}
	if s.zeros < 1024 {
		return fmt.Errorf("%w (its end is missing)", ErrCorrupt)
	}
	return nil
}

// failure names an error of reading the stream, by the decompressor or the tar reader.
func (s *stream) failure(err error) error {
	if errors.Is(err, ErrLimit) {
		return err
	}
	return fmt.Errorf("%w (%w)", ErrCorrupt, err)
}
