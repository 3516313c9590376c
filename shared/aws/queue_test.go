package aws

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/attended-sysupgrade/sysup/shared/aws/awstest"
	"github.com/attended-sysupgrade/sysup/shared/build"
)

// The contract of build.Queue is tested in package buildtest.

func newID() build.ID {
	var b [32]byte
	rand.Read(b[:])
	return build.ID(hex.EncodeToString(b[:]))
}

// TestMessage pins what goes over the wire: the ID alone, two attributes.
func TestMessage(t *testing.T) {
	for _, test := range []struct {
		group string
		want  map[string]string
	}{
		{"", map[string]string{"class": "bulk"}},
		{"203.0.113.7", map[string]string{"class": "bulk", "group": "203.0.113.7"}},
		{"a\x00b", map[string]string{"class": "bulk"}}, // SQS would refuse the message
		{strings.Repeat("g", 257), map[string]string{"class": "bulk"}},
	} {
		url, _ := awstest.Queue(t, time.Minute, 10)
		q := onEngine(awstest.SQS(t), Settings{QueueURL: url}).Queue()
		id := newID()
		if err := q.Send(t.Context(), id, build.ClassBulk, test.group); err != nil {
			t.Fatalf("Send: %v", err)
		}
		out, err := awstest.SQSClient(t).ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: &url, MessageAttributeNames: []string{"All"}})
		if err != nil || len(out.Messages) != 1 {
			t.Fatalf("receive: %v", err)
		}
		got := map[string]string{}
		for name, value := range out.Messages[0].MessageAttributes {
			got[name] = sdk.ToString(value.StringValue)
		}
		if body := sdk.ToString(out.Messages[0].Body); body != string(id) || fmt.Sprint(got) != fmt.Sprint(test.want) {
			t.Errorf("sent %q with %v, not %v", body, got, test.want)
		}
	}
}

// TestPoison sends what is no ID: it is never returned, ends among the dead
// letters, and is removed there; its content stands in no log.
func TestPoison(t *testing.T) {
	t.Parallel()
	const secret = "psk-of-somebody"
	url, dead := awstest.Queue(t, time.Minute, 3)
	var log bytes.Buffer
	cloud := New(awstest.Config(awstest.SQS(t)), Settings{QueueURL: url, DeadLettersURL: dead}, slog.New(slog.NewTextHandler(&log, nil)))
	raw := awstest.SQSClient(t)
	if _, err := raw.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: &url, MessageBody: sdk.String(secret)}); err != nil {
		t.Fatal(err)
	}
	id := newID()
	if err := cloud.Queue().Send(t.Context(), id, build.ClassBulk, ""); err != nil {
		t.Fatal(err)
	}
	if m, err := cloud.Queue().Receive(within(t, 5*time.Second)); err != nil || m.ID != id {
		t.Fatalf("received %q (%v), not the ID that was sent", m.ID.Short(), err)
	}
	// The dead letters are looked at now and again by receiving from the queue.
	depth := func(url string) string {
		out, err := raw.GetQueueAttributes(t.Context(), &sqs.GetQueueAttributesInput{
			QueueUrl: &url, AttributeNames: []types.QueueAttributeName{types.QueueAttributeNameApproximateNumberOfMessages, types.QueueAttributeNameApproximateNumberOfMessagesNotVisible},
		})
		if err != nil {
			t.Fatal(err)
		}
		return out.Attributes["ApproximateNumberOfMessages"] + "+" + out.Attributes["ApproximateNumberOfMessagesNotVisible"]
	}
	for end := time.Now().Add(time.Minute); depth(dead) != "1+0" && time.Now().Before(end); {
		if m, err := cloud.Queue().Receive(within(t, time.Second)); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("received %q (%v)", m.ID.Short(), err)
		}
	}
	if got := depth(dead); got != "1+0" {
		t.Fatalf("the dead letters are %s after a minute", got)
	}
	if m, err := cloud.DeadLetters().Receive(within(t, 2*time.Second)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("received %q from the dead letters (%v)", m.ID.Short(), err)
	}
	if got := depth(dead); got != "0+0" {
		t.Errorf("the dead letters are %s after they were read", got)
	}
	if text := log.String(); strings.Contains(text, secret) || strings.Count(text, "is not the ID of a build") != 2 {
		t.Errorf("the log should name the message once, and once more as a dead letter:\n%s", text)
	}
}

