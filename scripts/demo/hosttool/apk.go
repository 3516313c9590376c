package main

import (
	"bufio"
	"cmp"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/attended-sysupgrade/sysup/scripts/demo/pack"
	"github.com/attended-sysupgrade/sysup/shared/feed"
)

// apk is one run of the package manager.
type apk struct {
	repositories string // file: one index URL or path a line
	cache        string // folder of downloaded indices and packages
	keys         []*ecdsa.PublicKey
	root         rootfs
	known        map[string][]candidate // by name and by what they provide
}

const (
	apkInstalled = "lib/apk/db/installed"
	apkPackages  = "lib/apk/packages"
)

// apkMain is apk --root R --repositories-file F --cache-dir C --keys-dir K update|add|list, or apk mkndx.
func apkMain(args []string) error {
	a := parse(args)
	if len(a.rest) == 0 {
		return errors.New("a command is missing: update, add, list or mkndx")
	}
	if a.rest[0] == "mkndx" {
		return apkMakeIndex(a)
	}
	keys, err := ecKeys(a.options["keys-dir"])
	if err != nil {
		return err
	}
	p := &apk{
		repositories: a.options["repositories-file"], cache: a.options["cache-dir"], keys: keys,
		root:  rootfs{dir: a.options["root"], owner: map[string]string{}, overwrite: true},
		known: map[string][]candidate{},
	}
	switch a.rest[0] {
	case "update":
		return p.update()
	case "add":
		return p.add(a.rest[1:])
	case "list":
		return p.list()
	}
	return fmt.Errorf("there is no command %q", a.rest[0])
}

func ecKeys(folder string) ([]*ecdsa.PublicKey, error) {
	names, err := filepath.Glob(filepath.Join(folder, "*.pem"))
	var keys []*ecdsa.PublicKey
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if key, err := feed.ParsePublicKey(text); err == nil {
			keys = append(keys, key)
		}
	}
	return keys, err
}

func (p *apk) update() error {
	distinct := p.load("updating and opening")
	fmt.Printf("OK: %d distinct packages available\n", distinct)
	return nil
}

// load reads all indices and counts the packages. An index that fails is left out with a warning that
// begins with doing, which is never fatal by itself.
func (p *apk) load(doing string) (distinct int) {
	data, err := os.ReadFile(p.repositories)
	if err != nil {
		fmt.Fprintf(os.Stderr, "WARNING: %s %s: No such file or directory\n", doing, p.repositories)
	}
	for line := range strings.Lines(string(data)) {
		url := strings.TrimSpace(line)
		if url == "" || url[0] == '#' {
			continue
		}
		metas, err := p.index(url)
		if errors.Is(err, fs.ErrNotExist) {
			fmt.Fprintf(os.Stderr, "WARNING: opening %s: No such file or directory\n", url)
		} else if err != nil {
			fmt.Fprintf(os.Stderr, "WARNING: %s %s: %v\n", doing, url, err)
		}
		distinct += len(metas)
		p.offer(url, metas)
	}
	return distinct
}

var errFetch = errors.New("unexpected end of file")

