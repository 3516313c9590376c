package aws

import (
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	sqstypes "github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/attended-sysupgrade/sysup/shared/aws/awstest"
	"github.com/attended-sysupgrade/sysup/shared/build"
)

// preparing is a Cloud as an operator's variables make it.
func preparing(t *testing.T, without string) *Cloud {
	t.Helper()
	for _, variable := range awstest.Environment(t) {
		name, value, _ := strings.Cut(variable, "=")
		if name == without {
			value = ""
		}
		t.Setenv(name, value)
	}
	cloud, err := Open(t.Context(), Settings{}, quietLog())
	if err != nil {
		t.Fatal(err)
	}
	return cloud
}

// prepared holds that it went well. What it makes goes with the engines.
func prepared(t *testing.T, c *Cloud, r Resources) Prepared {
	t.Helper()
	p, err := c.Prepare(t.Context(), r)
	if err != nil {
		t.Fatalf("%v after %q", err, p.Made)
	}
	return p
}

// TestPrepare: what is made is what the drivers need, and a second time makes
// nothing and tells the same.
func TestPrepare(t *testing.T) {
	cloud, name := preparing(t, ""), awstest.Name()
	r := Resources{Table: name, Queue: name, Bucket: name}
	first := prepared(t, cloud, r)
	if want := []string{"table " + name, "queue " + name + "-dead", "queue " + name, "bucket " + name}; !slices.Equal(first.Made, want) {
		t.Errorf("it made %q, want %q", first.Made, want)
	}
	second := prepared(t, cloud, r)
	if len(second.Made) > 0 || second.QueueURL != first.QueueURL || second.DeadLettersURL != first.DeadLettersURL {
		t.Errorf("again: %+v, at first %+v", second, first)
	}

	ready, err := Open(t.Context(), Settings{Table: name, QueueURL: first.QueueURL, DeadLettersURL: first.DeadLettersURL, Bucket: name}, quietLog())
	if err != nil {
		t.Fatal(err)
	}
	if n, err := ready.Records().Pending(t.Context()); n != 0 || err != nil {
		t.Errorf("%d builds are pending, %v", n, err)
	}
	if err := ready.Objects().Put(t.Context(), "a", strings.NewReader("a"), build.PolicyText); err != nil {
		t.Error(err)
	}
	id := build.ID(strings.Repeat("0123456789abcdef", 4))
	if err := ready.Queue().Send(t.Context(), id, build.ClassInteractive, ""); err != nil {
		t.Error(err)
	}
	if m, err := ready.Queue().Receive(within(t, 5*time.Second)); m.ID != id || err != nil {
		t.Errorf("received %v, %v", m, err)
	}
}

// TestPrepareQueues: the numbers are the template's.
func TestPrepareQueues(t *testing.T) {
	cloud, name := preparing(t, ""), awstest.Name()
	p := prepared(t, cloud, Resources{Table: name, Queue: name, Bucket: name})
	for url, want := range map[string]map[string]string{
		p.QueueURL:       {"VisibilityTimeout": "75", "MessageRetentionPeriod": "172800"},
		p.DeadLettersURL: {"MessageRetentionPeriod": "1209600"},
	} {
		out, err := awstest.SQSClient(t).GetQueueAttributes(t.Context(), &sqs.GetQueueAttributesInput{
			QueueUrl: &url, AttributeNames: []sqstypes.QueueAttributeName{sqstypes.QueueAttributeNameAll},
		})
		if err != nil {
			t.Fatal(err)
		}
		for key, value := range want {
			if got := out.Attributes[key]; got != value && !(got == "" && strings.HasPrefix(key, "MessageRetention")) { // ElasticMQ keeps all for ever
				t.Errorf("%s: %s is %q, want %s", url, key, got, value)
			}
		}
		redrive := out.Attributes["RedrivePolicy"]
		if url == p.QueueURL && !(strings.Contains(redrive, ":"+name+"-dead\"") && strings.Contains(redrive, strconv.Itoa(20))) {
			t.Errorf("the redrive policy is %s", redrive)
		}
	}
}

