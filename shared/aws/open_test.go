package aws

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

var goodSettings = Settings{
	Table: "sysup-records", QueueURL: "https://sqs.eu-central-1.amazonaws.com/123456789012/sysup", DeadLettersURL: "http://127.0.0.1:9324/000000000000/dead",
	Bucket: "sysup.bucket-1", RequestSecret: "ssm:/sysup/main/request-secret", ServerKey: "kms:alias/sysup", Certifier: "lambda:sysup-certifier",
	Cluster: "sysup", TaskDefinition: "arn:aws:ecs:eu-central-1:123456789012:task-definition/sysup:3", Subnets: []string{"subnet-0a1b", "subnet-2"}, SecurityGroup: "sg-0a1b",
}

// TestSettings changes one setting at a time.
func TestSettings(t *testing.T) {
	for _, good := range []Settings{{}, goodSettings, {ServerKey: "file:/etc/sysup/key", Certifier: "https://sysup.example:8443/certify"}} {
		if err := good.Validate(); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
	for _, test := range []struct {
		key    string
		change func(*Settings)
		want   []string
	}{
		{"SYSUP_TABLE", func(s *Settings) { s.Table = "a b" }, []string{"3 to 255", `"a b"`}},
		{"SYSUP_TABLE", func(s *Settings) { s.Table = "" }, []string{`""`}},
		{"SYSUP_BUCKET", func(s *Settings) { s.Bucket = "Upper" }, []string{"lower-case", `"Upper"`}},
		{"SYSUP_BUCKET", func(s *Settings) { s.Bucket = "" }, []string{`""`}},
		{"SYSUP_QUEUE_URL", func(s *Settings) { s.QueueURL = "sysup" }, []string{"address of a queue", `"sysup"`}},
		{"SYSUP_QUEUE_URL", func(s *Settings) { s.QueueURL = "" }, []string{`""`}},
		{"SYSUP_QUEUE_URL", func(s *Settings) { s.QueueURL = "https://sqs.example/" }, nil},
		{"SYSUP_DEAD_LETTERS_URL", func(s *Settings) { s.DeadLettersURL = "ftp://x/y" }, nil},
		{"SYSUP_DEAD_LETTERS_URL", func(s *Settings) { s.DeadLettersURL = "https://x/" + strings.Repeat("y", 600) }, nil},
		{"SYSUP_DEAD_LETTERS_URL", func(s *Settings) { s.DeadLettersURL = s.QueueURL }, []string{"another queue", `"https://sqs.eu`}},
		{"SYSUP_REQUEST_SECRET", func(s *Settings) { s.RequestSecret = "the secret itself" }, []string{"ssm:/PATH"}},
		{"SYSUP_REQUEST_SECRET", func(s *Settings) { s.RequestSecret = "kms:alias/x" }, nil},
		{"SYSUP_REQUEST_SECRET", func(s *Settings) { s.RequestSecret = "ssm:/" + strings.Repeat("y", 600) }, nil},
		{"SYSUP_SERVER_KEY", func(s *Settings) { s.ServerKey = "/etc/key" }, []string{"kms:KEY"}},
		{"SYSUP_CERTIFIER", func(s *Settings) { s.Certifier = "certifier" }, []string{"lambda:FUNCTION"}},
		{"SYSUP_CLUSTER", func(s *Settings) { s.Cluster = "" }, nil},
		{"SYSUP_TASK_DEFINITION", func(s *Settings) { s.TaskDefinition = "" }, nil},
		{"SYSUP_SECURITY_GROUP", func(s *Settings) { s.SecurityGroup = "default" }, []string{"sg-0123", `"default"`}},
		{"SYSUP_SUBNETS", func(s *Settings) { s.Subnets = nil }, []string{"it has 0"}},
		{"SYSUP_SUBNETS", func(s *Settings) { s.Subnets = []string{"subnet-1", "x"} }, []string{"subnet-0123", `"x"`}},
	} {
		s := goodSettings
		test.change(&s)
		err := s.Validate()
		if err == nil || !contains(err.Error(), append(test.want, test.key)...) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: the error is %v", test.key, err)
		}
		if _, openErr := Open(t.Context(), s, quietLog()); openErr == nil {
			t.Errorf("%s: Open takes it", test.key)
		}
	}
}

// TestSettingsTags lets the flags and variables be read from the fields.
func TestSettingsTags(t *testing.T) {
	fields := reflect.TypeFor[Settings]()
	for i := range fields.NumField() {
		tag := fields.Field(i).Tag
		if !strings.HasPrefix(tag.Get("env"), "SYSUP_") || tag.Get("help") == "" {
			t.Errorf("%s has no variable or no help", fields.Field(i).Name)
		}
	}
}

