package api

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
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
	Name           string            `json:"name"`
	Enabled        bool              `json:"enabled"`
	Snapshot       bool              `json:"snapshot"`
	Path           string            `json:"path"` // below the upstream's address; {version} stands in it
	PathPackages   string            `json:"path_packages"`
	Versions       []string          `json:"versions"`
	Targets        map[string]string `json:"targets"` // to package architectures
	PackageChanges []struct{}        `json:"package_changes"`
}

type serverInfo struct {
	Version             string   `json:"version"`
	Contact             string   `json:"contact"`
	AllowDefaults       bool     `json:"allow_defaults"`
	RepositoryAllowList []string `json:"repository_allow_list"`
	MaxRootfsSizeMB     int      `json:"max_custom_rootfs_size_mb"`
	MaxDefaultsLength   int      `json:"max_defaults_length"`
}

// offer is the encoded overview and what it was made of: the catalogue
// shares its lists, so that equal addresses mean equal contents.
type offer struct {
	of   *catalog.Branch
	body []byte
	etag string
}

func (s *server) getOverview(w *response, r *http.Request) error {
	ctx, cancel := withTime(r)
	defer cancel()
	known, err := s.Catalog.Overview(ctx)
	if err != nil {
		return err
	}
	kept := s.offer.Load()
	if kept == nil || len(known.Branches) == 0 || kept.of != &known.Branches[0] {
		if kept, err = encode(s.overview(known)); err != nil {
			return err
		}
		if len(known.Branches) > 0 {
			kept.of = &known.Branches[0]
			s.offer.Store(kept)
		}
	}
	return kept.answer(w, r)
}

func (s *server) overview(known catalog.Overview) overview {
	o := overview{
		Latest: orEmpty(known.Latest), Branches: map[string]branch{}, UpstreamURL: known.Upstream,
		Server: serverInfo{
			Version: s.Version, AllowDefaults: s.AllowDefaults, RepositoryAllowList: orEmpty(s.RepositoryAllow),
			MaxRootfsSizeMB: build.MaxRootfsSizeMB, MaxDefaultsLength: build.MaxDefaults,
		},
	}
	for _, b := range known.Branches {
		o.Branches[b.Name] = branch{
			Name: b.Name, Enabled: b.Enabled, Snapshot: b.Snapshot, Path: b.Path, PathPackages: b.Path + "/packages",
			Versions: orEmpty(b.Versions), Targets: b.Targets, PackageChanges: []struct{}{},
		}
	}
	return o
}

func (s *server) getLatest(w *response, r *http.Request) error {
	ctx, cancel := withTime(r)
	defer cancel()
	known, err := s.Catalog.Overview(ctx)
	if err != nil {
		return err
	}
	return s.catalogue(w, r, latest(known))
}

func latest(known catalog.Overview) map[string][]string {
	return map[string][]string{"latest": orEmpty(known.Latest)}
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
	o, err := encode(body)
	if err != nil {
		return err
	}
	return o.answer(w, r)
}

func encode(body any) (*offer, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode the catalogue: %w", err)
	}
	sum := sha256.Sum256(b)
	return &offer{body: b, etag: `"` + hex.EncodeToString(sum[:16]) + `"`}, nil
}

func (o *offer) answer(w *response, r *http.Request) error {
	w.Header().Set("Cache-Control", build.CacheBriefly)
	w.Header().Set("ETag", o.etag)
	if r.Header.Get("If-None-Match") == o.etag {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	return w.bytes(http.StatusOK, build.PolicyJSON.ContentType, o.body)
}
