package buildtest

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// Each flaw with the case of the suite that is there to notice it. The suite
// has other cases that fail as well; the named one has to.

var recordsFlaws = map[Flaw]string{
	CreateOverwrites:   "creating again fails and changes nothing",
	CreateRaces:        "of many that create at once one wins",
	CreateBlocked:      "an expired record is created over, from revision 1",
	NoCompareAndSwap:   "replacing an outdated record fails and changes nothing",
	ReplaceRaces:       "of many that replace at once one wins",
	ReplaceRevives:     "an expired record is not replaced",
	RevisionStays:      "replacing raises the revision by one",
	ExpiredRead:        "an expired record is not found",
	ForeignWhole:       "of a record that another version of sysup wrote there is the outline",
	StaleRead:          "a record made anew is not mistaken for its predecessor",
	DeleteUnchecked:    "deleting an outdated record fails and changes nothing",
	DeleteGoneFails:    "deleting twice is no error",
	DeleteNotExpired:   "an expired record can be deleted",
	DueUnsorted:        "due lists what is due, longest first, expired or not",
	DueUnlimited:       "due lists what is due, longest first, expired or not",
	DueSkipsExpired:    "due lists what is due, longest first, expired or not",
	DueEverything:      "due follows a record that is put off",
	DueExclusive:       "due returns whole records",
	BoardRaces:         "no count is lost or seen twice among many who add",
	BoardMaxFirst:      "a board adds, then takes the maximum, and is returned whole",
	BoardPartial:       "a board adds, then takes the maximum, and is returned whole",
	BoardSharedByNames: "boards of different names have nothing in common",
	BelowIgnored:       "a board that is not below is refused and stays as it is",
	BelowAfter:         "a board is compared before it changes",
	BelowMissingFails:  "a counter that is not there is below one and not below zero",
	BelowMissingPasses: "a counter that is not there is below one and not below zero",
	BelowOne:           "every counter has to be below",
	BelowChanges:       "a board that is not below is refused and stays as it is",
	BelowRaces:         "of many that wake a fleet at once one starts a builder",
}

var queueFlaws = map[Flaw]string{
	LosesMessage:      "a message that nobody deletes comes back",
	ReceiveLimit:      "a message received fifty times is still there",
	NotHidden:         "a received message is hidden for the visibility time",
	HiddenForever:     "a message that nobody deletes comes back",
	ExtendIgnored:     "extending hides a message for longer",
	ExtendZeroIgnored: "extending by zero makes a message available at once",
	DeleteIgnored:     "a deleted message never comes back",
	StaleReceiptFails: "an outdated receipt is no error",
	NotWoken:          "a waiting receiver wakes when something is sent",
	OneWoken:          "many waiting receivers wake for as many messages",
	IgnoresContext:    "receiving ends with its context",
	OtherContextError: "receiving ends with its context",
	Deduplicates:      "an ID can be sent again while it is in flight",
	BulkLost:          "messages of both classes and every group arrive",
}

var objectsFlaws = map[Flaw]string{
	PutNotAtomic:     "a part is never visible",
	PutKeepsPart:     "a reader that fails leaves nothing",
	PutOverwrites:    "other bytes cannot replace immutable ones",
	PutRaces:         "of many that store one key with other bytes one wins",
	PutEqualFails:    "equal bytes can be stored again",
	PutKeepsMutable:  "a mutable object is replaced",
	AnyKey:           "a key that cannot be is an error to write and not there to read",
	BadKeyOtherError: "a key that cannot be is an error to write and not there to read",
	ListFolders:      "list takes its prefix as text, not as a folder",
	ListUnsorted:     "list goes by key order",
	ListKeysOnly:     "list tells sizes and times",
	ListGoneFails:    "list passes over what vanishes meanwhile",
	DeleteNothing:    "a deleted object is gone, the others stay",
	DeleteMissing:    "deleting what is not there is no error and harms nothing",
	SeekBroken:       "a reader that can seek does",
	NoSize:           "what is stored is read back, with what is known of it",
}

func TestSuiteNoticesFlawedRecords(t *testing.T) {
	wantNoticed(t, recordsContract, recordsFlaws, func(t testing.TB, f Flaw) build.Records { return NewRecords(t, f) })
}

func TestSuiteNoticesFlawedQueue(t *testing.T) {
	wantNoticed(t, queueContract, queueFlaws, func(t testing.TB, f Flaw) timedQueue {
		const visibility = 50 * time.Millisecond
		return timedQueue{NewQueue(t, visibility, f), visibility}
	})
}

func TestSuiteNoticesFlawedObjects(t *testing.T) {
	wantNoticed(t, objectsContract, objectsFlaws, func(t testing.TB, f Flaw) build.Objects { return NewObjects(t, f) })
}

func wantNoticed[D any](t *testing.T, suite contract[D], flaws map[Flaw]string, open func(testing.TB, Flaw) D) {
	cases := map[string]func(testing.TB, D){}
	for _, clause := range suite {
		cases[clause.name] = clause.run
	}
	for flaw, name := range flaws {
		t.Run(string(flaw), func(t *testing.T) {
			run := cases[name]
			if run == nil {
				t.Fatalf("the suite has no case %q", name)
			}
			synctest.Test(t, func(t *testing.T) { // the waiting costs nothing
				Fails(t, func(t testing.TB) { run(t, open(t, flaw)) })
				time.Sleep(2 * time.Hour) // for who ignores his context
			})
		})
	}
}

