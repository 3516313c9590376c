package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/attended-sysupgrade/sysup/scripts/demo/pack"
)

// opkg is one run of the package manager.
type opkg struct {
	conf     opkgConf
	lists    string // folder of the downloaded indices
	cache    string // folder of the downloaded packages
	keys     string // folder of the feeds' public keys
	root     rootfs
	known    map[string][]candidate // by name and by what they provide
	state    map[string]installed
	problems []string // printed at the end, as "Collected errors"
}

// candidate is a package that a feed offers or that lies on disk.
type candidate struct {
	pack.Meta
	url string // "" for a file on disk, which Filename then names
}

// installed is a package in the root.
type installed struct {
	pack.Meta
	auto bool // as a dependency only
	new  bool // by this run
}

const opkgInfo = "usr/lib/opkg/info"

// opkgMain is opkg --offline-root R --conf F --lists-dir L --cache C --keys K update|install|list-installed.
func opkgMain(args []string) error {
	a := parse(args, "strip-abi")
	if len(a.rest) == 0 {
		return errors.New("a command is missing: update, install or list-installed")
	}
	o := &opkg{
		lists: a.options["lists-dir"], cache: a.options["cache"], keys: a.options["keys"],
		root:  rootfs{dir: a.options["offline-root"], owner: map[string]string{}},
		known: map[string][]candidate{}, state: map[string]installed{},
	}
	unlock, err := o.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if o.conf, err = readOpkgConf(a.options["conf"]); err != nil {
		return err
	}
	return o.report(o.run(a.rest[0], a.rest[1:], a.options["strip-abi"] != ""))
}

func (o *opkg) run(command string, names []string, stripABI bool) error {
	switch command {
	case "update":
		o.update()
		return nil
	case "install":
		if err := errors.Join(o.loadState(), o.loadLists()); err != nil {
			return err
		}
		return o.install(names)
	case "list-installed":
		err := o.loadState()
		o.listInstalled(stripABI)
		return err
	}
	return fmt.Errorf("there is no command %q", command)
}

// lock lets one run at a time work on a tree, as opkg does.
func (o *opkg) lock() (unlock func(), err error) {
	name := filepath.Join(o.lists, ".opkg.lock")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		fmt.Fprintf(os.Stderr, "Collected errors:\n * opkg_conf_load: Could not lock %s: %v.\n", name, err)
		return nil, errors.Join(errReported, f.Close())
	}
	return func() { f.Close() }, nil
}

// problem keeps a failure for the end, under the name of opkg's function that would print it.
func (o *opkg) problem(function, format string, args ...any) {
	o.problems = append(o.problems, " * "+function+": "+fmt.Sprintf(format, args...))
}

func (o *opkg) report(err error) error {
	if err != nil || len(o.problems) == 0 {
		return err
	}
	fmt.Fprintln(os.Stderr, "Collected errors:")
	for _, p := range o.problems {
		fmt.Fprintln(os.Stderr, p)
	}
	return errReported
}

// install puts the named packages, or package files, and what they depend on into the root.
func (o *opkg) install(names []string) error {
	for _, name := range names {
		c, ok := o.find(name)
		if !ok {
			fmt.Printf("Unknown package '%s'.\n", name)
		}
		if !ok || !o.put(c, false) {
			o.problem("opkg_install_cmd", "Cannot install package %s.", name)
		}
	}
	for _, name := range sortedKeys(o.state) {
		if o.state[name].new {
			fmt.Printf("Configuring %s.\n", name)
		}
	}
	return o.writeStatus()
}

// find chooses the package for a name: one of that name first, then one that provides it; the earlier
// feed wins.
func (o *opkg) find(name string) (candidate, bool) {
	if strings.HasSuffix(name, ".ipk") {
		p, err := pack.Read(name, nil)
		p.Filename = name
		return candidate{Meta: p.Meta}, err == nil
	}
	all := o.known[name]
	if i := slices.IndexFunc(all, func(c candidate) bool { return c.Name == name }); i >= 0 {
		return all[i], true
	}
	if len(all) > 0 {
		return all[0], true
	}
	return candidate{}, false
}

