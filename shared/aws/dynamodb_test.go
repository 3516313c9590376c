package aws

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/attended-sysupgrade/sysup/shared/aws/awstest"
)

// wire stands between the SDK and DynamoDB: it counts the calls, each try of
// the SDK's retryer for itself, and makes the next ones fail.
type wire struct {
	mu     sync.Mutex
	calls  map[string]int
	faults []tableFault
}

// tableFault is what becomes of one call.
type tableFault struct {
	happens bool      // although reply says otherwise
	reply   replyFunc // nil for the true one
	then    func()    // what others do before the next try
}

type replyFunc func() (*http.Response, error)

// The failures that DynamoDB and the network between know.
var failures = map[string]replyFunc{
	"throttled": answer(400, "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException"),
	"too many":  answer(400, "com.amazon.coral.availability#ThrottlingException"),
	"500":       answer(500, "com.amazonaws.dynamodb.v20120810#InternalServerError"),
	"503":       answer(503, "com.amazon.coral.service#ServiceUnavailableException"),
	"connection reset": func() (*http.Response, error) {
		return nil, &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}
	},
}

func answer(status int, kind string) replyFunc {
	return func() (*http.Response, error) {
		return &http.Response{
			StatusCode: status, Header: http.Header{"Content-Type": {"application/x-amz-json-1.0"}},
			Body: io.NopCloser(strings.NewReader(fmt.Sprintf(`{"__type":%q,"message":"injected"}`, kind))),
		}, nil
	}
}

// join is an API option of the SDK.
func (w *wire) join(stack *middleware.Stack) error {
	return stack.Deserialize.Add(middleware.DeserializeMiddlewareFunc("Wire", w.handle), middleware.After)
}

func (w *wire) handle(ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler) (
	out middleware.DeserializeOutput, metadata middleware.Metadata, err error,
) {
	f := w.next(awsmiddleware.GetOperationName(ctx))
	if f.happens || f.reply == nil {
		out, metadata, err = next.HandleDeserialize(ctx, in)
	}
	if f.reply != nil {
		if raw, ok := out.RawResponse.(*smithyhttp.Response); ok && err == nil {
			raw.Body.Close()
		}
		resp, failed := f.reply()
		out.RawResponse, err = nil, failed
		if failed != nil {
			err = &smithyhttp.RequestSendError{Err: failed}
		} else {
			out.RawResponse = &smithyhttp.Response{Response: resp}
		}
	}
	if f.then != nil {
		f.then()
	}
	return out, metadata, err
}

func (w *wire) next(operation string) tableFault {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.calls == nil {
		w.calls = map[string]int{}
	}
	w.calls[operation]++
	if len(w.faults) == 0 {
		return tableFault{}
	}
	f := w.faults[0]
	w.faults = w.faults[1:]
	return f
}

// fail makes the next calls fail, one each.
func (w *wire) fail(faults ...tableFault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = faults
}

// spent returns the calls since it was asked last.
func (w *wire) spent() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	calls := w.calls
	w.calls = nil
	return calls
}

const testTries = 3

// wiredRecords are records in a fresh table whose client goes over a wire.
// The SDK tries three times and does not wait in between.
func wiredRecords(t testing.TB) (*Records, *wire) {
	t.Helper()
	w := &wire{}
	config := awstest.Config(awstest.DynamoDB(t))
	config.APIOptions = append(config.APIOptions, w.join)
	config.Retryer = func() sdk.Retryer {
		return retry.NewStandard(func(o *retry.StandardOptions) {
			o.MaxAttempts, o.RateLimiter = testTries, ratelimit.None
			o.Backoff = retry.BackoffDelayerFunc(func(int, error) (time.Duration, error) { return 0, nil })
		})
	}
	return NewRecords(dynamodb.NewFromConfig(config), awstest.Table(t, CreateTable)), w
}

func deleteItem(ctx context.Context, r *Records, key string) error {
	_, err := r.client.DeleteItem(ctx, &dynamodb.DeleteItemInput{TableName: &r.table, Key: item{attrKey: text(key)}})
	return err
}
