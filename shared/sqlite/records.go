package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// cached is how many decoded records are kept. One of a finished build takes
// some 30 KB.
const cached = 512

// Records are a table of JSON bodies beside the columns that statements look
// at. stamp is a random number per write: a record that was deleted and made
// again has the same revisions as before, but never the same stamps.
type Records struct {
	db     *DB
	seen   *lru.Cache[build.ID, decoded]
	get    *sql.Stmt
	due    *sql.Stmt
	board  *sql.Stmt
	create *sql.Stmt
	swap   *sql.Stmt
	remove *sql.Stmt
	rev    *sql.Stmt
	tally  *sql.Stmt
	put    *sql.Stmt
	forget *sql.Stmt
}

var _ build.Records = (*Records)(nil)

type decoded struct {
	stamp int64
	rec   build.Record
}

func newRecords(db *DB) (*Records, error) {
	seen, err := lru.New[build.ID, decoded](cached)
	if err != nil {
		return nil, err
	}
	r := &Records{db: db, seen: seen}
	for _, s := range []struct {
		pool *sql.DB
		to   **sql.Stmt
		text string
	}{
		{db.read, &r.get, `select stamp, ` + outline + `, case when stamp = ?2 then null else body end from records where id = ?1`},
		{db.read, &r.due, `select ` + outline + `, body from records where due_at <= ? order by due_at limit ?`},
		{db.read, &r.board, selectBoard},
		{db.write, &r.create, `insert into records (id, rev, stamp, schema, state, due_at, expires_at, body)
			values (?1, 1, ?2, ?3, ?4, ?5, ?6, ?7)
			on conflict (id) do update set rev = 1, stamp = ?2, schema = ?3, state = ?4, due_at = ?5, expires_at = ?6, body = ?7
			where records.expires_at <= ?8`},
		{db.write, &r.swap, `update records set rev = rev + 1, stamp = ?2, schema = ?3, state = ?4, due_at = ?5, expires_at = ?6, body = ?7
			where id = ?1 and rev = ?9 and (expires_at is null or expires_at > ?8)`},
		{db.write, &r.remove, `delete from records where id = ? and rev = ?`},
		{db.write, &r.rev, `select rev from records where id = ?`},
		{db.write, &r.tally, selectBoard},
		{db.write, &r.put, `insert or replace into boards (name, counters, expires_at) values (?, ?, ?)`},
		{db.write, &r.forget, `delete from boards where expires_at <= ?`},
	} {
		if *s.to, err = s.pool.Prepare(s.text); err != nil {
			return nil, err
		}
	}
	return r, nil
}

const selectBoard = `select counters, expires_at from boards where name = ?`

// Get implements build.Records. A record that was read before costs only the
// look at its stamp.
func (r *Records) Get(ctx context.Context, id build.ID) (build.Record, error) {
	if err := ctx.Err(); err != nil {
		return build.Record{}, err
	}
	known, _ := r.seen.Get(id)
	var stamp int64
	var f form
	// A query that can be cancelled costs half as much again.
	err := r.get.QueryRowContext(context.WithoutCancel(ctx), string(id), known.stamp).Scan(f.columns(&stamp)...)
	if errors.Is(err, sql.ErrNoRows) {
		return build.Record{}, build.ErrNotFound
	}
	if err != nil {
		return build.Record{}, explain(err)
	}
	if f.body != nil {
		rec, err := f.decode()
		if err != nil {
			return build.Record{}, fmt.Errorf("record %s: %w", id.Short(), err)
		}
		known = decoded{stamp, rec}
		r.seen.Add(id, known)
	}
	if known.rec.Expired(build.Now()) {
		return build.Record{}, build.ErrNotFound
	}
	return known.rec, nil
}

// outline are the columns of every version of sysup.
const outline = `id, rev, schema, state, due_at, expires_at`

// form is a record as it is stored: the columns of the outline and the body.
type form struct {
	id           string
	rev          int64
	schema       int
	state        string
	due, expires sql.NullInt64
	body         []byte
}

// columns are where the outline and the body go, after what stands before them.
func (f *form) columns(before ...any) []any {
	return append(before, &f.id, &f.rev, &f.schema, &f.state, &f.due, &f.expires, &f.body)
}

