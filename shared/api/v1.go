package api

import (
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/client"
)

// v1 is the API of today: LuCI since 2021, auc since 2021, owut, the firmware
// selector. Their final statuses are 400, 422 and 500; LuCI asks on for ever
// at any other, a 413 included.
var v1 = &dialect{
	refusals: map[build.Code]int{
		build.CodeUnknownPackage: http.StatusUnprocessableEntity,
		build.CodeConflict:       http.StatusInternalServerError, // as if it was built: auc reads no sentence with 400
		build.CodeVersions:       http.StatusInternalServerError,
		build.CodeOverloaded:     http.StatusServiceUnavailable,
		build.CodeUnavailable:    http.StatusServiceUnavailable,
		build.CodeNotFound:       http.StatusNotFound,
	},
	failures: map[build.Kind]int{
		build.KindUnknownPackage: http.StatusUnprocessableEntity,
	},
	body: func(status client.Status) any { return status },
}

// v2021 is the same a few months earlier, when LuCI showed "message".
var v2021 = &dialect{
	refusals: v1.refusals,
	failures: v1.failures,
	body: func(status client.Status) any {
		answer := status2021{Status: status}
		if status.Code >= http.StatusBadRequest {
			answer.Message = status.Detail
		}
		return answer
	},
}

// status2021 is client.Status with its sentence under a second name.
type status2021 struct {
	client.Status
	Message string `json:"message,omitempty"`
}

func (s *server) postBuild(w *response, r *http.Request) error {
	request, err := s.readV1(w, r)
	if err != nil {
		return err
	}
	ctx, cancel := withTime(r)
	defer cancel()
	status, err := s.accept(ctx, request, s.Client(r))
	if err != nil {
		return err
	}
	return s.answerV1(w, status)
}

func (s *server) getBuild(w *response, r *http.Request) error {
	id, err := build.ParseID(r.PathValue("hash"))
	if err != nil {
		return err
	}
	ctx, cancel := withTime(r)
	defer cancel()
	status, err := s.Service.Status(ctx, id)
	if err != nil {
		return err
	}
	return s.answerV1(w, status)
}

// readV1 decodes a body. Some clients repeat their POST each few seconds until
// their image is there, so what one body said is remembered for a while; not
// so what is private.
func (s *server) readV1(w *response, r *http.Request) (build.Request, error) {
	body, err := readBody(w, r)
	if err != nil {
		return build.Request{}, err
	}
	key := sha256.Sum256(body)
	if request, ok := s.requests.Get(key); ok {
		return request, nil
	}
	o, err := parseObject(body)
	if err != nil {
		return build.Request{}, err
	}
	request, err := decodeV1(o)
	if err == nil && !request.Private() && len(body) <= keptRequest {
		s.requests.Add(key, request)
	}
	return request, err
}

func decodeV1(o object) (build.Request, error) {
	f := &fields{o: o}
	r := build.Request{
		Distro:           f.text("distro"),
		Version:          f.text("version"),
		VersionCode:      f.text("version_code"),
		Target:           f.text("target"),
		Profile:          f.text("profile"),
		Packages:         f.packages("packages"),
		DiffPackages:     f.flag("diff_packages"),
		Filesystem:       f.text("filesystem"),
		RootfsSizeMB:     f.number("rootfs_size_mb"),
		Defaults:         f.text("defaults"),
		RepositoriesMode: f.text("repositories_mode"),
		Client:           f.text("client"),
	}
	for _, key := range f.texts("repository_keys") {
		r.RepositoryKeys = append(r.RepositoryKeys, bareKey(key))
	}
	versions := f.pairs("packages_versions")
	r.PackagesVersions = make(map[string]string, len(versions))
	for _, p := range versions {
		if p.value == "" { // a package whose version the client could not find out
			r.Packages = append(r.Packages, p.name)
			continue
		}
		r.PackagesVersions[p.name] = p.value
	}
	for _, p := range f.pairs("repositories") {
		r.Repositories = append(r.Repositories, build.Repository{Name: p.name, URL: p.value})
	}
	return r, f.err
}

// bareKey is a public key without what people paste along with it: comments,
// as usign and OpenWrt's PEM files begin with, blank lines and the carriage
// returns of text areas. One key is then one text, which is hashed.
func bareKey(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "untrusted comment:") && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	if len(lines) == 1 {
		return lines[0] // usign
	}
	return strings.Join(lines, "\n") + "\n"
}

// answerV1 tells how a build stands.
func (s *server) answerV1(w *response, status build.Status) error {
	rec := status.Record
	w.build = rec.ID
	word := stageWord(rec)
	header := w.Header()
	header.Set("X-Imagebuilder-Status", word)
	header.Set("X-Queue-Position", strconv.FormatInt(status.Position, 10))
	answer := progress(rec)
	switch rec.State {
	case build.Done:
		body, err := s.doneBody(rec)
		if err != nil {
			return err
		}
		return w.bytes(http.StatusOK, "application/json", body)
	case build.Failed:
		answer = failed(rec)
		if rec.Failure.Kind == build.KindUnknownPackage {
			header.Set("X-Unknown-Package", rec.Failure.Package)
		}
	case build.Building:
		answer.Detail, answer.Stage = "started", build.Stage(word)
	default:
		answer.Detail, answer.QueuePosition = "queued", status.Position
	}
	return w.json(answer.Code, w.dialect.body(answer))
}

