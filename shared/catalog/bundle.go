package catalog

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Limits of a unit as it is stored. The largest real ones, an architecture's
// feeds, have about half a megabyte of text.
const (
	maxPacked   = 16 << 20
	maxUnpacked = 48 << 20
)

// bundle is the files of one unit: what a store holds in one object, so that
// a unit is read at once and changes at once.
type bundle struct {
	base string // files of another upstream are as good as none

	mu      sync.Mutex
	files   map[string]file
	changed bool // since it was read
}

type file struct {
	meta
	text string
}

// bundleHead is the first line of a packed bundle. The texts follow in the
// same order.
type bundleHead struct {
	Form  int         `json:"form"`
	Files []fileEntry `json:"files"`
}

type fileEntry struct {
	Name string `json:"name"`
	Size int    `json:"size"` // of its text, in bytes
	Meta meta   `json:"meta"`
}

var errDamaged = errors.New("what the store holds is damaged")

func newBundle(base string) *bundle { return &bundle{base: base, files: map[string]file{}} }

func (b *bundle) read(key string) (meta, string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f, ok := b.files[key]
	if !ok {
		return meta{}, "", fs.ErrNotExist
	}
	return f.meta, f.text, nil
}

func (b *bundle) meta(key string) meta {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.files[key].meta.today()
}

func (b *bundle) write(key string, m meta, text []byte) error {
	if len(m.ETag)+len(m.Modified) > maxMeta/2 { // validators that long are not worth keeping
		m.ETag, m.Modified = "", ""
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.files[key], b.changed = file{m, string(text)}, true
	return nil
}

// drop forgets a file. It stays in the store until the unit is stored anew.
func (b *bundle) drop(key string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.files, key)
}

// pack is what is stored of a bundle. Equal bundles give equal bytes.
func (b *bundle) pack() ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	head, total := bundleHead{Form: form}, 0
	for _, name := range slices.Sorted(maps.Keys(b.files)) {
		f := b.files[name]
		head.Files = append(head.Files, fileEntry{name, len(f.text), f.meta})
		total += len(f.text)
	}
	line, err := json.Marshal(head)
	if err != nil {
		return nil, err
	}
	if total += len(line) + 1; total > maxUnpacked {
		return nil, fmt.Errorf("%d bytes are more than the %d that one unit of the catalogue may have", total, maxUnpacked)
	}
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestSpeed) // the rest would be most of the time of a round
	if err != nil {
		return nil, err
	}
	z.Write(append(line, '\n')) // into memory
	for _, entry := range head.Files {
		z.Write([]byte(b.files[entry.Name].text))
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// unpack is the inverse of pack. Everything that is not whole is errDamaged;
// files of another form or upstream are left out.
func unpack(packed []byte, base string) (*bundle, error) {
	plain, err := unzip(packed, maxUnpacked)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", errDamaged, err)
	}
	return parseBundle(plain, base)
}

func parseBundle(plain []byte, base string) (*bundle, error) {
	line, rest, _ := bytes.Cut(plain, []byte("\n"))
	var head bundleHead
	if err := json.Unmarshal(line, &head); err != nil {
		return nil, fmt.Errorf("%w: %v", errDamaged, err)
	}
	b, texts := newBundle(base), string(rest)
	for _, entry := range head.Files {
		if entry.Size < 0 || entry.Size > len(texts) {
			return nil, fmt.Errorf("%w: %.80q ends too early", errDamaged, entry.Name)
		}
		if entry.Meta.usable(base) {
			b.files[entry.Name] = file{entry.Meta, strings.Clone(texts[:entry.Size])}
		}
		texts = texts[entry.Size:]
	}
	if !readable(head.Form) || texts != "" {
		return nil, fmt.Errorf("%w: its form is %d, and %d bytes are too many", errDamaged, head.Form, len(texts))
	}
	return b, nil
}
