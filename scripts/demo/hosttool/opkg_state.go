package main

import (
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/attended-sysupgrade/sysup/scripts/demo/pack"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// opkgConf is what repositories.conf says.
type opkgConf struct {
	feeds          []opkgFeed
	checkSignature bool
}

// opkgFeed is a line "src NAME URL" or "src/gz NAME URL".
type opkgFeed struct {
	name, url string
	gz        bool
}

func readOpkgConf(name string) (opkgConf, error) {
	var conf opkgConf
	data, err := os.ReadFile(name)
	for line := range strings.Lines(string(data)) {
		switch f := strings.Fields(line); {
		case len(f) == 3 && (f[0] == "src" || f[0] == "src/gz"):
			conf.feeds = append(conf.feeds, opkgFeed{f[1], f[2], f[0] == "src/gz"})
		case len(f) >= 2 && f[0] == "option" && f[1] == "check_signature":
			conf.checkSignature = true
		}
	}
	return conf, err
}

// update fetches and verifies the index of every feed. A feed that fails is left out, which is never
// fatal by itself.
func (o *opkg) update() {
	for _, feed := range o.conf.feeds {
		if !o.updateList(feed) {
			fmt.Printf("*** Failed to download the package list from %s\n\n", feed.index())
		} else if o.conf.checkSignature && !o.checkList(feed) {
			fmt.Println("Remove wrong Signature file.")
			os.Remove(filepath.Join(o.lists, feed.name))
		}
	}
}

func (f opkgFeed) index() string {
	if f.gz {
		return f.url + "/Packages.gz"
	}
	return f.url + "/Packages"
}

func (o *opkg) updateList(feed opkgFeed) bool {
	list := filepath.Join(o.lists, feed.name)
	if err := o.fetch(feed.index(), list+".new"); err != nil {
		return false
	}
	defer os.Remove(list + ".new")
	if err := expand(list+".new", list, feed.gz); err != nil {
		o.problem("opkg_update_cmd", "Couldn't decompress feed for source %s: %v", feed.name, err)
		return false
	}
	fmt.Println("Updated list of available packages in", list)
	return true
}

func (o *opkg) checkList(feed opkgFeed) bool {
	sig := filepath.Join(o.lists, feed.name+".sig")
	if err := o.fetch(feed.url+"/Packages.sig", sig); err != nil {
		fmt.Println("Signature file download failed.")
		return false
	}
	if err := verifyFile(filepath.Join(o.lists, feed.name), sig, o.keys); err != nil {
		fmt.Println("Signature check failed.")
		os.Remove(sig)
		return false
	}
	fmt.Println("Signature check passed.")
	return true
}

// fetch gets a url, or a path after "file:", into the file name.
func (o *opkg) fetch(url, name string) error {
	fmt.Println("Downloading", url)
	if path, ok := strings.CutPrefix(url, "file:"); ok {
		data, err := os.ReadFile(path)
		if err != nil {
			o.problem("file_copy", "%v", err)
			return err
		}
		return os.WriteFile(name, data, 0o644)
	}
	err := wget(url, name)
	var status wgetError
	if errors.As(err, &status) {
		o.problem("opkg_download", "Failed to download %s, wget returned %d.", url, int(status))
	}
	return err
}

// expand copies the file from to the file to, through gunzip when gz is set.
func expand(from, to string, gz bool) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	var r io.Reader = f
	if gz {
		if r, err = gzip.NewReader(f); err != nil {
			return err
		}
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o644)
}

// verifyFile checks the usign signature in the file sig over the file name by the keys of a folder.
func verifyFile(name, sig, folder string) error {
	message, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	signature, err := os.ReadFile(sig)
	if err != nil {
		return err
	}
	keys, err := publicKeys(folder)
	if err != nil {
		return err
	}
	return usign.VerifyFile(keys, message, signature)
}

func publicKeys(folder string) ([]usign.PublicKey, error) {
	entries, err := os.ReadDir(folder)
	var keys []usign.PublicKey
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(folder, e.Name()))
		if err != nil {
			return nil, err
		}
		if key, err := usign.ParsePublicKey(data); err == nil {
			keys = append(keys, key)
		}
	}
	return keys, err
}

