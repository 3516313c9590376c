package catalog

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Limits of one package index. The longest real one, the feed "packages", has
// about 6,000 packages in 9 MB.
const (
	maxIndex     = 32 << 20 // as it is fetched
	maxPlain     = 64 << 20 // unpacked
	maxIndexLine = 64 << 10
	maxPackages  = 100_000
	maxProvides  = 1_000 // of one package
)

var (
	namePattern    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}$`)
	versionPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.+~:-]{0,127}$`)
	abiPattern     = regexp.MustCompile(`^-?[A-Za-z0-9][A-Za-z0-9_.+]{0,31}$`)
)

// pkg is a package as an index lists it.
type pkg struct {
	name     string // as it is installed: "libubox20240329"
	abi      string // "20240329", where the index tells it
	version  string
	provides []string
}

// free is the name without the ABI version, the one that people and requests
// use. A '-' keeps the two apart after a digit ("libfoo2-1").
func (p *pkg) free() string {
	name, ok := strings.CutSuffix(p.name, p.abi)
	if p.abi == "" || !ok {
		return p.name
	}
	if short, dash := strings.CutSuffix(name, "-"); dash && endsInDigit(short) {
		name = short
	}
	if name == "" {
		return p.name
	}
	return name
}

func endsInDigit(s string) bool {
	return s != "" && s[len(s)-1] >= '0' && s[len(s)-1] <= '9'
}

// parsePackages reads opkg's list of packages: stanzas of "Field: value",
// apart by empty lines. Stanzas whose name or version breaks its pattern are
// left out.
func parsePackages(b []byte) ([]pkg, error) {
	var list []pkg
	var p pkg
	end := func() error {
		if namePattern.MatchString(p.name) && versionPattern.MatchString(p.version) {
			list = append(list, p)
		}
		p = pkg{}
		if len(list) > maxPackages {
			return fmt.Errorf("more than %d packages", maxPackages)
		}
		return nil
	}
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(make([]byte, 0, 4096), maxIndexLine)
	for lines.Scan() {
		if len(lines.Bytes()) > 0 {
			p.field(lines.Bytes())
		} else if err := end(); err != nil {
			return nil, err
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the list of packages: %w", err)
	}
	return list, end()
}

func (p *pkg) field(line []byte) {
	name, value, _ := bytes.Cut(line, []byte(":"))
	value = bytes.TrimSpace(value)
	switch string(name) {
	case "Package":
		p.name = string(value)
	case "Version":
		p.version = string(value)
	case "ABIVersion":
		if abiPattern.Match(value) {
			p.abi = string(value)
		}
	case "Provides":
		p.provides = parseProvides(string(value))
	}
}

// parseProvides reads "a, b (= 1.0), c=2".
func parseProvides(value string) []string {
	var list []string
	for entry := range strings.SplitSeq(value, ",") {
		name := strings.TrimSpace(entry)
		if i := strings.IndexAny(name, " (=<>~"); i >= 0 {
			name = name[:i]
		}
		if namePattern.MatchString(name) && len(list) < maxProvides {
			list = append(list, name)
		}
	}
	return list
}

// parseIndexJSON reads an index.json. Its version 2 holds names without the
// ABI version and has lost that; before, they are as they are installed.
func parseIndexJSON(b []byte) (list []pkg, lost bool, err error) {
	var index struct {
		Version  int               `json:"version"`
		Packages map[string]string `json:"packages"`
	}
	if err := json.Unmarshal(b, &index); err != nil {
		return nil, false, fmt.Errorf("read index.json: %w", err)
	}
	if index.Packages == nil {
		return nil, false, errors.New(`index.json has no "packages"`)
	}
	if len(index.Packages) > maxPackages {
		return nil, false, fmt.Errorf("index.json: more than %d packages", maxPackages)
	}
	for name, version := range index.Packages {
		if namePattern.MatchString(name) && versionPattern.MatchString(version) {
			list = append(list, pkg{name: name, version: version})
		}
	}
	return list, index.Version >= 2, nil
}

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

// The first line of a distilled index: whether names with ABI versions are
// among its names.
const (
	headKnown = "abi known\n"
	headLost  = "abi lost\n"
)

// distill writes the form in which an index is kept: the first line, then
// "name<tab>ABI-free name<tab>version" for every name that a request may use,
// sorted. The version is empty for what is only provided by some package.
func distill(list []pkg, lost bool) []byte {
	var lines []string
	for i := range list {
		p := &list[i]
		free := p.free()
		lines = append(lines, p.name+"\t"+free+"\t"+p.version+"\n")
		if free != p.name {
			lines = append(lines, free+"\t"+free+"\t"+p.version+"\n")
		}
		for _, name := range p.provides {
			lines = append(lines, name+"\t"+name+"\t\n")
		}
	}
	head := headKnown
	if lost {
		head = headLost
	}
	return []byte(head + joinLines(lines))
}

// joinLines sorts by name and leaves the best line for each, else the first.
func joinLines(lines []string) string {
	slices.SortStableFunc(lines, func(a, b string) int {
		return strings.Compare(nameOf(a), nameOf(b))
	})
	var text strings.Builder
	for i := 0; i < len(lines); {
		best := lines[i]
		name := nameOf(best)
		for i++; i < len(lines) && nameOf(lines[i]) == name; i++ {
			if rank(lines[i]) > rank(best) {
				best = lines[i]
			}
		}
		text.WriteString(best)
	}
	return text.String()
}

// rank prefers packages to what is only provided, and names that stand for
// themselves, so that the ABI-free name of an ABI-free name is itself.
func rank(line string) int {
	name, rest, _ := strings.Cut(line, "\t")
	switch {
	case strings.HasSuffix(rest, "\t\n"):
		return 0
	case !strings.HasPrefix(rest, name+"\t"):
		return 1
	}
	return 2
}

func nameOf(line string) string {
	name, _, _ := strings.Cut(line, "\t")
	return name
}
