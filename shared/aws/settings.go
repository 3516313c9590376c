package aws

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

// Settings say which AWS resources to use, or those of compatible engines. All
// fields are empty where nothing of AWS is used. The endpoints and credentials
// are the SDK's own settings (AWS_REGION, AWS_ENDPOINT_URL_SQS and so on).
type Settings struct {
	Table          string   `help:"DynamoDB table of the records." env:"SYSUP_TABLE" placeholder:"NAME"`
	QueueURL       string   `help:"SQS queue of the builds." env:"SYSUP_QUEUE_URL" placeholder:"URL"`
	DeadLettersURL string   `help:"SQS queue of the messages that were received too often." env:"SYSUP_DEAD_LETTERS_URL" placeholder:"URL"`
	Bucket         string   `help:"S3 bucket of images, logs, signatures and the catalogue." env:"SYSUP_BUCKET" placeholder:"NAME"`
	RequestSecret  string   `help:"Where the secret is that private requests are hashed under: ssm:/PATH or file:/PATH." env:"SYSUP_REQUEST_SECRET" placeholder:"REF"`
	ServerKey      string   `help:"Where the signing key is: ssm:/PATH, file:/PATH or kms:KEY." env:"SYSUP_SERVER_KEY" placeholder:"REF"`
	Certifier      string   `help:"Who certifies workers' keys: lambda:FUNCTION, or the http or https address of a server." env:"SYSUP_CERTIFIER" placeholder:"REF"`
	Cluster        string   `help:"ECS cluster in which builders are started." env:"SYSUP_CLUSTER" placeholder:"NAME"`
	TaskDefinition string   `help:"ECS task definition of a builder." env:"SYSUP_TASK_DEFINITION" placeholder:"NAME"`
	Subnets        []string `help:"Subnets of the builders." env:"SYSUP_SUBNETS" placeholder:"ID"`
	SecurityGroup  string   `help:"Security group of the builders." env:"SYSUP_SECURITY_GROUP" placeholder:"ID"`
	Spot           bool     `help:"Start builders on spare capacity, which is cheaper and may be taken away." env:"SYSUP_SPOT"`
}

// setting is one key with the rule for its value.
type setting struct {
	key, value, rule string
	pattern          *regexp.Regexp
	required         bool
}

// maxSetting is the length of the longest value, in bytes.
const (
	maxSetting = 500
	secretRef  = `ssm:(/[A-Za-z0-9_.-]+)+|file:/[^\x00-\x1f]+`
)

var (
	tablePattern     = regexp.MustCompile(`^[A-Za-z0-9_.-]{3,255}$`)
	bucketPattern    = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	namePattern      = regexp.MustCompile(`^[A-Za-z0-9:/_.$-]+$`) // or an ARN
	secretPattern    = regexp.MustCompile(`^(` + secretRef + `)$`)
	serverKeyPattern = regexp.MustCompile(`^(` + secretRef + `|kms:[A-Za-z0-9:/_-]+)$`)
	certifierPattern = regexp.MustCompile(`^(lambda:[A-Za-z0-9:/_.$-]+|https?://[^\s]+)$`)
	subnetPattern    = regexp.MustCompile(`^subnet-[A-Za-z0-9-]+$`)
	groupPattern     = regexp.MustCompile(`^sg-[A-Za-z0-9-]+$`)
)

// Enabled tells whether the records, the queue and the objects are AWS's.
func (s Settings) Enabled() bool { return s.Table != "" || s.QueueURL != "" || s.Bucket != "" }

// Validate names each key whose value breaks its rule.
func (s Settings) Validate() error {
	// The certifier needs no more than the bucket.
	core, tasks := s.Table != "" || s.QueueURL != "", s.Cluster != "" || s.TaskDefinition != ""
	errs := []error{checkQueueURL("SYSUP_QUEUE_URL", s.QueueURL, core), checkQueueURL("SYSUP_DEAD_LETTERS_URL", s.DeadLettersURL, false)}
	if s.DeadLettersURL != "" && s.DeadLettersURL == s.QueueURL { // every build would be sent again, for ever
		errs = append(errs, fmt.Errorf("SYSUP_DEAD_LETTERS_URL has to be another queue than SYSUP_QUEUE_URL, it is %.200q too", s.DeadLettersURL))
	}
	for _, field := range []setting{
		{"SYSUP_TABLE", s.Table, "the name of a table: 3 to 255 letters, digits, '_', '.' and '-'", tablePattern, core},
		{"SYSUP_BUCKET", s.Bucket, "the name of a bucket: 3 to 63 lower-case letters, digits, '.' and '-'", bucketPattern, core},
		{"SYSUP_REQUEST_SECRET", s.RequestSecret, "ssm:/PATH or file:/PATH", secretPattern, false},
		{"SYSUP_SERVER_KEY", s.ServerKey, "ssm:/PATH, file:/PATH or kms:KEY", serverKeyPattern, false},
		{"SYSUP_CERTIFIER", s.Certifier, "lambda:FUNCTION or an http or https address", certifierPattern, false},
		{"SYSUP_CLUSTER", s.Cluster, "the name or ARN of a cluster", namePattern, tasks},
		{"SYSUP_TASK_DEFINITION", s.TaskDefinition, "the name or ARN of a task definition", namePattern, tasks},
		{"SYSUP_SECURITY_GROUP", s.SecurityGroup, "the ID of a security group, like sg-0123", groupPattern, tasks},
	} {
		errs = append(errs, field.check())
	}
	return errors.Join(append(errs, s.checkSubnets(tasks))...)
}

func (f setting) check() error {
	if f.value == "" && !f.required || len(f.value) <= maxSetting && f.pattern.MatchString(f.value) {
		return nil
	}
	return fmt.Errorf("%s has to be %s, it is %.200q", f.key, f.rule, f.value)
}

func checkQueueURL(key, value string, required bool) error {
	u, err := url.Parse(value)
	good := err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.User == nil &&
		strings.Trim(u.Path, "/") != "" && u.RawQuery == "" && u.Fragment == "" && len(value) <= maxSetting
	if value == "" && !required || good {
		return nil
	}
	return fmt.Errorf("%s has to be the http or https address of a queue, it is %.200q", key, value)
}

func (s Settings) checkSubnets(required bool) error {
	if required && len(s.Subnets) == 0 || len(s.Subnets) > 16 {
		return fmt.Errorf("SYSUP_SUBNETS has to be 1 to 16 IDs of subnets, separated by commas, it has %d", len(s.Subnets))
	}
	for _, subnet := range s.Subnets {
		if !subnetPattern.MatchString(subnet) {
			return fmt.Errorf("SYSUP_SUBNETS has to be IDs of subnets, like subnet-0123, separated by commas; one is %.200q", subnet)
		}
	}
	return nil
}
