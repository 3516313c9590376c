package upstream

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// writer writes files below one folder and keeps the first error. While sums
// is not nil it notes each file below sumsDir there.
type writer struct {
	root    *os.Root
	key     usign.SecretKey
	sums    usign.Sums
	sumsDir string
	err     error
}

func newWriter(dir string, key usign.SecretKey) (*writer, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	return &writer{root: root, key: key}, err
}

func (w *writer) fail(err error) {
	if w.err == nil {
		w.err = err
	}
}

func (w *writer) data(name string, b []byte) {
	w.file(name, File{Data: b})
}

// file writes f under that name unless it is there already, and returns its
// size and sum.
func (w *writer) file(name string, f File) (size int64, sum [sha256.Size]byte) {
	if w.err != nil {
		return 0, sum
	}
	size, sum, err := f.digest()
	if err == nil && !w.holds(name, size, sum) {
		err = w.replace(name, f)
	}
	if err != nil {
		w.fail(fmt.Errorf("write %s: %w", name, err))
	}
	if rel, ok := strings.CutPrefix(name, w.sumsDir+"/"); ok && w.sums != nil {
		w.sums[rel] = sum
	}
	return size, sum
}

// holds tells whether the file of that name has this content already.
func (w *writer) holds(name string, size int64, sum [sha256.Size]byte) bool {
	file, err := w.root.Open(name)
	if err != nil {
		return false
	}
	defer file.Close()
	gotSize, gotSum, err := digest(file)
	return err == nil && gotSize == size && gotSum == sum
}

// replace writes a temporary file and renames it. A file given by its path is
// copied, since a link would share later changes.
func (w *writer) replace(name string, f File) error {
	if err := w.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	source, err := f.open()
	if err != nil {
		return err
	}
	defer source.Close()
	temp := path.Join(path.Dir(name), ".new-"+path.Base(name))
	file, err := w.root.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, source)
	if err = errors.Join(err, file.Close()); err == nil {
		err = w.root.Rename(temp, name)
	}
	if err != nil {
		return errors.Join(err, ignoreNotExist(w.root.Remove(temp)))
	}
	return nil
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (f File) open() (io.ReadCloser, error) {
	if f.Path != "" {
		return os.Open(f.Path)
	}
	return io.NopCloser(bytes.NewReader(f.Data)), nil
}

func (f File) digest() (int64, [sha256.Size]byte, error) {
	r, err := f.open()
	if err != nil {
		return 0, [sha256.Size]byte{}, err
	}
	defer r.Close()
	return digest(r)
}

func digest(r io.Reader) (int64, [sha256.Size]byte, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return n, [sha256.Size]byte(h.Sum(nil)), err
}
