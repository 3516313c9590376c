package distro

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/attended-sysupgrade/sysup/scripts/demo/pack"
)

// debian is a set of unpacked Debian packages.
type debian struct {
	dir      string            // a folder for each package
	versions map[string]string // of each package
	sonames  map[string]string // file of each shared library
}

// run runs a program and returns its output; when it fails, what it said is in the error.
func run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("%s is missing: run scripts/setup", name)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// fetchDebian downloads the packages and the shared libraries that they depend on, from wherever apt is
// set to, into the folder debs, and unpacks them into the folder dir. What debs holds of an
// earlier call for the same packages is used as it is, without the network.
func fetchDebian(ctx context.Context, debs, dir string, names, alone []string) (*debian, error) {
	list := []byte(strings.Join(append(slices.Clone(names), alone...), "\n"))
	stamp := filepath.Join(debs, "complete")
	if old, err := os.ReadFile(stamp); err != nil || !bytes.Equal(old, list) {
		if err := downloadDebian(ctx, debs, names, alone); err != nil {
			return nil, err
		}
		if err := os.WriteFile(stamp, list, 0o644); err != nil {
			return nil, err
		}
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return nil, err
	}
	d := &debian{dir: dir, versions: map[string]string{}, sonames: map[string]string{}}
	if err := d.unpack(ctx, files); err != nil {
		return nil, err
	}
	return d, d.findLibraries()
}

func downloadDebian(ctx context.Context, debs string, names, alone []string) error {
	libraries, err := librariesOf(ctx, debs, names)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(debs); err != nil {
		return err
	}
	if err := os.MkdirAll(debs, 0o755); err != nil {
		return err
	}
	all := slices.Concat(names, alone, libraries)
	slices.Sort(all)
	args := append([]string{"-q", "-o", "APT::Sandbox::User=", "download"}, slices.Compact(all)...)
	if _, err = run(ctx, debs, "apt-get", args...); err != nil {
		return fmt.Errorf("%w (apt-get update may help)", err)
	}
	return nil
}

// librariesOf asks apt what an empty system would install, and takes the libraries of it.
func librariesOf(ctx context.Context, debs string, names []string) ([]string, error) {
	if err := os.MkdirAll(debs, 0o755); err != nil {
		return nil, err
	}
	empty := filepath.Join(debs, "no-packages")
	if err := os.WriteFile(empty, nil, 0o644); err != nil {
		return nil, err
	}
	args := append([]string{"install", "-s", "-q", "--no-install-recommends", "-o", "Dir::State::status=" + empty}, names...)
	out, err := run(ctx, debs, "apt-get", args...)
	if err != nil {
		return nil, err
	}
	var libraries []string
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) > 2 && f[0] == "Inst" && isLibrary(f[1]) {
			libraries = append(libraries, f[1])
		}
	}
	return libraries, nil
}

func isLibrary(name string) bool {
	perl := strings.HasPrefix(name, "libperl") || strings.HasSuffix(name, "-perl")
	return strings.HasPrefix(name, "lib") && !perl || name == "zlib1g"
}

// kernelPackage is the package with the kernel itself, which the name without a version depends on.
func kernelPackage(ctx context.Context) (string, error) {
	out, err := run(ctx, ".", "apt-cache", "depends", "linux-image-cloud-amd64")
	if err != nil {
		return "", err
	}
	for word := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(word, "linux-image-") && word != "linux-image-cloud-amd64" {
			return word, nil
		}
	}
	return "", errors.New("apt knows no kernel linux-image-cloud-amd64: run apt-get update")
}

func (d *debian) unpack(ctx context.Context, files []string) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.NumCPU())
	for _, file := range files {
		name, rest, _ := strings.Cut(filepath.Base(file), "_")
		version, _, _ := strings.Cut(rest, "_")
		d.versions[name] = strings.ReplaceAll(version, "%3a", ":")
		g.Go(func() error {
			folder := filepath.Join(d.dir, name)
			if err := os.MkdirAll(folder, 0o755); err != nil {
				return err
			}
			_, err := run(ctx, d.dir, "dpkg-deb", "-x", file, folder)
			return err
		})
	}
	return g.Wait()
}

func (d *debian) findLibraries() error {
	return filepath.WalkDir(d.dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.Contains(e.Name(), ".so.") {
			return err
		}
		if _, known := d.sonames[e.Name()]; !known && strings.Contains(name, "/lib") {
			d.sonames[e.Name()] = name
		}
		return nil
	})
}

// find is the path of a file in one of the packages, whether or not it is under usr there.
func (d *debian) find(packages []string, name string) (string, error) {
	other, merged := strings.CutPrefix(name, "usr/")
	if !merged {
		other = "usr/" + name
	}
	for _, p := range packages {
		for _, n := range []string{name, other} {
			full := filepath.Join(d.dir, p, n)
			if _, err := os.Stat(full); err == nil {
				return full, nil
			}
		}
	}
	return "", fmt.Errorf("%s is in none of the Debian packages %s", name, strings.Join(packages, ", "))
}

// file reads one file as "path" or "path > new path" says.
func (d *debian) file(packages []string, spec string) (pack.File, error) {
	from, to, renamed := strings.Cut(spec, " > ")
	if !renamed {
		to = from
	}
	name, err := d.find(packages, from)
	if err != nil {
		return pack.File{}, err
	}
	return readFile(name, to)
}

func readFile(name, as string) (pack.File, error) {
	info, err := os.Stat(name)
	if err != nil {
		return pack.File{}, err
	}
	content, err := os.ReadFile(name)
	return pack.File{Path: as, Mode: info.Mode().Perm() &^ 0o022, Data: content}, err
}

// owner is the Debian package that a file was unpacked from.
func (d *debian) owner(name string) string {
	rel, err := filepath.Rel(d.dir, name)
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(rel, string(filepath.Separator))
	return first
}

// upstreamVersion is the version of a Debian package as our packages carry it: without epoch, Debian's
// revision and what is added behind '+' or '~'.
func (d *debian) upstreamVersion(name string) string {
	v := d.versions[name]
	if _, rest, ok := strings.Cut(v, ":"); ok {
		v = rest
	}
	if i := strings.LastIndexByte(v, '-'); i > 0 {
		v = v[:i]
	}
	if i := strings.IndexAny(v, "+~-"); i > 0 {
		v = v[:i]
	}
	return strings.TrimSuffix(v, ".dfsg")
}

// certificates joins the certificates of ca-certificates into one file.
func (d *debian) certificates() ([]byte, error) {
	names, err := filepath.Glob(filepath.Join(d.dir, "ca-certificates/usr/share/ca-certificates/mozilla/*.crt"))
	var all bytes.Buffer
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			all.WriteString(lines.Text() + "\n")
		}
		if err := errors.Join(lines.Err(), f.Close()); err != nil {
			return nil, err
		}
	}
	return all.Bytes(), err
}
