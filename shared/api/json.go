package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
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
// says and with or without a Content-Length. The error is a Refusal.
func readObject(w http.ResponseWriter, r *http.Request) (object, error) {
	var b bytes.Buffer
	if r.ContentLength > 0 {
		b.Grow(int(min(r.ContentLength, maxBody)) + bytes.MinRead)
	}
	_, err := b.ReadFrom(http.MaxBytesReader(w, r.Body, maxBody))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return nil, invalid("The body is larger than %d KiB.", maxBody>>10)
	}
	if err != nil {
		return nil, invalid("The body did not arrive whole.")
	}
	return parseObject(b.Bytes())
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
// text is UTF-8, nesting is limited. Nothing follows the object.
func parseObject(b []byte) (object, error) {
	if !utf8.Valid(b) {
		return nil, invalid("The body is not UTF-8 text.")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	first, err := d.Token()
	if errors.Is(err, io.EOF) {
		return nil, invalid("The body is empty; send a JSON object.")
	}
	if err != nil {
		return nil, malformed(err)
	}
	value, err := parseValue(d, first, maxDepth)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, invalid("The body goes on after the end of its JSON value.")
	}
	o, ok := value.(object)
	if !ok {
		return nil, invalid("The body has to be a JSON object.")
	}
	return o, nil
}

func malformed(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return invalid("The body ends within its JSON value.")
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return invalid("The body is not valid JSON: %s, near byte %d.", syntax, syntax.Offset)
	}
	return invalid("The body is not valid JSON.")
}

// parseValue returns the value that begins with the token. depth is how many
// more levels may open.
func parseValue(d *json.Decoder, first json.Token, depth int) (any, error) {
	open, ok := first.(json.Delim)
	if !ok {
		return first, nil
	}
	if depth == 0 {
		return nil, invalid("The body's JSON is nested more than %d levels deep.", maxDepth)
	}
	if open == '{' {
		return parseMembers(d, depth-1)
	}
	list := []any{}
	for {
		token, err := d.Token()
		if err != nil {
			return nil, malformed(err)
		}
		if token == json.Delim(']') {
			return list, nil
		}
		value, err := parseValue(d, token, depth-1)
		if err != nil {
			return nil, err
		}
		list = append(list, value)
	}
}

func parseMembers(d *json.Decoder, depth int) (any, error) {
	o, seen := object{}, map[string]bool{}
	for {
		token, err := d.Token()
		if err != nil {
			return nil, malformed(err)
		}
		if token == json.Delim('}') {
			return o, nil
		}
		name := token.(string) // the decoder lets no other key pass
		if seen[name] {
			return nil, invalid("The body's JSON has %q twice.", clip(name))
		}
		seen[name] = true
		if token, err = d.Token(); err != nil {
			return nil, malformed(err)
		}
		value, err := parseValue(d, token, depth)
		if err != nil {
			return nil, err
		}
		o = append(o, member{name, value})
	}
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

// pairs reads an object of strings in its order. An empty list counts as an
// empty object: Lua writes its empty tables so.
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
		if !ok {
			f.wrong("%q has to be an object of strings; %q in it is none.", name, clip(m.name))
			return nil
		}
		pairs = append(pairs, pair{m.name, text})
	}
	return pairs
}

// names reads package names from a list, or from the keys of an object from
// names to versions, as the oldest clients send them.
func (f *fields) names(name string) []string {
	if _, ok := f.get(name).(object); !ok {
		return f.texts(name)
	}
	var names []string
	for _, p := range f.pairs(name) {
		names = append(names, p.name)
	}
	return names
}
