package aws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	sqstypes "github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// Resources are the names of what a server needs of engines like AWS's. The
// queue's dead letters go to a queue of its name with "-dead".
type Resources struct{ Table, Queue, Bucket string }

// Prepared is what there is now. Made names what was not there before, as
// "table sysup".
type Prepared struct {
	QueueURL, DeadLettersURL string
	Made                     []string
}

const (
	deadSuffix  = "-dead"
	maxReceives = 20                  // deliveries before a message becomes a dead letter; all numbers are template.yaml's
	keepMessage = 2 * 24 * time.Hour  // longer than the day after which a build is given up
	keepDead    = 14 * 24 * time.Hour // SQS's most
)

var queuePattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,75}$`)

// Validate names each key whose value breaks its rule.
func (r Resources) Validate() error {
	var errs []error
	for _, field := range []setting{
		{"--table", r.Table, "3 to 255 letters, digits, '_', '.' and '-'", tablePattern, true},
		{"--queue", r.Queue, "1 to 75 letters, digits, '_' and '-'", queuePattern, true},
		{"--bucket", r.Bucket, "3 to 63 lower-case letters, digits, '.' and '-'", bucketPattern, true},
	} {
		errs = append(errs, field.check())
	}
	return errors.Join(errs...)
}

// Prepare makes what is missing of the resources. What is there stays as it
// is; a table of that name which is not for the records is an error. It is for
// engines like AWS's: on AWS template.yaml makes all of this, and more, so that
// services without an endpoint of their own are refused.
func (c *Cloud) Prepare(ctx context.Context, r Resources) (Prepared, error) {
	p := &preparation{
		table: c.dynamoDB(), queue: sqs.NewFromConfig(c.config), bucket: s3.NewFromConfig(c.config, pathStyle), want: r,
	}
	if err := p.elsewhere(); err != nil {
		return p.done, err
	}
	for _, step := range []func(context.Context) error{p.makeTable, p.makeQueues, p.makeBucket} {
		if err := step(ctx); err != nil {
			return p.done, err
		}
	}
	return p.done, nil
}

// preparation is one run of Prepare.
type preparation struct {
	table  *dynamodb.Client
	queue  *sqs.Client
	bucket *s3.Client
	want   Resources
	done   Prepared
}

func (p *preparation) elsewhere() error {
	for _, service := range []struct {
		key      string
		endpoint *string
	}{
		{"AWS_ENDPOINT_URL_DYNAMODB", p.table.Options().BaseEndpoint},
		{"AWS_ENDPOINT_URL_SQS", p.queue.Options().BaseEndpoint},
		{"AWS_ENDPOINT_URL_S3", p.bucket.Options().BaseEndpoint},
	} {
		if service.endpoint == nil {
			return fmt.Errorf(`%s has to be the address of an engine, it is "": on AWS itself template.yaml makes these resources`, service.key)
		}
	}
	return nil
}

func (p *preparation) made(what, name string) { p.done.Made = append(p.done.Made, what+" "+name) }

func (p *preparation) makeTable(ctx context.Context) error {
	out, err := p.table.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &p.want.Table})
	if _, missing := errors.AsType[*ddbtypes.ResourceNotFoundException](err); missing {
		p.made("table", p.want.Table)
		return CreateTable(ctx, p.table, p.want.Table)
	}
	if err != nil {
		return fmt.Errorf("look for the table %s: %w", p.want.Table, err)
	}
	if !forRecords(out.Table) {
		return fmt.Errorf("the table %s is there and is not one for the records: choose another name, or delete it", p.want.Table)
	}
	return p.completeTable(ctx)
}

// forRecords tells whether it has the keys and the index of CreateTable.
func forRecords(t *ddbtypes.TableDescription) bool {
	key := func(schema []ddbtypes.KeySchemaElement, names ...string) bool {
		return slices.EqualFunc(schema, names, func(e ddbtypes.KeySchemaElement, name string) bool { return sdk.ToString(e.AttributeName) == name })
	}
	return key(t.KeySchema, attrKey) && slices.ContainsFunc(t.GlobalSecondaryIndexes, func(i ddbtypes.GlobalSecondaryIndexDescription) bool {
		return sdk.ToString(i.IndexName) == dueIndex && key(i.KeySchema, attrShard, attrDue)
	})
}

// completeTable ends what a CreateTable that died has begun.
func (p *preparation) completeTable(ctx context.Context) error {
	out, err := p.table.DescribeTimeToLive(ctx, &dynamodb.DescribeTimeToLiveInput{TableName: &p.want.Table})
	if err != nil {
		return fmt.Errorf("read the time to live of the table %s: %w", p.want.Table, err)
	}
	if ttl := out.TimeToLiveDescription; ttl != nil && sdk.ToString(ttl.AttributeName) == attrTTL {
		return nil
	}
	p.made("time to live of the table", p.want.Table)
	return awaitTable(ctx, p.table, p.want.Table)
}

// makeQueues makes the dead letters' queue first: the other one names it.
func (p *preparation) makeQueues(ctx context.Context) (err error) {
	p.done.DeadLettersURL, err = p.makeQueue(ctx, p.want.Queue+deadSuffix, map[string]string{
		string(sqstypes.QueueAttributeNameMessageRetentionPeriod): whole(keepDead),
	})
	if err != nil {
		return err
	}
	redrive, err := p.redrive(ctx)
	if err != nil {
		return err
	}
	p.done.QueueURL, err = p.makeQueue(ctx, p.want.Queue, map[string]string{
		string(sqstypes.QueueAttributeNameVisibilityTimeout):      whole(build.Visibility),
		string(sqstypes.QueueAttributeNameMessageRetentionPeriod): whole(keepMessage),
		string(sqstypes.QueueAttributeNameRedrivePolicy):          redrive,
	})
	return err
}

func (p *preparation) redrive(ctx context.Context) (string, error) {
	const arn = sqstypes.QueueAttributeNameQueueArn
	out, err := p.queue.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{
		QueueUrl: &p.done.DeadLettersURL, AttributeNames: []sqstypes.QueueAttributeName{arn},
	})
	if err != nil {
		return "", fmt.Errorf("look at the queue %s: %w", p.want.Queue+deadSuffix, err)
	}
	policy, err := json.Marshal(map[string]any{"deadLetterTargetArn": out.Attributes[string(arn)], "maxReceiveCount": maxReceives})
	return string(policy), err
}

func (p *preparation) makeQueue(ctx context.Context, name string, attributes map[string]string) (url string, err error) {
	found, err := p.queue.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: &name})
	if err == nil {
		return sdk.ToString(found.QueueUrl), nil
	}
	if _, missing := errors.AsType[*sqstypes.QueueDoesNotExist](err); !missing {
		return "", fmt.Errorf("look for the queue %s: %w", name, err)
	}
	created, err := p.queue.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: &name, Attributes: attributes})
	if err != nil {
		return "", fmt.Errorf("make the queue %s: %w", name, err)
	}
	p.made("queue", name)
	return sdk.ToString(created.QueueUrl), nil
}

func whole(d time.Duration) string { return strconv.Itoa(int(d / time.Second)) }

func (p *preparation) makeBucket(ctx context.Context) error {
	_, err := p.bucket.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &p.want.Bucket})
	if _, missing := errors.AsType[*s3types.NotFound](err); missing {
		_, err = p.bucket.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &p.want.Bucket})
		if err == nil {
			p.made("bucket", p.want.Bucket)
		}
	}
	if err != nil {
		return fmt.Errorf("make the bucket %s: %w", p.want.Bucket, err)
	}
	return nil
}
