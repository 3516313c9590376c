package sandbox

import "golang.org/x/sys/unix"

// Namespaced lets the contract know which promises a level makes.
func (m Mechanism) Namespaced() bool { return m.namespaced() }

// KillUser is what ends, at Plain, what forks too fast to be found.
var KillUser = killUser

// LandlockVersion lets it know what the kernel has.
var LandlockVersion = landlockVersion

// Guards are what else confined the job's last command.
func (j *Job) Guards() []string { return j.guards }

// GroupPrefix begins the names of control groups.
const GroupPrefix = groupPrefix

// Resolver is the file by which names are resolved.
var Resolver = resolver

// WithoutLandlock makes the kernel one without it for this thread and what it starts.
func WithoutLandlock() error {
	var p program
	p.add(load, callField)
	p.add(jumpEqual, unix.SYS_LANDLOCK_CREATE_RULESET, 0, 1)
	p.add(give, noCall)
	p.add(give, allow)
	if failed := p.install(); failed != 0 {
		return failed
	}
	return nil
}

// Mounted finds the folder of a control group.
func Mounted(mounts, kind, controller, path string) string {
	return mounted([]byte(mounts), kind, controller, path)
}

// RemoveStaleGroups is what Probe does first.
var RemoveStaleGroups = removeStaleGroups
