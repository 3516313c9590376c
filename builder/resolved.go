package builder

import (
	"errors"
	"fmt"
	"slices"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/resolve"
)

// resolved is what the catalogue knows of the plan by now, or why it refuses
// it. The client's own feeds are not among that.
func (j *job) resolved() (resolve.Solution, error) {
	if len(j.rec.Plan.Repositories) > 0 {
		return resolve.Solution{}, nil
	}
	return j.device.Resolve(&j.rec.Plan)
}

// release is what sentences call the version: a client's own feeds may be all
// that there was to choose from.
func (j *job) release() resolve.Release {
	r := j.device.Release()
	if len(j.rec.Plan.Repositories) > 0 {
		r.Name += " with the feeds of this request"
	}
	return r
}

// selection tells whether a failure is about which packages are installed.
func selection(kind build.Kind) bool {
	switch kind {
	case build.KindUnknownPackage, build.KindConflict, build.KindMissing:
		return true
	}
	return false
}

// reword gives a failed selection the sentence with which the request is
// refused from now on. That the catalogue was sure of a solution is a defect:
// of its rules, or of an index that is not the one that make reads.
func (j *job) reword(f *build.Failure) {
	if !selection(f.Kind) {
		return
	}
	solution, err := j.resolved()
	if refusal, ok := errors.AsType[*build.Refusal](err); ok {
		f.Detail = refusal.Detail
	} else if solution.Sure {
		j.disagree(fmt.Sprintf("%s: %s", f.Kind, f.Package))
	}
}

// compare holds a manifest against what the catalogue was sure of.
func (j *job) compare(manifest map[string]string) {
	solution, err := j.resolved()
	if err != nil {
		j.disagree(err.Error())
		return
	}
	var lacks []string
	for _, p := range solution.Packages {
		if _, there := manifest[j.device.ABIFree(p.Name, p.Version)]; !there && solution.Sure {
			lacks = append(lacks, p.Name)
		}
	}
	if len(lacks) > 0 {
		slices.Sort(lacks)
		j.disagree("the image lacks " + listed(lacks, 5))
	}
}

// disagree reports the defect. Nothing is said of private requests.
func (j *job) disagree(about string) {
	if j.rec.Plan.Private {
		about = "a private request"
	}
	plan := &j.rec.Plan
	j.Log.Error("resolver and ImageBuilder disagree", "build", j.rec.ID.Short(), "version", plan.Version, "target", plan.Target, "about", about)
	if j.Defect != nil {
		j.Defect()
	}
}
