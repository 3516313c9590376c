// Package infra_test holds template.yaml against what docs/design.md promises.
// Each promise is one function that names what breaks it; TestBrokenTemplates
// shows of each that it would be noticed.
package infra_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/aws"
)

const templateFile = "../template.yaml"

// promises are checks of the whole template. Each returns a sentence for
// everything that is wrong.
var promises = map[string]func(template) []string{
	"permissions": permissionsAsReviewed,
	"statements":  statementsNameActionsAndResources,
	"roles":       rolesHaveNothingElse,
	"certifier":   onlyBuildersReachTheCertifier,
	"secrets":     secretsAreReadByTheirOwnersOnly,
	"resources":   nothingThatCostsAtRest,
	"bucket":      bucketIsPrivate,
	"lifecycle":   objectsEnd,
	"records":     tableAsTheCodeExpects,
	"queues":      queuesAsTheCodeExpects,
	"functions":   functionsAreSmall,
	"settings":    settingsAsReviewed,
	"api":         gatewayPassesEverything,
	"behaviours":  behavioursInOrder,
	"errors":      errorsAreNotCached,
	"builder":     builderIsConfined,
	"network":     nobodyConnectsToBuilders,
	"origin":      originSecretIsShared,
	"parameters":  defaultsThatWork,
	"effects":     noStatementDenies,
	"refusals":    refusalsAreCounted,
}

func TestTemplate(t *testing.T) {
	parsed, err := parse(readTemplate(t, templateFile))
	if err != nil {
		t.Fatal(err)
	}
	for name, check := range promises {
		t.Run(name, func(t *testing.T) {
			for _, problem := range check(parsed) {
				t.Error(problem)
			}
		})
	}
}

