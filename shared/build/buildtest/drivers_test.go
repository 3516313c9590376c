package buildtest

import (
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/aws"
	"github.com/attended-sysupgrade/sysup/shared/aws/awstest"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/dir"
	"github.com/attended-sysupgrade/sysup/shared/sqlite"
)

// The drivers. Each passes the contract of its interface; a new one joins by
// a line here.
var (
	recordsDrivers = map[string]func(testing.TB) build.Records{
		"memory": func(t testing.TB) build.Records { return NewRecords(t) },
		"sqlite": func(t testing.TB) build.Records { return openSQLite(t).Records() },
		"dynamodb": func(t testing.TB) build.Records {
			return aws.NewRecords(awstest.DynamoDBClient(t), awstest.Table(t, aws.CreateTable))
		},
	}
	queueDrivers = map[string]func(testing.TB, time.Duration) (build.Queue, time.Duration){
		"memory": func(t testing.TB, v time.Duration) (build.Queue, time.Duration) { return NewQueue(t, v), v },
		"sqlite": func(t testing.TB, v time.Duration) (build.Queue, time.Duration) {
			return openSQLite(t).QueueFor("builds", v), v
		},
		"sqs": openSQS,
	}
	objectsDrivers = map[string]func(testing.TB) build.Objects{
		"memory": func(t testing.TB) build.Objects { return NewObjects(t) },
		"dir":    openDir,
		"s3":     openS3,
	}
)

func openSQLite(t testing.TB) *sqlite.DB {
	db, err := sqlite.Open(filepath.Join(t.TempDir(), "sysup.db"))
	check(t, err, "open the database")
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("close the database: %v", err)
		}
	})
	return db
}

func openDir(t testing.TB) build.Objects {
	objects, err := dir.Open(t.TempDir())
	check(t, err, "open the folder")
	t.Cleanup(func() {
		if err := objects.Close(); err != nil {
			t.Errorf("close the folder: %v", err)
		}
	})
	return objects
}

// openSQS opens a queue of ElasticMQ. SQS counts whole seconds.
func openSQS(t testing.TB, visibility time.Duration) (build.Queue, time.Duration) {
	visibility = max(visibility, time.Second)
	url, _ := awstest.Queue(t, visibility, 1000)
	cloud := aws.New(awstest.Config(awstest.SQS(t)), aws.Settings{}, slog.New(slog.DiscardHandler))
	return cloud.QueueFor(url, visibility), visibility
}

// openS3 opens a bucket of versitygw.
func openS3(t testing.TB) build.Objects {
	settings := aws.Settings{Bucket: awstest.Bucket(t)}
	return aws.New(awstest.Config(awstest.S3(t)), settings, slog.New(slog.DiscardHandler)).Objects()
}

func TestRecords(t *testing.T) {
	for name, open := range recordsDrivers {
		t.Run(name, func(t *testing.T) { Records(t, open) })
	}
}

func TestQueue(t *testing.T) {
	for name, open := range queueDrivers {
		t.Run(name, func(t *testing.T) { Queue(t, open) })
	}
}

func TestObjects(t *testing.T) {
	for name, open := range objectsDrivers {
		t.Run(name, func(t *testing.T) { Objects(t, open) })
	}
}
