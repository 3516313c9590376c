package builder_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/scripts/instant"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// TestDuplicateDelivery: two workers with one build's messages make one
// result.
func TestDuplicateDelivery(t *testing.T) {
	t.Parallel()
	duplicateDelivery(t)
}

// TestDuplicateDeliveryNotices: the test above fails where records are not
// compared.
func TestDuplicateDeliveryNotices(t *testing.T) {
	t.Parallel()
	buildtest.Fails(t, func(t testing.TB) { duplicateDelivery(t, buildtest.NoCompareAndSwap) })
}

func duplicateDelivery(t testing.TB, flaws ...buildtest.Flaw) {
	var claiming sync.WaitGroup // both workers have read the record
	claiming.Add(2)
	s := newSite(t, setting{fakes: true, flaws: flaws, workers: 2, hook: func(step build.Step, after bool) {
		if step == build.StepClaim && !after {
			claiming.Done()
			claiming.Wait()
		}
	}})
	id := s.submit(request())
	if err := s.queue.Send(s.Context(), id, build.ClassBulk, ""); err != nil {
		t.Fatal(err)
	}
	rec := s.wait(id)
	s.done(rec)
	s.settled()
	if makes, prefixes := s.counts.of(build.StepMake), s.attempts(id); makes != 1 || rec.Attempts != 1 || len(prefixes) != 1 {
		t.Errorf("make ran %d times in %d attempts, and %q were published", makes, rec.Attempts, prefixes)
	}
	s.acknowledged()
}

// attempts lists what is stored of a build, by attempt.
func (s *site) attempts(id build.ID) (list []string) {
	s.Helper()
	for _, key := range s.keysBelow("store/" + string(id) + "/") {
		if name := filepath.Dir(key); !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return list
}

// acknowledged waits until the queue is empty.
func (s *site) acknowledged() {
	s.Helper()
	for begin := time.Now(); time.Since(begin) < 10*time.Second; time.Sleep(10 * time.Millisecond) {
		if s.waiting.Len() == 0 {
			return
		}
	}
	s.Error("there are messages in the queue for which nobody waits")
}

// TestManyAtOnce: two hundred equal requests at once are one record and one
// build.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	for _, fakes := range []bool{false, true} {
		manyAtOnce(t, setting{fakes: fakes, workers: 2})
	}
}

// TestManyAtOnceNotices: the test above fails where creating a record does not
// look for another.
func TestManyAtOnceNotices(t *testing.T) {
	t.Parallel()
	for _, flaw := range []buildtest.Flaw{buildtest.CreateOverwrites, buildtest.CreateRaces} {
		buildtest.Fails(t, func(t testing.TB) {
			manyAtOnce(t, setting{fakes: true, flaws: []buildtest.Flaw{flaw}, workers: 2})
		})
	}
}

func manyAtOnce(t testing.TB, o setting) {
	s := newSite(t, o)
	plan := s.plan(request("nano"))
	ids := make([]build.ID, 200)
	var wait, creating sync.WaitGroup // all have found that there is no record
	creating.Add(len(ids))
	s.service.Hook = func(step build.Step, after bool) {
		if step == build.StepCreate && !after {
			creating.Done()
			creating.Wait()
		}
	}
	for i := range ids {
		wait.Go(func() {
			status, err := s.service.Submit(context.Background(), build.Submission{Plan: plan})
			if err != nil {
				s.Errorf("submit: %v", err)
			}
			ids[i] = status.Record.ID
		})
	}
	wait.Wait()
	ids = slices.Compact(ids)
	rec := s.wait(ids[0])
	s.done(rec)
	s.settled()
	board, err := s.records.Board(s.Context(), "", build.Change{})
	if err != nil {
		t.Fatal(err)
	}
	if makes := s.counts.of(build.StepMake); len(ids) != 1 || makes != 1 || rec.Attempts != 1 || board[build.BoardEnded] != 1 {
		t.Errorf("%d builds, make ran %d times, %d attempts, board %v", len(ids), makes, rec.Attempts, board)
	}
}

// TestTakenOver: a worker whose build was claimed by another at whatever step
// changes nothing any more: not the record, not the message, and it adds no
// complete result.
func TestTakenOver(t *testing.T) {
	t.Parallel()
	for _, step := range build.Steps() {
		if slices.Index(build.Steps(), step) < slices.Index(build.Steps(), build.StepImageBuilder) || step == build.StepCount || step == build.StepAcknowledge {
			continue
		}
		for _, after := range []bool{false, true} {
			if step == build.StepCommit && after {
				continue // it is done then
			}
			name := "before "
			if after {
				name = "after "
			}
			t.Run(name+string(step), func(t *testing.T) {
				t.Parallel()
				takenOver(t, step, after)
			})
		}
	}
}