// permissions is what each role may do and on what. Whoever changes it says in
// the commit why the code needs it.
var permissions = map[string][]string{
	"ApiRole": {
		"logs:CreateLogStream ApiLog.Arn",
		"logs:PutLogEvents ApiLog.Arn",
		"dynamodb:GetItem Table.Arn",
		"dynamodb:PutItem Table.Arn",
		"dynamodb:UpdateItem Table.Arn",
		"sqs:SendMessage Queue.Arn",
		"s3:GetObject ${Bucket.Arn}/store/*",
		"s3:GetObject ${Bucket.Arn}/index/*",
		"s3:GetObject ${Bucket.Arn}/catalog/*",
		"s3:GetObject ${Bucket.Arn}/json/*",
		"s3:GetObject ${Bucket.Arn}/keys/*",
		"s3:PutObject ${Bucket.Arn}/catalog/*",
		"s3:PutObject ${Bucket.Arn}/json/*",
		"s3:AbortMultipartUpload ${Bucket.Arn}/catalog/*",
		"s3:AbortMultipartUpload ${Bucket.Arn}/json/*",
		"s3:ListBucket Bucket.Arn",
		"ssm:GetParameter arn:${AWS::Partition}:ssm:${AWS::Region}:${AWS::AccountId}:parameter/sysup/${KeyName}/request-secret",
		runTask,
		"ecs:RunTask Cluster.Arn" + inCluster,
		"iam:PassRole BuilderRole.Arn" + toTasks,
		"iam:PassRole BuilderExecutionRole.Arn" + toTasks,
	},
	"HousekeeperRole": {
		"logs:CreateLogStream HousekeeperLog.Arn",
		"logs:PutLogEvents HousekeeperLog.Arn",
		"dynamodb:GetItem Table.Arn",
		"dynamodb:BatchGetItem Table.Arn",
		"dynamodb:PutItem Table.Arn",
		"dynamodb:UpdateItem Table.Arn",
		"dynamodb:DeleteItem Table.Arn",
		"dynamodb:Query ${Table.Arn}/index/due",
		"sqs:SendMessage Queue.Arn",
		"sqs:ReceiveMessage DeadLetters.Arn",
		"sqs:DeleteMessage DeadLetters.Arn",
		"sqs:ChangeMessageVisibility DeadLetters.Arn",
		"s3:GetObject ${Bucket.Arn}/store/*",
		"s3:GetObject ${Bucket.Arn}/index/*",
		"s3:GetObject ${Bucket.Arn}/catalog/*",
		"s3:GetObject ${Bucket.Arn}/json/*",
		"s3:PutObject ${Bucket.Arn}/catalog/*",
		"s3:PutObject ${Bucket.Arn}/json/*",
		"s3:AbortMultipartUpload ${Bucket.Arn}/catalog/*",
		"s3:AbortMultipartUpload ${Bucket.Arn}/json/*",
		"s3:DeleteObject ${Bucket.Arn}/catalog/*",
		"s3:DeleteObject ${Bucket.Arn}/json/*",
		"s3:DeleteObject ${Bucket.Arn}/store/*",
		"s3:DeleteObject ${Bucket.Arn}/index/*",
		"s3:DeleteObject ${Bucket.Arn}/keys/worker-*",
		"s3:GetObject ${Bucket.Arn}/keys/server.pub",
		"s3:PutObject ${Bucket.Arn}/keys/server.pub",
		"ssm:GetParameter arn:${AWS::Partition}:ssm:${AWS::Region}:${AWS::AccountId}:parameter/sysup/${KeyName}/server-pub",
		"s3:ListBucket Bucket.Arn",
		"ecs:ListTasks *" + inCluster,
		runTask,
		"ecs:RunTask Cluster.Arn" + inCluster,
		"iam:PassRole BuilderRole.Arn" + toTasks,
		"iam:PassRole BuilderExecutionRole.Arn" + toTasks,
	},
	"CertifierRole": {
		"logs:CreateLogStream CertifierLog.Arn",
		"logs:PutLogEvents CertifierLog.Arn",
		"s3:GetObject ${Bucket.Arn}/keys/*",
		"s3:PutObject ${Bucket.Arn}/keys/*",
		"s3:ListBucket Bucket.Arn",
		"kms:Sign ServerKeyArn",
		"kms:GetPublicKey ServerKeyArn",
		"ssm:GetParameter arn:${AWS::Partition}:ssm:${AWS::Region}:${AWS::AccountId}:parameter/sysup/${KeyName}/server-key",
	},
	"BuilderRole": {
		"dynamodb:GetItem Table.Arn",
		"dynamodb:PutItem Table.Arn",
		"dynamodb:UpdateItem Table.Arn",
		"sqs:ReceiveMessage Queue.Arn",
		"sqs:DeleteMessage Queue.Arn",
		"sqs:ChangeMessageVisibility Queue.Arn",
		"s3:GetObject ${Bucket.Arn}/store/*",
		"s3:GetObject ${Bucket.Arn}/index/*",
		"s3:GetObject ${Bucket.Arn}/catalog/*",
		"s3:GetObject ${Bucket.Arn}/imagebuilder/*",
		"s3:GetObject ${Bucket.Arn}/keys/*",
		"s3:PutObject ${Bucket.Arn}/store/*",
		"s3:PutObject ${Bucket.Arn}/index/*",
		"s3:PutObject ${Bucket.Arn}/imagebuilder/*",
		"s3:PutObject ${Bucket.Arn}/catalog/.made/*",
		"s3:AbortMultipartUpload ${Bucket.Arn}/store/*",
		"s3:AbortMultipartUpload ${Bucket.Arn}/index/*",
		"s3:AbortMultipartUpload ${Bucket.Arn}/imagebuilder/*",
		"s3:AbortMultipartUpload ${Bucket.Arn}/catalog/.made/*",
		"s3:DeleteObject ${Bucket.Arn}/store/*",
		"s3:DeleteObject ${Bucket.Arn}/imagebuilder/*",
		"s3:ListBucket Bucket.Arn",
		"lambda:InvokeFunction Certifier.Arn",
	},
	"BuilderExecutionRole": {
		"ecr:GetAuthorizationToken *",
		"ecr:BatchCheckLayerAvailability Repository.Arn",
		"ecr:BatchGetImage Repository.Arn",
		"ecr:GetDownloadUrlForLayer Repository.Arn",
		"logs:CreateLogStream BuilderLog.Arn",
		"logs:PutLogEvents BuilderLog.Arn",
	},
	"BucketPolicy": {
		"s3:GetObject ${Bucket.Arn}/store/*" + byDistribution,
		"s3:GetObject ${Bucket.Arn}/keys/*" + byDistribution,
		"s3:GetObject ${Bucket.Arn}/json/*" + byDistribution,
		"s3:ListBucket Bucket.Arn" + byDistribution + " StringLikeIfExists s3:prefix store/* keys/* json/*",
	},
}

const (
	inCluster      = " if ArnEqualsIfExists ecs:cluster Cluster.Arn"
	runTask        = "ecs:RunTask arn:${AWS::Partition}:ecs:${AWS::Region}:${AWS::AccountId}:task-definition/${AWS::StackName}-builder:*" + inCluster
	toTasks        = " if StringEquals iam:PassedToService ecs-tasks.amazonaws.com"
	byDistribution = " if StringEquals aws:SourceArn arn:${AWS::Partition}:cloudfront::${AWS::AccountId}:distribution/${Distribution}"
)

// anyResource are the actions that AWS knows without a resource.
var anyResource = map[string]string{
	"ecr:GetAuthorizationToken": "logs in to the registry of the account, not to a repository",
	"ecs:ListTasks":             "is limited to the cluster by a condition, which is pinned above",
}

func permissionsAsReviewed(t template) []string {
	var problems []string
	for _, holder := range keys(t.resources()) {
		granted := grants(t.resources()[holder])
		problems = append(problems, difference(holder, permissions[holder], granted)...)
	}
	return problems
}

