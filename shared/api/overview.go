package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"

	"github.com/attended-sysupgrade/sysup/shared/build"
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

func (s *server) getOverview(w *response, r *http.Request) error {
	ctx, cancel := withTime(r)
	defer cancel()
	o, err := s.overview(ctx)
	if err != nil {
		return err
	}
	return s.catalogue(w, r, o)
}

func (s *server) overview(ctx context.Context) (overview, error) {
	known, err := s.Catalog.Overview(ctx)
	if err != nil {
		return overview{}, err
	}
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
	return o, nil
}

func (s *server) getLatest(w *response, r *http.Request) error {
	ctx, cancel := withTime(r)
	defer cancel()
	known, err := s.Catalog.Overview(ctx)
	if err != nil {
		return err
	}
	return s.catalogue(w, r, map[string][]string{"latest": orEmpty(known.Latest)})
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
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(b)
	etag := `"` + hex.EncodeToString(sum[:16]) + `"`
	w.Header().Set("Cache-Control", build.CacheBriefly)
	w.Header().Set("ETag", etag)
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	return w.bytes(http.StatusOK, build.PolicyJSON.ContentType, b)
}
