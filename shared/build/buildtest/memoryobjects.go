package buildtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// MemoryObjects keeps objects in memory. It fails the test if a caller breaks
// a rule: stores private files so that caches keep them, adds to an attempt
// that is sealed by its build.json, leaves a reader open.
type MemoryObjects struct {
	t     testing.TB
	flaws flaws

	mu      sync.Mutex
	objects map[string]object
}

type object struct {
	bytes    []byte
	policy   build.Policy
	modified time.Time
}

var _ build.Objects = (*MemoryObjects)(nil)

// NewObjects returns an empty store with the flaws.
func NewObjects(t testing.TB, flaws ...Flaw) *MemoryObjects {
	return &MemoryObjects{t: t, flaws: flawed(flaws), objects: map[string]object{}}
}

// Keys lists all keys in order.
func (m *MemoryObjects) Keys() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.objects))
}

func (m *MemoryObjects) misuse(format string, args ...any) {
	m.t.Helper()
	m.t.Errorf("misuse of Objects: "+format, args...)
}

var keyPattern = regexp.MustCompile(`^[A-Za-z0-9._+~,@=/-]{1,512}$`)

func (m *MemoryObjects) valid(key string) bool {
	return m.flaws[AnyKey] || keyPattern.MatchString(key) && fs.ValidPath(key) && key != "."
}

// Put implements build.Objects.
func (m *MemoryObjects) Put(ctx context.Context, key string, r io.Reader, policy build.Policy) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !m.valid(key) {
		return fmt.Errorf("%q is no key", key)
	}
	m.proper(key, policy)
	var b bytes.Buffer
	_, err := io.Copy(io.MultiWriter(&b, m.peek(key, policy)), r)
	if err != nil && !m.flaws[PutKeepsPart] {
		return err
	}
	if e := m.keep(key, b.Bytes(), policy); e != nil {
		return e
	}
	return err
}

// peek is where PutNotAtomic shows its bytes as they come.
func (m *MemoryObjects) peek(key string, policy build.Policy) io.Writer {
	if !m.flaws[PutNotAtomic] {
		return io.Discard
	}
	return writerFunc(func(p []byte) (int, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.objects[key] = object{bytes.Clone(p), policy, time.Now()}
		return len(p), nil
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func (m *MemoryObjects) keep(key string, b []byte, policy build.Policy) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	stored, taken := m.objects[key]
	if m.flaws[PutRaces] {
		m.mu.Unlock()
		time.Sleep(20 * time.Millisecond)
		m.mu.Lock()
	}
	switch {
	case !taken:
		m.unsealed(key)
	case policy.Mutable:
		if m.flaws[PutKeepsMutable] {
			return nil
		}
	case m.flaws[PutOverwrites], m.flaws[PutNotAtomic]:
	case !bytes.Equal(stored.bytes, b), m.flaws[PutEqualFails]:
		return build.ErrExists
	default:
		return nil
	}
	m.objects[key] = object{b, policy, time.Now()}
	return nil
}

// proper complains about a policy that does not suit the key.
func (m *MemoryObjects) proper(key string, policy build.Policy) {
	private := strings.HasPrefix(key, "store/private/")
	if private != (policy.CacheControl == build.CacheNever) {
		m.misuse("%s is stored with Cache-Control %q", key, policy.CacheControl)
	}
	if policy.ContentType == "" {
		m.misuse("%s is stored without a content type", key)
	}
	if policy.Mutable && strings.HasPrefix(key, "store/") {
		m.misuse("%s is stored as mutable", key)
	}
}

// unsealed complains about a new file in an attempt that was complete.
func (m *MemoryObjects) unsealed(key string) {
	folder := key[:strings.LastIndexByte(key, '/')+1]
	if _, _, _, ok := build.ParsePrefix(folder); !ok {
		return
	}
	if _, sealed := m.objects[folder+"build.json"]; sealed {
		m.misuse("%s is stored after the build.json of its attempt", path.Base(key))
	}
}

// Open implements build.Objects.
func (m *MemoryObjects) Open(ctx context.Context, key string) (io.ReadCloser, build.ObjectInfo, error) {
	if err := ctx.Err(); err != nil {
		return nil, build.ObjectInfo{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.flaws[BadKeyOtherError] && !m.valid(key) {
		return nil, build.ObjectInfo{}, errors.New("no key")
	}
	o, ok := m.objects[key]
	if !ok {
		return nil, build.ObjectInfo{}, build.ErrNotFound
	}
	r := &reader{Reader: bytes.NewReader(o.bytes), seeks: !m.flaws[SeekBroken]}
	m.t.Cleanup(func() {
		if !r.closed {
			m.misuse("a reader of %s was never closed", key)
		}
	})
	info := m.info(key, o)
	if m.flaws[NoSize] {
		info.Size = 0
	}
	return r, info, nil
}

func (m *MemoryObjects) info(key string, o object) build.ObjectInfo {
	return build.ObjectInfo{Key: key, Size: int64(len(o.bytes)), Modified: o.modified.UTC()}
}

type reader struct {
	*bytes.Reader
	seeks, closed bool
}

func (r *reader) Seek(offset int64, whence int) (int64, error) {
	if !r.seeks {
		return offset, nil
	}
	return r.Reader.Seek(offset, whence)
}

func (r *reader) Close() error {
	r.closed = true
	return nil
}

// List implements build.Objects.
func (m *MemoryObjects) List(ctx context.Context, prefix string) iter.Seq2[build.ObjectInfo, error] {
	if m.flaws[ListFolders] && prefix != "" {
		prefix = strings.TrimSuffix(prefix, "/") + "/"
	}
	return func(yield func(build.ObjectInfo, error) bool) {
		keys := m.Keys()
		if m.flaws[ListUnsorted] { // as a walk over folders would
			slices.SortFunc(keys, func(a, b string) int { return slices.Compare(strings.Split(a, "/"), strings.Split(b, "/")) })
		}
		for _, key := range keys {
			if !strings.HasPrefix(key, prefix) {
				continue
			}
			info, err := m.look(ctx, key)
			if errors.Is(err, build.ErrNotFound) && !m.flaws[ListGoneFails] {
				continue
			}
			if !yield(info, err) || err != nil {
				return
			}
		}
	}
}

func (m *MemoryObjects) look(ctx context.Context, key string) (build.ObjectInfo, error) {
	if err := ctx.Err(); err != nil {
		return build.ObjectInfo{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objects[key]
	if !ok {
		return build.ObjectInfo{}, build.ErrNotFound
	}
	if m.flaws[ListKeysOnly] {
		return build.ObjectInfo{Key: key}, nil
	}
	return m.info(key, o), nil
}

// Delete implements build.Objects.
func (m *MemoryObjects) Delete(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects[key]; !ok && m.flaws[DeleteMissing] {
		return build.ErrNotFound
	}
	if !m.flaws[DeleteNothing] {
		delete(m.objects, key)
	}
	return nil
}
