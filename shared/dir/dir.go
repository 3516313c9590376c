// Package dir keeps objects as files of one folder, for a service that is one
// process on one machine.
package dir

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// temporary is the folder of files that are being written. No key is named
// like it: "#" is not a key's character.
const temporary = "#tmp"

// maxKey is the length of the longest key, in bytes.
const maxKey = 512

var keyPattern = regexp.MustCompile(`^[A-Za-z0-9._+~,@=/-]+$`)

// Objects are the files below a folder. Their content type and cache line are
// not kept: who serves them knows both from the key.
type Objects struct {
	root *os.Root

	// folders is held while folders are made or removed and while a file gets
	// its name in one, so that no name lands in a folder that vanishes or that
	// is not durable yet.
	folders sync.Mutex
}

var _ build.Objects = (*Objects)(nil)

// Open opens the folder, which it makes if there is none, and removes what an
// earlier process did not finish writing: the folder belongs to one process at
// a time.
func Open(name string) (*Objects, error) {
	if err := os.MkdirAll(name, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of objects: %w", err)
	}
	root, err := os.OpenRoot(name)
	if err != nil {
		return nil, fmt.Errorf("open the folder of objects: %w", err)
	}
	err = root.RemoveAll(temporary)
	if err == nil {
		err = root.Mkdir(temporary, 0o700)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("empty the folder of unfinished objects: %w", err), root.Close())
	}
	return &Objects{root: root}, nil
}

// Close closes the folder. Files that were opened stay open.
func (o *Objects) Close() error { return o.root.Close() }

func valid(key string) bool {
	return len(key) <= maxKey && keyPattern.MatchString(key) && fs.ValidPath(key) && key != "."
}

// Put implements build.Objects. The bytes are on the disk before they get
// their name, and the name is before Put returns.
func (o *Objects) Put(ctx context.Context, key string, r io.Reader, policy build.Policy) error {
	if !valid(key) {
		return fmt.Errorf("%q cannot be the key of an object; see build.Objects", key)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	temp := path.Join(temporary, rand.Text())
	err := o.write(temp, r)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = o.publish(temp, key, policy.Mutable)
	}
	if e := o.root.Remove(temp); err == nil && e != nil && !errors.Is(e, fs.ErrNotExist) {
		err = e
	}
	if err != nil {
		return fmt.Errorf("store %s: %w", key, explain(err))
	}
	return nil
}

// write makes a durable file of what r has.
func (o *Objects) write(name string, r io.Reader) error {
	f, err := o.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// publish gives the file its key, durably.
func (o *Objects) publish(temp, key string, mutable bool) error {
	err := o.name(temp, key, mutable)
	if errors.Is(err, fs.ErrExist) && !mutable {
		return o.compare(temp, key)
	}
	if err != nil {
		return err
	}
	return o.sync(path.Dir(key))
}

// name fails with fs.ErrExist if the key is taken and not mutable: of many
// that store one immutable key at once, one wins.
func (o *Objects) name(temp, key string, mutable bool) error {
	o.folders.Lock()
	defer o.folders.Unlock()
	if err := o.makeFolder(path.Dir(key)); err != nil {
		return err
	}
	if mutable {
		return o.root.Rename(temp, key)
	}
	return o.root.Link(temp, key)
}

// makeFolder makes the folder and those above it, durably.
func (o *Objects) makeFolder(name string) error {
	err := o.root.Mkdir(name, 0o700)
	if errors.Is(err, fs.ErrNotExist) {
		if err = o.makeFolder(path.Dir(name)); err == nil {
			err = o.root.Mkdir(name, 0o700)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return o.sync(path.Dir(name))
}

// sync makes the names in a folder durable.
func (o *Objects) sync(folder string) error {
	f, err := o.root.Open(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it was deleted meanwhile, and the object with it
	}
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// compare returns nil if the two files are equal, and else ErrExists.
func (o *Objects) compare(temp, key string) error {
	a, _, err := o.open(temp)
	if err != nil {
		return err
	}
	defer a.Close()
	b, info, err := o.open(key)
	if err != nil {
		return err
	}
	defer b.Close()
	if !info.Mode().IsRegular() {
		return errors.New("there are objects below that key")
	}
	same, err := equal(a, b)
	if err == nil && !same {
		return build.ErrExists
	}
	return err
}

func equal(a, b io.Reader) (bool, error) {
	x, y := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, errA := io.ReadFull(a, x)
		m, errB := io.ReadFull(b, y)
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		if ended(errA) && ended(errB) {
			return true, nil
		}
		if errA != nil || errB != nil {
			return false, errors.Join(errA, errB)
		}
	}
}

func ended(err error) bool { return err == io.EOF || err == io.ErrUnexpectedEOF }

// explain maps the errors of the file system to those of build.
func explain(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: the disk that holds the objects is full; free some space (%w)", build.ErrFull, err)
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR):
		return fmt.Errorf("one key cannot be the beginning of another and \"/\" (%w)", err)
	}
	return err
}

// missing tells the errors of a name that leads nowhere, or through a file.
func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ENAMETOOLONG)
}

