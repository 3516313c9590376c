// Package archive unpacks a tar archive from outside into a folder that it cannot leave.
package archive

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

var (
	// ErrCorrupt: the archive is truncated, damaged, or not of the format that its name says.
	ErrCorrupt = errors.New("the archive is damaged or incomplete: fetch it again")
	// ErrUnsafe: the archive holds something that an ImageBuilder has no use for, such as a name outside of the
	// folder or a device node.
	ErrUnsafe = errors.New("the archive holds an entry that is not allowed")
	// ErrLimit: the archive is larger than the Limits allow.
	ErrLimit = errors.New("the archive is larger than the limit")
)

// Limits bound what an archive may cost. A field that is zero means its default.
type Limits struct {
	Bytes     int64 // of the tar stream, headers included, and of all files together; default 8 GiB
	FileBytes int64 // of one file; default 2 GiB
	Entries   int   // default 300,000 (a real ImageBuilder has some 20,000 to 60,000)
	Path      int   // bytes of a name or of a link's target; default 1,024
}

func (l Limits) withDefaults() Limits {
	if l.Bytes == 0 {
		l.Bytes = 8 << 30
	}
	if l.FileBytes == 0 {
		l.FileBytes = 2 << 30
	}
	if l.Entries == 0 {
		l.Entries = 300_000
	}
	if l.Path == 0 {
		l.Path = 1024
	}
	return l
}

// An Option changes how Unpack reads the names of an archive.
type Option func(*unpacker)

// StripTop leaves away the folder that all entries lie in. An archive with more than one top folder, or with a
// file beside it, is then ErrUnsafe.
func StripTop(u *unpacker) { u.stripTop = true }

// Unpack reads the archive r, whose format is the ending of name (.tar.gz, .tar.xz or .tar.zst), into dest, an
// existing empty folder.
//
// Regular files, folders, symbolic links and hard links are unpacked, with permissions (no set-id or sticky bits)
// and times of change; owners are not. Symbolic links are kept whatever they point to, since real ImageBuilders
// link to tools of the host, but no entry is ever written or linked through one.
//
// Errors: ErrCorrupt, ErrUnsafe, ErrLimit, the context's, those of r and those of the disk. After an error the
// caller removes dest, which then holds a part of the archive. Unpack returns only after a Read of r under way has.
func Unpack(ctx context.Context, r io.Reader, name, dest string, limits Limits, options ...Option) error {
	limits = limits.withDefaults()
	source := &source{ctx: ctx, r: r}
	stream, err := decompress(source, name, limits)
	if err == nil {
		err = unpackTar(stream, dest, limits, options)
		stream.close()
	}
	if errors.Is(err, ErrCorrupt) && source.err != nil {
		err = source.err
	}
	if err != nil {
		return fmt.Errorf("unpacking the archive %s: %w", name, err)
	}
	return nil
}

func unpackTar(stream *stream, dest string, limits Limits, options []Option) error {
	u, err := newUnpacker(dest, limits)
	if err != nil {
		return err
	}
	defer u.close()
	for _, option := range options {
		option(u)
	}
	entries := tar.NewReader(stream)
	for {
		header, err := entries.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return stream.failure(err)
		}
		if err := u.entry(header, entries, stream); err != nil {
			return fmt.Errorf("%q: %w", header.Name, err)
		}
	}
	if err := stream.finish(); err != nil {
		return err
	}
	return u.finishFolders()
}

// source remembers why reading the input failed, since decompressors do not always pass that on.
type source struct {
	ctx context.Context
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	if s.err == nil {
		s.err = s.ctx.Err()
	}
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// decompress opens the stream by the ending of the name, which the first bytes must confirm.
func decompress(r io.Reader, name string, limits Limits) (*stream, error) {
	buffered := bufio.NewReaderSize(r, 256<<10)
	for _, f := range formats {
		if !strings.HasSuffix(name, ".tar."+f.ending) {
			continue
		}
		if head, _ := buffered.Peek(len(f.magic)); string(head) != f.magic {
			return nil, fmt.Errorf("%w (its first bytes are not those of %s)", ErrCorrupt, f.ending)
		}
		plain, err := f.open(buffered)
		if err != nil {
			return nil, fmt.Errorf("%w (%w)", ErrCorrupt, err)
		}
		return newStream(plain, limits.Bytes), nil
	}
	return nil, fmt.Errorf("%w (the name must end in .tar.gz, .tar.xz or .tar.zst)", ErrCorrupt)
}

// localName gives the entry's name as clean path elements below the folder; "." is the folder itself.
func (u *unpacker) localName(name string) (string, error) {
	if name == "" || len(name) > u.limits.Path {
		return "", fmt.Errorf("%w: its name has %d bytes, allowed are %d", ErrUnsafe, len(name), u.limits.Path)
	}
	if strings.HasPrefix(name, "/") || strings.ContainsFunc(name, isControl) {
		return "", fmt.Errorf("%w: its name is absolute or has control characters", ErrUnsafe)
	}
	for element := range strings.SplitSeq(name, "/") {
		if element == ".." || len(element) > 255 {
			return "", fmt.Errorf("%w: its name has a .. or an element of more than 255 bytes", ErrUnsafe)
		}
	}
	name = path.Clean(name)
	if !u.stripTop || name == "." {
		return name, nil
	}
	return u.withoutTop(name)
}

func isControl(c rune) bool { return c < ' ' || c == 0x7f }

func (u *unpacker) withoutTop(name string) (string, error) {
	top, rest, below := strings.Cut(name, "/")
	if u.top == "" {
		u.top = top
	}
	if top != u.top {
		return "", fmt.Errorf("%w: it lies beside the top folder %q", ErrUnsafe, u.top)
	}
	if !below {
		return ".", nil
	}
	return rest, nil
}

// parent opens the folder that holds name, making what is missing. Folders are opened one below the other and only
// if this archive made them as folders, so a symbolic link is never followed; os.Root guards the same a second time.
func (u *unpacker) parent(name string) (*os.Root, error) {
	folder := path.Dir(name)
	if folder == u.openName {
		return u.open, nil
	}
	if err := u.makeFolders(folder); err != nil {
		return nil, err
	}
	opened, err := u.root.OpenRoot(folder)
	if err != nil {
		return nil, err
	}
	if u.open != u.root {
		_ = u.open.Close()
	}
	u.open, u.openName = opened, folder
	return opened, nil
}
