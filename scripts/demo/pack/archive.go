package pack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// Format is one of the two kinds of package.
type Format string

const (
	IPK Format = "ipk" // opkg's, as OpenWrt packs it
	APK Format = "apk" // the demo's stand-in for apk's
)

// Filename is the name under which feeds carry the package.
func (f Format) Filename(m Meta) string {
	if f == APK {
		return m.Name + "-" + m.Version + ".apk"
	}
	return m.Name + "_" + m.Version + "_" + m.Arch + ".ipk"
}

// Encode packs p; every file and folder gets the time mtime. The result's Meta has the fields filled
// that only the packed file has.
func (f Format) Encode(p Package, mtime time.Time) ([]byte, Meta, error) {
	p.Files = slices.SortedFunc(slices.Values(p.Files), func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	p.InstalledSize = 0
	for _, file := range p.Files {
		p.InstalledSize += int64(len(file.Data))
	}
	encode := encodeIPK
	if f == APK {
		encode = encodeAPK
	}
	data, err := encode(p, mtime)
	if err != nil {
		return nil, Meta{}, fmt.Errorf("package %s cannot be packed: %w", p.Name, err)
	}
	digest := sha256.Sum256(data)
	meta := p.Meta
	meta.Filename, meta.Size, meta.SHA256 = f.Filename(meta), int64(len(data)), hex.EncodeToString(digest[:])
	return data, meta, nil
}

func encodeIPK(p Package, mtime time.Time) ([]byte, error) {
	control := []File{{Path: "control", Mode: 0o644, Data: []byte(p.Control())}}
	for _, name := range slices.Sorted(maps.Keys(p.Scripts)) {
		control = append(control, File{Path: name, Mode: 0o755, Data: []byte(p.Scripts[name])})
	}
	controlTar, err := tarball(control, gzip.DefaultCompression, mtime)
	if err != nil {
		return nil, err
	}
	dataTar, err := tarball(p.Files, gzip.DefaultCompression, mtime)
	if err != nil {
		return nil, err
	}
	return tarball([]File{
		{Path: "debian-binary", Mode: 0o644, Data: []byte("2.0\n")},
		{Path: "control.tar.gz", Mode: 0o644, Data: controlTar},
		{Path: "data.tar.gz", Mode: 0o644, Data: dataTar},
	}, gzip.NoCompression, mtime) // the members are compressed already
}

// encodeAPK puts the control text first, as .PKGINFO, then the scripts as ".post-install" and so on.
func encodeAPK(p Package, mtime time.Time) ([]byte, error) {
	files := []File{{Path: ".PKGINFO", Mode: 0o644, Data: []byte(p.Control())}}
	for _, name := range slices.Sorted(maps.Keys(p.Scripts)) {
		files = append(files, File{Path: ".script." + name, Mode: 0o755, Data: []byte(p.Scripts[name])})
	}
	return tarball(append(files, p.Files...), gzip.DefaultCompression, mtime)
}

// tarball is a gzipped tar of files with the folders above them, all of root's.
func tarball(files []File, level int, mtime time.Time) ([]byte, error) {
	var b bytes.Buffer
	zw, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		return nil, err
	}
	tw := tar.NewWriter(zw)
	made := map[string]bool{".": true}
	for _, f := range files {
		folder := path.Dir(f.Path)
		if f.Mode.IsDir() {
			folder = f.Path
		}
		if err := addFolders(tw, folder, made, mtime); err != nil {
			return nil, err
		}
		if err := addFile(tw, f, mtime); err != nil {
			return nil, err
		}
	}
	err = errors.Join(tw.Close(), zw.Close())
	return b.Bytes(), err
}

func addFolders(tw *tar.Writer, dir string, made map[string]bool, mtime time.Time) error {
	if made[dir] {
		return nil
	}
	if err := addFolders(tw, path.Dir(dir), made, mtime); err != nil {
		return err
	}
	made[dir] = true
	return tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "./" + dir + "/", Mode: 0o755, ModTime: mtime})
}

func addFile(tw *tar.Writer, f File, mtime time.Time) error {
	if f.Mode.IsDir() {
		return nil
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: "./" + f.Path, Mode: int64(f.Mode.Perm()), Size: int64(len(f.Data)), ModTime: mtime}
	if f.Link != "" {
		h.Typeflag, h.Linkname, h.Size, h.Mode = tar.TypeSymlink, f.Link, 0, 0o777
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if f.Link != "" {
		return nil
	}
	_, err := tw.Write(f.Data)
	return err
}

// Visit is called for each member of a package's data: a folder, a file or a symbolic link.
// The header's name is relative and clean.
type Visit func(h *tar.Header, content io.Reader) error

// Read opens the package file name and returns its control fields and scripts, then calls visit, when
// it is not nil, for all of its data.
func Read(name string, visit Visit) (Package, error) {
	f, err := os.Open(name)
	if err != nil {
		return Package{}, err
	}
	defer f.Close()
	read := readIPK
	if strings.HasSuffix(name, ".apk") {
		read = readAPK
	}
	p, err := read(f, visit)
	if err != nil {
		return p, fmt.Errorf("%s is not a sound package: %w", name, err)
	}
	return p, nil
}

func readIPK(r io.Reader, visit Visit) (Package, error) {
	var p Package
	err := walk(r, func(h *tar.Header, outer io.Reader) error {
		switch h.Name {
		case "control.tar.gz":
			return walk(outer, p.readControl)
		case "data.tar.gz":
			if visit != nil {
				return walk(outer, visit)
			}
		}
		return nil
	})
	return p, p.check(err)
}

func readAPK(r io.Reader, visit Visit) (Package, error) {
	var p Package
	err := walk(r, func(h *tar.Header, content io.Reader) error {
		if script, ok := strings.CutPrefix(h.Name, ".script."); ok {
			h.Name = script
			return p.readControl(h, content)
		}
		if h.Name == ".PKGINFO" {
			h.Name = "control"
			return p.readControl(h, content)
		}
		if visit == nil {
			return fs.SkipAll
		}
		return visit(h, content)
	})
	return p, p.check(err)
}

func (p *Package) readControl(h *tar.Header, content io.Reader) error {
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	data, err := io.ReadAll(content)
	if err != nil {
		return err
	}
	if h.Name != "control" {
		if p.Scripts == nil {
			p.Scripts = map[string]string{}
		}
		p.Scripts[h.Name] = string(data)
		return nil
	}
	metas, err := ParseControl(bytes.NewReader(data))
	if err == nil && len(metas) == 1 {
		p.Meta = metas[0]
	}
	return err
}

func (p *Package) check(err error) error {
	if err == nil && p.Name == "" {
		return errors.New("it has no control file")
	}
	return err
}

// walk calls visit for every member of a gzipped tar, until it returns fs.SkipAll.
func walk(r io.Reader, visit Visit) error {
	zr, err := gzip.NewReader(r)
	if err != nil {
		return err
	}
	tr := tar.NewReader(zr)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		h.Name = path.Clean(h.Name)
		if err := visit(h, tr); errors.Is(err, fs.SkipAll) {
			return nil
		} else if err != nil {
			return err
		}
	}
}
