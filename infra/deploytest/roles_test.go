package deploytest_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
)

// roles tries with the rights of each role what only one of them may.
func (s *stack) roles(t *testing.T) {
	roles, certifier := s.principals(t)
	for _, c := range []struct {
		what string
		only string
		do   func(sdk.Config) error
	}{
		{"have a key certified", "Builder", func(c sdk.Config) error {
			_, err := lambda.NewFromConfig(c).Invoke(t.Context(), &lambda.InvokeInput{FunctionName: &certifier, Payload: []byte(`{}`)})
			return err
		}},
		{"read the request secret", "Api", readParameter(t, "/sysup/main/request-secret")},
		{"read the server's key", "Certifier", readParameter(t, "/sysup/main/server-key")},
		{"read the server's public key", "Housekeeper", readParameter(t, "/sysup/main/server-pub")},
		{"remove a worker's old key", "Housekeeper", s.remove(t, "keys/worker-none.pub")},
		{"remove the server's public key", "nobody", s.remove(t, "keys/server.pub")},
	} {
		for name, config := range roles {
			err := c.do(config)
			var api smithy.APIError
			denied := errors.As(err, &api) && strings.HasPrefix(api.ErrorCode(), "AccessDenied")
			switch {
			case name == c.only && err != nil:
				t.Errorf("%s may not %s: %v", name, c.what, err)
			case name != c.only && !denied:
				t.Errorf("%s may %s (%v)", name, c.what, err)
			}
		}
	}
}

func readParameter(t *testing.T, name string) func(sdk.Config) error {
	return func(c sdk.Config) error {
		_, err := ssm.NewFromConfig(c).GetParameter(t.Context(), &ssm.GetParameterInput{Name: &name, WithDecryption: sdk.Bool(true)})
		return err
	}
}

func (s *stack) remove(t *testing.T, key string) func(sdk.Config) error {
	return func(c sdk.Config) error {
		_, err := s3.NewFromConfig(c, func(o *s3.Options) { o.UsePathStyle = true }).DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &s.outputs.Bucket, Key: &key})
		return err
	}
}

// principals are the roles of the stack by what has them, and the certifier's
// name.
func (s *stack) principals(t *testing.T) (roles map[string]sdk.Config, certifier string) {
	t.Helper()
	arns := map[string]string{}
	functions, err := lambda.NewFromConfig(s.config).ListFunctions(t.Context(), &lambda.ListFunctionsInput{})
	if err != nil {
		t.Fatal(err)
	}
	for _, function := range functions.Functions {
		for _, name := range []string{"Api", "Housekeeper", "Certifier"} {
			if strings.Contains(*function.FunctionName, "-"+name+"-") {
				arns[name] = *function.Role
			}
		}
		if strings.Contains(*function.FunctionName, "-Certifier-") {
			certifier = *function.FunctionName
		}
	}
	definition, err := ecs.NewFromConfig(s.config).DescribeTaskDefinition(t.Context(), &ecs.DescribeTaskDefinitionInput{TaskDefinition: &s.outputs.TaskDefinition})
	if err != nil {
		t.Fatal(err)
	}
	arns["Builder"], arns["Builder's engine"] = *definition.TaskDefinition.TaskRoleArn, *definition.TaskDefinition.ExecutionRoleArn
	if len(arns) != 5 || certifier == "" {
		t.Fatalf("the stack has the roles %v and the certifier %q", arns, certifier)
	}
	roles = map[string]sdk.Config{}
	for name, arn := range arns {
		roles[name] = s.as(t, arn)
	}
	return roles, certifier
}

// as returns the settings of whoever has the role.
func (s *stack) as(t *testing.T, role string) sdk.Config {
	t.Helper()
	got, err := sts.NewFromConfig(s.config).AssumeRole(t.Context(), &sts.AssumeRoleInput{RoleArn: &role, RoleSessionName: sdk.String("test")})
	if err != nil {
		t.Fatal(fmt.Errorf("take the role %s: %w", role, err))
	}
	c := s.config.Copy()
	c.Credentials = credentials.NewStaticCredentialsProvider(*got.Credentials.AccessKeyId, *got.Credentials.SecretAccessKey, *got.Credentials.SessionToken)
	return c
}
