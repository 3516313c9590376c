package api

import (
	"context"
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/client"
)

// v2018 is the API of the first attended sysupgrade: LuCI of 2017 to 2019 and
// auc up to 0.0.9. It has words and headers of its own for the states of a
// build, and its errors are called "error".
var v2018 = &dialect{
	refusals: map[build.Code]int{
		build.CodeUnsupported:    http.StatusPreconditionFailed,
		build.CodeUnknownDevice:  http.StatusPreconditionFailed,
		build.CodeUnknownPackage: http.StatusUnprocessableEntity,
		build.CodeConflict:       http.StatusConflict,
		build.CodeOverloaded:     http.StatusServiceUnavailable,
		build.CodeUnavailable:    http.StatusServiceUnavailable,
		build.CodeNotFound:       http.StatusNotFound,
	},
	failures: map[build.Kind]int{
		build.KindProfile:        http.StatusPreconditionFailed,
		build.KindUnknownPackage: http.StatusUnprocessableEntity,
		build.KindTooBig:         http.StatusRequestEntityTooLarge,
		build.KindConflict:       http.StatusConflict,
	},
	body: func(s client.Status) any { return answer2018{Error: s.Detail, Detail: s.Detail} },
}

// answer2018 is every answer of this dialect. Addresses are absolute, since
// auc takes them as they are.
type answer2018 struct {
	RequestHash string `json:"request_hash,omitempty"`
	ImageHash   string `json:"image_hash,omitempty"`
	Sysupgrade  string `json:"sysupgrade,omitempty"` // the image to flash
	Log         string `json:"log,omitempty"`
	Files       string `json:"files,omitempty"` // a listing in JSON
	Queue       int64  `json:"queue,omitempty"`
	Error       string `json:"error,omitempty"`
	Detail      string `json:"detail,omitempty"` // the same sentence, for tools that know today's API
}

func (s *server) postUpgradeRequest(w *response, r *http.Request) error {
	o, err := readObject(w, r)
	if err != nil {
		return err
	}
	request, err := decode2018(o)
	if err != nil {
		return err
	}
	ctx, cancel := withTime(r)
	defer cancel()
	if request.Version == "" {
		if request.Version, err = s.newest(ctx); err != nil {
			return err
		}
	}
	status, err := s.accept(ctx, request, s.Client(r))
	if err != nil {
		return err
	}
	return s.answer2018(w, r, status)
}

// decode2018 reads the body. A list of packages means exactly those, none at
// all the stock image. What else is in it, as the answer to an upgrade check
// that some clients send back whole, does not matter.
func decode2018(o object) (build.Request, error) {
	f := &fields{o: o}
	target := f.text("target")
	if subtarget := f.text("subtarget"); subtarget != "" || target != "" && !strings.Contains(target, "/") {
		target += "/" + subtarget
	}
	r := build.Request{
		Distro:   f.text("distro"),
		Version:  f.text("version"),
		Target:   target,
		Profile:  f.text("board"),
		Model:    f.text("model"),
		Packages: f.packages("packages"),
	}
	r.DiffPackages = len(r.Packages) > 0
	if strings.EqualFold(r.Distro, "lede") {
		r.Distro = "OpenWrt" // the two are one again since 2018
	}
	return r, f.err
}

// newest is the version for clients that name none.
func (s *server) newest(ctx context.Context) (string, error) {
	overview, err := s.Catalog.Overview(ctx)
	if err != nil {
		return "", err
	}
	if len(overview.Latest) == 0 {
		return "", invalid("The request lacks %q; send it as a string.", "version")
	}
	return overview.Latest[0], nil
}

// getUpgradeRequest finds a build by its request hash or by its image hash.
func (s *server) getUpgradeRequest(w *response, r *http.Request) error {
	ctx, cancel := withTime(r)
	defer cancel()
	status, err := s.byEitherHash(ctx, r.PathValue("hash"))
	if err != nil {
		return err
	}
	return s.answer2018(w, r, status)
}

