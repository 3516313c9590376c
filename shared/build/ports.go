package build

import (
	"context"
	"io"
	"iter"
	"time"
)

// Records holds one Record per ID. It is the truth about every build; queue
// messages and objects are only hints and consequences.
//
// Every method is safe for concurrent use from many processes. A write that
// returned nil is durable. A write that returned any other error than the
// sentinels may or may not have happened: the caller reads again.
// Returned records are shared: their slices and maps are not to be changed.
//
// A record of another Schema comes back as an outline, with what every version
// of sysup stores beside the body: ID, Rev, Schema, State (a word that may be
// unknown here), DueAt and ExpiresAt. It cannot be replaced or deleted.
type Records interface {
	// Get returns the newest version, or ErrNotFound if there is none or its
	// ExpiresAt has passed. It sees every Create and Replace that returned
	// before it was called.
	Get(ctx context.Context, id ID) (Record, error)

	// Create stores rec with revision 1 unless a record with that ID exists
	// whose ExpiresAt has not passed: then ErrExists. Of many at once, one wins.
	Create(ctx context.Context, rec Record) error

	// Replace stores new over old and raises the revision by one, if the
	// stored revision is still old's; else, also if the record is gone or
	// expired, ErrConflict. old must come from Get or be what was created.
	Replace(ctx context.Context, old, new Record) error

	// Delete removes the record if the stored revision is still old's, expired
	// or not; else ErrConflict. A record that is gone already is no error.
	Delete(ctx context.Context, old Record) error

	// Due lists at most n records whose DueAt is not zero and not after
	// before, those due longest first, expired ones included. It is a hint:
	// an entry may be late, or outdated by the time it is read.
	Due(ctx context.Context, before time.Time, n int) ([]Record, error)

	// Board applies the change to the shared item of that name and returns
	// the item as it is afterwards. A change with nothing in it only reads; an
	// item that does not exist is empty. ErrConflict means that Below did not hold.
	Board(ctx context.Context, name string, change Change) (Board, error)
}

// Board is a small shared item of named counters. The global one has the name
// "" and the counters below.
type Board map[string]int64

// Counters of the global board. Created minus Ended is what is pending.
const (
	BoardDrawn   = "drawn"   // sequence numbers handed out
	BoardClaimed = "claimed" // highest sequence number ever claimed
	BoardCreated = "created" // builds that entered the queue
	BoardEnded   = "ended"   // builds that reached done or failed
	BoardToday   = "today"   // day since 1970 * BoardDay + builds created on that day (UTC)
	BoardAlive   = "alive"   // a builder receives at least until then, in ms since 1970
	BoardStarted = "started" // builders that were started may take until then to receive, in ms since 1970
)

// BoardNew is the counter of a client's board: the builds that it created in
// the hour, and the private ones that it asked for.
const BoardNew = "new"

// BoardDay parts the day from the count in BoardToday, so that a counter that
// only knows add and max begins anew each day.
const BoardDay = 1_000_000_000

// Pending is the number of builds that are queued or building, by the board.
func (b Board) Pending() int64 { return max(0, b[BoardCreated]-b[BoardEnded]) }

// Today is how many builds were created on the day of now (UTC), or on a later
// one if the clock that noted it is ahead.
func (b Board) Today(now time.Time) int64 {
	if b[BoardToday]/BoardDay < day(now) {
		return 0
	}
	return b[BoardToday] % BoardDay
}

// day counts days since 1970, in UTC.
func day(now time.Time) int64 { return now.Unix() / int64(24*time.Hour/time.Second) }

// Change alters a Board: first every Add, then every Max (the counter becomes
// at least that value). ExpiresAt, if set, is when the item may be forgotten.
//
// Below is a condition: unless each of its counters is less than the value
// there (one that does not exist counts as 0), nothing changes and Board
// returns ErrConflict.
type Change struct {
	Add, Max  Board
	Below     Board
	ExpiresAt time.Time
}

// Class is how urgent a message is.
type Class string

// A person waits for interactive builds; bulk builds wait for nobody.
const (
	ClassInteractive Class = "interactive"
	ClassBulk        Class = "bulk"
)

// Queue carries the IDs of builds to the workers, at least once and in no
// promised order.
//
// A receipt proves nothing: its message may have become visible again and be
// somebody else's by now. Only the holder of the record's lease, or one who
// saw the record in a final state, calls Extend or Delete. A message is never
// dropped for having been received often.
type Queue interface {
	// Send makes the id available. It is durable on return. group names the
	// client, for fairness later.
	Send(ctx context.Context, id ID, class Class, group string) error

	// Receive waits until a message is there and hides it from others for the
	// queue's visibility time. It returns ctx's error when ctx ends first.
	Receive(ctx context.Context) (Message, error)

	// Extend hides the message for d from now on; zero makes it available at
	// once. An outdated receipt is no error.
	Extend(ctx context.Context, m Message, d time.Duration) error

	// Delete removes the message. One that is gone already is no error.
	Delete(ctx context.Context, m Message) error
}

// Message is one delivery of an ID.
type Message struct {
	ID      ID
	Receipt string
}

// Objects keeps files under slash-separated keys: images, logs, signatures,
// the static catalogue.
//
// Keys match [A-Za-z0-9._+~,@=-]+ between single slashes, have no "." or ".."
// element and at most 512 bytes; anything else is ErrNotFound on reading and
// an error on writing.
type Objects interface {
	// Put stores the reader's bytes whole or not at all and is durable on
	// return. Readers of the key never see a part. A key that exists already
	// is replaced if the policy is Mutable; else equal bytes succeed and other
	// bytes are ErrExists. A store without space returns ErrFull.
	Put(ctx context.Context, key string, r io.Reader, policy Policy) error

	// Open returns the bytes and what is known of them, or ErrNotFound. A
	// driver that can seek returns an io.Seeker too.
	Open(ctx context.Context, key string) (io.ReadCloser, ObjectInfo, error)

	// List yields every object whose key starts with prefix, in key order.
	List(ctx context.Context, prefix string) iter.Seq2[ObjectInfo, error]

	// Delete removes the object. One that is gone already is no error.
	Delete(ctx context.Context, key string) error
}

// ObjectInfo describes a stored object. Size is in bytes.
type ObjectInfo struct {
	Key      string
	Size     int64
	Modified time.Time
}

// Policy says how an object is served and whether its key may be rewritten.
type Policy struct {
	ContentType  string
	CacheControl string
	Mutable      bool
}

// Cache lines for the two families of objects.
const (
	CacheForever = "public, max-age=31536000, immutable"
	CacheNever   = "private, no-store"
	CacheBriefly = "public, max-age=60"
)

// The policies of everything that is stored.
var (
	PolicyImage   = Policy{ContentType: "application/octet-stream", CacheControl: CacheForever}
	PolicyText    = Policy{ContentType: "text/plain; charset=utf-8", CacheControl: CacheForever}
	PolicyJSON    = Policy{ContentType: "application/json", CacheControl: CacheForever}
	PolicyIndex   = Policy{ContentType: "text/plain; charset=utf-8", CacheControl: CacheBriefly, Mutable: true}
	PolicyCatalog = Policy{ContentType: "application/json", CacheControl: CacheBriefly, Mutable: true}
)

// Private returns the policy for objects that no cache may keep.
func (p Policy) Private() Policy {
	p.CacheControl = CacheNever
	return p
}