// grants are the permissions of the policies of one resource, trust policies
// aside, as lines like those of the table above.
func grants(resource any) []string {
	var out []string
	for _, s := range statements(resource) {
		if words(s["Action"]) == "sts:AssumeRole" {
			continue
		}
		for _, action := range list(s["Action"]) {
			for _, on := range list(s["Resource"]) {
				line := words(action) + " " + words(on)
				if s["Condition"] != nil {
					line += " if " + words(s["Condition"])
				}
				out = append(out, line)
			}
		}
	}
	return out
}

func difference(name string, want, got []string) []string {
	var problems []string
	for _, line := range got {
		if !slices.Contains(want, line) {
			problems = append(problems, fmt.Sprintf("%s has what is not in the reviewed table: %s", name, line))
		}
	}
	for _, line := range want {
		if !slices.Contains(got, line) {
			problems = append(problems, fmt.Sprintf("%s lacks what is in the reviewed table: %s", name, line))
		}
	}
	return problems
}

func statementsNameActionsAndResources(t template) []string {
	var problems []string
	for _, holder := range keys(t.resources()) {
		for _, s := range statements(t.resources()[holder]) {
			for _, problem := range vague(s) {
				problems = append(problems, fmt.Sprintf("%s, statement %v: %s", holder, s["Sid"], problem))
			}
		}
	}
	return problems
}

func vague(statement map[string]any) []string {
	var problems []string
	for _, key := range []string{"NotAction", "NotResource", "NotPrincipal"} {
		if statement[key] != nil {
			problems = append(problems, key+" allows what nobody thought of")
		}
	}
	if p := words(statement["Principal"]); strings.Contains(p, "*") {
		problems = append(problems, "everybody is its principal")
	}
	trust := words(statement["Action"]) == "sts:AssumeRole"
	if len(list(statement["Action"])) == 0 || !trust && len(list(statement["Resource"])) == 0 {
		problems = append(problems, "it names no action or no resource")
	}
	for _, a := range list(statement["Action"]) {
		action := words(a)
		if strings.Contains(action, "*") {
			problems = append(problems, "the action "+action+" is a pattern")
		}
		for _, r := range list(statement["Resource"]) {
			if anyResource[action] == "" && tooWide(words(r)) {
				problems = append(problems, action+" on "+words(r)+" is too wide")
			}
		}
	}
	return problems
}

// tooWide admits a pattern only behind a prefix of our bucket and for the
// revisions of our task definition.
func tooWide(resource string) bool {
	fixed, pattern := strings.CutSuffix(resource, "*")
	prefix, ours := strings.CutPrefix(fixed, "${Bucket.Arn}/")
	switch {
	case fixed == "" || strings.Contains(fixed, "*"):
		return true
	case !pattern:
		return false
	}
	return (!ours || prefix == "") && !strings.HasSuffix(fixed, ":task-definition/${AWS::StackName}-builder:")
}

func rolesHaveNothingElse(t template) []string {
	var problems []string
	for _, role := range t.ofType("AWS::IAM::Role") {
		if t.property(role, "ManagedPolicyArns") != nil {
			problems = append(problems, role+" has managed policies, whose contents are somebody else's")
		}
		principal := words(t.property(role, "AssumeRolePolicyDocument", "Statement", 0, "Principal"))
		want := "Service lambda.amazonaws.com"
		if strings.HasPrefix(role, "Builder") {
			want = "Service ecs-tasks.amazonaws.com"
		}
		if principal != want || len(statements(t.property(role, "AssumeRolePolicyDocument"))) != 1 {
			problems = append(problems, fmt.Sprintf("%s is assumed by %s, not only by %s", role, principal, want))
		}
	}
	users := map[string]string{}
	for _, function := range t.ofType("AWS::Serverless::Function") {
		role := words(t.property(function, "Role"))
		if role != function+"Role.Arn" || t.property(function, "Policies") != nil {
			problems = append(problems, function+" has not its own role, written out in the template: "+role)
		}
		if other := users[role]; other != "" {
			problems = append(problems, function+" shares its role with "+other)
		}
		users[role] = function
	}
	for _, kind := range []string{"Policy", "ManagedPolicy", "RolePolicy", "User", "Group", "AccessKey"} {
		for _, name := range t.ofType("AWS::IAM::" + kind) {
			problems = append(problems, name+" gives rights outside of the roles")
		}
	}
	return problems
}

func noStatementDenies(t template) []string {
	var problems []string
	every(t.resources(), func(m map[string]any) {
		for _, s := range list(m["Statement"]) {
			for _, b := range branches(s) {
				if b["Effect"] != "Allow" {
					problems = append(problems, fmt.Sprintf("statement %v has the effect %v; the table of permissions knows Allow only", b["Sid"], b["Effect"]))
				}
			}
		}
	})
	return problems
}

