package catalog

import (
	"iter"
	"regexp"
	"sort"
	"strings"
)

// index answers what a package name means. It holds one text in the form of
// distill, without its first line, and where each line starts.
type index struct {
	text   string
	starts []uint32
	lost   bool // some names with ABI versions are missing
}

// newIndex joins distilled indices; earlier ones win. A line without both
// tabs, which only a damaged file has, is left out.
func newIndex(distilled ...string) *index {
	x := &index{}
	var lines []string
	for _, text := range distilled {
		head, rest, _ := strings.Cut(text, "\n")
		x.lost = x.lost || head+"\n" == headLost
		if len(distilled) == 1 {
			x.text = rest
			break
		}
		for line := range strings.Lines(rest) {
			lines = append(lines, line)
		}
	}
	if len(distilled) > 1 {
		x.text = joinLines(lines)
	}
	x.starts = make([]uint32, 0, strings.Count(x.text, "\n"))
	for at := 0; at < len(x.text); {
		end := strings.IndexByte(x.text[at:], '\n')
		if end < 0 {
			break
		}
		if strings.Count(x.text[at:at+end], "\t") == 2 {
			x.starts = append(x.starts, uint32(at))
		}
		at += end + 1
	}
	return x
}

// entry is one name of an index. The strings share the index's text: clone
// what is kept.
type entry struct {
	name    string
	free    string // without the ABI version
	version string // empty for what is only provided
}

func (x *index) at(i int) entry {
	line := x.text[x.starts[i]:]
	name, rest, _ := strings.Cut(line, "\t")
	free, rest, _ := strings.Cut(rest, "\t")
	version, _, _ := strings.Cut(rest, "\n")
	return entry{name, free, version}
}

func (x *index) find(name string) (entry, bool) {
	// A tab is less than what names are made of, so the beginning of a line
	// compares as its name does.
	i := sort.Search(len(x.starts), func(i int) bool {
		line := x.text[x.starts[i]:]
		return line[:min(len(line), len(name))] >= name
	})
	if i == len(x.starts) {
		return entry{}, false
	}
	e := x.at(i)
	return e, e.name == name
}

// all yields the entries in the order of their names.
func (x *index) all() iter.Seq[entry] {
	return func(yield func(entry) bool) {
		for i := range x.starts {
			if !yield(x.at(i)) {
				return
			}
		}
	}
}

// An ABI version where only the name tells it. All real ones begin so.
var cutPattern = regexp.MustCompile(`^[0-9][A-Za-z0-9_.+]{0,31}$`)

// cutABI looks for the package whose name, with some ABI version behind it, is
// the given one: the longest there is that is accepted.
func cutABI(name string, find func(string) (entry, bool), accept func(entry) bool) (entry, bool) {
	if strings.HasPrefix(name, "kmod-") {
		return entry{}, false // kernel modules never have one
	}
	for i := len(name) - 1; i > 0 && len(name)-i <= 33; i-- {
		abi, dash := strings.CutPrefix(name[i:], "-")
		if dash != endsInDigit(name[:i]) || !cutPattern.MatchString(abi) {
			continue
		}
		if e, ok := find(name[:i]); ok && accept(e) {
			return e, true
		}
	}
	return entry{}, false
}
