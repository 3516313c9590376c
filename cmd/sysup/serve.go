package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/attended-sysupgrade/sysup/builder"
	"github.com/attended-sysupgrade/sysup/builder/imagebuilder"
	"github.com/attended-sysupgrade/sysup/builder/sandbox"
	"github.com/attended-sysupgrade/sysup/shared/api"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
	"github.com/attended-sysupgrade/sysup/shared/certify"
	"github.com/attended-sysupgrade/sysup/shared/sqlite"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

type serveCmd struct {
	Listen          string         `help:"Address to listen on." default:"127.0.0.1:8000" env:"SYSUP_LISTEN"`
	Data            string         `help:"Folder for everything the server keeps." default:"data" type:"path" env:"SYSUP_DATA"`
	Upstream        string         `help:"Download server to build from." default:"https://downloads.openwrt.org" env:"SYSUP_UPSTREAM" placeholder:"URL"`
	UpstreamKey     []string       `help:"Public key that signs the upstream's checksums (usign) or apk's indices (PEM); OpenWrt's usign keys of releases are known. Repeatable." type:"existingfile" env:"SYSUP_UPSTREAM_KEY" placeholder:"FILE"`
	Workers         int            `help:"Builds at once." default:"1" env:"SYSUP_WORKERS"`
	MaxPending      int64          `help:"Builds that may wait or run before new ones are refused; 0 = no limit." default:"500" env:"SYSUP_MAX_PENDING"`
	BuildsPerDay    int64          `help:"Builds that may be started on one day (UTC); 0 = no limit." default:"0" env:"SYSUP_BUILDS_PER_DAY"`
	BuildsPerClient int64          `help:"Builds that one client address may start in one hour; 0 = no limit." default:"0" env:"SYSUP_BUILDS_PER_CLIENT"`
	TrustedProxy    []netip.Prefix `help:"Network of proxies whose X-Forwarded-For tells the client's address, like 10.0.0.0/8. Repeatable." env:"SYSUP_TRUSTED_PROXY" placeholder:"CIDR"`
	AllowDefaults   bool           `help:"Accept first-boot scripts. They run as root on the routers of those who send them." env:"SYSUP_ALLOW_DEFAULTS"`
	RepositoryAllow []string       `help:"Prefix of package feed addresses that clients may add. Repeatable." env:"SYSUP_REPOSITORY_ALLOW" placeholder:"URL_PREFIX"`
	PublicURL       string         `help:"Address by which clients reach this server, for links in answers." env:"SYSUP_PUBLIC_URL" placeholder:"URL"`
	TimeLimit       time.Duration  `help:"Time that one ImageBuilder run may take." default:"10m" env:"SYSUP_TIME_LIMIT"`
	CacheSize       int64          `help:"Disk space for unpacked ImageBuilders, in GiB." default:"20" env:"SYSUP_CACHE_SIZE"`
	BuildUID        int            `help:"User number that runs the ImageBuilder of the first worker when the server is root; the others count on. Nobody else should have these." default:"64646" env:"SYSUP_BUILD_UID"`

	storeFlags   `embed:""`
	certifyFlags `embed:""`
	sandboxFlags `embed:""`

	// ready is told the address once the server answers; hook is for crash tests.
	ready func(net.Addr)
	hook  build.Hook
}

func (c *serveCmd) Validate() error {
	switch {
	case c.Workers < 0 || c.Workers > 256:
		return fmt.Errorf("--workers has to be between 0 and 256, it is %d", c.Workers)
	case c.MaxPending < 0:
		return fmt.Errorf("--max-pending has to be 0 or more, it is %d", c.MaxPending)
	case c.BuildsPerDay < 0:
		return fmt.Errorf("--builds-per-day has to be 0 or more, it is %d", c.BuildsPerDay)
	case c.BuildsPerClient < 0:
		return fmt.Errorf("--builds-per-client has to be 0 or more, it is %d", c.BuildsPerClient)
	case c.TimeLimit < time.Second:
		return fmt.Errorf("--time-limit has to be a second or more, it is %s", c.TimeLimit)
	case c.CacheSize < 1:
		return fmt.Errorf("--cache-size has to be 1 GiB or more, it is %d", c.CacheSize)
	case c.BuildUID < 1:
		return fmt.Errorf("--build-uid has to be an ordinary user's number, it is %d", c.BuildUID)
	}
	return errors.Join(c.storeFlags.Validate(), c.certifyFlags.Validate(), checkURL("--upstream", c.Upstream), checkURL("--public-url", c.PublicURL), checkURL("--repository-allow", c.RepositoryAllow...))
}

func (c *serveCmd) limits() build.Limits {
	return build.Limits{Pending: c.MaxPending, PerDay: c.BuildsPerDay, PerClient: c.BuildsPerClient}
}

