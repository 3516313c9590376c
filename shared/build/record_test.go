package build_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const attempt1, attempt2 = "00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"

func queuedRecord(plan build.Plan) build.Record {
	return build.NewRecord(plan.ID(secret), plan, baseRequest(), 7, noon)
}

func privatePlan() build.Plan {
	plan := basePlan()
	plan.Private, plan.Defaults = true, "echo secret\n"
	return plan
}

// TestTransitions: what each step changes, and that it changes nothing else.
func TestTransitions(t *testing.T) {
	at := noon.Add(5 * time.Minute)
	queued := queuedRecord(basePlan())
	building := queued.Claim("worker-1", attempt1, noon)
	lost := build.Fail(build.KindWorker, "The worker was lost.")
	failed := building.FailWith(lost, build.DefaultLifetimes, noon)
	result := &build.Result{Prefix: build.Prefix(queued.ID, attempt1, false)}
	for _, test := range []struct {
		name     string
		from, to build.Record
		want     func(*build.Record)
	}{
		{"claim", queued, queued.Claim("worker-1", attempt1, at), func(r *build.Record) {
			r.State, r.Stage, r.Worker, r.Attempt, r.Attempts = build.Building, build.StageInit, "worker-1", attempt1, 1
			r.StartedAt, r.LeaseUntil, r.DueAt = at, at.Add(time.Minute), at.Add(70*time.Second)
		}},
		{"claim of what a lost worker left", building, building.Claim("worker-2", attempt2, at), func(r *build.Record) {
			r.Worker, r.Attempt, r.Attempts = "worker-2", attempt2, 2
			r.StartedAt, r.LeaseUntil, r.DueAt = at, at.Add(time.Minute), at.Add(70*time.Second)
		}},
		{"claim after pushes", queued.Push(noon), queued.Push(noon).Claim("worker-1", attempt1, at), func(r *build.Record) {
			r.State, r.Stage, r.Worker, r.Attempt, r.Attempts, r.Pushes = build.Building, build.StageInit, "worker-1", attempt1, 1, 0
			r.StartedAt, r.LeaseUntil, r.DueAt = at, at.Add(time.Minute), at.Add(70*time.Second)
		}},
		{"beat", building, building.Beat(build.StageImage, at), func(r *build.Record) {
			r.Stage, r.LeaseUntil, r.DueAt = build.StageImage, at.Add(time.Minute), at.Add(70*time.Second)
		}},
		{"give back", building, building.GiveBack(at), func(r *build.Record) {
			r.State, r.Stage, r.Worker, r.LeaseUntil, r.Attempts = build.Queued, "", "", time.Time{}, 0
			r.DueAt = at.Add(time.Minute)
		}},
		{"retry", building, building.Retry(lost, 20*time.Second, at), func(r *build.Record) {
			r.State, r.Stage, r.Worker, r.LeaseUntil, r.Failure = build.Queued, "", "", time.Time{}, lost
			r.DueAt = at.Add(80 * time.Second)
		}},
		{"push", queued, queued.Push(at), func(r *build.Record) { r.Pushes, r.DueAt = 1, at.Add(time.Minute) }},
		{"finish", building, building.Finish(result, build.DefaultLifetimes, at), func(r *build.Record) {
			r.State, r.Stage, r.Worker, r.LeaseUntil, r.Result = build.Done, "", "", time.Time{}, result
			r.EndedAt, r.ExpiresAt, r.DueAt = at, at.Add(24*time.Hour), at.Add(24*time.Hour)
		}},
		{"finish after a failure", building.Retry(lost, 0, noon).Claim("w", attempt2, noon), building.Retry(lost, 0, noon).Claim("w", attempt2, noon).Finish(result, build.DefaultLifetimes, at), func(r *build.Record) {
			r.State, r.Stage, r.Worker, r.LeaseUntil, r.Result, r.Failure = build.Done, "", "", time.Time{}, result, nil
			r.EndedAt, r.ExpiresAt, r.DueAt = at, at.Add(24*time.Hour), at.Add(24*time.Hour)
		}},
		{"fail", building, building.FailWith(lost, build.DefaultLifetimes, at), func(r *build.Record) {
			r.State, r.Stage, r.Worker, r.LeaseUntil, r.Failure = build.Failed, "", "", time.Time{}, lost
			r.EndedAt, r.ExpiresAt, r.DueAt = at, at.Add(time.Hour), at.Add(time.Hour)
		}},
		{"again", failed, failed.Again(basePlan(), 9, at), func(r *build.Record) {
			*r = build.NewRecord(r.ID, basePlan(), r.Request, 9, at)
			r.Rev = failed.Rev
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			want := test.from
			test.want(&want)
			if !reflect.DeepEqual(test.to, want) {
				t.Errorf("it gives\n%+v, not\n%+v", test.to, want)
			}
		})
	}
}

