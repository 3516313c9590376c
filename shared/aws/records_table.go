package aws

import (
	"context"
	"fmt"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// tablePatience is how long a new table may take to become usable.
const tablePatience = 2 * time.Minute

// CreateTable makes the table of the records as template.yaml declares it, for
// tests and for deployments without CloudFormation, and waits until it can be
// used. A table that exists is an error. There is no point-in-time recovery: it
// would keep the scripts of private builds for weeks.
func CreateTable(ctx context.Context, client *dynamodb.Client, name string) error {
	_, err := client.CreateTable(ctx, &dynamodb.CreateTableInput{
		TableName: &name, BillingMode: types.BillingModePayPerRequest,
		AttributeDefinitions: []types.AttributeDefinition{
			{AttributeName: sdk.String(attrKey), AttributeType: types.ScalarAttributeTypeS},
			{AttributeName: sdk.String(attrShard), AttributeType: types.ScalarAttributeTypeS},
			{AttributeName: sdk.String(attrDue), AttributeType: types.ScalarAttributeTypeN},
		},
		KeySchema: []types.KeySchemaElement{{AttributeName: sdk.String(attrKey), KeyType: types.KeyTypeHash}},
		GlobalSecondaryIndexes: []types.GlobalSecondaryIndex{{
			IndexName: sdk.String(dueIndex),
			KeySchema: []types.KeySchemaElement{
				{AttributeName: sdk.String(attrShard), KeyType: types.KeyTypeHash},
				{AttributeName: sdk.String(attrDue), KeyType: types.KeyTypeRange},
			},
			Projection: &types.Projection{ProjectionType: types.ProjectionTypeKeysOnly},
		}},
	})
	if err != nil {
		return fmt.Errorf("create the table %s: %w", name, err)
	}
	return awaitTable(ctx, client, name)
}

// awaitTable waits for a new table and has it forget what is over.
func awaitTable(ctx context.Context, client *dynamodb.Client, name string) error {
	waiter := dynamodb.NewTableExistsWaiter(client, func(o *dynamodb.TableExistsWaiterOptions) {
		o.MinDelay, o.MaxDelay = 200*time.Millisecond, 5*time.Second
	})
	if err := waiter.Wait(ctx, &dynamodb.DescribeTableInput{TableName: &name}, tablePatience); err != nil {
		return fmt.Errorf("wait for the table %s: %w", name, err)
	}
	_, err := client.UpdateTimeToLive(ctx, &dynamodb.UpdateTimeToLiveInput{
		TableName:               &name,
		TimeToLiveSpecification: &types.TimeToLiveSpecification{AttributeName: sdk.String(attrTTL), Enabled: sdk.Bool(true)},
	})
	if err != nil {
		return fmt.Errorf("set the time to live of the table %s: %w", name, err)
	}
	return nil
}
