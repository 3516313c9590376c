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
	Level   Level
	View    string // as Job.View: "overlay", or "copy" with the reason
	Lacking error  // why the level is not a better one; nil if it is the best
}

// Probe finds the best level by trying each: as the jobs' user (as root only), with a scratch folder below dir, where
// theirs will be, and what Spec.Hide will list. It takes some milliseconds; call it once, when the server starts, log it, and give the level to Spec.
func Probe(ctx context.Context, dir string, uid, gid int, hide ...string) (Support, error) {
	var lacking []error
	for _, level := range levels() {
		view, err := try(ctx, Spec{Level: level, UID: uid, GID: gid, Hide: hide, Limits: Limits{Time: 10 * time.Second}}, dir)
		if err == nil {
			return Support{level, view, errors.Join(lacking...)}, nil
		}
		lacking = append(lacking, fmt.Errorf("level %s: %w", level, err))
	}
	return Support{}, errors.Join(lacking...)
}

// try runs a command that changes a tree of one file, and gives the view that it saw.
func try(ctx context.Context, spec Spec, dir string) (view string, err error) {
	temp, err := os.MkdirTemp(dir, "sandbox-probe-")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, RemoveAll(temp)) }()
	spec.Tree, spec.Scratch = filepath.Join(temp, "tree"), filepath.Join(temp, "scratch")
	err = errors.Join(os.Chmod(temp, 0o711), os.Mkdir(spec.Tree, 0o755), os.WriteFile(filepath.Join(spec.Tree, "old"), nil, 0o644))
	if err != nil {
		return "", err
	}
	job, err := Prepare(ctx, spec)
	if err != nil {
		return "", err
	}
	err = job.Run(ctx, Command{
		Args: []string{"sh", "-c", "echo > new && rm old"},
		Env:  []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	})
	return job.View(), errors.Join(err, job.Close())
}
