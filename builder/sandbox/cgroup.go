package sandbox

import (
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// group is the control group of a job: a folder in each hierarchy where this process may make one. With version 1 each
// controller has its own. There may be none at all, as on Fargate or for an ordinary user without delegation.
type group struct {
	folders map[string]string // by controller
	version int               // the same for all, but on machines that mix them
}

// groupPrefix begins the names of groups, so that stale ones are found.
const groupPrefix = "sysup-job-"

// wanted are the controllers, and what they are told: for version 2, then for version 1. A file that is missing, such as
// of swap, is passed over. The weight is half of the usual, so that builds do not starve who answers.
func wanted(l Limits) map[string][2]map[string]string {
	memory, pids := strconv.FormatInt(l.Memory, 10), strconv.Itoa(l.Processes)
	return map[string][2]map[string]string{
		"memory": {
			{"memory.max": memory, "memory.swap.max": "0", "memory.oom.group": "1"},
			{"memory.limit_in_bytes": memory, "memory.memsw.limit_in_bytes": memory},
		},
		"pids": {{"pids.max": pids}, {"pids.max": pids}},
		"cpu":  {{"cpu.weight": "50"}, {"cpu.shares": "512"}},
	}
}

// newGroup makes the group of a job, as far as that is possible here; nil if it is not at all.
func newGroup(l Limits) *group {
	g := &group{folders: map[string]string{}}
	name := fmt.Sprintf("%s%d-%s", groupPrefix, os.Getpid(), rand.Text())
	for controller, settings := range wanted(l) {
		version, parent := ownGroup(controller)
		if parent == "" {
			continue
		}
		folder := filepath.Join(parent, name)
		if err := os.Mkdir(folder, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			continue
		}
		g.folders[controller], g.version = folder, version
		for file, value := range settings[2-version] {
			// Not a new file, which a folder that is no control group would take.
			if f, err := os.OpenFile(filepath.Join(folder, file), os.O_WRONLY, 0); err == nil {
				_, _ = f.WriteString(value)
				f.Close()
			}
		}
	}
	if len(g.folders) == 0 {
		return nil
	}
	return g
}

// ownGroup is the folder of a controller in which groups of jobs can be made, and the version of its hierarchy; "" if
// there is none.
func ownGroup(controller string) (version int, folder string) {
	for version, folder := range ownGroups(controller) {
		if unix.Access(folder, unix.W_OK) == nil && (version == 1 || enabled(folder, controller)) {
			return version, folder
		}
	}
	return 0, ""
}

// enabled tells whether groups below the folder, of version 2, have the controller, having tried to see to it. The
// kernel refuses that where processes are in the folder itself, unless it is the root.
func enabled(folder, controller string) bool {
	control := filepath.Join(folder, "cgroup.subtree_control")
	has := func() bool {
		text, _ := os.ReadFile(control)
		return slices.Contains(strings.Fields(string(text)), controller)
	}
	if !has() {
		_ = os.WriteFile(control, []byte("+"+controller), 0)
	}
	return has()
}

// ownGroups gives the folders that may do, by version: that of this process's own group, and, of version 2, the one above
// if it is delegated to this user, as systemd does by Delegate= with DelegateSubgroup=.
func ownGroups(controller string) map[int]string {
	groups, _ := os.ReadFile("/proc/self/cgroup")
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	found := map[int]string{}
	for line := range strings.Lines(string(groups)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) != 3 {
			continue
		}
		switch {
		case fields[1] == "":
			own := mounted(mounts, "cgroup2", "", fields[2])
			if above := filepath.Dir(own); own != "" && delegated(above) {
				own = above
			}
			if list, _ := os.ReadFile(filepath.Join(own, "cgroup.controllers")); own != "" && slices.Contains(strings.Fields(string(list)), controller) {
				found[2] = own
			}
		case slices.Contains(strings.Split(fields[1], ","), controller):
			if own := mounted(mounts, "cgroup", controller, fields[2]); own != "" {
				found[1] = own
			}
		}
	}
	return found
}

func delegated(folder string) bool {
	value := make([]byte, 8)
	n, err := unix.Getxattr(folder, "user.delegate", value)
	return err == nil && string(value[:n]) == "1"
}

// mounted finds in mountinfo where the group of a hierarchy is: the fields are, among others, the root of the mount
// within it, its place, and after " - " the kind, the device and the options, which name the controllers of version 1.
func mounted(mounts []byte, kind, controller, path string) string {
	for line := range strings.Lines(string(mounts)) {
		before, after, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		place, about := strings.Fields(before), strings.Fields(after)
		if len(place) < 5 || len(about) < 3 || about[0] != kind {
			continue
		}
		if controller != "" && !slices.Contains(strings.Split(about[2], ","), controller) {
			continue
		}
		below, err := filepath.Rel(place[3], path)
		if err == nil && filepath.IsLocal(below) {
			return filepath.Join(place[4], below)
		}
	}
	return ""
}

// add puts a process into the group; what it starts follows.
func (g *group) add(pid int) {
	if g == nil {
		return
	}
	for _, folder := range g.folders {
		_ = os.WriteFile(filepath.Join(folder, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
	}
}

// outOfMemory tells whether the kernel killed one of the group for it.
func (g *group) outOfMemory() bool {
	if g == nil || g.folders["memory"] == "" {
		return false
	}
	for _, file := range []string{"memory.events", "memory.oom_control"} { // of version 2, of version 1
		text, _ := os.ReadFile(filepath.Join(g.folders["memory"], file))
		for line := range strings.Lines(string(text)) {
			if count, found := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); found {
				return count != "0"
			}
		}
	}
	return false
}

// names is what the group does, for the log, like "cgroup v2 cpu+memory+pids"; none if there is none.
func (g *group) names() []string {
	if g == nil {
		return nil
	}
	controllers := slices.Sorted(maps.Keys(g.folders))
	return []string{fmt.Sprintf("cgroup v%d %s", g.version, strings.Join(controllers, "+"))}
}

// remove removes the group. Its last processes are dead, but the kernel may still be about to forget them.
func (g *group) remove() error {
	if g == nil {
		return nil
	}
	var errs []error
	for _, folder := range g.folders {
		err := os.Remove(folder)
		for begin := time.Now(); errors.Is(err, unix.EBUSY) && time.Since(begin) < 2*time.Second; {
			time.Sleep(time.Millisecond)
			err = os.Remove(folder)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// removeStaleGroups removes those of killed servers. One that is in use stays, since the kernel refuses.
func removeStaleGroups() {
	for controller := range wanted(Limits{}) {
		if _, parent := ownGroup(controller); parent != "" {
			stale, _ := filepath.Glob(filepath.Join(parent, groupPrefix+"*"))
			for _, folder := range stale {
				_ = os.Remove(folder)
			}
		}
	}
}
