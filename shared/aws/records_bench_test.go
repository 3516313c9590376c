package aws

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/attended-sysupgrade/sysup/shared/aws/awstest"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
)

// canned answers every call at once, so that what is measured is the driver
// and the SDK, not an engine.
type canned string

func (c canned) Do(*http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: 200, Header: http.Header{"Content-Type": {"application/x-amz-json-1.0"}},
		Body: io.NopCloser(strings.NewReader(string(c))), ContentLength: int64(len(c)),
	}, nil
}

func cannedRecords(answer string) *Records {
	config := awstest.Config("http://127.0.0.1:1")
	config.HTTPClient = canned(answer)
	return NewRecords(dynamodb.NewFromConfig(config), "table")
}

// finished is a done record of usual size: a hundred packages asked for, four
// hundred in the manifest.
func finished() build.Record {
	rec := buildtest.NewRecord()
	for range 100 {
		rec.Plan.Add = append(rec.Plan.Add, "kmod-"+noise(8))
	}
	rec = rec.Claim("worker", build.NewAttempt(), build.Now())
	result := &build.Result{Prefix: build.Prefix(rec.ID, rec.Attempt, false), Manifest: map[string]string{}, Stdout: strings.Repeat("Installing a package to root...\n", 500)}
	for range 400 {
		result.Manifest["kmod-"+noise(8)] = "6.6.73-r1"
	}
	return rec.Finish(result, build.DefaultLifetimes, build.Now())
}

func BenchmarkRecordsCreate(b *testing.B) {
	r, rec := cannedRecords("{}"), buildtest.NewRecord()
	b.ReportAllocs()
	for b.Loop() {
		must(b, r.Create(b.Context(), rec))
	}
}

func BenchmarkRecordsFinish(b *testing.B) {
	r, rec := cannedRecords("{}"), finished()
	body, err := encodeBody(rec)
	must(b, err)
	b.ReportAllocs()
	for b.Loop() {
		must(b, r.Replace(b.Context(), rec, rec))
	}
	b.ReportMetric(float64(len(body)), "stored-B")
	b.ReportMetric(float64(len(jsonOf(b, rec))), "json-B")
}

func BenchmarkRecordsGet(b *testing.B) {
	rec := finished()
	body, err := encodeBody(rec)
	must(b, err)
	answer := `{"Item":{"rev":{"N":"3"},"schema":{"N":"1"},"body":{"B":` + jsonOf(b, body) + `}}}`
	r := cannedRecords(answer)
	b.ReportAllocs()
	for b.Loop() {
		_, err := r.Get(b.Context(), rec.ID)
		must(b, err)
	}
}

func BenchmarkRecordsBoard(b *testing.B) {
	r := cannedRecords(`{"Attributes":{"n#drawn":{"N":"7"},"n#created":{"N":"7"},"n#ended":{"N":"3"}}}`)
	change := build.Change{Add: build.Board{build.BoardDrawn: 1, build.BoardCreated: 1}}
	b.ReportAllocs()
	for b.Loop() {
		_, err := r.Board(b.Context(), "", change)
		must(b, err)
	}
}

// BenchmarkRecordsEngine is a Create and a Get against DynamoDB Local, which is
// no measure for DynamoDB.
func BenchmarkRecordsEngine(b *testing.B) {
	r, _ := wiredRecords(b)
	for b.Loop() {
		rec := buildtest.NewRecord()
		must(b, r.Create(b.Context(), rec))
		_, err := r.Get(b.Context(), rec.ID)
		must(b, err)
	}
}
