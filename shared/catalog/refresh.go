package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/attended-sysupgrade/sysup/shared/feed"
	"github.com/attended-sysupgrade/sysup/shared/usign"
	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sync/errgroup"
)

const (
	maxSignature = 4 << 10
	maxSums      = 8 << 20
	maxFeeds     = 32
)

// split takes the key of a target apart.
func split(key string) (version, rest string) {
	version, rest, _ = strings.Cut(key, "/")
	return version, rest
}

// refreshTarget fetches a target's sums with what they vouch for, and its
// package indices. Its own file is written last: once it is there, all is.
func (c *Catalog) refreshTarget(ctx context.Context, f files, key string) error {
	version, name := split(key)
	dir, changed := folder(version)+"/targets/"+name, false
	if run := c.inspections.find(key); run != nil && run.running() {
		return backoff.Permanent(errUnmade) // the upstream need not be asked meanwhile
	}
	err := c.renew(ctx, f, key+"/.target", maxSums, []string{dir + "/sha256sums"}, func(_ string, sums []byte) ([]byte, error) {
		changed = true
		return c.distillTarget(ctx, f, version, name, sums)
	})
	if err != nil || changed {
		return err
	}
	t, err := c.loadBareTarget(f, key)
	if err != nil {
		return err
	}
	return c.renewIndices(ctx, f, t)
}

// renewIndices brings a target's package indices up to date, the kernel
// modules last: they depend on the rest.
func (c *Catalog) renewIndices(ctx context.Context, f files, t *target) error {
	key, dir := t.version+"/"+t.name, folder(t.version)+"/targets/"+t.name
	for _, file := range []string{".packages", ".kmods"} {
		from := t.indices()[file]
		if from == "" {
			continue
		}
		if err := c.renewIndex(ctx, f, key+"/"+file, dir, from, t.Indices); err != nil && !errors.Is(err, errAbsent) {
			return err
		}
	}
	return nil
}

// indices are the files in the cache for a target's package indices, and the
// folders below the target's from which they come.
func (t *target) indices() map[string]string {
	m := map[string]string{".packages": "packages"}
	if t.Kernel != "" {
		m[".kmods"] = "kmods/" + t.Kernel
	}
	return m
}

// distillTarget verifies a target's sums, fetches its profiles and indices, and
// returns what matters of sums and profiles.
func (c *Catalog) distillTarget(ctx context.Context, f files, version, name string, body []byte) ([]byte, error) {
	dir := folder(version) + "/targets/" + name
	sums, signer, err := c.verifiedSums(ctx, dir, body)
	if err != nil {
		return nil, err
	}
	profiles, m, err := c.profilesOf(ctx, f, version, name, sums)
	if err != nil {
		return nil, err
	}
	t, err := parseProfiles(profiles, version, name)
	if err != nil {
		return nil, err
	}
	t.parseSums(sums)
	t.SignedBy, t.Made = signer.String(), path.Base(m.Source) != "profiles.json"
	if err := c.renewIndices(ctx, f, t); err != nil {
		return nil, err
	}
	if err := keepProfiles(f, version+"/"+name, m, profiles); err != nil {
		return nil, err
	}
	return json.Marshal(t)
}

// verifiedSums reads the sha256sums of a folder, which somebody trusted signed.
func (c *Catalog) verifiedSums(ctx context.Context, dir string, body []byte) (usign.Sums, usign.Fingerprint, error) {
	sig, err := c.signature(ctx, dir+"/sha256sums.sig")
	if err == nil {
		err = c.verify(body, sig)
	}
	if err != nil {
		return nil, usign.Fingerprint{}, err
	}
	sums, err := usign.ParseSums(body)
	return sums, sig.Fingerprint, err
}

// signature fetches a signature file.
func (c *Catalog) signature(ctx context.Context, path string) (usign.Signature, error) {
	file, _, err := c.web.get(ctx, path, maxSignature, meta{})
	if err != nil {
		return usign.Signature{}, err
	}
	return usign.ParseSignature(file)
}

// verify is usign.Verify with the catalogue's keys. Another try does not help
// against an unknown key.
func (c *Catalog) verify(body []byte, sig usign.Signature) error {
	err := usign.Verify(c.keys, body, sig)
	if errors.Is(err, usign.ErrUnknownKey) {
		return backoff.Permanent(err)
	}
	return err
}