func onlyBuildersReachTheCertifier(t template) []string {
	var problems []string
	for holder, resource := range t.resources() {
		for _, s := range statements(resource) {
			for _, a := range list(s["Action"]) {
				service, _, _ := strings.Cut(words(a), ":")
				if (service == "lambda" || service == "*") && holder != "BuilderRole" {
					problems = append(problems, fmt.Sprintf("%s may %s", holder, words(a)))
				}
			}
		}
		kind := words(at(resource, "Type"))
		names := words(t.property(holder, "FunctionName")) + words(t.property(holder, "IntegrationUri")) +
			words(t.property(holder, "Targets")) + words(t.property(holder, "Target"))
		if (strings.HasPrefix(kind, "AWS::Lambda::") || strings.Contains(kind, "Gateway") || strings.HasPrefix(kind, "AWS::Events") ||
			strings.HasPrefix(kind, "AWS::Scheduler")) && strings.Contains(names, "Certifier") {
			problems = append(problems, holder+" leads others to the certifier")
		}
	}
	for _, key := range []string{"Events", "FunctionUrlConfig"} {
		for _, function := range t.ofType("AWS::Serverless::Function") {
			if t.property(function, key) != nil {
				problems = append(problems, function+" is reached by "+key)
			}
		}
	}
	return problems
}

func secretsAreReadByTheirOwnersOnly(t template) []string {
	owners := map[string]string{"ApiRole": "/request-secret", "CertifierRole": "/server-key", "HousekeeperRole": "/server-pub"} // the last is no secret
	var problems []string
	for holder, resource := range t.resources() {
		for _, s := range statements(resource) {
			for _, a := range list(s["Action"]) {
				service, _, _ := strings.Cut(words(a), ":")
				if service != "ssm" && service != "kms" && service != "secretsmanager" {
					continue
				}
				if owner := owners[holder]; owner == "" || service == "ssm" && !strings.HasSuffix(words(s["Resource"]), owner) || holder != "CertifierRole" && service != "ssm" {
					problems = append(problems, fmt.Sprintf("%s may %s on %s", holder, words(a), words(s["Resource"])))
				}
			}
		}
	}
	return problems
}

// unwanted are types, by prefix, that cost money while nobody builds or that
// harm, with the reason.
var unwanted = map[string]string{
	"AWS::EC2::NatGateway":                "costs 32 USD a month",
	"AWS::EC2::EIP":                       "costs 3.60 USD a month",
	"AWS::ECS::Service":                   "its scaling in kills builds",
	"AWS::ApplicationAutoScaling":         "its scaling in kills builds",
	"AWS::AutoScaling":                    "its scaling in kills builds",
	"AWS::KMS::Key":                       "costs 1 USD a month",
	"AWS::SecretsManager":                 "costs 0.40 USD a month and secret",
	"AWS::Lambda::EventSourceMapping":     "polls all the time",
	"AWS::ElasticLoadBalancing":           "costs 16 USD a month",
	"AWS::WAFv2":                          "costs 7 USD a month; it is in infra/waf.yaml",
	"AWS::Budgets":                        "is in infra/budget.yaml",
	"AWS::Serverless::HttpApi":            "hides its routes from emulators",
	"AWS::Serverless::Api":                "costs three times an HTTP API",
	"AWS::CloudFormation::CustomResource": "is code that nobody tests",
}

func nothingThatCostsAtRest(t template) []string {
	var problems []string
	for name, resource := range t.resources() {
		for prefix, why := range unwanted {
			if strings.HasPrefix(words(at(resource, "Type")), prefix) {
				problems = append(problems, fmt.Sprintf("%s is a %s, which %s", name, prefix, why))
			}
		}
	}
	if n := len(t.ofType("AWS::CloudWatch::Alarm")); n > 10 || n == 0 {
		problems = append(problems, fmt.Sprintf("there are %d alarms; ten are free of charge", n))
	}
	if n := len(t.ofType("AWS::CloudWatch::Dashboard")); n != 1 {
		problems = append(problems, fmt.Sprintf("there are %d dashboards, not one", n))
	}
	metrics := map[string]bool{}
	for _, alarm := range t.ofType("AWS::CloudWatch::Alarm") {
		if t.property(alarm, "Namespace") == aws.MetricsNamespace {
			metrics[words(t.property(alarm, "MetricName"))] = true
		}
	}
	for metric := range metrics {
		if !slices.Contains(ourMetrics, metric) {
			problems = append(problems, "an alarm waits for "+metric+", which nobody sends")
		}
	}
	for _, log := range t.ofType("AWS::Logs::LogGroup") {
		if words(t.property(log, "RetentionInDays")) != "LogRetention" {
			problems = append(problems, log+" is kept for ever")
		}
	}
	return problems
}

// refusalsAreCounted: 503, and for auc 500, since that is all it prints.
func refusalsAreCounted(t template) []string {
	return properties(t, "Refused", map[string]string{
		"LogGroupName":  "ApiLog",
		"FilterPattern": `{ $.msg = "answered" && ($.status = 503 || ($.status = 500 && $.agent = "auc*")) }`,
	})
}

