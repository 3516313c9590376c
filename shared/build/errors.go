package build

import (
	"errors"
	"fmt"
	"time"
)

// The sentinels of the three interfaces. Drivers return exactly these,
// possibly wrapped.
var (
	ErrNotFound = errors.New("build: not found")
	ErrExists   = errors.New("build: exists already")
	ErrConflict = errors.New("build: changed by somebody else")
	ErrFull     = errors.New("build: no space left")
)

// ErrUnreachable marks what PutOff made.
var ErrUnreachable = errors.New("build: storage cannot be reached")

// PutOff words a fault of storage for clients: to come back. Most of them
// take any other answer for the end. The error is a Refusal with
// CodeUnavailable, and keeps err for the log.
func PutOff(err error) error {
	return errors.Join(&Refusal{
		Code: CodeUnavailable, RetryAfter: 30 * time.Second,
		Detail: "This server does not reach its own storage at the moment. Try again in a minute.",
	}, ErrUnreachable, err)
}

// Code says what kind of refusal it is. One table in shared/api maps codes to
// HTTP statuses, per dialect.
type Code string

// The reasons for which a request is turned down before a build begins.
const (
	CodeInvalid        Code = "invalid"         // a field breaks its pattern or limit
	CodeUnsupported    Code = "unsupported"     // unknown distribution, version or target
	CodeUnknownDevice  Code = "unknown-device"  // no profile, or several to choose from
	CodeUnknownPackage Code = "unknown-package" // Package names it
	CodeConflict       Code = "conflict"        // packages that exclude each other
	CodeVersions       Code = "versions"        // packages_versions are not what there is
	CodeRevision       Code = "revision"        // version_code is not the catalogue's
	CodeForbidden      Code = "forbidden"       // the operator does not allow it
	CodeOverloaded     Code = "overloaded"      // admission; try later
	CodeUnavailable    Code = "unavailable"     // no catalogue yet; try later
	CodeNotFound       Code = "not-found"       // no such build
)

// Refusal is an answer to the client, not a fault of ours: Detail is a
// sentence that says what to do.
type Refusal struct {
	Code       Code
	Detail     string
	Package    string        // with CodeUnknownPackage, and one of the two with CodeConflict
	RetryAfter time.Duration // with CodeOverloaded and CodeUnavailable
}

func (r *Refusal) Error() string { return r.Detail }

func invalid(format string, args ...any) error {
	return &Refusal{Code: CodeInvalid, Detail: fmt.Sprintf(format, args...)}
}

// Kind says what made a build fail; the old dialects give some of them
// statuses of their own.
type Kind string

// The kinds of failure. KindOf says which are worth another try.
const (
	KindUnknownPackage  Kind = "unknown-package"
	KindConflict        Kind = "conflict"
	KindMissing         Kind = "missing-dependency"
	KindTooBig          Kind = "too-big"
	KindProfile         Kind = "unknown-profile"
	KindRevision        Kind = "revision"         // the tree is not what the catalogue said
	KindPackageVersions Kind = "package-versions" // the manifest is not what packages_versions asked
	KindBuild           Kind = "build"            // make failed and nothing more is known
	KindOutput          Kind = "output"           // what make left breaks a rule
	KindTime            Kind = "time-limit"
	KindUpstream        Kind = "upstream" // transient from here on
	KindDisk            Kind = "disk"
	KindWorker          Kind = "worker"
	KindWaited          Kind = "waited-too-long"
)

// Transient tells whether the same request may succeed later without anybody
// changing it.
func (k Kind) Transient() bool {
	switch k {
	case KindUpstream, KindDisk, KindWorker, KindWaited:
		return true
	}
	return false
}

// Failure is how a build ended without an image. Detail is a sentence that a
// person can act on.
type Failure struct {
	Kind    Kind   `json:"kind"`
	Detail  string `json:"detail"`
	Package string `json:"package,omitempty"` // the package it is about, if one
	Prefix  string `json:"prefix,omitempty"`  // where the log lies, "" if none was stored
	Stdout  string `json:"stdout,omitempty"`  // tails of make's output
	Stderr  string `json:"stderr,omitempty"`
	Command string `json:"command,omitempty"`
}

func (f *Failure) Error() string { return f.Detail }

// Fail makes a Failure of the kind with a formatted sentence.
func Fail(kind Kind, format string, args ...any) *Failure {
	return &Failure{Kind: kind, Detail: fmt.Sprintf(format, args...)}
}