// TestDeadLetters returns an ID that nobody could build.
func TestDeadLetters(t *testing.T) {
	t.Parallel()
	if onEngine("http://127.0.0.1:9", Settings{}).DeadLetters() != nil {
		t.Error("there are dead letters without a queue for them")
	}
	_, dead := awstest.Queue(t, time.Minute, 3)
	q := onEngine(awstest.SQS(t), Settings{DeadLettersURL: dead}).DeadLetters()
	id := newID()
	if err := q.Send(t.Context(), id, build.ClassInteractive, ""); err != nil {
		t.Fatal(err)
	}
	m, err := q.Receive(within(t, 5*time.Second))
	if err != nil || m.ID != id {
		t.Fatalf("received %q (%v)", m.ID.Short(), err)
	}
	if err := q.Delete(t.Context(), m); err != nil {
		t.Error(err)
	}
}

// TestOutdatedReceipts answers as SQS does in each case that the engine does
// not know.
func TestOutdatedReceipts(t *testing.T) {
	for code, outdated := range map[string]bool{
		"MessageNotInflight": true, "AWS.SimpleQueueService.MessageNotInflight": true, "ReceiptHandleIsInvalid": true,
		"InvalidParameterValue": true, "InvalidParameterValueException": true,
		"AccessDenied": false, "QueueDoesNotExist": false, "InvalidSecurity": false,
	} {
		q := answering(func(r *http.Request) (*http.Response, error) {
			return reply(r, 400, `{"__type":"com.amazonaws.sqs#`+code+`","message":"x"}`), nil
		}, Settings{QueueURL: "http://127.0.0.1:9/q"}).Queue()
		m := build.Message{Receipt: "r"}
		if err := q.Delete(t.Context(), m); (err == nil) != outdated {
			t.Errorf("Delete answered with %s returns %v", code, err)
		}
		if err := q.Extend(t.Context(), m, time.Second); (err == nil) != outdated {
			t.Errorf("Extend answered with %s returns %v", code, err)
		}
	}
}

// TestSeconds is how SQS is asked for times that it has not.
func TestSeconds(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0", 0: "0", time.Millisecond: "1", time.Second: "1", 1001 * time.Millisecond: "2", 100 * time.Hour: "43200",
	} {
		var sent bytes.Buffer
		q := answering(func(r *http.Request) (*http.Response, error) {
			_, err := sent.ReadFrom(r.Body)
			return reply(r, 200, "{}"), err
		}, Settings{QueueURL: "http://127.0.0.1:9/q"}).Queue()
		if err := q.Extend(t.Context(), build.Message{Receipt: "r"}, d); err != nil || !strings.Contains(sent.String(), `"VisibilityTimeout":`+want+"}") {
			t.Errorf("Extend by %v sends %s (%v)", d, sent.String(), err)
		}
	}
}

// TestLateMessage lets a message arrive just when the receiver is told to end:
// it is made available to others. One that comes much later, nobody waits for;
// on an engine of one's own, where polls are short, that is when the poll ends.
func TestLateMessage(t *testing.T) {
	for _, test := range []struct {
		wait    time.Duration
		end     error
		late    time.Duration
		putBack bool
		most    time.Duration
	}{
		{longPoll, context.Canceled, grace / 2, true, grace},
		{longPoll, context.Canceled, 10 * grace, false, grace},
		{longPoll, context.DeadlineExceeded, grace / 2, true, 2 * time.Second},
		{longPoll, context.DeadlineExceeded, time.Second, true, 2 * time.Second},
		{longPoll, context.DeadlineExceeded, time.Minute, false, 2 * time.Second},
		{enginePoll, context.Canceled, grace / 2, true, grace},
		{enginePoll, context.Canceled, enginePoll, true, enginePoll + grace},
		{enginePoll, context.Canceled, time.Minute, false, enginePoll + grace},
	} {
		synctest.Test(t, func(t *testing.T) {
			var operations []string
			ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
			defer cancel()
			q := answering(func(r *http.Request) (*http.Response, error) {
				operation := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "AmazonSQS.")
				operations = append(operations, operation)
				if operation != "ReceiveMessage" {
					return reply(r, 200, "{}"), nil
				}
				if test.end == context.Canceled {
					cancel()
				}
				<-ctx.Done()
				select {
				case <-time.After(test.late):
					return reply(r, 200, `{"Messages":[{"Body":"`+string(newID())+`","ReceiptHandle":"r","MessageId":"m"}]}`), nil
				case <-r.Context().Done():
					return nil, r.Context().Err()
				}
			}, Settings{QueueURL: "http://127.0.0.1:9/q"}).Queue()
			q.wait = test.wait
			start := time.Now()
			if m, err := q.Receive(ctx); !errors.Is(err, test.end) {
				t.Errorf("received %q (%v)", m.ID.Short(), err)
			}
			if took := time.Since(start); took > test.most {
				t.Errorf("Receive takes %v", took)
			}
			if got := len(operations) == 2 && operations[1] == "ChangeMessageVisibility"; got != test.putBack {
				t.Errorf("%v: a message that comes %v too late: %v", test.end, test.late, operations)
			}
		})
	}
}

