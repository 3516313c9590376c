package usign

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"maps"
	"strings"
	"testing"
	"testing/iotest"
)

var (
	hexA = strings.Repeat("0123456789abcdef", 4)
	hexB = strings.Repeat("fedcba9876543210", 4)
)

func TestParseSums(t *testing.T) {
	sums := must(ParseSums([]byte(hexA + " *openwrt-imagebuilder-24.10.0-x86-64.Linux-x86_64.tar.zst\n" +
		hexB + "  packages/lib++-1.0~git,1:2@x%20=r3.apk\n" +
		hexB + " *.hidden")))(t)
	for name, first := range map[string]byte{
		"openwrt-imagebuilder-24.10.0-x86-64.Linux-x86_64.tar.zst": 0x01,
		"packages/lib++-1.0~git,1:2@x%20=r3.apk":                   0xfe,
		".hidden":                                                  0xfe,
	} {
		if sum, ok := sums[name]; !ok || sum[0] != first {
			t.Errorf("%s has %x", name, sum)
		}
	}
	if len(sums) != 3 {
		t.Errorf("%d names", len(sums))
	}
	if empty, err := ParseSums(nil); err != nil || len(empty) != 0 {
		t.Errorf("the empty list: %v, %v", empty, err)
	}
}

func TestMalformedSums(t *testing.T) {
	for name, list := range map[string]string{
		"no name":         hexA + " *\n",
		"no blank":        hexA + "*name\n",
		"short":           hexA[1:] + " *name\n",
		"long":            "0" + hexA + " *name\n",
		"upper case":      strings.ToUpper(hexA) + " *name\n",
		"twice":           hexA + " *name\n" + hexA + " *name\n",
		"absolute":        hexA + " */etc/passwd\n",
		"upwards":         hexA + " *../name\n",
		"upwards inside":  hexA + " *a/../name\n",
		"here":            hexA + " *./name\n",
		"only here":       hexA + " *.\n",
		"empty segment":   hexA + " *a//b\n",
		"folder":          hexA + " *a/\n",
		"blank inside":    hexA + " *a b\n",
		"backslash":       hexA + ` *a\b` + "\n",
		"shell":           hexA + " *a$(b)\n",
		"option":          hexA + " *-rf\n",
		"NUL":             hexA + " *a\x00b\n",
		"UTF-8":           hexA + " *ü\n",
		"CRLF":            hexA + " *name\r\n",
		"empty line":      hexA + " *name\n\n",
		"too long a name": hexA + " *" + strings.Repeat("n", maxSumName+1) + "\n",
		"too long":        strings.Repeat("\n", maxSums+1),
	} {
		if sums, err := ParseSums([]byte(list)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v, %v", name, sums, err)
		}
	}
}

func TestMarshalSums(t *testing.T) {
	sums := Sums{"b": {2}, "a/c": {1}}
	got := must(sums.Marshal())(t)
	if want := "01" + strings.Repeat("0", 62) + " *a/c\n02" + strings.Repeat("0", 62) + " *b\n"; string(got) != want {
		t.Errorf("%q, not %q", got, want)
	}
	for _, name := range []string{"../a", "", "a\nb", "a b"} {
		if b, err := (Sums{name: {}}).Marshal(); !errors.Is(err, ErrFormat) {
			t.Errorf("name %q is written: %q, %v", name, b, err)
		}
	}
}

func TestCheck(t *testing.T) {
	sums := Sums{"a": sha256.Sum256([]byte("content"))}
	broken := errors.New("broken")
	for _, c := range []struct {
		name, file, content string
		want                error
	}{
		{"the file", "a", "content", nil},
		{"another content", "a", "contents", ErrSum},
		{"no such name", "b", "content", ErrSum},
	} {
		if err := sums.Check(c.file, strings.NewReader(c.content)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if err := sums.Check("a", iotest.ErrReader(broken)); !errors.Is(err, broken) || errors.Is(err, ErrSum) {
		t.Errorf("a file that cannot be read: %v", err)
	}
}

func FuzzParseSums(f *testing.F) {
	f.Add([]byte(hexA + " *a\n" + hexB + "  packages/b.ipk\n"))
	f.Add([]byte(hexA + " *../a\n"))
	f.Add([]byte(hexA + " *a\r\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		sums, err := ParseSums(b)
		if err != nil {
			refused(t, err)
			return
		}
		for name := range sums {
			if strings.Contains("/"+name+"/", "/../") || strings.HasPrefix(name, "/") || strings.ContainsAny(name, "\\\x00 \n") {
				t.Errorf("the name %q leaves its folder", name)
			}
		}
		written := must(sums.Marshal())(t)
		if back := must(ParseSums(written))(t); !maps.Equal(back, sums) {
			t.Errorf("%q is read back differently", written)
		}
		if bytes.Count(written, []byte("\n")) != len(sums) {
			t.Errorf("%d lines for %d names", bytes.Count(written, []byte("\n")), len(sums))
		}
	})
}
