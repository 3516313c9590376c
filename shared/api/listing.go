package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
)

// listingFile is a file of the static catalogue: of a target its index or one
// of its profiles, by name; of an architecture the index of its feeds.
type listingFile struct {
	part catalog.Part
	name string // "index" or a profile's, with "_" for ","; "" for feeds
}

const (
	staticPrefix = "json/v1/"
	indexName    = "index"
	feedsSuffix  = "-index.json"
)

// key is where the file is stored, and its address after the first slash.
func (f listingFile) key() string {
	if f.part.Target == "" {
		return staticPrefix + f.part.Folder() + "/packages/" + f.part.Arch + feedsSuffix
	}
	return targetFolder(f.part) + f.name + ".json"
}

func targetFolder(p catalog.Part) string {
	return staticPrefix + p.Folder() + "/targets/" + p.Target + "/"
}

// files are all that are stored of a part.
func files(l *catalog.Listing) []listingFile {
	if l.Target == "" {
		return []listingFile{{part: l.Part}}
	}
	list := []listingFile{{l.Part, indexName}}
	for _, name := range l.Profiles() {
		list = append(list, listingFile{l.Part, name})
	}
	return list
}

// targetIndex is the form of a target's index.json.
type targetIndex struct {
	Architecture string            `json:"architecture"`
	Packages     map[string]string `json:"packages"` // ABI-free names to versions
}

// document makes the file.
func (f listingFile) document(l *catalog.Listing) (*document, error) {
	switch f.name {
	case "":
		return encode(maps.Collect(l.Packages()))
	case indexName:
		return encode(targetIndex{l.Arch, maps.Collect(l.Packages())})
	}
	profile, err := l.Profile(f.name)
	if err != nil {
		return nil, err
	}
	return encode(profile)
}

// getTargetFile answers a target's index or one of its profiles.
func (s *server) getTargetFile(w *response, r *http.Request) error {
	name, ok := strings.CutSuffix(r.PathValue("file"), ".json")
	if !ok || name == "" {
		return errNoListing
	}
	f := listingFile{part: partOf(r), name: strings.ReplaceAll(name, ",", "_")}
	f.part.Target = r.PathValue("target") + "/" + r.PathValue("subtarget")
	return s.getListing(w, r, f)
}

// getFeedsFile answers what all feeds of an architecture have.
func (s *server) getFeedsFile(w *response, r *http.Request) error {
	arch, ok := strings.CutSuffix(r.PathValue("file"), feedsSuffix)
	if !ok || arch == "" {
		return errNoListing
	}
	f := listingFile{part: partOf(r)}
	f.part.Arch = arch
	return s.getListing(w, r, f)
}

func partOf(r *http.Request) catalog.Part {
	p := catalog.Part{Version: r.PathValue("version")}
	if p.Version == "" {
		p.Version = "SNAPSHOT"
	}
	return p
}

var errNoListing = &build.Refusal{
	Code: build.CodeNotFound, Detail: "There is no such list. overview.json says which versions and targets there are.",
}

// stamped is what is known of an object: it has the bytes that a part's state
// gives.
type stamped struct{ stamp, etag string }

// getListing answers a file from its object if that is known to be what the
// catalogue has now; else it makes the file, and the object where there is
// none.
func (s *server) getListing(w *response, r *http.Request, f listingFile) error {
	if "/"+f.key() != strings.ReplaceAll(r.URL.Path, ",", "_") {
		return errNoListing // "releases/SNAPSHOT"
	}
	ctx, cancel := withTime(r)
	defer cancel()
	stamp, err := s.Catalog.Stamp(ctx, f.part)
	if refused(err, build.CodeUnavailable) {
		w.Header().Set("Cache-Control", build.CacheBriefly)
		if s.file(w, r, f.key()) == nil {
			return nil // from before
		}
	}
	if err != nil {
		return notListed(err)
	}
	if known, ok := s.stored.Get(f.key()); ok && known.stamp == stamp {
		if unchanged(w, r, known.etag) {
			return nil
		}
		if err := s.file(w, r, f.key()); !refused(err, build.CodeNotFound) {
			return err
		}
	}
	d, err := s.makeListing(ctx, f)
	if err != nil {
		return notListed(err)
	}
	return d.answer(w, r)
}

// makeListing makes a file, and stores it if there is no such object yet. It
// replaces none: whoever publishes does, and may be further than this process.
func (s *server) makeListing(ctx context.Context, f listingFile) (*document, error) {
	l, err := s.Catalog.Listing(ctx, f.part)
	if err != nil {
		return nil, err
	}
	d, err := f.document(l)
	if err != nil {
		return nil, err
	}
	f.part = l.Part
	if !slices.Contains(files(l), f) {
		return d, nil // some name of a target that has one profile for all
	}
	first := build.PolicyCatalog
	first.Mutable = false
	switch err := s.Objects.Put(ctx, f.key(), bytes.NewReader(d.body), first); {
	case err == nil:
		s.stored.Add(f.key(), stamped{l.Stamp, d.etag})
	case !errors.Is(err, build.ErrExists):
		s.Log.Error("a list is not stored", "error", err)
	}
	return d, nil
}

func refused(err error, code build.Code) bool {
	refusal, ok := errors.AsType[*build.Refusal](err)
	return ok && refusal.Code == code
}

// notListed turns what the catalogue does not have into a file that there is
// not.
func notListed(err error) error {
	if refused(err, build.CodeUnsupported) || refused(err, build.CodeUnknownDevice) {
		return &build.Refusal{Code: build.CodeNotFound, Detail: fmt.Sprint(err)}
	}
	return err
}
