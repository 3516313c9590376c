package aws

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// Queue is a standard SQS queue. A message's body is the ID alone; class and
// group are attributes, which nothing reads yet. A message that is received
// too often goes to the queue that its redrive policy names.
type Queue struct {
	client     *sqs.Client
	url        string
	visibility time.Duration
	wait       time.Duration
	dead       bool // it holds dead letters
	log        *slog.Logger
}

var _ build.Queue = (*Queue)(nil)

const (
	// longPoll is short of SQS's 20 s, although each poll costs the same: SQS
	// may go on with the poll of a worker that was told to stop, and hide the
	// next message for nobody. There are polls only while a builder lives.
	longPoll  = 5 * time.Second
	shortPoll = time.Second
	// enginePoll is for engines of one's own, where a poll costs nothing:
	// ElasticMQ goes on with the poll of a worker that is gone, and the next
	// message, which that poll gets, is hidden for the visibility time.
	enginePoll = 2 * time.Second
	// maxVisibility is SQS's limit.
	maxVisibility = 12 * time.Hour
	// grace is how long an answer may come after Receive was told to end: the
	// message in it would stay hidden.
	grace = 200 * time.Millisecond
	// poisonPause lets a message that is no ID reach the dead letters within
	// half a minute, without a busy loop where there is no such queue.
	poisonPause = time.Second
)

// Queue is the queue of the builds.
func (c *Cloud) Queue() *Queue { return c.QueueFor(c.settings.QueueURL, build.Visibility) }

// QueueFor is the queue of that address, which hides what was received for the
// visibility, in whole seconds.
func (c *Cloud) QueueFor(url string, visibility time.Duration) *Queue {
	q := &Queue{client: sqs.NewFromConfig(c.config), url: url, visibility: visibility, wait: longPoll, log: c.log}
	if q.client.Options().BaseEndpoint != nil {
		q.wait = enginePoll
	}
	return q
}

// DeadLetters is the queue of the messages that were received too often, nil
// if the settings name none. Its polls are short, for a housekeeper who drains it.
func (c *Cloud) DeadLetters() build.Queue {
	if c.settings.DeadLettersURL == "" {
		return nil
	}
	q := c.QueueFor(c.settings.DeadLettersURL, build.Visibility)
	q.wait, q.dead = shortPoll, true
	return q
}

// Send implements build.Queue. An error may hide that the message was sent
// all the same.
func (q *Queue) Send(ctx context.Context, id build.ID, class build.Class, group string) error {
	_, err := q.client.SendMessage(ctx, &sqs.SendMessageInput{
		QueueUrl: &q.url, MessageBody: sdk.String(string(id)), MessageAttributes: attributes(class, group),
	})
	if err != nil {
		return fmt.Errorf("send a message to SQS: %w", err)
	}
	return nil
}

// attributes leaves out what SQS would refuse the message for.
func attributes(class build.Class, group string) map[string]types.MessageAttributeValue {
	all := map[string]types.MessageAttributeValue{}
	for name, value := range map[string]string{"class": string(class), "group": group} {
		if value != "" && len(value) <= 256 && !strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) {
			all[name] = types.MessageAttributeValue{DataType: sdk.String("String"), StringValue: &value}
		}
	}
	return all
}

// Receive implements build.Queue. A message that is no ID is never returned.
// After a deadline it may go on for a second, and on an engine of one's own for
// two. On SQS, where ctx is canceled, the poll may go on by itself, and who
// comes next waits for its message: a deadline is better.
func (q *Queue) Receive(ctx context.Context) (build.Message, error) {
	for {
		m, err := q.poll(ctx)
		if ctx.Err() != nil {
			q.putBack(ctx, m)
			return build.Message{}, ctx.Err()
		}
		if err != nil {
			return build.Message{}, fmt.Errorf("receive from SQS: %w", err)
		}
		if m == nil {
			continue
		}
		id, err := build.ParseID(sdk.ToString(m.Body))
		if err == nil {
			return build.Message{ID: id, Receipt: sdk.ToString(m.ReceiptHandle)}, nil
		}
		q.refuse(ctx, m)
	}
}

