package api

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
)

// accept takes a decoded request of any dialect to its build: everything is
// checked before anything is looked up by its hash.
func (s *server) accept(ctx context.Context, r build.Request, client string) (build.Status, error) {
	if err := r.Check(); err != nil {
		return build.Status{}, err
	}
	if err := s.permit(&r); err != nil {
		return build.Status{}, err
	}
	asked := r // for the echo
	device, moved, err := s.device(ctx, &r)
	if err != nil {
		return build.Status{}, err
	}
	if r.Distro != "" && !strings.EqualFold(r.Distro, device.Facts.Distribution) {
		return build.Status{}, &build.Refusal{
			Code:   build.CodeUnsupported,
			Detail: fmt.Sprintf("This server builds %s, not %s.", device.Facts.Distribution, r.Distro),
		}
	}
	if device, err = s.sameRevision(ctx, &r, device); err != nil {
		return build.Status{}, err
	}
	plan, err := s.plan(ctx, r, device, moved)
	if err != nil {
		return build.Status{}, err
	}
	if len(r.Repositories) == 0 { // the feeds of a client may have what ours do not
		solution, err := device.Resolve(&plan)
		if err != nil {
			return s.earlier(ctx, &plan, err)
		}
		if note := device.TooBig(&plan, solution); note != "" {
			plan.Changes = append(plan.Changes, build.Amendment{Reason: note})
		}
	}
	return s.Service.Submit(ctx, build.Submission{Plan: plan, Request: asked, Client: client})
}

// earlier answers with the image that was made before the refusal became true:
// the versions that a client relies on leave the feeds while images with them
// are still kept.
func (s *server) earlier(ctx context.Context, plan *build.Plan, refused error) (build.Status, error) {
	refusal, ok := errors.AsType[*build.Refusal](refused)
	if !ok || refusal.Code != build.CodeVersions || plan.Private {
		return build.Status{}, refused
	}
	status, err := s.Service.Status(ctx, plan.ID(s.Service.Secret))
	if err != nil || status.Record.State == build.Failed {
		return build.Status{}, refused
	}
	return status, nil
}

// permit refuses what the operator has not allowed.
func (s *server) permit(r *build.Request) error {
	if r.Private() && !s.AllowDefaults {
		return forbidden("This server takes no first-boot scripts: leave out \"defaults\".")
	}
	for _, repo := range r.Repositories {
		if !allows(s.allowed, repo.URL) {
			return forbidden("This server does not allow the feed %s at %s.", repo.Name, repo.URL)
		}
	}
	return nil
}

func forbidden(format string, args ...any) error {
	return &build.Refusal{Code: build.CodeForbidden, Detail: fmt.Sprintf(format, args...)}
}

// sameRevision compares the revision that a client expects with the
// catalogue's. A snapshot's may have moved since it was read, so it is asked
// anew; while the upstream is down, what was read last counts.
func (s *server) sameRevision(ctx context.Context, r *build.Request, device *catalog.Device) (*catalog.Device, error) {
	if device.Facts.Snapshot {
		now, err := s.Catalog.Revision(ctx, r.Version, r.Target)
		if err == nil && now != device.Facts.Revision {
			device, err = s.Catalog.Device(ctx, r.Version, r.Target, r.Profile, r.Model)
		}
		if err != nil {
			return nil, err
		}
	}
	if have := device.Facts.Revision; r.VersionCode != "" && r.VersionCode != have {
		return nil, &build.Refusal{
			Code:   build.CodeRevision,
			Detail: fmt.Sprintf("You expect revision %s of %s, this server has %s. Look again for the newest one and repeat the request.", r.VersionCode, device.Facts.Version, have),
		}
	}
	return device, nil
}

// parseAllowed reads the operator's list. The mains check it at start; an
// entry that is no address allows nothing.
func parseAllowed(list []string) []*url.URL {
	var allowed []*url.URL
	for _, entry := range list {
		if u, err := url.Parse(entry); err == nil && u.Host != "" {
			allowed = append(allowed, u)
		}
	}
	return allowed
}

// allows tells whether the address lies below one of the list. Text prefixes
// would not do: https://feeds.example is one of https://feeds.example.evil.
func allows(list []*url.URL, address string) bool {
	u, err := url.Parse(address)
	if err != nil {
		return false
	}
	for _, base := range list {
		if u.Scheme == base.Scheme && strings.EqualFold(u.Hostname(), base.Hostname()) && port(u) == port(base) && below(u.Path, base.Path) {
			return true
		}
	}
	return false
}

func port(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "https":
		return "443"
	}
	return "80"
}

func below(path, base string) bool {
	return strings.HasPrefix(strings.TrimSuffix(path, "/")+"/", strings.TrimSuffix(base, "/")+"/")
}
