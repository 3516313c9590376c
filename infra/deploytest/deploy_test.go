package deploytest_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	dynamo "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	sqstypes "github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/client"
)

// TestDeployment is one deployment and everything that is done to it. The
// order saves time: what needs a minute to pass waits beside the others.
func TestDeployment(t *testing.T) {
	s := deploy(t)
	poison := s.poison(t)
	if !t.Run("the request of 2018", s.talk) {
		t.FailNow() // every other scenario would wait for its builds in vain
	}
	t.Run("the request of today", s.today)
	t.Run("what a page of another origin reads", s.headers)
	var killed client.Status
	t.Run("delivered twice", s.twice)
	if !t.Run("killed in mid-build", func(t *testing.T) { killed = s.killed(t) }) {
		t.Fatal("without a killed builder there is nothing to be taken over")
	}
	t.Run("beside", func(t *testing.T) {
		for name, scenario := range map[string]func(*testing.T){
			"another builder finishes": func(t *testing.T) { s.takenOver(t, killed) },
			"poisoned":                 func(t *testing.T) { s.drained(t, poison) },
			"expired":                  s.expired,
			"stale lease":              s.stale,
			"private":                  s.private,
			"roles":                    s.roles,
		} {
			t.Run(name, func(t *testing.T) { t.Parallel(); scenario(t) })
		}
	})
	t.Run("nothing is left over", s.settled)
}

func request(profile string, packages ...string) client.Request {
	r := client.Request{Version: version, Target: "ath79/generic", Profile: profile, Packages: packages, Client: "test/1"}
	if profile == "generic" {
		r.Target = "x86/64"
	}
	return r
}

// answer2018 is what the first clients read.
type answer2018 struct {
	RequestHash string `json:"request_hash"`
	ImageHash   string `json:"image_hash"`
	Sysupgrade  string
	Files       string
	Log         string
}

// talk sends what the project's talk shows, on a deployment at rest: nothing
// runs but the emulator until the API asks ECS for a builder.
func (s *stack) talk(t *testing.T) {
	if n := len(s.tasks()); n != 0 {
		t.Errorf("%d builders run before anybody asked for an image", n)
	}
	if resp, key := s.get(t, http.MethodGet, "/keys/server.pub", nil); resp.StatusCode != http.StatusOK || !bytes.Contains(key, []byte("RW")) {
		t.Errorf("before the first builder, the server's public key is answered by %s: %s", resp.Status, key)
	}
	const body = `{"distro": "openwrt", "version": "` + version + `", "target": "x86", "subtarget": "64", "board": "generic", "packages": ["nano"]}`
	var got answer2018
	resp, text := s.get(t, http.MethodPost, "/api/upgrade-request", strings.NewReader(body))
	if resp.StatusCode != http.StatusAccepted || json.Unmarshal(text, &got) != nil || len(got.RequestHash) != 64 {
		t.Fatalf("the request is answered by %s: %s", resp.Status, text)
	}
	hash := got.RequestHash
	within(t, buildTime, "the first build", func() (bool, string) {
		resp, text = s.get(t, http.MethodGet, "/api/upgrade-request/"+hash, nil)
		return resp.StatusCode == http.StatusOK, resp.Status + " " + string(text)
	})
	if err := json.Unmarshal(text, &got); err != nil || got.ImageHash == "" || got.RequestHash != hash {
		t.Errorf("the result is %s (%v)", text, err)
	}
	if !strings.HasPrefix(got.Sysupgrade, s.outputs.URL+"/store/"+hash+"/") {
		t.Errorf("the image is to be found at %q", got.Sysupgrade)
	}
	for _, address := range []string{got.Sysupgrade, got.Files, got.Log} {
		if resp, file := s.get(t, http.MethodGet, address, nil); resp.StatusCode != http.StatusOK || len(file) == 0 {
			t.Errorf("%s: %s, %d bytes", address, resp.Status, len(file))
		}
	}
	var byImage answer2018
	if _, text = s.get(t, http.MethodGet, "/api/upgrade-request/"+got.ImageHash, nil); json.Unmarshal(text, &byImage) != nil || byImage != got {
		t.Errorf("asked by its image hash it is %s", text)
	}
	if n := len(s.tasks()); n != 1 {
		t.Errorf("%d builders were started for one build", n)
	}
	s.verified(t, s.wait(t, client.Request{Version: version, Target: "x86/64", Profile: "generic", Packages: []string{"nano"}, DiffPackages: true}))
}

