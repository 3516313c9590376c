package usign

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// The images were made by OpenWrt's fwtool: plain, with metadata (-I), and with
// a signature after it (-S).
func TestFwtoolVectors(t *testing.T) {
	plain, metadata, signed := testdata(t, "image.bin"), testdata(t, "image-metadata.bin"), testdata(t, "image-signed.bin")
	for _, c := range []struct {
		name  string
		image []byte
		size  int
		found bool
	}{
		{"plain", plain, len(plain), false},
		{"metadata stays", metadata, len(metadata), false},
		{"signed", signed, len(metadata), true},
	} {
		size, found, err := CutSignature(bytes.NewReader(c.image), int64(len(c.image)))
		if err != nil || size != int64(c.size) || found != c.found {
			t.Errorf("%s: %d, %v, %v", c.name, size, found, err)
		}
	}
	made, err := SignatureTrailer(bytes.NewReader(metadata), []byte("chain of certificates"))
	if err != nil || !bytes.Equal(append(metadata, made...), signed) {
		t.Errorf("the trailer %x differs from fwtool's, %v", made, err)
	}
}

func signImage(t testing.TB, image, signature []byte) []byte {
	return append(bytes.Clone(image), must(SignatureTrailer(bytes.NewReader(image), signature))(t)...)
}

func TestCutSignature(t *testing.T) {
	image := bytes.Repeat([]byte("firmware"), 20_000)
	signed := signImage(t, image, []byte("ucert"))
	at := func(back int, b byte) []byte {
		changed := bytes.Clone(signed)
		changed[len(changed)-back] = b
		return changed
	}
	sized := func(size uint32) []byte {
		changed := bytes.Clone(signed)
		binary.BigEndian.PutUint32(changed[len(changed)-4:], size)
		return changed
	}
	for _, c := range []struct {
		name  string
		image []byte
		size  int
	}{
		{"signed", signed, len(image)},
		{"signed twice: the last one goes", signImage(t, signed, []byte("again")), len(signed)},
		{"an empty signature", signImage(t, image, nil), len(image)},
		{"nothing but a signature", signImage(t, nil, []byte("ucert")), 0},
		{"empty", nil, 0},
		{"shorter than a trailer", []byte("FWx0"), 4},
		{"no magic", at(16, 'f'), len(signed)},
		{"another CRC", at(12, signed[len(signed)-12]^1), len(signed)},
		{"another type", at(8, 7), len(signed)},
		{"changed content", append([]byte("F"), signed[1:]...), len(signed)},
		{"something behind", append(bytes.Clone(signed), 0), len(signed) + 1},
		{"size 0", sized(0), len(signed)},
		{"size below the trailer's", sized(15), len(signed)},
		{"size above the image's", sized(uint32(len(signed) + 1)), len(signed)},
		{"size above what fwtool takes", sized(maxTrailer + trailerSize + 1), len(signed)},
		{"size with the highest bit", sized(1<<31 | 21), len(signed)},
	} {
		size, found, err := CutSignature(bytes.NewReader(c.image), int64(len(c.image)))
		if err != nil || size != int64(c.size) || found != (c.size != len(c.image)) {
			t.Errorf("%s: %d, %v, %v; the size is %d", c.name, size, found, err, c.size)
		}
	}
}

// brokenAt reads as r, but fails below some offset.
type brokenAt struct {
	io.ReaderAt
	below int64
}

var errBroken = errors.New("broken disk")

func (b brokenAt) ReadAt(p []byte, off int64) (int, error) {
	if off < b.below {
		return 0, errBroken
	}
	return b.ReaderAt.ReadAt(p, off)
}

func TestUnreadableImages(t *testing.T) {
	signed := signImage(t, []byte(strings.Repeat("firmware", 100)), []byte("ucert"))
	for _, below := range []int64{1, int64(len(signed))} {
		if size, found, err := CutSignature(brokenAt{bytes.NewReader(signed), below}, int64(len(signed))); !errors.Is(err, errBroken) || found {
			t.Errorf("broken below %d: %d, %v, %v", below, size, found, err)
		}
	}
	if _, err := SignatureTrailer(iotest.ErrReader(errBroken), nil); !errors.Is(err, errBroken) {
		t.Errorf("%v", err)
	}
	if _, err := SignatureTrailer(bytes.NewReader(nil), make([]byte, maxSignature+1)); !errors.Is(err, ErrFormat) {
		t.Errorf("a signature that fwtool would refuse: %v", err)
	}
}

// Whatever is cut off is what would be appended.
func FuzzCutSignature(f *testing.F) {
	for _, name := range []string{"image.bin", "image-metadata.bin", "image-signed.bin"} {
		f.Add(testdata(f, name))
	}
	f.Add(signImage(f, signImage(f, []byte("x"), []byte("a")), nil))
	f.Fuzz(func(t *testing.T, image []byte) {
		size, found, err := CutSignature(bytes.NewReader(image), int64(len(image)))
		if err != nil || size < 0 || size > int64(len(image)) || (!found && size != int64(len(image))) {
			t.Fatalf("%d of %d, %v, %v", size, len(image), found, err)
		}
		padding := image[max(0, len(image)-7):]
		if !found || int64(len(image))-size > maxSignature+trailerSize || !bytes.HasPrefix(padding, []byte{0, 0, 0}) {
			return
		}
		if again := signImage(t, image[:size], image[size:len(image)-trailerSize]); !bytes.Equal(again, image) {
			t.Errorf("%x is not what would be made, %x", image, again)
		}
	})
}
