package resolve

import (
	"cmp"
	"strings"
)

// Compare orders two versions by age: negative if a is older than b. A
// package manager has rules of its own; both know "~", though it means
// different things to them.
func (f Format) Compare(a, b string) int {
	if f == APK {
		return compareAPK(a, b)
	}
	return compareOpkg(a, b)
}

// meets tells whether a version fulfils the condition.
func (f Format) meets(version, op, bound string) bool {
	if op == "~" {
		return begins(version, bound)
	}
	c := f.Compare(version, bound)
	switch op {
	case "":
		return true
	case "=":
		return c == 0
	case "<":
		return c < 0
	case "<=":
		return c <= 0
	case ">":
		return c > 0
	case ">=":
		return c >= 0
	}
	return true // a condition that is not understood proves nothing
}

// compareOpkg is Debian's order: an epoch, the version, and what follows the
// last '-'.
func compareOpkg(a, b string) int {
	aEpoch, a := cutEpoch(a)
	bEpoch, b := cutEpoch(b)
	aVersion, aRevision := cutRevision(a)
	bVersion, bRevision := cutRevision(b)
	return cmp.Or(compareDigits(aEpoch, bEpoch), compareDebian(aVersion, bVersion), compareDebian(aRevision, bRevision))
}

func cutEpoch(s string) (epoch, rest string) {
	if epoch, rest, ok := strings.Cut(s, ":"); ok {
		return epoch, rest
	}
	return "", s
}

func cutRevision(s string) (version, revision string) {
	if i := strings.LastIndexByte(s, '-'); i >= 0 {
		return s[:i], s[i+1:]
	}
	return s, ""
}

// compareDebian compares by turns what is no digit, by weight, and numbers.
func compareDebian(a, b string) int {
	for a != "" || b != "" {
		for a != "" && !digit(a[0]) || b != "" && !digit(b[0]) {
			if c := cmp.Compare(weight(a), weight(b)); c != 0 {
				return c
			}
			a, b = a[1:], b[1:] // of equal weight, so neither is at its end
		}
		var x, y string
		x, a = cutDigits(a)
		y, b = cutDigits(b)
		if c := compareDigits(x, y); c != 0 {
			return c
		}
	}
	return 0
}

// weight of the first character: '~' is less than the end, letters are less
// than other characters.
func weight(s string) int {
	switch {
	case s == "" || digit(s[0]):
		return 0
	case s[0] == '~':
		return -1
	case letter(s[0]):
		return int(s[0])
	}
	return int(s[0]) + 256
}

func digit(c byte) bool  { return c >= '0' && c <= '9' }
func letter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

func cutDigits(s string) (digits, rest string) {
	i := 0
	for i < len(s) && digit(s[i]) {
		i++
	}
	return s[:i], s[i:]
}

// compareDigits compares numbers of any length.
func compareDigits(a, b string) int {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
}

// The parts of apk's versions, in the order in which they may follow each
// other: 1.2b_rc1~0badc0de-r3.
const (
	apkFirst = iota // number
	apkNumber
	apkLetter
	apkSuffix
	apkSuffixNumber
	apkCommit
	apkRevision
	apkEnd
	apkOther // what no version may have
)

type apkPart struct {
	kind int
	text string
}

// preRelease and later are apk's suffixes by age; a version without one lies
// between.
var (
	preRelease = []string{"alpha", "beta", "pre", "rc"}
	later      = []string{"cvs", "svn", "git", "hg", "p"}
)

// nextAPK cuts the next part off a version.
func nextAPK(s string, before int) (part apkPart, rest string) {
	take := func(kind, skip int, is func(byte) bool) (apkPart, string) {
		i := skip
		for i < len(s) && is(s[i]) {
			i++
		}
		return apkPart{kind, s[skip:i]}, s[i:]
	}
	lower := func(c byte) bool { return c >= 'a' && c <= 'z' }
	hex := func(c byte) bool { return digit(c) || c >= 'a' && c <= 'f' }
	switch {
	case s == "":
		return apkPart{kind: apkEnd}, ""
	case before < 0 && digit(s[0]):
		return take(apkFirst, 0, digit)
	case s[0] == '.' && before <= apkNumber:
		return take(apkNumber, 1, digit)
	case lower(s[0]) && before <= apkNumber:
		return apkPart{apkLetter, s[:1]}, s[1:]
	case s[0] == '_':
		return take(apkSuffix, 1, lower)
	case digit(s[0]) && before == apkSuffix:
		return take(apkSuffixNumber, 0, digit)
	case s[0] == '~':
		return take(apkCommit, 1, hex)
	case strings.HasPrefix(s, "-r"):
		return take(apkRevision, 2, digit)
	}
	return apkPart{apkOther, s}, ""
}

// compareAPK compares part by part. Where one version has a part that the
// other lacks, it is the newer one, unless the part says that it came before
// the release.
func compareAPK(a, b string) int {
	before := -1
	for {
		var x, y apkPart
		x, a = nextAPK(a, before)
		y, b = nextAPK(b, before)
		switch {
		case x.kind != y.kind && x.early():
			return -1
		case x.kind != y.kind && y.early():
			return 1
		case x.kind != y.kind:
			return cmp.Compare(y.kind, x.kind)
		case x.kind == apkEnd:
			return 0
		}
		if c := x.compare(y); c != 0 || x.kind == apkOther {
			return c
		}
		before = x.kind
	}
}

func (p apkPart) early() bool { return p.kind == apkSuffix && suffixAge(p.text) < 0 }

func (p apkPart) compare(o apkPart) int {
	switch p.kind {
	case apkNumber:
		if strings.HasPrefix(p.text, "0") || strings.HasPrefix(o.text, "0") { // as after a decimal point
			return strings.Compare(p.text, o.text)
		}
		return compareDigits(p.text, o.text)
	case apkFirst, apkSuffixNumber, apkRevision:
		return compareDigits(p.text, o.text)
	case apkSuffix:
		return cmp.Compare(suffixAge(p.text), suffixAge(o.text))
	}
	return strings.Compare(p.text, o.text)
}

func suffixAge(name string) int {
	for i, s := range preRelease {
		if s == name {
			return i - len(preRelease)
		}
	}
	for i, s := range later {
		if s == name {
			return i + 1
		}
	}
	return 0
}

// begins tells whether the first parts of a version are those of the other.
func begins(version, head string) bool {
	if !strings.HasPrefix(version, head) {
		return false
	}
	rest := version[len(head):]
	return rest == "" || head == "" || !digit(rest[0]) || !digit(head[len(head)-1])
}
