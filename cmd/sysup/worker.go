package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/attended-sysupgrade/sysup/builder"
	"github.com/attended-sysupgrade/sysup/builder/imagebuilder"
	"github.com/attended-sysupgrade/sysup/builder/sandbox"
	"github.com/attended-sysupgrade/sysup/shared/aws"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
	"github.com/attended-sysupgrade/sysup/shared/sqlite"
)

type workerCmd struct {
	aws.Settings       `embed:""`
	sandboxFlags       `embed:""`
	CertifierTokenFile string        `help:"File with the token for a certifier with an http or https address." type:"existingfile" env:"SYSUP_CERTIFIER_TOKEN_FILE" placeholder:"FILE"`
	Data               string        `help:"Folder for unpacked ImageBuilders and for jobs; of this process alone." default:"data" type:"path" env:"SYSUP_DATA"`
	Upstream           string        `help:"Download server to build from." default:"https://downloads.openwrt.org" env:"SYSUP_UPSTREAM" placeholder:"URL"`
	UpstreamKey        []string      `help:"Public key that signs the upstream's checksums (usign) or apk's indices (PEM), a file or its base64 line; OpenWrt's usign keys of releases are known. Repeatable." env:"SYSUP_UPSTREAM_KEY" placeholder:"KEY"`
	Workers            int           `help:"Builds at once." default:"1" env:"SYSUP_WORKERS"`
	Idle               time.Duration `help:"Leave after so long without a build; 0 = never." default:"5m" env:"SYSUP_IDLE"`
	TimeLimit          time.Duration `help:"Time that one ImageBuilder run may take." default:"10m" env:"SYSUP_TIME_LIMIT"`
	CacheSize          int64         `help:"Disk space for unpacked ImageBuilders, in GiB." default:"10" env:"SYSUP_CACHE_SIZE"`
	Metrics            bool          `help:"Print figures of each build on standard output, in CloudWatch's embedded metric format." env:"SYSUP_METRICS"`
	BuildUID           int           `help:"User number that runs the ImageBuilder of the first worker when this is root; the others count on. Nobody else should have these." default:"64646" env:"SYSUP_BUILD_UID"`
}

// Validate names each key whose value breaks its rule.
func (c *workerCmd) Validate() error {
	errs := []error{c.Settings.Validate()}
	for key, value := range map[string]string{"SYSUP_TABLE": c.Table, "SYSUP_QUEUE_URL": c.QueueURL, "SYSUP_BUCKET": c.Bucket, "SYSUP_CERTIFIER": c.Certifier} {
		if value == "" {
			errs = append(errs, fmt.Errorf(`%s has to be set, it is ""`, key))
		}
	}
	for _, rule := range []struct {
		good bool
		text string
		got  any
	}{
		{c.Workers >= 1 && c.Workers <= 256, "--workers has to be between 1 and 256", c.Workers},
		{c.Idle >= 0, "--idle has to be 0 or more", c.Idle},
		{c.TimeLimit >= time.Second, "--time-limit has to be a second or more", c.TimeLimit},
		{c.CacheSize >= 1, "--cache-size has to be 1 GiB or more", c.CacheSize},
		{c.BuildUID >= 1 && c.BuildUID <= maxUID, fmt.Sprintf("--build-uid has to be an ordinary user's number, at most %d", maxUID), c.BuildUID},
		{isHTTP(c.Certifier) == (c.CertifierTokenFile != ""), "--certifier-token-file has to be set for a certifier with an http or https address, and only then", c.CertifierTokenFile},
	} {
		if !rule.good {
			errs = append(errs, fmt.Errorf("%s, it is %q", rule.text, fmt.Sprint(rule.got)))
		}
	}
	return errors.Join(append(errs, checkURL("--upstream", c.Upstream))...)
}

// maxUID leaves room for the users of further workers.
const maxUID = math.MaxInt32 - 256

func isHTTP(address string) bool {
	return strings.HasPrefix(address, "http://") || strings.HasPrefix(address, "https://")
}

// Run builds until ctx ends or nothing was to build for a while. What is under
// way when ctx ends goes back to the queue.
func (c *workerCmd) Run(ctx context.Context, out io.Writer, log *slog.Logger) error {
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	s, err := c.open(ctx, log)
	if err != nil {
		return err
	}
	s.out = out
	defer s.close()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		s.presence.Run(ctx)
		leave()
		return nil
	})
	group.Go(func() error { s.warm(ctx); return nil })
	group.Go(func() error { builder.ServeWanted(ctx, s.catalog, s.presence, log); return nil })
	name := workerName()
	for i := range c.Workers {
		group.Go(func() error { return s.worker(fmt.Sprintf("%s-%d", name, i), i).Run(ctx) })
	}
	log.Info("sysup works", "name", name, "upstream", c.Upstream, "workers", c.Workers, "idle", c.Idle, "sandbox", s.support.Level)
	s.figure(aws.MetricSandbox, float64(s.support.Level.Rank()))
	err = group.Wait()
	log.Info("sysup leaves")
	return err
}

