// Command api is the Lambda behind the HTTP API: the handler of shared/api over
// the AWS drivers.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/attended-sysupgrade/sysup/functions/gateway"
	"github.com/attended-sysupgrade/sysup/functions/start"
	"github.com/attended-sysupgrade/sysup/shared/api"
	"github.com/attended-sysupgrade/sysup/shared/aws"
	"github.com/attended-sysupgrade/sysup/shared/build"
)

type config struct {
	aws.Settings   `embed:""`
	start.Upstream `embed:""`

	MaxPending      int64    `default:"500" env:"SYSUP_MAX_PENDING"`
	BuildsPerDay    int64    `default:"1000" env:"SYSUP_BUILDS_PER_DAY"`
	BuildsPerClient int64    `default:"20" env:"SYSUP_BUILDS_PER_CLIENT"`
	MaxBuilders     int      `default:"2" env:"SYSUP_MAX_BUILDERS"`
	AllowDefaults   bool     `env:"SYSUP_ALLOW_DEFAULTS"`
	RepositoryAllow []string `env:"SYSUP_REPOSITORY_ALLOW"`
	PublicURL       string   `env:"SYSUP_PUBLIC_URL"`
	OriginSecret    string   `env:"SYSUP_ORIGIN_SECRET"`
}

func main() { start.Main("api", open) }

// Validate names each key whose value breaks its rule.
func (c config) Validate() error {
	var short, key error
	if n := len(c.OriginSecret); n > 0 && n < 16 {
		short = fmt.Errorf("SYSUP_ORIGIN_SECRET has to have 16 characters or more, it has %d", n)
	}
	if c.ServerKey != "" { // who faces clients never has the key that signs
		key = fmt.Errorf("SYSUP_SERVER_KEY has to be empty here, it is %.200q: only the certifier may reach the key", c.ServerKey)
	}
	return errors.Join(c.Settings.Validate(), start.Set("SYSUP_TABLE", c.Table), start.Set("SYSUP_REQUEST_SECRET", c.RequestSecret), short, key,
		start.AtLeast("SYSUP_MAX_PENDING", c.MaxPending, 0), start.AtLeast("SYSUP_BUILDS_PER_DAY", c.BuildsPerDay, 0),
		start.AtLeast("SYSUP_BUILDS_PER_CLIENT", c.BuildsPerClient, 0), start.AtLeast("SYSUP_MAX_BUILDERS", int64(c.MaxBuilders), 0),
		start.CheckURL("SYSUP_PUBLIC_URL", c.PublicURL), start.CheckURL("SYSUP_REPOSITORY_ALLOW", c.RepositoryAllow...))
}

func open(ctx context.Context, c config, log *slog.Logger) (any, error) {
	cloud, err := aws.OpenLambda(ctx, c.Settings, log)
	if err != nil {
		return nil, err
	}
	return newFunc(ctx, c, cloud, log)
}

// newFunc is the function over a cloud.
func newFunc(ctx context.Context, c config, cloud *aws.Cloud, log *slog.Logger) (gateway.Func, error) {
	objects, records := cloud.Objects(), cloud.Records()
	fleet, _, err := start.Fleet(c.Settings, cloud, records, c.MaxBuilders)
	if err != nil {
		return nil, err
	}
	upstream, err := c.Catalog(objects, true, fleet, log)
	if err != nil {
		return nil, err
	}
	fault := func(err error) { log.Error("a service of AWS failed", "error", err) }
	service := &build.Service{
		Records: records, Queue: cloud.Queue(), Fleet: fleet, Fault: fault,
		Limits: build.Limits{Pending: c.MaxPending, PerDay: c.BuildsPerDay, PerClient: c.BuildsPerClient},
	}
	known := &keeper{Catalog: upstream, service: service, read: func(ctx context.Context) ([]byte, error) { return cloud.Secret(ctx, c.RequestSecret) }}
	handler := api.New(api.Config{
		Service: service, Objects: objects, Catalog: known, PublicURL: strings.TrimRight(c.PublicURL, "/"),
		AllowDefaults: c.AllowDefaults, RepositoryAllow: c.RepositoryAllow, Version: start.Version, Log: log,
		Ready: func(ctx context.Context) error {
			_, err := service.Pending(ctx)
			return errors.Join(err, known.ready(ctx))
		},
	})
	known.warm(ctx, upstream.Refresh, log)
	return gateway.New(handler, []byte(c.OriginSecret), log), nil
}
