package aws

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
)

// TestBiggestRecord stores what a hostile client and a chatty make can bring
// about within the limits of a request, none of which can be compressed well,
// in each of its states.
func TestBiggestRecord(t *testing.T) {
	r, _ := wiredRecords(t)
	rec := biggest()
	must(t, r.Create(t.Context(), rec))
	wantSame(t, r, rec, 1)
	claimed := rec.Claim("worker", build.NewAttempt(), build.Now())
	claimed.Rev = 1
	must(t, r.Replace(t.Context(), rec, claimed))
	claimed.Rev = 2
	wantSame(t, r, claimed, 2)
	done := claimed.Finish(bigResult(claimed), build.DefaultLifetimes, build.Now())
	must(t, r.Replace(t.Context(), claimed, done))
	wantSame(t, r, done, 3)
	t.Logf("the biggest done record takes %d of %d bytes", size(t, done), maxBody)
}

// TestTooBigRecord: what is beyond the item's limit loses the older part of
// make's output, then all of it, then the command and the notes, and nothing
// else.
func TestTooBigRecord(t *testing.T) {
	r, _ := wiredRecords(t)
	rec := buildtest.NewRecord()
	output, command := noise(600<<10), noise(600<<10)
	finished := func(stdout, command string) build.Record {
		result := &build.Result{Prefix: build.Prefix(rec.ID, "", false), Stdout: stdout, Command: command, Notes: []string{"a note"}}
		return rec.Finish(result, build.DefaultLifetimes, rec.CreatedAt)
	}
	fits := fill(t, func(n int) build.Record { return finished("", command[:n]) })
	for _, test := range []struct {
		name            string
		stdout, command int
		want            build.Record
	}{
		{"everything fits", fits - 100, 10, finished(output[len(output)-fits+100:], command[:10])},
		{"the end of the output fits", len(output), 10, finished(output[len(output)-4<<10:], command[:10])},
		{"no output fits", len(output), fits, finished("", command[:fits])},
		{"no command fits", len(output), len(command), finished("", "")},
	} {
		t.Run(test.name, func(t *testing.T) {
			done := finished(output[len(output)-test.stdout:], command[:test.command])
			before := jsonOf(t, done)
			if test.want.Result.Command == "" {
				test.want.Result.Notes = nil
			}
			row, err := encodeRecord(done)
			must(t, err)
			got, err := decodeRecord(row)
			must(t, err)
			if jsonOf(t, got) != jsonOf(t, test.want) {
				t.Errorf("%d bytes of output and %d of the command are left, and the notes %v", len(got.Result.Stdout), len(got.Result.Command), got.Result.Notes)
			}
			if jsonOf(t, done) != before {
				t.Error("the caller's record was cut")
			}
		})
	}
	rec.Request.Packages = []string{output, command}
	if err := r.Create(t.Context(), rec); err == nil || !strings.Contains(err.Error(), "KiB") {
		t.Errorf("a record that cannot fit: %v", err)
	}
}

// TestLimitIsDynamoDBs stores a body just below the limit, beside the longest
// other attributes.
func TestLimitIsDynamoDBs(t *testing.T) {
	r, _ := wiredRecords(t)
	rec := buildtest.NewRecord()
	must(t, r.Create(t.Context(), rec))
	all := noise(600 << 10)
	failed := func(n int) build.Record {
		return rec.FailWith(build.Fail(build.KindBuild, "%s", all[:n]), build.DefaultLifetimes, rec.CreatedAt.Add(1e12))
	}
	must(t, r.Replace(t.Context(), rec, failed(fill(t, failed))))
}

// fill returns the length for which the record just fits.
func fill(t *testing.T, of func(length int) build.Record) int {
	t.Helper()
	length := maxBody
	for range 30 {
		n := len(compress([]byte(jsonOf(t, of(length)))))
		if n <= maxBody && n > maxBody-8 {
			return length
		}
		length += maxBody - n - 4 // noise shrinks by a quarter, so this comes nearer each time
	}
	t.Fatalf("no length makes a body of %d bytes", maxBody)
	return 0
}

func size(t *testing.T, rec build.Record) int {
	t.Helper()
	body, err := encodeBody(rec)
	must(t, err)
	return len(body)
}

func wantSame(t *testing.T, r *Records, want build.Record, rev int64) {
	t.Helper()
	want.Rev = rev
	got, err := r.Get(t.Context(), want.ID)
	must(t, err)
	if jsonOf(t, got) != jsonOf(t, want) {
		t.Errorf("the %s record comes back otherwise", want.State)
	}
}

func jsonOf(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	must(t, err)
	return string(b)
}

// noise is n bytes of text that cannot be compressed well.
func noise(n int) string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
	b := make([]byte, n)
	rand.Read(b)
	for i := range b {
		b[i] = letters[b[i]%64]
	}
	return string(b)
}

