package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// FuzzParseObject: what is accepted is what encoding/json reads in it, in its
// order and with no name twice; what is not is a Refusal.
func FuzzParseObject(f *testing.F) {
	for _, seed := range []string{
		`{}`, stock, `{"b":1,"a":[{},[],null,true,-1.5e-3,"\ud83d\ude00\u0000"]}`, `{"a":1,"a":1}`, `{"a":{"a":{"a":1}}}`,
		`[{}]`, `{"":""}`, "{\"a\":\"\xff\"}", `{"a":1}x`, `{"a":01}`, deep(20), `{"a":"\ud800"}`, "",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := parseObject(b)
		if err != nil {
			if refusal, ok := errors.AsType[*build.Refusal](err); !ok || refusal.Code != build.CodeInvalid || refusal.Detail == "" {
				t.Errorf("%q: %v is no refusal", b, err)
			}
			return
		}
		var want map[string]any
		d := json.NewDecoder(bytes.NewReader(b))
		d.UseNumber()
		if err := d.Decode(&want); err != nil || !json.Valid(b) {
			t.Fatalf("%q was accepted: %v", b, err)
		}
		if got := loose(t, o); !reflect.DeepEqual(got, any(want)) {
			t.Errorf("%q: %v, want %v", b, got, want)
		}
	})
}

// loose is the value as encoding/json has it.
func loose(t *testing.T, value any) any {
	switch v := value.(type) {
	case object:
		m := map[string]any{}
		for _, member := range v {
			if _, twice := m[member.name]; twice {
				t.Errorf("%q twice", member.name)
			}
			m[member.name] = loose(t, member.value)
		}
		return m
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = loose(t, v[i])
		}
		return list
	}
	return value
}

// TestOrder: members keep their order, which decides which feed wins.
func TestOrder(t *testing.T) {
	o, err := parseObject([]byte(`{"repositories":{"z":"1","a":"2","m":"3"}}`))
	if err != nil {
		t.Fatal(err)
	}
	f := &fields{o: o}
	want := []pair{{"z", "1"}, {"a", "2"}, {"m", "3"}}
	if got := f.pairs("repositories"); !reflect.DeepEqual(got, want) || f.err != nil {
		t.Errorf("%v %v, want %v", got, f.err, want)
	}
}
