package upstream

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"io"
	"strings"
)

// Package is one package of a feed. Name is without the ABI version, which is
// appended where the real feeds do so ("libubox" and "20240329").
type Package struct {
	Name, Version, ABIVersion    string
	Depends, Provides, Conflicts []string
	Section, Description         string
	Size, InstalledSize          int64
	File                         File // empty: listed, but not there; its Name is not used

	sum [sha256.Size]byte
}

// FullName is the name with the ABI version; a '-' keeps it apart from a name
// that ends in a digit.
func (p Package) FullName() string {
	if n := len(p.Name); p.ABIVersion != "" && n > 0 && p.Name[n-1] >= '0' && p.Name[n-1] <= '9' {
		return p.Name + "-" + p.ABIVersion
	}
	return p.Name + p.ABIVersion
}

func (p Package) compare(q Package) int { return cmp.Compare(p.FullName(), q.FullName()) }

func (p Package) filename(arch string, apk bool) string {
	if apk {
		return p.FullName() + "-" + p.Version + ".apk"
	}
	return p.FullName() + "_" + p.Version + "_" + arch + ".ipk"
}

// stanza writes the package's part of a Packages file. A package with an ABI
// version provides its name without it.
func (p Package) stanza(w io.Writer, arch string) {
	provides, abi := p.Provides, p.ABIVersion
	if abi != "" {
		abi = p.FullName()[len(p.Name):]
		provides = append([]string{p.Name}, provides...)
	}
	field := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s: %s\n", name, value)
		}
	}
	field("Package", p.FullName())
	field("Version", p.Version)
	field("Depends", strings.Join(p.Depends, ", "))
	field("Conflicts", strings.Join(p.Conflicts, ", "))
	field("Provides", strings.Join(provides, ", "))
	field("License", "GPL-2.0")
	field("Section", cmp.Or(p.Section, "utils"))
	field("ABIVersion", abi)
	field("Architecture", arch)
	field("Installed-Size", fmt.Sprint(cmp.Or(p.InstalledSize, 4*p.Size)))
	field("Filename", p.filename(arch, false))
	field("Size", fmt.Sprint(p.Size))
	field("SHA256sum", fmt.Sprintf("%x", p.sum))
	field("Description", cmp.Or(p.Description, "The package "+p.Name+"."))
	fmt.Fprintln(w)
}
