package sqlite

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
)

// The contracts of build.Records and build.Queue are tested in
// shared/build/buildtest; here is what only this driver promises.

// TestMain lets tests run this binary as a second process, to be killed.
func TestMain(m *testing.M) {
	switch path := os.Getenv("SYSUP_TEST_PATH"); os.Getenv("SYSUP_TEST_CHILD") {
	case "":
		os.Exit(m.Run())
	case "write":
		writeForEver(path)
	case "lock":
		_, err := Lock(path)
		fmt.Println("locked", err)
		select {}
	}
}

// child starts this binary as another process, which is killed at the latest
// when the test ends, and returns the lines that it prints.
func child(t *testing.T, what, path string) (lines *bufio.Scanner, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SYSUP_TEST_CHILD="+what, "SYSUP_TEST_PATH="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	kill = sync.OnceFunc(func() {
		check(t, cmd.Process.Kill())
		_ = cmd.Wait() // says that it was killed
	})
	t.Cleanup(kill)
	return bufio.NewScanner(out), kill
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openAt(t testing.TB, path string) *DB {
	t.Helper()
	db, err := Open(path)
	check(t, err)
	t.Cleanup(func() { check(t, db.Close()) })
	return db
}

func open1(t testing.TB) *DB {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), "sysup.db"))
}

func wantText(t testing.TB, err error, words ...string) {
	t.Helper()
	for _, word := range words {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("the error %v does not tell of %q", err, word)
		}
	}
}

// TestSettings: what durability rests on.
func TestSettings(t *testing.T) {
	db := open1(t)
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "secure_delete": "1"} {
		var got string
		check(t, db.write.QueryRow("pragma "+pragma).Scan(&got))
		if got != want {
			t.Errorf("%s is %s, not %s", pragma, got, want)
		}
	}
	if _, err := db.read.Exec("delete from records"); err == nil {
		t.Error("the pool for reading writes")
	}
}

func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data folder?%20", "sysup.db")
	check(t, os.Mkdir(filepath.Dir(path), 0o700))
	db, err := Open(path)
	check(t, err)
	rec := buildtest.NewRecord()
	ctx := t.Context()
	check(t, db.Records().Create(ctx, rec))
	check(t, db.Queue("builds").Send(ctx, rec.ID, build.ClassBulk, ""))
	_, err = db.Records().Board(ctx, "", build.Change{Add: build.Board{"n": 3}})
	check(t, err)
	check(t, db.Close())

	db = openAt(t, path)
	got, err := db.Records().Get(ctx, rec.ID)
	check(t, err)
	if got.ID != rec.ID || got.Rev != 1 {
		t.Errorf("the record is %+v", got)
	}
	m, err := db.Queue("builds").Receive(ctx)
	check(t, err)
	if m.ID != rec.ID {
		t.Errorf("the message is for %s", m.ID)
	}
	board, err := db.Records().Board(ctx, "", build.Change{})
	check(t, err)
	if board["n"] != 3 {
		t.Errorf("the board is %v", board)
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	folder := t.TempDir()
	missing := filepath.Join(folder, "missing", "sysup.db")
	_, err := Open(missing)
	wantText(t, err, missing, "its folder cannot be opened")

	damaged := filepath.Join(folder, "damaged.db")
	check(t, os.WriteFile(damaged, []byte(strings.Repeat("no database ", 1000)), 0o600))
	_, err = Open(damaged)
	wantText(t, err, damaged, "no database; move it away")

	newer := filepath.Join(folder, "newer.db")
	db, err := Open(newer)
	check(t, err)
	_, err = db.write.Exec("pragma user_version = 99")
	check(t, err)
	check(t, db.Close())
	_, err = Open(newer)
	wantText(t, err, newer, "layout 99")
}

func TestClose(t *testing.T) {
	db := open1(t)
	queue := db.Queue("builds")
	waiting := make(chan error, 1)
	go func() {
		_, err := queue.Receive(context.Background())
		waiting <- err
	}()
	var wait sync.WaitGroup
	stored := make(chan build.ID, 1000)
	for range 16 {
		wait.Go(func() {
			for {
				rec := buildtest.NewRecord()
				switch err := db.Records().Create(context.Background(), rec); {
				case err == nil:
					stored <- rec.ID
				case errors.Is(err, errClosed):
					return
				default:
					t.Errorf("Create: %v", err)
					return
				}
			}
		})
	}
	for len(stored) < 50 {
		time.Sleep(time.Millisecond)
	}
	check(t, db.Close())
	wait.Wait()
	close(stored)
	if err := <-waiting; !errors.Is(err, errClosed) {
		t.Errorf("a waiting receiver hears %v", err)
	}
	check(t, db.Close())
}

