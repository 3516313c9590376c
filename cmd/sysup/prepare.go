package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/attended-sysupgrade/sysup/shared/aws"
)

type prepareCmd struct {
	Table  string `help:"DynamoDB table of the records." default:"sysup" env:"SYSUP_TABLE" placeholder:"NAME"`
	Queue  string `help:"SQS queue of the builds; its dead letters go to NAME-dead." default:"sysup" placeholder:"NAME"`
	Bucket string `help:"S3 bucket of images, logs, signatures and the catalogue." default:"sysup" env:"SYSUP_BUCKET" placeholder:"NAME"`
}

// Help is shown by --help.
func (prepareCmd) Help() string {
	return `For a server and workers on several machines of your own, over engines that speak the protocols of DynamoDB, SQS and S3.
AWS itself needs none of this: there, template.yaml makes everything.

The engines are found by the AWS SDK's own variables: AWS_ENDPOINT_URL_DYNAMODB, AWS_ENDPOINT_URL_SQS,
AWS_ENDPOINT_URL_S3, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY.

What is printed are settings for "sysup serve" and "sysup worker", as lines for a file of variables. What is there
already is left as it is, so the command may be repeated.`
}

func (c *prepareCmd) resources() aws.Resources {
	return aws.Resources{Table: c.Table, Queue: c.Queue, Bucket: c.Bucket}
}

func (c *prepareCmd) Validate() error { return c.resources().Validate() }

func (c *prepareCmd) Run(ctx context.Context, out io.Writer, log *slog.Logger) error {
	cloud, err := aws.Open(ctx, aws.Settings{}, log)
	if err != nil {
		return err
	}
	done, err := cloud.Prepare(ctx, c.resources())
	made := "nothing, all of it was there"
	if len(done.Made) > 0 {
		made = strings.Join(done.Made, ", ")
	}
	if err != nil {
		return fmt.Errorf("%w (made before that: %s)", err, made)
	}
	_, err = fmt.Fprintf(out, "# sysup prepare made: %s\nSYSUP_TABLE=%s\nSYSUP_QUEUE_URL=%s\nSYSUP_DEAD_LETTERS_URL=%s\nSYSUP_BUCKET=%s\n",
		made, c.Table, done.QueueURL, done.DeadLettersURL, c.Bucket)
	return err
}
