package feed

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strings"
)

// Types of a database's values, in the upper four bits; the others hold the
// value or its offset in the payload.
const (
	typeInt    = 0x1 // 0 is for null, true and false
	typeInt32  = 0x2
	typeInt64  = 0x3
	typeBlob8  = 0x8 // with a length of so many bits
	typeBlob16 = 0x9
	typeBlob32 = 0xa
	typeArray  = 0xd
	typeObject = 0xe
	immediate  = 1<<28 - 1
)

// Slots of the root, of a package and of a dependency.
const (
	slotPackages = 2
	slotFileSpec = 3

	slotName          = 1
	slotVersion       = 2
	slotIdentity      = 3
	slotDescription   = 4
	slotArch          = 5
	slotInstalledSize = 12
	slotFileSize      = 13
	slotPriority      = 14
	slotDepends       = 15
	slotProvides      = 16
	slotInstallIf     = 18
	slotTags          = 21

	slotMatch = 3
)

// Bits of a dependency's match.
const (
	matchEqual    = 1
	matchAny      = 7 // less (2), equal or greater (4)
	matchFuzzy    = 8
	matchConflict = 16
)

const (
	maxIdentity = 64
	maxPriority = 1<<16 - 1
	maxFileSpec = 255
	abiTag      = "openwrt:abiversion="
	defaultSpec = "${name}-${version}.apk"
)

// payload reads values and keeps the first error. Values may be shared, so a
// small payload can describe very much: what is read in all is limited.
type payload struct {
	text         string
	values       int // that may still be read
	dependencies int
	err          error
}

// maxValues is how many values a payload of so many bytes may be read to have.
// Real indices read each word of theirs less than once.
func maxValues(length int) int { return 4*length + 1024 }

var errShared = errors.New("its values are shared too often")

// values is an array or object of n values; the first is in slot 1.
type values struct{ at, n uint32 }

func readIndex(b []byte) ([]Package, error) {
	r := &payload{text: string(b), values: maxValues(len(b)), dependencies: maxDependencies}
	root := r.list(r.word(4))
	spec := r.fileSpec(root)
	packages := r.list(r.slot(root, slotPackages))
	if packages.n > maxPackages {
		return nil, fmt.Errorf("the index has more than %d packages", maxPackages)
	}
	list := make([]Package, 0, packages.n)
	for i := uint32(1); i <= packages.n && r.err == nil; i++ {
		if p := r.pkg(r.list(r.slot(packages, i)), spec); p.Name != "" {
			list = append(list, p)
		}
	}
	if r.err != nil {
		return nil, fmt.Errorf("the index is damaged: %w", r.err)
	}
	return list, nil
}

// fileSpec is the pattern of files' names.
func (r *payload) fileSpec(root values) string {
	spec := r.blob(r.slot(root, slotFileSpec))
	if spec == "" || len(spec) > maxFileSpec {
		return defaultSpec
	}
	return spec
}

// pkg is without a name when that or the version breaks its pattern.
func (r *payload) pkg(v values, spec string) Package {
	p := Package{Name: r.blob(r.slot(v, slotName)), Version: r.blob(r.slot(v, slotVersion))}
	if !isName(p.Name) || !isVersion(p.Version) {
		return Package{}
	}
	p.Arch = only(isName, r.blob(r.slot(v, slotArch)))
	p.Description = describe(r.blob(r.slot(v, slotDescription)))
	p.Identity = identity(r.blob(r.slot(v, slotIdentity)))
	p.Size = sizeOf(r.number(r.slot(v, slotFileSize)))
	p.InstalledSize = sizeOf(r.number(r.slot(v, slotInstalledSize)))
	p.ABI = r.abi(r.list(r.slot(v, slotTags)))
	if n := r.number(r.slot(v, slotPriority)); n <= maxPriority {
		p.Priority = int(n)
	}
	p.Depends, p.Conflicts, _ = r.dependenciesOf(r.slot(v, slotDepends))
	p.Provides, _, _ = r.dependenciesOf(r.slot(v, slotProvides))
	// One condition less and the package would come along too often.
	if when, conflicts, whole := r.dependenciesOf(r.slot(v, slotInstallIf)); whole && conflicts == nil {
		p.InstallIf = when
	}
	p.File = fileName(fileOf(&p, spec))
	return p
}

func identity(digest string) string {
	if len(digest) > maxIdentity {
		return ""
	}
	return hex.EncodeToString([]byte(digest))
}

// fileOf fills in the pattern of files' names.
func fileOf(p *Package, spec string) string {
	if spec == defaultSpec {
		return p.Name + "-" + p.Version + ".apk"
	}
	return strings.NewReplacer("${name}", p.Name, "${version}", p.Version, "${arch}", p.Arch, "${hash}", p.Identity).Replace(spec)
}