// TestGroup: writes that come together share a commit, and one that fails
// spoils none of the others.
func TestGroup(t *testing.T) {
	db := open1(t)
	rec := buildtest.NewRecord()
	check(t, db.Records().Create(t.Context(), rec))
	insert := func(tx *sql.Tx) error {
		_, err := tx.Exec("insert into boards (name, counters) values (hex(randomblob(8)), '{}')")
		return err
	}
	group := []*op{
		{do: insert},
		{do: func(*sql.Tx) error { return build.ErrConflict }},
		{do: func(tx *sql.Tx) error {
			if err := insert(tx); err != nil {
				return err
			}
			_, err := tx.Exec("insert into nowhere values (1)")
			return err
		}},
		{do: insert},
	}
	for _, o := range group {
		o.result = make(chan error, 1)
	}
	db.writer.close() // this test is the writer now
	db.writer.commit(group)
	for i, want := range []string{"", build.ErrConflict.Error(), "nowhere", ""} {
		if err := <-group[i].result; (err == nil) != (want == "") {
			t.Errorf("write %d returns %v", i, err)
		} else if err != nil {
			wantText(t, err, want)
		}
	}
	var n int
	check(t, db.read.QueryRow("select count(*) from boards").Scan(&n))
	if n != 2 {
		t.Errorf("%d writes happened, not the two good ones", n)
	}
}

func TestGather(t *testing.T) {
	w := &writer{ops: make(chan *op)}
	for range 20 {
		go func() { w.ops <- &op{} }()
	}
	time.Sleep(20 * time.Millisecond)
	if group := w.gather([]*op{{}}); len(group) != 21 {
		t.Errorf("the group has %d writes", len(group))
	}
}

func TestFullDisk(t *testing.T) {
	db := open1(t)
	records := db.Records()
	rec := buildtest.NewRecord()
	check(t, records.Create(t.Context(), rec))
	limit := func(pages string) {
		t.Helper()
		_, err := db.write.Exec("pragma max_page_count = " + pages)
		check(t, err)
	}
	limit("1") // SQLite takes what is used already for the least
	large := func() build.Record {
		rec := buildtest.NewRecord()
		rec.Plan.Rules = strings.Repeat("x", 100_000)
		return rec
	}
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			err := records.Create(t.Context(), large())
			if !errors.Is(err, build.ErrFull) {
				t.Errorf("Create on a full disk returns %v", err)
			}
			wantText(t, err, "free some space")
		})
	}
	wait.Wait()
	_, err := records.Get(t.Context(), rec.ID)
	check(t, err)
	limit("1000000")
	check(t, records.Create(t.Context(), large()))
}

func TestLockedByAnotherProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sysup.db")
	db, other := openAt(t, path), openAt(t, path)
	_, err := db.write.Exec("pragma busy_timeout = 50")
	check(t, err)
	tx, err := other.write.Begin()
	check(t, err)
	rec := buildtest.NewRecord()
	wantText(t, db.Records().Create(t.Context(), rec), "another process", "locked")
	_, err = db.Records().Get(t.Context(), rec.ID) // reading goes on
	if !errors.Is(err, build.ErrNotFound) {
		t.Errorf("Get returns %v", err)
	}
	check(t, tx.Rollback())
	check(t, db.Records().Create(t.Context(), rec))
}

// TestTwoProcesses: two that share a file see each other's writes, although
// each keeps what it read, and get each other's messages.
func TestTwoProcesses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sysup.db")
	a, b := openAt(t, path), openAt(t, path)
	ctx := t.Context()
	rec := buildtest.NewRecord()
	check(t, a.Records().Create(ctx, rec))
	for rev := int64(1); rev < 20; rev++ {
		old, err := a.Records().Get(ctx, rec.ID)
		check(t, err)
		seen, err := b.Records().Get(ctx, rec.ID)
		check(t, err)
		if old.Rev != rev || seen.Rev != rev {
			t.Fatalf("revision %d is seen as %d and %d", rev, old.Rev, seen.Rev)
		}
		check(t, a.Records().Replace(ctx, old, old.Push(build.Now())))
		a, b = b, a
	}
	check(t, a.Queue("builds").Send(ctx, rec.ID, build.ClassInteractive, ""))
	late, cancel := context.WithTimeout(ctx, 5*pollInterval)
	defer cancel()
	_, err := b.Queue("builds").Receive(late)
	check(t, err)
}

