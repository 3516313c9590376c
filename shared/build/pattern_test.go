package build

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// TestWords holds the patterns against the regular expressions that say the
// same: every byte in every place, and the lengths around the greatest one.
func TestWords(t *testing.T) {
	for _, test := range []struct {
		pattern pattern
		same    string
		max     int
	}{
		{distroPattern, `^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$`, 32},
		{versionPattern, `^[A-Za-z0-9][A-Za-z0-9.+_-]{0,39}$`, 40},
		{revisionPattern, `^[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}$`, 64},
		{targetPattern, `^[A-Za-z0-9][A-Za-z0-9_-]{0,31}/[A-Za-z0-9][A-Za-z0-9_-]{0,31}$`, 32},
		{profilePattern, `^[A-Za-z0-9][A-Za-z0-9_.,+-]{0,127}$`, 128},
		{packagePattern, `^[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}$`, 128},
		{pkgVersionPattern, `^[A-Za-z0-9][A-Za-z0-9_.+~:-]{0,127}$`, 128},
		{filesystemPattern, `^[a-z0-9][a-z0-9-]{0,19}$`, 20},
		{repoNamePattern, `^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`, 64},
		{clientPattern, `^[A-Za-z0-9][A-Za-z0-9 /._~+():;,-]{0,127}$`, 128},
	} {
		same, told := regexp.MustCompile(test.same), regexp.MustCompile(test.pattern.String())
		texts := []string{"", "/", "a/", "/a", "a/b/c", "a/b", "ä", "a\n", "\na"}
		for c := range 256 {
			b := string([]byte{byte(c)})
			texts = append(texts, b, "a"+b, "a"+b+"a", "a/"+b, b+"/a", "a/a"+b, "a"+b+"/a")
		}
		for n := test.max - 1; n <= test.max+1; n++ {
			long := strings.Repeat("a", n)
			texts = append(texts, long, long+"/a", "a/"+long)
		}
		for _, text := range texts {
			want := same.MatchString(text)
			if got := test.pattern.MatchString(text); got != want {
				t.Errorf("%s: %q is allowed: %v", test.same, fmt.Sprintf("%.50s", text), got)
			}
			if got := told.MatchString(text); got != want {
				t.Errorf("%s, told as %s: %q is allowed: %v", test.same, told, fmt.Sprintf("%.50s", text), got)
			}
		}
	}
}
