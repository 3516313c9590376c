package catalog

import (
	"cmp"
	"iter"
	"regexp"
	"sort"
	"strings"

	"github.com/attended-sysupgrade/sysup/shared/feed"
	"github.com/attended-sysupgrade/sysup/shared/resolve"
)

// index answers what a package name means. It holds one text in the form of
// distill, without its first line, and where each line starts; lines are only
// taken apart when they are asked for.
type index struct {
	text   string
	starts []uint32
	format resolve.Format
	lost   bool   // some names with ABI versions are missing
	bare   bool   // of some packages only the name and the version are known
	open   bool   // there may be packages that it does not have
	mute   bool   // of some packages it does not tell what they provide
	stamp  string // of the files that it was read from
}

// newIndex joins distilled indices. A line without both tabs, which only a
// damaged file has, is left out.
func newIndex(distilled ...string) *index {
	x := &index{}
	var lines []string
	for _, text := range distilled {
		head, rest, _ := strings.Cut(text, "\n")
		x.head(head + "\n")
		if len(distilled) == 1 {
			x.text = rest
			break
		}
		for line := range strings.Lines(rest) {
			lines = append(lines, line)
		}
	}
	if len(distilled) > 1 {
		sortLines(lines)
		x.text = strings.Join(lines, "")
	}
	x.starts = make([]uint32, 0, strings.Count(x.text, "\n"))
	for at := 0; at < len(x.text); {
		end := strings.IndexByte(x.text[at:], '\n')
		if end < 0 {
			break
		}
		if strings.Count(x.text[at:at+end], "\t") >= 2 {
			x.starts = append(x.starts, uint32(at))
		}
		at += end + 1
	}
	return x
}

func (x *index) head(line string) {
	switch line {
	case headAPK:
		x.format = resolve.APK
	case headLost:
		x.lost, x.bare = true, true
	case headOpkg:
	default:
		x.bare = true
	}
}

// entry is one name of an index. The strings share the index's text: clone
// what is kept.
type entry struct {
	name    string
	free    string // without the ABI version
	version string // empty for what is only provided
}

// line returns the i-th line without its end.
func (x *index) line(i int) string {
	line, _, _ := strings.Cut(x.text[x.starts[i]:], "\n")
	return line
}

// lines returns the range of lines that a name has.
func (x *index) lines(name string) (first, end int) {
	// A tab is less than what names are made of, so the beginning of a line
	// compares as its name does.
	first = sort.Search(len(x.starts), func(i int) bool {
		line := x.text[x.starts[i]:]
		return line[:min(len(line), len(name))] >= name
	})
	for end = first; end < len(x.starts) && x.named(end, name); end++ {
	}
	return first, end
}

func (x *index) named(i int, name string) bool {
	rest, ok := strings.CutPrefix(x.text[x.starts[i]:], name)
	return ok && strings.HasPrefix(rest, "\t")
}

func (x *index) find(name string) (entry, bool) {
	first, end := x.lines(name)
	return x.best(name, first, end), first < end
}

// best is what a name means by the lines it has: a package that is called so
// with and without its ABI version, else the newest that is so without, else
// any package of that name.
func (x *index) best(name string, first, end int) entry {
	best := x.newest(name, first, end)
	if best.version != "" && best.free == name {
		return best
	}
	version := ""
	for i := first; i < end; i++ {
		if of, ok := x.aliased(i); ok {
			if e := x.newest(of, 0, 0); e.free == name && x.newer(e.version, version) {
				version = e.version
			}
		}
	}
	if version != "" {
		return entry{name, name, version}
	}
	return best
}

// newest finds the package of that very name among some lines, by default all.
func (x *index) newest(name string, first, end int) entry {
	best := entry{name: name, free: name}
	if end == 0 {
		first, end = x.lines(name)
	}
	for ; first < end; first++ {
		fields := strings.SplitN(x.line(first), "\t", 4)
		if fields[1] == alias || fields[1] == trigger || best.version != "" && !x.newer(fields[2], best.version) {
			continue
		}
		best.version, best.free = fields[2], cmp.Or(fields[1], name)
	}
	return best
}

func (x *index) newer(a, b string) bool { return b == "" || x.format.Compare(a, b) > 0 }

// aliased tells of which package the line gives another name.
func (x *index) aliased(i int) (of string, ok bool) {
	_, rest, _ := strings.Cut(x.line(i), "\t")
	return strings.CutPrefix(rest, alias+"\t")
}

// parse takes a package's line apart; nil for any other line.
func (x *index) parse(i int) *feed.Package {
	line := x.line(i)
	_, rest, _ := strings.Cut(line, "\t")
	if strings.HasPrefix(rest, alias+"\t") || strings.HasPrefix(rest, trigger+"\t") {
		return nil
	}
	return parseLine(line, x.format == resolve.APK)
}

// has tells whether any name begins so.
func (x *index) has(prefix string) bool {
	i, _ := x.lines(prefix)
	return i < len(x.starts) && strings.HasPrefix(x.text[x.starts[i]:], prefix)
}

// all yields the entries in the order of their names.
func (x *index) all() iter.Seq[entry] {
	return func(yield func(entry) bool) {
		for i := 0; i < len(x.starts); {
			name := nameOf(x.line(i))
			end := i + 1
			for end < len(x.starts) && x.named(end, name) {
				end++
			}
			if !yield(x.best(name, i, end)) {
				return
			}
			i = end
		}
	}
}

// An ABI version where only the name tells it. All real ones begin so;
// libwolfssl's has 38 characters.
var cutPattern = regexp.MustCompile(`^[0-9][A-Za-z0-9_.+]{0,63}$`)

const maxCut = 1 + 64 // with a '-'

// cutABI looks for the package whose name, with some ABI version behind it, is
// the given one: the longest there is that is accepted.
func cutABI(name string, find func(string) (entry, bool), accept func(entry) bool) (entry, bool) {
	if strings.HasPrefix(name, "kmod-") {
		return entry{}, false // kernel modules never have one
	}
	for i := len(name) - 1; i > 0 && len(name)-i <= maxCut; i-- {
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

func endsInDigit(s string) bool {
	return s != "" && s[len(s)-1] >= '0' && s[len(s)-1] <= '9'
}