// renewIndex brings a package index up to date from dir/folder. sums are the
// verified sums of files below dir; one that is listed is not even asked for
// while we have it.
func (c *Catalog) renewIndex(ctx context.Context, f files, key, dir, folder string, sums map[string]string) error {
	var paths []string
	for _, file := range []string{"Packages.gz", adbFile, "Packages", "index.json"} {
		paths = append(paths, path.Join(dir, folder, file))
	}
	listed := func(p string) string { return sums[strings.TrimPrefix(p, dir+"/")] }
	old := f.meta(key)
	if sum := listed(c.pathOf(old)); sum != "" && sum == old.Sum {
		return nil
	}
	return c.renew(ctx, f, key, maxIndex, paths, func(p string, body []byte) ([]byte, error) {
		return c.distillIndex(ctx, p, body, listed(p))
	})
}

// adbFile is the index of apk's packages. What index.json says is less.
const adbFile = "packages.adb"

// distillIndex verifies an index by its sum or, if it has none, by its
// signature.
func (c *Catalog) distillIndex(ctx context.Context, p string, body []byte, sum string) ([]byte, error) {
	if sum != "" && sum != sumOf(body) {
		return nil, fmt.Errorf("%w: it is not what the target's sha256sums lists", usign.ErrSum)
	}
	switch path.Base(p) {
	case "index.json":
		list, lost, err := feed.ParseIndexJSON(body)
		if lost {
			return distill(headLost, list), err
		}
		return distill(headKnown, list), err
	case adbFile:
		return c.distillADB(body, sum != "")
	}
	var sig *usign.Signature
	if sum == "" {
		switch s, err := c.signature(ctx, path.Dir(p)+"/Packages.sig"); {
		case err == nil:
			sig = &s
		case !errors.Is(err, errAbsent):
			return nil, err
		}
	}
	return c.distillPackages(body, sig)
}

func (c *Catalog) distillPackages(body []byte, sig *usign.Signature) ([]byte, error) {
	c.parsing <- struct{}{}
	defer func() { <-c.parsing }()
	plain, err := unzip(body, maxPlain)
	if err != nil {
		return nil, err
	}
	if sig != nil {
		if err := c.verify(plain, *sig); err != nil {
			return nil, err
		}
	}
	list, err := feed.ParsePackages(plain)
	return distill(headOpkg, list), err
}

// distillADB demands a known signer if any is known and nothing else proves
// where the index is from.
func (c *Catalog) distillADB(body []byte, proved bool) ([]byte, error) {
	c.parsing <- struct{}{}
	defer func() { <-c.parsing }()
	if proved || len(c.apkKeys) == 0 {
		list, err := feed.ReadADBUnverified(body)
		return distill(headAPK, list), err
	}
	list, _, err := feed.OpenADB(body, c.apkKeys)
	switch {
	case errors.Is(err, feed.ErrUnknownKey), errors.Is(err, feed.ErrUnsigned):
		err = backoff.Permanent(fmt.Errorf("%w: %w", usign.ErrUnknownKey, err))
	case errors.Is(err, feed.ErrBadSignature):
		err = fmt.Errorf("%w: %w", usign.ErrBadSignature, err)
	}
	return distill(headAPK, list), err
}

func (c *Catalog) loadTarget(f files, key string) (*target, error) {
	stamp := stampOfUnit(f, key, targetFiles)
	t, err := c.loadBareTarget(f, key)
	if err != nil {
		return nil, err
	}
	t.stamp = stamp
	dir := folder(t.version) + "/targets/" + t.name
	var texts []string
	mute := false
	for _, file := range []string{".packages", ".kmods"} {
		from := t.indices()[file]
		m, text, err := f.read(key + "/" + file)
		// Modules of an earlier kernel may still be there.
		if from != "" && err == nil && path.Dir(c.pathOf(m)) == path.Join(dir, from) {
			texts = append(texts, text)
			mute = mute || namesOnly(m)
			t.kmods = file == ".kmods"
		}
	}
	if len(texts) > 0 {
		t.own = newIndex(texts...)
		t.own.mute = mute
		t.kmods = t.kmods || t.Kernel == "" && t.own.has(kmodPrefix)
	}
	return t, nil
}

