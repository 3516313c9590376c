package aws

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go/middleware"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
)

// dueRecords creates n records, one due each second, the last one now.
func dueRecords(t testing.TB, r *Records, n int) (list []build.ID, now time.Time) {
	t.Helper()
	now = build.Now()
	for i := range n {
		rec := buildtest.NewRecord()
		rec.DueAt = now.Add(-time.Duration(n-1-i) * time.Second)
		must(t, r.Create(t.Context(), rec))
		list = append(list, rec.ID)
	}
	return list, now
}

func idsOf(list []build.Record) (ids []build.ID) {
	for _, rec := range list {
		ids = append(ids, rec.ID)
	}
	return ids
}

// TestDueOfMany needs three batches.
func TestDueOfMany(t *testing.T) {
	r, w := wiredRecords(t)
	ids, now := dueRecords(t, r, 230)
	used := map[string]bool{}
	for _, id := range ids {
		used[shardOf(build.Record{ID: id})] = true
	}
	if len(used) != shards {
		t.Errorf("230 records lie in %d shards, not %d", len(used), shards)
	}
	w.spent()
	list, err := r.Due(t.Context(), now, 300)
	must(t, err)
	if !slices.Equal(idsOf(list), ids) {
		t.Errorf("%d of %d records, or in another order", len(list), len(ids))
	}
	if got, want := w.spent(), map[string]int{"Query": 16, "BatchGetItem": 3}; !maps.Equal(got, want) {
		t.Errorf("it costs %v, not %v", got, want)
	}
	list, err = r.Due(t.Context(), now, 7)
	must(t, err)
	if !slices.Equal(idsOf(list), ids[:7]) {
		t.Errorf("the first seven are others: %d", len(list))
	}
}

// stingy leaves all but the first key of a BatchGetItem undone, times times.
func stingy(times int) func(*middleware.Stack) error {
	return func(stack *middleware.Stack) error {
		return stack.Initialize.Add(middleware.InitializeMiddlewareFunc("Stingy", func(
			ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler,
		) (middleware.InitializeOutput, middleware.Metadata, error) {
			request, ok := in.Parameters.(*dynamodb.BatchGetItemInput)
			if !ok || times == 0 {
				return next.HandleInitialize(ctx, in)
			}
			times--
			first, rest := map[string]types.KeysAndAttributes{}, map[string]types.KeysAndAttributes{}
			for table, want := range request.RequestItems {
				keys := want.Keys
				want.Keys = keys[:1]
				first[table] = want
				if want.Keys = keys[1:]; len(want.Keys) > 0 {
					rest[table] = want
				}
			}
			in.Parameters = &dynamodb.BatchGetItemInput{RequestItems: first}
			out, metadata, err := next.HandleInitialize(ctx, in)
			if err == nil {
				out.Result.(*dynamodb.BatchGetItemOutput).UnprocessedKeys = rest
			}
			return out, metadata, err
		}), middleware.Before)
	}
}

func withOption(r *Records, option func(*middleware.Stack) error) *Records {
	options := r.client.Options()
	options.APIOptions = append(slices.Clone(options.APIOptions), option)
	return NewRecords(dynamodb.New(options), r.table)
}

