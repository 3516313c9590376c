package feed

import (
	"fmt"
	"testing"
)

// manyPackages is as large as all feeds of one architecture and target.
func manyPackages() []Package {
	list := make([]Package, 9_000)
	for i := range list {
		list[i] = Package{
			Name: fmt.Sprintf("package-%04d", i), Version: fmt.Sprintf("2024.11.%d~eb9bcb64-r1", i%30), Arch: "x86_64",
			Provides: []Dependency{{Name: fmt.Sprintf("package-%04d-any", i)}},
			Identity: fmt.Sprintf("%064x", i), Size: int64(i) << 10, InstalledSize: int64(i) << 11,
			Description: fmt.Sprintf("Package number %d of an index that is as long as real ones are, with a description that is as long as theirs", i),
		}
		for d := range 5 {
			list[i].Depends = append(list[i].Depends, Dependency{Name: fmt.Sprintf("package-%04d", i/(d+2))})
		}
		list[i].Depends[4].Op, list[i].Depends[4].Version = "=", "6.6.73~0f1e2d3c4b5a69788796a5b4c3d2e1f0-r1"
	}
	return list
}

func BenchmarkParsePackages(b *testing.B) {
	var text []byte
	for _, p := range manyPackages() {
		text = append(text, control(&p)...)
	}
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if list, err := ParsePackages(text); err != nil || len(list) != 9_000 {
			b.Fatal(len(list), err)
		}
	}
}

func BenchmarkReadADB(b *testing.B) {
	index := write(b, manyPackages(), newKey(b))
	b.SetBytes(int64(len(index)))
	b.ReportAllocs()
	for b.Loop() {
		if list, err := ReadADBUnverified(index); err != nil || len(list) != 9_000 {
			b.Fatal(len(list), err)
		}
	}
}