// put installs one package with its dependencies and says whether it is in the root now.
func (o *opkg) put(c candidate, auto bool) bool {
	if have, ok := o.state[c.Name]; ok {
		if have.auto && !auto {
			have.auto = false
			o.state[c.Name] = have
		}
		return true
	}
	if !o.resolvable(c, map[string]bool{}) {
		o.problem("pkg_hash_fetch_best_installation_candidate", "Packages for %s found, but incompatible with the architectures configured", c.Name)
		return false
	}
	fmt.Printf("Installing %s (%s) to root...\n", c.Name, c.Version)
	file, err := o.download(c)
	if err != nil {
		o.problem("opkg_install_pkg", "Failed to download %s. Perhaps you need to run 'opkg update'?", c.Name)
		return false
	}
	o.state[c.Name] = installed{c.Meta, auto, true} // before its dependencies, which may form a circle
	if !o.putDependencies(c) || !o.compatible(c) || !o.unpack(c, file) {
		delete(o.state, c.Name)
		return false
	}
	return true
}

func (o *opkg) putDependencies(c candidate) bool {
	for _, d := range c.Depends {
		name, _ := pack.Dependency(d)
		if o.satisfied(name) {
			continue
		}
		if dep, ok := o.find(name); !ok || !o.put(dep, true) {
			return false
		}
	}
	return true
}

func (o *opkg) satisfied(name string) bool {
	if _, ok := o.state[name]; ok {
		return true
	}
	for _, have := range o.state {
		if slices.Contains(have.Provides, name) {
			return true
		}
	}
	return false
}

// resolvable looks for every dependency, all the way down, before anything is installed.
func (o *opkg) resolvable(c candidate, seen map[string]bool) bool {
	if seen[c.Name] {
		return true
	}
	seen[c.Name] = true
	for _, d := range c.Depends {
		name, version := pack.Dependency(d)
		if have, ok := o.state[name]; ok && (version == "" || have.Version == version) || !ok && version == "" && o.satisfied(name) {
			continue
		}
		dep, ok := o.find(name)
		if !ok || version != "" && dep.Version != version {
			o.problem("pkg_hash_check_unresolved", "cannot find dependency %s for %s", d, c.Name)
			return false
		}
		if !o.resolvable(dep, seen) {
			return false
		}
	}
	return true
}

func (o *opkg) compatible(c candidate) bool {
	var others []string
	for _, name := range c.Conflicts {
		if _, ok := o.state[name]; ok {
			others = append(others, name)
		}
	}
	if len(others) == 0 {
		return true
	}
	o.problem("check_conflicts_for", "The following packages conflict with %s:", c.Name)
	for _, name := range others {
		o.problem("check_conflicts_for", "\t%s * ", name)
	}
	return false
}

// download returns the file of the package c.
func (o *opkg) download(c candidate) (string, error) {
	if c.url == "" {
		return c.Filename, nil
	}
	name := filepath.Join(o.cache, filepath.Base(c.Filename))
	if sumMatches(name, c.SHA256) {
		return name, nil
	}
	fmt.Println("Downloading", c.url)
	if err := wget(c.url, name); err != nil {
		o.problem("opkg_download", "Failed to download %s, %s.", c.url, strings.Replace(err.Error(), ": exited with error", " returned", 1))
		return "", err
	}
	if !sumMatches(name, c.SHA256) {
		o.problem("opkg_install_pkg", "Package %s sha256sum mismatch. Either the opkg or the package index are corrupt. Try 'opkg update'.", c.Name)
		return "", errors.Join(errReported, os.Remove(name))
	}
	return name, nil
}

func (o *opkg) unpack(c candidate, file string) bool {
	p, files, err := o.root.unpack(file)
	var both clash
	if errors.As(err, &both) {
		o.problem("check_data_file_clashes", "%v", both)
		return false
	}
	if err == nil {
		err = o.record(p, files)
	}
	if err != nil {
		o.problem("pkg_extract_data", "%s: %v", c.Name, err)
	}
	return err == nil
}

// record keeps what opkg keeps of a package: its control file, file list and scripts.
func (o *opkg) record(p pack.Package, files []string) error {
	info := filepath.Join(opkgInfo, p.Name)
	slices.Sort(files)
	err := errors.Join(
		o.root.write(info+".control", p.Control(), 0o644),
		o.root.write(info+".list", strings.Join(append(files, ""), "\n"), 0o644))
	for script, text := range p.Scripts {
		err = errors.Join(err, o.root.write(info+"."+script, text, 0o755))
	}
	return err
}