// TestLongPoll asks for five seconds, or for what is left, and engines of
// one's own, which go on with the polls of the dead, for two.
func TestLongPoll(t *testing.T) {
	for _, test := range []struct {
		aws  bool
		left time.Duration
		want string
	}{
		{true, time.Hour, "5"}, {true, 4500 * time.Millisecond, "4"}, {true, 300 * time.Millisecond, "1"},
		{false, time.Hour, "2"}, {false, 1500 * time.Millisecond, "1"},
	} {
		synctest.Test(t, func(t *testing.T) {
			var sent bytes.Buffer
			cloud := answering(func(r *http.Request) (*http.Response, error) {
				_, err := sent.ReadFrom(r.Body)
				return reply(r, 200, `{"Messages":[{"Body":"`+string(newID())+`","ReceiptHandle":"r","MessageId":"m"}]}`), err
			}, Settings{QueueURL: "http://127.0.0.1:9/q"})
			if test.aws {
				cloud.config.BaseEndpoint = nil
			}
			q := cloud.Queue()
			if _, err := q.Receive(within(t, test.left)); err != nil {
				t.Fatal(err)
			}
			if !contains(sent.String(), `"WaitTimeSeconds":`+test.want+"}", `"VisibilityTimeout":75`, `"MaxNumberOfMessages":1`) {
				t.Errorf("with %v left it sends %s", test.left, sent.String())
			}
		})
	}
}

// TestQueueFaults injects each fault into each write and looks at what there is
// afterwards.
func TestQueueFaults(t *testing.T) {
	for _, test := range plans {
		t.Run("send/"+test.name, func(t *testing.T) {
			t.Parallel()
			url, _ := awstest.Queue(t, time.Minute, 10)
			f := &mishaps{operation: "SendMessage", plan: test.plan}
			err := onEngine(awstest.SQS(t), Settings{QueueURL: url}, f.hook).Queue().Send(t.Context(), newID(), build.ClassBulk, "")
			if (err != nil) != test.fails || f.attempts() != test.attempts {
				t.Errorf("Send returns %v after %d attempts", err, f.attempts())
			}
			want := test.repeat // at least once: a repetition is a second message
			if test.happens {
				want++
			}
			if n := drain(t, url); n != want {
				t.Errorf("%d messages arrive, not %d", n, want)
			}
		})
		t.Run("delete/"+test.name, func(t *testing.T) {
			t.Parallel()
			q, m, f := received(t, "DeleteMessage", test.plan)
			err := q.Delete(t.Context(), m)
			if (err != nil) != test.fails || f.attempts() != test.attempts {
				t.Errorf("Delete returns %v after %d attempts", err, f.attempts())
			}
			f.plan = []mishap{works}
			if err := q.Extend(t.Context(), m, 0); err != nil {
				t.Errorf("Extend after Delete: %v", err)
			}
			if n := drain(t, q.url); (n == 0) != test.happens {
				t.Errorf("%d messages are left", n)
			}
		})
		t.Run("extend/"+test.name, func(t *testing.T) {
			t.Parallel()
			q, m, f := received(t, "ChangeMessageVisibility", test.plan)
			err := q.Extend(t.Context(), m, 0)
			if (err != nil) != test.fails || f.attempts() != test.attempts {
				t.Errorf("Extend returns %v after %d attempts", err, f.attempts())
			}
			if n := drain(t, q.url); (n == 1) != test.happens {
				t.Errorf("%d messages are available", n)
			}
		})
	}
}

// received is a queue whose only message was received.
func received(t *testing.T, operation string, plan []mishap) (*Queue, build.Message, *mishaps) {
	t.Helper()
	url, _ := awstest.Queue(t, time.Minute, 10)
	f := &mishaps{operation: operation, plan: plan}
	q := onEngine(awstest.SQS(t), Settings{QueueURL: url}, f.hook).Queue()
	if err := q.Send(t.Context(), newID(), build.ClassBulk, ""); err != nil {
		t.Fatal(err)
	}
	m, err := q.Receive(within(t, 5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	return q, m, f
}

// drain counts the messages that are available.
func drain(t *testing.T, url string) int {
	t.Helper()
	for n := 0; ; {
		out, err := awstest.SQSClient(t).ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: &url, MaxNumberOfMessages: 10})
		if err != nil {
			t.Fatal(err)
		}
		if len(out.Messages) == 0 {
			return n
		}
		n += len(out.Messages)
	}
}
