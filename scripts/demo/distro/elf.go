package distro

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// needed are the sonames of the shared libraries that a program wants, none for what is no program.
func needed(content []byte) ([]string, error) {
	if !bytes.HasPrefix(content, []byte(elf.ELFMAG)) {
		return nil, nil
	}
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	names, err := f.ImportedLibraries()
	if errors.Is(err, elf.ErrNoSymbols) {
		err = nil // linked statically
	}
	return names, err
}

// closure is the given sonames and all that they need in turn, sorted.
func (d *debian) closure(sonames []string) ([]string, error) {
	seen := map[string]bool{}
	for queue := slices.Clone(sonames); len(queue) > 0; queue = queue[1:] {
		if seen[queue[0]] {
			continue
		}
		seen[queue[0]] = true
		library, err := d.library(queue[0])
		if err != nil {
			return nil, err
		}
		more, err := needed(library)
		if err != nil {
			return nil, err
		}
		queue = append(queue, more...)
	}
	return slices.Sorted(maps.Keys(seen)), nil
}

func (d *debian) library(soname string) ([]byte, error) {
	name, ok := d.sonames[soname]
	if !ok {
		return nil, fmt.Errorf("no Debian package here holds the library %s", soname)
	}
	file, err := readFile(name, soname)
	return file.Data, err
}

// moduleNeeds are the kernel modules that a module names in its "depends".
func moduleNeeds(content []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("the module has no .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	var names []string
	for entry := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(entry, "depends="); ok && list != "" {
			names = append(names, strings.Split(list, ",")...)
		}
	}
	return names, nil
}