// TestTakenOverNotices: the test above fails where records are not compared.
func TestTakenOverNotices(t *testing.T) {
	t.Parallel()
	buildtest.Fails(t, func(t testing.TB) { takenOver(t, build.StepCommit, false, buildtest.NoCompareAndSwap) })
}

func takenOver(t testing.TB, step build.Step, after bool, flaws ...buildtest.Flaw) {
	var s *site
	var stolen atomic.Bool
	faults := &buildtest.Faults{} // only to count
	s = newSite(t, setting{fakes: true, flaws: flaws, faults: faults, workers: -1, hook: func(at build.Step, isAfter bool) {
		if at == step && isAfter == after && !stolen.Swap(true) {
			s.steal()
		}
	}})
	id := s.submit(request())
	s.start()
	s.until(id, "the worker has given up", func(rec build.Record) bool { return rec.Ended() || strings.Contains(s.log.String(), "taken over") })
	rec, err := s.records.Get(s.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if rec.Attempt != thief || rec.State != build.Building || rec.Failure != nil {
		t.Errorf("the record is %s, attempt %s, failure %v", rec.State, rec.Attempt, rec.Failure)
	}
	if n := s.waiting.Len(); n != 1 {
		t.Errorf("the queue has %d messages", n)
	}
	sealed := slices.Index(build.Steps(), step) > slices.Index(build.Steps(), build.StepSeal) || step == build.StepSeal && after
	if left := s.attempts(id); len(left) > 0 && !sealed {
		t.Errorf("published all the same: %q", s.keysBelow("store/"))
	}
	uploading := slices.Index(build.Steps(), step) > slices.Index(build.Steps(), build.StepUpload) || step == build.StepUpload && after
	if n := faults.Calls(buildtest.OpPut); n > 0 && !uploading {
		t.Errorf("%d files were stored for nothing", n)
	}
	s.trees.Close() // others might want what was being fetched
	s.clean()
}

const thief = "0123456789abcdef0123456789abcdef"

// steal lets somebody else claim the only build there is, as if the lease of
// its worker had ended.
func (s *site) steal() {
	rec := s.memory.All()[0]
	s.mustReplace(rec.ID, func(r build.Record) build.Record { return r.Claim("thief", thief, build.Now()) })
}

// mustReplace changes the stored record, whoever else does so too.
func (s *site) mustReplace(id build.ID, change func(build.Record) build.Record) {
	for range 100 {
		rec, err := s.records.Get(context.Background(), id)
		if err == nil {
			err = s.records.Replace(context.Background(), rec, change(rec))
		}
		if err == nil {
			return
		}
	}
	s.Error("the record cannot be changed")
}

// TestPutOff: a build that somebody took for overdue and sent again, but nobody
// claimed, is finished by the worker that has it.
func TestPutOff(t *testing.T) {
	t.Parallel()
	for _, step := range []build.Step{build.StepMake, build.StepUpload, build.StepCommit} {
		var s *site
		s = newSite(t, setting{fakes: true, workers: -1, hook: func(at build.Step, after bool) {
			if at == step && !after {
				s.mustReplace(s.memory.All()[0].ID, func(r build.Record) build.Record { return r.Push(build.Now()) })
			}
		}})
		id := s.submit(request())
		s.start()
		rec := s.wait(id)
		s.done(rec)
		if rec.Attempts != 1 || s.counts.of(build.StepMake) != 1 {
			t.Errorf("pushed before %s, it took %d attempts", step, rec.Attempts)
		}
	}
}

// TestShutdown: a worker that is told to stop gives its build back, at once for
// others and without a mark against it; nothing of the job is left.
func TestShutdown(t *testing.T) {
	t.Parallel()
	s := newSite(t, setting{fakes: true, workers: -1, upstream: instant.Options{Before: "sleep 4242"}})
	id := s.submit(request())
	for range 4 { // more than there are attempts
		stop := s.start()
		s.until(id, "make runs", func(rec build.Record) bool { return rec.Stage == build.StagePackages })
		stop()
		rec, err := s.records.Get(s.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if rec.State != build.Queued || rec.Attempts != 0 || rec.Failure != nil {
			t.Fatalf("the build is %s after %d attempts: %v", rec.State, rec.Attempts, rec.Failure)
		}
		s.clean()
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if m, err := s.queue.Receive(ctx); err != nil || m.ID != id {
		t.Errorf("the build is not there for others: %v", err)
	}
	if len(s.attempts(id)) > 0 {
		t.Errorf("published: %q", s.keysBelow("store/"))
	}
}

// TestFaults: each write fails once, or reports that it failed although it
// happened; the build is done all the same, once.
func TestFaults(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		step build.Step // before which the fault is set
		op   string
		// What is expected if nothing happened, and if it did: attempts and
		// runs of make.
		before, after [2]int
	}{
		{build.StepReceive, buildtest.OpReceive, [2]int{1, 1}, [2]int{1, 1}},
		{build.StepClaim, buildtest.OpReplace, [2]int{1, 1}, [2]int{1, 1}},
		{build.StepMake, buildtest.OpReplace, [2]int{1, 1}, [2]int{1, 1}}, // a heartbeat
		{build.StepMake, buildtest.OpExtend, [2]int{1, 1}, [2]int{1, 1}},
		{build.StepUpload, buildtest.OpPut, [2]int{2, 2}, [2]int{2, 2}},
		{build.StepSeal, buildtest.OpPut, [2]int{2, 2}, [2]int{2, 1}}, // sealed is complete
		{build.StepIndex, buildtest.OpPut, [2]int{2, 1}, [2]int{2, 1}},
		{build.StepCommit, buildtest.OpReplace, [2]int{1, 1}, [2]int{1, 1}},
		{build.StepCount, buildtest.OpBoard, [2]int{1, 1}, [2]int{1, 1}},
		{build.StepAcknowledge, buildtest.OpDone, [2]int{1, 1}, [2]int{1, 1}},
	} {
		for fault, want := range map[buildtest.Fault][2]int{buildtest.FailsBefore: test.before, buildtest.FailsAfter: test.after} {
			name := test.op + " at " + string(test.step) + " happens"
			if fault == buildtest.FailsBefore {
				name = test.op + " at " + string(test.step) + " does not happen"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				withFault(t, test.step, test.op, fault, want)
			})
		}
	}
}

func withFault(t *testing.T, step build.Step, op string, fault buildtest.Fault, want [2]int) {
	faults := &buildtest.Faults{}
	var set atomic.Bool
	s := newSite(t, setting{fakes: true, faults: faults, workers: -1, hook: func(at build.Step, after bool) {
		if at == step && !after && !set.Swap(true) {
			faults.On(op, faults.Calls(op)+1, fault)
		}
	}})
	id := s.submit(request())
	s.start()
	rec := s.wait(id)
	s.done(rec)
	if makes := s.counts.of(build.StepMake); rec.Attempts != want[0] || makes != want[1] {
		t.Errorf("%d attempts and %d runs of make, want %d and %d\n%s", rec.Attempts, makes, want[0], want[1], s.log)
	}
	if left := s.attempts(id); len(left) != 1 {
		t.Errorf("published: %q", left)
	}
	if step != build.StepCount {
		s.settled()
	}
	// A message that was not acknowledged is, when it comes again.
	if err := s.queue.Send(s.Context(), id, build.ClassBulk, ""); err != nil {
		t.Fatal(err)
	}
	for begin := time.Now(); faults.Calls(buildtest.OpDone) < 2; time.Sleep(5 * time.Millisecond) {
		if time.Since(begin) > 10*time.Second {
			t.Fatal("a message of an ended build is not acknowledged")
		}
	}
	s.clean()
}

// TestRecovery: what an attempt left complete and signed is the result, without
// another build; what is not as it was signed is built anew.
func TestRecovery(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		change func(*site, string) // of the files in the attempt's folder
		makes  int
	}{
		{"complete", func(*site, string) {}, 1},
		{"an image is changed", func(s *site, folder string) { s.tamper(folder, "*combined.img.gz") }, 2},
		{"the log is changed", func(s *site, folder string) { s.tamper(folder, "build-*.log") }, 2},
		{"build.json is changed", func(s *site, folder string) { s.tamper(folder, "build.json") }, 2},
		{"the list is changed", func(s *site, folder string) { s.tamper(folder, "sha256sums") }, 2},
		{"the signature is changed", func(s *site, folder string) { s.tamper(folder, "sha256sums.sig") }, 2},
		{"the certificate is changed", func(s *site, folder string) { s.tamper(folder, "worker.pub") }, 2},
		{"an image is gone", func(s *site, folder string) { s.tamper(folder, "*combined.img.gz", "gone") }, 2},
		{"build.json is gone", func(s *site, folder string) { s.tamper(folder, "build.json", "gone") }, 2},
		{"the worker's key is revoked", func(s *site, folder string) { s.revoke(s.server, s.signer(folder)) }, 2},
		{"another key is revoked", func(s *site, _ string) { s.revoke(s.server, s.server.Public().Fingerprint) }, 1},
		{"a list that the server did not sign", func(s *site, _ string) { s.revoke(s.up.Key) }, 2}, // who knows what the right one says
		{"a list without its signature", func(s *site, _ string) {
			s.revoke(s.server)
			s.remove("keys/revoked.sig")
		}, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			recovery(t, test.change, test.makes)
		})
	}
}

