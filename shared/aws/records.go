package aws

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// The attributes of the table. A record is its body, JSON, beside what
// conditions and the index look at. Times ending in _at are milliseconds.
const (
	attrKey     = "pk" // "r#" and the ID of a record, "b#" and the name of a board
	attrRev     = "rev"
	attrSchema  = "schema"
	attrState   = "state"
	attrBody    = "body"
	attrCreated = "created_at"
	attrExpiry  = "expires_at"
	attrDue     = "due_at" // with attrShard the key of the index
	attrShard   = "shard"
	attrTTL     = "expires" // seconds; DynamoDB removes the item some time later

	// attrStamp is random and new with each write, attrWas the stamp before. A
	// write that is tried again after an unclear failure, by the SDK too, finds
	// its own stamp if it had happened.
	attrStamp = "stamp"
	attrWas   = "was"
)

const (
	recordKey = "r#"
	boardKey  = "b#"
	dueIndex  = "due"

	// The sweeper removes an expired record and its files within minutes.
	// DynamoDB's own sweep knows nothing of files, so it comes a day later.
	ttlMargin = 24 * time.Hour
)

// replaced are the attributes that Replace sets or, where the new record has
// none, removes.
var replaced = []string{attrRev, attrSchema, attrState, attrBody, attrCreated, attrExpiry, attrTTL, attrDue, attrShard}

type item = map[string]types.AttributeValue

// Records keeps records and boards in a DynamoDB table that is laid out as by
// CreateTable. Its clock decides what has expired.
type Records struct {
	client *dynamodb.Client
	table  string
}

var _ build.Records = (*Records)(nil)

// NewRecords returns the records of the table.
func NewRecords(client *dynamodb.Client, table string) *Records {
	return &Records{client: client, table: table}
}

// Get implements build.Records by one consistent read.
func (r *Records) Get(ctx context.Context, id build.ID) (build.Record, error) {
	stored, err := r.read(ctx, keyOf(id))
	if err != nil {
		return build.Record{}, fmt.Errorf("read record %s: %w", id.Short(), err)
	}
	if stored == nil {
		return build.Record{}, build.ErrNotFound
	}
	rec, err := decodeRecord(stored)
	if err != nil {
		return build.Record{}, fmt.Errorf("record %s: %w", id.Short(), err)
	}
	if rec.Expired(build.Now()) {
		return build.Record{}, build.ErrNotFound
	}
	return rec, nil
}

// read returns nil for an item that is not there.
func (r *Records) read(ctx context.Context, key string) (item, error) {
	got, err := r.client.GetItem(ctx, &dynamodb.GetItemInput{
		TableName: &r.table, Key: item{attrKey: text(key)}, ConsistentRead: sdk.Bool(true),
	})
	if err != nil {
		return nil, err
	}
	return got.Item, nil
}

// Create implements build.Records.
func (r *Records) Create(ctx context.Context, rec build.Record) error {
	rec.Rev = 1
	row, err := encodeRecord(rec)
	if err != nil {
		return err
	}
	stamp := rand.Text()
	row[attrKey], row[attrStamp] = text(keyOf(rec.ID)), text(stamp)
	_, err = r.client.PutItem(ctx, &dynamodb.PutItemInput{
		TableName: &r.table, Item: row,
		ConditionExpression:                 sdk.String("attribute_not_exists(pk) OR expires_at <= :now"),
		ExpressionAttributeValues:           item{":now": number(build.Now().UnixMilli())},
		ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
	})
	return outcome(err, stamp, build.ErrExists, "create", rec.ID)
}