// ourMetrics are what the code sends.
var ourMetrics = []string{
	aws.MetricPending, aws.MetricAlive, aws.MetricDeadLetters, aws.MetricCatalogueAge, aws.MetricBuildSeconds, aws.MetricDone, aws.MetricFailed, aws.MetricRefused,
	aws.MetricSandbox, aws.MetricDisagreed, aws.MetricPathsDiffer,
}

func bucketIsPrivate(t template) []string {
	var problems []string
	for _, bucket := range t.ofType("AWS::S3::Bucket") {
		for _, key := range []string{"BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets"} {
			if t.property(bucket, "PublicAccessBlockConfiguration", key) != true {
				problems = append(problems, bucket+" does not set "+key)
			}
		}
		if words(t.property(bucket, "BucketEncryption")) != "ServerSideEncryptionConfiguration ServerSideEncryptionByDefault SSEAlgorithm AES256" {
			problems = append(problems, bucket+" is not encrypted by S3's own keys")
		}
		if words(t.property(bucket, "OwnershipControls")) != "Rules ObjectOwnership BucketOwnerEnforced" {
			problems = append(problems, bucket+" admits access lists")
		}
	}
	if n := len(t.ofType("AWS::S3::Bucket")); n != 1 {
		problems = append(problems, fmt.Sprintf("there are %d buckets, not one", n))
	}
	return problems
}

func objectsEnd(t template) []string {
	want := []string{
		"store/private/ 1 <nil>", "store/ 9 <nil>", "index/ 9 <nil>", "keys/worker- 32 <nil>", "imagebuilder/ 14 <nil>", "<nil> <nil> DaysAfterInitiation 1",
	}
	var got []string
	for _, rule := range list(t.property("Bucket", "LifecycleConfiguration", "Rules")) {
		if at(rule, "Status") == "Enabled" {
			got = append(got, words(at(rule, "Prefix"))+" "+words(at(rule, "ExpirationInDays"))+" "+words(at(rule, "AbortIncompleteMultipartUpload")))
		}
	}
	return difference("the bucket's lifecycle", want, got)
}

func tableAsTheCodeExpects(t template) []string {
	want := map[string]string{
		"BillingMode":                "PAY_PER_REQUEST",
		"KeySchema":                  "AttributeName pk KeyType HASH",
		"AttributeDefinitions":       "AttributeName pk AttributeType S AttributeName shard AttributeType S AttributeName due_at AttributeType N",
		"TimeToLiveSpecification":    "AttributeName expires Enabled true",
		"GlobalSecondaryIndexes":     "IndexName due KeySchema AttributeName shard KeyType HASH AttributeName due_at KeyType RANGE Projection ProjectionType KEYS_ONLY",
		"StreamSpecification":        "<nil>",
		"SSESpecification":           "<nil>",
		"ProvisionedThroughput":      "<nil>",
		"DeletionProtectionEnabled":  "<nil>",
		"ContributorInsightsEnabled": "<nil>",
		// It would keep the passwords of first-boot scripts for 35 days.
		"PointInTimeRecoverySpecification": "<nil>",
	}
	return properties(t, "Table", want)
}

func properties(t template, resource string, want map[string]string) []string {
	var problems []string
	for key, value := range want {
		if got := words(t.property(resource, key)); got != value {
			problems = append(problems, fmt.Sprintf("%s: %s is %q, not %q", resource, key, got, value))
		}
	}
	return problems
}

func queuesAsTheCodeExpects(t template) []string {
	return append(properties(t, "Queue", map[string]string{
		"VisibilityTimeout":             "60",
		"ReceiveMessageWaitTimeSeconds": "20",
		"SqsManagedSseEnabled":          "true",
		"MessageRetentionPeriod":        "172800",
		"RedrivePolicy":                 "deadLetterTargetArn DeadLetters.Arn maxReceiveCount 20",
	}), properties(t, "DeadLetters", map[string]string{
		"SqsManagedSseEnabled":   "true",
		"MessageRetentionPeriod": "1209600",
	})...)
}

func functionsAreSmall(t template) []string {
	var problems []string
	if got := words(t["Globals"]); got != "Function Architectures Architecture Handler bootstrap MemorySize 512 Runtime provided.al2023" {
		problems = append(problems, "the functions' common settings are "+got)
	}
	if got := t.ofType("AWS::Serverless::Function"); !slices.Equal(got, []string{"Api", "Certifier", "Housekeeper"}) {
		problems = append(problems, fmt.Sprintf("the functions are %v", got))
	}
	for _, function := range t.ofType("AWS::Serverless::Function") {
		if got, want := t.property(function, "CodeUri"), "build/functions/"+strings.ToLower(function)+"/"; got != want {
			problems = append(problems, fmt.Sprintf("%s is taken from %v, not from %s", function, got, want))
		}
		if got := words(t.property(function, "LoggingConfig")); got != "LogGroup "+function+"Log" {
			problems = append(problems, function+" logs to "+got)
		}
		for _, reserved := range []string{"ReservedConcurrentExecutions", "ProvisionedConcurrencyConfig", "VpcConfig"} {
			if t.property(function, reserved) != nil {
				problems = append(problems, function+" has "+reserved+"; new accounts have ten concurrent functions in all, and no NAT")
			}
		}
	}
	problems = append(problems, properties(t, "EveryFiveMinutes", map[string]string{
		"ScheduleExpression": "rate(5 minutes)", "State": "ENABLED", "Targets": "Arn Housekeeper.Arn Id housekeeper",
	})...)
	return problems
}

