package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/attended-sysupgrade/sysup/shared/aws"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
	"github.com/attended-sysupgrade/sysup/shared/dir"
	"github.com/attended-sysupgrade/sysup/shared/sqlite"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// storeFlags say where `sysup serve` keeps what workers of other machines share
// with it. Without them that is the data folder, and there are no such workers.
// The other settings of aws.Settings are for builders and functions.
type storeFlags struct {
	Table          string `help:"DynamoDB table of the records, in place of the data folder; with --queue-url and --bucket." env:"SYSUP_TABLE" placeholder:"NAME"`
	QueueURL       string `help:"SQS queue of the builds." env:"SYSUP_QUEUE_URL" placeholder:"URL"`
	DeadLettersURL string `help:"SQS queue of the messages that were received too often." env:"SYSUP_DEAD_LETTERS_URL" placeholder:"URL"`
	Bucket         string `help:"S3 bucket of images, logs, signatures and the catalogue." env:"SYSUP_BUCKET" placeholder:"NAME"`
}

func (f storeFlags) shared() bool { return f != storeFlags{} }

func (f storeFlags) settings() aws.Settings {
	return aws.Settings{Table: f.Table, QueueURL: f.QueueURL, DeadLettersURL: f.DeadLettersURL, Bucket: f.Bucket}
}

// Validate names what is missing, and each key whose value breaks its rule.
func (f storeFlags) Validate() error {
	if !f.shared() {
		return nil
	}
	var missing []string
	for _, flag := range []struct{ name, value string }{
		{"--table (SYSUP_TABLE)", f.Table}, {"--queue-url (SYSUP_QUEUE_URL)", f.QueueURL}, {"--bucket (SYSUP_BUCKET)", f.Bucket},
	} {
		if flag.value == "" {
			missing = append(missing, flag.name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("--table, --queue-url and --bucket have to be set together or not at all; missing: %s", strings.Join(missing, ", "))
	}
	return f.settings().Validate()
}

// stores are the drivers, and what depends on which ones they are.
type stores struct {
	records     build.Records
	queue       build.Queue
	objects     build.Objects
	deadLetters build.Queue                          // nil where the queue keeps none
	pending     func(context.Context) (int64, error) // the builds that wait or run, by their records
	cache       catalog.Options                      // where the catalogue is kept
	archives    build.Objects                        // of ImageBuilders, for other machines; nil where there are none
	closers     []io.Closer
}

func (s *server) openStores(ctx context.Context) error {
	open := s.openFolder
	if s.storeFlags.shared() {
		open = s.openCloud
	}
	return open(ctx)
}

// openFolder keeps all in the data folder, which is this process's alone: the
// workers that left a lease are dead.
func (s *server) openFolder(ctx context.Context) error {
	if err := s.makeFolders(recordsFolder, objectsFolder, catalogFolder); err != nil {
		return err
	}
	objects, err := dir.Open(s.folder(objectsFolder))
	if err != nil {
		return err
	}
	db, err := sqlite.Open(filepath.Join(s.folder(recordsFolder), "sysup.db"))
	if err != nil {
		return err
	}
	records, queue := db.Records(), db.Queue("builds")
	s.stores = stores{
		records: records, queue: queue, objects: objects, pending: records.Pending,
		cache:   catalog.Options{Dir: s.folder(catalogFolder)},
		closers: []io.Closer{db, objects},
	}
	return errors.Join(db.Recount(ctx), db.Orphan(ctx))
}

// openCloud keeps all on AWS or in engines like it, for any number of servers
// and workers. Each server leads the catalogue, which does no harm.
func (s *server) openCloud(ctx context.Context) error {
	cloud, err := aws.Open(ctx, s.settings(), s.log)
	if err != nil {
		return err
	}
	records, queue, objects := cloud.Records(), cloud.Queue(), cloud.Objects()
	s.stores = stores{
		records: records, queue: queue, objects: objects, deadLetters: cloud.DeadLetters(), pending: records.Pending,
		cache:    catalog.Options{Objects: objects},
		archives: objects,
	}
	return s.onlyKey(ctx)
}

// onlyKey refuses to be a second server with a key of its own: clients trust
// one of them.
func (s *server) onlyKey(ctx context.Context) error {
	const name = "keys/server.pub"
	r, _, err := s.objects.Open(ctx, name)
	if errors.Is(err, build.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s of the bucket %s: %w", name, s.Bucket, err)
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, 4<<10))
	if err != nil {
		return fmt.Errorf("read %s of the bucket %s: %w", name, s.Bucket, err)
	}
	if key, err := usign.ParsePublicKey(text); err != nil || !key.Key.Equal(s.keys.sign.Public().Key) {
		return fmt.Errorf("the bucket %s has the key %s of another server, this one has %s: copy that server's folder keys to %s; "+
			"or, to replace the key, stop all servers and remove %s from the bucket",
			s.Bucket, key.Fingerprint, s.keys.sign.Public().Fingerprint, s.folder(keysFolder), name)
	}
	return nil
}
