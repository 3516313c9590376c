package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Support is what this machine allows.
type Support struct {
	Level       Level
	Mechanism   Mechanism
	View        string   // as Job.View: "overlay", or "copy" with the reason
	Guards      []string // what else confines jobs, like "seccomp", "landlock 7", "cgroup v2"
	NetworkOpen bool     // as asked
	Lacking     error    // why the mechanism is not a better one; nil if it is the best
}

// Probe finds the best mechanism by trying each with what the jobs will have of like: UID, GID, Hide, DenyNetwork, and a
// scratch folder below dir, where theirs will be. It takes some milliseconds; call it once, when the server starts, log
// what it finds, and give the mechanism to Spec. Control groups that a killed server left are removed.
func Probe(ctx context.Context, dir string, like Spec) (Support, error) {
	removeStaleGroups()
	var lacking []error
	for _, m := range mechanisms() {
		spec := Spec{Mechanism: m, UID: like.UID, GID: like.GID, Hide: like.Hide, DenyNetwork: like.DenyNetwork}
		spec.Limits.Time = 10 * time.Second
		job, err := try(ctx, spec, dir)
		if err == nil {
			return Support{m.Level(like.DenyNetwork), m, job.View(), job.guards, !like.DenyNetwork, errors.Join(lacking...)}, nil
		}
		lacking = append(lacking, fmt.Errorf("mechanism %s: %w", m, err))
	}
	return Support{}, errors.Join(lacking...)
}

// try runs a command that changes a tree of one file, and gives the job, which has ended.
func try(ctx context.Context, spec Spec, dir string) (job *Job, err error) {
	temp, err := os.MkdirTemp(dir, "sandbox-probe-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, RemoveAll(temp)) }()
	spec.Tree, spec.Scratch = filepath.Join(temp, "tree"), filepath.Join(temp, "scratch")
	err = errors.Join(os.Chmod(temp, 0o711), os.Mkdir(spec.Tree, 0o755), os.WriteFile(filepath.Join(spec.Tree, "old"), nil, 0o644))
	if err != nil {
		return nil, err
	}
	if job, err = Prepare(ctx, spec); err != nil {
		return nil, err
	}
	err = job.Run(ctx, Command{
		Args: []string{"sh", "-c", "echo > new && rm old"},
		Env:  []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	})
	return job, errors.Join(err, job.Close())
}