func checkURL(flag string, values ...string) error {
	for _, value := range values {
		u, err := url.Parse(value)
		if value != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "") {
			return fmt.Errorf("%s has to be an http or https address, it is %q", flag, value)
		}
	}
	return nil
}

// server is what a data folder and the settings make.
type server struct {
	serveCmd
	stores
	log       *slog.Logger
	lock      io.Closer
	keys      serverKeys
	authority *certify.Authority
	catalog   *catalog.Catalog
	trees     *imagebuilder.Store // nil without workers
	inspector *builder.Inspector  // likewise
	support   sandbox.Support
}

const (
	sweepInterval   = time.Minute
	publishInterval = time.Minute
)

// Run serves until ctx ends, then gives running builds back to the queue.
func (c *serveCmd) Run(ctx context.Context, log *slog.Logger) error {
	s, err := c.open(ctx, log)
	if err != nil {
		return err
	}
	defer s.close()
	listener, err := net.Listen("tcp", c.Listen)
	if err != nil {
		if inner, ok := errors.AsType[*net.OpError](err); ok {
			err = inner.Err
		}
		return fmt.Errorf("cannot listen on %s: %w; choose another address with --listen", c.Listen, err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.catalog.Run(ctx) })
	group.Go(func() error { return s.sweep(ctx) })
	group.Go(func() error { return s.publish(ctx) })
	group.Go(func() error { return c.certifyFlags.serve(ctx, s.authority.Certify, log) })
	keys, name := builder.NewKeys(s.authority.Certify), workerName()
	for i := range c.Workers {
		group.Go(func() error { return s.worker(fmt.Sprintf("%s-%d", name, i), i, keys).Run(ctx) })
	}
	if c.Workers > 0 && c.storeFlags.shared() {
		group.Go(func() error { builder.ServeWanted(ctx, s.catalog, nil, log); return nil })
	}
	group.Go(func() error { return s.listen(ctx, listener) })
	log.Info("sysup serves", "address", "http://"+listener.Addr().String(), "upstream", c.Upstream, "store", cmp.Or(c.Table, s.Data),
		"key", s.keys.sign.Public().Fingerprint, "workers", c.Workers, "sandbox", s.support.Level)
	if c.ready != nil {
		c.ready(listener.Addr())
	}
	return group.Wait()
}

// The folders below the data folder. All but scratch are closed to everybody
// else; scratch is where jobs work, and they must be able to reach it.
const (
	keysFolder         = "keys"
	recordsFolder      = "records"
	objectsFolder      = "objects"
	catalogFolder      = "catalog"
	imagebuilderFolder = "imagebuilder"
	scratchFolder      = "scratch"
)

var closedFolders = []string{keysFolder, recordsFolder, objectsFolder, catalogFolder, imagebuilderFolder}

func (c *serveCmd) open(ctx context.Context, log *slog.Logger) (*server, error) {
	if err := c.certifyFlags.check(); err != nil {
		return nil, err
	}
	s := &server{serveCmd: *c, log: log}
	if err := s.openFolders(); err != nil {
		return nil, err
	}
	var err error
	if s.lock, err = sqlite.Lock(s.Data); err != nil {
		return nil, err
	}
	if s.keys, err = openKeys(s.folder(keysFolder)); err != nil {
		return nil, err
	}
	if err := s.openStores(ctx); err != nil {
		return nil, err
	}
	s.authority = certify.New(s.keys.sign, s.objects)
	if err := s.authority.Publish(ctx); err != nil {
		return nil, err
	}
	if err := s.openCatalog(); err != nil {
		return nil, err
	}
	return s, s.openBuilder(ctx)
}

// openBuilder makes ready for builds, where there are workers: who only
// answers needs no right to confine anything.
func (s *server) openBuilder(ctx context.Context) (err error) {
	if s.Workers == 0 {
		return nil
	}
	if s.support, err = openScratch(ctx, s.folder(scratchFolder), s.BuildUID, s.SandboxMin, s.log, s.hidden()...); err != nil {
		return err
	}
	s.trees, err = imagebuilder.OpenStore(s.folder(imagebuilderFolder), imagebuilder.Options{
		Client: http.DefaultClient, Budget: s.CacheSize << 30, Archives: s.archives, Log: s.log,
	})
	s.inspector = newInspector(s.trees, s.folder(scratchFolder), s.support, s.BuildUID+s.Workers, s.hidden(), s.log)
	return err
}

func (s *server) folder(name string) string { return filepath.Join(s.Data, name) }

func (s *server) openFolders() error {
	data, err := filepath.Abs(s.Data)
	if err != nil {
		return err
	}
	s.Data = data
	if err := os.MkdirAll(data, 0o711); err != nil {
		return fmt.Errorf("make the data folder: %w", err)
	}
	return s.makeFolders(keysFolder, imagebuilderFolder)
}

