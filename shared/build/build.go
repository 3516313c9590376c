// Package build is the domain of sysup: what a client asks for, how equal
// questions get one identity, what state a build is in and who may change it.
//
// It imports nothing of this module. Storage, transport and the ImageBuilder
// stand behind the three interfaces Records, Queue and Objects.
package build

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
)

// ID names a build: 64 lower-case hexadecimal digits over the canonical form
// of the request (see Plan.ID). Clients know it as request_hash.
type ID string

var idPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// ParseID returns s as an ID, or a Refusal if it is not 64 hex digits.
func ParseID(s string) (ID, error) {
	if !idPattern.MatchString(s) {
		return "", &Refusal{Code: CodeNotFound, Detail: "A request hash has 64 hexadecimal digits; this one does not."}
	}
	return ID(s), nil
}

// Short is a label for logs. It is a hash of the ID, because the ID itself is
// the capability that opens a build's files.
func (id ID) Short() string {
	sum := sha256.Sum256([]byte(id))
	return hex.EncodeToString(sum[:6])
}

// NewAttempt draws the name of an attempt: 128 random bits as 32 hex digits.
func NewAttempt() string {
	var b [16]byte
	rand.Read(b[:]) // never fails, by its documentation
	return hex.EncodeToString(b[:])
}

// Prefix is the folder of one attempt in the object store, with a final slash.
func Prefix(id ID, attempt string, private bool) string {
	return "store/" + BinDir(id, attempt, private) + "/"
}

// BinDir is the same folder as clients see it below /store/.
func BinDir(id ID, attempt string, private bool) string {
	if private {
		return fmt.Sprintf("private/%s/%s", id, attempt)
	}
	return fmt.Sprintf("%s/%s", id, attempt)
}

// LogName is the file name of a failed build's log.
func (id ID) LogName() string { return "build-" + string(id) + ".log" }

// ParsePrefix takes apart what Prefix made; ok is false for anything else.
func ParsePrefix(prefix string) (id ID, attempt string, private, ok bool) {
	rest, found := strings.CutPrefix(prefix, "store/")
	if !found {
		return "", "", false, false
	}
	rest, private = strings.CutPrefix(rest, "private/")
	hash, attempt, found := strings.Cut(strings.TrimSuffix(rest, "/"), "/")
	if !found || !idPattern.MatchString(hash) || !attemptPattern.MatchString(attempt) {
		return "", "", false, false
	}
	return ID(hash), attempt, private, true
}

var attemptPattern = regexp.MustCompile(`^[0-9a-f]{32}$`)

// Stage is what a building job is doing, in the words that every client knows.
type Stage string

// The five words that are safe for every client of the JSON API.
const (
	StageInit     Stage = "init"
	StageDownload Stage = "download_imagebuilder"
	StageUnpack   Stage = "unpack_imagebuilder"
	StagePackages Stage = "calculate_packages_hash" // from make's start to "Finalizing root filesystem..."
	StageImage    Stage = "building_image"          // from there on
)

// Step is a place in the path of a request at which a process can die. Crash
// tests stop before and after each.
type Step string

// The steps, in the order in which a request passes them.
const (
	StepCharge       Step = "charge"       // Board: one more of the client's
	StepDraw         Step = "draw"         // Board: a sequence number and one more pending
	StepCreate       Step = "create"       // Records.Create(queued)
	StepSend         Step = "send"         // Queue.Send
	StepReceive      Step = "receive"      // Queue.Receive
	StepClaim        Step = "claim"        // Replace(queued → building)
	StepImageBuilder Step = "imagebuilder" // fetch, verify and unpack
	StepView         Step = "view"         // the job's own view of the tree
	StepMake         Step = "make"         // make image
	StepCollect      Step = "collect"      // outputs checked, hashed, rewritten
	StepSign         Step = "sign"         // sha256sums.sig
	StepUpload       Step = "upload"       // every file but build.json
	StepSeal         Step = "seal"         // build.json: the attempt is complete
	StepIndex        Step = "index"        // index/image/<image_hash>
	StepCommit       Step = "commit"       // Replace(building → done or failed)
	StepCount        Step = "count"        // Board: one more ended
	StepAcknowledge  Step = "acknowledge"  // Queue.Delete
)

// Steps lists every step, for tests that walk them all.
func Steps() []Step {
	return []Step{StepCharge, StepDraw, StepCreate, StepSend, StepReceive, StepClaim, StepImageBuilder, StepView,
		StepMake, StepCollect, StepSign, StepUpload, StepSeal, StepIndex, StepCommit, StepCount, StepAcknowledge}
}

// Hook is called before and after each step. Products leave it nil.
type Hook func(step Step, after bool)

// Do runs f as the step, calling the hook around it. The hook after is only
// called when f succeeded.
func (h Hook) Do(step Step, f func() error) error {
	if h != nil {
		h(step, false)
	}
	if err := f(); err != nil {
		return err
	}
	if h != nil {
		h(step, true)
	}
	return nil
}
