package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// Limits of a body. What is inside has the limits of build.Request.
const (
	maxBody  = 256 << 10
	maxDepth = 16
)

func invalid(format string, args ...any) error {
	return &build.Refusal{Code: build.CodeInvalid, Detail: fmt.Sprintf(format, args...)}
}

// readObject reads the body as one JSON object, whatever its Content-Type
// says. The error is a Refusal.
func readObject(w *response, r *http.Request) (object, error) {
	body, err := readBody(w, r)
	if err != nil {
		return nil, err
	}
	return parseObject(body)
}

// readBody reads a body with or without a Content-Length. The error is a
// Refusal.
func readBody(w *response, r *http.Request) ([]byte, error) {
	var b bytes.Buffer
	if r.ContentLength > 0 {
		b.Grow(int(min(r.ContentLength, maxBody)) + bytes.MinRead)
	}
	_, err := b.ReadFrom(http.MaxBytesReader(w.ResponseWriter, r.Body, maxBody))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return nil, invalid("The body is larger than %d KiB.", maxBody>>10)
	}
	if err != nil {
		return nil, invalid("The body did not arrive whole.")
	}
	return b.Bytes(), nil
}

// object is a JSON object in its order. A value is nil, bool, string,
// json.Number, []any or object.
type object []member

type member struct {
	name  string
	value any
}

// parseObject is stricter than encoding/json where laxness lets two readers
// of one text see different things: names count once and exactly as spelled,
// text is UTF-8, nesting is limited.
func parseObject(b []byte) (object, error) {
	switch {
	case len(bytes.TrimSpace(b)) == 0:
		return nil, invalid("The body is empty; send a JSON object.")
	case !utf8.Valid(b):
		return nil, invalid("The body is not UTF-8 text.")
	case !json.Valid(b):
		return nil, invalid("The body is not valid JSON: %v.", json.Unmarshal(b, new(json.RawMessage)))
	}
	c := cursor{b: string(b)}
	value := c.value(maxDepth)
	if c.err != nil {
		return nil, c.err
	}
	o, ok := value.(object)
	if !ok {
		return nil, invalid("The body has to be a JSON object.")
	}
	return o, nil
}

// cursor walks over JSON that is known to be valid and keeps the first error.
// The texts it returns are parts of the one it walks over.
type cursor struct {
	b   string // what is left
	err error
}

// next passes over white space and returns the byte after it.
func (c *cursor) next() byte {
	for c.b[0] <= ' ' {
		c.b = c.b[1:]
	}
	return c.b[0]
}

// take returns the next n bytes and passes over them.
func (c *cursor) take(n int) string {
	taken := c.b[:n]
	c.b = c.b[n:]
	return taken
}

// value returns the value that comes next. depth is how many more levels may
// open.
func (c *cursor) value(depth int) any {
	switch c.next() {
	case '{', '[':
		if depth == 0 {
			c.err = invalid("The body's JSON is nested more than %d levels deep.", maxDepth)
			return nil
		}
		if c.take(1)[0] == '[' {
			return c.list(depth - 1)
		}
		return c.members(depth - 1)
	case '"':
		return c.text()
	case 't':
		c.take(len("true"))
		return true
	case 'f':
		c.take(len("false"))
		return false
	case 'n':
		c.take(len("null"))
		return nil
	}
	return c.number()
}

// more tells whether another item comes before the closing bracket, and
// passes over the comma or the bracket.
func (c *cursor) more(closing byte) bool {
	switch c.next() {
	case closing:
		c.take(1)
		return false
	case ',':
		c.take(1)
	}
	return c.err == nil
}

func (c *cursor) list(depth int) []any {
	list := []any{}
	for c.more(']') {
		list = append(list, c.value(depth))
	}
	return list
}

func (c *cursor) members(depth int) object {
	o, seen := object{}, names{}
	for c.more('}') {
		c.next()
		name := c.text()
		if c.next(); c.err == nil && !seen.add(o, name) {
			c.err = invalid("The body's JSON has %q twice.", clip(name))
		}
		c.take(len(":"))
		o = append(o, member{name, c.value(depth)})
	}
	return o
}

// names finds out what an object has twice: by looking at its members, and by
// a map once there are many.
type names map[string]bool

