package build

import (
	"encoding/json"
	"time"
)

// State is where a build stands. queued → building → done | failed, then it
// expires.
type State string

// The states of a record.
const (
	Queued   State = "queued"
	Building State = "building"
	Done     State = "done"
	Failed   State = "failed"
)

// Schema is the version of Record that this code writes. Code that meets
// another one leaves the record alone; see Records for what it may read. Who
// raises it has the drivers read the one before as well: what is done would
// not be answered until it expires.
const Schema = 1

// Record is one build: the flight that equal requests join, and the only
// place that says what became of it. Its methods are pure: each returns the
// record that should replace the receiver.
type Record struct {
	ID       ID      `json:"id"`
	Schema   int     `json:"schema"`
	Rev      int64   `json:"rev"` // counted by the driver, compared by Replace
	State    State   `json:"state"`
	Stage    Stage   `json:"stage,omitempty"` // while building
	Plan     Plan    `json:"plan"`
	Request  Request `json:"request"` // as first asked, without what is private
	Sequence int64   `json:"sequence"`
	// Uncounted is set when the board could not be told of the build. Then it
	// is not told of its end either.
	Uncounted bool `json:"uncounted,omitempty"`

	CreatedAt time.Time `json:"created_at"` // of the newest run, if it was asked for again after a failure
	StartedAt time.Time `json:"started_at"`
	EndedAt   time.Time `json:"ended_at"`

	Attempts   int       `json:"attempts"`          // claims that were not given back
	Attempt    string    `json:"attempt,omitempty"` // of the newest claim
	Worker     string    `json:"worker,omitempty"`
	LeaseUntil time.Time `json:"lease_until"`

	// DueAt is when somebody has to look at the record: not sent yet, lease
	// over, expired. Pushes counts how often that was put off.
	DueAt     time.Time `json:"due_at"`
	Pushes    int       `json:"pushes,omitempty"`
	ExpiresAt time.Time `json:"expires_at"` // zero while queued or building

	Result  *Result  `json:"result,omitempty"`  // when done
	Failure *Failure `json:"failure,omitempty"` // when failed, and of the last attempt before
}

// Result is what a finished build left. It is the same in the record and in
// build.json.
type Result struct {
	Prefix    string            `json:"prefix"` // store/<request_hash>/<attempt>/
	ImageHash string            `json:"image_hash"`
	BuiltAt   time.Time         `json:"built_at"` // time of signing
	Images    []Image           `json:"images"`
	Manifest  map[string]string `json:"manifest"` // ABI-free package names to versions
	Log       string            `json:"log"`      // file name
	Command   string            `json:"command"`  // the make call, for people
	Notes     []string          `json:"notes,omitempty"`
	Profile   Profile           `json:"profile"`
	Stdout    string            `json:"stdout,omitempty"` // tails of make's output
	Stderr    string            `json:"stderr,omitempty"`
	// Timings are milliseconds per step; "make" is what make itself took.
	Timings map[string]int64 `json:"timings,omitempty"`
	// Path is how the images were made: "plain" by make image, "fast" by its parts,
	// with what earlier builds prepared. The bytes are the same.
	Path string `json:"path,omitempty"`
}

// Image is one file of a result. SHA256 is that of the bytes served,
// SHA256Unsigned that of the bytes before an operator's signature was added.
type Image struct {
	Name           string `json:"name"`
	Type           string `json:"type"` // "sysupgrade", "combined", "factory", …
	Filesystem     string `json:"filesystem,omitempty"`
	Size           int64  `json:"size"` // bytes
	SHA256         string `json:"sha256"`
	SHA256Unsigned string `json:"sha256_unsigned"`
}

