package imagebuilder

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
)

// Trust tells whether the fast path gives the bytes of the plain one with an
// ImageBuilder.
type Trust int

const (
	// TrustUnknown: that was not tried yet.
	TrustUnknown Trust = iota
	// TrustOn: it did, each time that it was tried.
	TrustOn
	// TrustOff: it did not, or the fast path does not know such trees.
	TrustOff
)

const trustFile = "fast-" + recipe

// Trust is what was found out, by this process or an earlier one.
func (t *Tree) Trust() Trust {
	o, err := inspect(t.Path)
	if err != nil || !o.chain {
		return TrustOff
	}
	text, err := os.ReadFile(t.beside(trustFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return TrustUnknown
	case strings.TrimSpace(string(text)) == "on":
		return TrustOn
	}
	return TrustOff
}

// Judge notes what a comparison found: "" or how results of the two paths
// differ. One difference is enough for good.
func (t *Tree) Judge(difference string) error {
	text := "on"
	if difference != "" {
		text = "off: " + difference
	}
	return fault("note whether an ImageBuilder can be fast", install(t.beside(trustFile), func(w io.Writer) error {
		_, err := io.WriteString(w, text+"\n")
		return err
	}))
}

// Differs says in what two results of one request differ, or "". Lists of parts
// are held against each other without the number that each gets at random.
func (o *Output) Differs(other *Output) string {
	a, b := o.sums(), other.sums()
	for _, name := range slices.Sorted(maps.Keys(a)) {
		if a[name] != b[name] {
			return "other bytes of " + name
		}
		delete(b, name)
	}
	for name := range b {
		return "one more file, " + name
	}
	switch {
	case !reflect.DeepEqual(sorted(o.json), sorted(other.json)):
		return "another profiles.json"
	case !reflect.DeepEqual(o.parts, other.parts):
		return "another list of parts"
	}
	return ""
}

// sums are the digests of the files whose bytes have to be the same.
func (o *Output) sums() map[string]string {
	sums := map[string]string{}
	for _, file := range o.Files {
		if file.Name != "profiles.json" && !isParts(file.Name) {
			sums[file.Name] = hex.EncodeToString(file.SHA256[:])
		}
	}
	return sums
}

// sorted is a profiles.json with each profile's images in the order of their
// names: ImageBuilders list them as they come.
func sorted(all map[string]any) map[string]any {
	for _, object := range objects(all)[1:] {
		if list, ok := object["images"].([]any); ok {
			slices.SortFunc(list, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		}
	}
	return all
}
