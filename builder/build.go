package builder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/attended-sysupgrade/sysup/builder/imagebuilder"
	"github.com/attended-sysupgrade/sysup/builder/sandbox"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
	"github.com/attended-sysupgrade/sysup/shared/resolve"
)

// job is one attempt at one build.
type job struct {
	*Worker
	flight  *flight
	rec     build.Record
	device  *catalog.Device
	folder  string
	log     *os.File
	output  *imagebuilder.Output
	command string
	note    string
	stdout  string // their ends
	stderr  string
	timings map[string]int64 // milliseconds by step
	source  imagebuilder.Source
	trust   imagebuilder.Trust
	path    imagebuilder.Path
}

// build makes the images of a claimed record and publishes them. A
// *build.Failure says why there are none.
func (w *Worker) build(ctx context.Context, f *flight) (*build.Result, error) {
	j := &job{Worker: w, flight: f, rec: f.record(), timings: map[string]int64{}}
	if err := j.rec.Plan.Check(); err != nil {
		return nil, build.Fail(build.KindBuild, "The stored request is not sound: %v", err)
	}
	if err := j.open(); err != nil {
		return nil, err
	}
	defer j.close()
	if err := j.make(ctx); err != nil {
		return nil, j.explained(ctx, err)
	}
	result, err := j.publish(ctx)
	if errors.Is(err, build.ErrFull) {
		return nil, imagebuilder.DiskFull()
	}
	if err == nil {
		w.next = j.repetition()
	}
	return result, err
}