// wait is a client's whole work but for the download.
func (s *stack) wait(t *testing.T, r client.Request) client.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), buildTime)
	defer cancel()
	result, err := s.client.Wait(ctx, r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// verified downloads through the CDN and holds everything against the server's
// key, by the library and by the program.
func (s *stack) verified(t *testing.T, result client.Result) string {
	t.Helper()
	dir := t.TempDir()
	if err := s.client.Download(t.Context(), result, dir, nil); err != nil {
		t.Fatal(err)
	}
	report, err := client.Verify(dir, s.keys, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if string(report.Build.RequestHash) != result.RequestHash || !strings.HasSuffix(report.Build.Result.Prefix, result.BinDir+"/") {
		t.Errorf("what was verified is %s in %s, the answer names %s in %s", report.Build.RequestHash, report.Build.Result.Prefix, result.RequestHash, result.BinDir)
	}
	out, err := exec.Command(filepath.Join(root, "sysup"), "verify", "--key", s.key, dir).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "verified") {
		t.Errorf("sysup verify: %v\n%s", err, out)
	}
	return dir
}

func (s *stack) today(t *testing.T) {
	r := request("generic", "htop", "-firewall4")
	result := s.wait(t, r)
	if result.Manifest["htop"] == "" || result.Manifest["firewall4"] != "" {
		t.Errorf("the manifest is %v", result.Manifest)
	}
	dir := s.verified(t, result)
	// The chain is worth something only if it breaks.
	image := filepath.Join(dir, result.Images[0].Name)
	if err := os.WriteFile(image, []byte("another image"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Verify(dir, s.keys, time.Now()); err == nil {
		t.Error("a forged image is verified")
	}
	if again := s.wait(t, r); again.BinDir != result.BinDir {
		t.Errorf("the same request is answered by %s, before by %s", again.BinDir, result.BinDir)
	}
}

// headers are those that browsers and caches go by. The origins behind the CDN
// differ, so each behaviour is asked.
func (s *stack) headers(t *testing.T) {
	result := s.wait(t, request("generic", "htop", "-firewall4"))
	image, doubled := "/store/"+result.BinDir+"/"+result.Images[0].Name, "//store/"+result.BinDir+"/"+result.Images[0].Name
	for _, c := range []struct {
		method, path string
		status       int
		cache        string
		bucket       bool
	}{
		{"GET", image, 200, build.CacheForever, true},
		{"HEAD", image, 200, build.CacheForever, true},
		{"GET", doubled, 200, build.CacheForever, true},
		{"GET", "/store/" + result.BinDir + "/build.json", 200, build.CacheForever, true},
		{"GET", "/store/" + result.BinDir + "/no-such-file", 404, "", true},
		{"GET", "/keys/server.pub", 200, build.CacheBriefly, true},
		{"GET", "//keys/server.pub", 200, build.CacheBriefly, true},
		{"GET", "/json/v1/overview.json", 200, build.CacheBriefly, true},
		{"GET", "//json/v1/latest.json", 200, build.CacheBriefly, true},
		{"GET", "/json/v1/branches.json", 200, build.CacheBriefly, true},
		{"GET", "/json/v1/releases/" + version + "/targets/x86/64/generic.json", 200, build.CacheBriefly, true},
		{"HEAD", "/json/v1/releases/" + version + "/targets/x86/64/generic.json", 200, build.CacheBriefly, true},
		{"GET", "//json/v1/releases/" + version + "/targets/x86/64/index.json?1696506154265", 200, build.CacheBriefly, true},
		{"GET", "/json/v1/releases/" + version + "/targets/x86/64/nothing-of-this.xml", 404, build.CacheNever, true},
		{"GET", "/api/v1/overview", 200, build.CacheBriefly, false},
		{"GET", "/api/v1/build/" + result.RequestHash, 200, build.CacheNever, false},
		{"HEAD", "/api/v1/build/" + result.RequestHash, 200, build.CacheNever, false},
		{"GET", "/api/v1/build/" + strings.Repeat("0", 64), 404, build.CacheNever, false},
		{"GET", "/no/such/page", 404, build.CacheNever, false},
		{"GET", "/catalog/.index", 404, build.CacheNever, false},
		{"GET", "/imagebuilder/", 404, build.CacheNever, false},
		{"GET", "/readyz", 200, build.CacheNever, false},
	} {
		resp, body := s.get(t, c.method, c.path, nil)
		origins, cache := resp.Header.Values("Access-Control-Allow-Origin"), resp.Header.Get("Cache-Control")
		if resp.StatusCode != c.status || cache != c.cache || !slices.Equal(origins, []string{"*"}) {
			t.Errorf("%s %s: %s, Cache-Control %q, Access-Control-Allow-Origin %q; want %d, %q, *", c.method, c.path, resp.Status, cache, origins, c.status, c.cache)
		}
		if sandboxed := resp.Header.Get("Content-Security-Policy") != ""; sandboxed != c.bucket {
			t.Errorf("%s %s: answered by the bucket: %t, want %t", c.method, c.path, sandboxed, c.bucket)
		}
		if c.method == http.MethodHead && len(body) > 0 {
			t.Errorf("%s %s has a body", c.method, c.path)
		}
	}
	if _, stored := s.get(t, "GET", "/json/v1/overview.json", nil); !bytes.Contains(stored, []byte(`"`+version+`"`)) {
		t.Errorf("the overview lacks version %s: %s", version, stored)
	}
}

// twice has a build delivered three times while it is under way and two
// builders are there, the second one started because of the backlog.
func (s *stack) twice(t *testing.T) {
	g := s.upstream.shut()
	held := s.submit(t, request(slow, "nano"))
	g.reached(t)
	before := len(s.tasks())
	for range 2 {
		if err := s.queue.Send(t.Context(), build.ID(held.RequestHash), build.ClassInteractive, ""); err != nil {
			t.Fatal(err)
		}
	}
	var backlog []client.Request
	for _, name := range []string{"jansson", "vim", "tmux", "iperf3"} {
		backlog = append(backlog, request("generic", name))
		s.submit(t, backlog[len(backlog)-1])
	}
	s.keepHouse()
	for _, r := range backlog { // by the second builder: the first one is held
		s.wait(t, r)
	}
	if n := len(s.tasks()) - before; n != 1 {
		t.Errorf("%d more builders were started for five builds, want 1", n)
	}
	// Received and left alone: a builder deletes only what it holds or what has ended.
	within(t, soon, "all three messages are in flight", func() (bool, string) {
		visible, hidden := s.messages(t, s.outputs.Queue)
		return hidden >= 3, fmt.Sprintf("%d visible, %d hidden", visible, hidden)
	})
	if rec := s.record(t, held.RequestHash); rec.State != build.Building || rec.Attempts != 1 {
		t.Errorf("the build is %s in attempt %d while its builder lives", rec.State, rec.Attempts)
	}
	g.release()
	result := s.wait(t, request(slow, "nano"))
	if attempts := s.attempts(t, held.RequestHash); len(attempts) != 1 || attempts[0] != result.BinDir {
		t.Errorf("the attempts %q left files, want %s alone", attempts, result.BinDir)
	}
	s.verified(t, result)
}

func (s *stack) submit(t *testing.T, r client.Request) client.Status {
	t.Helper()
	status, err := s.client.Submit(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// attempts are the folders that hold files of the build, as bin_dir names them.
func (s *stack) attempts(t *testing.T, hash string) (list []string) {
	t.Helper()
	for _, prefix := range []string{"store/" + hash + "/", "store/private/" + hash + "/"} {
		for info, err := range s.objects.List(t.Context(), prefix) {
			if err != nil {
				t.Fatal(err)
			}
			folder, _ := strings.CutPrefix(filepath.Dir(info.Key), "store/")
			if !slices.Contains(list, folder) {
				list = append(list, folder)
			}
		}
	}
	return list
}

// messages counts those in a queue.
func (s *stack) messages(t *testing.T, url string) (visible, hidden int) {
	t.Helper()
	out, err := sqs.NewFromConfig(s.config).GetQueueAttributes(t.Context(), &sqs.GetQueueAttributesInput{
		QueueUrl: &url, AttributeNames: []sqstypes.QueueAttributeName{"ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"},
	})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Sscan(out.Attributes["ApproximateNumberOfMessages"], &visible)
	fmt.Sscan(out.Attributes["ApproximateNumberOfMessagesNotVisible"], &hidden)
	return visible, hidden
}

// killed kills a builder in the middle of a build and returns that build.
func (s *stack) killed(t *testing.T) client.Status {
	g := s.upstream.shut()
	status := s.submit(t, request(slow, "htop"))
	g.reached(t)
	rec := s.record(t, status.RequestHash)
	if rec.State != build.Building || rec.Worker == "" {
		t.Fatalf("the build is %s of %q", rec.State, rec.Worker)
	}
	s.kill(s.of(rec.Worker))
	return status
}

// takenOver waits for the dead builder's lease to end, as nobody may touch the
// build before, and then for another builder.
func (s *stack) takenOver(t *testing.T, status client.Status) {
	lost := s.record(t, status.RequestHash)
	for {
		rec := s.record(t, status.RequestHash)
		if rec.Attempt != lost.Attempt {
			t.Fatal("the build was taken over although its lease had not ended")
		}
		if !rec.Leased(build.Now()) {
			break
		}
		time.Sleep(time.Second)
	}
	s.keepHouse()
	result := s.wait(t, request(slow, "htop"))
	rec := s.record(t, status.RequestHash)
	if rec.Attempts != 2 || rec.Attempt == lost.Attempt {
		t.Errorf("it was done in attempt %d, want 2", rec.Attempts)
	}
	if attempts := s.attempts(t, status.RequestHash); !slices.Equal(attempts, []string{result.BinDir}) {
		t.Errorf("the attempts %q left files, want %s alone", attempts, result.BinDir)
	}
	s.verified(t, result)
}

// poison sends what is no build and returns it.
func (s *stack) poison(t *testing.T) string {
	t.Helper()
	body := "$(reboot) " + rand.Text()
	_, err := sqs.NewFromConfig(s.config).SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: &s.outputs.Queue, MessageBody: &body})
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// drained waits until the builders have given the message up, and looks that
// the housekeeper takes it away.
func (s *stack) drained(t *testing.T, poison string) {
	within(t, buildTime, "the message is among the dead letters", func() (bool, string) {
		visible, hidden := s.messages(t, s.outputs.DeadLetters)
		return visible+hidden == 1, fmt.Sprintf("%d visible, %d hidden", visible, hidden)
	})
	s.keepHouse()
	if visible, hidden := s.messages(t, s.outputs.DeadLetters); visible+hidden != 0 {
		t.Errorf("after the housekeeper there are %d dead letters, and %d hidden", visible, hidden)
	}
	logs, err := s.logs()
	if err != nil || strings.Contains(logs, poison) || !strings.Contains(logs, "is not the ID of a build") {
		t.Error("the logs have to say that there was such a message, and not what it holds")
	}
}

// expired lets a result's time be over: it is gone at once, whether or not
// anybody has cleaned up, and can be built anew.
func (s *stack) expired(t *testing.T) {
	r := request("generic", "babeld")
	old := s.wait(t, r)
	s.expire(t, old.RequestHash)
	status, err := s.status(t, old.RequestHash)
	if e, ok := errors.AsType[*client.Error](err); !ok || e.Status != http.StatusNotFound {
		t.Errorf("an expired build is answered as %+v (%v), want 404", status, err)
	}
	if status := s.submit(t, r); status.Code != http.StatusAccepted || status.RequestHash != old.RequestHash {
		t.Errorf("asked for again it is answered by %d for %s", status.Code, status.RequestHash)
	}
	result := s.wait(t, r)
	if result.BinDir == old.BinDir {
		t.Error("it was not built anew")
	}
	s.verified(t, result)
	s.expire(t, old.RequestHash)
	s.keepHouse()
	if attempts := s.attempts(t, old.RequestHash); slices.Contains(attempts, result.BinDir) {
		t.Error("the housekeeper left the files of an expired build")
	}
	if _, _, err := s.objects.Open(t.Context(), build.ImageIndex(result.ImageHash)); !errors.Is(err, build.ErrNotFound) {
		t.Errorf("an expired build is still in the index: %v", err)
	}
}

// expire moves the end of a record's life to a moment ago.
func (s *stack) expire(t *testing.T, hash string) {
	t.Helper()
	old := s.record(t, hash)
	over := old
	over.ExpiresAt = build.Now().Add(-time.Second)
	over.DueAt = over.ExpiresAt
	if err := s.records.Replace(t.Context(), old, over); err != nil {
		t.Fatal(err)
	}
}

// stale is what a builder leaves that died long ago, with its message: a
// record under a lease that has ended.
func (s *stack) stale(t *testing.T) {
	plan := s.record(t, s.wait(t, request("generic", "htop", "-firewall4")).RequestHash).Plan
	plan.Add = []string{"wget-ssl"}
	id := plan.ID(nil)
	rec := build.NewRecord(id, plan, build.Request{Version: version, Target: plan.Target, Profile: plan.Profile, Packages: []string{"wget-ssl"}}, 1, build.Now().Add(-time.Hour))
	rec.Uncounted = true
	rec = rec.Claim("a-ghost", build.NewAttempt(), build.Now().Add(-5*time.Minute))
	if err := s.records.Create(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	s.keepHouse()
	within(t, buildTime, "the build of the ghost", func() (bool, string) {
		status, err := s.status(t, string(id))
		return err == nil && status.Done(), fmt.Sprintf("%+v (%v)", status, err)
	})
	if got := s.record(t, string(id)); got.Attempts != 2 || got.Attempt == rec.Attempt {
		t.Errorf("it was done in attempt %d, want 2", got.Attempts)
	}
}

// private sends a first-boot script and looks for it where it must not be.
func (s *stack) private(t *testing.T) {
	password := rand.Text()
	r := request("generic", "nano")
	r.Defaults = "uci set wireless.key=" + password + "\n"
	public := s.wait(t, request("generic", "nano"))
	result := s.wait(t, r)
	hash := result.RequestHash
	if result.ImageHash != hash || hash == public.RequestHash || result.Request.Defaults != "(private)" || result.BinDir[:8] != "private/" {
		t.Errorf("a private request is answered as %s, image %s, in %s, with the script %q", hash, result.ImageHash, result.BinDir, result.Request.Defaults)
	}
	s.hidden(t, s.verified(t, result), password)
	for _, name := range []string{result.Images[0].Name, "build.json", "sha256sums"} {
		resp, _ := s.get(t, http.MethodGet, "/store/"+result.BinDir+"/"+name, nil)
		if got := resp.Header.Get("Cache-Control"); resp.StatusCode != http.StatusOK || got != build.CacheNever {
			t.Errorf("%s of a private build: %s, Cache-Control %q", name, resp.Status, got)
		}
	}
	if attempts := s.attempts(t, hash); !slices.Equal(attempts, []string{result.BinDir}) {
		t.Errorf("its files are in %q", attempts)
	}
	if _, _, err := s.objects.Open(t.Context(), build.ImageIndex(result.ImageHash)); !errors.Is(err, build.ErrNotFound) {
		t.Errorf("a private build is in the index: %v", err)
	}
	if stored := s.stored(t, hash); !strings.Contains(stored, hash) || strings.Contains(stored, password) {
		t.Errorf("the table holds the script after the build, or not the build: %s", stored)
	}
	logs, err := s.logs()
	if err != nil || !strings.Contains(logs, build.ID(hash).Short()) || strings.Contains(logs, password) || strings.Contains(logs, hash) {
		t.Errorf("the logs have to hold the short name of the build, and neither the script nor the hash that gives access to it (%v)", err)
	}
	s.expire(t, hash)
	s.keepHouse()
	if attempts := s.attempts(t, hash); len(attempts) != 0 {
		t.Errorf("the files of %q are there after their time", attempts)
	}
	resp, _ := s.get(t, http.MethodGet, "/store/"+result.BinDir+"/"+result.Images[0].Name, nil)
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("the image of a private build is answered after its time: %s", resp.Status)
	}
}

var texts = []string{".json", ".log", ".manifest", ".pub", ".sig", "sha256sums"}

// hidden holds that the password is in an image and in no text beside it.
func (s *stack) hidden(t *testing.T, dir, password string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	inImages, inTexts := false, 0
	for _, file := range files {
		content, err := os.ReadFile(filepath.Join(dir, file.Name()))
		if err != nil {
			t.Fatal(err)
		}
		found := bytes.Contains(unpacked(content), []byte(password))
		switch text := slices.ContainsFunc(texts, func(end string) bool { return strings.HasSuffix(file.Name(), end) }); {
		case !text:
			inImages = inImages || found
		case found:
			t.Errorf("the script is in %s", file.Name())
		default:
			inTexts++
		}
	}
	if !inImages || inTexts < len(texts) {
		t.Errorf("the script is in an image: %t; %d texts were searched, want %d or more", inImages, inTexts, len(texts))
	}
}

// unpacked returns content that is not compressed as it is. Behind what is, a
// signature may stand.
func unpacked(content []byte) []byte {
	r, err := gzip.NewReader(bytes.NewReader(content))
	if err != nil {
		return content
	}
	got, err := io.ReadAll(r)
	if err != nil {
		return append(got, content...)
	}
	return got
}

// stored is the item of the table in words, with its body.
func (s *stack) stored(t *testing.T, hash string) string {
	t.Helper()
	out, err := dynamodb.NewFromConfig(s.config).GetItem(t.Context(), &dynamodb.GetItemInput{
		TableName: &s.outputs.Table, Key: map[string]dynamo.AttributeValue{"pk": &dynamo.AttributeValueMemberS{Value: "r#" + hash}}, ConsistentRead: sdk.Bool(true),
	})
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for name, value := range out.Item {
		switch value := value.(type) {
		case *dynamo.AttributeValueMemberS:
			fmt.Fprintf(&all, "%s=%s ", name, value.Value)
		case *dynamo.AttributeValueMemberN:
			fmt.Fprintf(&all, "%s=%s ", name, value.Value)
		case *dynamo.AttributeValueMemberB:
			fmt.Fprintf(&all, "%s=%s ", name, unpacked(value.Value))
		default:
			t.Errorf("the item has the attribute %s, a %T", name, value)
		}
	}
	return all.String()
}

// settled holds that nothing waits, nothing runs and no message circulates
// when all is done.
func (s *stack) settled(t *testing.T) {
	s.keepHouse()
	board, err := s.records.Board(t.Context(), "", build.Change{})
	if err != nil || board.Pending() != 0 {
		t.Errorf("%d builds are pending by the board (%v): %v", board.Pending(), err, board)
	}
	if n, err := s.records.Pending(t.Context()); n != 0 || err != nil {
		t.Errorf("%d builds are pending by the table (%v)", n, err)
	}
	// What is hidden comes back within the visibility time and is deleted then.
	within(t, 2*soon, "the queue is empty", func() (bool, string) {
		visible, hidden := s.messages(t, s.outputs.Queue)
		return visible+hidden == 0, fmt.Sprintf("%d visible, %d hidden", visible, hidden)
	})
	if visible, hidden := s.messages(t, s.outputs.DeadLetters); visible+hidden != 0 {
		t.Errorf("%d dead letters are left", visible+hidden)
	}
}