func TestNewRecord(t *testing.T) {
	request := baseRequest()
	request.Defaults = "echo secret\n"
	plan := privatePlan()
	r := build.NewRecord(plan.ID(secret), plan, request, 7, noon)
	if r.Request.Defaults != "" {
		t.Error("the echo of the request holds the private script")
	}
	if r.Plan.Defaults != plan.Defaults {
		t.Error("the builder does not get the script")
	}
	if r.State != build.Queued || r.Rev != 1 || !r.DueAt.Equal(noon.Add(time.Minute)) || !r.ExpiresAt.IsZero() {
		t.Errorf("a new record is %+v", r)
	}
}

// TestSecretsLeave: when a private build ends, in whatever way, nothing of its
// script is left in the record, and asking again brings it back.
func TestSecretsLeave(t *testing.T) {
	building := queuedRecord(privatePlan()).Claim("w", attempt1, noon)
	failed := building.FailWith(build.Fail(build.KindDisk, "Full."), build.DefaultLifetimes, noon)
	for name, r := range map[string]build.Record{
		"done":   building.Finish(&build.Result{}, build.DefaultLifetimes, noon),
		"failed": failed,
	} {
		b, err := json.Marshal(r)
		if err != nil || strings.Contains(string(b), "secret") {
			t.Errorf("a %s record holds the script: %s (%v)", name, b, err)
		}
		if r.ExpiresAt.Sub(noon) != 30*time.Minute {
			t.Errorf("a private %s record is answered for %v", name, r.ExpiresAt.Sub(noon))
		}
	}
	if again := failed.Again(privatePlan(), 8, noon); again.Plan.Defaults == "" {
		t.Error("a private build that is asked for again has no script")
	}
}

func TestLifetimes(t *testing.T) {
	pinnedPlan := basePlan()
	pinnedPlan.Pins = []build.Pin{{Name: "luci", Version: "1"}}
	for _, test := range []struct {
		name       string
		plan       build.Plan
		done, fail time.Duration
	}{
		{"plain", basePlan(), 24 * time.Hour, time.Hour},
		{"pinned", pinnedPlan, 7 * 24 * time.Hour, time.Hour},
		{"private", privatePlan(), 30 * time.Minute, 30 * time.Minute},
	} {
		building := queuedRecord(test.plan).Claim("w", attempt1, noon)
		done := building.Finish(&build.Result{}, build.DefaultLifetimes, noon)
		failed := building.FailWith(build.Fail(build.KindTooBig, "Too big."), build.DefaultLifetimes, noon)
		if got := done.ExpiresAt.Sub(noon); got != test.done {
			t.Errorf("a %s result lives %v, not %v", test.name, got, test.done)
		}
		if got := failed.ExpiresAt.Sub(noon); got != test.fail {
			t.Errorf("a %s failure lives %v, not %v", test.name, got, test.fail)
		}
		if done.Expired(done.ExpiresAt.Add(-time.Millisecond)) || !done.Expired(done.ExpiresAt) {
			t.Errorf("a %s result expires at another time than it says", test.name)
		}
	}
}

// TestLegible: a record says how its build stands if the schema is ours and
// what the state promises is there.
func TestLegible(t *testing.T) {
	queued := queuedRecord(basePlan())
	building := queued.Claim("w", attempt1, noon)
	done := building.Finish(&build.Result{}, build.DefaultLifetimes, noon)
	failed := building.FailWith(build.Fail(build.KindBuild, "No."), build.DefaultLifetimes, noon)
	for _, rec := range []build.Record{queued, building, done, failed} {
		if err := rec.Legible(); err != nil {
			t.Errorf("a record that is %s: %v", rec.State, err)
		}
		rec.Schema++
		wantRefusal(t, rec.Legible(), build.CodeUnavailable)
	}
	done.Result, failed.Failure, queued.State = nil, nil, "paused"
	for _, rec := range []build.Record{done, failed, queued, {}} {
		wantRefusal(t, rec.Legible(), build.CodeUnavailable)
	}
}