// poll asks once, for no longer than ctx lasts, in whole seconds: a poll that
// the engine goes on with when nobody listens any more hides the next message
// for the visibility time. It returns nil if none came.
func (q *Queue) poll(ctx context.Context) (*types.Message, error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	wait := q.wait
	if end, ok := ctx.Deadline(); ok {
		wait = max(time.Second, min(wait, time.Until(end)))
	}
	call, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(q.lastWord(ctx), cancel) })
	defer stop()
	out, err := q.client.ReceiveMessage(call, &sqs.ReceiveMessageInput{
		QueueUrl: &q.url, MaxNumberOfMessages: 1,
		WaitTimeSeconds: int32(wait / time.Second), VisibilityTimeout: seconds(q.visibility),
		MessageSystemAttributeNames: []types.MessageSystemAttributeName{types.MessageSystemAttributeNameApproximateReceiveCount},
	})
	if err != nil || len(out.Messages) == 0 {
		return nil, err
	}
	return &out.Messages[0], nil
}

// lastWord is how long the answer to a poll may come after ctx has ended. One
// that began with the deadline in sight ends by itself, a second later at most;
// a short one is worth waiting for, too.
func (q *Queue) lastWord(ctx context.Context) time.Duration {
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return time.Second + grace
	case q.wait <= enginePoll:
		return q.wait + grace
	}
	return grace
}

// putBack makes a message available that came too late for its receiver.
func (q *Queue) putBack(ctx context.Context, m *types.Message) {
	if m != nil {
		q.settle(ctx, "put back", func(ctx context.Context) error {
			return q.Extend(ctx, build.Message{Receipt: sdk.ToString(m.ReceiptHandle)}, 0)
		})
	}
}

// refuse gets a message out of the way that is no ID. It is logged when it is
// received first, and not its content: nobody knows what that is.
func (q *Queue) refuse(ctx context.Context, m *types.Message) {
	received := m.Attributes[string(types.MessageSystemAttributeNameApproximateReceiveCount)]
	if q.dead || received == "" || received == "1" {
		q.log.Warn("a message in the queue is not the ID of a build", "message", sdk.ToString(m.MessageId), "bytes", len(sdk.ToString(m.Body)), "dead letter", q.dead)
	}
	foreign := build.Message{Receipt: sdk.ToString(m.ReceiptHandle)}
	q.settle(ctx, "put away", func(ctx context.Context) error {
		if q.dead {
			return q.Delete(ctx, foreign)
		}
		return q.Extend(ctx, foreign, poisonPause)
	})
}

// settle does what has to be done even if ctx has ended. If it fails, the
// message comes back by itself.
func (q *Queue) settle(ctx context.Context, what string, f func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), smallTime)
	defer cancel()
	if err := f(ctx); err != nil {
		q.log.Warn("a message could not be "+what, "error", err)
	}
}

// Extend implements build.Queue. SQS counts whole seconds, which d is rounded
// up to, and hides for 12 hours at most.
func (q *Queue) Extend(ctx context.Context, m build.Message, d time.Duration) error {
	_, err := q.client.ChangeMessageVisibility(ctx, &sqs.ChangeMessageVisibilityInput{
		QueueUrl: &q.url, ReceiptHandle: &m.Receipt, VisibilityTimeout: seconds(min(d, maxVisibility)),
	})
	if err != nil && !outdated(err) {
		return fmt.Errorf("extend a message of SQS: %w", err)
	}
	return nil
}

func seconds(d time.Duration) int32 {
	return int32((max(0, d) + time.Second - 1) / time.Second)
}

// Delete implements build.Queue.
func (q *Queue) Delete(ctx context.Context, m build.Message) error {
	_, err := q.client.DeleteMessage(ctx, &sqs.DeleteMessageInput{QueueUrl: &q.url, ReceiptHandle: &m.Receipt})
	if err != nil && !outdated(err) {
		return fmt.Errorf("delete a message of SQS: %w", err)
	}
	return nil
}

// outdated tells whether the error means that the receipt is. The receipt is
// the only value of ours that can be invalid.
func outdated(err error) bool {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return false
	}
	switch strings.TrimPrefix(api.ErrorCode(), "AWS.SimpleQueueService.") {
	case "MessageNotInflight", "ReceiptHandleIsInvalid", "InvalidParameterValue", "InvalidParameterValueException", "InvalidIdFormat":
		return true
	}
	return false
}
