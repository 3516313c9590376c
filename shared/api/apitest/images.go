package apitest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// image is one of those that an answer offers.
type image struct {
	Name, Type, Filesystem string
	SHA256                 string `json:"sha256"`
	Unsigned               string `json:"sha256_unsigned"`
}

// router is what decides which image a client takes.
type router struct {
	filesystem string
	efi        bool
	target     string
}

// pickers choose an image as the clients do.
var pickers = map[string]func(router, []image) *image{
	"luci-2021": func(r router, list []image) *image {
		return first(append(ofType(list, "sysupgrade"), list[len(list)-1]))
	},
	"luci-2022": func(r router, list []image) *image {
		if r.efi {
			return first(ofType(r.fitting(list), "combined-efi"))
		}
		return first(ofType(r.fitting(list), "sysupgrade", "combined"))
	},
	"luci-2025": func(r router, list []image) *image {
		if !strings.Contains(r.target, "x86") {
			return first(ofType(r.fitting(list), "sysupgrade", "combined"))
		}
		return first(ofType(r.fitting(list), r.combined()))
	},
	"auc-2021": func(_ router, list []image) *image { return first(ofType(list, "sysupgrade")) },
	"auc": func(r router, list []image) *image {
		for _, r.filesystem = range []string{r.filesystem, "squashfs"} {
			for _, kind := range []string{"sysupgrade", r.combined(), "sdcard"} {
				if image := first(ofType(r.fitting(list), kind)); image != nil {
					return image
				}
			}
		}
		return nil
	},
	"owut": func(r router, list []image) *image {
		if slices.Contains([]string{"armsr", "loongarch", "x86"}, strings.Split(r.target, "/")[0]) {
			return first(ofType(r.fitting(list), r.combined()))
		}
		return first(ofType(r.fitting(list), "sysupgrade"))
	},
}

func (r router) combined() string {
	if r.efi {
		return "combined-efi"
	}
	return "combined"
}

func (r router) fitting(list []image) []image {
	return slices.DeleteFunc(slices.Clone(list), func(i image) bool { return i.Filesystem != r.filesystem })
}

func ofType(list []image, types ...string) []image {
	return slices.DeleteFunc(slices.Clone(list), func(i image) bool { return !slices.Contains(types, i.Type) })
}

func first(list []image) *image {
	if len(list) == 0 {
		return nil
	}
	return &list[0]
}

func (c *conversation) picks(ts *testscript.TestScript, neg bool, args []string) {
	var result struct {
		Images []image
		Target string
	}
	ts.Check(json.Unmarshal(c.result.Body, &result))
	pick, ok := pickers[args[0]]
	if !ok || len(result.Images) == 0 {
		ts.Fatalf("%s cannot choose from %s", args[0], c.result.Body)
	}
	image := pick(router{args[1], args[2] == "efi", result.Target}, result.Images)
	if neg != (image == nil) {
		ts.Fatalf("%s takes %+v of %+v", args[0], image, result.Images)
	}
	if image != nil {
		ts.Setenv("IMAGE", image.Name)
		ts.Setenv("SHA256", image.SHA256)
		ts.Setenv("UNSIGNED", image.Unsigned)
	}
}

// flashes downloads what was picked and checks it as clients do: the size
// against Content-Length, the sum against the answer's.
func (c *conversation) flashes(ts *testscript.TestScript, neg bool, args []string) {
	c.send(ts, false, args)
	sum := sha256.Sum256(c.answer.Body)
	switch {
	case c.answer.Status != 200 || int64(len(c.answer.Body)) != c.answer.Length:
		ts.Fatalf("%d with %d bytes, Content-Length %d", c.answer.Status, len(c.answer.Body), c.answer.Length)
	case hex.EncodeToString(sum[:]) != ts.Getenv("SHA256"):
		ts.Fatalf("the sum is %x, not %s", sum, ts.Getenv("SHA256"))
	case !strings.Contains(c.request, "/"+ts.Getenv("IMAGE")):
		ts.Fatalf("%s is not the address of %s", c.request, ts.Getenv("IMAGE"))
	}
}

// offers looks for newer versions as the client does.
func (c *conversation) offers(ts *testscript.TestScript, neg bool, args []string) {
	find, ok := finders[args[0]]
	if !ok {
		ts.Fatalf("there is no client %q that looks for versions", args[0])
	}
	if got := find(c.answer, args[1]); !slices.Equal(got, args[2:]) {
		ts.Fatalf("%s offers %q, want %q; %s", args[0], got, args[2:], c.answer.Body)
	}
}