func TestDueOfThrottledTable(t *testing.T) {
	r, _ := wiredRecords(t)
	ids, now := dueRecords(t, r, 10)
	list, err := withOption(r, stingy(3)).Due(t.Context(), now, 100)
	must(t, err)
	if !slices.Equal(idsOf(list), ids) {
		t.Errorf("%d of %d records after three partial answers", len(list), len(ids))
	}
	list, err = withOption(r, stingy(1000)).Due(t.Context(), now, 100)
	if err == nil || len(list) != batchTries {
		t.Errorf("%d records and the error %v where %d were read", len(list), err, batchTries)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Due(ctx, now, 100); err == nil {
		t.Error("a cancelled Due succeeds")
	}
}

// TestDueDespiteDamage: one item that cannot be read does not hide the others,
// nor take the place of one.
func TestDueDespiteDamage(t *testing.T) {
	r, _ := wiredRecords(t)
	ids, now := dueRecords(t, r, 3)
	_, err := r.client.UpdateItem(t.Context(), &dynamodb.UpdateItemInput{
		TableName: &r.table, Key: item{attrKey: text(keyOf(ids[1]))}, UpdateExpression: ptr("SET body = :b"),
		ExpressionAttributeValues: item{":b": &types.AttributeValueMemberB{Value: []byte("{")}},
	})
	must(t, err)
	for _, n := range []int{2, 10} {
		list, err := r.Due(t.Context(), now, n)
		if !slices.Equal(idsOf(list), []build.ID{ids[0], ids[2]}) {
			t.Errorf("of at most %d, %d records are listed", n, len(list))
		}
		if err == nil || !strings.Contains(err.Error(), ids[1].Short()) || strings.Contains(err.Error(), string(ids[1])) {
			t.Errorf("the error does not name the damaged one by its label: %v", err)
		}
	}
}

func ptr[T any](v T) *T { return &v }

// beforeBatch runs f between the look at the index and that at the records.
func beforeBatch(f func()) func(*middleware.Stack) error {
	return func(stack *middleware.Stack) error {
		return stack.Initialize.Add(middleware.InitializeMiddlewareFunc("BeforeBatch", func(
			ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler,
		) (middleware.InitializeOutput, middleware.Metadata, error) {
			if _, ok := in.Parameters.(*dynamodb.BatchGetItemInput); ok {
				f()
			}
			return next.HandleInitialize(ctx, in)
		}), middleware.Before)
	}
}

// TestDueDespiteOutdatedIndex: what was put off or removed a moment ago is
// still in the index.
func TestDueDespiteOutdatedIndex(t *testing.T) {
	r, _ := wiredRecords(t)
	ids, now := dueRecords(t, r, 4)
	list, err := withOption(r, beforeBatch(func() {
		for i, change := range []func(build.Record) error{
			func(rec build.Record) error { return r.Replace(t.Context(), rec, rec.Push(now)) },
			func(rec build.Record) error { return r.Delete(t.Context(), rec) },
			func(rec build.Record) error {
				late := rec
				late.DueAt = now
				return r.Replace(t.Context(), rec, late)
			},
		} {
			rec, err := r.Get(t.Context(), ids[i])
			must(t, err)
			must(t, change(rec))
		}
	})).Due(t.Context(), now, 10)
	must(t, err)
	slices.Sort(ids[2:]) // both are due now
	if !slices.Equal(idsOf(list), ids[2:]) {
		t.Errorf("%d records are due, or in another order", len(list))
	}
}

// TestOutdatedIndexHidesNothing: hints that are of no use make room for others.
func TestOutdatedIndexHidesNothing(t *testing.T) {
	r, _ := wiredRecords(t)
	ids, now := dueRecords(t, r, 12)
	late := sync.OnceFunc(func() {
		for _, id := range ids[:5] {
			rec, err := r.Get(t.Context(), id)
			must(t, err)
			must(t, r.Replace(t.Context(), rec, rec.Push(now)))
		}
	})
	list, err := withOption(r, beforeBatch(late)).Due(t.Context(), now, 5)
	must(t, err)
	if !slices.Equal(idsOf(list), ids[5:10]) {
		t.Errorf("%d records are due, or others than the five", len(list))
	}
}

// TestReadsAreConsistent looks at what is asked for: DynamoDB Local is always
// consistent, DynamoDB only on request.
func TestReadsAreConsistent(t *testing.T) {
	r, _ := wiredRecords(t)
	var asked []*bool
	r = withOption(r, func(stack *middleware.Stack) error {
		return stack.Initialize.Add(middleware.InitializeMiddlewareFunc("Consistent", func(
			ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler,
		) (middleware.InitializeOutput, middleware.Metadata, error) {
			switch request := in.Parameters.(type) {
			case *dynamodb.GetItemInput:
				asked = append(asked, request.ConsistentRead)
			case *dynamodb.BatchGetItemInput:
				asked = append(asked, request.RequestItems[r.table].ConsistentRead)
			}
			return next.HandleInitialize(ctx, in)
		}), middleware.Before)
	})
	ids, now := dueRecords(t, r, 1)
	_, err := r.Get(t.Context(), ids[0])
	must(t, err)
	_, err = r.Board(t.Context(), "", build.Change{})
	must(t, err)
	_, err = r.Due(t.Context(), now, 1)
	must(t, err)
	if len(asked) != 3 || slices.ContainsFunc(asked, func(b *bool) bool { return b == nil || !*b }) {
		t.Errorf("not all of these three reads are consistent: %d %v", len(asked), asked)
	}
}

// onePerPage makes queries return single entries.
func onePerPage(stack *middleware.Stack) error {
	return stack.Initialize.Add(middleware.InitializeMiddlewareFunc("OnePerPage", func(
		ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler,
	) (middleware.InitializeOutput, middleware.Metadata, error) {
		if query, ok := in.Parameters.(*dynamodb.QueryInput); ok {
			query.Limit = ptr(int32(1))
		}
		return next.HandleInitialize(ctx, in)
	}), middleware.Before)
}

func TestPending(t *testing.T) {
	r, _ := wiredRecords(t)
	r = withOption(r, onePerPage)
	for i := range 30 {
		rec := buildtest.NewRecord()
		must(t, r.Create(t.Context(), rec))
		if i%3 == 0 {
			continue
		}
		claimed := rec.Claim("worker", build.NewAttempt(), build.Now())
		must(t, r.Replace(t.Context(), rec, claimed))
		if claimed.Rev = 2; i%3 == 1 {
			must(t, r.Replace(t.Context(), claimed, claimed.FailWith(build.Fail(build.KindBuild, "no"), build.DefaultLifetimes, build.Now())))
		}
	}
	var got int64
	for end := time.Now().Add(3 * time.Second); got != 20 && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var err error
		got, err = r.Pending(t.Context())
		must(t, err)
	}
	if got != 20 {
		t.Errorf("of 30 builds, of which ten have ended, %d are pending", got)
	}
}

func TestShardsAreEven(t *testing.T) {
	counts := map[string]int{}
	for range 8000 {
		counts[shardOf(build.Record{ID: buildtest.NewID(), State: build.Done})]++
	}
	for _, shard := range shardNames(endedShard) {
		if n := counts[shard]; n < 800 || n > 1200 {
			t.Errorf("%d of 8,000 records lie in %s", n, shard)
		}
	}
	if len(counts) != shards {
		t.Error(fmt.Sprint(counts))
	}
}
