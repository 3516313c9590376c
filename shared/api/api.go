// Package api answers HTTP. It is one handler, used by serve and by Lambda:
// routes, the dialects that ten years of clients speak, and one table per
// dialect from refusals and failures to statuses.
//
// A dialect is a file that decodes requests and words answers; what lies
// between is in accept. Handlers return an error, and one place (serve) words
// it, logs it and makes sure that every answer, whatever its status, can be
// read by a page of another origin.
package api

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"net/http"
	"net/url"
	"sync/atomic"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
)

// Catalog is what the API asks of the catalogue. Its errors are Refusals, or
// faults of ours.
type Catalog interface {
	Ready() error
	Overview(ctx context.Context) (catalog.Overview, error)
	Device(ctx context.Context, version, target, profile, model string) (*catalog.Device, error)
	Revision(ctx context.Context, version, target string) (string, error)
	Library
}

// Library is what the files of the static catalogue are made of.
type Library interface {
	Parts(ctx context.Context) (map[catalog.Part]string, error)
	Stamp(ctx context.Context, part catalog.Part) (string, error)
	Listing(ctx context.Context, part catalog.Part) (*catalog.Listing, error)
}

var _ Catalog = (*catalog.Catalog)(nil)

// Config is what the handler works with. Service, Objects and Catalog are
// needed.
type Config struct {
	Service *build.Service
	Objects build.Objects
	Catalog Catalog

	// PublicURL is the address that clients know, without a final slash. Empty
	// means the one in the request's Host header; behind a proxy that ends TLS
	// it has to be set.
	PublicURL string
	// AllowDefaults lets clients send a first-boot script.
	AllowDefaults bool
	// RepositoryAllow are the addresses below which clients may name feeds of
	// their own: scheme, host, port and whole path segments have to agree.
	RepositoryAllow []string
	// Settings are those of the server that change images; they are hashed
	// with every request.
	Settings []string

	// Client is the address of who sent a request, "" if it is not known; nil
	// means the other end of the connection.
	Client func(*http.Request) string

	Version string                      // of sysup
	Ready   func(context.Context) error // whether the drivers are reachable; nil for always
	Log     *slog.Logger                // nil for none
}

// server is the handler. Its methods are in the files of what they answer.
type server struct {
	Config
	mux     *http.ServeMux
	allowed []*url.URL
	bodies  *lru.Cache[bodyKey, []byte] // encoded answers about done builds
	offer   atomic.Pointer[offering]    // encoded

	requests *lru.Cache[[sha256.Size]byte, build.Request] // decoded, by their bodies' sums
	stored   *lru.Cache[string, stamped]                  // what is known of the static catalogue's objects, by key
}

const (
	keptBodies   = 256      // of encoded answers; one takes some 30 KB
	keptRequests = 256      // as many requests
	keptRequest  = 16 << 10 // bytes of the largest body of a kept request
	keptStamps   = 4096     // of the static catalogue's objects; one takes some 200 bytes
)

// New returns the handler of every route.
func New(c Config) http.Handler {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Client == nil {
		c.Client = Peer
	}
	bodies, err := lru.New[bodyKey, []byte](keptBodies)
	if err != nil {
		panic(err) // the size is ours
	}
	requests, err := lru.New[[sha256.Size]byte, build.Request](keptRequests)
	if err != nil {
		panic(err) // as above
	}
	stored, err := lru.New[string, stamped](keptStamps)
	if err != nil {
		panic(err) // as above
	}
	s := &server{
		Config: c, mux: http.NewServeMux(), allowed: parseAllowed(c.RepositoryAllow), bodies: bodies, requests: requests, stored: stored,
	}
	for _, r := range s.routes() {
		s.handle(r)
	}
	return s
}

// route is a path, in the patterns of http.ServeMux, and what answers each
// method. HEAD is answered where GET is.
type route struct {
	path    string
	dialect *dialect
	get     handler
	post    handler
}

// handler answers a request or returns the error that serve will word.
type handler func(w *response, r *http.Request) error

func (s *server) routes() []route {
	return append(s.routes2021(), []route{
		{path: "/api/v1/build", dialect: v1, post: forAuc2021(s.postBuild)},
		{path: "/api/v1/build/{hash}", dialect: v1, get: forAuc2021(s.getBuild)},
		{path: "/api/build", dialect: v2021, post: s.postBuild},
		{path: "/api/build/{hash}", dialect: v2021, get: s.getBuild},
		{path: "/api/v1/revision/{version}/{target}/{subtarget}", dialect: v1, get: s.getRevision},
		{path: "/api/v1/overview", dialect: v1, get: s.getOverview},
		{path: "/api/v1/latest", dialect: v1, get: s.getLatest},
		{path: "/api/overview", dialect: v1, get: s.getOverview},
		{path: "/api/latest", dialect: v1, get: s.getLatest},
		{path: "/overview", dialect: v1, get: s.getOverview},
		{path: "/json/v1/overview.json", dialect: v1, get: s.getOverview},
		{path: "/json/v1/latest.json", dialect: v1, get: s.getLatest},
		{path: "/json/v1/branches.json", dialect: v1, get: s.getBranches},
		{path: "/json/v1/snapshots/targets/{target}/{subtarget}/{file}", dialect: v1, get: s.getTargetFile},
		{path: "/json/v1/snapshots/packages/{file}", dialect: v1, get: s.getFeedsFile},
		{path: "/json/v1/releases/{version}/targets/{target}/{subtarget}/{file}", dialect: v1, get: s.getTargetFile},
		{path: "/json/v1/releases/{version}/packages/{file}", dialect: v1, get: s.getFeedsFile},
		{path: "/json/latest.json", dialect: v1, get: s.getLatest},

		{path: "/api/upgrade-request", dialect: v2018, post: s.postUpgradeRequest},
		{path: "/api/upgrade-request/{hash}", dialect: v2018, get: s.getUpgradeRequest},
		{path: "/api/files/{hash}", dialect: v2018, get: s.getFiles},

		{path: "/store/{path...}", dialect: v1, get: s.getStore},
		{path: "/keys/{name}", dialect: v1, get: s.getKey},
		{path: "/api/openapi.json", dialect: v1, get: s.getOpenAPI},
		{path: "/docs", dialect: v1, get: s.getDocs},
		{path: "/healthz", dialect: v1, get: s.getHealth},
		{path: "/readyz", dialect: v1, get: s.getReady},

		// What ServeMux would answer by a redirect, and everything else.
		{path: "/store", dialect: v1},
		{path: "/", dialect: v1},
	}...)
}