// finders find the versions to which an installed one may be upgraded.
var finders = map[string]func(a Answer, installed string) []string{
	"luci": luciOffers, "owut": owutOffers, "auc": aucOffers, "auc-2021": auc2021Offers,
}

// branchOf is "24.10" of "24.10.0-rc1" and of "24.10-SNAPSHOT".
func branchOf(version string) string {
	parts := strings.Split(strings.ReplaceAll(version, "-SNAPSHOT", ""), ".")
	return strings.Join(parts[:min(2, len(parts))], ".")
}

// luciOffers walks latest in its order, outside of the advanced mode. For
// snapshots it compares the counts in two revisions.
func luciOffers(a Answer, installed string) (found []string) {
	o := a.object()
	if revision := o.text("revision"); revision != "" {
		if revisionCount(installed) < revisionCount(revision) {
			return []string{revision}
		}
		return nil
	}
	latest, _ := o["latest"].([]any)
	for _, item := range latest {
		version, _ := item.(string)
		if version == installed {
			break
		}
		if branchOf(version) == branchOf(installed) {
			return append(found, version)
		}
	}
	return found
}

func revisionCount(revision string) int {
	count, _, _ := strings.Cut(strings.TrimPrefix(revision, "r"), "-")
	n, err := strconv.Atoi(count)
	if err != nil {
		return -1
	}
	return n
}

// owutOffers are the versions of the installed one's branch in overview.json,
// which has to say where they lie and what changed in them.
func owutOffers(a Answer, installed string) (found []string) {
	value, _ := lookUp(a.value(), "branches")
	branches, _ := value.(map[string]any)
	branch, _ := branches[branchOf(installed)].(map[string]any)
	if branch["enabled"] != true || !strings.Contains(object(branch).text("path"), "{version}") || object(a.object()).text("upstream_url") == "" {
		return nil
	}
	if _, ok := branch["package_changes"].([]any); !ok {
		return nil
	}
	if targets, _ := branch["targets"].(map[string]any); len(targets) == 0 {
		return nil
	}
	return texts(branch["versions"])
}

// aucOffers are the versions of the branches in branches.json whose name is
// the beginning of the installed version, if the branch has all that auc
// demands.
func aucOffers(a Answer, installed string) (found []string) {
	branches, _ := a.value().([]any)
	if o := a.object(); o != nil {
		branches = slices.Collect(maps.Values(o))
	}
	for _, item := range branches {
		branch, _ := item.(map[string]any)
		o := object(branch)
		targets, _ := o["targets"].(map[string]any)
		whole := o.text("path") != "" && o.text("path_packages") != "" && len(targets) > 0 && o["enabled"] == true
		if name := o.text("name"); whole && name != "" && strings.HasPrefix(installed, name) {
			found = append(found, texts(o["versions"])...)
		}
	}
	return found
}

// auc2021Offers are those of the branches that have what auc demanded in 2021
// as well. It reads no object of branches, only a list.
func auc2021Offers(a Answer, installed string) []string {
	branches, _ := a.value().([]any)
	whole := slices.DeleteFunc(branches, func(item any) bool {
		branch, _ := item.(map[string]any)
		_, updates := branch["updates"].(string)
		_, pubkey := branch["pubkey"].(string)
		_, repos := branch["repos"].([]any)
		return !updates || !pubkey || !repos
	})
	body, err := json.Marshal(whole)
	if err != nil {
		return nil
	}
	return aucOffers(Answer{Body: body}, installed)
}

func texts(value any) (list []string) {
	items, _ := value.([]any)
	for _, item := range items {
		list = append(list, fmt.Sprint(item))
	}
	return list
}

// remember takes in an index file: of a target ({"packages": {…}}) or of an
// architecture, which is that object itself.
func (c *conversation) remember(ts *testscript.TestScript, neg bool, args []string) {
	packages := c.answer.object()
	if inner, ok := packages["packages"].(map[string]any); ok {
		packages = inner
	}
	n := len(c.index)
	for name, version := range packages {
		if text, ok := version.(string); ok {
			c.index[name] = text
		}
	}
	if len(c.index) == n {
		ts.Fatalf("there is no package in %s", c.answer.Body)
	}
}

func (c *conversation) agrees(ts *testscript.TestScript, neg bool, args []string) {
	value, _ := lookUp(c.result.value(), "manifest")
	manifest, _ := value.(map[string]any)
	for _, name := range args {
		if got := object(manifest).text(name); got == "" || got != c.index[name] {
			ts.Fatalf("%s is %q in the manifest and %q in the index", name, got, c.index[name])
		}
	}
}