// Profile is the part of the ImageBuilder's profiles.json that clients read.
type Profile struct {
	ArchPackages     string          `json:"arch_packages"`
	DefaultPackages  []string        `json:"default_packages"`
	DevicePackages   []string        `json:"device_packages"`
	ImagePrefix      string          `json:"image_prefix"`
	LinuxKernel      json.RawMessage `json:"linux_kernel,omitempty"`
	SourceDateEpoch  int64           `json:"source_date_epoch"`
	SupportedDevices []string        `json:"supported_devices"`
	Titles           json.RawMessage `json:"titles,omitempty"`
	VersionCode      string          `json:"version_code"`
	VersionNumber    string          `json:"version_number"`
}

// Provenance is the content of build.json: what was asked, what was built and
// when. sha256sums covers it, so one signature binds all three.
type Provenance struct {
	Schema      int       `json:"schema"`
	RequestHash ID        `json:"request_hash"`
	Attempt     string    `json:"attempt"`
	BuiltAt     time.Time `json:"built_at"`
	Plan        Plan      `json:"plan"` // without defaults
	Result      Result    `json:"result"`
}

// The clockwork of a record.
const (
	MaxAttempts = 3
	Lease       = time.Minute
	Heartbeat   = 15 * time.Second
	LeaseMargin = 10 * time.Second // added by whoever finds a lease over, since clocks differ
	// Visibility is how long a message stays hidden after it was received and
	// after each heartbeat. It outlasts the lease, so that whoever receives the
	// message of a lost worker may claim the build.
	Visibility = Lease + LeaseMargin + 5*time.Second
	FirstDue   = time.Minute
	MaxPush    = 30 * time.Minute
	MaxWait    = 24 * time.Hour
)

// Lifetimes say how long a record is answered after it ended.
type Lifetimes struct {
	Pinned, Plain, Private time.Duration // done, with and without pinned versions, with defaults
	Failed                 time.Duration
}

// DefaultLifetimes are those of design.md.
var DefaultLifetimes = Lifetimes{Pinned: 7 * 24 * time.Hour, Plain: 24 * time.Hour, Private: 30 * time.Minute, Failed: time.Hour}

func (l Lifetimes) of(r *Record) time.Duration {
	switch {
	case r.Plan.Private:
		return l.Private
	case r.State == Failed:
		return l.Failed
	case len(r.Plan.Pins) > 0:
		return l.Pinned
	}
	return l.Plain
}

// NewRecord is the queued record of a plan that nobody asked for before.
func NewRecord(id ID, plan Plan, request Request, sequence int64, now time.Time) Record {
	request.Defaults = ""
	return Record{
		ID: id, Schema: Schema, Rev: 1, State: Queued, Plan: plan, Request: request,
		Sequence: sequence, CreatedAt: now, DueAt: now.Add(FirstDue),
	}
}

// Legible returns nil if this code can tell how the build stands. Else the
// record is another version's, or damaged, and the error a Refusal that asks
// the client to come back.
func (r Record) Legible() error {
	whole := map[State]bool{Queued: true, Building: true, Done: r.Result != nil, Failed: r.Failure != nil}
	if r.Schema == Schema && whole[r.State] {
		return nil
	}
	return &Refusal{
		Code: CodeUnavailable, RetryAfter: 30 * time.Second,
		Detail: "Another version of this server keeps this build, as happens while it is updated. Try again in a minute.",
	}
}

// Ended tells whether the build is done or failed.
func (r Record) Ended() bool { return r.State == Done || r.State == Failed }

// Expired tells whether the record must not be answered any more.
func (r Record) Expired(now time.Time) bool {
	return !r.ExpiresAt.IsZero() && !now.Before(r.ExpiresAt)
}

// Leased tells whether a worker may still be at it.
func (r Record) Leased(now time.Time) bool {
	return r.State == Building && now.Before(r.LeaseUntil.Add(LeaseMargin))
}

// Claimable tells whether a worker that received the ID may claim it.
func (r Record) Claimable(now time.Time) bool {
	return r.Schema == Schema && (r.State == Queued || r.State == Building && !r.Leased(now))
}

// Spent tells whether there is no attempt left to claim.
func (r Record) Spent() bool { return r.Attempts >= MaxAttempts }