// TestMadeAnewByAnotherProcess: equal revisions of two generations of a record
// are told apart, although this process read the first.
func TestMadeAnewByAnotherProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sysup.db")
	a, b := openAt(t, path).Records(), openAt(t, path).Records()
	first := buildtest.NewRecord()
	check(t, a.Create(t.Context(), first))
	_, err := b.Get(t.Context(), first.ID)
	check(t, err)
	check(t, a.Delete(t.Context(), first))
	second := first
	second.Sequence++
	check(t, a.Create(t.Context(), second))
	got, err := b.Get(t.Context(), first.ID)
	check(t, err)
	if got.Sequence != second.Sequence {
		t.Error("the first generation is returned")
	}
}

// TestOneSignalWakesAll: signals may be swallowed, so a receiver that finds a
// message wakes the next.
func TestOneSignalWakesAll(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sysup.db")
	queue, other := openAt(t, path).Queue("builds"), openAt(t, path).Queue("builds")
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			if _, err := queue.Receive(t.Context()); err != nil {
				t.Errorf("Receive: %v", err)
			}
		})
	}
	time.Sleep(50 * time.Millisecond)
	for range 4 {
		check(t, other.Send(t.Context(), buildtest.NewID(), build.ClassBulk, ""))
	}
	start := time.Now()
	queue.signal()
	wait.Wait()
	if took := time.Since(start); took > pollInterval/2 {
		t.Errorf("four receivers took %v", took)
	}
}

// TestOneBuildFromTwoProcesses: identical requests to two services on one
// file make one build.
func TestOneBuildFromTwoProcesses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sysup.db")
	var wait sync.WaitGroup
	plan := buildtest.NewRecord().Plan
	for range 2 {
		db := openAt(t, path)
		service := &build.Service{Records: db.Records(), Queue: db.Queue("builds")}
		for range 100 {
			wait.Go(func() {
				if _, err := service.Submit(context.Background(), build.Submission{Plan: plan}); err != nil {
					t.Errorf("Submit: %v", err)
				}
			})
		}
	}
	wait.Wait()
	db := openAt(t, path)
	var records, messages int
	check(t, db.read.QueryRow("select (select count(*) from records), (select count(*) from goqite)").Scan(&records, &messages))
	board, err := db.Records().Board(t.Context(), "", build.Change{})
	check(t, err)
	if records != 1 || messages != 1 || board.Pending() != 1 {
		t.Errorf("%d records, %d messages, %d pending", records, messages, board.Pending())
	}
}

func TestRecount(t *testing.T) {
	for _, change := range []build.Board{{}, {build.BoardCreated: 40}, {build.BoardEnded: 40}, {build.BoardCreated: 7, build.BoardEnded: 5}} {
		db := open1(t)
		records, ctx := db.Records(), t.Context()
		for i := range 4 {
			rec := buildtest.NewRecord()
			check(t, records.Create(ctx, rec))
			claimed := rec.Claim("worker", build.NewAttempt(), build.Now())
			if i > 0 {
				check(t, records.Replace(ctx, rec, claimed))
			}
			if i > 1 {
				claimed.Rev = 2
				failure := build.Fail(build.KindBuild, "It failed.")
				check(t, records.Replace(ctx, claimed, claimed.FailWith(failure, build.DefaultLifetimes, build.Now())))
			}
		}
		unknown := buildtest.NewRecord()
		unknown.Uncounted = true // neither its beginning nor its end is on the board
		check(t, records.Create(ctx, unknown))
		if n, err := records.Pending(ctx); n != 2 || err != nil {
			t.Errorf("%d records are counted (%v)", n, err)
		}
		before, err := records.Board(ctx, "", build.Change{Add: change})
		check(t, err)
		check(t, db.Recount(ctx))
		after, err := records.Board(ctx, "", build.Change{})
		check(t, err)
		if after.Pending() != 2 || after[build.BoardCreated]-after[build.BoardEnded] != 2 {
			t.Errorf("a queued and a building record are counted as %v", after)
		}
		for counter, n := range before {
			if after[counter] < n {
				t.Errorf("the counter %s goes back from %d to %d", counter, n, after[counter])
			}
		}
	}
}