// open makes the job's folder: files/ goes into the image, out/ is where make
// leaves its results, log is what it says. Other jobs' users cannot enter it:
// files/ may hold passwords.
func (j *job) open() error {
	j.folder = filepath.Join(j.Scratch, j.rec.Attempt)
	err := j.openFolder(j.folder)
	if err == nil {
		j.log, err = os.OpenFile(filepath.Join(j.folder, "log"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	}
	if err == nil {
		return nil
	}
	j.remove()
	if imagebuilder.IsFull(err) {
		return imagebuilder.DiskFull()
	}
	return err
}

func (j *job) close() {
	j.log.Close()
	j.remove()
}

func (j *job) remove() {
	if err := sandbox.RemoveAll(j.folder); err != nil {
		j.Log.Error("a job's folder cannot be removed", "error", err)
	}
}

// step runs one named step and notes its time.
func (j *job) step(step build.Step, f func() error) error {
	begin := time.Now()
	defer func() { j.timings[string(step)] += time.Since(begin).Milliseconds() }()
	return j.Hook.Do(step, f)
}

// make brings the ImageBuilder, runs it in a view of its own and collects what
// it left.
func (j *job) make(ctx context.Context) error {
	var tree *imagebuilder.Tree
	err := j.step(build.StepImageBuilder, func() (err error) {
		tree, err = j.tree(ctx)
		return err
	})
	if err != nil {
		return err
	}
	defer tree.Release()
	if !j.Plain {
		j.trust = tree.Trust()
	}
	var view *imagebuilder.View
	err = j.step(build.StepView, func() (err error) {
		view, err = imagebuilder.Prepare(ctx, tree, &j.rec.Plan, imagebuilder.Setting{
			Folder: j.folder, ExtraName: j.extraName(), Confinement: j.Sandbox, TimeLimit: j.TimeLimit, Upstream: j.Upstream,
			Release: j.release(), Unlisted: j.device.Made(), Fast: j.trust == imagebuilder.TrustOn, Sure: j.sure(),
		})
		return err
	})
	if err != nil {
		return err
	}
	defer j.leave(view)
	j.command, j.note = view.Command(), view.Note
	fmt.Fprintf(j.log, "$ %s\n", j.command)
	j.flight.stage(build.StagePackages)
	err = j.step(build.StepMake, func() error { return view.Make(ctx, j.log, j.flight.stage) })
	j.stdout, j.stderr = view.Tails()
	j.path = view.Path
	if err != nil {
		return err
	}
	return j.step(build.StepCollect, func() error { return j.collect(view) })
}

// leave removes the view, which is large: the output is all that is needed
// from here on.
func (j *job) leave(view *imagebuilder.View) {
	if err := view.Close(); err != nil {
		j.Log.Warn("a job's view cannot be removed", "error", err)
	}
}

// tree asks the catalogue what the plan's ImageBuilder is and has it unpacked.
func (j *job) tree(ctx context.Context) (*imagebuilder.Tree, error) {
	plan := &j.rec.Plan
	device, err := j.Catalog.Device(ctx, plan.Version, plan.Target, plan.Profile, "")
	if err != nil {
		return nil, gone(err)
	}
	j.device = device
	archive, err := j.Catalog.ImageBuilder(ctx, plan.Version, plan.Target)
	if err != nil {
		return nil, gone(err)
	}
	// A snapshot's archive was looked up anew; its revision is asked after it.
	revision, err := j.Catalog.Revision(ctx, plan.Version, plan.Target)
	if err != nil {
		return nil, gone(err)
	}
	if err := j.checkRevision(revision); err != nil {
		return nil, err
	}
	j.source = Source(plan.Version, plan.Target, archive)
	return j.Trees.Tree(ctx, j.source, j.flight.stage)
}

func (j *job) extraName() string { return string(j.rec.ID[:12]) }

// sure tells whether it is certain what is installed.
func (j *job) sure() bool {
	solution, err := j.resolved()
	return err == nil && solution.Sure
}

// checkRevision holds a revision against the one that the request was resolved
// by: that of the catalogue before, that of the tree after make.
func (j *job) checkRevision(got string) error {
	if want := j.rec.Plan.Revision; want != "" && got != want {
		return build.Fail(build.KindRevision, "The ImageBuilder is revision %s, the request was for %s. Look for updates again and send the request anew.", got, want)
	}
	return nil
}

// gone turns a refusal of the catalogue into the end of a build: what it knew
// when the request came may have gone since.
func gone(err error) error {
	var refusal *build.Refusal
	if !errors.As(err, &refusal) {
		return err
	}
	if refusal.Code == build.CodeUnavailable {
		return build.Fail(build.KindUpstream, "%s", refusal.Detail)
	}
	return build.Fail(build.KindProfile, "%s", refusal.Detail)
}

// collect takes the output and holds it against what was asked.
func (j *job) collect(view *imagebuilder.View) error {
	output, err := view.Collect()
	if err != nil {
		return err
	}
	j.output = output
	if err := j.checkRevision(output.Profile.VersionCode); err != nil {
		return err
	}
	manifest := j.manifest()
	if err := j.checkPins(manifest); err != nil {
		return err
	}
	j.compare(manifest)
	return nil
}

// manifest is what is installed, by ABI-free names.
func (j *job) manifest() map[string]string {
	m := make(map[string]string, len(j.output.Manifest))
	for _, installed := range j.output.Manifest {
		m[j.device.ABIFree(installed.Name, installed.Version)] = installed.Version
	}
	return m
}

// checkPins holds the installed versions against those that the client
// relies on. It says all that differ, up to five.
func (j *job) checkPins(manifest map[string]string) error {
	wrong := resolve.Problem{Kind: resolve.Versions}
	for _, pin := range j.rec.Plan.Pins {
		if got := manifest[pin.Name]; got != pin.Version && pin.Counts() {
			wrong.Pins = append(wrong.Pins, resolve.Mismatch{Name: pin.Name, Want: pin.Version, Got: got})
		}
	}
	if len(wrong.Pins) == 0 {
		return nil
	}
	return build.Fail(build.KindPackageVersions, "%s", wrong.Sentence(j.release()))
}

func listed(texts []string, most int) string {
	out := ""
	for i, text := range texts {
		if i == most {
			return fmt.Sprintf("%s and %d more", out, len(texts)-most)
		}
		if i > 0 {
			out += ", "
		}
		out += text
	}
	return out
}

// explained completes a failure by the command and its last words, and stores
// the log.
func (j *job) explained(ctx context.Context, err error) error {
	shared, ok := errors.AsType[*build.Failure](err)
	if !ok || j.command == "" {
		return err
	}
	failure := *shared // several jobs may wait for one ImageBuilder
	j.reword(&failure)
	failure.Command, failure.Stdout, failure.Stderr = j.command, j.stdout, j.stderr
	if err := j.flight.held(ctx); err != nil {
		return err
	}
	if err := j.putLog(ctx, j.prefix()+j.rec.ID.LogName()); err != nil {
		j.Log.Warn("the log of a failed build could not be stored", "error", nameless(err, j.rec.ID))
		return &failure
	}
	failure.Prefix = j.prefix()
	return &failure
}

func (j *job) prefix() string {
	return build.Prefix(j.rec.ID, j.rec.Attempt, j.rec.Plan.Private)
}