// workerName is like no other's, on whatever machine: of a task of ECS its ID,
// by which its log is found.
func workerName() string {
	host, _ := os.Hostname()
	if task := os.Getenv("ECS_CONTAINER_METADATA_URI_V4"); task != "" {
		host, _, _ = strings.Cut(path.Base(task), "-")
	}
	return strings.ToLower(cmp.Or(host, "worker") + "-" + rand.Text()[:10])
}

// site is what the workers of one process share.
type site struct {
	workerCmd
	out      io.Writer // of the figures
	log      *slog.Logger
	lock     io.Closer
	support  sandbox.Support
	records  build.Records
	queue    build.Queue
	objects  build.Objects
	catalog  *catalog.Catalog
	trees    *imagebuilder.Store
	ask      *builder.Inspector
	keys     *builder.Keys
	presence *builder.Presence
}

func (c *workerCmd) open(ctx context.Context, log *slog.Logger) (*site, error) {
	cloud, err := aws.Open(ctx, c.Settings, log)
	if err != nil {
		return nil, err
	}
	certify, err := c.certifier(cloud)
	if err != nil {
		return nil, err
	}
	s := &site{
		workerCmd: *c, log: log, keys: builder.NewKeys(certify),
		records: cloud.Records(), queue: cloud.Queue(), objects: cloud.Objects(),
	}
	if err := s.openCatalog(); err != nil {
		return nil, err
	}
	if err := s.openFolders(ctx); err != nil {
		return nil, err
	}
	s.presence = builder.NewPresence(s.records, c.Idle, log)
	return s, nil
}

func (c *workerCmd) certifier(cloud *aws.Cloud) (build.Certifier, error) {
	if !isHTTP(c.Certifier) {
		return cloud.Certifier(c.Certifier)
	}
	token, err := readToken(c.CertifierTokenFile)
	if err != nil {
		return nil, err
	}
	return askCertifier(c.Certifier, token), nil
}

func (s *site) openCatalog() error {
	o := catalog.Options{
		Upstream: strings.TrimRight(s.Upstream, "/"), Objects: s.objects, Follow: true, Log: s.log,
		Inspect: s.inspect,
	}
	err := o.Trust(s.UpstreamKey)
	if err == nil {
		s.catalog, err = catalog.New(o)
	}
	return err
}

// inspect is for the catalogue, which asks nothing before all is open.
func (s *site) inspect(ctx context.Context, version, target string, a catalog.Archive) ([]byte, error) {
	return s.ask.Inspect(ctx, version, target, a)
}

func (s *site) openFolders(ctx context.Context) (err error) {
	if s.Data, err = filepath.Abs(s.Data); err != nil {
		return err
	}
	if err := os.MkdirAll(s.Data, 0o711); err != nil {
		return fmt.Errorf("make the data folder: %w", err)
	}
	if s.lock, err = sqlite.Lock(s.Data); err != nil {
		return err
	}
	if err := os.MkdirAll(s.folder(imagebuilderFolder), 0o700); err != nil {
		return fmt.Errorf("make the data folder: %w", err)
	}
	if s.support, err = openScratch(ctx, s.folder(scratchFolder), s.BuildUID, s.SandboxMin, s.log, s.hidden()...); err != nil {
		return err
	}
	s.trees, err = imagebuilder.OpenStore(s.folder(imagebuilderFolder), imagebuilder.Options{
		Client: http.DefaultClient, Budget: s.CacheSize << 30, Archives: s.objects, Log: s.log,
	})
	s.ask = newInspector(s.trees, s.folder(scratchFolder), s.support, s.BuildUID+s.Workers, s.hidden(), s.log)
	return err
}

// hidden is what no job may see.
func (s *site) hidden() []string {
	return append(s.secrets(), s.folder(imagebuilderFolder))
}

// secrets are the files by which the worker shows others who it is. A job that
// read them could have a key of its own certified.
func (c *workerCmd) secrets() []string { return secretFiles(c.CertifierTokenFile) }

