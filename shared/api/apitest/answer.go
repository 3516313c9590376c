package apitest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// Answer is what a client gets.
type Answer struct {
	Head    bool // to a HEAD
	Status  int
	Header  http.Header
	Body    []byte
	Length  int64 // as Content-Length says, -1 without
	Chunked bool
}

// value is the body's JSON, nil if it is none. Numbers are json.Number.
func (a Answer) value() (value any) {
	d := json.NewDecoder(bytes.NewReader(a.Body))
	d.UseNumber()
	if d.Decode(&value) != nil {
		return nil
	}
	return value
}

// object is the body as a JSON object, empty if it is none.
func (a Answer) object() object {
	o, _ := a.value().(map[string]any)
	return o
}

// object is a JSON object as a script language sees it.
type object map[string]any

func (o object) text(name string) string {
	text, _ := o[name].(string)
	return text
}

// Sound checks what every client relies on, whatever it asked: pages of other
// origins can read the answer, there is no redirect, the length is told, an
// error is a JSON object with a sentence, "detail" is a string, and a "status"
// that is a number is that of HTTP.
func (a Answer) Sound() error {
	if allow := a.Header.Values("Access-Control-Allow-Origin"); len(allow) != 1 || allow[0] != "*" {
		return fmt.Errorf("Access-Control-Allow-Origin is %q", allow)
	}
	if a.Status >= 300 && a.Status < 400 && a.Status != http.StatusNotModified {
		return errors.New("a redirect")
	}
	if a.Header.Get("Content-Encoding") != "" || a.Chunked {
		return errors.New("the body is encoded or in chunks")
	}
	if a.Length < 0 && a.Status != http.StatusNoContent && a.Status != http.StatusNotModified {
		return errors.New("no Content-Length")
	}
	if a.Head {
		return nil
	}
	return a.soundBody()
}

func (a Answer) soundBody() error {
	o := a.object()
	if detail, ok := o["detail"]; ok {
		if _, isText := detail.(string); !isText {
			return fmt.Errorf("detail is no string: %v", detail)
		}
	}
	if a.Status >= 400 && o.text("detail") == "" {
		return errors.New("an error without a sentence")
	}
	if status, ok := o["status"].(json.Number); ok && status.String() != fmt.Sprint(a.Status) {
		return fmt.Errorf("the JSON's status is %s", status)
	}
	return nil
}

// preflight tells why a browser would not go on to send what it asked for.
func (a Answer) preflight(method string) error {
	allowed := func(header, name string) bool {
		for item := range strings.SplitSeq(a.Header.Get(header), ",") {
			if item = strings.TrimSpace(item); item == "*" || strings.EqualFold(item, name) {
				return true
			}
		}
		return false
	}
	switch {
	case a.Status < 200 || a.Status > 299:
		return errors.New("not a 2xx")
	case !allowed("Access-Control-Allow-Methods", method):
		return fmt.Errorf("it may not send %s", method)
	case !allowed("Access-Control-Allow-Headers", "Content-Type"):
		return errors.New("it may not send a Content-Type")
	}
	return nil
}
