package aws

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"golang.org/x/sync/errgroup"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// The index is cut into shards, since one partition of it takes 1,000 writes a
// second, and by whether the build has ended, so that pending ones can be
// counted.
const shards = 8

const (
	pendingShard = "p"
	endedShard   = "e"
)

// shardOf depends on nothing that changes but the end of the build.
func shardOf(rec build.Record) string {
	family := pendingShard
	if rec.Ended() {
		family = endedShard
	}
	n := 0
	for _, b := range []byte(rec.ID) {
		n += int(b)
	}
	return family + strconv.Itoa(n%shards)
}

func shardNames(families ...string) []string {
	var names []string
	for _, family := range families {
		for i := range shards {
			names = append(names, family+strconv.Itoa(i))
		}
	}
	return names
}

// shardName is needed because "shard" is a word of DynamoDB's.
var shardName = map[string]string{"#shard": attrShard}

// maxHints is more than one page of a shard holds.
const maxHints = 10_000

// hint is an entry of the index, which follows the records within a second or
// so.
type hint struct {
	key string
	due int64
}

// Due implements build.Records: it asks the index, then reads the records
// themselves. Hints that are outdated, or of records that cannot be read, make
// room for more. Records that it could read are returned beside an error.
func (r *Records) Due(ctx context.Context, before time.Time, n int) ([]build.Record, error) {
	for most := n; ; most *= 2 {
		hints, err := r.hints(ctx, before, most)
		if err != nil {
			return nil, fmt.Errorf("list what is due: %w", err)
		}
		stored, err := r.readAll(ctx, hints)
		list, damage := dueOf(stored, before)
		if err != nil || len(list) >= n || len(hints) < most || most >= maxHints {
			return list[:min(n, len(list))], errors.Join(err, damage)
		}
	}
}

// dueOf returns the records that are due, those due longest first.
func dueOf(stored []item, before time.Time) ([]build.Record, error) {
	var errs []error
	var list []build.Record
	for _, row := range stored {
		rec, err := decodeRecord(row)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("record %s: %w", idOf(row).Short(), err))
		case !rec.DueAt.IsZero() && !rec.DueAt.After(before):
			list = append(list, rec)
		}
	}
	slices.SortFunc(list, func(a, b build.Record) int {
		return cmp.Or(a.DueAt.Compare(b.DueAt), cmp.Compare(a.ID, b.ID))
	})
	return list, errors.Join(errs...)
}

// hints returns the n oldest entries of all shards.
func (r *Records) hints(ctx context.Context, before time.Time, n int) ([]hint, error) {
	names := shardNames(pendingShard, endedShard)
	found := make([][]hint, len(names))
	all, ctx := errgroup.WithContext(ctx)
	for i, shard := range names {
		all.Go(func() (err error) {
			found[i], err = r.hintsOf(ctx, shard, before, n)
			return err
		})
	}
	if err := all.Wait(); err != nil {
		return nil, err
	}
	merged := slices.Concat(found...)
	slices.SortFunc(merged, func(a, b hint) int { return cmp.Or(cmp.Compare(a.due, b.due), cmp.Compare(a.key, b.key)) })
	return merged[:min(n, len(merged))], nil
}

func (r *Records) hintsOf(ctx context.Context, shard string, before time.Time, n int) ([]hint, error) {
	got, err := r.client.Query(ctx, &dynamodb.QueryInput{
		TableName: &r.table, IndexName: sdk.String(dueIndex), Limit: sdk.Int32(int32(min(n, maxHints))),
		KeyConditionExpression:    sdk.String("#shard = :shard AND due_at <= :before"),
		ExpressionAttributeNames:  shardName,
		ExpressionAttributeValues: item{":shard": text(shard), ":before": number(before.UnixMilli())},
	})
	if err != nil {
		return nil, err
	}
	var list []hint
	for _, entry := range got.Items {
		if due, ok := numberOf(entry, attrDue); ok {
			list = append(list, hint{stringOf(entry, attrKey), due})
		}
	}
	return list, nil
}

// What one BatchGetItem takes, and the patience with what it leaves undone
// because the table is throttled or an answer would be above 16 MB.
const (
	batchSize  = 100
	batchTries = 5
	batchPause = 50 * time.Millisecond // doubled each time
)

// readAll reads the records of the hints consistently. Those that are gone
// are left out.
func (r *Records) readAll(ctx context.Context, hints []hint) ([]item, error) {
	var list []item
	for batch := range slices.Chunk(hints, batchSize) {
		keys := make([]item, len(batch))
		for i, h := range batch {
			keys[i] = item{attrKey: text(h.key)}
		}
		stored, err := r.readBatch(ctx, keys)
		list = append(list, stored...)
		if err != nil {
			return list, err
		}
	}
	return list, nil
}

func (r *Records) readBatch(ctx context.Context, keys []item) ([]item, error) {
	var list []item
	want := map[string]types.KeysAndAttributes{r.table: {Keys: keys, ConsistentRead: sdk.Bool(true)}}
	for try := range batchTries {
		if try > 0 {
			if err := pause(ctx, batchPause<<(try-1)); err != nil {
				return list, err
			}
		}
		got, err := r.client.BatchGetItem(ctx, &dynamodb.BatchGetItemInput{RequestItems: want})
		if err != nil {
			return list, fmt.Errorf("read %d records: %w", len(keys), err)
		}
		list = append(list, got.Responses[r.table]...)
		if want = got.UnprocessedKeys; len(want) == 0 {
			return list, nil
		}
	}
	return list, fmt.Errorf("read %d records: DynamoDB left some of them out %d times; the table may be throttled", len(keys), batchTries)
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// Pending counts the records that are queued or building, a second or so late.
// The board is set right by it.
func (r *Records) Pending(ctx context.Context) (int64, error) {
	names := shardNames(pendingShard)
	counts := make([]int64, len(names))
	all, ctx := errgroup.WithContext(ctx)
	for i, shard := range names {
		all.Go(func() (err error) {
			counts[i], err = r.count(ctx, shard)
			return err
		})
	}
	if err := all.Wait(); err != nil {
		return 0, fmt.Errorf("count the pending builds: %w", err)
	}
	var sum int64
	for _, n := range counts {
		sum += n
	}
	return sum, nil
}

func (r *Records) count(ctx context.Context, shard string) (int64, error) {
	var sum int64
	pages := dynamodb.NewQueryPaginator(r.client, &dynamodb.QueryInput{
		TableName: &r.table, IndexName: sdk.String(dueIndex), Select: types.SelectCount,
		KeyConditionExpression:    sdk.String("#shard = :shard"),
		ExpressionAttributeNames:  shardName,
		ExpressionAttributeValues: item{":shard": text(shard)},
	})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return 0, err
		}
		sum += int64(page.Count)
	}
	return sum, nil
}