// signer is the key by which an attempt was signed.
func (s *site) signer(folder string) usign.Fingerprint {
	s.Helper()
	text, err := os.ReadFile(filepath.Join(folder, usign.WorkerFile))
	if err != nil {
		s.Fatal(err)
	}
	certificate, err := usign.ParseCertificate(text)
	if err != nil {
		s.Fatal(err)
	}
	return certificate.Key.Fingerprint
}

// revoke publishes a list of revoked keys.
func (s *site) revoke(by usign.SecretKey, keys ...usign.Fingerprint) {
	s.Helper()
	list := usign.Revoked{Issued: time.Now(), Keys: keys}.Marshal()
	for key, text := range map[string][]byte{"keys/revoked": list, "keys/revoked.sig": by.Sign(list).Marshal()} {
		if err := s.objects.Put(s.Context(), key, bytes.NewReader(text), build.PolicyIndex); err != nil {
			s.Fatal(err)
		}
	}
}

func (s *site) remove(key string) {
	s.Helper()
	if err := s.objects.Delete(s.Context(), key); err != nil {
		s.Fatal(err)
	}
}

// TestRecoveryAsPublished: a worker that was not given the server's key finds
// it where clients do. Without it nothing is taken over.
func TestRecoveryAsPublished(t *testing.T) {
	t.Parallel()
	for makes, publish := range map[int]func(*site, string){
		1: func(s *site, _ string) {
			if err := s.objects.Put(s.Context(), "keys/server.pub", bytes.NewReader(s.server.Public().Marshal()), build.PolicyIndex); err != nil {
				s.Fatal(err)
			}
		},
		2: func(*site, string) {},
	} {
		t.Run(fmt.Sprint(makes), func(t *testing.T) {
			t.Parallel()
			recovery(t, func(s *site, folder string) { s.setting.publishedKey = true; publish(s, folder) }, makes)
		})
	}
}