// runsTasks are the settings of those who start builders.
var runsTasks = []string{
	"SYSUP_CLUSTER Cluster", "SYSUP_TASK_DEFINITION Builder", "SYSUP_SUBNETS ${SubnetA},${SubnetB}",
	"SYSUP_SECURITY_GROUP EgressOnly.GroupId", "SYSUP_MAX_BUILDERS MaxBuilders", "SYSUP_SPOT Spot",
}

// environments are the settings of each program, by the names of
// shared/settings.
var environments = map[string][]string{
	"Api": append([]string{
		"SYSUP_TABLE Table", "SYSUP_QUEUE_URL Queue", "SYSUP_BUCKET Bucket",
		"SYSUP_REQUEST_SECRET ssm:/sysup/${KeyName}/request-secret",
		"SYSUP_PUBLIC_URL Fn::If HasPublicUrl PublicUrl Fn::If HasDomain https://${DomainName} https://${Distribution.DomainName}",
		"SYSUP_ORIGIN_SECRET " + originSecret,
		"SYSUP_UPSTREAM Upstream", "SYSUP_UPSTREAM_KEY Fn::If HasUpstreamKey UpstreamKey AWS::NoValue",
		"SYSUP_ALLOW_DEFAULTS AllowDefaults", "SYSUP_REPOSITORY_ALLOW Fn::If HasRepositoryAllow RepositoryAllow AWS::NoValue",
		"SYSUP_MAX_PENDING MaxPending", "SYSUP_BUILDS_PER_DAY BuildsPerDay", "SYSUP_BUILDS_PER_CLIENT BuildsPerClient",
	}, runsTasks...),
	"Housekeeper": append([]string{
		"SYSUP_TABLE Table", "SYSUP_QUEUE_URL Queue", "SYSUP_DEAD_LETTERS_URL DeadLetters", "SYSUP_BUCKET Bucket",
		"SYSUP_UPSTREAM Upstream", "SYSUP_UPSTREAM_KEY Fn::If HasUpstreamKey UpstreamKey AWS::NoValue",
		"SYSUP_ALLOW_DEFAULTS AllowDefaults", "SYSUP_REPOSITORY_ALLOW Fn::If HasRepositoryAllow RepositoryAllow AWS::NoValue",
		"SYSUP_SERVER_PUB ssm:/sysup/${KeyName}/server-pub",
	}, runsTasks...),
	"Certifier": {
		"SYSUP_BUCKET Bucket",
		"SYSUP_SERVER_KEY Fn::If HasServerKeyArn kms:${ServerKeyArn} ssm:/sysup/${KeyName}/server-key",
	},
	"Builder": {
		"SYSUP_TABLE Table", "SYSUP_QUEUE_URL Queue", "SYSUP_BUCKET Bucket", "SYSUP_CERTIFIER lambda:${Certifier}",
		"SYSUP_UPSTREAM Upstream", "SYSUP_UPSTREAM_KEY UpstreamKey if HasUpstreamKey", "SYSUP_IDLE 5m", "SYSUP_METRICS true",
	},
}

const originSecret = "Fn::Select 2 Fn::Split / AWS::StackId"

func settingsAsReviewed(t template) []string {
	var problems []string
	for program, want := range environments {
		problems = append(problems, difference(program, want, environment(t, program))...)
	}
	return problems
}

// environment is what the program named is started with, one `NAME value` each.
func environment(t template, program string) []string {
	var out []string
	for _, pair := range list(t.property(program, "ContainerDefinitions", 0, "Environment")) {
		condition := ""
		if at(pair, "Fn::If") != nil {
			condition, pair = " if "+words(at(pair, "Fn::If", 0)), at(pair, "Fn::If", 1)
		}
		out = append(out, words(at(pair, "Name"))+" "+words(at(pair, "Value"))+condition)
	}
	variables := t.property(program, "Environment", "Variables")
	for _, name := range keys(variables) {
		out = append(out, name+" "+words(at(variables, name)))
	}
	return out
}