// secretFiles are the token's and those in which the AWS SDK finds credentials.
func secretFiles(token string) (files []string) {
	candidates := []string{token}
	for _, variable := range []string{"AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"} {
		candidates = append(candidates, os.Getenv(variable))
	}
	if home, err := os.UserHomeDir(); err == nil {
		candidates = append(candidates, filepath.Join(home, ".aws"))
	}
	for _, file := range candidates {
		if full, err := filepath.Abs(file); file != "" && file != os.DevNull && err == nil { // by the latter people say none
			files = append(files, full)
		}
	}
	return files
}

func (s *site) folder(name string) string { return filepath.Join(s.Data, name) }

// sandboxFlags are of every command that builds.
type sandboxFlags struct {
	SandboxMin sandbox.Level `help:"Do not start where builds would reach more than at this level: sealed, offline, namespaced, network-open or same-user." enum:",sealed,offline,namespaced,network-open,same-user" default:"" env:"SYSUP_SANDBOX_MIN" placeholder:"LEVEL"`
}

// openScratch removes what a killed process left of its jobs and finds out how
// far jobs can be confined here, who are not to see what is hidden. It is an
// error if that is not as far as demanded.
func openScratch(ctx context.Context, scratch string, uid int, least sandbox.Level, log *slog.Logger, hidden ...string) (sandbox.Support, error) {
	if err := sandbox.RemoveAll(scratch); err != nil {
		return sandbox.Support{}, err
	}
	if err := os.MkdirAll(scratch, 0o711); err != nil {
		return sandbox.Support{}, err
	}
	support, err := sandbox.Probe(ctx, scratch, sandbox.Spec{UID: uid, GID: uid, Hide: hidden})
	if err != nil {
		return support, fmt.Errorf("builds cannot be confined here: %w", err)
	}
	if err := support.Demand(least); err != nil {
		return support, fmt.Errorf("--sandbox-min is not met: %w", err)
	}
	if support.Lacking != nil {
		log.Warn("builds are confined less than they could be", "level", support.Level, "reason", support.Lacking)
	}
	log.Info("builds are confined", "level", support.Level, "mechanism", support.Mechanism, "view", support.View, "guards", support.Guards)
	return support, nil
}

func (s *site) close() {
	s.trees.Close()
	if err := errors.Join(s.catalog.Close(), s.lock.Close()); err != nil {
		s.log.Error("the data folder could not be closed", "error", err)
	}
}

// warm has the key certified while the first build is under way, so that it
// does not wait for that at its end.
func (s *site) warm(ctx context.Context) {
	if _, err := s.keys.Current(ctx); err != nil && ctx.Err() == nil {
		s.log.Warn("the worker's key is not certified yet; the first build that is to be signed tries again", "error", err)
	}
}

func (s *site) worker(name string, i int) *builder.Worker {
	return builder.New(name, builder.Config{
		Records: s.records, Queue: s.queue, Objects: s.objects, Catalog: s.catalog, Trees: s.trees, Keys: s.keys,
		Scratch: s.folder(scratchFolder), TimeLimit: s.TimeLimit, Upstream: strings.TrimRight(s.Upstream, "/"),
		Sandbox: imagebuilder.Confinement{
			Mechanism: s.support.Mechanism, Copy: s.support.View != "overlay", UID: s.BuildUID + i, GID: s.BuildUID + i,
			Hide: s.hidden(),
		},
		Lifetimes: build.DefaultLifetimes, Presence: s.presence, Ended: s.ended(), Defect: s.defect, Differs: s.differs, Log: s.log,
	})
}

// ended prints the figures of a build, if they are wanted.
func (s *site) ended() func(build.Record) {
	if !s.Metrics {
		return nil
	}
	return func(rec build.Record) {
		values := map[string]float64{aws.MetricDone: 1, aws.MetricFailed: 0, aws.MetricBuildSeconds: rec.EndedAt.Sub(rec.StartedAt).Seconds()}
		if rec.State == build.Failed {
			values[aws.MetricDone], values[aws.MetricFailed] = 0, 1
		}
		if err := aws.Metrics(s.out, values); err != nil {
			s.log.Warn("the figures of a build could not be printed", "error", err)
		}
	}
}

// defect counts a build that ended otherwise than the catalogue was sure of.
func (s *site) defect() { s.figure(aws.MetricDisagreed, 1) }

// differs counts an ImageBuilder whose fast path was found to give other bytes.
func (s *site) differs() { s.figure(aws.MetricPathsDiffer, 1) }

// figure prints one figure, if they are wanted.
func (s *site) figure(metric string, value float64) {
	if !s.Metrics {
		return
	}
	if err := aws.Metrics(s.out, map[string]float64{metric: value}); err != nil {
		s.log.Warn("a figure could not be printed", "metric", metric, "error", err)
	}
}
