package aws

import (
	"context"
	"errors"
	"fmt"
	"strings"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// Tasks are the builders, tasks of ECS on Fargate. There is no service around
// them, whose scale-in would end builds: each exits when it is idle.
type Tasks struct {
	client   *ecs.Client
	settings Settings
}

const (
	startedBy = "sysup"
	// maxStart is how many tasks one call of RunTask starts at most.
	maxStart = 10
	// maxPages bounds how many tasks Alive counts: a hundred a page.
	maxPages = 10
)

// Tasks are the builders of the settings' task definition.
func (c *Cloud) Tasks() (*Tasks, error) {
	if c.settings.Cluster == "" {
		return nil, errors.New(`SYSUP_CLUSTER has to name the cluster in which builders are started, it is ""`)
	}
	return &Tasks{ecs.NewFromConfig(c.config), c.settings}, nil
}

// Start starts n builders, at most ten, and returns how many it did. An answer
// that is lost is asked for again without starting more: each call has a token
// of its own.
func (t *Tasks) Start(ctx context.Context, n int) (int, error) {
	if n < 1 {
		return 0, nil
	}
	provider := "FARGATE"
	if t.settings.Spot {
		provider = "FARGATE_SPOT"
	}
	out, err := t.client.RunTask(ctx, &ecs.RunTaskInput{ // the SDK adds a client token
		Cluster: &t.settings.Cluster, TaskDefinition: &t.settings.TaskDefinition, Count: sdk.Int32(int32(min(n, maxStart))), StartedBy: sdk.String(startedBy),
		CapacityProviderStrategy: []types.CapacityProviderStrategyItem{{CapacityProvider: &provider, Weight: 1}},
		NetworkConfiguration: &types.NetworkConfiguration{AwsvpcConfiguration: &types.AwsVpcConfiguration{
			// There is no NAT gateway: a builder reaches the upstream by an address of its own.
			Subnets: t.settings.Subnets, SecurityGroups: []string{t.settings.SecurityGroup}, AssignPublicIp: types.AssignPublicIpEnabled,
		}},
	})
	if err != nil {
		return 0, fmt.Errorf("start builders: %w", reason(err.Error(), err))
	}
	var errs []error
	for _, failure := range out.Failures {
		text := strings.TrimSpace(fmt.Sprintf("%s %s", sdk.ToString(failure.Reason), sdk.ToString(failure.Detail)))
		errs = append(errs, fmt.Errorf("start a builder: %w", reason(text, fmt.Errorf("ECS says %.300q", text))))
	}
	return len(out.Tasks), errors.Join(errs...)
}

// Reasons for which no builder could be started.
var (
	// ErrNoCapacity passes by itself.
	ErrNoCapacity = errors.New("no capacity for another builder in Fargate at the moment; it is tried again")
	// ErrQuota stays until a builder ends or the quota is raised.
	ErrQuota = errors.New("the account's vCPU quota for Fargate is used up; ask AWS to raise it, or lower SYSUP_MAX_BUILDERS")
)

// reason finds the two that an operator can do something about. ECS has no
// codes of their own for them, only words.
func reason(text string, err error) error {
	switch text = strings.ToLower(text); {
	case strings.Contains(text, "vcpu"), strings.Contains(text, "limit on the number of"):
		return fmt.Errorf("%w: %w", ErrQuota, err)
	case strings.Contains(text, "capacity"), strings.HasPrefix(text, "resource:"):
		return fmt.Errorf("%w: %w", ErrNoCapacity, err)
	}
	return err
}

// Alive counts the builders that run or are about to, at most a thousand.
func (t *Tasks) Alive(ctx context.Context) (int, error) {
	// Tasks that are about to run have the desired status RUNNING too. The
	// filter by who started them cannot be joined with another one.
	pages := ecs.NewListTasksPaginator(t.client, &ecs.ListTasksInput{
		Cluster: &t.settings.Cluster, Family: sdk.String(family(t.settings.TaskDefinition)), DesiredStatus: types.DesiredStatusRunning,
	})
	alive := 0
	for range maxPages {
		if !pages.HasMorePages() {
			break
		}
		page, err := pages.NextPage(ctx)
		if err != nil {
			return 0, fmt.Errorf("count the builders: %w", err)
		}
		alive += len(page.TaskArns)
	}
	return alive, nil
}

// family is the name in "arn:...:task-definition/name:3", "name:3" or "name".
func family(definition string) string {
	name := definition[strings.LastIndexByte(definition, '/')+1:]
	name, _, _ = strings.Cut(name, ":")
	return name
}