// TestPrepareCompletes: what a run that died has left is completed.
func TestPrepareCompletes(t *testing.T) {
	cloud, name := preparing(t, ""), awstest.Name()
	r := Resources{Table: name, Queue: name, Bucket: name}
	prepared(t, cloud, r)
	client := awstest.DynamoDBClient(t)
	ttl := func(on bool) {
		t.Helper()
		_, err := client.UpdateTimeToLive(t.Context(), &dynamodb.UpdateTimeToLiveInput{
			TableName: &name, TimeToLiveSpecification: &types.TimeToLiveSpecification{AttributeName: sdk.String(attrTTL), Enabled: &on},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	ttl(false)
	if p := prepared(t, cloud, r); !slices.Equal(p.Made, []string{"time to live of the table " + name}) {
		t.Errorf("it made %q", p.Made)
	}
	out, err := client.DescribeTimeToLive(t.Context(), &dynamodb.DescribeTimeToLiveInput{TableName: &name})
	if err != nil || out.TimeToLiveDescription.TimeToLiveStatus != types.TimeToLiveStatusEnabled {
		t.Errorf("the time to live is %+v, %v", out, err)
	}
}

// TestPrepareRefuses: nothing is made on AWS itself, and nothing beside a table
// that is somebody else's.
func TestPrepareRefuses(t *testing.T) {
	for _, service := range []string{"DYNAMODB", "SQS", "S3"} {
		key, name := "AWS_ENDPOINT_URL_"+service, awstest.Name()
		p, err := preparing(t, key).Prepare(t.Context(), Resources{Table: name, Queue: name, Bucket: name})
		if err == nil || !strings.Contains(err.Error(), key) || len(p.Made) > 0 {
			t.Errorf("without %s: %v, it made %q", key, err, p.Made)
		}
	}
	cloud, name := preparing(t, ""), awstest.Name()
	_, err := awstest.DynamoDBClient(t).CreateTable(t.Context(), &dynamodb.CreateTableInput{
		TableName: &name, BillingMode: types.BillingModePayPerRequest,
		AttributeDefinitions: []types.AttributeDefinition{{AttributeName: sdk.String("pk"), AttributeType: types.ScalarAttributeTypeS}},
		KeySchema:            []types.KeySchemaElement{{AttributeName: sdk.String("pk"), KeyType: types.KeyTypeHash}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if p, err := cloud.Prepare(t.Context(), Resources{Table: name, Queue: name, Bucket: name}); err == nil || !strings.Contains(err.Error(), "not one for the records") || len(p.Made) > 0 {
		t.Errorf("another's table: %v, it made %q", err, p.Made)
	}
}

func TestResources(t *testing.T) {
	good := Resources{"sysup", "sysup", "sysup"}
	if err := errors.Join(good.Validate(), Resources{strings.Repeat("t", 255), strings.Repeat("q", 75), "a.b"}.Validate()); err != nil {
		t.Error(err)
	}
	wrong := map[string][]Resources{
		"--table":  {{"", "q", "bucket"}, {"ab", "q", "bucket"}, {"a b c", "q", "bucket"}, {strings.Repeat("t", 256), "q", "bucket"}},
		"--queue":  {{"table", "", "bucket"}, {"table", "a/b", "bucket"}, {"table", strings.Repeat("q", 76), "bucket"}, {"table", "q.fifo", "bucket"}},
		"--bucket": {{"table", "q", ""}, {"table", "q", "Bucket"}, {"table", "q", "-b-"}},
	}
	for _, key := range slices.Sorted(maps.Keys(wrong)) {
		for _, r := range wrong[key] {
			if err := r.Validate(); err == nil || !strings.HasPrefix(err.Error(), key+" has to be ") || strings.Contains(err.Error(), "\n") {
				t.Errorf("%+v: %v", r, err)
			}
		}
	}
}
