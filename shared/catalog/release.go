package catalog

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Limits of the upstream's lists.
const (
	maxListFile = 1 << 20
	maxVersions = 1_000
	maxTargets  = 1_000
)

var (
	releasePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+_-]{0,39}$`)
	targetPattern  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,31}/[A-Za-z0-9][A-Za-z0-9_-]{0,31}$`)
	archPattern    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$`)
)

const (
	snapshot  = "SNAPSHOT"
	snapshots = "snapshots" // its folder
)

// canonicalVersion spells snapshots as the upstream does: "snapshot" is
// "SNAPSHOT" and "24.10-snapshot" is "24.10-SNAPSHOT".
func canonicalVersion(version string) string {
	if n := len(version) - len(snapshot); n >= 0 && strings.EqualFold(version[n:], snapshot) {
		return version[:n] + snapshot
	}
	return version
}

func isSnapshot(version string) bool { return strings.HasSuffix(version, snapshot) }

// branchOf is the branch of a version: "24.10" of "24.10.5", "24.10.0-rc1"
// and "24.10-SNAPSHOT"; "SNAPSHOT" of itself.
func branchOf(version string) string {
	if version == snapshot {
		return snapshot
	}
	numbers, _, _ := strings.Cut(version, "-")
	if parts := strings.SplitN(numbers, ".", 3); len(parts) == 3 {
		return parts[0] + "." + parts[1]
	}
	return numbers
}

// folder is where the upstream keeps a version.
func folder(version string) string {
	if version == snapshot {
		return snapshots
	}
	return "releases/" + version
}

// compareVersions orders by age: numbers by value, release candidates before
// their release, snapshots before every release of their branch.
func compareVersions(a, b string) int {
	x, xTail, _ := strings.Cut(a, "-")
	y, yTail, _ := strings.Cut(b, "-")
	xs, ys := strings.Split(x, "."), strings.Split(y, ".")
	for i := range min(len(xs), len(ys)) {
		if c := compareParts(xs[i], ys[i]); c != 0 {
			return c
		}
	}
	switch c := cmp.Compare(len(xs), len(ys)); {
	case c != 0:
		return c
	case xTail == "" || yTail == "":
		return cmp.Compare(len(yTail), len(xTail))
	}
	return compareParts(strings.TrimPrefix(xTail, "rc"), strings.TrimPrefix(yTail, "rc"))
}

func compareParts(a, b string) int {
	x, errX := strconv.Atoi(a)
	y, errY := strconv.Atoi(b)
	if errX != nil || errY != nil {
		return strings.Compare(a, b)
	}
	return cmp.Compare(x, y)
}

// versionList is the upstream's .versions.json.
type versionList struct {
	Stable    string   `json:"stable_version"`
	Oldstable string   `json:"oldstable_version"`
	Upcoming  string   `json:"upcoming_version"`
	Versions  []string `json:"versions_list"`
}

// parseVersions reads a .versions.json. Versions whose names break their
// pattern are left out.
func parseVersions(b []byte) (versionList, error) {
	var v versionList
	if err := json.Unmarshal(b, &v); err != nil {
		return versionList{}, fmt.Errorf("read .versions.json: %w", err)
	}
	if len(v.Versions) > maxVersions {
		return versionList{}, fmt.Errorf(".versions.json: more than %d versions", maxVersions)
	}
	v.Versions = slices.DeleteFunc(append(v.Versions, v.Stable, v.Oldstable, v.Upcoming), func(s string) bool {
		return !releasePattern.MatchString(s) || isSnapshot(s)
	})
	for _, named := range []*string{&v.Stable, &v.Oldstable, &v.Upcoming} {
		if !slices.Contains(v.Versions, *named) {
			*named = ""
		}
	}
	slices.SortFunc(v.Versions, newestFirst)
	if v.Versions = slices.Compact(v.Versions); len(v.Versions) == 0 {
		return versionList{}, errors.New(".versions.json names no version")
	}
	return v, nil
}

// newestFirst is a total order, so that equal lists sort equally.
func newestFirst(a, b string) int {
	return cmp.Or(compareVersions(b, a), strings.Compare(b, a))
}

// latest is the newest version of each supported branch, newest first.
func (v *versionList) latest() []string {
	var list []string
	for _, version := range []string{v.Stable, v.Oldstable, v.Upcoming} {
		same := func(s string) bool { return branchOf(s) == branchOf(version) }
		old := version == v.Upcoming && compareVersions(version, v.Stable) < 0
		if version != "" && !old && !slices.ContainsFunc(list, same) {
			list = append(list, version)
		}
	}
	slices.SortFunc(list, newestFirst)
	return list
}

// branches groups the versions, both newest first, and adds the snapshots
// that may exist: of the main branch and of every supported one.
func (v *versionList) branches() []Branch {
	list := []Branch{{Name: snapshot, Path: snapshots, Snapshot: true, Versions: []string{snapshot}}}
	for _, version := range v.Versions {
		name := branchOf(version)
		if last := &list[len(list)-1]; last.Name == name {
			last.Versions = append(last.Versions, version)
		} else {
			list = append(list, Branch{Name: name, Path: "releases/{version}", Versions: []string{version}})
		}
	}
	for _, version := range []string{v.Stable, v.Oldstable, v.Upcoming} {
		for i := range list {
			b := &list[i]
			if moving := b.Name + "-" + snapshot; version != "" && b.Name == branchOf(version) && !slices.Contains(b.Versions, moving) {
				b.Versions = append(b.Versions, moving)
			}
		}
	}
	return list
}

// targetList maps "x86/64" to "x86_64", the architecture of its packages.
type targetList map[string]string

// parseTargets reads a .targets.json. Entries that break a pattern are left
// out.
func parseTargets(b []byte) (targetList, error) {
	var list targetList
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("read .targets.json: %w", err)
	}
	if len(list) > maxTargets {
		return nil, fmt.Errorf(".targets.json: more than %d targets", maxTargets)
	}
	for target, arch := range list {
		if !targetPattern.MatchString(target) || !archPattern.MatchString(arch) {
			delete(list, target)
		}
	}
	if len(list) == 0 {
		return nil, errors.New(".targets.json names no target")
	}
	return list, nil
}