func gatewayPassesEverything(t template) []string {
	var problems []string
	if routes := t.ofType("AWS::ApiGatewayV2::Route"); len(routes) != 1 || t.property(routes[0], "RouteKey") != "$default" {
		problems = append(problems, "the gateway has other routes than $default, so some errors are not ours")
	}
	problems = append(problems, properties(t, "HttpApi", map[string]string{"ProtocolType": "HTTP", "CorsConfiguration": "<nil>", "Body": "<nil>"})...)
	problems = append(problems, properties(t, "Integration", map[string]string{"IntegrationUri": "Api.Arn", "PayloadFormatVersion": "2.0", "IntegrationType": "AWS_PROXY"})...)
	return append(problems, properties(t, "DefaultStage", map[string]string{"StageName": "$default", "AutoDeploy": "true"})...)
}

const (
	cachingDisabled  = "4135ea2d-6df8-44a3-9df3-4b5a084be39a"
	cachingOptimized = "658327ea-f89d-4fab-a63d-7e88639e58f6"
	allViewerButHost = "b689b0a8-53d0-40ab-baf2-68738e2966ac"
)

func behavioursInOrder(t template) []string {
	collapse := "EventType viewer-request FunctionARN CollapseSlashes.FunctionMetadata.FunctionARN"
	want := []string{
		"/store/private/* " + cachingDisabled + " <nil>",
		"//store/private/* " + cachingDisabled + " " + collapse,
		"/store/* " + cachingOptimized + " <nil>",
		"//store/* " + cachingOptimized + " " + collapse,
		"/keys/* " + cachingOptimized + " <nil>",
		"//keys/* " + cachingOptimized + " " + collapse,
		"/json/* " + cachingOptimized + " <nil>",
		"//json/* " + cachingOptimized + " " + collapse,
	}
	var got, problems []string
	for _, b := range list(t.property("Distribution", "DistributionConfig", "CacheBehaviors")) {
		got = append(got, words(at(b, "PathPattern"))+" "+words(at(b, "CachePolicyId"))+" "+words(at(b, "FunctionAssociations")))
		origin := "bucket"
		if strings.Contains(words(at(b, "PathPattern")), "json") {
			origin = "Fn::If HasApiOriginDomain bucket catalogue"
		}
		common := words(at(b, "TargetOriginId")) + " " + words(at(b, "ViewerProtocolPolicy")) + " " + words(at(b, "AllowedMethods")) + " " + words(at(b, "ResponseHeadersPolicyId"))
		if common != origin+" https-only GET HEAD CrossOrigin" {
			problems = append(problems, words(at(b, "PathPattern"))+" has "+common)
		}
	}
	if !slices.Equal(got, want) {
		problems = append(problems, "the behaviours are, in their order:\n"+strings.Join(got, "\n"))
	}
	fallback := t.property("Distribution", "DistributionConfig", "DefaultCacheBehavior")
	if got := words(at(fallback, "TargetOriginId")) + " " + words(at(fallback, "CachePolicyId")) + " " + words(at(fallback, "OriginRequestPolicyId")) + " " +
		words(at(fallback, "ViewerProtocolPolicy")) + " " + words(at(fallback, "ResponseHeadersPolicyId")); got != "api "+cachingDisabled+" "+allViewerButHost+" https-only <nil>" {
		problems = append(problems, "the API's behaviour is "+got)
	}
	for _, method := range []string{"GET", "HEAD", "OPTIONS", "PUT", "PATCH", "POST", "DELETE"} {
		if !slices.Contains(list(at(fallback, "AllowedMethods")), any(method)) {
			problems = append(problems, "the CDN answers "+method+" itself, without a sentence")
		}
	}
	group := words(t.property("Distribution", "DistributionConfig", "OriginGroups"))
	if group != "Items FailoverCriteria StatusCodes Items 403 404 Quantity 2 Id catalogue Members Items OriginId bucket OriginId api Quantity 2 Quantity 1" {
		problems = append(problems, "what the static catalogue lacks is not asked of the API: "+group)
	}
	if got := words(t.property("CrossOrigin", "ResponseHeadersPolicyConfig", "CorsConfig", "AccessControlAllowOrigins")); got != "Items *" {
		problems = append(problems, "web pages of others cannot read images: "+got)
	}
	if code := words(t.property("CollapseSlashes", "FunctionCode")); !strings.Contains(code, `replace(/^\/+/, '/')`) {
		problems = append(problems, "slashes elsewhere than at the beginning lead past the behaviour of private results: "+code)
	}
	if t.property("Distribution", "DistributionConfig", "Logging") != nil {
		problems = append(problems, "access logs hold the addresses of results, which give access to them")
	}
	return problems
}

func errorsAreNotCached(t template) []string {
	var want, got []string
	for _, code := range []int{400, 403, 404, 405, 414, 416, 500, 501, 502, 503, 504} {
		want = append(want, fmt.Sprintf("ErrorCachingMinTTL 0 ErrorCode %d", code))
	}
	for _, response := range list(t.property("Distribution", "DistributionConfig", "CustomErrorResponses")) {
		got = append(got, words(response))
	}
	return difference("CustomErrorResponses", want, got)
}

