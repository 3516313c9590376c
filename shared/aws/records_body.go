package aws

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

const (
	// DynamoDB bills writes by the KB and reads by four, so small bodies stay
	// readable for people and the others are compressed.
	smallBody = 1 << 10

	// DynamoDB refuses items above 400 KiB. The other attributes take less than one.
	maxBody = 399 << 10

	maxText = 16 << 20 // of a body, decompressed
)

// encodeRecord returns the attributes of a record but for key and stamps.
func encodeRecord(rec build.Record) (item, error) {
	body, err := encodeBody(rec)
	if err != nil {
		return nil, fmt.Errorf("record %s: %w", rec.ID.Short(), err)
	}
	row := item{
		attrRev: number(rec.Rev), attrSchema: number(int64(rec.Schema)), attrState: text(string(rec.State)),
		attrBody: &types.AttributeValueMemberB{Value: body}, attrCreated: number(rec.CreatedAt.UnixMilli()),
	}
	if !rec.ExpiresAt.IsZero() {
		row[attrExpiry] = number(rec.ExpiresAt.UnixMilli())
		row[attrTTL] = number(rec.ExpiresAt.Add(ttlMargin).Unix())
	}
	if !rec.DueAt.IsZero() {
		row[attrDue], row[attrShard] = number(rec.DueAt.UnixMilli()), text(shardOf(rec))
	}
	return row, nil
}

// decodeRecord reads an item, and of one that another version of sysup wrote
// not its body.
func decodeRecord(stored item) (build.Record, error) {
	rev, hasRev := numberOf(stored, attrRev)
	schema, hasSchema := numberOf(stored, attrSchema)
	if !hasRev || !hasSchema {
		return build.Record{}, errors.New("its stored form is damaged: rev or schema is missing")
	}
	if schema != build.Schema {
		return build.Record{
			ID: idOf(stored), Rev: rev, Schema: int(schema), State: build.State(stringOf(stored, attrState)),
			DueAt: timeOf(stored, attrDue), ExpiresAt: timeOf(stored, attrExpiry),
		}, nil
	}
	value, hasBody := stored[attrBody].(*types.AttributeValueMemberB)
	if !hasBody {
		return build.Record{}, errors.New("its stored form is damaged: body is missing")
	}
	rec, err := decodeBody(value.Value)
	if err != nil {
		return build.Record{}, fmt.Errorf("its stored form is damaged: %w", err)
	}
	rec.Rev, rec.Schema = rev, build.Schema
	return rec, nil
}

// encodeBody returns the record as JSON, compressed if that is worth it. One
// that is too big even so loses what only people read, first the older part of
// make's output.
func encodeBody(rec build.Record) ([]byte, error) {
	for _, cut := range append([]func(build.Record) build.Record{nil}, cuts...) {
		if cut != nil {
			rec = cut(rec)
		}
		body, err := json.Marshal(rec)
		if err != nil {
			return nil, fmt.Errorf("encode: %w", err)
		}
		if len(body) > smallBody {
			body = compress(body)
		}
		if len(body) <= maxBody {
			return body, nil
		}
	}
	return nil, fmt.Errorf("it is above the %d KiB that DynamoDB takes, even compressed and without make's output", maxBody>>10)
}

// cuts are applied one after the other until the record fits.
var cuts = []func(build.Record) build.Record{
	func(rec build.Record) build.Record { return cutOutput(rec, 4<<10) },
	func(rec build.Record) build.Record { return cutOutput(rec, 0) },
	func(rec build.Record) build.Record {
		return edit(rec, func(r *build.Result) { r.Command, r.Notes = "", nil }, func(f *build.Failure) { f.Command = "" })
	},
}

// cutOutput leaves the last n bytes of each tail.
func cutOutput(rec build.Record, n int) build.Record {
	return edit(rec,
		func(r *build.Result) { r.Stdout, r.Stderr = end(r.Stdout, n), end(r.Stderr, n) },
		func(f *build.Failure) { f.Stdout, f.Stderr = end(f.Stdout, n), end(f.Stderr, n) })
}

// edit changes copies: the caller's record is shared.
func edit(rec build.Record, result func(*build.Result), failure func(*build.Failure)) build.Record {
	if rec.Result != nil {
		copied := *rec.Result
		result(&copied)
		rec.Result = &copied
	}
	if rec.Failure != nil {
		copied := *rec.Failure
		failure(&copied)
		rec.Failure = &copied
	}
	return rec
}

// end is the last n bytes of s, or a few less so that it begins with a whole
// character.
func end(s string, n int) string {
	if len(s) <= n {
		return s
	}
	s = s[len(s)-n:]
	for len(s) > 0 && !utf8.RuneStart(s[0]) {
		s = s[1:]
	}
	return s
}

// writers are a megabyte each.
var writers = sync.Pool{New: func() any {
	w, err := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	if err != nil {
		panic(err) // the level is a constant of the package
	}
	return w
}}

func compress(body []byte) []byte {
	w := writers.Get().(*gzip.Writer)
	defer writers.Put(w)
	var packed bytes.Buffer
	w.Reset(&packed)
	_, _ = w.Write(body) // a buffer takes everything
	_ = w.Close()
	return packed.Bytes()
}

func decodeBody(body []byte) (build.Record, error) {
	var rec build.Record
	if len(body) > 0 && body[0] == '{' {
		err := json.Unmarshal(body, &rec)
		return rec, err
	}
	unpacked, err := decompress(body)
	if err != nil {
		return rec, err
	}
	err = json.Unmarshal(unpacked, &rec)
	return rec, err
}

func decompress(body []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	unpacked, err := io.ReadAll(io.LimitReader(r, maxText+1))
	if err != nil {
		return nil, err
	}
	if len(unpacked) > maxText {
		return nil, fmt.Errorf("it is above %d MiB when decompressed", maxText>>20)
	}
	return unpacked, nil
}
