package pack

import (
	"reflect"
	"testing"
)

// FuzzReadADB reads values that a trusted key might have signed: they end in packages that can be
// written and read again, or in an error, and never take more than their bounds.
func FuzzReadADB(f *testing.F) {
	w := &adbWriter{b: make([]byte, adbHeader)}
	p, err := w.pkg(Meta{Name: "nano", Version: "7.2-r1", Depends: []string{"libc", "kernel (=6.1)"}, Conflicts: []string{"vi"}, Size: 1 << 29})
	if err != nil {
		f.Fatal(err)
	}
	root := w.slots(typeObject, []uint32{0, w.slots(typeArray, []uint32{p, p})})
	w.b[4], w.b[5], w.b[6], w.b[7] = byte(root), byte(root>>8), byte(root>>16), byte(root>>24)
	if metas, err := readADB(w.b); err != nil || len(metas) != 2 || metas[0].Conflicts[0] != "vi" {
		f.Fatalf("the seed is read as %+v, %v", metas, err)
	}
	f.Add(w.b)
	f.Add([]byte{0, 0, 0, 0, 8, 0, 0, 0xe0, 2, 0, 0, 0, 8, 0, 0, 0xd0})
	f.Fuzz(func(t *testing.T, payload []byte) {
		if len(payload) < adbHeader {
			return
		}
		metas, err := readADB(payload)
		if err == nil && len(metas) > 0 && len(metas) > 3*len(payload) {
			t.Errorf("%d bytes hold %d packages", len(payload), len(metas))
		}
		again, err2 := readADB(payload)
		if (err == nil) != (err2 == nil) || !reflect.DeepEqual(metas, again) {
			t.Error("reading twice gives two results")
		}
	})
}