// kept are the capabilities of the builder; dockerDefaults are what a
// container has unless told otherwise.
var (
	kept           = []string{"SETUID", "SETGID", "KILL", "CHOWN", "DAC_OVERRIDE"}
	dockerDefaults = []string{"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW",
		"SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"}
)

func builderIsConfined(t template) []string {
	var problems []string
	left := slices.Clone(dockerDefaults)
	container := t.property("Builder", "ContainerDefinitions", 0)
	for _, capability := range list(at(container, "LinuxParameters", "Capabilities", "Drop")) {
		left = slices.DeleteFunc(left, func(c string) bool { return c == capability })
	}
	left = append(left, strings.Fields(words(list(at(container, "LinuxParameters", "Capabilities", "Add"))))...)
	problems = append(problems, difference("the builder's capabilities", kept, left)...)
	for key, want := range map[string]string{
		"ReadonlyRootFilesystem": "true", "User": "0:0", "StopTimeout": "120", "Privileged": "<nil>", "PortMappings": "<nil>",
		"MountPoints": "ContainerPath /scratch ReadOnly false SourceVolume scratch", "Command": "<nil>", "Secrets": "<nil>",
	} {
		if got := words(at(container, key)); got != want {
			problems = append(problems, fmt.Sprintf("the builder's %s is %q, not %q", key, got, want))
		}
	}
	if n := len(list(t.property("Builder", "ContainerDefinitions"))); n != 1 {
		problems = append(problems, fmt.Sprintf("a task has %d containers", n))
	}
	return append(problems, properties(t, "Builder", map[string]string{
		"RuntimePlatform": "CpuArchitecture X86_64 OperatingSystemFamily LINUX", "NetworkMode": "awsvpc", "RequiresCompatibilities": "FARGATE",
		"EphemeralStorage": "SizeInGiB BuilderStorage", "TaskRoleArn": "BuilderRole.Arn", "ExecutionRoleArn": "BuilderExecutionRole.Arn",
		"Volumes": "Name scratch",
	})...)
}

func nobodyConnectsToBuilders(t template) []string {
	problems := properties(t, "EgressOnly", map[string]string{"SecurityGroupIngress": "<nil>"})
	want := []string{"tcp 443 443 0.0.0.0/0", "tcp 80 80 0.0.0.0/0", "udp 53 53 10.80.0.2/32", "tcp 53 53 10.80.0.2/32"}
	var got []string
	for _, rule := range list(t.property("EgressOnly", "SecurityGroupEgress")) {
		got = append(got, words([]any{at(rule, "IpProtocol"), at(rule, "FromPort"), at(rule, "ToPort"), at(rule, "CidrIp")}))
	}
	problems = append(problems, difference("the builders' security group", want, got)...)
	for _, kind := range []string{"Ingress", "Egress"} {
		for _, name := range t.ofType("AWS::EC2::SecurityGroup" + kind) {
			problems = append(problems, name+" opens the network beside the security group")
		}
	}
	var endpoints []string
	for _, name := range t.ofType("AWS::EC2::VPCEndpoint") {
		endpoints = append(endpoints, words([]any{t.property(name, "VpcEndpointType"), t.property(name, "ServiceName")}))
	}
	return append(problems, difference("the network's endpoints",
		[]string{"Gateway com.amazonaws.${AWS::Region}.s3", "Gateway com.amazonaws.${AWS::Region}.dynamodb"}, endpoints)...)
}

func originSecretIsShared(t template) []string {
	headers := words(t.property("Distribution", "DistributionConfig", "Origins", 1, "OriginCustomHeaders"))
	if headers != "HeaderName X-Sysup-Origin HeaderValue "+originSecret {
		return []string{"CloudFront adds " + headers}
	}
	if words(t.property("Distribution", "DistributionConfig", "Origins", 0, "OriginAccessControlId")) != "OriginAccess.Id" {
		return []string{"CloudFront does not sign its requests to the bucket"}
	}
	return nil
}

func defaultsThatWork(t template) []string {
	want := map[string]string{
		"KeyName": "main", "KeyFingerprint": "/sysup/main/fingerprint", "MaxBuilders": "2", "MaxPending": "500", "BuildsPerDay": "1000",
		"BuildsPerClient": "20", "Upstream": "https://downloads.openwrt.org", "Architecture": "arm64", "AllowDefaults": "false", "Spot": "false",
	}
	var problems []string
	for _, name := range keys(t["Parameters"]) {
		value := at(t["Parameters"], name, "Default")
		if value == nil {
			problems = append(problems, "the parameter "+name+" has no default")
		}
		if expected, listed := want[name]; listed && words(value) != expected {
			problems = append(problems, fmt.Sprintf("the default of %s is %v, not %s", name, value, expected))
		}
		delete(want, name)
	}
	for name := range want {
		problems = append(problems, "there is no parameter "+name)
	}
	return problems
}
