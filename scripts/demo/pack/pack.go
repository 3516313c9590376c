// Package pack writes and reads the packages of the demo distribution: OpenWrt's .ipk, and a simple
// stand-in for .apk (one gzipped tar, .PKGINFO first). The indices of both have OpenWrt's formats.
//
// Nothing here guards against a hostile archive: the only packages it meets are those the demo made.
package pack

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
)

// Meta is what an index says of one package.
type Meta struct {
	Name        string // in an opkg index with the ABI suffix
	Version     string
	Arch        string // "x86_64" or "all" (apk: "noarch")
	ABI         string
	Depends     []string // "name" or "name (=version)"
	Conflicts   []string
	Provides    []string
	Section     string
	Description string

	Filename      string // beside the index
	Size          int64  // bytes of that file
	InstalledSize int64
	SHA256        string `json:"sha256,omitempty"` // hex, of that file
}

// File is a regular file, a symbolic link when Link is set, or a folder when Mode says so. Folders above
// files need no entry.
type File struct {
	Path string // relative, with slashes
	Mode fs.FileMode
	Data []byte
	Link string
}

// Package is a whole package as the demo's maker holds it.
type Package struct {
	Meta
	Scripts map[string]string // "postinst" and its like
	Files   []File
}

// ABIName is the name under which opkg knows a library: the ABI version is appended, after a '-' when
// the name itself ends in a digit.
func ABIName(name, abi string) string {
	if abi == "" {
		return name
	}
	if last := name[len(name)-1]; last >= '0' && last <= '9' {
		return name + "-" + abi
	}
	return name + abi
}

// field is one line of a control file.
type field struct{ key, value string }

func (m Meta) fields() []field {
	return []field{
		{"Package", m.Name}, {"Version", m.Version},
		{"Depends", strings.Join(m.Depends, ", ")},
		{"Conflicts", strings.Join(m.Conflicts, ", ")},
		{"Provides", strings.Join(m.Provides, ", ")},
		{"Section", m.Section}, {"Architecture", m.Arch}, {"ABIVersion", m.ABI},
		{"Installed-Size", number(m.InstalledSize)},
		{"Filename", m.Filename}, {"Size", number(m.Size)}, {"SHA256sum", m.SHA256},
		{"Description", m.Description},
	}
}

func number(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

// Control is the package's stanza in an opkg index, ended by one newline; empty fields are left out.
func (m Meta) Control() string {
	var b strings.Builder
	for _, f := range m.fields() {
		if f.value != "" {
			fmt.Fprintf(&b, "%s: %s\n", f.key, f.value)
		}
	}
	return b.String()
}

func (m *Meta) set(key, value string) {
	switch key {
	case "Package":
		m.Name = value
	case "Version":
		m.Version = value
	case "Architecture":
		m.Arch = value
	case "ABIVersion":
		m.ABI = value
	case "Depends":
		m.Depends = list(value)
	case "Conflicts":
		m.Conflicts = list(value)
	case "Provides":
		m.Provides = list(value)
	case "Section":
		m.Section = value
	case "Filename":
		m.Filename = value
	case "SHA256sum":
		m.SHA256 = value
	case "Size":
		m.Size, _ = strconv.ParseInt(value, 10, 64)
	case "Installed-Size":
		m.InstalledSize, _ = strconv.ParseInt(value, 10, 64)
	case "Description":
		m.Description = value
	}
}

func list(s string) []string {
	var out []string
	for _, item := range strings.Split(s, ",") {
		if item = strings.TrimSpace(item); item != "" {
			out = append(out, item)
		}
	}
	return out
}

// ParseControl reads the stanzas of an opkg index, or of a single control file.
func ParseControl(r io.Reader) ([]Meta, error) {
	var all []Meta
	var m Meta
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		key, value, ok := strings.Cut(lines.Text(), ": ")
		if ok {
			m.set(key, strings.TrimSpace(value))
		} else if strings.TrimSpace(lines.Text()) == "" && m.Name != "" {
			all, m = append(all, m), Meta{}
		}
	}
	if m.Name != "" {
		all = append(all, m)
	}
	return all, lines.Err()
}

// Index is the text of an opkg index (Packages) over the given packages, sorted by name.
func Index(metas []Meta) string {
	var b strings.Builder
	for _, m := range Sorted(metas) {
		b.WriteString(m.Control() + "\n")
	}
	return b.String()
}

// Sorted is a copy of metas in the order of their names.
func Sorted(metas []Meta) []Meta {
	metas = slices.Clone(metas)
	slices.SortFunc(metas, func(a, b Meta) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Version, b.Version))
	})
	return metas
}

// Dependency splits "name (=version)"; version is empty when none is asked for.
func Dependency(s string) (name, version string) {
	name, rest, _ := strings.Cut(s, " (=")
	return strings.TrimSpace(name), strings.TrimSpace(strings.TrimSuffix(rest, ")"))
}