// TestOpen reads the SDK's settings from the environment, in both ways.
func TestOpen(t *testing.T) {
	for name, open := range map[string]func(context.Context, Settings, *slog.Logger) (*Cloud, error){"Open": Open, "OpenLambda": OpenLambda} {
		t.Run(name, func(t *testing.T) {
			for variable, value := range map[string]string{
				"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_REGION": "", "AWS_DEFAULT_REGION": "",
				"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_SESSION_TOKEN": "token",
			} {
				t.Setenv(variable, value)
			}
			if _, err := open(t.Context(), goodSettings, quietLog()); err == nil || !contains(err.Error(), "AWS_REGION", `""`) {
				t.Errorf("without a region: %v", err)
			}
			if _, err := open(t.Context(), Settings{Bucket: "Upper"}, quietLog()); err == nil || !contains(err.Error(), "SYSUP_BUCKET") {
				t.Errorf("with a wrong setting: %v", err)
			}
			t.Setenv("AWS_REGION", "eu-central-1")
			wantEndpoints(t, open, "", "")
			t.Setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:7070")
			wantEndpoints(t, open, "http://127.0.0.1:7070", "")
			t.Setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:4566")
			wantEndpoints(t, open, "http://127.0.0.1:7070", "http://127.0.0.1:4566")
		})
	}
	t.Setenv("AWS_REGION", "eu-central-1")
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	if _, err := OpenLambda(t.Context(), goodSettings, quietLog()); err == nil || !contains(err.Error(), "AWS_ACCESS_KEY_ID") {
		t.Errorf("without credentials: %v", err)
	}
}

func wantEndpoints(t *testing.T, open func(context.Context, Settings, *slog.Logger) (*Cloud, error), s3, sqs string) {
	t.Helper()
	cloud, err := open(t.Context(), goodSettings, quietLog())
	if err != nil {
		t.Fatal(err)
	}
	objects, queue := cloud.Objects().client.Options(), cloud.Queue().client.Options()
	if got := sdk.ToString(objects.BaseEndpoint); got != s3 || objects.UsePathStyle != (s3 != "") {
		t.Errorf("the endpoint of S3 is %q, not %q; in the path: %v", got, s3, objects.UsePathStyle)
	}
	if got := sdk.ToString(queue.BaseEndpoint); got != sqs || queue.Region != "eu-central-1" {
		t.Errorf("the endpoint of SQS is %q, not %q", got, sqs)
	}
	keys, err := queue.Credentials.Retrieve(t.Context())
	if err != nil || keys.AccessKeyID != "AKID" || keys.SecretAccessKey != "secret" || keys.SessionToken != "token" {
		t.Errorf("the credentials are those of %q (%v)", keys.AccessKeyID, err)
	}
}

// TestHanging gets no answer at first: each attempt has its own limit, and the
// caller's context ends all.
func TestHanging(t *testing.T) {
	const url = "http://127.0.0.1:9/q"
	send := func(ctx context.Context, c *Cloud) error {
		return c.Queue().Send(ctx, newID(), build.ClassBulk, "")
	}
	for _, test := range []struct {
		name     string
		hangs    int
		deadline time.Duration
		call     func(context.Context, *Cloud) error
		most     time.Duration
		good     bool
	}{
		{"one attempt hangs", 1, 12 * time.Second, send, smallTime + backoff, true},
		{"all attempts hang", 99, time.Hour, send, attempts * (smallTime + backoff), false},
		{"the caller is in a hurry", 99, time.Second, send, time.Second, false},
		{"an upload has longer", 1, time.Hour, func(ctx context.Context, c *Cloud) error {
			return c.Objects().Put(ctx, "k", strings.NewReader("x"), build.PolicyText)
		}, uploadTime + backoff, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			calls := 0
			cloud := answering(func(r *http.Request) (*http.Response, error) {
				if calls++; calls <= test.hangs {
					<-r.Context().Done()
					return nil, r.Context().Err()
				}
				return reply(r, 200, "{}"), nil
			}, Settings{QueueURL: url, Bucket: "bucket"})
			start := time.Now()
			err := test.call(within(t, test.deadline), cloud)
			if took := time.Since(start); (err == nil) != test.good || took > test.most {
				t.Errorf("%s: it returns %v after %v", test.name, err, took)
			}
			if !test.good && test.deadline < smallTime && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: the error is %v", test.name, err)
			}
		})
	}
}