// namesOnly tells whether an index was made of a file that does not tell what
// packages provide.
func namesOnly(m meta) bool { return path.Base(m.Source) == "index.json" }

// loadBareTarget is loadTarget without package indices.
func (c *Catalog) loadBareTarget(f files, key string) (*target, error) {
	_, text, err := f.read(key + "/.target")
	if err != nil {
		return nil, err
	}
	t, err := parseTarget(text)
	if err != nil || !c.knows(t.Signer) {
		// Damaged, or the operator took the key away: as if it were not there.
		f.drop(key + "/.target")
		return nil, fs.ErrNotExist
	}
	t.version, t.name = split(key)
	return t, nil
}

// usualFeeds are looked for where an architecture has no list of its feeds. An
// ImageBuilder's own list may have more then, and feeds of other hosts.
var usualFeeds = []string{"base", "luci", "packages", "routing", "telephony", "video"}

var feedPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)

// parseFeeds reads a feeds.conf: the second word of each line is the feed's
// name, which is also its folder. The feed "base" is always there and comes
// first.
func parseFeeds(b []byte) []string {
	names := []string{"base"}
	for line := range strings.Lines(string(b)) {
		words := strings.Fields(line)
		if len(words) < 2 || !strings.HasPrefix(words[0], "src-") || !feedPattern.MatchString(words[1]) {
			continue
		}
		if !slices.Contains(names, words[1]) && len(names) < maxFeeds {
			names = append(names, words[1])
		}
	}
	return names
}

func feedsKey(key string) string {
	version, arch := split(key)
	return version + "/.feeds/" + arch
}

// refreshFeeds fetches the feeds of a version's architecture. The list of
// their names is written last: once it is there, all is.
func (c *Catalog) refreshFeeds(ctx context.Context, f files, key string) error {
	version, arch := split(key)
	conf, changed := folder(version)+"/packages/"+arch+"/feeds.conf", false
	fetch := func(names []string) ([]byte, error) {
		changed = true
		if err := c.renewFeeds(ctx, f, key, names); err != nil {
			return nil, err
		}
		return json.Marshal(names)
	}
	err := c.renew(ctx, f, feedsKey(key)+"/.names", maxListFile, []string{conf}, func(_ string, body []byte) ([]byte, error) {
		return fetch(parseFeeds(body))
	})
	if errors.Is(err, errAbsent) {
		var names []byte
		if names, err = fetch(usualFeeds); err == nil {
			err = f.write(feedsKey(key)+"/.names", meta{Form: form, Source: c.web.base + "/" + conf}, names)
		}
	}
	if err != nil || changed {
		return err
	}
	return c.renewFeeds(ctx, f, key, feedNames(f, key))
}

func (c *Catalog) renewFeeds(ctx context.Context, f files, key string, names []string) error {
	version, arch := split(key)
	g, ctx := errgroup.WithContext(ctx)
	for _, name := range names {
		g.Go(func() error {
			err := c.renewIndex(ctx, f, feedsKey(key)+"/"+name, folder(version)+"/packages/"+arch, name, nil)
			if errors.Is(err, errAbsent) {
				return nil
			}
			return err
		})
	}
	return g.Wait()
}

// feedNames is nil if the feeds were never fetched.
func feedNames(f files, key string) []string {
	_, text, err := f.read(feedsKey(key) + "/.names")
	if err != nil {
		return nil
	}
	var names []string
	if json.Unmarshal([]byte(text), &names) != nil {
		f.drop(feedsKey(key) + "/.names")
		return nil
	}
	return slices.DeleteFunc(names, func(s string) bool { return !feedPattern.MatchString(s) })
}

func (c *Catalog) loadFeeds(f files, key string) (*index, error) {
	names := feedNames(f, key)
	if names == nil {
		return nil, fs.ErrNotExist
	}
	list, _, _ := f.read(feedsKey(key) + "/.names")
	stamp := stampOfUnit(f, feedsKey(key), append([]string{".names"}, names...))
	var texts []string
	open, mute := list.Sum == "", false // a list without a sum was guessed
	for _, name := range names {
		m, text, err := f.read(feedsKey(key) + "/" + name)
		if err == nil {
			texts = append(texts, text)
		}
		open, mute = open || err != nil, mute || namesOnly(m)
	}
	x := newIndex(texts...)
	x.stamp, x.open, x.mute = stamp, open, mute
	return x, nil
}