// Replace implements build.Records.
func (r *Records) Replace(ctx context.Context, old, new build.Record) error {
	if old.ID != new.ID {
		return fmt.Errorf("cannot replace record %s by %s: they are two builds", old.ID.Short(), new.ID.Short())
	}
	new.Rev = old.Rev + 1
	row, err := encodeRecord(new)
	if err != nil {
		return err
	}
	stamp := rand.Text()
	update, names, values := replacement(row, stamp)
	values[":old"], values[":born"] = number(old.Rev), number(old.CreatedAt.UnixMilli())
	values[":now"] = number(build.Now().UnixMilli())
	_, err = r.client.UpdateItem(ctx, &dynamodb.UpdateItemInput{
		TableName: &r.table, Key: item{attrKey: text(keyOf(old.ID))},
		UpdateExpression:                    &update,
		ConditionExpression:                 sdk.String(sameRecord + " AND (attribute_not_exists(expires_at) OR expires_at > :now)"),
		ExpressionAttributeNames:            names,
		ExpressionAttributeValues:           values,
		ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
	})
	return outcome(err, stamp, build.ErrConflict, "replace", old.ID)
}

// sameRecord tells revisions of one record apart, and by the time of its
// making a record from one that was made anew after its expiry: both count
// their revisions from 1.
const sameRecord = "rev = :old AND created_at = :born"

// replacement is the update that makes a stored record into row.
func replacement(row item, stamp string) (update string, names map[string]string, values item) {
	set := []string{"was = stamp", "stamp = :stamp"}
	var remove []string
	names, values = map[string]string{}, item{":stamp": text(stamp)}
	for _, attr := range replaced {
		names["#"+attr] = attr
		if value, ok := row[attr]; ok {
			set = append(set, "#"+attr+" = :"+attr)
			values[":"+attr] = value
		} else {
			remove = append(remove, "#"+attr)
		}
	}
	update = "SET " + strings.Join(set, ", ")
	if len(remove) > 0 {
		update += " REMOVE " + strings.Join(remove, ", ")
	}
	return update, names, values
}

// Delete implements build.Records.
func (r *Records) Delete(ctx context.Context, old build.Record) error {
	_, err := r.client.DeleteItem(ctx, &dynamodb.DeleteItemInput{
		TableName: &r.table, Key: item{attrKey: text(keyOf(old.ID))},
		ConditionExpression: sdk.String("attribute_not_exists(pk) OR " + sameRecord),
		ExpressionAttributeValues: item{
			":old": number(old.Rev), ":born": number(old.CreatedAt.UnixMilli()),
		},
	})
	return outcome(err, "", build.ErrConflict, "delete", old.ID)
}

// outcome is what the caller of a conditional write hears: the refusal if the
// condition did not hold, unless it failed on what this very write had stored.
func outcome(err error, stamp string, refusal error, verb string, id build.ID) error {
	var failed *types.ConditionalCheckFailedException
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &failed):
		return fmt.Errorf("%s record %s: %w", verb, id.Short(), err)
	case wrote(failed.Item, stamp):
		return nil
	}
	return refusal
}

// wrote tells whether the stored item was written under the stamp, or the one
// that it took the place of.
func wrote(stored item, stamp string) bool {
	return stamp != "" && slices.Contains([]string{stringOf(stored, attrStamp), stringOf(stored, attrWas)}, stamp)
}

func keyOf(id build.ID) string { return recordKey + string(id) }

func idOf(stored item) build.ID {
	return build.ID(strings.TrimPrefix(stringOf(stored, attrKey), recordKey))
}

func text(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }

func number(n int64) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: strconv.FormatInt(n, 10)}
}

// stringOf returns "" for an attribute that is missing or no text.
func stringOf(stored item, attr string) string {
	if value, ok := stored[attr].(*types.AttributeValueMemberS); ok {
		return value.Value
	}
	return ""
}

// timeOf returns the zero time for an attribute that is missing.
func timeOf(stored item, attr string) time.Time {
	ms, ok := numberOf(stored, attr)
	if !ok {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// numberOf tells whether the attribute is there and a whole number.
func numberOf(stored item, attr string) (int64, bool) {
	value, ok := stored[attr].(*types.AttributeValueMemberN)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseInt(value.Value, 10, 64)
	return n, err == nil
}