// biggest is a record of a request at its limits: a thousand packages with
// long names, 20 KiB of defaults, repositories, keys.
func biggest() build.Record {
	plan := build.Plan{
		Distribution: "OpenWrt", Version: noise(40), Revision: noise(64), Target: noise(32) + "/" + noise(32), Profile: noise(128),
		Private: true, Defaults: noise(build.MaxDefaults), RootfsSizeMB: build.MaxRootfsSizeMB, RepositoriesMode: "append",
	}
	for range build.MaxPackages {
		plan.Add = append(plan.Add, noise(100))
	}
	for i := range build.MaxRepositories {
		plan.Repositories = append(plan.Repositories, build.Repository{Name: noise(64), URL: fmt.Sprintf("https://feed%d.example/%s", i, noise(400))})
	}
	for range build.MaxKeys {
		plan.RepositoryKeys = append(plan.RepositoryKeys, noise(1000))
	}
	request := build.Request{
		Version: plan.Version, Target: plan.Target, Profile: plan.Profile, Packages: plan.Add,
		Repositories: plan.Repositories, RepositoryKeys: plan.RepositoryKeys, Client: noise(128),
	}
	return build.NewRecord(buildtest.NewID(), plan, request, 1, build.Now())
}

// bigResult has a manifest of 400 lines and tails as long as the builder keeps
// them.
func bigResult(rec build.Record) *build.Result {
	manifest := map[string]string{}
	for range 400 {
		manifest[noise(40)] = noise(30)
	}
	return &build.Result{
		Prefix: build.Prefix(rec.ID, rec.Attempt, true), Manifest: manifest, Command: noise(4 << 10),
		Stdout: noise(16 << 10), Stderr: strings.Repeat("\x1b", 16<<10), Notes: []string{"a note"},
	}
}

func TestEnd(t *testing.T) {
	for _, test := range []struct {
		s    string
		n    int
		want string
	}{
		{"abc", 3, "abc"}, {"abc", 2, "bc"}, {"abc", 0, ""}, {"aä", 2, "ä"}, {"aä", 1, ""}, {"ä\x80\x80", 2, ""},
	} {
		if got := end(test.s, test.n); got != test.want {
			t.Errorf("the last %d bytes of %q are %q, not %q", test.n, test.s, got, test.want)
		}
	}
}

// FuzzBody: what decodes, decodes to the same once it is encoded again.
func FuzzBody(f *testing.F) {
	for _, rec := range []build.Record{buildtest.NewRecord(), {}} {
		body, err := json.Marshal(rec)
		must(f, err)
		f.Add(body)
		f.Add(compress(body))
	}
	f.Add(compress([]byte(strings.Repeat("x", 1<<10))))
	f.Fuzz(func(t *testing.T, body []byte) {
		row := item{attrRev: number(1), attrSchema: number(build.Schema), attrBody: &types.AttributeValueMemberB{Value: body}}
		rec, err := decodeRecord(row)
		if err != nil || !utf8.ValidString(jsonOf(t, rec)) {
			return
		}
		again, err := encodeBody(rec)
		must(t, err)
		row[attrBody] = &types.AttributeValueMemberB{Value: again}
		twice, err := decodeRecord(row)
		must(t, err)
		if jsonOf(t, rec) != jsonOf(t, twice) {
			t.Errorf("%s\nbecomes\n%s", jsonOf(t, rec), jsonOf(t, twice))
		}
	})
}

// TestBombIsNotUnpacked: a body may not take the memory of the process.
func TestBombIsNotUnpacked(t *testing.T) {
	if _, err := decodeBody(compress(make([]byte, maxText+1))); err == nil || !strings.Contains(err.Error(), "MiB") {
		t.Errorf("a body of %d bytes of zeros: %v", maxText+1, err)
	}
}

func TestDamagedItems(t *testing.T) {
	good, err := encodeRecord(buildtest.NewRecord())
	must(t, err)
	for attr, value := range map[string]types.AttributeValue{
		attrBody: &types.AttributeValueMemberB{Value: []byte("{")}, attrRev: text("1"), attrSchema: nil,
	} {
		row := item{}
		for a, v := range good {
			row[a] = v
		}
		row[attr] = value
		if _, err := decodeRecord(row); err == nil || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("with another %s: %v", attr, err)
		}
	}
	if _, err := decodeRecord(good); err != nil {
		t.Errorf("the undamaged one: %v", err)
	}
}

// TestForeignItems: the body of another version's record may be anything.
func TestForeignItems(t *testing.T) {
	rec := buildtest.NewRecord()
	rec.Rev, rec.ExpiresAt = 5, build.Now().Add(time.Hour)
	want := build.Record{ID: rec.ID, Rev: 5, Schema: build.Schema + 1, State: build.Queued, DueAt: rec.DueAt, ExpiresAt: rec.ExpiresAt}
	for _, body := range []types.AttributeValue{nil, text("{"), &types.AttributeValueMemberB{Value: []byte(`{"state":7}`)}} {
		row, err := encodeRecord(rec)
		must(t, err)
		row[attrKey], row[attrSchema], row[attrBody] = text(keyOf(rec.ID)), number(build.Schema+1), body
		if got, err := decodeRecord(row); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("with the body %v it is %+v (%v), not %+v", body, got, err, want)
		}
	}
}