func TestExpiredBoardsAreForgotten(t *testing.T) {
	db := open1(t)
	now := build.Now()
	for i, name := range []string{"client/a/1", "client/b/1", "client/c/2"} {
		expiry := now.Add(time.Duration(i-1) * time.Hour)
		_, err := db.Records().Board(t.Context(), name, build.Change{Add: build.Board{"new": 1}, ExpiresAt: expiry})
		check(t, err)
	}
	board, err := db.Records().Board(t.Context(), "client/a/1", build.Change{Add: build.Board{"new": 1}, ExpiresAt: now.Add(time.Hour)})
	check(t, err)
	if board["new"] != 1 {
		t.Errorf("the board of an hour that is over still counts: %v", board)
	}
	var names int
	check(t, db.read.QueryRow("select count(*) from boards").Scan(&names))
	if names != 2 {
		t.Errorf("%d boards are kept", names)
	}
}

// TestSecretsLeaveTheDisk: when a private build has ended, its script is in no
// file any more.
func TestSecretsLeaveTheDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sysup.db")
	db, err := Open(path)
	check(t, err)
	const script = "uci set wireless.radio0.key=correct-horse"
	holds := func() (files []string) {
		entries, err := os.ReadDir(filepath.Dir(path))
		check(t, err)
		for _, entry := range entries {
			b, err := os.ReadFile(filepath.Join(filepath.Dir(path), entry.Name()))
			check(t, err)
			if strings.Contains(string(b), "correct-horse") {
				files = append(files, entry.Name())
			}
		}
		return files
	}
	rec := buildtest.NewRecord()
	rec.Plan.Private, rec.Plan.Defaults = true, strings.Repeat(script+"\n", 300)
	check(t, db.Records().Create(t.Context(), rec))
	if len(holds()) == 0 {
		t.Error("the script is nowhere while it is needed: this test looks in the wrong place")
	}
	failure := build.Fail(build.KindBuild, "It failed.")
	check(t, db.Records().Replace(t.Context(), rec, rec.FailWith(failure, build.DefaultLifetimes, build.Now())))
	if files := holds(); len(files) > 0 {
		t.Errorf("the script is still in %q", files)
	}
	check(t, db.Close())
}

// TestDamagedRecords: one whose stored form does not fit is an error, unless
// another version of sysup wrote it; then it is left alone.
func TestDamagedRecords(t *testing.T) {
	db := open1(t)
	records, ctx := db.Records(), t.Context()
	rec := buildtest.NewRecord()
	check(t, records.Create(ctx, rec))
	_, err := db.write.Exec(`update records set stamp = 1, body = ?, rev = 5`, []byte(`{"id": "`+string(rec.ID)+`", "state": 7, "plan": "other"}`))
	check(t, err)
	_, err = records.Get(ctx, rec.ID)
	wantText(t, err, "damaged", rec.ID.Short())
	_, err = records.Due(ctx, build.Now().Add(time.Hour), 10)
	wantText(t, err, "damaged")
	_, err = db.write.Exec(`update records set schema = ?, body = ?`, build.Schema+1, []byte("no JSON"))
	check(t, err)
	got, err := records.Get(ctx, rec.ID)
	check(t, err)
	list, err := records.Due(ctx, build.Now().Add(time.Hour), 10)
	check(t, err)
	want := build.Record{ID: rec.ID, Rev: 5, Schema: build.Schema + 1, State: build.Queued, DueAt: rec.DueAt}
	if !reflect.DeepEqual(got, want) || !reflect.DeepEqual(list, []build.Record{want}) {
		t.Errorf("a record of another version is %+v and among what is due %+v, not %+v", got, list, want)
	}
	if pending, err := records.Pending(ctx); err != nil || pending != 1 {
		t.Errorf("%d builds are pending (%v), not the one of another version", pending, err)
	}
	check(t, db.Recount(ctx))
}

func TestReplaceKeepsTheID(t *testing.T) {
	records := open1(t).Records()
	rec, other := buildtest.NewRecord(), buildtest.NewRecord()
	check(t, records.Create(t.Context(), rec))
	wantText(t, records.Replace(t.Context(), rec, other), "two builds")
}

// TestQueueNames: names keep queues apart.
func TestQueueNames(t *testing.T) {
	db := open1(t)
	if a := db.Queue("a"); db.Queue("a") != a || db.Queue("b") == a {
		t.Error("names and queues do not go together")
	}
	id := buildtest.NewID()
	check(t, db.Queue("a").Send(t.Context(), id, build.ClassInteractive, ""))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := db.Queue("b").Receive(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a message for another queue is received (%v)", err)
	}
}

