// Package sqlite keeps records and queue in one SQLite database, for a
// service that is one process on one machine.
//
// One goroutine does all writing and commits what has come together as one
// transaction, so that many callers share the cost of one fsync; a pool of
// connections reads beside it. Other processes may read and write the same
// file; they only find each other's messages more slowly.
package sqlite

import (
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"sync"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// layout is the number of the tables' layout, kept in SQLite's user_version.
const layout = 1

// The table goqite has to carry that name and those columns; its package
// ships no code that makes it. The index covers what Receive looks at, so that
// hidden messages cost it nothing but their index entries.
const schema = `
create table records (
	id         text primary key,
	rev        integer not null,
	stamp      integer not null,
	schema     integer not null,
	state      text not null,
	due_at     integer,
	expires_at integer,
	body       blob not null
) strict;
create index records_due on records (due_at) where due_at is not null;

create table boards (
	name       text primary key,
	counters   text not null,
	expires_at integer
) strict, without rowid;
create index boards_expiry on boards (expires_at) where expires_at is not null;

create table goqite (
	id       text primary key default (lower(hex(randomblob(16)))),
	queue    text not null,
	body     blob not null,
	timeout  text not null,
	received integer not null default 0,
	priority integer not null default 0,
	created  text not null default (strftime('%Y-%m-%dT%H:%M:%fZ'))
) strict;
create index goqite_next on goqite (queue, priority desc, created, timeout, received);

pragma user_version = 1;
`

// DB is an open database. Its methods are safe for concurrent use.
type DB struct {
	write   *sql.DB // one connection, used by the writer alone
	read    *sql.DB
	writer  *writer
	records *Records

	mu     sync.Mutex
	queues map[string]*Queue
}

// Open opens the database file, which it makes if there is none.
func Open(path string) (*DB, error) {
	db, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("open the database %s: %w", path, explain(err))
	}
	return db, nil
}

func open(path string) (*DB, error) {
	db := &DB{queues: map[string]*Queue{}}
	err := db.connect(path)
	if err == nil {
		err = db.prepare()
	}
	if err != nil {
		return nil, errors.Join(err, db.disconnect())
	}
	db.writer = startWriter(db.write)
	return db, nil
}

func (db *DB) connect(path string) (err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return err
	}
	// secure_delete, because records of private builds hold passwords.
	settings := url.Values{
		"_txlock": {"immediate"},
		"_pragma": {"busy_timeout(5000)", "journal_mode(wal)", "synchronous(full)", "secure_delete(on)", "journal_size_limit(16777216)"},
	}
	dsn := url.URL{Scheme: "file", Path: path, RawQuery: settings.Encode()}
	if db.write, err = sql.Open("sqlite", dsn.String()); err != nil {
		return err
	}
	db.write.SetMaxOpenConns(1)
	settings.Add("_pragma", "query_only(1)")
	dsn.RawQuery = settings.Encode()
	if db.read, err = sql.Open("sqlite", dsn.String()); err != nil {
		return err
	}
	db.read.SetMaxOpenConns(4)
	db.read.SetMaxIdleConns(4)
	return nil
}

// prepare makes the tables in a new file and the statements.
func (db *DB) prepare() error {
	tx, err := db.write.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var version int
	if err := tx.QueryRow("pragma user_version").Scan(&version); err != nil {
		return err
	}
	switch version {
	case layout:
	case 0:
		if _, err := tx.Exec(schema); err != nil {
			return err
		}
	default:
		return fmt.Errorf("it has layout %d and this sysup knows %d; use the sysup that wrote it, or another data folder", version, layout)
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	db.records, err = newRecords(db)
	return err
}

// Records returns the database's records.
func (db *DB) Records() *Records { return db.records }

// Queue returns the queue of that name, whose messages are hidden for
// build.Visibility when they are received.
func (db *DB) Queue(name string) *Queue { return db.QueueFor(name, build.Visibility) }

// QueueFor is Queue with a visibility time of its own. Calls with one name
// return one queue, with the time of the first.
func (db *DB) QueueFor(name string, visibility time.Duration) *Queue {
	db.mu.Lock()
	defer db.mu.Unlock()
	q, ok := db.queues[name]
	if !ok {
		q = newQueue(db, name, visibility)
		db.queues[name] = q
	}
	return q
}

// Close ends what is being written, makes every later call fail and closes
// the file.
func (db *DB) Close() error {
	db.writer.close()
	return db.disconnect()
}

func (db *DB) disconnect() error {
	var errs []error
	for _, pool := range []*sql.DB{db.read, db.write} {
		if pool != nil {
			errs = append(errs, pool.Close())
		}
	}
	return errors.Join(errs...)
}

// explain wraps SQLite's errors in what an operator can do about them.
func explain(err error) error {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_FULL:
		return fmt.Errorf("%w: the disk that holds the database is full; free some space (%w)", build.ErrFull, err)
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return fmt.Errorf("another process has kept the database locked for seconds; stop it (%w)", err)
	case sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM:
		return fmt.Errorf("the file or its folder cannot be opened for writing; check that it is there and whose it is (%w)", err)
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return fmt.Errorf("the file is damaged or no database; move it away and start again, builds can be asked for anew (%w)", err)
	case sqlite3.SQLITE_IOERR:
		return fmt.Errorf("the disk that holds the database does not work; see the kernel's log (%w)", err)
	}
	return err
}