// decode reads the record, and of one that another version of sysup wrote not
// its body.
func (f *form) decode() (build.Record, error) {
	if f.schema != build.Schema {
		return build.Record{
			ID: build.ID(f.id), Rev: f.rev, Schema: f.schema, State: build.State(f.state),
			DueAt: timeOf(f.due), ExpiresAt: timeOf(f.expires),
		}, nil
	}
	var rec build.Record
	if err := json.Unmarshal(f.body, &rec); err != nil {
		return build.Record{}, fmt.Errorf("its stored form is damaged: %w", err)
	}
	rec.Rev, rec.Schema = f.rev, f.schema
	return rec, nil
}

// timeOf is the zero time for null.
func timeOf(ms sql.NullInt64) time.Time {
	if !ms.Valid {
		return time.Time{}
	}
	return time.UnixMilli(ms.Int64).UTC()
}

// Create implements build.Records.
func (r *Records) Create(ctx context.Context, rec build.Record) error {
	args, err := row(rec)
	if err != nil {
		return err
	}
	return r.db.writer.write(ctx, func(tx *sql.Tx) error {
		return one(tx.Stmt(r.create).Exec, build.ErrExists, append(args, millis(build.Now()))...)
	})
}

// Replace implements build.Records.
func (r *Records) Replace(ctx context.Context, old, new build.Record) error {
	if old.ID != new.ID {
		return fmt.Errorf("cannot replace record %s by %s: they are two builds", old.ID.Short(), new.ID.Short())
	}
	args, err := row(new)
	if err != nil {
		return err
	}
	write := r.db.writer.write
	if old.Plan.Defaults != "" && new.Plan.Defaults == "" {
		write = r.db.writer.scrub
	}
	err = write(ctx, func(tx *sql.Tx) error {
		return one(tx.Stmt(r.swap).Exec, build.ErrConflict, append(args, millis(build.Now()), old.Rev)...)
	})
	if err == nil {
		r.seen.Remove(old.ID) // it may hold what the new one no longer does
	}
	return err
}

// Delete implements build.Records.
func (r *Records) Delete(ctx context.Context, old build.Record) error {
	err := r.db.writer.write(ctx, func(tx *sql.Tx) error {
		err := one(tx.Stmt(r.remove).Exec, build.ErrConflict, string(old.ID), old.Rev)
		if !errors.Is(err, build.ErrConflict) {
			return err
		}
		var rev int64
		if e := tx.Stmt(r.rev).QueryRow(string(old.ID)).Scan(&rev); !errors.Is(e, sql.ErrNoRows) {
			return errors.Join(err, e)
		}
		return nil
	})
	if err == nil {
		r.seen.Remove(old.ID)
	}
	return err
}

// one executes a statement that changes one row, or none and then returns the
// verdict.
func one(exec func(...any) (sql.Result, error), verdict error, args ...any) error {
	result, err := exec(args...)
	if err != nil {
		return err
	}
	n, err := result.RowsAffected()
	if err == nil && n == 0 {
		return verdict
	}
	return err
}

// row gives the arguments ?1 to ?7 of create and swap.
func row(rec build.Record) ([]any, error) {
	body, err := json.Marshal(rec)
	if err != nil {
		return nil, fmt.Errorf("encode record %s: %w", rec.ID.Short(), err)
	}
	return []any{string(rec.ID), rand.Int64(), rec.Schema, string(rec.State), millis(rec.DueAt), millis(rec.ExpiresAt), body}, nil
}

// millis is a time as SQLite keeps it, null for none.
func millis(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixMilli()
}

// Due implements build.Records.
func (r *Records) Due(ctx context.Context, before time.Time, n int) ([]build.Record, error) {
	rows, err := r.due.QueryContext(ctx, before.UnixMilli(), n)
	if err != nil {
		return nil, explain(err)
	}
	return scanRecords(rows)
}

func scanRecords(rows *sql.Rows) ([]build.Record, error) {
	defer rows.Close()
	var list []build.Record
	for rows.Next() {
		var f form
		if err := rows.Scan(f.columns()...); err != nil {
			return nil, explain(err)
		}
		rec, err := f.decode()
		if err != nil {
			return nil, fmt.Errorf("a record: %w", err)
		}
		list = append(list, rec)
	}
	return list, explain(rows.Err())
}

