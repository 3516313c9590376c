package aws

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
)

func TestCallsOfRecords(t *testing.T) {
	r, w := wiredRecords(t)
	ctx, now := t.Context(), build.Now()
	rec := buildtest.NewRecord()
	claimed := rec.Claim("worker", build.NewAttempt(), now)
	claimed.Rev = 2
	for _, step := range []struct {
		name string
		run  func() error
		want map[string]int
	}{
		{"Create", func() error { return r.Create(ctx, rec) }, map[string]int{"PutItem": 1}},
		{"Create again", func() error { return wantErr(r.Create(ctx, rec), build.ErrExists) }, map[string]int{"PutItem": 1}},
		{"Get", func() error { _, err := r.Get(ctx, rec.ID); return err }, map[string]int{"GetItem": 1}},
		{"Replace", func() error { return r.Replace(ctx, rec, claimed) }, map[string]int{"UpdateItem": 1}},
		{"Replace again", func() error { return wantErr(r.Replace(ctx, rec, claimed), build.ErrConflict) }, map[string]int{"UpdateItem": 1}},
		{"Delete", func() error { return r.Delete(ctx, claimed) }, map[string]int{"DeleteItem": 1}},
		{"Get of nothing", func() error { _, err := r.Get(ctx, rec.ID); return wantErr(err, build.ErrNotFound) }, map[string]int{"GetItem": 1}},
		{"Due without any", func() error { _, err := r.Due(ctx, now, 100); return err }, map[string]int{"Query": 16}},
		{"Pending", func() error { _, err := r.Pending(ctx); return err }, map[string]int{"Query": 8}},
	} {
		if err := step.run(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if got := w.spent(); !maps.Equal(got, step.want) {
			t.Errorf("%s costs %v, not %v", step.name, got, step.want)
		}
	}
}

// wantErr returns nil if err is the one wanted.
func wantErr(err, want error) error {
	if errors.Is(err, want) {
		return nil
	}
	return errors.Join(errors.New("another error was wanted"), want, err)
}

// TestItemsAreLaidOut looks at the attributes that template.yaml, the index and
// other versions of sysup rely on.
func TestItemsAreLaidOut(t *testing.T) {
	r, _ := wiredRecords(t)
	at := time.UnixMilli(1_800_000_000_123).UTC()
	rec := buildtest.NewRecord()
	rec.CreatedAt, rec.DueAt = at, at.Add(time.Minute)
	must(t, r.Create(t.Context(), rec))
	row := stored(t, r, recordKey+string(rec.ID))
	shard := stringOf(row, "shard")
	wantAttributes(t, row, map[string]any{"rev": 1, "schema": build.Schema, "state": "queued", "due_at": 1_800_000_060_123, "created_at": 1_800_000_000_123})
	wantNoAttributes(t, row, "expires", "expires_at")
	if !slices.Contains(shardNames("p"), shard) {
		t.Errorf("a queued build is in shard %q", shard)
	}
	failed := rec.FailWith(build.Fail(build.KindBuild, "no"), build.DefaultLifetimes, at)
	must(t, r.Replace(t.Context(), rec, failed))
	row = stored(t, r, recordKey+string(rec.ID))
	// The hour of a failure, and a day more until DynamoDB's own sweep.
	wantAttributes(t, row, map[string]any{"rev": 2, "state": "failed", "due_at": 1_800_003_600_123, "expires_at": 1_800_003_600_123, "expires": 1_800_090_000})
	if got := stringOf(row, "shard"); got != "e"+shard[1:] {
		t.Errorf("the build of shard %q ends in %q", shard, got)
	}
	_, err := r.Board(t.Context(), "client/x", build.Change{Add: build.Board{"n": 1}, ExpiresAt: at})
	must(t, err)
	wantAttributes(t, stored(t, r, "b#client/x"), map[string]any{"n#n": 1, "expires_at": 1_800_000_000_123, "expires": 1_800_000_001})
	again := failed.Again(rec.Plan, 7, at)
	again.Rev, again.DueAt = 2, time.Time{}
	must(t, wantErr(r.Replace(t.Context(), failed, again), build.ErrConflict)) // its revision is 2
	failed.Rev = 2
	failed.ExpiresAt = time.Time{}
	must(t, r.Delete(t.Context(), failed))
	rec.DueAt = time.Time{}
	must(t, r.Create(t.Context(), rec))
	wantNoAttributes(t, stored(t, r, recordKey+string(rec.ID)), "shard", "due_at")
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func stored(t testing.TB, r *Records, key string) item {
	t.Helper()
	row, err := r.read(t.Context(), key)
	must(t, err)
	return row
}

func wantAttributes(t *testing.T, row item, want map[string]any) {
	t.Helper()
	for attr, value := range want {
		switch value := value.(type) {
		case string:
			if got := stringOf(row, attr); got != value {
				t.Errorf("%s is %q, not %q", attr, got, value)
			}
		case int:
			if got, _ := numberOf(row, attr); got != int64(value) {
				t.Errorf("%s is %d, not %d", attr, got, value)
			}
		}
	}
}

func wantNoAttributes(t *testing.T, row item, attrs ...string) {
	t.Helper()
	for _, attr := range attrs {
		if value, ok := row[attr]; ok {
			t.Errorf("%s is there: %v", attr, value)
		}
	}
}

func TestTableIsLaidOut(t *testing.T) {
	r, _ := wiredRecords(t)
	got, err := r.client.DescribeTable(t.Context(), &dynamodb.DescribeTableInput{TableName: &r.table})
	must(t, err)
	table := got.Table
	if len(table.GlobalSecondaryIndexes) != 1 || table.BillingModeSummary == nil || table.BillingModeSummary.BillingMode != types.BillingModePayPerRequest {
		t.Fatalf("the table is not as it should be: %+v", table)
	}
	index := table.GlobalSecondaryIndexes[0]
	keys := []string{*table.KeySchema[0].AttributeName, *index.IndexName, *index.KeySchema[0].AttributeName, *index.KeySchema[1].AttributeName, string(index.Projection.ProjectionType)}
	if want := []string{"pk", "due", "shard", "due_at", "KEYS_ONLY"}; !slices.Equal(keys, want) {
		t.Errorf("keys %v, not %v", keys, want)
	}
	ttl, err := r.client.DescribeTimeToLive(t.Context(), &dynamodb.DescribeTimeToLiveInput{TableName: &r.table})
	must(t, err)
	if d := ttl.TimeToLiveDescription; d.TimeToLiveStatus != types.TimeToLiveStatusEnabled || *d.AttributeName != "expires" {
		t.Errorf("time to live: %+v", d)
	}
	if err := CreateTable(t.Context(), r.client, r.table); err == nil {
		t.Error("a table can be created twice")
	}
}

// TestScriptLeavesTheTable reads every byte of the table.
func TestScriptLeavesTheTable(t *testing.T) {
	r, _ := wiredRecords(t)
	const script = "uci set wireless.default_radio0.key='very secret'"
	rec := buildtest.NewRecord()
	rec.Plan.Private, rec.Plan.Defaults = true, script+strings.Repeat("\n# more", 500)
	must(t, r.Create(t.Context(), rec))
	if !strings.Contains(everything(t, r), script) {
		t.Fatal("the script is not in the table while the build is queued, so looking for it proves nothing")
	}
	rec.Rev = 1
	must(t, r.Replace(t.Context(), rec, rec.FailWith(build.Fail(build.KindBuild, "no"), build.DefaultLifetimes, build.Now())))
	if strings.Contains(everything(t, r), script) {
		t.Error("the script is still in the table")
	}
}

// everything is all texts of the table, decompressed.
func everything(t *testing.T, r *Records) string {
	t.Helper()
	got, err := r.client.Scan(t.Context(), &dynamodb.ScanInput{TableName: &r.table, ConsistentRead: sdk.Bool(true)})
	must(t, err)
	var all strings.Builder
	for _, row := range got.Items {
		for attr, value := range row {
			all.WriteString(attr + stringOf(row, attr))
			if b, ok := value.(*types.AttributeValueMemberB); ok {
				rec, err := decodeBody(b.Value)
				must(t, err)
				all.WriteString(rec.Plan.Defaults + rec.Request.Defaults)
				all.Write(b.Value)
			}
		}
	}
	return all.String()
}

// TestSuccessorSurvivesItsPredecessorsSweep: between reading an expired record
// and deleting it, the same build may be asked for, claimed and finished anew.
func TestSuccessorSurvivesItsPredecessorsSweep(t *testing.T) {
	r, _ := wiredRecords(t)
	first := buildtest.NewRecord()
	first.CreatedAt = build.Now().Add(-2 * time.Hour)
	must(t, r.Create(t.Context(), first))
	expired := first.FailWith(build.Fail(build.KindUpstream, "no"), build.DefaultLifetimes, first.CreatedAt)
	must(t, r.Replace(t.Context(), first, expired))
	expired.Rev = 2
	second := first
	second.CreatedAt = build.Now()
	must(t, r.Create(t.Context(), second))
	must(t, r.Replace(t.Context(), second, second.Claim("worker", build.NewAttempt(), build.Now())))
	must(t, wantErr(r.Delete(t.Context(), expired), build.ErrConflict))
	must(t, wantErr(r.Replace(t.Context(), expired, expired), build.ErrConflict))
	if rec, err := r.Get(t.Context(), first.ID); err != nil || rec.State != build.Building {
		t.Errorf("the successor is %q (%v)", rec.State, err)
	}
}
