package main

import (
	"strconv"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/functions/lambdatest"
	"github.com/attended-sysupgrade/sysup/shared/build"
)

// recovery is after what time the function looks again at what has failed.
func recovery(operation string) time.Duration {
	if operation == "S3 GET" {
		return 3500 * time.Millisecond
	}
	return secretPause + 100*time.Millisecond
}

var faults = map[string]lambdatest.Fault{"throttled": lambdatest.Throttled, "broken": lambdatest.Broken, "lost": lambdatest.Lost}

// TestFaults has each service fail for good while a new request comes. What
// can be accepted without it is, and will be built; else the client is asked to
// come back, and then finds everything in order.
func TestFaults(t *testing.T) {
	t.Parallel()
	bootstrap := binary(t)
	for operation, accepted := range map[string]map[string]bool{
		"GetItem":      {},
		"UpdateItem":   {"throttled": true, "broken": true, "lost": true}, // the board: a limit gives way
		"PutItem":      {"lost": true},                                    // it is looked whether it is there
		"SendMessage":  {"throttled": true, "broken": true, "lost": true}, // the record is due in a minute
		"RunTask":      {"throttled": true, "broken": true, "lost": true}, // the housekeeper starts a builder
		"GetParameter": {},
		"S3 GET":       {},
	} {
		for kind, fault := range faults {
			t.Run(operation+" "+kind, func(t *testing.T) {
				t.Parallel()
				r := sample(t)
				environ := r.variables("SYSUP_CLUSTER", "cluster", "SYSUP_TASK_DEFINITION", "builder", "SYSUP_SUBNETS", "subnet-1", "SYSUP_SECURITY_GROUP", "sg-1")
				r.cloud.Fail(operation, fault, -1)
				f := lambdatest.Start(t, bootstrap, environ...)
				began := time.Now()
				got := post(t, f, request(1))
				if took := time.Since(began); took > 15*time.Second {
					t.Errorf("the least patient client waits 15 s, the answer took %v", took)
				}
				if accepted[kind] {
					if got.status != 202 {
						t.Fatalf("%+v", got)
					}
				} else {
					wantPutOff(t, got)
				}
				r.cloud.Fail(operation, fault, 0)
				time.Sleep(recovery(operation))
				again := post(t, f, request(1))
				if again.status != 202 || accepted[kind] && again.body.RequestHash != got.body.RequestHash {
					t.Fatalf("when all is well again: %+v", again)
				}
				r.wantWaiting(t, again.body.RequestHash)
			})
		}
	}
}

func wantPutOff(t testing.TB, got answer) {
	t.Helper()
	seconds, err := strconv.Atoi(got.header["Retry-After"])
	if got.status != 503 || err != nil || seconds < 1 || seconds > 600 || len(got.body.Detail) < 20 || got.header["Access-Control-Allow-Origin"] != "*" {
		t.Fatalf("want 503 with Retry-After and a sentence: %+v", got)
	}
}

// wantWaiting checks that the build is there, once, and will be sent again if
// its message is not taken.
func (r *rig) wantWaiting(t testing.TB, hash string) {
	t.Helper()
	due, err := r.own.Records().Due(t.Context(), build.Now().Add(2*time.Minute), 10)
	if err != nil {
		t.Fatal(err)
	}
	if len(due) != 1 || due[0].ID != build.ID(hash) || due[0].State != build.Queued {
		t.Errorf("%d builds wait, want the one: %+v", len(due), due)
	}
}

// TestShortFaults has each service fail once: the client notices nothing.
func TestShortFaults(t *testing.T) {
	t.Parallel()
	bootstrap := binary(t)
	for _, operation := range []string{"GetItem", "UpdateItem", "PutItem", "SendMessage", "RunTask", "GetParameter", "S3 GET"} {
		r := sample(t)
		f := lambdatest.Start(t, bootstrap, r.variables()...)
		n := 0
		for kind, fault := range faults {
			r.cloud.Fail(operation, fault, 1)
			n++
			if got := post(t, f, request(n)); got.status != 202 {
				t.Errorf("%s %s: %+v", operation, kind, got)
			}
		}
	}
}