func TestInteractiveGoesFirst(t *testing.T) {
	queue := open1(t).Queue("builds")
	bulk, interactive := buildtest.NewID(), buildtest.NewID()
	check(t, queue.Send(t.Context(), bulk, build.ClassBulk, ""))
	check(t, queue.Send(t.Context(), interactive, build.ClassInteractive, ""))
	for _, want := range []build.ID{interactive, bulk} {
		m, err := queue.Receive(t.Context())
		check(t, err)
		if m.ID != want {
			t.Error("a bulk build goes before one that a person waits for")
		}
	}
}

// TestReceiveUsesTheIndex: however many messages are hidden or wait, the next
// one is found without sorting them.
func TestReceiveUsesTheIndex(t *testing.T) {
	db := open1(t)
	rows, err := db.read.Query(`explain query plan select id from goqite
		where queue = 'builds' and '2026' >= timeout and received < 5 order by priority desc, created limit 1`)
	check(t, err)
	defer rows.Close()
	var plan []string
	for rows.Next() {
		var id, parent, unused int
		var detail string
		check(t, rows.Scan(&id, &parent, &unused, &detail))
		plan = append(plan, detail)
	}
	check(t, rows.Err())
	if len(plan) != 1 || !strings.Contains(plan[0], "goqite_next") {
		t.Errorf("the plan is %q", plan)
	}
}

// TestIdle: receivers that wait cost next to nothing.
func TestIdle(t *testing.T) {
	queue := open1(t).Queue("builds")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	before := cpu(t)
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			if _, err := queue.Receive(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Receive returns %v", err)
			}
		})
	}
	wait.Wait()
	if used := cpu(t) - before; used > 200*time.Millisecond {
		t.Errorf("eight idle receivers use %v in two seconds", used)
	}
}

func cpu(t *testing.T) time.Duration {
	var usage syscall.Rusage
	check(t, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// writeForEver stores numbered records and prints the number of each that was
// acknowledged.
func writeForEver(path string) {
	db, err := Open(path)
	if err != nil {
		fmt.Println(err)
		return
	}
	var print sync.Mutex
	for i := range int64(8) {
		go func() {
			for n := i; ; n += 8 {
				err := db.Records().Create(context.Background(), benchRecord(n))
				if err == nil {
					err = db.Queue("builds").Send(context.Background(), benchID(n), build.ClassInteractive, "")
				}
				print.Lock()
				fmt.Println(n, err)
				print.Unlock()
			}
		}()
	}
	select {}
}

// TestKill: what was acknowledged before kill -9 is there after it.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sysup.db")
	lines, kill := child(t, "write", path)
	var acknowledged []int64
	for lines.Scan() {
		var n int64
		var result string
		if _, err := fmt.Sscan(lines.Text(), &n, &result); err != nil || result != "<nil>" {
			t.Fatalf("the other process says %q", lines.Text())
		}
		if acknowledged = append(acknowledged, n); len(acknowledged) == 300 {
			kill()
			break
		}
	}
	db := openAt(t, path)
	for _, n := range acknowledged {
		if _, err := db.Records().Get(t.Context(), benchID(n)); err != nil {
			t.Errorf("record %d was acknowledged and is lost: %v", n, err)
		}
	}
	var messages int
	check(t, db.read.QueryRow("select count(*) from goqite").Scan(&messages))
	if messages < 300 {
		t.Errorf("300 messages were acknowledged and %d are there", messages)
	}
}

func TestLock(t *testing.T) {
	folder := t.TempDir()
	first, err := Lock(folder)
	check(t, err)
	wantLocked(t, folder, fmt.Sprint(os.Getpid()))
	check(t, first.Close())

	lines, kill := child(t, "lock", folder)
	if !lines.Scan() || lines.Text() != "locked <nil>" {
		t.Fatalf("the other process says %q", lines.Text())
	}
	wantLocked(t, folder, "")
	kill() // a killed process leaves no lock
	again, err := Lock(folder)
	check(t, err)
	check(t, again.Close())

	_, err = Lock(filepath.Join(folder, "missing"))
	wantText(t, err, "missing")
}

func wantLocked(t *testing.T, folder, holder string) {
	t.Helper()
	_, err := Lock(folder)
	var locked *LockedError
	if !errors.As(err, &locked) || locked.Dir != folder || locked.Holder == "" || holder != "" && locked.Holder != holder {
		t.Errorf("a second Lock returns %#v", err)
	}
	wantText(t, err, folder, "in use by another sysup")
}
