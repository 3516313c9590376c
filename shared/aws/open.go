// Package aws has the drivers for AWS and for engines that speak its
// protocols: records in DynamoDB, the queue in SQS, objects in S3, secrets in
// SSM, a key in KMS, the certifier in Lambda, builders in ECS.
package aws

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/smithy-go/logging"
	"github.com/aws/smithy-go/middleware"
)

// Cloud is what the settings name. Its methods make their clients when they
// are called, so that a program which does not start tasks does not hold the
// code for it either.
type Cloud struct {
	settings Settings
	config   sdk.Config
	log      *slog.Logger
}

// The patience with AWS. An API call has about ten seconds for everything, so a
// hung connection is given up early and tried anew.
const (
	connectTime = 2 * time.Second
	tlsTime     = 3 * time.Second
	headerTime  = 30 * time.Second // above the long poll
	smallTime   = 3 * time.Second
	uploadTime  = 2 * time.Minute
	attempts    = 4
	backoff     = 2 * time.Second
)

// Open checks the settings and reads the SDK's own ones from the environment:
// region, credentials, endpoints. It calls nobody.
func Open(ctx context.Context, settings Settings, log *slog.Logger) (*Cloud, error) {
	if err := settings.Validate(); err != nil {
		return nil, err
	}
	cfg, err := config.LoadDefaultConfig(ctx, config.WithHTTPClient(httpClient()), config.WithLogger(sdkLog(log)))
	if err != nil {
		return nil, fmt.Errorf("read the AWS settings from the environment: %w", err)
	}
	if cfg.Region == "" {
		return nil, fmt.Errorf(`AWS_REGION has to be the name of a region, like eu-central-1 (with other engines any name will do), it is ""`)
	}
	return New(cfg, settings, log), nil
}

// OpenLambda is Open for the functions: Lambda has the region and the
// credentials in variables, so what finds them elsewhere, two megabytes of code,
// is left out of the binary.
func OpenLambda(_ context.Context, settings Settings, log *slog.Logger) (*Cloud, error) {
	if err := settings.Validate(); err != nil {
		return nil, err
	}
	for _, key := range []string{"AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} {
		if os.Getenv(key) == "" {
			return nil, fmt.Errorf(`%s has to be set, as Lambda does, it is ""`, key)
		}
	}
	cfg := sdk.Config{
		Region: os.Getenv("AWS_REGION"), HTTPClient: httpClient(), Logger: sdkLog(log), ConfigSources: []any{endpoints{}},
		Credentials: credentials.NewStaticCredentialsProvider(os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_SECRET_ACCESS_KEY"), os.Getenv("AWS_SESSION_TOKEN")),
	}
	if all := os.Getenv("AWS_ENDPOINT_URL"); all != "" {
		cfg.BaseEndpoint = &all
	}
	return New(cfg, settings, log), nil
}

// endpoints are those of AWS_ENDPOINT_URL_<SERVICE>. The SDK's clients look for
// such a method among the sources of their configuration.
type endpoints struct{}

// GetServiceBaseEndpoint is called by the SDK.
func (endpoints) GetServiceBaseEndpoint(_ context.Context, service string) (string, bool, error) {
	value := os.Getenv("AWS_ENDPOINT_URL_" + strings.ToUpper(strings.ReplaceAll(service, " ", "_")))
	return value, value != "", nil
}

// New is a Cloud with that configuration of the SDK, but for the patience and
// the retries, which are its own. The hooks join the stack of each client, so
// that tests can make calls fail.
func New(cfg sdk.Config, settings Settings, log *slog.Logger, hooks ...func(*middleware.Stack) error) *Cloud {
	cfg.Retryer = retryer
	if cfg.HTTPClient == nil {
		cfg.HTTPClient = httpClient()
	}
	// What is inserted last runs first: the limit goes around the hooks, so that
	// what they are slow at counts as the service's time.
	cfg.APIOptions = slices.Concat(cfg.APIOptions, hooks, []func(*middleware.Stack) error{limitAttempts})
	return &Cloud{settings: settings, config: cfg, log: log}
}

// Records are the records in the settings' table.
func (c *Cloud) Records() *Records {
	return NewRecords(c.dynamoDB(), c.settings.Table)
}

func (c *Cloud) dynamoDB() *dynamodb.Client {
	return dynamodb.NewFromConfig(c.config, func(o *dynamodb.Options) {
		// A wrong checksum fails no call: the SDK only writes a warning. It writes
		// one too for each answer of an engine that sends none, and for one cut off.
		o.DisableValidateResponseChecksum = true
	})
}

func httpClient() *awshttp.BuildableClient {
	return awshttp.NewBuildableClient().
		WithDialerOptions(func(d *net.Dialer) { d.Timeout = connectTime }).
		WithTransportOptions(func(t *http.Transport) {
			t.TLSHandshakeTimeout, t.ResponseHeaderTimeout, t.MaxIdleConnsPerHost = tlsTime, headerTime, 32
		})
}

func retryer() sdk.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) { o.MaxAttempts, o.MaxBackoff = attempts, backoff })
}

// sdkLog carries the SDK's few warnings into ours.
func sdkLog(log *slog.Logger) logging.Logger {
	return logging.LoggerFunc(func(_ logging.Classification, format string, v ...any) {
		log.Warn("the AWS SDK says", "message", fmt.Sprintf(format, v...))
	})
}

// patience is how long one attempt of an operation may take, 0 for those that
// only the transport limits.
func patience(operation string) time.Duration {
	switch operation {
	case "ReceiveMessage", "GetObject": // which waits, and whose body comes later
		return 0
	case "PutObject", "UploadPart", "CompleteMultipartUpload":
		return uploadTime
	case "Invoke":
		return 4 * smallTime // with the function's cold start
	}
	return smallTime
}

// limitAttempts gives each attempt its time. The SDK itself has only a limit
// for all attempts together, the context's.
func limitAttempts(stack *middleware.Stack) error {
	return stack.Finalize.Insert(middleware.FinalizeMiddlewareFunc("AttemptLimit", limitAttempt), "Retry", middleware.After)
}

func limitAttempt(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (
	out middleware.FinalizeOutput, metadata middleware.Metadata, err error,
) {
	operation := awsmiddleware.GetOperationName(ctx)
	limit := patience(operation)
	if limit == 0 {
		return next.HandleFinalize(ctx, in)
	}
	attempt, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out, metadata, err = next.HandleFinalize(attempt, in)
	if err != nil && attempt.Err() != nil && ctx.Err() == nil {
		err = &slowError{operation, limit}
	}
	return out, metadata, err
}

// slowError takes the place of the context's error, which would not be tried
// again.
type slowError struct {
	operation string
	limit     time.Duration
}

func (e *slowError) Error() string {
	return fmt.Sprintf("no answer to %s within %v", e.operation, e.limit)
}

// RetryableError is read by the SDK.
func (*slowError) RetryableError() bool { return true }
