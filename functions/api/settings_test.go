package main

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/functions/lambdatest"
)

// TestMain runs more tests at once than there are processors: they wait more
// than they compute.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// TestWrongSettings starts the binary: it has to end with the key, the rule and
// the value.
func TestWrongSettings(t *testing.T) {
	t.Parallel()
	bootstrap := binary(t)
	good := map[string]string{
		"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "SYSUP_TABLE": "table", "SYSUP_QUEUE_URL": "https://sqs.example/1/q", "SYSUP_BUCKET": "bucket",
		"SYSUP_REQUEST_SECRET": "ssm:/sysup/main/request-secret",
	}
	for _, c := range []struct{ key, value, want string }{
		{"SYSUP_TABLE", "", `SYSUP_TABLE has to be`},
		{"SYSUP_TABLE", "no table", `SYSUP_TABLE has to be the name of a table: 3 to 255 letters, digits, '_', '.' and '-', it is "no table"`},
		{"SYSUP_QUEUE_URL", "queue", `SYSUP_QUEUE_URL has to be the http or https address of a queue, it is "queue"`},
		{"SYSUP_BUCKET", "", `SYSUP_BUCKET has to be`},
		{"SYSUP_REQUEST_SECRET", "", `SYSUP_REQUEST_SECRET has to be set, it is ""`},
		{"SYSUP_REQUEST_SECRET", "hush", `SYSUP_REQUEST_SECRET has to be ssm:/PATH or file:/PATH, it is "hush"`},
		{"SYSUP_MAX_PENDING", "many", `SYSUP_MAX_PENDING has to be a whole number, it is "many"`},
		{"SYSUP_MAX_PENDING", "-1", `SYSUP_MAX_PENDING has to be 0 or more, it is -1`},
		{"SYSUP_BUILDS_PER_DAY", "-5", `SYSUP_BUILDS_PER_DAY has to be 0 or more, it is -5`},
		{"SYSUP_BUILDS_PER_CLIENT", "1.5", `SYSUP_BUILDS_PER_CLIENT has to be a whole number, it is "1.5"`},
		{"SYSUP_MAX_BUILDERS", "99999999999999999999", `SYSUP_MAX_BUILDERS has to be a whole number`},
		{"SYSUP_ALLOW_DEFAULTS", "maybe", `SYSUP_ALLOW_DEFAULTS has to be true or false, it is "maybe"`},
		{"SYSUP_SPOT", "yes", `SYSUP_SPOT has to be true or false, it is "yes"`},
		{"SYSUP_PUBLIC_URL", "example.org", `SYSUP_PUBLIC_URL has to be an http or https address, it is "example.org"`},
		{"SYSUP_REPOSITORY_ALLOW", "https://a.example,nonsense", `SYSUP_REPOSITORY_ALLOW has to be an http or https address, it is "nonsense"`},
		{"SYSUP_UPSTREAM", "ftp://a.example", `SYSUP_UPSTREAM has to be an http or https address, it is "ftp://a.example"`},
		{"SYSUP_UPSTREAM_KEY", "absent.pub", `SYSUP_UPSTREAM_KEY has to be the file of a public key or its base64 line, it is "absent.pub"`},
		{"SYSUP_CLUSTER", "cluster", `SYSUP_TASK_DEFINITION has to be`},
		{"SYSUP_ORIGIN_SECRET", "short", `SYSUP_ORIGIN_SECRET has to have 16 characters or more, it has 5`},
		{"SYSUP_SERVER_KEY", "ssm:/sysup/main/server-key", `SYSUP_SERVER_KEY has to be empty here, it is "ssm:/sysup/main/server-key"`},
		{"SYSUP_SERVER_KEYS", "x", `the environment has SYSUP_SERVER_KEYS, which is no setting of this function`},
	} {
		environ := []string{"AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE=/dev/null", c.key + "=" + c.value}
		for key, value := range good {
			if key != c.key {
				environ = append(environ, key+"="+value)
			}
		}
		output := lambdatest.Refused(t, bootstrap, environ...)
		if !strings.Contains(output, "sysup api: ") || !strings.Contains(output, c.want) {
			t.Errorf("%s=%q: it says %q, want %q", c.key, c.value, output, c.want)
		}
	}
}
