package aws

import (
	"bytes"
	"context"
	"hash/crc32"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/aws/awstest"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
)

// TestSDKIsQuiet: the SDK writes no line about what is no fault. Engines may
// leave out the checksum of DynamoDB's answers, with which it would compare
// all the same.
func TestSDKIsQuiet(t *testing.T) {
	t.Parallel()
	answers := map[string]http.HandlerFunc{
		"without a checksum": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "{}") },
		"with one": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Amz-Crc32", strconv.Itoa(int(crc32.ChecksumIEEE([]byte("{}")))))
			io.WriteString(w, "{}")
		},
		"that is an error": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			io.WriteString(w, `{"__type":"com.amazonaws.dynamodb.v20120810#ValidationException","message":"no"}`)
		},
	}
	for name, handler := range answers {
		server := httptest.NewServer(handler)
		t.Cleanup(server.Close)
		wantQuiet(t, "an answer of DynamoDB "+name, server.URL, func(ctx context.Context, c *Cloud) {
			_, _ = c.Records().Get(ctx, buildtest.NewID())
		})
	}
	bucket := awstest.Bucket(t)
	must(t, onEngine(awstest.S3(t), Settings{Bucket: bucket}).Objects().Put(t.Context(), "a", strings.NewReader(strings.Repeat("x", 1<<20)), build.PolicyText))
	for name, read := range map[string]int64{"unread": 0, "half read": 1 << 19, "read": 1 << 21} {
		wantQuiet(t, "an object that is closed "+name, awstest.S3(t), func(ctx context.Context, c *Cloud) {
			c.settings.Bucket = bucket
			r, _, err := c.Objects().Open(ctx, "a")
			must(t, err)
			_, _ = io.CopyN(io.Discard, r, read)
			must(t, r.Close())
			_, _, err = c.Objects().Open(ctx, "b")
			if err == nil {
				t.Error("there is an object b")
			}
		})
	}
}

func wantQuiet(t *testing.T, what, endpoint string, f func(context.Context, *Cloud)) {
	t.Helper()
	var lines bytes.Buffer
	log := slog.New(slog.NewTextHandler(&lines, nil))
	config := awstest.Config(endpoint)
	config.Logger = sdkLog(log)
	f(t.Context(), New(config, Settings{Table: "records"}, log))
	if lines.Len() > 0 {
		t.Errorf("%s: %s", what, &lines)
	}
}
