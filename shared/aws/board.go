package aws

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// counterAttr goes before the names of counters, so that none is mistaken for
// another attribute.
const counterAttr = "n#"

// boardTries bounds how often a change is fitted to a board that others change
// at the same time.
const boardTries = 20

// Board implements build.Records.
//
// A change is one call in the usual case, and two if a guess was wrong:
// DynamoDB can add but knows no maximum, so whether a counter is below its Max
// has to be a condition. A change that was tried again after an unclear failure
// counts once, unless two others came between its first and its second try.
func (r *Records) Board(ctx context.Context, name string, change build.Change) (build.Board, error) {
	if len(change.Add) == 0 && len(change.Max) == 0 && change.ExpiresAt.IsZero() {
		return r.readBoard(ctx, name, change)
	}
	stamp := rand.Text()
	write := r.update(name, change, stamp, nil)
	for range boardTries {
		stored, err := write(ctx)
		var failed *types.ConditionalCheckFailedException
		switch {
		case err == nil:
			return counters(stored), nil
		case !errors.As(err, &failed):
			return nil, fmt.Errorf("change the board %q: %w", name, err)
		case wrote(failed.Item, stamp):
			return counters(failed.Item), nil
		}
		expired := expiredBoard(failed.Item)
		board := living(failed.Item)
		if !below(board, change.Below) {
			return nil, build.ErrConflict
		}
		if expired {
			write = r.renew(name, change, stamp)
		} else {
			write = r.update(name, change, stamp, board)
		}
	}
	return nil, fmt.Errorf("change the board %q: others changed it %d times meanwhile", name, boardTries)
}

func (r *Records) readBoard(ctx context.Context, name string, change build.Change) (build.Board, error) {
	stored, err := r.read(ctx, boardKey+name)
	if err != nil {
		return nil, fmt.Errorf("read the board %q: %w", name, err)
	}
	board := living(stored)
	if !below(board, change.Below) {
		return nil, build.ErrConflict
	}
	return board, nil
}

// update changes a board that is as seen, or as is usual if that is nil. It
// returns the item as it is afterwards.
func (r *Records) update(name string, change build.Change, stamp string, seen build.Board) func(context.Context) (item, error) {
	e := newExpression()
	e.stamp(stamp, change.ExpiresAt)
	for counter, limit := range change.Below {
		e.require(counter, "<", limit)
	}
	for counter, n := range change.Add {
		if least, ok := change.Max[counter]; ok {
			// The sum alone suffices, mostly.
			e.raise(counter, n, least, seen != nil && seen[counter] < least-n)
		} else {
			e.add = append(e.add, e.name(counter)+" "+e.value(n))
		}
	}
	for counter, least := range change.Max {
		if _, ok := change.Add[counter]; !ok {
			// It is the highest so far, mostly.
			e.raise(counter, 0, least, seen[counter] < least)
		}
	}
	return func(ctx context.Context) (item, error) {
		got, err := r.client.UpdateItem(ctx, e.input(r.table, boardKey+name))
		if err != nil {
			return nil, err
		}
		return got.Attributes, nil
	}
}

// renew begins a board anew whose time is over.
func (r *Records) renew(name string, change build.Change, stamp string) func(context.Context) (item, error) {
	row := item{attrKey: text(boardKey + name), attrStamp: text(stamp), attrWas: text(stamp)}
	if !change.ExpiresAt.IsZero() {
		row[attrExpiry], row[attrTTL] = number(change.ExpiresAt.UnixMilli()), number(ttl(change.ExpiresAt))
	}
	for counter, n := range change.Add {
		row[counterAttr+counter] = number(n)
	}
	for counter, least := range change.Max {
		row[counterAttr+counter] = number(max(change.Add[counter], least))
	}
	return func(ctx context.Context) (item, error) {
		_, err := r.client.PutItem(ctx, &dynamodb.PutItemInput{
			TableName: &r.table, Item: row,
			ConditionExpression:                 sdk.String("expires_at <= :now"),
			ExpressionAttributeValues:           item{":now": number(build.Now().UnixMilli())},
			ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
		})
		return row, err
	}
}