func (o *Objects) open(name string) (*os.File, fs.FileInfo, error) {
	f, err := o.root.Open(name)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, info, nil
}

// Open implements build.Objects. The reader is an *os.File.
func (o *Objects) Open(ctx context.Context, key string) (io.ReadCloser, build.ObjectInfo, error) {
	none := build.ObjectInfo{}
	if err := ctx.Err(); err != nil {
		return nil, none, err
	}
	if !valid(key) {
		return nil, none, build.ErrNotFound
	}
	f, info, err := o.open(key)
	if missing(err) {
		return nil, none, build.ErrNotFound
	}
	if err != nil {
		return nil, none, fmt.Errorf("open %s: %w", key, err)
	}
	if !info.Mode().IsRegular() {
		return nil, none, errors.Join(build.ErrNotFound, f.Close())
	}
	return f, objectInfo(key, info), nil
}

func objectInfo(key string, info fs.FileInfo) build.ObjectInfo {
	return build.ObjectInfo{Key: key, Size: info.Size(), Modified: info.ModTime().UTC()}
}

// Delete implements build.Objects. Folders that it leaves empty go too.
func (o *Objects) Delete(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !valid(key) {
		return nil
	}
	info, err := o.root.Lstat(key)
	if err == nil && info.Mode().IsRegular() {
		err = o.root.Remove(key)
	}
	if err != nil && !missing(err) {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	o.prune(path.Dir(key))
	return nil
}

// prune removes the folder and those above it as far as they are empty.
func (o *Objects) prune(folder string) {
	o.folders.Lock()
	defer o.folders.Unlock()
	for ; folder != "."; folder = path.Dir(folder) {
		// The slash keeps it from removing a file.
		if o.root.Remove(folder+"/") != nil {
			return
		}
	}
}

// List implements build.Objects. What is no object is passed over, and what
// vanishes meanwhile too.
func (o *Objects) List(ctx context.Context, prefix string) iter.Seq2[build.ObjectInfo, error] {
	return func(yield func(build.ObjectInfo, error) bool) {
		folder := prefix[:strings.LastIndexByte(prefix, '/')+1]
		if folder == "" || valid(strings.TrimSuffix(folder, "/")) {
			o.walk(ctx, folder, prefix, yield)
		}
	}
}

// walk yields the objects below folder, which is "" or ends in a slash, and
// tells whether to go on.
func (o *Objects) walk(ctx context.Context, folder, prefix string, yield func(build.ObjectInfo, error) bool) bool {
	keys, err := o.names(folder)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		yield(build.ObjectInfo{}, fmt.Errorf("list %q: %w", folder, err))
		return false
	}
	for _, key := range keys {
		more := true
		switch {
		case !strings.HasPrefix(key, prefix):
		case strings.HasSuffix(key, "/"):
			more = o.walk(ctx, key, prefix, yield)
		default:
			more = o.describe(key, yield)
		}
		if !more {
			return false
		}
	}
	return true
}

// describe yields one object, if it is still there.
func (o *Objects) describe(key string, yield func(build.ObjectInfo, error) bool) bool {
	info, err := o.root.Lstat(key)
	if missing(err) {
		return true
	}
	if err != nil {
		yield(build.ObjectInfo{}, fmt.Errorf("list %s: %w", key, err))
		return false
	}
	return yield(objectInfo(key, info), nil)
}

// names are the keys of the files in a folder and, with a slash at the end,
// the folders in it. With the slash they sort as the keys below them do.
func (o *Objects) names(folder string) ([]string, error) {
	f, err := o.root.Open(cmp.Or(strings.TrimSuffix(folder, "/"), "."))
	if missing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if missing(err) {
		return nil, nil
	}
	var keys []string
	for _, entry := range entries {
		key := folder + entry.Name()
		switch {
		case !valid(key):
		case entry.Type().IsRegular():
			keys = append(keys, key)
		case entry.IsDir():
			keys = append(keys, key+"/")
		}
	}
	slices.Sort(keys)
	return keys, err
}
