// Package feed reads and writes the indices of package feeds: opkg's
// Packages, apk's packages.adb and OpenWrt's index.json.
//
// All that is read here comes from outside: names, versions and sizes that
// break their pattern or limit never leave this package.
package feed

import "strings"

// Package is one package as an index lists it. What an index does not tell is
// zero.
type Package struct {
	Name    string // as it is installed: "libubox20240329"
	ABI     string // "20240329", where the index tells it
	Version string // "2024.03.29~eb9bcb64-r1"
	Arch    string

	Depends   []Dependency // each of them is needed
	Conflicts []Dependency // none of them may be there
	Provides  []Dependency // other names that it can be asked for by, with the version it has under them
	// InstallIf is apk's: the package comes along when all of these are there.
	InstallIf []Dependency
	// Priority is apk's provider priority: among several providers of a name
	// the greatest one is taken.
	Priority int

	File          string // name of its file below the feed's address
	Size          int64  // of that file in bytes
	InstalledSize int64  // of what it installs in bytes, uncompressed
	SHA256        string // of the file, lower-case hex; apk's indices do not have it
	// Identity is apk's digest of the package, lower-case hex: of what the
	// package says about itself, not of its file. apk's cache names files by it.
	Identity    string
	Description string
}

// Dependency is a name with, maybe, a condition on its version: "libfoo",
// "kernel=6.6.73", "libbar>=1.2". It is met by a package of that name or one
// that provides it.
type Dependency struct {
	Name string
	// Op is "", "=", "<", "<=", ">", ">=", "~" (the version begins so) or "?",
	// a condition that only the package manager understands; Version is empty
	// with "" and "?". opkg's "<<" and ">>" are "<" and ">", its "<" and ">"
	// are "<=" and ">=".
	Op      string
	Version string
	// Or are alternatives to this one, of which one is enough ("a | b").
	Or []Dependency
}

// Free is the name without the ABI version, the one that people and requests
// use. A '-' keeps the two apart after a digit ("libfoo2-1").
func (p *Package) Free() string {
	name, ok := strings.CutSuffix(p.Name, p.ABI)
	if p.ABI == "" || !ok {
		return p.Name
	}
	if short, dash := strings.CutSuffix(name, "-"); dash && endsInDigit(short) {
		name = short
	}
	if name == "" {
		return p.Name
	}
	return name
}

func endsInDigit(s string) bool {
	return s != "" && s[len(s)-1] >= '0' && s[len(s)-1] <= '9'
}
