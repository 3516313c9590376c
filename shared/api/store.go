package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// getStore answers a file of an attempt, if a living record names the attempt
// as its result or as where its failure's log lies.
func (s *server) getStore(w *response, r *http.Request) error {
	key := "store/" + r.PathValue("path")
	folder, _ := path.Split(key)
	id, attempt, private, ok := build.ParsePrefix(folder)
	if !ok {
		return errNoFile
	}
	w.build = id
	if err := s.named(r.Context(), id, folder); err != nil {
		return err
	}
	w.Header().Set("Cache-Control", build.CacheForever)
	if private {
		w.Header().Set("Cache-Control", build.CacheNever)
	}
	w.Header().Set("ETag", `"`+attempt+`"`) // the bytes at a key never change
	return s.file(w, r, key)
}

var errNoFile = &build.Refusal{Code: build.CodeNotFound, Detail: "There is no such file, or it is no longer kept. Send the request again."}

// named returns errNoFile unless the record names the folder.
func (s *server) named(ctx context.Context, id build.ID, folder string) error {
	rec, err := s.Service.Records.Get(ctx, id)
	if errors.Is(err, build.ErrNotFound) {
		return errNoFile
	}
	if err != nil {
		return build.PutOff(fmt.Errorf("look up %s: %w", id.Short(), err))
	}
	if err := rec.Legible(); err != nil {
		return err
	}
	if rec.Result != nil && rec.Result.Prefix == folder || rec.Failure != nil && rec.Failure.Prefix == folder {
		return nil
	}
	return errNoFile
}

var keyName = regexp.MustCompile(`^(server\.pub|(worker-[a-z0-9][a-z0-9-]{0,62}\.pub|revoked)(\.sig)?)$`)

// getKey answers a public key or the list of revoked ones. Only their names
// pass: whatever else lies in that folder is nobody's business.
func (s *server) getKey(w *response, r *http.Request) error {
	name := r.PathValue("name")
	if !keyName.MatchString(name) {
		return errNoFile
	}
	w.Header().Set("Cache-Control", build.CacheBriefly)
	return s.file(w, r, "keys/"+name)
}

// file answers an object, a part of it, or that it is still the same.
func (s *server) file(w *response, r *http.Request, key string) error {
	object, info, err := s.Objects.Open(r.Context(), key)
	if errors.Is(err, build.ErrNotFound) {
		forget(w)
		return errNoFile
	}
	if err != nil {
		forget(w)
		return build.PutOff(fmt.Errorf("open a file: %w", err))
	}
	defer object.Close()
	w.Header().Set("Content-Type", contentType(key))
	if seeker, ok := object.(io.ReadSeeker); ok {
		http.ServeContent(w, r, "", info.Modified, seeker)
		return nil
	}
	w.Header().Set("Content-Length", strconv.FormatInt(info.Size, 10))
	w.WriteHeader(http.StatusOK)
	if w.head {
		return nil
	}
	if _, err := io.CopyN(w, object, info.Size); err != nil {
		return fmt.Errorf("%w: %w", errGone, err)
	}
	return nil
}

// forget takes back what was said about caching a file that is not there.
func forget(w *response) {
	w.Header().Del("ETag")
	w.Header().Set("Cache-Control", build.CacheNever)
}

func contentType(key string) string {
	switch path.Ext(key) {
	case ".json":
		return build.PolicyJSON.ContentType
	case ".log", ".manifest", ".pub", ".sig", ".txt", ".buildinfo":
		return build.PolicyText.ContentType
	}
	switch path.Base(key) {
	case "sha256sums", "revoked":
		return build.PolicyText.ContentType
	}
	return build.PolicyImage.ContentType
}

// entry is a line of a listing, in the form of nginx's autoindex.
type entry struct {
	Name  string `json:"name"`
	Type  string `json:"type"` // "file"
	Mtime string `json:"mtime"`
	Size  int64  `json:"size"` // bytes
}

// getFiles lists the files of a result: what the first API calls "files".
func (s *server) getFiles(w *response, r *http.Request) error {
	ctx, cancel := withTime(r)
	defer cancel()
	status, err := s.byEitherHash(ctx, r.PathValue("hash"))
	if err != nil {
		return err
	}
	w.build = status.Record.ID
	if status.Record.Result == nil {
		return errNoFile
	}
	prefix := status.Record.Result.Prefix
	entries := []entry{}
	for info, err := range s.Objects.List(ctx, prefix) {
		if err != nil {
			return fmt.Errorf("list a result: %w", err)
		}
		entries = append(entries, entry{
			Name: strings.TrimPrefix(info.Key, prefix), Type: "file",
			Mtime: info.Modified.UTC().Format(http.TimeFormat), Size: info.Size,
		})
	}
	return w.json(http.StatusOK, entries)
}
