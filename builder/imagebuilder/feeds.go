package imagebuilder

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// writeFeeds makes what is copied over the tree before make runs: the list of
// feeds, where it is to be another one than the tree's, and the keys that the
// plan's are signed with. Both hold for this job only.
func (v *View) writeFeeds(tree string) error {
	file := v.offered.feedsFile()
	text, err := os.ReadFile(filepath.Join(tree, file))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	list := v.feeds(string(text))
	v.ownFeeds = list != string(text) || len(v.plan.RepositoryKeys) > 0
	if list != string(text) {
		if err := os.WriteFile(filepath.Join(v.folder(feedsFolder), file), []byte(list), 0o644); err != nil {
			return err
		}
	}
	for i, key := range v.plan.RepositoryKeys {
		name, text, err := keyFile(i, key)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(v.folder(feedsFolder), "keys", name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// openwrt is what OpenWrt's trees have in their lists of feeds, whichever
// mirror they come from. Signatures of feeds do not cover addresses.
const openwrt = "https://downloads.openwrt.org"

// feeds returns the list of feeds for this job, made from the tree's.
func (v *View) feeds(tree string) string {
	var list strings.Builder
	for _, repo := range v.plan.Repositories {
		list.WriteString(feedLine(repo, v.offered.apk) + "\n")
	}
	for line := range strings.Lines(tree) {
		if v.plan.RepositoriesMode == "replace" && isFeed(line, v.offered.apk) {
			continue
		}
		if v.setting.Upstream != "" {
			line = strings.Replace(line, openwrt+"/", v.setting.Upstream+"/", 1)
		}
		list.WriteString(line)
	}
	return list.String()
}

// feedLine is the request's feed in the list. opkg keeps an index under its
// feed's name, so that one called as a feed of the tree, "imagebuilder" say,
// would take its place.
func feedLine(repo build.Repository, apk bool) string {
	switch {
	case !apk:
		return "src/gz request_" + repo.Name + " " + repo.URL
	case strings.HasSuffix(repo.URL, ".adb"):
		return repo.URL
	}
	return strings.TrimSuffix(repo.URL, "/") + "/packages.adb"
}

// isFeed tells the lines that "replace" takes out: feeds on the network, not
// the tree's own packages nor options.
func isFeed(line string, apk bool) bool {
	if apk {
		return strings.HasPrefix(line, "http://") || strings.HasPrefix(line, "https://")
	}
	return strings.HasPrefix(line, "src/gz ")
}

// explainFeed adds to the failure of a feed that it may be one of the request's.
// opkg does not say whose signature did not hold.
func (v *View) explainFeed(f *build.Failure) *build.Failure {
	if f.Kind == build.KindUpstream && len(v.plan.Repositories) > 0 {
		f.Detail += " The request brings feeds of its own: look whether their addresses are right, whether they are for this version and architecture, and whether repository_keys has the key that signs them."
	}
	return f
}

// keyFile gives a key the name under which opkg and apk look for it.
func keyFile(i int, key string) (name string, text []byte, err error) {
	if strings.HasPrefix(key, "-----BEGIN") {
		return fmt.Sprintf("request-%d.pem", i), []byte(strings.TrimSpace(key) + "\n"), nil
	}
	text = []byte("untrusted comment: feed of the request\n" + key + "\n")
	public, err := usign.ParsePublicKey(text)
	if err != nil {
		return "", nil, build.Fail(build.KindBuild, "repository_keys: the key %s is not one of usign. Send the second line of the feed's public key file.", key)
	}
	return public.Fingerprint.String(), text, nil
}
