package catalog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

const (
	storePrefix  = "catalog/"
	wantedPrefix = ".wanted/"
	madePrefix   = ".made/"
	indexUnit    = ".index"

	// storeLimit is the time for one call of the store.
	storeLimit = 5 * time.Second
)

// errStore says that it is the store that does not work.
var errStore = errors.New("the store of the catalogue does not work")

// policyUnit is of objects that only the service itself reads.
var policyUnit = build.Policy{ContentType: "application/gzip", CacheControl: build.CacheBriefly, Mutable: true}

// store keeps the cache in objects that many processes share: one for each
// unit, and the index.
//
// Whoever may write objects there is trusted: signatures are verified before
// something is stored, not when it is read.
type store struct {
	objects build.Objects
	base    string
}

// object is a unit with what it was read from.
type object struct {
	*bundle
	stamp    string // the beginning of the sum of its bytes
	size     int64
	modified time.Time
}

// read returns a unit. It is fs.ErrNotExist if there is none, errDamaged, or
// errStore.
func (s *store) read(ctx context.Context, unit string) (object, error) {
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	r, info, err := s.objects.Open(ctx, storePrefix+unit)
	if errors.Is(err, build.ErrNotFound) {
		return object{}, fs.ErrNotExist
	}
	if err != nil {
		return object{}, fmt.Errorf("%w: read %s: %w", errStore, unit, err)
	}
	defer r.Close()
	packed, err := io.ReadAll(io.LimitReader(r, maxPacked+1))
	if err != nil {
		return object{}, fmt.Errorf("%w: read %s: %w", errStore, unit, err)
	}
	if len(packed) > maxPacked {
		return object{}, fmt.Errorf("%w: %s is longer than %d bytes", errDamaged, unit, maxPacked)
	}
	b, err := unpack(packed, s.base)
	if err != nil {
		return object{}, fmt.Errorf("%s: %w", unit, err)
	}
	return object{b, stampOf(packed), info.Size, info.Modified}, nil
}

// write stores a unit whole and returns its stamp.
func (s *store) write(ctx context.Context, unit string, b *bundle) (string, error) {
	packed, err := b.pack()
	if err != nil {
		return "", fmt.Errorf("store %s: %w", unit, err)
	}
	if err := s.put(ctx, unit, packed); err != nil {
		return "", err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.changed = false
	return stampOf(packed), nil
}

func (s *store) put(ctx context.Context, unit string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	if err := s.objects.Put(ctx, storePrefix+unit, bytes.NewReader(body), policyUnit); err != nil {
		return fmt.Errorf("%w: store %s: %w", errStore, unit, err)
	}
	return nil
}

func stampOf(packed []byte) string { return sumOf(packed)[:16] }

// want asks the leader to fetch a unit that nobody else has the time for.
func (s *store) want(ctx context.Context, unit string) error {
	return s.put(ctx, wantedPrefix+unit, nil)
}

// wantOnce is want for who repeats it: the time of the first wish stays, so that
// one which nobody fulfils ends.
func (s *store) wantOnce(ctx context.Context, unit string) error {
	look, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	r, _, err := s.objects.Open(look, storePrefix+wantedPrefix+unit)
	if err == nil {
		return r.Close()
	}
	return s.want(ctx, unit)
}

// made returns what an ImageBuilder said of itself, or fs.ErrNotExist, errDamaged
// or errStore.
func (s *store) made(ctx context.Context, a Archive) ([]byte, error) {
	o, err := s.read(ctx, madePrefix+a.SHA256)
	if err != nil {
		return nil, err
	}
	_, text, err := o.bundle.read(madeFile)
	return []byte(text), err
}

func (s *store) keepMade(ctx context.Context, a Archive, profiles []byte) error {
	b := newBundle(s.base)
	if err := b.write(madeFile, meta{Form: form, Source: a.URL, Sum: a.SHA256}, profiles); err != nil {
		return err
	}
	_, err := s.write(ctx, madePrefix+a.SHA256, b)
	return err
}

// list returns the units that there are and those that are wanted.
func (s *store) list(ctx context.Context) (units, wanted map[string]build.ObjectInfo, err error) {
	units, wanted = map[string]build.ObjectInfo{}, map[string]build.ObjectInfo{}
	for info, err := range s.objects.List(ctx, storePrefix) {
		if err != nil {
			return nil, nil, fmt.Errorf("%w: list the catalogue: %w", errStore, err)
		}
		unit := strings.TrimPrefix(info.Key, storePrefix)
		if short, ok := strings.CutPrefix(unit, wantedPrefix); ok {
			wanted[short] = info
		} else if unit != indexUnit {
			units[unit] = info
		}
	}
	return units, wanted, nil
}

// wanted returns those that are wanted.
func (s *store) wanted(ctx context.Context) (map[string]build.ObjectInfo, error) {
	wanted := map[string]build.ObjectInfo{}
	for info, err := range s.objects.List(ctx, storePrefix+wantedPrefix) {
		if err != nil {
			return nil, fmt.Errorf("%w: list what is wanted of the catalogue: %w", errStore, err)
		}
		wanted[strings.TrimPrefix(info.Key, storePrefix+wantedPrefix)] = info
	}
	return wanted, nil
}

func (s *store) remove(ctx context.Context, unit string) error {
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	return s.objects.Delete(ctx, storePrefix+unit)
}

// The index is a unit, too. Beside the lists and the signers of versions it
// has two files of the leader's: one for all who read, one for itself.
const (
	contentsFile = ".contents"
	ledgerFile   = ".ledger"
)

// contents is what all have to know about the store.
type contents struct {
	Looked time.Time         `json:"looked"` // when the upstream told its versions
	Stamps map[string]string `json:"stamps"` // of the units
}

// ledger is what the leader knows of the units without reading them.
type ledger struct {
	Lists map[string]time.Time `json:"lists"` // when a version's were asked for
	Units map[string]known     `json:"units"`
}

// known is what is known of a unit.
type known struct {
	Stamp    string    `json:"stamp"`
	Size     int64     `json:"size"` // of the object of that stamp
	Modified time.Time `json:"modified"`
	Sources  []meta    `json:"sources"`       // which tell whether anything changed
	Checked  time.Time `json:"checked"`       // when they were asked
	Whole    time.Time `json:"whole"`         // when all was asked for, also what was not there
	Gone     time.Time `json:"gone,omitzero"` // since when the upstream does not have it
}

// keepJSON writes a file of the index that is not the upstream's.
func (b *bundle) keepJSON(name string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.write(name, meta{Form: form, Source: b.base + "/"}, text)
}

// takeJSON reads it and takes it out; v stays as it is if it is not there.
func (b *bundle) takeJSON(name string, v any) error {
	_, text, err := b.read(name)
	b.drop(name)
	if err != nil {
		return nil
	}
	if err := json.Unmarshal([]byte(text), v); err != nil {
		return fmt.Errorf("%w: %s: %v", errDamaged, name, err)
	}
	return nil
}
