package feed

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

const packagesFile = `Package: libubox20240329
Version: 2024.03.29-r1
Depends: libc
ABIVersion: 20240329
Provides: libubox
Description:  Basic utility library
 Package: not-a-field
	Version: 7
Conffiles:
 /etc/config/x

Package: libfoo2-3
Version: 1
ABIVersion: -3
Depends: libc, kernel (= 6.6.1~0123-r1), a | b (>> 2) | c, libold (<<3), libnew (< 4), libmore(>=5), any *, evil (! 1), ~bad, a | $(b)
Conflicts: libfoo1, x | y
Provides: libfoo2, foo (= 1.0), bar=2,  ../evil
Architecture: mips_24kc
Installed-Size: 163840
Filename: ./sub/libfoo2-3_1_mips_24kc.ipk
Size: 0042
SHA256sum: 78F378A1E38D93F59F98874C60B0B6E2710D4819DA208A7233A099455D9D33BB

Package: libold
Version: 1
ABIVersion: $(evil)
Architecture: ../x
Installed-Size: -1
Size: 99999999999999999999
Filename: ../x.ipk
SHA256sum: 78

Package: $(evil)
Version: 1

Package: -evil
Version: 1

Package: no-version

Package: last
Version: 1~2+3-r1`

func TestParsePackages(t *testing.T) {
	want := []Package{
		{
			Name: "libubox20240329", ABI: "20240329", Version: "2024.03.29-r1", Depends: names("libc"), Provides: names("libubox"),
			Description: "Basic utility library\nPackage: not-a-field\nVersion: 7",
		},
		{
			Name: "libfoo2-3", ABI: "-3", Version: "1", Arch: "mips_24kc",
			Depends: []Dependency{
				{Name: "libc"}, {Name: "kernel", Op: "=", Version: "6.6.1~0123-r1"},
				{Name: "a", Or: []Dependency{{Name: "b", Op: ">", Version: "2"}, {Name: "c"}}},
				{Name: "libold", Op: "<", Version: "3"}, {Name: "libnew", Op: "<=", Version: "4"}, {Name: "libmore", Op: ">=", Version: "5"},
				{Name: "any"}, {Name: "evil", Op: "?"},
			},
			Conflicts: names("libfoo1"),
			Provides:  []Dependency{{Name: "libfoo2"}, {Name: "foo", Op: "=", Version: "1.0"}, {Name: "bar", Op: "=", Version: "2"}},
			File:      "sub/libfoo2-3_1_mips_24kc.ipk", Size: 42, InstalledSize: 163840,
			SHA256: "78f378a1e38d93f59f98874c60b0b6e2710d4819da208a7233a099455d9d33bb",
		},
		{Name: "libold", Version: "1"},
		{Name: "last", Version: "1~2+3-r1"},
	}
	for _, text := range []string{packagesFile, strings.ReplaceAll(packagesFile, "\n", "\r\n"), "\n\n" + packagesFile + "\n\n\n"} {
		if got, err := ParsePackages([]byte(text)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("packages are\n%+v, %v; want\n%+v", got, err, want)
		}
	}
}

func names(all ...string) (list []Dependency) {
	for _, name := range all {
		list = append(list, Dependency{Name: name})
	}
	return list
}

func TestPackagesWithoutEnd(t *testing.T) {
	one := "Package: a\nVersion: 1\n"
	for what, text := range map[string]string{
		"a line":   "Package: " + strings.Repeat("x", maxLine),
		"packages": strings.Repeat(one+"\n", maxPackages+1),
		"commas":   strings.Repeat(one+"Depends: "+strings.Repeat(",", maxList)+"\n\n", maxDependencies/maxList+1),
		"bytes":    strings.Repeat("\n", maxText+1),
	} {
		if list, err := ParsePackages([]byte(text)); err == nil {
			t.Errorf("%s without an end are taken, for %d packages", what, len(list))
		}
	}
	long := one + "Description: x" + strings.Repeat("ä", maxDescription) + strings.Repeat("\n line", maxDescriptionLines) + "\n" +
		"Provides: " + strings.Repeat("a, ", maxList+1)
	list, err := ParsePackages([]byte(long))
	if err != nil || len(list) != 1 || len(list[0].Description) != maxDescription-1 || len(list[0].Provides) != maxList {
		t.Errorf("of long lists and descriptions remain %+v, %v", list, err)
	}
	list, err = ParsePackages([]byte(one + "Description: a" + strings.Repeat("\n b", 2*maxDescriptionLines)))
	if err != nil || len(list) != 1 || list[0].Description != "a"+strings.Repeat("\nb", maxDescriptionLines-1) {
		t.Errorf("of many lines of a description remain %+v, %v", list, err)
	}
}

func TestFree(t *testing.T) {
	for _, c := range []struct{ name, abi, want string }{
		{"libubox20240329", "20240329", "libubox"},
		{"jansson4", "4", "jansson"},
		{"libfoo2-3", "-3", "libfoo2"}, // as the build system writes it
		{"libfoo2-3", "3", "libfoo2"},
		{"libfoo-3", "3", "libfoo-"}, // no digit before: the '-' is the name's own
		{"libopenssl3", "3", "libopenssl"},
		{"libopenssl", "3", "libopenssl"},
		{"3", "3", "3"},
		{"nano", "", "nano"},
	} {
		p := Package{Name: c.name, ABI: c.abi}
		if got := p.Free(); got != c.want {
			t.Errorf("free of %q with ABI %q is %q, want %q", c.name, c.abi, got, c.want)
		}
	}
	long := "5.9.1.d242c60a7dbe0db779052245b6687e31" // a real one
	list, err := ParsePackages([]byte("Package: libwolfssl" + long + "\nVersion: 1\nABIVersion: " + long))
	if err != nil || len(list) != 1 || list[0].Free() != "libwolfssl" {
		t.Errorf("a long ABI version gives %+v, %v", list, err)
	}
}