func (s *server) byEitherHash(ctx context.Context, hash string) (build.Status, error) {
	id, err := build.ParseID(hash)
	if err != nil {
		return build.Status{}, err
	}
	status, notFound := s.Service.Status(ctx, id)
	if refusal, ok := errors.AsType[*build.Refusal](notFound); !ok || refusal.Code != build.CodeNotFound {
		return status, notFound
	}
	id, err = build.ReadIndex(ctx, s.Objects, hash)
	if errors.Is(err, build.ErrNotFound) {
		return build.Status{}, notFound
	}
	if err != nil {
		return build.Status{}, err
	}
	status, err = s.Service.Status(ctx, id)
	if err == nil && (status.Record.Result == nil || status.Record.Result.ImageHash != hash) {
		return build.Status{}, notFound // the index is of a result that is gone
	}
	return status, err
}

// answer2018 tells how a build stands.
func (s *server) answer2018(w *response, r *http.Request, status build.Status) error {
	rec := status.Record
	w.build = rec.ID
	answer := answer2018{RequestHash: string(rec.ID)}
	base := s.publicURL(r)
	switch rec.State {
	case build.Done:
		return done2018(w, answer, rec, base)
	case build.Failed:
		return failed2018(w, answer, rec, base)
	case build.Building:
		w.Header().Set("X-Imagebuilder-Status", word2018(rec.Stage))
	default:
		answer.Queue = status.Position
		w.Header().Set("X-Imagebuilder-Status", "queue")
		w.Header().Set("X-Build-Queue-Position", strconv.FormatInt(status.Position, 10))
	}
	return w.json(http.StatusAccepted, answer)
}

// word2018 gives the stage in one of the words that auc goes on at; any other
// ends its run.
func word2018(stage build.Stage) string {
	switch stage {
	case build.StagePackages, build.StageImage:
		return "building"
	}
	return "initialize"
}

func done2018(w *response, answer answer2018, rec build.Record, base string) error {
	result := rec.Result
	answer.ImageHash = result.ImageHash
	answer.Log = base + "/" + result.Prefix + result.Log
	answer.Files = base + "/api/files/" + string(rec.ID) + "/"
	image, ok := sysupgradeImage(result.Images)
	if !ok {
		answer.Error = "The build made no image that a running router can flash; \"files\" lists what it made."
		answer.Detail = answer.Error
		return w.json(http.StatusNotImplemented, answer)
	}
	answer.Sysupgrade = base + "/" + result.Prefix + image.Name
	return w.json(http.StatusOK, answer)
}

func failed2018(w *response, answer answer2018, rec build.Record, base string) error {
	f := rec.Failure
	answer.Error, answer.Detail = f.Detail, f.Detail
	if f.Prefix != "" {
		answer.Log = base + "/" + f.Prefix + rec.ID.LogName()
	}
	if f.Kind == build.KindUnknownPackage {
		w.Header().Set("X-Unknown-Package", f.Package)
	}
	return w.json(v2018.failure(f.Kind), answer)
}

// sysupgradeImage chooses for clients that leave the choice to the server.
// They say nothing of EFI, so x86 gets the image that boots from any BIOS.
func sysupgradeImage(images []build.Image) (build.Image, bool) {
	for _, kind := range []string{"sysupgrade", "combined", "sdcard", "trx"} {
		ofKind := slices.DeleteFunc(slices.Clone(images), func(i build.Image) bool { return i.Type != kind })
		if i := slices.IndexFunc(ofKind, func(i build.Image) bool { return i.Filesystem == "squashfs" }); i >= 0 {
			return ofKind[i], true
		}
		if len(ofKind) > 0 {
			return ofKind[0], true
		}
	}
	return build.Image{}, false
}

var hostPattern = regexp.MustCompile(`^([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?$`)

// publicURL is this server's address as clients know it, without a final
// slash. A Host that cannot be one leaves addresses relative.
func (s *server) publicURL(r *http.Request) string {
	switch {
	case s.PublicURL != "":
		return strings.TrimRight(s.PublicURL, "/")
	case !hostPattern.MatchString(r.Host):
		return ""
	case r.TLS != nil:
		return "https://" + r.Host
	}
	return "http://" + r.Host
}
