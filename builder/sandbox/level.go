package sandbox

import (
	"errors"
	"fmt"
	"os"
	"slices"
)

// A Mechanism names what keeps a job from the machine; see Probe.
type Mechanism string

const (
	// Namespaces (as root): another uid in mount, pid, ipc and uts namespaces: of the machine's files only the programs
	// and what they need, read-only; no processes but its own.
	Namespaces Mechanism = "namespaces"
	// UserNamespaces (as an ordinary user): the same inside a user namespace, under the own uid.
	UserNamespaces Mechanism = "user-namespaces"
	// Plain: a process like others, as root under another uid. Every process of the job is found and killed at its end,
	// unless, under the server's own uid and without Landlock's sixth version, it kills its supervisor first.
	Plain Mechanism = "plain"
)

// mechanisms lists what this user may ask for, the best first.
func mechanisms() []Mechanism {
	if os.Geteuid() == 0 {
		return []Mechanism{Namespaces, Plain}
	}
	return []Mechanism{UserNamespaces, Plain}
}

// namespaced tells whether a job has its own view of files and processes.
func (m Mechanism) namespaced() bool { return m == Namespaces || m == UserNamespaces }

// A Level says how much of the machine and its network a build can reach. Whether there is a network comes before
// whether files are out of sight: what a build could read it cannot tell then, and it reaches no metadata service.
type Level string

const (
	LevelSealed      Level = "sealed"       // namespaces, and no network but a proxy's
	LevelOffline     Level = "offline"      // another uid, and no network
	LevelNamespaced  Level = "namespaced"   // namespaces, and the machine's network
	LevelNetworkOpen Level = "network-open" // another uid, and the machine's network
	LevelSameUser    Level = "same-user"    // what the server's user may do is up to Landlock and seccomp alone
)

// Levels are all, the best first.
var Levels = []Level{LevelSealed, LevelOffline, LevelNamespaced, LevelNetworkOpen, LevelSameUser}

// Level is what the mechanism gives the jobs of this user.
func (m Mechanism) Level(denyNetwork bool) Level {
	switch {
	case m.namespaced() && denyNetwork:
		return LevelSealed
	case m.namespaced():
		return LevelNamespaced
	case os.Geteuid() != 0:
		return LevelSameUser
	case denyNetwork:
		return LevelOffline
	}
	return LevelNetworkOpen
}

// Rank is 4 for the best level and 0 for the weakest, -1 for what is none.
func (l Level) Rank() int {
	at := slices.Index(Levels, l)
	if at < 0 {
		return -1
	}
	return len(Levels) - 1 - at
}

// Demand is an error that says what is missing if builds reach more here than they do at the level least; "" demands
// nothing.
func (s Support) Demand(least Level) error {
	if least == "" || least.Rank() >= 0 && s.Level.Rank() >= least.Rank() {
		return nil
	}
	if least.Rank() < 0 {
		return fmt.Errorf("the level %q is none of %q", least, Levels)
	}
	var missing []error
	if s.NetworkOpen && least.Rank() >= LevelOffline.Rank() {
		missing = append(missing, errors.New("the network is open to builds, since they fetch their packages themselves"))
	}
	if s.Lacking != nil {
		missing = append(missing, s.Lacking)
	}
	if s.Level == LevelSameUser {
		missing = append(missing, fmt.Errorf("builds run as the server's own user %d: start it as root, which gives them another one", os.Geteuid()))
	}
	return fmt.Errorf("builds would be confined at the level %s, where at least %s is demanded: %w", s.Level, least, errors.Join(missing...))
}
