// Command housekeeper is the Lambda that does what time brings, every five
// minutes: it refreshes the catalogue, publishes the server's public key, sends
// again, ends, deletes, drains the dead letters and starts builders.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"

	"github.com/attended-sysupgrade/sysup/functions/start"
	"github.com/attended-sysupgrade/sysup/shared/api"
	"github.com/attended-sysupgrade/sysup/shared/aws"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/certify"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

type config struct {
	aws.Settings   `embed:""`
	start.Upstream `embed:""`

	MaxBuilders     int      `default:"2" env:"SYSUP_MAX_BUILDERS"`
	AllowDefaults   bool     `env:"SYSUP_ALLOW_DEFAULTS"`
	RepositoryAllow []string `env:"SYSUP_REPOSITORY_ALLOW"`
	ServerPub       string   `env:"SYSUP_SERVER_PUB"` // where the server's public key is; the secret one is the certifier's
}

func main() { start.Main("housekeeper", open) }

var parameter = regexp.MustCompile(`^ssm:(/[A-Za-z0-9_.-]+)+$`)

// Validate names each key whose value breaks its rule.
func (c config) Validate() error {
	var public error
	if !parameter.MatchString(c.ServerPub) {
		public = fmt.Errorf("SYSUP_SERVER_PUB has to be ssm:/PATH, it is %.200q", c.ServerPub)
	}
	return errors.Join(c.Settings.Validate(), start.Set("SYSUP_TABLE", c.Table), start.AtLeast("SYSUP_MAX_BUILDERS", int64(c.MaxBuilders), 0), public)
}

func open(ctx context.Context, c config, log *slog.Logger) (any, error) {
	cloud, err := aws.OpenLambda(ctx, c.Settings, log)
	if err != nil {
		return nil, err
	}
	objects, records := cloud.Objects(), cloud.Records()
	fleet, tasks, err := start.Fleet(c.Settings, cloud, records, c.MaxBuilders)
	if err != nil {
		return nil, err
	}
	catalogue, err := c.Catalog(objects, false, nil, log) // who was asked for a version wakes a builder for it, not each round
	if err != nil {
		return nil, err
	}
	public := api.Config{
		Catalog: catalogue, Objects: objects, AllowDefaults: c.AllowDefaults, RepositoryAllow: c.RepositoryAllow, Version: start.Version, Log: log,
	}
	h := &house{
		catalogue: catalogue, records: records, count: records.Pending, fleet: fleet, log: log, out: os.Stdout,
		publish:    func(ctx context.Context) error { return api.Publish(ctx, public) },
		publishKey: func(ctx context.Context) error { return publishKey(ctx, cloud, c.ServerPub) },
		sweeper:    &build.Sweeper{Records: records, Queue: cloud.Queue(), Objects: objects, Lifetimes: build.DefaultLifetimes, Count: records.Pending},
	}
	if tasks != nil {
		h.alive = tasks.Alive
	}
	if c.DeadLettersURL != "" {
		h.sweeper.DeadLetters = cloud.DeadLetters()
	}
	return h.run, nil
}

// publishKey stores the server's public key for the CDN, so that it is there
// before a worker has a key certified.
func publishKey(ctx context.Context, cloud *aws.Cloud, ref string) error {
	text, err := cloud.Secret(ctx, ref)
	if err != nil {
		return err
	}
	key, err := usign.ParsePublicKey(text)
	if err != nil {
		return fmt.Errorf("the server's public key in %s: %w", ref, err)
	}
	return certify.Publish(ctx, cloud.Objects(), key)
}