// index reads one index. What lies in the cache is not fetched again, as apk does within its cache's
// four hours.
func (p *apk) index(url string) ([]pack.Meta, error) {
	name := url
	if remote(url) {
		name = filepath.Join(p.cache, fmt.Sprintf("APKINDEX.%08x.tar.gz", crc32.ChecksumIEEE([]byte(url))))
		if _, err := os.Stat(name); err != nil {
			fmt.Println("fetch", url)
			if err := wget(url, name); err != nil {
				fmt.Fprintf(os.Stderr, "ERROR: %v\n", err)
				return nil, errFetch
			}
		}
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	metas, err := pack.ParseAPKIndex(data, p.keys)
	if err != nil && name != url {
		os.Remove(name)
	}
	return metas, err
}

func remote(url string) bool { return strings.Contains(url, "://") }

func (p *apk) offer(index string, metas []pack.Meta) {
	folder := index[:strings.LastIndexByte(index, '/')+1]
	for _, m := range metas {
		c := candidate{Meta: m, url: folder + m.Filename}
		if !remote(index) {
			c.url, c.Filename = "", folder+m.Filename
		}
		for _, name := range append([]string{m.Name}, m.Provides...) {
			p.known[name] = append(p.known[name], c)
		}
	}
}

// add installs the packages of the world, each "name" or "name=version", with their dependencies.
func (p *apk) add(world []string) error {
	p.load("opening")
	chosen, problems := p.solve(world)
	if len(problems) > 0 {
		fmt.Fprintf(os.Stderr, "ERROR: unable to select packages:\n%s", strings.Join(problems, ""))
		return errReported
	}
	total, err := p.installAll(chosen)
	if err != nil {
		return err
	}
	fmt.Printf("OK: %d MiB in %d packages\n", total>>20, len(chosen))
	return p.root.write("etc/apk/world", strings.Join(slices.Sorted(slices.Values(world)), "\n")+"\n", 0o644)
}

func (p *apk) installAll(chosen []candidate) (total int64, err error) {
	var db strings.Builder
	for i, c := range chosen {
		fmt.Printf("(%d/%d) Installing %s (%s)\n", i+1, len(chosen), c.Name, c.Version)
		file, err := p.download(c)
		if err == nil {
			err = p.unpack(file)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "ERROR: %s-%s: %v\n", c.Name, c.Version, err)
			return 0, errReported
		}
		fmt.Fprintf(&db, "P:%s\nV:%s\nA:%s\nI:%d\nT:%s\n\n", c.Name, c.Version, c.Arch, c.InstalledSize, c.Description)
		total += c.InstalledSize
	}
	return total, p.root.write(apkInstalled, db.String(), 0o644)
}

func (p *apk) download(c candidate) (string, error) {
	if c.url == "" {
		return c.Filename, nil
	}
	name := filepath.Join(p.cache, fmt.Sprintf("%s-%s.%.8s.apk", c.Name, c.Version, c.SHA256))
	if sumMatches(name, c.SHA256) {
		return name, nil
	}
	if err := wget(c.url, name); err != nil {
		fmt.Fprintf(os.Stderr, "ERROR: %v\n", err)
		return "", errors.New("remote server returned error (try 'apk update')")
	}
	if !sumMatches(name, c.SHA256) {
		return "", errors.Join(errors.New("BAD archive"), os.Remove(name))
	}
	return name, nil
}

func (p *apk) unpack(file string) error {
	c, files, err := p.root.unpack(file)
	if err != nil {
		return err
	}
	slices.Sort(files)
	base := filepath.Join(apkPackages, c.Name)
	err = p.root.write(base+".list", strings.Join(append(files, ""), "\n"), 0o644)
	for script, text := range c.Scripts {
		err = errors.Join(err, p.root.write(base+"."+script, text, 0o755))
	}
	return err
}

// list prints what is installed, sorted by name.
func (p *apk) list() error {
	f, err := os.Open(filepath.Join(p.root.dir, apkInstalled))
	if err != nil {
		return err
	}
	defer f.Close()
	var all []string
	var name string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), "P:"); ok {
			name = text
		} else if version, ok := strings.CutPrefix(lines.Text(), "V:"); ok {
			all = append(all, name+" - "+version)
		}
	}
	slices.Sort(all)
	fmt.Println(strings.Join(all, "\n"))
	return lines.Err()
}

// apkMakeIndex is apk mkndx --sign KEY --output FILE FOLDER.
func apkMakeIndex(a arguments) error {
	if len(a.rest) != 2 {
		return errors.New("mkndx wants one folder")
	}
	text, err := os.ReadFile(a.options["sign"])
	if err != nil {
		return err
	}
	key, err := pack.ParseECKey(text)
	if err != nil {
		return err
	}
	names, err := filepath.Glob(filepath.Join(a.rest[1], "*.apk"))
	var metas []pack.Meta
	for _, name := range names {
		m, err := describe(name)
		if err != nil {
			return err
		}
		metas = append(metas, m)
	}
	index, err2 := pack.APKIndex(metas, key)
	return cmp.Or(err, err2, os.WriteFile(a.options["output"], index, 0o644))
}