// abi finds OpenWrt's tag for the ABI version.
func (r *payload) abi(tags values) string {
	for i := uint32(1); i <= tags.n && r.err == nil; i++ {
		if abi, ok := strings.CutPrefix(r.blob(r.slot(tags, i)), abiTag); ok {
			return only(isABI, abi)
		}
	}
	return ""
}

// dependenciesOf reads dependencies and, among them, conflicts. Those with a
// name that breaks its pattern are left out, then the list is not whole.
func (r *payload) dependenciesOf(value uint32) (wanted, unwanted []Dependency, whole bool) {
	l := r.list(value)
	if r.dependencies -= int(l.n); r.dependencies < 0 {
		r.fail("it has too many dependencies")
	}
	if l.n == 0 || r.err != nil {
		return nil, nil, true
	}
	wanted = make([]Dependency, 0, min(l.n, maxList))
	whole = l.n <= maxList
	for i := uint32(1); i <= min(l.n, maxList) && r.err == nil; i++ {
		switch d, conflict := r.dependency(r.list(r.slot(l, i))); {
		case !isName(d.Name):
			whole = false
		case conflict:
			unwanted = append(unwanted, d)
		default:
			wanted = append(wanted, d)
		}
	}
	if len(wanted) == 0 {
		wanted = nil
	}
	return wanted, unwanted, whole
}

// matchOps are the operators of a match without the conflict bit.
var matchOps = [16]string{
	"?", "=", "<", "<=", ">", ">=", "?", matchAny: "",
	matchFuzzy: "~", matchFuzzy | matchEqual: "~", "?", "?", "?", "?", "?", "?",
}

func (r *payload) dependency(v values) (d Dependency, conflict bool) {
	d.Name, d.Version = r.blob(r.slot(v, slotName)), r.blob(r.slot(v, slotVersion))
	match := cmp.Or(r.number(r.slot(v, slotMatch)), matchEqual)
	conflict = match&matchConflict != 0
	d.Op = "?"
	if match &^= matchConflict; match < int64(len(matchOps)) {
		d.Op = matchOps[match]
	}
	switch {
	case d.Version == "" || d.Op == "":
		d.Op, d.Version = "", ""
	case d.Op == "?" || !isVersion(d.Version):
		d.Op, d.Version = "?", ""
	}
	return d, conflict
}

// list is the array or object at a value, null being one without values. The
// two types are one here: real apk writes most arrays as objects.
func (r *payload) list(value uint32) values {
	if value == 0 || r.err != nil {
		return values{}
	}
	if kind := value >> 28; kind != typeArray && kind != typeObject {
		r.fail("a value is no list")
		return values{}
	}
	at := value & immediate
	n := r.word(at) // counts itself
	if n == 0 || uint64(at)+4*uint64(n) > uint64(len(r.text)) {
		r.fail("a list goes beyond the end")
		return values{}
	}
	if r.values -= int(n); r.values < 0 {
		r.err = errShared
		return values{}
	}
	return values{at, n - 1}
}

// slot is one of the values; those missing at the end are null.
func (r *payload) slot(v values, i uint32) uint32 {
	if i > v.n {
		return 0
	}
	return r.word(v.at + 4*i)
}

// take returns n bytes at an offset.
func (r *payload) take(at, n uint64) string {
	if at+n > uint64(len(r.text)) {
		r.fail("a value goes beyond the end")
		return ""
	}
	return r.text[at : at+n]
}

// little is the little-endian number of n bytes at an offset.
func (r *payload) little(at uint32, n int) (sum uint64) {
	s := r.take(uint64(at), uint64(n))
	for i := range len(s) {
		sum |= uint64(s[i]) << (8 * i)
	}
	return sum
}

func (r *payload) word(at uint32) uint32 { return uint32(r.little(at, 4)) }

// blob is a text of any bytes, null being the empty one.
func (r *payload) blob(value uint32) string {
	at := value & immediate
	width := 0
	switch value >> 28 {
	case typeBlob8:
		width = 1
	case typeBlob16:
		width = 2
	case typeBlob32:
		width = 4
	default:
		if value != 0 {
			r.fail("a value is no text")
		}
		return ""
	}
	return r.take(uint64(at)+uint64(width), r.little(at, width))
}

// number is never negative.
func (r *payload) number(value uint32) int64 {
	at := value & immediate
	switch value >> 28 {
	case typeInt:
		return int64(at)
	case typeInt32:
		return int64(r.word(at))
	case typeInt64:
		return int64(min(r.little(at, 8), math.MaxInt64))
	}
	if value != 0 {
		r.fail("a value is no number")
	}
	return 0
}

func (r *payload) fail(what string) {
	if r.err == nil {
		r.err = errors.New(what)
	}
}
