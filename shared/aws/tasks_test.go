package aws

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"github.com/attended-sysupgrade/sysup/shared/aws/awstest"
)

var taskSettings = Settings{
	Cluster: "sysup", TaskDefinition: "sysup-builder:3", Subnets: []string{"subnet-1", "subnet-2"}, SecurityGroup: "sg-1",
}

// TestTasks starts and counts tasks of the emulator, which knows each call but
// runs nothing.
func TestTasks(t *testing.T) {
	t.Parallel()
	settings := taskSettings
	settings.Cluster, settings.TaskDefinition = awstest.Name(), awstest.Name()
	cloud := emulated(t, settings)
	client := ecs.NewFromConfig(cloud.config)
	_, clusterErr := client.CreateCluster(t.Context(), &ecs.CreateClusterInput{ClusterName: &settings.Cluster})
	_, definitionErr := client.RegisterTaskDefinition(t.Context(), &ecs.RegisterTaskDefinitionInput{
		Family:               &settings.TaskDefinition,
		ContainerDefinitions: []types.ContainerDefinition{{Name: sdk.String("builder"), Image: sdk.String("builder")}},
	})
	if err := errors.Join(clusterErr, definitionErr); err != nil {
		t.Fatal(err)
	}
	tasks, err := cloud.Tasks()
	if err != nil {
		t.Fatal(err)
	}
	wantAlive(t, tasks, 0)
	if n, err := tasks.Start(t.Context(), 2); n != 2 || err != nil {
		t.Errorf("started %d (%v)", n, err)
	}
	wantAlive(t, tasks, 2)
	if n, err := tasks.Start(t.Context(), 0); n != 0 || err != nil {
		t.Errorf("started %d (%v)", n, err)
	}
	wantAlive(t, tasks, 2)
	if _, err := onEngine("http://127.0.0.1:9", Settings{}).Tasks(); err == nil || !contains(err.Error(), "SYSUP_CLUSTER") {
		t.Errorf("without a cluster: %v", err)
	}
}

func wantAlive(t *testing.T, tasks *Tasks, want int) {
	t.Helper()
	if n, err := tasks.Alive(t.Context()); n != want || err != nil {
		t.Errorf("%d are alive (%v), not %d", n, err, want)
	}
}

// TestRunTask pins what ECS is asked, and that a second attempt has the token
// of the first, by which ECS knows it.
func TestRunTask(t *testing.T) {
	token := regexp.MustCompile(`"clientToken":"([^"]{16,64})"`)
	for _, spot := range []bool{false, true} {
		settings := taskSettings
		settings.Spot = spot
		var mu sync.Mutex
		var sent []string
		tasks, err := answering(func(r *http.Request) (*http.Response, error) {
			b, err := io.ReadAll(r.Body)
			mu.Lock()
			defer mu.Unlock()
			if sent = append(sent, string(b)); len(sent) == 1 {
				return reply(r, 500, "{}"), err // it may have happened
			}
			return reply(r, 200, `{"tasks":[{"taskArn":"a"},{"taskArn":"b"}],"failures":[]}`), err
		}, settings).Tasks()
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if n, err := tasks.Start(t.Context(), 99); n != 2 || err != nil {
				t.Errorf("started %d (%v)", n, err)
			}
		}
		provider := map[bool]string{false: "FARGATE", true: "FARGATE_SPOT"}[spot]
		if !contains(sent[0], `"cluster":"sysup"`, `"taskDefinition":"sysup-builder:3"`, `"count":10`, `"startedBy":"sysup"`,
			`"capacityProvider":"`+provider+`"`, `"assignPublicIp":"ENABLED"`, `"subnets":["subnet-1","subnet-2"]`, `"securityGroups":["sg-1"]`) {
			t.Errorf("ECS is asked %s", sent[0])
		}
		var tokens []string
		for _, s := range sent {
			tokens = append(tokens, fmt.Sprint(token.FindStringSubmatch(s)))
		}
		if len(tokens) != 3 || tokens[0] != tokens[1] || tokens[1] == tokens[2] || tokens[0] == "[]" {
			t.Errorf("the tokens of an attempt, the next and another call are %v", tokens)
		}
	}
}

// TestNotStarted is why no builder starts.
func TestNotStarted(t *testing.T) {
	for _, test := range []struct {
		status  int
		body    string
		started int
		want    error
		text    string
	}{
		{200, `{"tasks":[{"taskArn":"a"}],"failures":[{"reason":"Capacity is unavailable at this time. Please try again later or in a different availability zone"}]}`, 1, ErrNoCapacity, "tried again"},
		{200, `{"tasks":[],"failures":[{"reason":"RESOURCE:CPU"},{"reason":"MISSING","detail":"no such thing"}]}`, 0, ErrNoCapacity, "no such thing"},
		{200, `{"tasks":[],"failures":[{"reason":"You've reached the limit on the number of vCPUs you can run concurrently"}]}`, 0, ErrQuota, "SYSUP_MAX_BUILDERS"},
		{400, `{"__type":"ClientException","message":"You've reached the limit on the number of vCPUs you can run concurrently"}`, 0, ErrQuota, "ask AWS"},
		{400, `{"__type":"InvalidParameterException","message":"No Container Instances were found"}`, 0, nil, "No Container Instances"},
		{400, `{"__type":"AccessDeniedException","message":"not authorized to perform ecs:RunTask"}`, 0, nil, "not authorized"},
	} {
		tasks, err := answering(func(r *http.Request) (*http.Response, error) { return reply(r, test.status, test.body), nil }, taskSettings).Tasks()
		if err != nil {
			t.Fatal(err)
		}
		n, err := tasks.Start(t.Context(), 2)
		if n != test.started || err == nil || !contains(err.Error(), test.text) || test.want != nil && !errors.Is(err, test.want) ||
			test.want == nil && (errors.Is(err, ErrNoCapacity) || errors.Is(err, ErrQuota)) {
			t.Errorf("%s: started %d (%v)", test.body, n, err)
		}
	}
}

// TestAlive counts over pages, by the family of the task definition.
func TestAlive(t *testing.T) {
	for _, definition := range []string{"sysup-builder", "sysup-builder:3", "arn:aws:ecs:eu-central-1:123456789012:task-definition/sysup-builder:3"} {
		settings := taskSettings
		settings.TaskDefinition = definition
		asked := 0
		tasks, err := answering(func(r *http.Request) (*http.Response, error) {
			b, err := io.ReadAll(r.Body)
			if !contains(string(b), `"family":"sysup-builder"`, `"desiredStatus":"RUNNING"`, `"cluster":"sysup"`) || strings.Contains(string(b), "startedBy") {
				t.Errorf("ECS is asked %s", b)
			}
			if asked++; asked == 1 {
				return reply(r, 200, `{"taskArns":["a","b"],"nextToken":"t"}`), err
			}
			return reply(r, 200, `{"taskArns":["c"]}`), err
		}, settings).Tasks()
		if err != nil {
			t.Fatal(err)
		}
		wantAlive(t, tasks, 3)
	}
}
