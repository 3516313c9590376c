package awstest

import (
	"bufio"
	"context"
	"net"

	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
)

// The name of an engine in this variable makes the test process one that
// starts the engine and waits for its own death.
const childOf = "AWSTEST_CHILD"

var engines = map[string]*engine{"DynamoDB Local": &dynamoDB, "ElasticMQ": &elasticMQ, "versitygw": &versitygw}

// TestEnginesDieWithTheTests kills a test process in a way that lets it clean
// nothing up. Its engine goes all the same, and the engine's files.
func TestEnginesDieWithTheTests(t *testing.T) {
	if name := os.Getenv(childOf); name != "" {
		os.Stdout.WriteString("endpoint " + engines[name].url(t) + "\n")
		select {}
	}
	for name := range engines {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			scratch := t.TempDir()
			endpoint, child := startChild(t, name, scratch)
			ended := make(chan error, 1)
			if err := answers(endpoint, ended); err != nil {
				t.Fatalf("before: %v", err)
			}
			if err := child.Process.Signal(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			_ = child.Wait()
			for end := time.Now().Add(5 * time.Second); reachable(endpoint) || !isEmpty(t, scratch); time.Sleep(20 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("five seconds after the death of the test process the engine answers: %v; its files are gone: %v", reachable(endpoint), isEmpty(t, scratch))
				}
			}
		})
	}
}

// startChild returns the endpoint of an engine that another test process has
// started.
func startChild(t *testing.T, name, scratch string) (endpoint string, child *exec.Cmd) {
	t.Helper()
	child = exec.Command(os.Args[0], "-test.run=^TestEnginesDieWithTheTests$")
	child.Env = append(os.Environ(), childOf+"="+name, "TMPDIR="+scratch)
	child.Stderr = os.Stderr
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = child.Process.Kill() })
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if endpoint, ok := strings.CutPrefix(lines.Text(), "endpoint "); ok {
			return endpoint, child
		}
	}
	t.Fatalf("the test process ended without an endpoint: %v", child.Wait())
	return "", nil
}

func isEmpty(t *testing.T, folder string) bool {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	return len(entries) == 0
}

func reachable(endpoint string) bool {
	conn, err := net.Dial("tcp", strings.TrimPrefix(endpoint, "http://"))
	if err == nil {
		conn.Close()
	}
	return err == nil
}

func TestMissingEngineIsExplained(t *testing.T) {
	missing := engine{folder: "unheard-of"}
	if err := missing.start(); err == nil || !strings.Contains(err.Error(), "scripts/engines") {
		t.Errorf("the error does not say what to do: %v", err)
	}
}

func TestEngineThatEndsIsReported(t *testing.T) {
	broken := engine{folder: "versitygw", command: func(string, string, string) []string {
		return []string{"sh", "-c", "echo no sense in it; exit 3"}
	}}
	started := time.Now()
	err := broken.start()
	if err == nil || !strings.Contains(err.Error(), "no sense in it") || time.Since(started) > 10*time.Second {
		t.Errorf("after %v: %v", time.Since(started), err)
	}
}

func TestEnginesListenOnLoopbackOnly(t *testing.T) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for name, endpoint := range map[string]string{"DynamoDB Local": DynamoDB(t), "ElasticMQ": SQS(t), "versitygw": S3(t)} {
		port := endpoint[strings.LastIndexByte(endpoint, ':')+1:]
		for _, address := range addresses {
			ip, ok := address.(*net.IPNet)
			if !ok || ip.IP.IsLoopback() || ip.IP.IsLinkLocalUnicast() {
				continue
			}
			if reachable(net.JoinHostPort(ip.IP.String(), port)) {
				t.Errorf("%s answers at %v", name, ip.IP)
			}
		}
	}
}

func TestQueueHasDeadLetters(t *testing.T) {
	ctx, client := t.Context(), SQSClient(t)
	url, deadLetters := Queue(t, 0, 1)
	if _, err := client.SendMessage(ctx, &sqs.SendMessageInput{QueueUrl: &url, MessageBody: aws.String("x")}); err != nil {
		t.Fatal(err)
	}
	var left []int
	for range 2 {
		got, err := client.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: &url})
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, len(got.Messages))
	}
	got, err := client.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: &deadLetters, WaitTimeSeconds: 5})
	if err != nil || len(got.Messages) != 1 || left[0] != 1 || left[1] != 0 {
		t.Errorf("received %v, then %v of the dead letters (%v)", left, got, err)
	}
}

func TestS3ChecksSignatures(t *testing.T) {
	bucket := Bucket(t)
	if _, err := S3Client(t).HeadBucket(t.Context(), &s3.HeadBucketInput{Bucket: &bucket}); err != nil {
		t.Fatal(err)
	}
	config := Config(S3(t))
	config.Credentials = credentials.NewStaticCredentialsProvider(AccessKey, "wrong", "")
	client := s3.NewFromConfig(config, func(o *s3.Options) { o.UsePathStyle = true })
	if _, err := client.HeadBucket(t.Context(), &s3.HeadBucketInput{Bucket: &bucket}); err == nil {
		t.Error("a wrong secret is accepted")
	}
}

func TestTableIsOfTheDriversMaking(t *testing.T) {
	var made string
	name := Table(t, func(ctx context.Context, client *dynamodb.Client, name string) error {
		made = name
		_, err := client.CreateTable(ctx, &dynamodb.CreateTableInput{
			TableName:            &name,
			BillingMode:          types.BillingModePayPerRequest,
			AttributeDefinitions: []types.AttributeDefinition{{AttributeName: aws.String("pk"), AttributeType: types.ScalarAttributeTypeS}},
			KeySchema:            []types.KeySchemaElement{{AttributeName: aws.String("pk"), KeyType: types.KeyTypeHash}},
		})
		return err
	})
	_, err := DynamoDBClient(t).DescribeTable(t.Context(), &dynamodb.DescribeTableInput{TableName: &name})
	if err != nil || made != name {
		t.Errorf("the table %s was made, %s was returned (%v)", made, name, err)
	}
}
