package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
	"github.com/attended-sysupgrade/sysup/shared/changes"
)

// overview is what clients read to find out what can be built. Some look at
// latest only, owut at all of it.
type overview struct {
	Latest      []string          `json:"latest"` // newest first
	Branches    map[string]branch `json:"branches"`
	UpstreamURL string            `json:"upstream_url"`
	Server      serverInfo        `json:"server"`
}

type branch struct {
	Name           string                  `json:"name"`
	Enabled        bool                    `json:"enabled"`
	Snapshot       bool                    `json:"snapshot"`
	Path           string                  `json:"path"` // below the upstream's address and below /json/v1; {version} stands in it
	PathPackages   string                  `json:"path_packages"`
	Versions       []string                `json:"versions"`
	Targets        map[string]string       `json:"targets"`                  // to package architectures
	BranchOffRev   int                     `json:"branch_off_rev,omitempty"` // of the main branch
	PackageChanges []changes.PackageChange `json:"package_changes"`
}

type serverInfo struct {
	Version             string   `json:"version"`
	Contact             string   `json:"contact"`
	AllowDefaults       bool     `json:"allow_defaults"`
	RepositoryAllowList []string `json:"repository_allow_list"`
	MaxRootfsSizeMB     int      `json:"max_custom_rootfs_size_mb"`
	MaxDefaultsLength   int      `json:"max_defaults_length"`
}

// document is encoded JSON that is the same for everybody for a while.
type document struct {
	body []byte
	etag string
}

// offering is the documents about all that is offered, and what they were
// made of: the catalogue shares its lists, so that equal addresses mean equal
// contents.
type offering struct {
	of                         *catalog.Branch
	overview, latest, branches *document
}

func (s *server) offering(ctx context.Context) (*offering, error) {
	known, err := s.Catalog.Overview(ctx)
	if err != nil {
		return nil, err
	}
	kept := s.offer.Load()
	if kept != nil && len(known.Branches) > 0 && kept.of == &known.Branches[0] {
		return kept, nil
	}
	o := &offering{}
	list := s.branches(known)
	var errs [3]error
	o.overview, errs[0] = encode(s.overview(known, list))
	o.latest, errs[1] = encode(map[string][]string{"latest": orEmpty(known.Latest)})
	o.branches, errs[2] = encode(list)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	if len(known.Branches) > 0 {
		o.of = &known.Branches[0]
		s.offer.Store(o)
	}
	return o, nil
}

func (s *server) getOverview(w *response, r *http.Request) error {
	return s.answerOffer(w, r, func(o *offering) *document { return o.overview })
}

func (s *server) getLatest(w *response, r *http.Request) error {
	return s.answerOffer(w, r, func(o *offering) *document { return o.latest })
}

func (s *server) getBranches(w *response, r *http.Request) error {
	return s.answerOffer(w, r, func(o *offering) *document { return o.branches })
}

func (s *server) answerOffer(w *response, r *http.Request, which func(*offering) *document) error {
	ctx, cancel := withTime(r)
	defer cancel()
	o, err := s.offering(ctx)
	if err != nil {
		return err
	}
	return which(o).answer(w, r)
}

func (s *server) overview(known catalog.Overview, list []branch) overview {
	o := overview{
		Latest: orEmpty(known.Latest), Branches: map[string]branch{}, UpstreamURL: known.Upstream,
		Server: serverInfo{
			Version: s.Version, AllowDefaults: s.AllowDefaults, RepositoryAllowList: orEmpty(s.RepositoryAllow),
			MaxRootfsSizeMB: build.MaxRootfsSizeMB, MaxDefaultsLength: build.MaxDefaults,
		},
	}
	for _, b := range list {
		o.Branches[b.Name] = b
	}
	return o
}

// branches is what auc reads first. It wants all fields there are, or it goes
// without the branch.
func (s *server) branches(known catalog.Overview) []branch {
	list := []branch{}
	for _, b := range known.Branches {
		list = append(list, branch{
			Name: b.Name, Enabled: b.Enabled, Snapshot: b.Snapshot, Path: b.Path, PathPackages: b.Path + "/packages",
			Versions: orEmpty(b.Versions), Targets: b.Targets,
			BranchOffRev: changes.Builtin().BranchOff(b.Name), PackageChanges: changes.Builtin().ForBranch(b.Name),
		})
	}
	return list
}

// getRevision tells which revision of a version can be built for a target;
// routers on a snapshot compare it with their own.
func (s *server) getRevision(w *response, r *http.Request) error {
	ctx, cancel := withTime(r)
	defer cancel()
	request := build.Request{Version: r.PathValue("version"), Target: r.PathValue("target") + "/" + r.PathValue("subtarget")}
	if err := request.Check(); err != nil {
		return err
	}
	revision, err := s.Catalog.Revision(ctx, request.Version, request.Target)
	if err != nil {
		return err
	}
	return s.catalogue(w, r, map[string]string{"revision": revision})
}

// catalogue answers what is the same for everybody for a while.
func (s *server) catalogue(w *response, r *http.Request, body any) error {
	d, err := encode(body)
	if err != nil {
		return err
	}
	return d.answer(w, r)
}

func encode(body any) (*document, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode the catalogue: %w", err)
	}
	sum := sha256.Sum256(b)
	return &document{body: b, etag: `"` + hex.EncodeToString(sum[:16]) + `"`}, nil
}

func (d *document) answer(w *response, r *http.Request) error {
	if unchanged(w, r, d.etag) {
		return nil
	}
	return w.bytes(http.StatusOK, build.PolicyCatalog.ContentType, d.body)
}

// unchanged says how long what has that ETag may be kept, and answers who has
// it already.
func unchanged(w *response, r *http.Request, etag string) bool {
	w.Header().Set("Cache-Control", build.CacheBriefly)
	w.Header().Set("ETag", etag)
	if !hasTag(r.Header.Values("If-None-Match"), etag) {
		return false
	}
	w.WriteHeader(http.StatusNotModified)
	return true
}

// hasTag tells whether an ETag is among those that a client has. Whoever
// compresses on the way makes it a weak one, which means the same here.
func hasTag(lists []string, etag string) bool {
	for tag := range strings.SplitSeq(strings.Join(lists, ","), ",") {
		if tag = strings.TrimSpace(tag); tag == "*" || strings.TrimPrefix(tag, "W/") == etag {
			return true
		}
	}
	return false
}