func TestParseIndexJSON(t *testing.T) {
	for _, c := range []struct {
		in   string
		want string
		lost bool
	}{
		{`{"version":2,"architecture":"x","packages":{"a":"1","$(b)":"1","c":"; rm"}}`, "a 1", true},
		{`{"architecture":"x","packages":{"libubox20240329":"1","a":"1~2"}}`, "a 1~2, libubox20240329 1", false},
		{`{"version":3,"packages":{}}`, "", true},
	} {
		list, lost, err := ParseIndexJSON([]byte(c.in))
		var got []string
		for _, p := range list {
			got = append(got, p.Name+" "+p.Version)
		}
		if err != nil || strings.Join(got, ", ") != c.want || lost != c.lost {
			t.Errorf("%s: %v, %v, %v", c.in, got, lost, err)
		}
	}
	for _, bad := range []string{``, `{}`, `[]`, `{"packages":[]}`, `{"packages":{"a":1}}`, `{"packages":{"a":"1"`, strings.Repeat(" ", maxText+1)} {
		if list, _, err := ParseIndexJSON([]byte(bad)); err == nil {
			t.Errorf("%.60s is taken for %v", bad, list)
		}
	}
}

// control writes a package as opkg's index has it.
func control(p *Package) string {
	var b strings.Builder
	for _, f := range [][2]string{
		{"Package", p.Name}, {"Version", p.Version}, {"ABIVersion", p.ABI}, {"Architecture", p.Arch},
		{"Depends", joined(p.Depends)}, {"Conflicts", joined(p.Conflicts)}, {"Provides", joined(p.Provides)},
		{"Filename", p.File}, {"SHA256sum", p.SHA256}, {"Size", fmt.Sprint(p.Size)}, {"Installed-Size", fmt.Sprint(p.InstalledSize)},
		{"Description", strings.ReplaceAll(p.Description, "\n", "\n ")},
	} {
		if f[1] != "" {
			fmt.Fprintf(&b, "%s: %s\n", f[0], f[1])
		}
	}
	return b.String() + "\n"
}

func joined(list []Dependency) string {
	var all []string
	for _, d := range list {
		var terms []string
		for _, d := range append([]Dependency{d}, d.Or...) {
			op, bare := map[string]string{"<": "<<", ">": ">>", "?": "!"}[d.Op], d.Op
			if op == "" {
				op = bare
			}
			if d.Op != "" {
				d.Name += " (" + op + " " + d.Version + ")"
			}
			terms = append(terms, d.Name)
		}
		all = append(all, strings.Join(terms, " | "))
	}
	return strings.Join(all, ", ")
}

// checkPackages holds what comes out of a parser against the promises of the
// types.
func checkPackages(t *testing.T, list []Package) {
	t.Helper()
	for _, p := range list {
		if !isName(p.Name) || !isVersion(p.Version) || strings.ContainsAny(p.Name+p.Version+p.ABI+p.Arch+p.File+p.SHA256+p.Identity, " \t\r\n\x00$`'\"\\;&|<>()") {
			t.Fatalf("a package is %+v", p)
		}
		if p.Size < 0 || p.InstalledSize < 0 || p.Priority < 0 || strings.HasPrefix(p.File, "/") || slices.Contains(strings.Split(p.File, "/"), "..") {
			t.Fatalf("a package is %+v", p)
		}
		for _, d := range slices.Concat(p.Depends, p.Conflicts, p.Provides, p.InstallIf) {
			for _, d := range append([]Dependency{d}, d.Or...) {
				simple := d.Op == "" || d.Op == "?"
				known := slices.Contains([]string{"", "=", "<", "<=", ">", ">=", "~", "?"}, d.Op)
				if !isName(d.Name) || !known || (d.Version == "") != simple || !simple && !isVersion(d.Version) {
					t.Fatalf("a dependency of %s is %+v", p.Name, d)
				}
			}
		}
	}
}

// FuzzPackages: what is read keeps its promises and is read the same when it is
// written again.
func FuzzPackages(f *testing.F) {
	f.Add([]byte(packagesFile))
	f.Add([]byte("Package: a\r\nVersion: 1\r\n\r\n:\n\n\n\n"))
	f.Add([]byte("Package: a\nVersion: 1\nDescription:\n\n \n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := ParsePackages(b)
		if err != nil {
			return
		}
		checkPackages(t, list)
		var text bytes.Buffer
		for i := range list {
			if strings.Contains(list[i].Description, "\n\n") || strings.Contains(list[i].Description, "\r") {
				list[i].Description = "" // its lines are not those of a file
			}
			text.WriteString(control(&list[i]))
		}
		again, err := ParsePackages(text.Bytes())
		if err != nil || len(again) != len(list) {
			t.Fatalf("%d packages become %d, %v", len(list), len(again), err)
		}
		for i := range list {
			if fmt.Sprintf("%+v", again[i]) != fmt.Sprintf("%+v", list[i]) {
				t.Fatalf("%+v is read again as %+v", list[i], again[i])
			}
		}
	})
}

func FuzzIndexJSON(f *testing.F) {
	f.Add([]byte(`{"version":2,"architecture":"x","packages":{"a":"1","libb2":"1"}}`))
	f.Add([]byte(`{"packages":{"libubox20240329":"1","libubox":"2"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, _, err := ParseIndexJSON(b)
		if err != nil {
			return
		}
		checkPackages(t, list)
		if !slices.IsSortedFunc(list, func(a, b Package) int { return strings.Compare(a.Name, b.Name) }) {
			t.Fatalf("not sorted: %+v", list)
		}
	})
}