// stages are the words that every client knows; LuCI's program stumbles over
// any other.
var stages = []build.Stage{build.StageInit, build.StageDownload, build.StageUnpack, build.StagePackages, build.StageImage}

// stageWord is the header's word for where a build stands.
func stageWord(rec build.Record) string {
	switch {
	case rec.State != build.Building:
		return string(rec.State)
	case !slices.Contains(stages, rec.Stage): // none yet, or one of a newer sysup's
		return string(build.StageInit)
	}
	return string(rec.Stage)
}

// progress is what all answers about a build share.
func progress(rec build.Record) client.Status {
	return client.Status{
		Code: http.StatusAccepted, RequestHash: string(rec.ID),
		EnqueuedAt: rec.CreatedAt.UTC().Format(time.RFC3339Nano), Request: echo(rec), Changes: rec.Plan.Changes,
	}
}

func failed(rec build.Record) client.Status {
	f := rec.Failure
	answer := progress(rec)
	answer.Code, answer.Detail = v1.failure(f.Kind), f.Detail
	answer.Stdout, answer.Stderr = f.Stdout, f.Stderr
	answer.Command = command(f.Command)
	if f.Prefix != "" {
		answer.Log = "/" + f.Prefix + rec.ID.LogName()
	}
	return answer
}

func command(line string) []string {
	if line == "" {
		return nil
	}
	return []string{line}
}

// echo repeats the request, but for what is private in it.
func echo(rec build.Record) *client.Request {
	r := rec.Request
	e := &client.Request{
		Distro: r.Distro, Version: r.Version, VersionCode: r.VersionCode, Target: r.Target, Profile: r.Profile,
		Packages: r.Packages, PackagesVersions: r.PackagesVersions, DiffPackages: r.DiffPackages, Filesystem: r.Filesystem,
		Repositories: r.Repositories, RepositoriesMode: r.RepositoriesMode, RepositoryKeys: r.RepositoryKeys, Client: r.Client,
	}
	if r.RootfsSizeMB != 0 {
		e.RootfsSizeMB = &r.RootfsSizeMB
	}
	if rec.Plan.Private {
		e.Defaults = "(private)"
	}
	return e
}

// bodyKey names an answer about a done build. The prefix holds the attempt's
// random name, so that a record made anew never meets the body of an old one.
type bodyKey struct {
	prefix string
	rev    int64
}

// doneBody encodes the answer about a done build once and keeps it: such
// polls are most of what a server answers.
func (s *server) doneBody(rec build.Record) ([]byte, error) {
	key := bodyKey{rec.Result.Prefix, rec.Rev}
	if body, ok := s.bodies.Get(key); ok {
		return body, nil
	}
	body, err := json.Marshal(done(rec))
	if err != nil {
		return nil, err
	}
	s.bodies.Add(key, body)
	return body, nil
}

func done(rec build.Record) client.Result {
	result, profile := rec.Result, rec.Result.Profile
	answer := client.Result{
		Status:           progress(rec),
		BinDir:           binDir(result.Prefix),
		ID:               rec.Plan.Profile,
		Target:           rec.Plan.Target,
		Titles:           orEmptyList(profile.Titles),
		VersionNumber:    profile.VersionNumber,
		VersionCode:      profile.VersionCode,
		BuildAt:          time.Unix(profile.SourceDateEpoch, 0).UTC().Format("2006-01-02T15:04:05.000000Z"),
		BuiltAt:          result.BuiltAt.UTC().Format(time.RFC3339),
		ImageHash:        result.ImageHash,
		Images:           []client.Image{},
		Manifest:         result.Manifest,
		MetadataVersion:  1,
		ArchPackages:     profile.ArchPackages,
		DefaultPackages:  orEmpty(profile.DefaultPackages),
		DevicePackages:   orEmpty(profile.DevicePackages),
		ImagePrefix:      profile.ImagePrefix,
		SupportedDevices: orEmpty(profile.SupportedDevices),
		SourceDateEpoch:  profile.SourceDateEpoch,
		LinuxKernel:      profile.LinuxKernel,
		Notes:            result.Notes,
	}
	answer.Code, answer.Detail = http.StatusOK, "done"
	answer.Stdout, answer.Stderr, answer.Command = result.Stdout, result.Stderr, command(result.Command)
	answer.Log = "/" + result.Prefix + result.Log
	for _, image := range result.Images {
		answer.Images = append(answer.Images, client.Image(image))
	}
	if answer.Manifest == nil {
		answer.Manifest = map[string]string{}
	}
	return answer
}

// binDir is an attempt's folder as clients see it, below /store/.
func binDir(prefix string) string {
	return strings.TrimSuffix(strings.TrimPrefix(prefix, "store/"), "/")
}

// orEmpty keeps null out of lists that clients walk.
func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

func orEmptyList(raw json.RawMessage) json.RawMessage {
	if len(raw) == 0 {
		return json.RawMessage("[]")
	}
	return raw
}
