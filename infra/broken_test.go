package infra_test

import (
	"strings"
	"testing"
)

// TestBrokenTemplates breaks the template in one place at a time; the promise
// named must notice.
func TestBrokenTemplates(t *testing.T) {
	whole := readTemplate(t, templateFile)
	shown := map[string]bool{}
	for _, broken := range []struct{ promise, what, old, new string }{
		{"permissions", "the API may delete records", "Action: [dynamodb:GetItem, dynamodb:PutItem, dynamodb:UpdateItem]", "Action: [dynamodb:GetItem, dynamodb:PutItem, dynamodb:UpdateItem, dynamodb:DeleteItem]"},
		{"permissions", "builders are started in any cluster", `ArnEqualsIfExists: { "ecs:cluster": !GetAtt Cluster.Arn }`, `ArnLike: { "ecs:cluster": "*" }`},
		{"permissions", "another distribution reads the bucket", `StringEquals: { "aws:SourceArn": !Sub`, `StringEquals: { "aws:PrincipalArn": !Sub`},
		{"permissions", "the CDN may read archives", `!Sub "${Bucket.Arn}/json/*"`, `!Sub "${Bucket.Arn}/imagebuilder/*"`},
		{"permissions", "a new role", "Resources:\n", "Resources:\n  More:\n    Type: AWS::IAM::Role\n    Properties:\n      Policies:\n        - PolicyDocument: { Statement: [{ Effect: Allow, Action: s3:GetObject, Resource: !GetAtt Bucket.Arn }] }\n"},
		{"permissions", "the API does not find keys", "                  - !Sub \"${Bucket.Arn}/keys/*\"\n              # What the", "              # What the"},
		{"permissions", "the housekeeper writes any key", `Resource: !Sub "${Bucket.Arn}/keys/server.pub"`, `Resource: !Sub "${Bucket.Arn}/keys/*"`},
		{"permissions", "a dead letter cannot be put back", "Action: [sqs:ReceiveMessage, sqs:DeleteMessage, sqs:ChangeMessageVisibility]\n                Resource: !GetAtt DeadLetters.Arn", "Action: [sqs:ReceiveMessage, sqs:DeleteMessage]\n                Resource: !GetAtt DeadLetters.Arn"},
		{"statements", "an action is a pattern", "Action: sqs:SendMessage", `Action: "sqs:*"`},
		{"statements", "a resource is everything", "Resource: !GetAtt Queue.Arn", `Resource: "*"`},
		{"statements", "a resource is the whole bucket", `Resource: !Sub "${Bucket.Arn}/keys/*"`, `Resource: !Sub "${Bucket.Arn}/*"`},
		{"statements", "a resource is every key that begins so", `"${Bucket.Arn}/keys/worker-*"`, `"${Bucket.Arn}*"`},
		{"statements", "a resource has two patterns", `"${Bucket.Arn}/keys/worker-*"`, `"${Bucket.Arn}/*/worker-*"`},
		{"statements", "no resource", "                Resource: !GetAtt ApiLog.Arn\n", ""},
		{"statements", "the bucket is everybody's", "Principal: { Service: cloudfront.amazonaws.com }", `Principal: "*"`},
		{"statements", "all actions but one", "Action: s3:ListBucket", "NotAction: s3:ListBucket"},
		{"roles", "a managed policy", "      AssumeRolePolicyDocument: *tasks-assume\n", "      AssumeRolePolicyDocument: *tasks-assume\n      ManagedPolicyArns: [arn:aws:iam::aws:policy/AdministratorAccess]\n"},
		{"roles", "a shared role", "Role: !GetAtt HousekeeperRole.Arn", "Role: !GetAtt ApiRole.Arn"},
		{"roles", "functions can be builders", "Principal: { Service: ecs-tasks.amazonaws.com }", "Principal: { Service: [ecs-tasks.amazonaws.com, lambda.amazonaws.com] }"},
		{"effects", "an effect that is none", "              - Sid: RegistryLogin\n                Effect: Allow", "              - Sid: RegistryLogin\n                Effect: allow"},
		{"certifier", "the API may invoke it", "Action: sqs:SendMessage\n                Resource: !GetAtt Queue.Arn\n              - Sid: ReadObjects", "Action: [sqs:SendMessage, lambda:InvokeFunction]\n                Resource: [!GetAtt Queue.Arn, !GetAtt Certifier.Arn]\n              - Sid: ReadObjects"},
		{"certifier", "a permission for a service", "      FunctionName: !Ref Api\n", "      FunctionName: !Ref Certifier\n"},
		{"certifier", "a route leads to it", "IntegrationUri: !GetAtt Api.Arn", "IntegrationUri: !GetAtt Certifier.Arn"},
		{"certifier", "an address of its own", "      Role: !GetAtt CertifierRole.Arn\n", "      Role: !GetAtt CertifierRole.Arn\n      FunctionUrlConfig: { AuthType: NONE }\n"},
		{"secrets", "the API reads the server key", "parameter/sysup/${KeyName}/request-secret", "parameter/sysup/${KeyName}/*"},
		{"secrets", "the housekeeper reads the server key", "parameter/sysup/${KeyName}/server-pub", "parameter/sysup/${KeyName}/server-key"},
		{"secrets", "the housekeeper signs", "Action: ssm:GetParameter\n                Resource: !Sub \"arn:${AWS::Partition}:ssm:${AWS::Region}:${AWS::AccountId}:parameter/sysup/${KeyName}/server-pub\"", "Action: kms:Sign\n                Resource: !Ref ServerKeyArn"},
		{"secrets", "the builder reads one", "Action: [sqs:ReceiveMessage, sqs:DeleteMessage, sqs:ChangeMessageVisibility]\n                Resource: !GetAtt Queue.Arn", "Action: [sqs:ReceiveMessage, ssm:GetParameter]\n                Resource: !GetAtt Queue.Arn"},
		{"resources", "a NAT gateway", "Type: AWS::EC2::InternetGateway\n", "Type: AWS::EC2::NatGateway\n"},
		{"resources", "a service", "Type: AWS::SNS::Topic", "Type: AWS::ECS::Service"},
		{"resources", "auto scaling", "Type: AWS::SNS::Topic", "Type: AWS::ApplicationAutoScaling::ScalableTarget"},
		{"resources", "a key", "Type: AWS::SNS::Topic", "Type: AWS::KMS::Key"},
		{"resources", "a secret", "Type: AWS::SNS::Topic", "Type: AWS::SecretsManager::Secret"},
		{"resources", "two alarms too many", "Resources:\n", "Resources:\n  A: { Type: AWS::CloudWatch::Alarm }\n  B: { Type: AWS::CloudWatch::Alarm }\n"},
		{"resources", "an alarm on nothing", "MetricName: CatalogueAge", "MetricName: CatalogAge"},
		{"resources", "logs for ever", "RetentionInDays: !Ref LogRetention", "KmsKeyId: none"},
		{"bucket", "public access", "RestrictPublicBuckets: true", "RestrictPublicBuckets: false"},
		{"bucket", "no encryption", "{ SSEAlgorithm: AES256 }", `{ SSEAlgorithm: "aws:kms" }`},
		{"bucket", "access lists", "ObjectOwnership: BucketOwnerEnforced", "ObjectOwnership: ObjectWriter"},
		{"lifecycle", "private results stay", "            Prefix: store/private/\n            ExpirationInDays: 1\n", "            Prefix: store/private/\n            ExpirationInDays: 9\n"},
		{"lifecycle", "the server's key ends", "Prefix: keys/worker-", "Prefix: keys/"},
		{"lifecycle", "a rule that is off", "Status: Enabled\n            Prefix: imagebuilder/", "Status: Disabled\n            Prefix: imagebuilder/"},
		{"records", "expiry by another attribute", "AttributeName: expires", "AttributeName: expires_at"},
		{"records", "the index holds everything", "ProjectionType: KEYS_ONLY", "ProjectionType: ALL"},
		{"records", "backups keep passwords", "      BillingMode: PAY_PER_REQUEST\n", "      BillingMode: PAY_PER_REQUEST\n      PointInTimeRecoverySpecification: { PointInTimeRecoveryEnabled: true }\n"},
		{"queues", "few attempts", "maxReceiveCount: 20", "maxReceiveCount: 3"},
		{"queues", "short polls", "ReceiveMessageWaitTimeSeconds: 20", "ReceiveMessageWaitTimeSeconds: 0"},
		{"functions", "more memory", "MemorySize: 512", "MemorySize: 1024"},
		{"functions", "reserved concurrency", "      Timeout: 290\n", "      Timeout: 290\n      ReservedConcurrentExecutions: 1\n"},
		{"functions", "the housekeeper sleeps", "rate(5 minutes)", "rate(1 hour)"},
		{"settings", "a setting nobody reads", "SYSUP_MAX_PENDING:", "SYSUP_PENDING_MAX:"},
		{"settings", "a secret in the environment", `!Sub "ssm:/sysup/${KeyName}/request-secret"`, "!Ref KeyName"},
		{"api", "routes of the gateway", "RouteKey: $default", "RouteKey: ANY /api/{proxy+}"},
		{"api", "answers of the gateway", "      ProtocolType: HTTP\n", "      ProtocolType: HTTP\n      CorsConfiguration: { AllowOrigins: ['*'] }\n"},
		{"behaviours", "all results before private ones", "PathPattern: /store/private/*", "PathPattern: /store/*"},
		{"behaviours", "a slash too many leads to the API", "PathPattern: //keys/*", "PathPattern: //key/*"},
		{"behaviours", "private results of the API", "- PathPattern: /store/private/*\n            TargetOriginId: bucket", "- PathPattern: /store/private/*\n            TargetOriginId: catalogue"},
		{"behaviours", "the catalogue of the bucket alone", "- PathPattern: /json/*\n            TargetOriginId: !If [HasApiOriginDomain, bucket, catalogue]", "- PathPattern: /json/*\n            TargetOriginId: bucket"},
		{"behaviours", "the API before the bucket", "[{ OriginId: bucket }, { OriginId: api }]", "[{ OriginId: api }, { OriginId: bucket }]"},
		{"behaviours", "a missing list is missing", "Items: [403, 404]", "Items: [403, 500]"},
		{"behaviours", "private results by another way", `replace(/^\/+/, '/')`, `replace(/\/+/g, '/')`},
		{"behaviours", "private results are cached", "CachePolicyId: *caching-disabled\n            ResponseHeadersPolicyId", "CachePolicyId: 658327ea-f89d-4fab-a63d-7e88639e58f6\n            ResponseHeadersPolicyId"},
		{"behaviours", "polls are cached", "CachePolicyId: *caching-disabled\n          # AllViewer", "CachePolicyId: *caching-optimized\n          # AllViewer"},
		{"behaviours", "the viewer's host goes to the gateway", "b689b0a8-53d0-40ab-baf2-68738e2966ac", "216adef6-5c7f-47e4-b989-5492eafa07d3"},
		{"behaviours", "a redirect", "ViewerProtocolPolicy: https-only", "ViewerProtocolPolicy: redirect-to-https"},
		{"behaviours", "no POST", "[GET, HEAD, OPTIONS, PUT, PATCH, POST, DELETE]", "[GET, HEAD]"},
		{"errors", "a missing page is remembered", "{ ErrorCode: 404, ErrorCachingMinTTL: 0 }", "{ ErrorCode: 404, ErrorCachingMinTTL: 10 }"},
		{"errors", "one is forgotten", "          - { ErrorCode: 416, ErrorCachingMinTTL: 0 }\n", ""},
		{"refusals", "auc's are forgotten", ` || ($.status = 500 && $.agent = "auc*")`, ""},
		{"builder", "raw sockets", "NET_RAW, ", ""},
		{"builder", "a root it can write to", "ReadonlyRootFilesystem: true", "ReadonlyRootFilesystem: false"},
		{"builder", "another processor", "CpuArchitecture: X86_64", "CpuArchitecture: ARM64"},
		{"builder", "the function's role", "TaskRoleArn: !GetAtt BuilderRole.Arn", "TaskRoleArn: !GetAtt ApiRole.Arn"},
		{"network", "an open port", "      SecurityGroupEgress:\n", "      SecurityGroupIngress: [{ IpProtocol: tcp, FromPort: 22, ToPort: 22, CidrIp: 0.0.0.0/0 }]\n      SecurityGroupEgress:\n"},
		{"network", "every port outwards", "{ IpProtocol: tcp, FromPort: 80, ToPort: 80", "{ IpProtocol: tcp, FromPort: 0, ToPort: 65535"},
		{"network", "an endpoint that costs", "VpcEndpointType: Gateway", "VpcEndpointType: Interface"},
		{"origin", "another header", "HeaderName: X-Sysup-Origin", "HeaderName: X-Origin"},
		{"origin", "unsigned reads", "            OriginAccessControlId: !GetAtt OriginAccess.Id\n", ""},
		{"parameters", "a large bill", "    Default: 1000\n", "    Default: 100000\n"},
		{"parameters", "a question without an answer", "    Default: https://downloads.openwrt.org\n", ""},
	} {
		shown[broken.promise] = true
		t.Run(broken.promise+"/"+broken.what, func(t *testing.T) {
			text := strings.Replace(whole, broken.old, broken.new, 1)
			if text == whole {
				t.Fatalf("the template does not hold %q; break it in another place", broken.old)
			}
			parsed, err := parse(text)
			if err != nil {
				t.Fatal(err)
			}
			if len(promises[broken.promise](parsed)) == 0 {
				t.Error("nothing was noticed")
			}
		})
	}
	for name := range promises {
		if !shown[name] {
			t.Errorf("nothing shows that %q can fail", name)
		}
	}
}
