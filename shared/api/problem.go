package api

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/client"
)

// problem is an error in the terms of HTTP. The sentence is for the client.
type problem struct {
	status  int
	detail  string
	unknown string        // the package that is not known
	retry   time.Duration // with 503
}

// dialect is how one generation of clients is spoken to.
type dialect struct {
	refusals map[build.Code]int // statuses; 400 where it has none
	failures map[build.Kind]int // 500 where it has none
	// body is the JSON of an error; in today's dialects also of how a build
	// stands.
	body func(client.Status) any
}

var (
	errNoRoute = &build.Refusal{Code: build.CodeNotFound, Detail: "There is nothing at this address."}
	errMethod  = &build.Refusal{Code: codeMethod, Detail: "This address does not take that method."}
)

const (
	codeMethod build.Code = "method" // the same in every dialect

	retryLater  = time.Minute
	sorryDetail = "Something went wrong inside this server; its operator can read in its log what. Try again later."
	slowDetail  = "This server did not come to an answer in time. Try again in a minute."
)

// problem finds the status and the sentence for an error. What is neither a
// refusal nor a failure of a build is our own fault, and says nothing of what
// is inside.
func (d *dialect) problem(err error) problem {
	if refusal, ok := errors.AsType[*build.Refusal](err); ok {
		p := problem{status: d.refusal(refusal.Code), detail: refusal.Detail, retry: refusal.RetryAfter}
		if refusal.Code == build.CodeUnknownPackage {
			p.unknown = refusal.Package
		}
		return p.withRetry()
	}
	if failure, ok := errors.AsType[*build.Failure](err); ok && failure.Kind.Transient() {
		return problem{status: http.StatusServiceUnavailable, detail: failure.Detail}.withRetry()
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return problem{status: http.StatusServiceUnavailable, detail: slowDetail}.withRetry()
	}
	return problem{status: http.StatusInternalServerError, detail: sorryDetail}
}

func (p problem) withRetry() problem {
	if p.retry <= 0 {
		p.retry = retryLater
	}
	return p
}

func (d *dialect) refusal(code build.Code) int {
	if code == codeMethod {
		return http.StatusMethodNotAllowed
	}
	if status, ok := d.refusals[code]; ok {
		return status
	}
	return http.StatusBadRequest
}

func (d *dialect) failure(kind build.Kind) int {
	if status, ok := d.failures[kind]; ok {
		return status
	}
	return http.StatusInternalServerError
}

// faulty tells whether an error is a fault of this server, and not an answer
// that it meant to give or a client that did not wait for one.
func faulty(err error) bool {
	_, refusal := errors.AsType[*build.Refusal](err)
	_, failure := errors.AsType[*build.Failure](err)
	meant := refusal || failure || errors.Is(err, errGone)
	return err != nil && (!meant || errors.Is(err, build.ErrUnreachable))
}