func TestLease(t *testing.T) {
	queued := queuedRecord(basePlan())
	building := queued.Claim("w", attempt1, noon)
	over := noon.Add(build.Lease + build.LeaseMargin)
	foreign := queued
	foreign.Schema++
	for _, test := range []struct {
		name              string
		rec               build.Record
		now               time.Time
		leased, claimable bool
	}{
		{"queued", queued, noon, false, true},
		{"being built", building, noon.Add(build.Lease), true, false},
		{"within the margin", building, over.Add(-time.Millisecond), true, false},
		{"lost", building, over, false, true},
		{"done", building.Finish(&build.Result{}, build.DefaultLifetimes, noon), over, false, false},
		{"failed", building.FailWith(build.Fail(build.KindBuild, "No."), build.DefaultLifetimes, noon), over, false, false},
		{"given back", building.GiveBack(noon), noon, false, true},
		{"of another schema", foreign, over, false, false},
	} {
		if test.rec.Leased(test.now) != test.leased || test.rec.Claimable(test.now) != test.claimable {
			t.Errorf("%s: leased %v, claimable %v", test.name, test.rec.Leased(test.now), test.rec.Claimable(test.now))
		}
	}
}

func TestAttempts(t *testing.T) {
	r := queuedRecord(basePlan())
	for range 5 { // shutdowns do not count
		r = r.Claim("w", build.NewAttempt(), noon).GiveBack(noon)
	}
	var pauses []time.Duration
	for range build.MaxAttempts {
		if r.Spent() {
			t.Fatalf("spent after %d attempts", r.Attempts)
		}
		r = r.Claim("w", build.NewAttempt(), noon)
		pauses = append(pauses, r.RetryPause())
		r = r.Retry(build.Fail(build.KindUpstream, "Down."), r.RetryPause(), noon)
	}
	if !r.Spent() {
		t.Error("not spent after three attempts")
	}
	if want := []time.Duration{5 * time.Second, 10 * time.Second, 20 * time.Second}; !reflect.DeepEqual(pauses, want) {
		t.Errorf("the pauses are %v", pauses)
	}
}

func TestPushDoubles(t *testing.T) {
	r := queuedRecord(basePlan())
	for i, want := range []time.Duration{1, 2, 4, 8, 16, 30, 30, 30, 30, 30, 30, 30, 30} {
		r = r.Push(noon)
		if got := r.DueAt.Sub(noon); got != want*time.Minute || r.Pushes != i+1 {
			t.Errorf("push %d puts it off by %v", i+1, got)
		}
	}
}

func TestRetriable(t *testing.T) {
	building := queuedRecord(basePlan()).Claim("w", attempt1, noon)
	for kind, transient := range map[build.Kind]bool{
		build.KindUnknownPackage: false, build.KindConflict: false, build.KindMissing: false, build.KindTooBig: false,
		build.KindProfile: false, build.KindRevision: false, build.KindPackageVersions: false, build.KindBuild: false,
		build.KindOutput: false, build.KindTime: false,
		build.KindUpstream: true, build.KindDisk: true, build.KindWorker: true, build.KindWaited: true,
	} {
		if kind.Transient() != transient {
			t.Errorf("is %s transient? %v", kind, kind.Transient())
		}
		failed := building.FailWith(build.Fail(kind, "No."), build.DefaultLifetimes, noon)
		if failed.Retriable() != transient {
			t.Errorf("is a failure for %s retriable? %v", kind, failed.Retriable())
		}
	}
	foreign := building.FailWith(build.Fail(build.KindDisk, "Full."), build.DefaultLifetimes, noon)
	foreign.Schema++
	if foreign.Retriable() {
		t.Error("a record of another schema is retriable")
	}
	foreign.Failure = nil // as a reader that does not know it may see it
	if foreign.Retriable() || building.Retriable() {
		t.Error("what did not fail is retriable")
	}
}

func TestHook(t *testing.T) {
	var calls []string
	hook := build.Hook(func(step build.Step, after bool) {
		calls = append(calls, string(step)+map[bool]string{false: " before", true: " after"}[after])
	})
	if err := hook.Do(build.StepSign, func() error { return nil }); err != nil {
		t.Error(err)
	}
	if err := hook.Do(build.StepSeal, func() error { return buildtest.ErrInjected }); err != buildtest.ErrInjected {
		t.Errorf("Do returns %v", err)
	}
	if err := build.Hook(nil).Do(build.StepSign, func() error { return nil }); err != nil {
		t.Error(err)
	}
	if want := []string{"sign before", "sign after", "seal before"}; !reflect.DeepEqual(calls, want) {
		t.Errorf("the hook heard %q", calls)
	}
	seen := map[build.Step]bool{}
	for _, step := range build.Steps() {
		if seen[step] {
			t.Errorf("the step %s is listed twice", step)
		}
		seen[step] = true
	}
	if len(seen) != 17 {
		t.Errorf("%d steps are listed", len(seen))
	}
}