// loadLists reads the indices that update left, in the order of the feeds.
func (o *opkg) loadLists() error {
	for _, feed := range o.conf.feeds {
		f, err := os.Open(filepath.Join(o.lists, feed.name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		metas, err := pack.ParseControl(bufio.NewReader(f))
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		for _, m := range metas {
			o.offer(feed, m)
		}
	}
	return nil
}

func (o *opkg) offer(feed opkgFeed, m pack.Meta) {
	c := candidate{Meta: m, url: feed.url + "/" + m.Filename}
	if path, ok := strings.CutPrefix(c.url, "file:"); ok {
		c.url, c.Filename = "", path
	}
	for _, name := range append([]string{m.Name}, m.Provides...) {
		o.known[name] = append(o.known[name], c)
	}
}

// loadState reads what is in the root: the status file and the file lists.
func (o *opkg) loadState() error {
	names, err := filepath.Glob(filepath.Join(o.root.dir, opkgInfo, "*.control"))
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		metas, err := pack.ParseControl(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		for _, m := range metas {
			o.state[m.Name] = installed{Meta: m, auto: o.wasAuto(m.Name)}
			o.own(m.Name)
		}
	}
	return err
}

func (o *opkg) own(name string) {
	list, _ := os.ReadFile(filepath.Join(o.root.dir, opkgInfo, name+".list"))
	for file := range strings.Lines(string(list)) {
		o.root.owner[strings.Trim(file, "/\n")] = name
	}
}

func (o *opkg) wasAuto(name string) bool {
	status, _ := os.ReadFile(filepath.Join(o.root.dir, "usr/lib/opkg/status"))
	_, stanza, _ := strings.Cut(string(status), "Package: "+name+"\n")
	stanza, _, _ = strings.Cut(stanza, "\n\n")
	return strings.Contains(stanza, "Auto-Installed: yes")
}

func (o *opkg) writeStatus() error {
	var b strings.Builder
	for _, name := range sortedKeys(o.state) {
		p := o.state[name]
		fmt.Fprintf(&b, "Package: %s\nVersion: %s\n", p.Name, p.Version)
		if len(p.Depends) > 0 {
			fmt.Fprintf(&b, "Depends: %s\n", strings.Join(p.Depends, ", "))
		}
		if p.ABI != "" {
			fmt.Fprintf(&b, "ABIVersion: %s\n", p.ABI)
		}
		b.WriteString("Status: install user installed\nArchitecture: " + p.Arch + "\n")
		if p.auto {
			b.WriteString("Auto-Installed: yes\n")
		}
		b.WriteString("\n")
	}
	return o.root.write("usr/lib/opkg/status", b.String(), 0o644)
}

func (o *opkg) listInstalled(stripABI bool) {
	for _, name := range sortedKeys(o.state) {
		p := o.state[name]
		if stripABI && p.ABI != "" {
			name = strings.TrimSuffix(strings.TrimSuffix(name, p.ABI), "-")
		}
		fmt.Printf("%s - %s\n", name, p.Version)
	}
}

// opkgMakeIndex prints the index of a folder's packages; libc and kernel are left out, as OpenWrt does.
func opkgMakeIndex(args []string) error {
	if len(args) != 1 {
		return errors.New("one folder must be given")
	}
	names, err := filepath.Glob(filepath.Join(args[0], "*.ipk"))
	var metas []pack.Meta
	for _, name := range names {
		m, err := describe(name)
		if err != nil {
			return err
		}
		if m.Name != "libc" && m.Name != "kernel" {
			metas = append(metas, m)
		}
	}
	fmt.Print(pack.Index(metas))
	return err
}

// describe is the index entry of a package file.
func describe(name string) (pack.Meta, error) {
	p, err := pack.Read(name, nil)
	if err != nil {
		return p.Meta, err
	}
	data, err := os.ReadFile(name)
	digest := sha256.Sum256(data)
	p.Filename, p.Size, p.SHA256 = filepath.Base(name), int64(len(data)), hex.EncodeToString(digest[:])
	return p.Meta, err
}

func sumMatches(name, sum string) bool {
	data, err := os.ReadFile(name)
	digest := sha256.Sum256(data)
	return err == nil && hex.EncodeToString(digest[:]) == sum
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