const few = 16

// add returns whether the name is new to the object and to names.
func (n names) add(o object, name string) bool {
	if len(o) < few {
		return !slices.ContainsFunc(o, func(m member) bool { return m.name == name })
	}
	if len(n) == 0 {
		for _, m := range o {
			n[m.name] = true
		}
	}
	known := n[name]
	n[name] = true
	return !known
}

func (c *cursor) text() string {
	end, escaped := 1, false
	for ; c.b[end] != '"'; end++ {
		if c.b[end] == '\\' {
			escaped = true
			end++
		}
	}
	quoted := c.take(end + 1)
	if !escaped {
		return quoted[1:end]
	}
	var text string
	if err := json.Unmarshal([]byte(quoted), &text); err != nil {
		c.err = invalid("The body's JSON has a text that cannot be read.")
	}
	return text
}

func (c *cursor) number() json.Number {
	end := strings.IndexFunc(c.b, func(r rune) bool { return !strings.ContainsRune("+-.0123456789eE", r) })
	if end < 0 {
		end = len(c.b)
	}
	return json.Number(c.take(end))
}

// clip keeps what a client sent short in a sentence; %q takes care of the
// rest.
func clip(s string) string {
	if len(s) > 60 {
		return s[:60] + "..."
	}
	return s
}

// fields reads the members of an object by name and keeps the first error.
// An absent member and null are the zero value: clients send both.
type fields struct {
	o   object
	err error
}

func (f *fields) wrong(format string, args ...any) {
	if f.err == nil {
		f.err = invalid(format, args...)
	}
}

func (f *fields) get(name string) any {
	for _, m := range f.o {
		if m.name == name {
			return m.value
		}
	}
	return nil
}

func (f *fields) text(name string) string {
	switch v := f.get(name).(type) {
	case nil:
		return ""
	case string:
		return v
	}
	f.wrong("%q has to be a string.", name)
	return ""
}

func (f *fields) flag(name string) bool {
	switch v := f.get(name).(type) {
	case nil:
		return false
	case bool:
		return v
	}
	f.wrong("%q has to be true or false.", name)
	return false
}

// number takes a string of digits too, and "" for none: forms in browsers
// send both.
func (f *fields) number(name string) int {
	var text string
	switch v := f.get(name).(type) {
	case nil:
		return 0
	case json.Number:
		text = v.String()
	case string:
		if text = v; text == "" {
			return 0
		}
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		f.wrong("%q has to be a whole number.", name)
	}
	return n
}

// texts reads a list of strings. Empty ones, which text areas in browsers
// leave, are passed over.
func (f *fields) texts(name string) []string {
	value := f.get(name)
	if value == nil {
		return nil
	}
	list, ok := value.([]any)
	if !ok {
		f.wrong("%q has to be a list of strings.", name)
	}
	var texts []string
	for i, item := range list {
		text, ok := item.(string)
		if !ok {
			f.wrong("%q has to be a list of strings; its item %d is none.", name, i+1)
			return nil
		}
		if text != "" {
			texts = append(texts, text)
		}
	}
	return texts
}

// pair is a member whose value is a string.
type pair struct{ name, value string }

// pairs reads an object of strings in its order; null is "". An empty list
// counts as an empty object: Lua writes its empty tables so.
func (f *fields) pairs(name string) []pair {
	value := f.get(name)
	if list, ok := value.([]any); value == nil || ok && len(list) == 0 {
		return nil
	}
	o, ok := value.(object)
	if !ok {
		f.wrong("%q has to be an object of strings.", name)
	}
	var pairs []pair
	for _, m := range o {
		text, ok := m.value.(string)
		if !ok && m.value != nil {
			f.wrong("%q has to be an object of strings; %q in it is none.", name, clip(m.name))
			return nil
		}
		pairs = append(pairs, pair{m.name, text})
	}
	return pairs
}

// packages reads package names from a list, or from the keys of an object from
// names to versions, as the oldest clients send them.
func (f *fields) packages(name string) []string {
	if _, ok := f.get(name).(object); !ok {
		return f.texts(name)
	}
	var names []string
	for _, p := range f.pairs(name) {
		names = append(names, p.name)
	}
	return names
}