// TestMisuse shows that the fakes notice callers who break a rule.
func TestMisuse(t *testing.T) {
	for name, f := range map[string]func(testing.TB){
		"replacing a record that was made up": func(t testing.TB) {
			r := NewRecords(t)
			rec := created(t, r, NewRecord())
			madeUp := rec
			madeUp.Sequence++
			_ = r.Replace(t.Context(), madeUp, rec.Push(build.Now()))
		},
		"deleting a record that was never there": func(t testing.TB) {
			_ = NewRecords(t).Delete(t.Context(), NewRecord())
		},
		"a step that is none": func(t testing.TB) {
			r := NewRecords(t)
			rec := failed(t, r, time.Hour, build.Now())
			_ = r.Replace(t.Context(), rec, rec.Claim("worker", build.NewAttempt(), build.Now()))
		},
		"a claim that is not counted": func(t testing.TB) {
			r := NewRecords(t)
			rec := created(t, r, NewRecord())
			claimed := rec.Claim("worker", build.NewAttempt(), build.Now())
			claimed.Attempts = 0
			_ = r.Replace(t.Context(), rec, claimed)
		},
		"a private script that outlives its build": func(t testing.TB) {
			r := NewRecords(t)
			rec := created(t, r, fullRecord())
			ended := rec.FailWith(build.Fail(build.KindDisk, "Full."), build.DefaultLifetimes, build.Now())
			ended.Plan.Defaults = rec.Plan.Defaults
			_ = r.Replace(t.Context(), rec, ended)
		},
		"a result under another build's prefix": func(t testing.TB) {
			r := NewRecords(t)
			rec := created(t, r, NewRecord())
			rec = replaced(t, r, rec, rec.Claim("worker", build.NewAttempt(), build.Now()))
			result := &build.Result{Prefix: build.Prefix(NewID(), rec.Attempt, false)}
			_ = r.Replace(t.Context(), rec, rec.Finish(result, build.DefaultLifetimes, build.Now()))
		},
		"changing what Get returned": func(t testing.TB) {
			r := NewRecords(t)
			rec := created(t, r, NewRecord())
			get(t, r, rec.ID).Plan.Add[0] = "other"
			get(t, r, rec.ID)
		},
		"a receipt that was made up": func(t testing.TB) {
			_ = NewQueue(t, time.Second).Delete(t.Context(), build.Message{ID: NewID(), Receipt: "m1/1"})
		},
		"sending what is no ID": func(t testing.TB) {
			_ = NewQueue(t, time.Second).Send(t.Context(), "x", build.ClassBulk, "")
		},
		"a private file that caches keep": func(t testing.TB) {
			o := NewObjects(t)
			key := build.Prefix(NewID(), build.NewAttempt(), true) + "a.img"
			_ = o.Put(t.Context(), key, errReader{}, build.PolicyImage)
		},
		"a file after build.json": func(t testing.TB) {
			o := NewObjects(t)
			prefix := build.Prefix(NewID(), build.NewAttempt(), false)
			put(t, o, prefix+"build.json", "{}")
			put(t, o, prefix+"a.img", "x")
		},
		"a reader that is left open": func(t testing.TB) {
			o := NewObjects(t)
			put(t, o, "k", "x")
			_, _, err := o.Open(t.Context(), "k")
			check(t, err, "Open")
		},
	} {
		t.Run(name, func(t *testing.T) { Fails(t, f) })
	}
}

// TestFails shows that the test of tests tells good from bad.
func TestFails(t *testing.T) {
	outer := &recorder{TB: t}
	Fails(outer, func(testing.TB) {})
	if !outer.Failed() {
		t.Error("Fails passes a test that notices nothing")
	}
	for name, f := range map[string]func(testing.TB){
		"Error":   func(t testing.TB) { t.Errorf("x") },
		"Fatal":   func(t testing.TB) { t.Fatalf("x") },
		"Cleanup": func(t testing.TB) { t.Cleanup(func() { t.Errorf("x") }) },
	} {
		outer := &recorder{TB: t}
		Fails(outer, f)
		if outer.Failed() {
			t.Errorf("Fails does not notice %s", name)
		}
	}
}

// TestFaults shows both ways to fail, for every write.
func TestFaults(t *testing.T) {
	ctx := context.Background()
	for _, fault := range []Fault{FailsBefore, FailsAfter} {
		happened := fault == FailsAfter
		var f Faults
		inner, records := NewRecords(t), build.Records(nil)
		records = f.On(OpCreate, 1, fault).On(OpBoard, 2, fault).Records(inner)
		rec := NewRecord()
		wantError(t, records.Create(ctx, rec), ErrInjected, "Create")
		if (len(inner.All()) == 1) != happened {
			t.Errorf("fault %d: %d records are there", fault, len(inner.All()))
		}
		for call, want := range []error{nil, ErrInjected, nil} {
			if _, err := records.Board(ctx, "", build.Change{Add: build.Board{"n": 1}}); !errors.Is(err, want) {
				t.Errorf("call %d of Board returns %v", call+1, err)
			}
		}
		messages := NewQueue(t, time.Second)
		queue := f.On(OpSend, 1, fault).Queue(messages)
		wantError(t, queue.Send(ctx, rec.ID, build.ClassBulk, ""), ErrInjected, "Send")
		if (messages.Len() == 1) != happened {
			t.Errorf("fault %d: %d messages are there", fault, messages.Len())
		}
		files := NewObjects(t)
		objects := f.On(OpDeleteKey, 1, fault).Objects(files)
		put(t, objects, "k", "x")
		wantError(t, objects.Delete(ctx, "k"), ErrInjected, "Delete")
		if (len(files.Keys()) == 0) != happened {
			t.Errorf("fault %d: the keys are %q", fault, files.Keys())
		}
	}
}
