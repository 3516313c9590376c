package catalog

import (
	"bytes"
	"compress/gzip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/attended-sysupgrade/sysup/shared/feed"
)

// Limits of one package index. The longest real one, the feed "packages", has
// about 6,000 packages in 9 MB.
const (
	maxIndex = 32 << 20 // as it is fetched
	maxPlain = 64 << 20 // unpacked
)

var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}$`)

// unzip unpacks what is compressed, to at most limit bytes, and returns
// anything else unchanged:
// servers and libraries on the way may have unpacked it already.
func unzip(b []byte, limit int64) ([]byte, error) {
	if !bytes.HasPrefix(b, []byte{0x1f, 0x8b}) {
		return b, nil
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return readLimited(z, limit)
}

// The first line of a distilled index: what it tells of its packages. The last
// two tell names and versions only; the very last has lost the names with ABI
// versions. They were all that there was in the first form.
const (
	headOpkg  = "whole opkg\n"
	headAPK   = "whole apk\n"
	headKnown = "abi known\n"
	headLost  = "abi lost\n"
)

// distill writes the form in which an index is kept: a head, then one line for
// every package and one for every other name of a package, sorted by name.
// Fields are apart by tabs, names in a field by blanks. Of a package:
//
//	name, ABI-free name if it differs, version, installed size, size of its
//	file, priority, what it needs, excludes, provides and is installed with
//
// of another name: the name, "=", and the package. What is empty at the end of
// a line is left out.
func distill(head string, list []feed.Package) []byte {
	var lines []string
	for i := range list {
		p := &list[i]
		lines = append(lines, packageLine(head, p))
		free := p.Free()
		if free != p.Name {
			lines = append(lines, aliasLine(free, p.Name))
		}
		for _, o := range p.Provides {
			if o.Name != p.Name && o.Name != free && !implied(head, p, o) {
				lines = append(lines, aliasLine(o.Name, p.Name))
			}
		}
		for _, when := range p.InstallIf[:min(len(p.InstallIf), 1)] {
			lines = append(lines, when.Name+"\t"+trigger+"\t"+p.Name+"\n")
		}
	}
	sortLines(lines)
	return []byte(head + strings.Join(slices.Compact(lines), ""))
}

// The second field of a line that is not a package's.
const (
	alias   = "="
	trigger = "?" // the package comes along with what has the name
)

func aliasLine(name, of string) string { return name + "\t" + alias + "\t" + of + "\n" }

// implied tells what a package provides of itself: its ABI-free name, and with
// apk its name with "-any".
func implied(head string, p *feed.Package, o feed.Dependency) bool {
	free := p.Free()
	return o.Op == "" && o.Or == nil && (o.Name == free && free != p.Name || head == headAPK && o.Name == p.Name+anySuffix)
}

const anySuffix = "-any"

func packageLine(head string, p *feed.Package) string {
	free := p.Free()
	if free == p.Name {
		free = ""
	}
	provides := slices.DeleteFunc(slices.Clone(p.Provides), func(o feed.Dependency) bool { return implied(head, p, o) })
	fields := []string{
		p.Name, free, p.Version, number(p.InstalledSize), number(p.Size), number(int64(p.Priority)),
		spell(p.Depends), spell(p.Conflicts), spell(provides), spell(p.InstallIf),
	}
	for len(fields) > 3 && fields[len(fields)-1] == "" {
		fields = fields[:len(fields)-1]
	}
	return strings.Join(fields, "\t") + "\n"
}

func number(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

// spell writes "a b>=1.0 c|d".
func spell(list []feed.Dependency) string {
	var words []string
	for _, d := range list {
		word := spellOne(d)
		for _, o := range d.Or {
			word += "|" + spellOne(o)
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

func spellOne(d feed.Dependency) string { return d.Name + d.Op + d.Version }

// unspell is the inverse of spell.
func unspell(field string) []feed.Dependency {
	if field == "" {
		return nil
	}
	list := make([]feed.Dependency, 0, strings.Count(field, " ")+1)
	for word := range strings.SplitSeq(field, " ") {
		first, rest, more := strings.Cut(word, "|")
		d := unspellOne(first)
		for more {
			first, rest, more = strings.Cut(rest, "|")
			d.Or = append(d.Or, unspellOne(first))
		}
		list = append(list, d)
	}
	return list
}

const operatorChars = "<=>~?"

func unspellOne(word string) feed.Dependency {
	i := strings.IndexAny(word, operatorChars)
	if i < 0 {
		return feed.Dependency{Name: word}
	}
	end := i + 1
	if end < len(word) && word[end] == '=' {
		end++
	}
	return feed.Dependency{Name: word[:i], Op: word[i:end], Version: word[end:]}
}

// parseLine is the inverse of packageLine, but for what it leaves out. The
// strings share the line's memory.
func parseLine(line string, apk bool) *feed.Package {
	var fields [10]string
	for i := range fields {
		fields[i], line, _ = strings.Cut(line, "\t")
	}
	p := &feed.Package{
		Name: fields[0], ABI: abiOf(fields[0], fields[1]), Version: fields[2], InstalledSize: parseNumber(fields[3]), Size: parseNumber(fields[4]),
		Priority: int(parseNumber(fields[5])), Depends: unspell(fields[6]), Conflicts: unspell(fields[7]), Provides: unspell(fields[8]), InstallIf: unspell(fields[9]),
	}
	if apk {
		p.Provides = append(p.Provides, feed.Dependency{Name: p.Name + anySuffix})
	}
	if fields[1] != "" && fields[1] != p.Name {
		p.Provides = append(p.Provides, feed.Dependency{Name: fields[1]})
	}
	return p
}

// abiOf is what a name has behind its ABI-free name.
func abiOf(name, free string) string {
	if free == "" {
		return ""
	}
	abi, _ := strings.CutPrefix(name, free)
	return abi
}

func parseNumber(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// sortLines sorts by name; lines of one name keep their order.
func sortLines(lines []string) {
	slices.SortStableFunc(lines, func(a, b string) int { return strings.Compare(nameOf(a), nameOf(b)) })
}

func nameOf(line string) string {
	name, _, _ := strings.Cut(line, "\t")
	return name
}