func recovery(t *testing.T, change func(*site, string), makes int) {
	var died atomic.Bool
	s := newSite(t, setting{workers: -1, hook: func(step build.Step, after bool) {
		if step == build.StepCommit && !after && !died.Swap(true) {
			runtime.Goexit() // the worker is no more
		}
	}})
	id := s.submit(request("nano"))
	stop := s.start()
	lost := s.until(id, "the worker is lost", func(build.Record) bool { return died.Load() })
	stop()
	if lost.State != build.Building {
		t.Fatalf("the record is %s before the commit", lost.State)
	}
	first := build.Prefix(id, lost.Attempt, false)
	change(s, filepath.Join(s.folder, "objects", filepath.FromSlash(first)))
	s.mustReplace(id, func(r build.Record) build.Record { return r.Orphan(build.Now()) }) // as after a restart
	s.start()
	s.queue.Send(t.Context(), id, build.ClassInteractive, "")
	rec := s.wait(id)
	result := s.done(rec)
	if n := s.counts.of(build.StepMake); n != makes || rec.Attempts != 2 {
		t.Errorf("make ran %d times in %d attempts, want %d in 2", n, rec.Attempts, makes)
	}
	if (result.Prefix == first) != (makes == 1) {
		t.Errorf("the result lies at %s, the first attempt was %s", result.Prefix, first)
	}
	s.settled()
	s.wantSilent(id)
}

// TestLostThreeTimes: a build whose workers all vanish is failed with the
// fourth claim, without another try.
func TestLostThreeTimes(t *testing.T) {
	t.Parallel()
	var deaths atomic.Int64
	s := newSite(t, setting{workers: -1, hook: func(step build.Step, after bool) {
		// Here no heartbeat is under way that the dead could still give.
		if step == build.StepImageBuilder && !after {
			deaths.Add(1)
			runtime.Goexit()
		}
	}})
	id := s.submit(request())
	for i := range int64(3) {
		stop := s.start()
		s.queue.Send(t.Context(), id, build.ClassInteractive, "")
		s.until(id, "the worker is lost", func(build.Record) bool { return deaths.Load() == i+1 })
		stop()
		s.mustReplace(id, func(r build.Record) build.Record { return r.Orphan(build.Now()) })
	}
	s.start()
	s.queue.Send(t.Context(), id, build.ClassInteractive, "")
	s.failed(s.wait(id), build.KindWorker, "lost 3 times")
	if n := deaths.Load(); n != 3 {
		t.Errorf("it was tried %d times", n)
	}
}
