package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/functions/lambdatest"
	"github.com/attended-sysupgrade/sysup/shared/aws"
	"github.com/attended-sysupgrade/sysup/shared/aws/awstest"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
	"github.com/attended-sysupgrade/sysup/shared/catalog/catalogtest"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// rig is a cloud with a build that was never sent.
type rig struct {
	cloud    *lambdatest.Cloud
	own      *aws.Cloud
	upstream *catalogtest.Upstream
	base     string
	environ  []string
	id       build.ID
	key      usign.PublicKey // the server's
}

const serverPub = "ssm:/sysup/main/server-pub"

func newRig(t *testing.T) *rig {
	t.Helper()
	upstream, err := catalogtest.Sample()
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(upstream)
	t.Cleanup(web.Close)
	server, err := usign.Generate("")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{cloud: lambdatest.NewCloud(t), upstream: upstream, base: web.URL, key: server.Public()}
	r.cloud.SetParameter("/sysup/main/server-pub", string(r.key.Marshal()))
	queue, dead := awstest.Queue(t, time.Minute, 20)
	s := aws.Settings{Table: awstest.Table(t, aws.CreateTable), QueueURL: queue, DeadLettersURL: dead, Bucket: awstest.Bucket(t)}
	r.environ = append(r.cloud.Environ(), "SYSUP_TABLE="+s.Table, "SYSUP_QUEUE_URL="+queue, "SYSUP_DEAD_LETTERS_URL="+dead, "SYSUP_BUCKET="+s.Bucket,
		"SYSUP_SERVER_PUB="+serverPub, "SYSUP_UPSTREAM="+web.URL, "SYSUP_UPSTREAM_KEY="+keyFile(t, upstream),
		"SYSUP_CLUSTER=cluster", "SYSUP_TASK_DEFINITION=builder", "SYSUP_SUBNETS=subnet-1,subnet-2", "SYSUP_SECURITY_GROUP=sg-1", "SYSUP_SPOT=true")
	for _, variable := range awstest.Environment(t) {
		name, value, _ := strings.Cut(variable, "=")
		t.Setenv(name, value)
	}
	if r.own, err = aws.Open(t.Context(), s, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	r.id = r.lose(t)
	r.cloud.Counts()
	return r
}

func keyFile(t *testing.T, upstream *catalogtest.Upstream) string {
	name := t.TempDir() + "/upstream.pub"
	if err := os.WriteFile(name, upstream.Keys()[0].Marshal(), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// lose creates a build that is due, and whose message was never sent.
func (r *rig) lose(t *testing.T) build.ID {
	t.Helper()
	request := build.Request{Version: "24.10.5", Target: "x86/64", Profile: "generic"}
	plan := build.Resolve(&request, build.Facts{Distribution: "OpenWrt", Version: "24.10.5", Target: "x86/64", Profile: "generic", Revision: "r1"}, nil, nil)
	rec := build.NewRecord(plan.ID(nil), plan, request, 1, build.Now().Add(-time.Hour))
	if err := r.own.Records().Create(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	return rec.ID
}

// received is whether the build's message comes.
func (r *rig) received(t *testing.T) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	m, err := r.own.Queue().Receive(ctx)
	return err == nil && m.ID == r.id
}

func TestBinaryKeepsHouse(t *testing.T) {
	r := newRig(t)
	f := lambdatest.Start(t, lambdatest.Build(t, runtime.GOARCH), r.environ...)
	if _, err := f.Call(map[string]any{"source": "aws.events", "detail-type": "Scheduled Event"}); err != nil {
		t.Fatal(err)
	}
	if !r.received(t) {
		t.Error("the build that was due was not sent again")
	}
	if n := r.cloud.Started(); n != 1 {
		t.Errorf("%d builders were started for one build, want 1", n)
	}
	follower, err := catalog.New(catalog.Options{Upstream: r.base, Keys: r.upstream.Keys(), Objects: r.own.Objects(), Follow: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer follower.Close()
	asked := r.upstream.AskedAll().Asked
	overview, err := follower.Overview(t.Context())
	if err != nil || len(overview.Branches) == 0 || r.upstream.AskedAll().Asked != asked {
		t.Errorf("the catalogue is not in the store: %+v (%v)", overview, err)
	}
	if text := r.object(t, "json/v1/latest.json"); !strings.Contains(text, `{"latest":["`) {
		t.Errorf("json/v1/latest.json is %s", text)
	}
	if text := r.object(t, "keys/server.pub"); text != string(r.key.Marshal()) {
		t.Errorf("before any builder was there, keys/server.pub is %s", text)
	}
	for _, want := range []string{`"CatalogueAge":`, `"Pending":1`, `"BuildersAlive":0`, `"DeadLetters":0`, `"_aws":`} {
		if !strings.Contains(f.Output(), want) {
			t.Errorf("the log has no %s: %s", want, f.Output())
		}
	}
	if strings.Contains(f.Output(), string(r.id)) {
		t.Error("the log has the request hash")
	}
}

// object is what the CDN has to serve under the key, "" if nothing.
func (r *rig) object(t *testing.T, key string) string {
	t.Helper()
	content, _, err := r.own.Objects().Open(t.Context(), key)
	if errors.Is(err, build.ErrNotFound) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	text, err := io.ReadAll(content)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestBinaryEndures has one service fail for good: the function reports it, and
// what does not need that service is done.
func TestBinaryEndures(t *testing.T) {
	bootstrap := lambdatest.Build(t, runtime.GOARCH)
	for _, c := range []struct {
		operation  string
		sent       bool
		started    int
		catalogued bool
		keyed      bool
	}{
		{"S3 GET", true, 1, false, false},
		{"S3 PUT", true, 1, false, false},
		{"Query", false, 0, true, true}, // neither what is due is known, nor how much waits
		{"SendMessage", false, 1, true, true},
		{"RunTask", true, 0, true, true},
		{"ListTasks", true, 0, true, true},
		{"GetParameter", true, 1, true, false},
		{"upstream", true, 1, false, true},
	} {
		t.Run(c.operation, func(t *testing.T) {
			r := newRig(t)
			if c.operation == "upstream" {
				r.upstream.SetFault(func(w http.ResponseWriter, _ *http.Request) bool {
					w.WriteHeader(http.StatusInternalServerError)
					return true
				})
			}
			r.cloud.Fail(c.operation, lambdatest.Broken, -1)
			f := lambdatest.Start(t, bootstrap, r.environ...)
			if _, err := f.Call(map[string]any{}); err == nil {
				t.Error("the fault is not reported")
			}
			if r.received(t) != c.sent {
				t.Errorf("sent again: %t, want %t", !c.sent, c.sent)
			}
			if n := r.cloud.Started(); n != c.started {
				t.Errorf("%d builders were started, want %d", n, c.started)
			}
			stored := false
			for info, err := range r.own.Objects().List(t.Context(), "catalog/") {
				stored = stored || err == nil && info.Key == "catalog/.index"
			}
			if stored != c.catalogued {
				t.Errorf("the catalogue was stored: %t, want %t", stored, c.catalogued)
			}
			if keyed := r.object(t, "keys/server.pub") != ""; keyed != c.keyed {
				t.Errorf("the server's key was published: %t, want %t", keyed, c.keyed)
			}
		})
	}
}

func TestWrongSettings(t *testing.T) {
	binary := lambdatest.Build(t, runtime.GOARCH)
	good := map[string]string{
		"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
		"SYSUP_TABLE": "table", "SYSUP_QUEUE_URL": "https://sqs.example/1/q", "SYSUP_BUCKET": "bucket", "SYSUP_SERVER_PUB": serverPub,
	}
	for _, c := range []struct{ key, value, want string }{
		{"SYSUP_TABLE", "", "SYSUP_TABLE has to be"},
		{"SYSUP_MAX_BUILDERS", "-1", "SYSUP_MAX_BUILDERS has to be 0 or more, it is -1"},
		{"SYSUP_SERVER_PUB", "", `SYSUP_SERVER_PUB has to be ssm:/PATH, it is ""`},
		{"SYSUP_SERVER_PUB", "RWQ123", `SYSUP_SERVER_PUB has to be ssm:/PATH, it is "RWQ123"`},
		{"SYSUP_SERVER_PUB", "kms:alias/sysup", `SYSUP_SERVER_PUB has to be ssm:/PATH, it is "kms:alias/sysup"`},
		{"SYSUP_SERVERPUB", "x", "SYSUP_SERVERPUB, which is no setting"},
	} {
		environ := []string{"AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE=/dev/null"}
		for key, value := range good {
			if key != c.key {
				environ = append(environ, key+"="+value)
			}
		}
		output := lambdatest.Refused(t, binary, append(environ, c.key+"="+c.value)...)
		if !strings.Contains(output, "sysup housekeeper: ") || !strings.Contains(output, c.want) {
			t.Errorf("%s=%q: it says %q, want %q", c.key, c.value, output, c.want)
		}
	}
}
