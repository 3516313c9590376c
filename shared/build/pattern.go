package build

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
)

// pattern says which texts are allowed in a field. Its String is the same as
// a regular expression.
type pattern interface {
	MatchString(string) bool
	String() string
}

// word is the pattern of a short text that begins with some characters and
// goes on with those or some more. A regular expression with a count says the
// same, but each start of the program and each of a thousand names pays for
// its size.
type word struct {
	first, next [256]bool
	max         int // bytes

	class, more string // what they were made of
}

const (
	lower = "abcdefghijklmnopqrstuvwxyz0123456789"
	alnum = lower + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

func newWord(first, more string, max int) *word {
	w := &word{max: max, class: "a-z0-9", more: more}
	if first == alnum {
		w.class = "A-Za-z0-9"
	}
	for _, c := range []byte(first) {
		w.first[c], w.next[c] = true, true
	}
	for _, c := range []byte(more) {
		w.next[c] = true
	}
	return w
}

func (w *word) MatchString(s string) bool {
	if s == "" || len(s) > w.max || !w.first[s[0]] {
		return false
	}
	for i := range len(s) {
		if !w.next[s[i]] {
			return false
		}
	}
	return true
}

func (w *word) String() string { return "^" + w.expression() + "$" }

func (w *word) expression() string {
	more := strings.NewReplacer("-", `\-`, "/", `\/`).Replace(w.more)
	return fmt.Sprintf("[%s][%s%s]{0,%d}", w.class, w.class, more, w.max-1)
}

// pair is the pattern of two words with a slash between them.
type pair struct{ *word }

func (p pair) MatchString(s string) bool {
	a, b, found := strings.Cut(s, "/")
	return found && p.word.MatchString(a) && p.word.MatchString(b)
}

func (p pair) String() string { return "^" + p.expression() + `\/` + p.expression() + "$" }

// rare is a regular expression that few requests need.
type rare func() *regexp.Regexp

func newRare(expression string) rare {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}

func (r rare) MatchString(s string) bool { return r().MatchString(s) }

func (r rare) String() string { return r().String() }

// Patterns returns the regular expressions that Check holds the fields of a
// Request against, by the names of the fields in JSON. That of a list or an
// object is that of its items: "packages" of the names with what may stand
// around them.
func Patterns() map[string]string {
	name := strings.Trim(packagePattern.String(), "^$")
	version := strings.Trim(pkgVersionPattern.String(), "^$")
	return map[string]string{
		"distro": distroPattern.String(), "version": versionPattern.String(), "version_code": revisionPattern.String(),
		"target": targetPattern.String(), "profile": profilePattern.String(), "client": clientPattern.String(),
		"packages": "^[+-]?" + name + "(=" + version + ")?$", "packages_versions": pkgVersionPattern.String(),
		"filesystem": filesystemPattern.String(), "repositories": repoURLPattern.String(),
		"repository_keys": strings.Join([]string{usignKeyPattern.String(), pemKeyPattern.String()}, "|"),
	}
}
