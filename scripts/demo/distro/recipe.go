package distro

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/attended-sysupgrade/sysup/scripts/demo/pack"
)

//go:embed all:data
var data embed.FS

// recipe is what packages.toml says of one package.
type recipe struct {
	Name, Feed, Version, Description string
	Only                             pack.Format // "" for both
	Debian, Files, Folders, Modules  []string
	Depends, Conflicts, Provides     []string
	Zeros, Random                    int
}

// library groups shared libraries under one name, which may carry an ABI version.
type library struct {
	Name, ABI string
	Sonames   []string
}

// version is one release of the distribution, or its snapshot.
type version struct {
	Number, Revision string
	Format           pack.Format
	Archive          string // how the ImageBuilder is packed: "tar.xz" or "tar.zst"
	Kmods, BOM       bool   // a feed of kernel modules; a bill of materials beside the images
	Old              bool   // neither profiles.json nor keys of the tree, as up to 19.07
	Epoch            int64  // SOURCE_DATE_EPOCH
}

// target is one target with its profiles.
type target struct {
	Name, Arch  string
	Filesystems []string
	PartSize    int
	Default     []string
	Images      [][]string // filesystem, type and end of the name, when all profiles have the same
	Profile     []profile
}

// profile is one board. Limit is the size of its flash in bytes; a quiet one says nothing beyond it.
type profile struct {
	ID, Title, Vendor, Model    string
	Supported, Packages, Images []string
	Limit                       int64
	Quiet                       bool
}

func (t target) board() string     { return path.Dir(t.Name) }
func (t target) subtarget() string { return path.Base(t.Name) }

type plan struct {
	packages  []recipe
	libraries []library
	versions  []version
	targets   []target
}

// readPlan reads the tables that say what the distribution consists of.
func readPlan() (plan, error) {
	var packages struct {
		Package []recipe
		Library []library
	}
	var versions struct {
		Version []version
		Target  []target
	}
	err := errors.Join(decode("data/packages.toml", &packages), decode("data/versions.toml", &versions))
	return plan{packages.Package, packages.Library, versions.Version, versions.Target}, err
}

func decode(name string, into any) error {
	meta, err := toml.DecodeFS(data, name, into)
	if err == nil && len(meta.Undecoded()) > 0 {
		err = fmt.Errorf("unknown key %v", meta.Undecoded()[0])
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// own are the files that lie in the repository for a package, and its scripts.
func (r recipe) own() (files []pack.File, scripts map[string]string, err error) {
	base := path.Join("data/packages", r.Name)
	files, err = tree(path.Join(base, "root"))
	if err != nil {
		return nil, nil, err
	}
	scripts = map[string]string{}
	text, err := data.ReadFile(path.Join(base, "postinst"))
	if err == nil {
		scripts["postinst"] = string(text)
	}
	return files, scripts, ignoreMissing(err)
}

// tree is a folder of the embedded data, or nothing when there is none. What begins like a script is
// executable: embedding loses the mode.
func tree(folder string) ([]pack.File, error) {
	var files []pack.File
	err := fs.WalkDir(data, folder, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := data.ReadFile(name)
		mode := fs.FileMode(0o644)
		if strings.HasPrefix(string(text), "#!") {
			mode = 0o755
		}
		files = append(files, pack.File{Path: strings.TrimPrefix(name, folder+"/"), Mode: mode, Data: text})
		return err
	})
	return files, ignoreMissing(err)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
