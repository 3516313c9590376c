package aws

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
)

// memoryLimit is how much of a reader that cannot be read twice is held in
// memory.
const memoryLimit = 4 << 20

// content is what is to be stored, in a form that can be read in any order and
// again. parts is nil for what is uploaded as one.
type content struct {
	bytes io.ReaderAt
	start int64 // of the content in bytes
	size  int64
	sum   [sha256.Size]byte
	parts []part
	close func()
}

type part struct {
	offset, size int64
	sum          [sha256.Size]byte
}

func (c *content) section(offset, size int64) *io.SectionReader {
	return io.NewSectionReader(c.bytes, c.start+offset, size)
}

// load reads r to its end. A file or the like is only hashed, from where it
// stands. What is two parts or more is divided.
func load(r io.Reader, partSize int64) (*content, error) {
	c := &content{close: func() {}}
	if !c.direct(r) {
		if err := c.spool(r); err != nil {
			return nil, err
		}
	}
	if err := c.hash(partSize); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// direct tells whether r can be read in any order.
func (c *content) direct(r io.Reader) bool {
	file, ok := r.(interface {
		io.ReaderAt
		io.Seeker
	})
	if !ok {
		return false
	}
	start, err := file.Seek(0, io.SeekCurrent)
	if err != nil { // a pipe
		return false
	}
	end, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return false
	}
	if _, err = file.Seek(start, io.SeekStart); err != nil {
		return false
	}
	c.bytes, c.start, c.size = file, start, max(0, end-start)
	return true
}

// spool copies r to memory or, if that is too much, to a file without a name.
func (c *content) spool(r io.Reader) error {
	var memory bytes.Buffer
	n, err := io.CopyN(&memory, r, memoryLimit)
	if errors.Is(err, io.EOF) {
		c.bytes, c.size = bytes.NewReader(memory.Bytes()), n
		return nil
	}
	if err != nil {
		return err
	}
	f, err := os.CreateTemp("", "sysup-upload-")
	if err != nil {
		return fmt.Errorf("copy it to a temporary file: %w", err)
	}
	c.close = func() { f.Close() }
	err = os.Remove(f.Name())
	if err == nil {
		c.size, err = io.Copy(f, io.MultiReader(&memory, r))
	}
	if err != nil {
		c.close()
		return fmt.Errorf("copy it to a temporary file: %w", err)
	}
	c.bytes = f
	return nil
}

// hash reads everything once. The engine holds what it gets against the sums.
func (c *content) hash(partSize int64) error {
	whole := sha256.New()
	for offset := int64(0); c.size >= 2*partSize && offset < c.size; {
		p := part{offset: offset, size: min(c.size-offset, max(partSize, (c.size+maxParts-1)/maxParts))}
		h := sha256.New()
		if _, err := io.Copy(io.MultiWriter(whole, h), c.section(p.offset, p.size)); err != nil {
			return err
		}
		p.sum = [sha256.Size]byte(h.Sum(nil))
		c.parts = append(c.parts, p)
		offset += p.size
	}
	if c.parts == nil {
		if _, err := io.Copy(whole, c.section(0, c.size)); err != nil {
			return err
		}
	}
	c.sum = [sha256.Size]byte(whole.Sum(nil))
	return nil
}

// checkedReader holds what was read against the sum that was stored with it.
type checkedReader struct {
	io.ReadCloser
	key, want string
	hash      hash.Hash
}

func (r *checkedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.hash.Write(p[:n])
	if err == io.EOF && hex.EncodeToString(r.hash.Sum(nil)) != r.want {
		return n, fmt.Errorf("%s came back with other bytes than were stored; read it again", r.key)
	}
	return n, err
}
