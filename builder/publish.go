package builder

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// publish signs the result and stores it under the attempt's prefix, the
// provenance last: an attempt with a build.json is complete.
func (j *job) publish(ctx context.Context) (*build.Result, error) {
	result, err := j.store(ctx)
	if err != nil {
		j.discard(ctx)
		return nil, err
	}
	return result, j.index(ctx, j.rec, result)
}

func (j *job) store(ctx context.Context) (result *build.Result, err error) {
	var provenance []byte
	var signed map[string][]byte
	err = j.step(build.StepSign, func() error {
		// The key comes first: the time of signing has to lie in its dates.
		key, err := j.Keys.Current(ctx)
		if err != nil {
			return err
		}
		if result, provenance, err = j.result(); err != nil {
			return err
		}
		signed, err = j.sign(key, result, provenance)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = j.heldStep(ctx, build.StepUpload, func() error { return j.upload(ctx, result, signed) })
	if err != nil {
		return nil, err
	}
	return result, j.heldStep(ctx, build.StepSeal, func() error {
		return j.put(ctx, result.Prefix+usign.BuildFile, bytes.NewReader(provenance), build.PolicyJSON)
	})
}

// heldStep is a step that is not begun if the build is somebody else's by now.
func (j *job) heldStep(ctx context.Context, step build.Step, f func() error) error {
	return j.step(step, func() error {
		if err := j.flight.held(ctx); err != nil {
			return err
		}
		return f()
	})
}

// discard removes what was stored of an attempt that did not become complete,
// so that a full disk does not stay full for a day. If its build.json may be
// there it is complete, and another worker could have finished it already.
func (j *job) discard(ctx context.Context) {
	limit := wrapUp
	if ctx.Err() != nil {
		limit = letGo // whoever told the process to stop kills it soon; the sweeper finds the rest
	}
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer done()
	if r, _, err := j.Objects.Open(ctx, j.prefix()+usign.BuildFile); !errors.Is(err, build.ErrNotFound) {
		if err == nil {
			r.Close()
		}
		return
	}
	for info, err := range j.Objects.List(ctx, j.prefix()) {
		if err == nil {
			err = j.Objects.Delete(ctx, info.Key)
		}
		if err != nil {
			j.Log.Warn("an unfinished result could not be removed", "error", nameless(err, j.rec.ID))
			return
		}
	}
}

// result describes the output, and is the content of build.json too.
func (j *job) result() (*build.Result, []byte, error) {
	manifest := j.manifest()
	result := &build.Result{
		Prefix: j.prefix(), BuiltAt: build.Now().Truncate(time.Second),
		Images: j.output.Images, Manifest: manifest, Command: j.command, Profile: j.output.Profile,
		Stdout: j.stdout, Stderr: j.stderr, Timings: maps.Clone(j.timings),
		Path: string(j.path),
	}
	if j.note != "" {
		result.Notes = []string{j.note}
	}
	result.ImageHash = j.imageHash(manifest)
	result.Log = "build-" + result.ImageHash + ".log"
	plan := j.rec.Plan
	plan.Defaults = ""
	text, err := json.Marshal(build.Provenance{
		Schema: build.Schema, RequestHash: j.rec.ID, Attempt: j.rec.Attempt, BuiltAt: result.BuiltAt, Plan: plan, Result: *result,
	})
	return result, text, err
}

// imageHash finds equal results of different requests. A private result is
// not to be found by its content.
func (j *job) imageHash(manifest map[string]string) string {
	if j.rec.Plan.Private {
		return string(j.rec.ID)
	}
	var lines, images []string
	for _, name := range slices.Sorted(maps.Keys(manifest)) {
		lines = append(lines, name+" "+manifest[name])
	}
	for _, image := range j.output.Images {
		images = append(images, image.SHA256Unsigned)
	}
	slices.Sort(images)
	return build.ImageHash(&j.rec.Plan, lines, images)
}

// sign makes the files that stand beside the output: sha256sums over
// everything else, its signature, and the worker's certificate.
func (j *job) sign(key Key, result *build.Result, provenance []byte) (_ map[string][]byte, err error) {
	sums := usign.Sums{usign.BuildFile: sha256.Sum256(provenance)}
	for _, file := range j.output.Files {
		sums[file.Name] = file.SHA256
	}
	if sums[result.Log], err = j.logSum(); err != nil {
		return nil, err
	}
	text, err := sums.Marshal()
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		usign.SumsFile: text, usign.SumsSigFile: key.Secret.Sign(text).Marshal(),
		usign.WorkerFile: key.Certificate.PublicKey, usign.WorkerSigFile: key.Certificate.Signature,
	}, nil
}

func (j *job) logSum() (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	if _, err := j.log.Seek(0, io.SeekStart); err != nil {
		return sum, err
	}
	_, err = io.Copy(h, j.log)
	return [sha256.Size]byte(h.Sum(nil)), err
}

func (j *job) upload(ctx context.Context, result *build.Result, signed map[string][]byte) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(uploads)
	for _, file := range j.output.Files {
		group.Go(func() error { return j.uploadFile(ctx, result.Prefix, file.Name) })
	}
	group.Go(func() error { return j.putLog(ctx, result.Prefix+result.Log) })
	for name, text := range signed {
		group.Go(func() error { return j.put(ctx, result.Prefix+name, bytes.NewReader(text), build.PolicyText) })
	}
	return group.Wait()
}

// uploads is how many files are stored at once: a disk makes several durable
// in the time of one.
const uploads = 8

func (j *job) uploadFile(ctx context.Context, prefix, name string) error {
	f, err := os.Open(filepath.Join(j.folder, "out", name))
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	defer f.Close()
	policy := build.PolicyImage
	switch {
	case strings.HasSuffix(name, ".json"):
		policy = build.PolicyJSON
	case strings.HasSuffix(name, ".manifest"):
		policy = build.PolicyText
	}
	return j.put(ctx, prefix+name, f, policy)
}

func (j *job) putLog(ctx context.Context, key string) error {
	if _, err := j.log.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return j.put(ctx, key, j.log, build.PolicyText)
}

func (j *job) put(ctx context.Context, key string, r io.Reader, policy build.Policy) error {
	if j.rec.Plan.Private {
		policy = policy.Private()
	}
	if err := j.Objects.Put(ctx, key, r, policy); err != nil {
		return fmt.Errorf("store %s: %w", filepath.Base(key), err)
	}
	return nil
}

// index lets the result be found by its image hash. It is written before the
// commit: an entry that leads to no result does no harm, a missing one would
// not come back.
func (w *Worker) index(ctx context.Context, rec build.Record, result *build.Result) error {
	if rec.Plan.Private {
		return nil
	}
	return w.Hook.Do(build.StepIndex, func() error {
		return w.Objects.Put(ctx, build.ImageIndex(result.ImageHash), strings.NewReader(string(rec.ID)), build.PolicyIndex)
	})
}
