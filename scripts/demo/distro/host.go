package distro

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/attended-sysupgrade/sysup/scripts/demo/pack"
)

// hostPrograms are Debian programs that the ImageBuilder brings along: package and path.
var hostPrograms = [][2]string{
	{"squashfs-tools", "usr/bin/mksquashfs"},
	{"e2fsprogs", "sbin/mke2fs"},
	{"e2fsprogs", "sbin/debugfs"},
	{"mtools", "usr/bin/mtools"},
}

// wrapper starts a bundled program by the bundled loader, so that no library of the host matters.
const wrapper = `#!/bin/sh
lib=${0%%/*}/../lib
exec "$lib/ld-linux-x86-64.so.2" --library-path "$lib" "$lib/programs/%s" "$@"
`

// hostTools are the files of staging_dir/host: the demo's own tool under each of its names, and the
// Debian programs with all their libraries.
func (d *debian) hostTools(ctx context.Context, root, work string) ([]pack.File, error) {
	files, err := ownTool(ctx, root, work)
	if err != nil {
		return nil, err
	}
	var libraries []string
	for _, p := range hostPrograms {
		file, err := d.file([]string{p[0]}, p[1])
		if err != nil {
			return nil, err
		}
		sonames, err := needed(file.Data)
		if err != nil {
			return nil, err
		}
		libraries = append(libraries, sonames...)
		name := filepath.Base(p[1])
		files = append(files,
			pack.File{Path: "lib/programs/" + name, Mode: 0o755, Data: file.Data},
			pack.File{Path: "bin/" + name, Mode: 0o755, Data: fmt.Appendf(nil, wrapper, name)})
	}
	libraries, err = d.closure(append(libraries, "ld-linux-x86-64.so.2"))
	for _, soname := range libraries {
		content, err := d.library(soname)
		if err != nil {
			return nil, err
		}
		files = append(files, pack.File{Path: "lib/" + soname, Mode: 0o755, Data: content})
	}
	for i := range files {
		files[i].Path = "staging_dir/host/" + files[i].Path
	}
	return files, err
}

// ownTool compiles the demo's tool.
func ownTool(ctx context.Context, root, work string) ([]pack.File, error) {
	program := filepath.Join(work, "hosttool")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", program, "./scripts/demo/hosttool")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("the host tool does not compile: %w\n%s", err, out)
	}
	names, err := run(ctx, work, program, "--names")
	if err != nil {
		return nil, err
	}
	file, err := readFile(program, "bin/hosttool")
	files := []pack.File{file}
	for _, name := range slices.Sorted(strings.FieldsSeq(string(names))) {
		files = append(files, pack.File{Path: "bin/" + name, Link: "hosttool"})
	}
	return files, err
}