// ttl is when DynamoDB may remove a board, in seconds.
func ttl(t time.Time) int64 { return t.Add(time.Second - 1).Unix() }

// expression collects the parts of an update.
type expression struct {
	set, add, conditions []string
	names                map[string]string
	values               item
}

func newExpression() *expression {
	return &expression{names: map[string]string{}, values: item{}}
}

// stamp marks the write and keeps it from happening twice, and from happening
// to a board that has expired.
func (e *expression) stamp(stamp string, expires time.Time) {
	e.values[":stamp"], e.values[":now"] = text(stamp), number(build.Now().UnixMilli())
	e.set = append(e.set, "was = if_not_exists(stamp, :stamp)", "stamp = :stamp")
	e.conditions = append(e.conditions,
		"(attribute_not_exists(expires_at) OR expires_at > :now)",
		"(attribute_not_exists(stamp) OR stamp <> :stamp AND was <> :stamp)")
	if !expires.IsZero() {
		e.set = append(e.set, "expires_at = "+e.value(expires.UnixMilli()), "expires = "+e.value(ttl(expires)))
	}
}

// raise adds n to the counter and makes it at least least. With up it is set to
// least, which has to be more than the sum; else it must be no less.
func (e *expression) raise(counter string, n, least int64, up bool) {
	name := e.name(counter)
	if up {
		e.require(counter, "<", least-n)
		e.set = append(e.set, name+" = "+e.value(least))
		return
	}
	e.require(counter, ">=", least-n)
	if n != 0 {
		e.add = append(e.add, name+" "+e.value(n))
	} else {
		e.set = append(e.set, name+" = if_not_exists("+name+", "+e.value(0)+")")
	}
}

// require makes "counter op n" a condition, where a counter that does not exist
// counts as 0.
func (e *expression) require(counter, op string, n int64) {
	name := e.name(counter)
	condition := name + " " + op + " " + e.value(n)
	if op == "<" && 0 < n || op == ">=" && 0 >= n {
		condition = "(attribute_not_exists(" + name + ") OR " + condition + ")"
	}
	e.conditions = append(e.conditions, condition)
}

// name is a placeholder, since counters may have any name.
func (e *expression) name(counter string) string {
	attr := counterAttr + counter
	for placeholder, known := range e.names {
		if known == attr {
			return placeholder
		}
	}
	placeholder := fmt.Sprintf("#c%d", len(e.names))
	e.names[placeholder] = attr
	return placeholder
}

func (e *expression) value(n int64) string {
	placeholder := fmt.Sprintf(":v%d", len(e.values))
	e.values[placeholder] = number(n)
	return placeholder
}

func (e *expression) input(table, key string) *dynamodb.UpdateItemInput {
	update := "SET " + strings.Join(e.set, ", ")
	if len(e.add) > 0 {
		update += " ADD " + strings.Join(e.add, ", ")
	}
	in := &dynamodb.UpdateItemInput{
		TableName: &table, Key: item{attrKey: text(key)},
		UpdateExpression:                    &update,
		ConditionExpression:                 sdk.String(strings.Join(e.conditions, " AND ")),
		ExpressionAttributeValues:           e.values,
		ReturnValues:                        types.ReturnValueAllNew,
		ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
	}
	if len(e.names) > 0 {
		in.ExpressionAttributeNames = e.names
	}
	return in
}

// living returns the counters, or an empty board if it is not there or its
// time is over.
func living(stored item) build.Board {
	if expiredBoard(stored) {
		return build.Board{}
	}
	return counters(stored)
}

func expiredBoard(stored item) bool {
	at, ok := numberOf(stored, attrExpiry)
	return ok && at <= build.Now().UnixMilli()
}

func counters(stored item) build.Board {
	board := build.Board{}
	for attr := range stored {
		counter, ok := strings.CutPrefix(attr, counterAttr)
		if n, whole := numberOf(stored, attr); ok && whole {
			board[counter] = n
		}
	}
	return board
}

func below(board, limits build.Board) bool {
	return !slices.ContainsFunc(slices.Collect(maps.Keys(limits)), func(counter string) bool {
		return board[counter] >= limits[counter]
	})
}
