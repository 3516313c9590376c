package build

import (
	"regexp"
	"strings"
	"sync"
)

// pattern says which texts are allowed in a field.
type pattern interface{ MatchString(string) bool }

// word is the pattern of a short text that begins with some characters and
// goes on with those or some more. A regular expression with a count says the
// same, but each start of the program and each of a thousand names pays for
// its size.
type word struct {
	first, next [256]bool
	max         int // bytes
}

const (
	lower = "abcdefghijklmnopqrstuvwxyz0123456789"
	alnum = lower + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

func newWord(first, more string, max int) *word {
	w := &word{max: max}
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

// pair is the pattern of two words with a slash between them.
type pair struct{ *word }

func (p pair) MatchString(s string) bool {
	a, b, found := strings.Cut(s, "/")
	return found && p.word.MatchString(a) && p.word.MatchString(b)
}

// rare is a regular expression that few requests need.
type rare func() *regexp.Regexp

func newRare(expression string) rare {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}

func (r rare) MatchString(s string) bool { return r().MatchString(s) }
