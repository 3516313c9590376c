// Package start is what the mains of the functions have in common.
package start

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"

	"github.com/aws/aws-lambda-go/lambda"

	"github.com/attended-sysupgrade/sysup/shared/aws"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
)

// Version is set by the linker in releases.
var Version = "development"

// Main reads the settings from the environment and hands events to the
// function that open makes of them. It does not return. Wrong settings end the
// process with one line that names the key, the rule and the value.
func Main[S interface{ Validate() error }](name string, open func(context.Context, S, *slog.Logger) (any, error)) {
	handler, err := handlerOf(open)
	if err != nil {
		fmt.Fprintf(os.Stderr, "sysup %s: %v\n", name, err)
		os.Exit(1)
	}
	lambda.Start(handler)
}

func handlerOf[S interface{ Validate() error }](open func(context.Context, S, *slog.Logger) (any, error)) (any, error) {
	var s S
	if err := readEnvironment(&s); err != nil {
		return nil, err
	}
	if err := s.Validate(); err != nil {
		return nil, err
	}
	return open(context.Background(), s, slog.New(slog.NewJSONHandler(os.Stderr, nil)))
}

// Upstream are the settings of where images come from.
type Upstream struct {
	Upstream     string   `help:"Download server to build from." default:"https://downloads.openwrt.org" env:"SYSUP_UPSTREAM"`
	UpstreamKeys []string `help:"Public keys that sign the upstream's checksums (usign) or apk's indices (PEM): files, or the base64 lines of such." name:"upstream-key" env:"SYSUP_UPSTREAM_KEY"`
}

// Catalog opens the catalogue in the store. One that follows reads what the
// housekeeper puts there. A builder of the fleet, which may be nil, is woken
// where one has to ask an ImageBuilder what it builds.
func (u Upstream) Catalog(objects build.Objects, follow bool, fleet *build.Fleet, log *slog.Logger) (*catalog.Catalog, error) {
	o := catalog.Options{
		Upstream: strings.TrimRight(u.Upstream, "/"), Objects: objects, Follow: follow, Wake: waker(fleet), Log: log,
	}
	if err := o.Trust(u.UpstreamKeys); err != nil {
		return nil, err
	}
	c, err := catalog.New(o)
	if err != nil {
		return nil, fmt.Errorf("SYSUP_UPSTREAM has to be an http or https address, it is %.200q: %w", u.Upstream, err)
	}
	return c, nil
}

// waker starts a builder if none receives.
func waker(fleet *build.Fleet) func(context.Context) error {
	if fleet == nil {
		return nil
	}
	return func(ctx context.Context) error {
		board, err := fleet.Records.Board(ctx, "", build.Change{})
		if err != nil {
			return fmt.Errorf("see whether a builder is there: %w", err)
		}
		return fleet.Wake(ctx, board)
	}
}

// Fleet starts builders as tasks, nil where the settings name no cluster: then
// they run all the time.
func Fleet(s aws.Settings, cloud *aws.Cloud, records build.Records, most int) (*build.Fleet, *aws.Tasks, error) {
	if s.Cluster == "" {
		return nil, nil, nil
	}
	tasks, err := cloud.Tasks()
	if err != nil {
		return nil, nil, err
	}
	run := func(ctx context.Context, n int) error {
		_, err := tasks.Start(ctx, n)
		return err
	}
	return &build.Fleet{Records: records, Max: most, Start: run}, tasks, nil
}

// CheckURL returns an error unless the values are empty or addresses.
func CheckURL(key string, values ...string) error {
	for _, value := range values {
		u, err := url.Parse(value)
		if value != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "") {
			return fmt.Errorf("%s has to be an http or https address, it is %.200q", key, value)
		}
	}
	return nil
}

// AtLeast returns an error if the value is less than least.
func AtLeast(key string, value, least int64) error {
	if value < least {
		return fmt.Errorf("%s has to be %d or more, it is %d", key, least, value)
	}
	return nil
}

// Set returns an error if the value is empty.
func Set(key, value string) error {
	if value == "" {
		return fmt.Errorf("%s has to be set, it is %q", key, value)
	}
	return nil
}
