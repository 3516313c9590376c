// Package awstest starts what the AWS drivers are tested against: DynamoDB
// Local, ElasticMQ (SQS) and versitygw (S3), each once per test process, on a
// free port of 127.0.0.1, when a test first asks for it. scripts/engines
// installs them; one that is missing fails the test.
//
// Nothing of this belongs into a product.
package awstest

import (
	"context"
	"crypto/rand"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

// What the engines are addressed with. Only versitygw looks at the keys, and it
// checks every signature.
const (
	Region    = "us-east-1"
	AccessKey = "AKIDENGINES"
	SecretKey = "a-secret-of-the-engines"
)

var (
	dynamoDB = engine{folder: "dynamodb", command: func(folder, _, port string) []string {
		lib := filepath.Join(folder, "lib")
		return java("-Djava.library.path="+lib, "-cp", lib+":"+lib+"/*", "Loopback",
			"-inMemory", "-sharedDb", "-disableTelemetry", "-port", port)
	}}
	elasticMQ = engine{folder: "elasticmq", command: func(folder, _, port string) []string {
		return java("-Drest-sqs.bind-hostname=127.0.0.1", "-Drest-sqs.bind-port="+port,
			"-Dnode-address.host=127.0.0.1", "-Dnode-address.port="+port, "-Drest-stats.enabled=false",
			"-cp", filepath.Join(folder, "lib", "*"), "org.elasticmq.server.Main")
	}}
	versitygw = engine{
		folder: "versitygw",
		command: func(folder, scratch, port string) []string {
			return []string{filepath.Join(folder, "versitygw"), "--quiet", "--port", "127.0.0.1:" + port, "--region", Region, "posix", scratch}
		},
		environ: []string{"ROOT_ACCESS_KEY=" + AccessKey, "ROOT_SECRET_KEY=" + SecretKey},
	}
)

// java starts faster and smaller with these.
func java(args ...string) []string {
	return append([]string{"java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m"}, args...)
}

// DynamoDB returns the endpoint of DynamoDB Local.
func DynamoDB(t testing.TB) string { return dynamoDB.url(t) }

// SQS returns the endpoint of ElasticMQ.
func SQS(t testing.TB) string { return elasticMQ.url(t) }

// S3 returns the endpoint of versitygw. Its buckets are in paths, not in host
// names.
func S3(t testing.TB) string { return versitygw.url(t) }

// Environment starts all three engines and returns the variables by which the
// AWS SDK of a process finds them, as NAME=value.
func Environment(t testing.TB) []string {
	return []string{
		"AWS_REGION=" + Region, "AWS_ACCESS_KEY_ID=" + AccessKey, "AWS_SECRET_ACCESS_KEY=" + SecretKey,
		"AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null",
		"AWS_ENDPOINT_URL_DYNAMODB=" + DynamoDB(t), "AWS_ENDPOINT_URL_SQS=" + SQS(t), "AWS_ENDPOINT_URL_S3=" + S3(t),
	}
}

// Config is a configuration of the AWS SDK with the engines' keys, to which a
// test may add its middleware before it makes a client.
func Config(endpoint string) aws.Config {
	return aws.Config{
		Region:       Region,
		Credentials:  credentials.NewStaticCredentialsProvider(AccessKey, SecretKey, ""),
		BaseEndpoint: aws.String(endpoint),
	}
}

// DynamoDBClient talks to DynamoDB Local.
func DynamoDBClient(t testing.TB) *dynamodb.Client {
	return dynamodb.NewFromConfig(Config(DynamoDB(t)))
}

// SQSClient talks to ElasticMQ.
func SQSClient(t testing.TB) *sqs.Client { return sqs.NewFromConfig(Config(SQS(t))) }

// S3Client talks to versitygw.
func S3Client(t testing.TB) *s3.Client {
	return s3.NewFromConfig(Config(S3(t)), func(o *s3.Options) { o.UsePathStyle = true })
}

// Name is a name that no other table, queue or bucket has.
func Name() string { return "t-" + strings.ToLower(rand.Text()) }

// Table makes an empty table by create, which is the driver's, and returns its
// name. It goes with the test.
func Table(t testing.TB, create func(context.Context, *dynamodb.Client, string) error) string {
	t.Helper()
	client, name := DynamoDBClient(t), Name()
	if err := create(t.Context(), client, name); err != nil {
		t.Fatalf("create the table %s: %v", name, err)
	}
	clean(t, "table "+name, func(ctx context.Context) error {
		_, err := client.DeleteTable(ctx, &dynamodb.DeleteTableInput{TableName: &name})
		return err
	})
	return name
}

// Queue makes an empty queue with a dead-letter queue behind it and returns
// their URLs. A message is hidden for visibility (whole seconds) when received
// and becomes a dead letter when it would be received more than receives times.
// They go with the test.
func Queue(t testing.TB, visibility time.Duration, receives int) (url, deadLetters string) {
	t.Helper()
	name := Name()
	deadLetters = makeQueue(t, name+"-dead", nil)
	arn := fmt.Sprintf("arn:aws:sqs:%s:000000000000:%s-dead", Region, name)
	return makeQueue(t, name, map[string]string{
		string(types.QueueAttributeNameVisibilityTimeout): fmt.Sprint(int(visibility / time.Second)),
		string(types.QueueAttributeNameRedrivePolicy):     fmt.Sprintf(`{"deadLetterTargetArn":%q,"maxReceiveCount":%d}`, arn, receives),
	}), deadLetters
}

func makeQueue(t testing.TB, name string, attributes map[string]string) string {
	t.Helper()
	client := SQSClient(t)
	made, err := client.CreateQueue(t.Context(), &sqs.CreateQueueInput{QueueName: &name, Attributes: attributes})
	if err != nil {
		t.Fatalf("create the queue %s: %v", name, err)
	}
	clean(t, "queue "+name, func(ctx context.Context) error {
		_, err := client.DeleteQueue(ctx, &sqs.DeleteQueueInput{QueueUrl: made.QueueUrl})
		return err
	})
	return *made.QueueUrl
}

// Bucket makes an empty bucket and returns its name. Its objects go with the
// test process.
func Bucket(t testing.TB) string {
	t.Helper()
	name := Name()
	if _, err := S3Client(t).CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &name}); err != nil {
		t.Fatalf("create the bucket %s: %v", name, err)
	}
	return name
}

// clean removes something after the test, whose own context has ended by then.
func clean(t testing.TB, what string, remove func(context.Context) error) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := remove(ctx); err != nil {
			t.Errorf("remove the %s: %v", what, err)
		}
	})
}
