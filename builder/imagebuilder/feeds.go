package imagebuilder

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// writeFeeds makes what is copied over the tree before make runs: the list of
// feeds with those of the plan, and the keys that they are signed with. Both
// hold for this job only.
func (v *View) writeFeeds(tree string, apk bool) error {
	if len(v.plan.Repositories) > 0 {
		if err := v.writeList(tree, apk); err != nil {
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

func (v *View) writeList(tree string, apk bool) error {
	file := "repositories.conf"
	if apk {
		file = "repositories"
	}
	var list bytes.Buffer
	for _, repo := range v.plan.Repositories {
		if !apk {
			fmt.Fprintf(&list, "src/gz %s %s\n", repo.Name, repo.URL)
		} else if strings.HasSuffix(repo.URL, ".adb") {
			fmt.Fprintln(&list, repo.URL)
		} else {
			fmt.Fprintf(&list, "%s/packages.adb\n", strings.TrimSuffix(repo.URL, "/"))
		}
	}
	err := eachLine(filepath.Join(tree, file), func(line string) {
		if v.plan.RepositoriesMode == "append" || !isFeed(line, apk) {
			fmt.Fprintln(&list, line)
		}
	})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(v.folder(feedsFolder), file), list.Bytes(), 0o644)
}

// isFeed tells the lines that "replace" takes out: feeds on the network, not
// the tree's own packages nor options.
func isFeed(line string, apk bool) bool {
	if apk {
		return strings.HasPrefix(line, "http://") || strings.HasPrefix(line, "https://")
	}
	return strings.HasPrefix(line, "src/gz ")
}

// keyFile gives a key the name under which opkg and apk look for it.
func keyFile(i int, key string) (name string, text []byte, err error) {
	if strings.HasPrefix(key, "-----BEGIN") {
		return fmt.Sprintf("request-%d.pem", i), []byte(key), nil
	}
	text = []byte("untrusted comment: feed of the request\n" + key + "\n")
	public, err := usign.ParsePublicKey(text)
	if err != nil {
		return "", nil, build.Fail(build.KindBuild, "repository_keys: the key %s is not one of usign. Send the second line of the feed's public key file.", key)
	}
	return public.Fingerprint.String(), text, nil
}
