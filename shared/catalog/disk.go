package catalog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
)

// form is the version of what is written into the cache. Files of earlier ones
// can be read until they are fetched anew, which is done as soon as the
// upstream is asked about them.
const form = 3

// meta is the first line of a file in the cache: of which upstream file the
// rest was made, and what that file's sum and its validators were.
type meta struct {
	Form     int    `json:"form"`
	Source   string `json:"source"` // the whole address
	ETag     string `json:"etag,omitempty"`
	Modified string `json:"modified,omitempty"`
	Sum      string `json:"sum"` // SHA-256 of the upstream's bytes
}

// files are those of a cache, or a part of them.
type files interface {
	// read returns a file's distillate, or fs.ErrNotExist.
	read(key string) (meta, string, error)
	// meta returns of which upstream file it was made, or the zero meta if it
	// is not there in today's form.
	meta(key string) meta
	// write makes or replaces a file.
	write(key string, m meta, text []byte) error
	// drop removes a file that turned out to be of no use.
	drop(key string)
}

const (
	maxMeta = 8 << 10
	// Names of our own begin with a dot, which no version, target or feed does.
	tmpFolder = ".tmp"
)

// disk is the cache folder: one file for each upstream file that is used,
// holding what was distilled from it. A file is replaced whole or not at all.
type disk struct {
	root    *os.Root
	base    string // files of another upstream are as good as none
	pending atomic.Int64
}

func openDisk(dir, base string) (*disk, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the catalogue's cache folder: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the catalogue's cache folder: %w", err)
	}
	// What a crash left half written.
	err = errors.Join(root.RemoveAll(tmpFolder), root.MkdirAll(tmpFolder, 0o755))
	if err != nil {
		return nil, fmt.Errorf("clean the catalogue's cache folder: %w", err)
	}
	return &disk{root: root, base: base}, nil
}

func (d *disk) read(key string) (meta, string, error) {
	b, err := d.root.ReadFile(filepath.FromSlash(key))
	if err != nil {
		return meta{}, "", err
	}
	head, body, _ := bytes.Cut(b, []byte("\n"))
	m, err := d.parseMeta(head)
	return m, string(body), err
}

func (d *disk) drop(key string) { d.root.Remove(filepath.FromSlash(key)) }

// meta is a file's first line.
func (d *disk) meta(key string) meta {
	f, err := d.root.Open(filepath.FromSlash(key))
	if err != nil {
		return meta{}
	}
	defer f.Close()
	b := make([]byte, maxMeta)
	n, _ := f.Read(b)
	head, _, _ := bytes.Cut(b[:n], []byte("\n"))
	m, _ := d.parseMeta(head)
	return m.today()
}

func (d *disk) parseMeta(line []byte) (meta, error) {
	var m meta
	if json.Unmarshal(line, &m) != nil || !m.usable(d.base) {
		return meta{}, fs.ErrNotExist
	}
	return m, nil
}

// usable tells whether a file can be read: its form is known and it is of this
// upstream.
func (m meta) usable(base string) bool {
	return readable(m.Form) && strings.HasPrefix(m.Source, base+"/")
}

func readable(f int) bool { return f >= 1 && f <= form }

// today is the meta of a file that need not be fetched anew.
func (m meta) today() meta {
	if m.Form != form {
		return meta{}
	}
	return m
}

func (d *disk) write(key string, m meta, body []byte) error {
	head, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(head) >= maxMeta { // validators that long are not worth keeping
		m.ETag, m.Modified = "", ""
		head, _ = json.Marshal(m)
	}
	tmp := path.Join(tmpFolder, strconv.FormatInt(d.pending.Add(1), 10))
	defer d.root.Remove(tmp)
	if err := d.writeSynced(tmp, append(head, '\n'), body); err != nil {
		return fmt.Errorf("write %s into the catalogue's cache: %w", key, err)
	}
	key = filepath.FromSlash(key)
	if err := errors.Join(d.root.MkdirAll(filepath.Dir(key), 0o755), d.root.Rename(tmp, key)); err != nil {
		return fmt.Errorf("keep %s in the catalogue's cache: %w", key, err)
	}
	return nil
}

func (d *disk) writeSynced(name string, parts ...[]byte) error {
	f, err := d.root.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, part := range parts {
		if _, err := f.Write(part); err != nil {
			return err
		}
	}
	return errors.Join(f.Sync(), f.Close())
}