// Board implements build.Records.
func (r *Records) Board(ctx context.Context, name string, change build.Change) (build.Board, error) {
	if len(change.Add) == 0 && len(change.Max) == 0 && change.ExpiresAt.IsZero() {
		board, _, err := readBoard(r.board.QueryRowContext(ctx, name))
		if err == nil && !below(board, change.Below) {
			return nil, build.ErrConflict
		}
		return board, explain(err)
	}
	var board build.Board
	err := r.db.writer.write(ctx, func(tx *sql.Tx) (err error) {
		board, err = r.alter(tx, name, change)
		return err
	})
	return board, err
}

func (r *Records) alter(tx *sql.Tx, name string, change build.Change) (build.Board, error) {
	board, expiry, err := readBoard(tx.Stmt(r.tally).QueryRow(name))
	if err != nil {
		return nil, err
	}
	if !below(board, change.Below) {
		return nil, build.ErrConflict
	}
	for counter, n := range change.Add {
		board[counter] += n
	}
	for counter, n := range change.Max {
		board[counter] = max(board[counter], n)
	}
	if !change.ExpiresAt.IsZero() {
		expiry = sql.NullInt64{Int64: change.ExpiresAt.UnixMilli(), Valid: true}
		if _, err := tx.Stmt(r.forget).Exec(millis(build.Now())); err != nil {
			return nil, err
		}
	}
	counters, err := json.Marshal(board)
	if err != nil {
		return nil, err
	}
	_, err = tx.Stmt(r.put).Exec(name, string(counters), expiry)
	return maps.Clone(board), err
}

func below(board, limits build.Board) bool {
	for counter, limit := range limits {
		if board[counter] >= limit {
			return false
		}
	}
	return true
}

// readBoard returns an empty board for one that is not there or expired.
func readBoard(row *sql.Row) (build.Board, sql.NullInt64, error) {
	var counters []byte
	var expiry sql.NullInt64
	board := build.Board{}
	err := row.Scan(&counters, &expiry)
	if errors.Is(err, sql.ErrNoRows) || err == nil && expiry.Valid && expiry.Int64 <= build.Now().UnixMilli() {
		return board, sql.NullInt64{}, nil
	}
	if err != nil {
		return nil, expiry, err
	}
	return board, expiry, json.Unmarshal(counters, &board)
}

// countPending leaves out what the board was not told of: it will not be told
// of its end either. Of what another version of sysup wrote, only that can be
// told what is in the columns.
var countPending = fmt.Sprintf(`select count(*) from records where state in ('queued', 'building')
	and case schema when %d then json_extract(cast(body as text), '$.uncounted') end is not 1`, build.Schema)

// Pending counts the records that are queued or building and on the board.
func (r *Records) Pending(ctx context.Context) (n int64, err error) {
	err = r.db.read.QueryRowContext(ctx, countPending).Scan(&n)
	return n, explain(err)
}

// Recount makes the global board's pending the number of records that are
// queued or building. A process that died between a record and its count left
// them apart; serve calls it before it listens.
func (db *DB) Recount(ctx context.Context) error {
	err := db.writer.write(ctx, func(tx *sql.Tx) error {
		var pending int64
		if err := tx.QueryRow(countPending).Scan(&pending); err != nil {
			return err
		}
		board, _, err := readBoard(tx.Stmt(db.records.tally).QueryRow(""))
		if err != nil {
			return err
		}
		counter, missing := build.BoardEnded, board[build.BoardCreated]-board[build.BoardEnded]-pending
		if missing < 0 {
			counter, missing = build.BoardCreated, -missing
		}
		_, err = db.records.alter(tx, "", build.Change{Add: build.Board{counter: missing}})
		return err
	})
	if err != nil {
		return fmt.Errorf("count the pending builds: %w", err)
	}
	return nil
}

// Orphan ends every lease. serve calls it before it starts its workers: it
// has the data folder to itself, so whoever held one is dead.
func (db *DB) Orphan(ctx context.Context) error {
	building, err := db.building(ctx)
	if err != nil {
		return err
	}
	for _, rec := range building {
		if err := db.records.Replace(ctx, rec, rec.Orphan(build.Now())); err != nil && !errors.Is(err, build.ErrConflict) {
			return fmt.Errorf("end the lease of %s: %w", rec.ID.Short(), err)
		}
	}
	return nil
}

func (db *DB) building(ctx context.Context) ([]build.Record, error) {
	rows, err := db.read.QueryContext(ctx, `select `+outline+`, body from records where state = ? and schema = ?`, string(build.Building), build.Schema)
	if err != nil {
		return nil, explain(err)
	}
	return scanRecords(rows)
}