// Lost is the failure of a build whose attempts are spent.
func (r Record) Lost() *Failure {
	if r.Failure != nil {
		return r.Failure
	}
	return Fail(KindWorker, "The builder was lost %d times while it made this image. Send the request again, or tell the operator of this server.", MaxAttempts)
}

// Claim gives the build to a worker under a new attempt.
func (r Record) Claim(worker, attempt string, now time.Time) Record {
	r.State, r.Stage = Building, StageInit
	r.Worker, r.Attempt = worker, attempt
	r.Attempts++
	r.Pushes = 0
	r.StartedAt = now
	return r.lease(now)
}

// Beat renews the lease of the running attempt and notes its stage.
func (r Record) Beat(stage Stage, now time.Time) Record {
	r.Stage = stage
	return r.lease(now)
}

func (r Record) lease(now time.Time) Record {
	r.LeaseUntil = now.Add(Lease)
	r.DueAt = r.LeaseUntil.Add(LeaseMargin)
	return r
}

// GiveBack returns the build to the queue as if it had not been claimed: its
// worker shuts down.
func (r Record) GiveBack(now time.Time) Record {
	r.Attempts--
	return r.requeue(now, 0)
}

// Orphan ends the lease of a worker that is known to be dead, so that the build
// need not wait for it.
func (r Record) Orphan(now time.Time) Record {
	r.LeaseUntil, r.DueAt = time.Time{}, now
	return r
}

// Retry returns the build to the queue after a transient failure, to be
// tried again not before the pause is over.
func (r Record) Retry(f *Failure, pause time.Duration, now time.Time) Record {
	r.Failure = f
	return r.requeue(now, pause)
}

// RetryPause is how long the queue hides the build before its next attempt.
func (r Record) RetryPause() time.Duration {
	return 5 * time.Second << max(0, r.Attempts-1)
}

func (r Record) requeue(now time.Time, pause time.Duration) Record {
	r.State, r.Stage, r.Worker, r.LeaseUntil = Queued, "", "", time.Time{}
	r.DueAt = now.Add(pause + FirstDue)
	return r
}

// Finish is the commit point: it names the attempt whose files are the result.
func (r Record) Finish(result *Result, l Lifetimes, now time.Time) Record {
	r.State, r.Result, r.Failure = Done, result, nil
	return r.end(l, now)
}

// FailWith ends the build without an image.
func (r Record) FailWith(f *Failure, l Lifetimes, now time.Time) Record {
	r.State, r.Failure = Failed, f
	return r.end(l, now)
}

func (r Record) end(l Lifetimes, now time.Time) Record {
	r.Stage, r.Worker, r.LeaseUntil = "", "", time.Time{}
	r.Plan.Defaults = ""
	r.EndedAt = now
	r.ExpiresAt = now.Add(l.of(&r))
	r.DueAt = r.ExpiresAt
	return r
}

// Push puts off the next look at a record that is queued or whose worker is
// lost; whoever stores it may send the ID again. Twice as long each time.
func (r Record) Push(now time.Time) Record {
	r.DueAt = now.Add(min(FirstDue<<min(r.Pushes, 10), MaxPush))
	r.Pushes++
	return r
}

// Again returns a failed build to the queue because somebody asked for it
// anew. The plan is sent again too: a private one lost its script at the end.
func (r Record) Again(plan Plan, sequence int64, now time.Time) Record {
	fresh := NewRecord(r.ID, plan, r.Request, sequence, now)
	fresh.Rev = r.Rev
	return fresh
}

// Retriable tells whether asking anew for a failed build may help.
func (r Record) Retriable() bool {
	return r.Schema == Schema && r.State == Failed && r.Failure != nil && r.Failure.Kind.Transient()
}

// Waited tells whether the build was asked for so long ago that it is given up.
func (r Record) Waited(now time.Time) bool { return !r.Ended() && now.Sub(r.CreatedAt) > MaxWait }