func (s *server) makeFolders(names ...string) error {
	for _, name := range names {
		if err := os.MkdirAll(s.folder(name), 0o700); err != nil {
			return fmt.Errorf("make the data folder: %w", err)
		}
	}
	return nil
}

// close lets another process have the data folder.
func (s *server) close() {
	if s.trees != nil {
		s.trees.Close()
	}
	errs := []error{s.catalog.Close()}
	for _, closer := range append(s.closers, s.lock) {
		errs = append(errs, closer.Close())
	}
	if err := errors.Join(errs...); err != nil {
		s.log.Error("the data folder could not be closed", "error", err)
	}
}

func (s *server) openCatalog() error {
	options := s.cache
	options.Upstream, options.Log = strings.TrimRight(s.Upstream, "/"), s.log
	err := options.Trust(s.UpstreamKey)
	if err != nil {
		return err
	}
	if s.Workers > 0 {
		options.Inspect = s.inspect
	}
	s.catalog, err = catalog.New(options)
	return err
}

// inspect is for the catalogue, which asks nothing before all is open.
func (s *server) inspect(ctx context.Context, version, target string, a catalog.Archive) ([]byte, error) {
	return s.inspector.Inspect(ctx, version, target, a)
}

// fault is told of what clients do not notice, or are only put off by.
func (s *server) fault(err error) { s.log.Error("a request met a fault", "error", err) }

// hidden is what no job may see.
func (s *server) hidden() (hide []string) {
	for _, name := range closedFolders {
		hide = append(hide, s.folder(name))
	}
	if s.CertifyTokenFile != "" || s.storeFlags.shared() {
		hide = append(hide, secretFiles(s.CertifyTokenFile)...)
	}
	return hide
}

func (s *server) worker(name string, i int, keys *builder.Keys) *builder.Worker {
	confinement := imagebuilder.Confinement{
		Mechanism: s.support.Mechanism, Copy: s.support.View != "overlay", UID: s.BuildUID + i, GID: s.BuildUID + i, Hide: s.hidden(),
	}
	return builder.New(name, builder.Config{
		Records: s.records, Queue: s.queue, Objects: s.objects, Catalog: s.catalog, Trees: s.trees,
		Keys: keys, ServerKeys: []usign.PublicKey{s.keys.sign.Public()},
		Scratch: s.folder(scratchFolder), TimeLimit: s.TimeLimit,
		Sandbox: confinement, Upstream: strings.TrimRight(s.Upstream, "/"), Lifetimes: build.DefaultLifetimes, Log: s.log, Hook: s.hook,
	})
}

// public is what the API is told of all that does not change.
func (s *server) public() api.Config {
	return api.Config{
		Objects: s.objects, Catalog: s.catalog, PublicURL: strings.TrimRight(s.PublicURL, "/"),
		AllowDefaults: s.AllowDefaults, RepositoryAllow: s.RepositoryAllow, Client: api.Behind(s.TrustedProxy), Version: version, Log: s.log,
	}
}

func (s *server) handler() http.Handler {
	service := &build.Service{Records: s.records, Queue: s.queue, Secret: s.keys.secret, Hook: s.hook, Limits: s.limits(), Fault: s.fault}
	c := s.public()
	c.Service = service
	c.Ready = func(ctx context.Context) error {
		_, err := service.Pending(ctx)
		return errors.Join(err, s.catalog.Ready())
	}
	return api.New(c)
}

// publish keeps the objects of the static catalogue up to date.
func (s *server) publish(ctx context.Context) error {
	tick := time.NewTicker(publishInterval)
	defer tick.Stop()
	for {
		err := api.Publish(ctx, s.public())
		if err != nil && s.catalog.Ready() == nil && ctx.Err() == nil {
			s.log.Error("the catalogue is not published", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (s *server) listen(ctx context.Context, listener net.Listener) error {
	web := &http.Server{
		Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 32 << 10, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	stopped := make(chan error, 1)
	go func() { stopped <- web.Serve(listener) }()
	select {
	case err := <-stopped:
		return err
	case <-ctx.Done():
	}
	wind, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := web.Shutdown(wind); err != nil {
		return web.Close()
	}
	return nil
}

// sweep runs the sweeper at once and then each minute.
func (s *server) sweep(ctx context.Context) error {
	sweeper := &build.Sweeper{
		Records: s.records, Queue: s.queue, Objects: s.objects, DeadLetters: s.deadLetters, Lifetimes: build.DefaultLifetimes, Count: s.pending,
	}
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		done, err := sweeper.Sweep(ctx)
		if err != nil && ctx.Err() == nil {
			s.log.Error("the sweeper met a fault", "error", err)
		}
		if done != (build.Swept{}) {
			s.log.Info("swept", "resent", done.Resent, "given_up", done.GivenUp, "expired", done.Expired, "strays", done.Strays,
				"dead_letters", done.DeadLetters, "recounted", done.Recounted)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
