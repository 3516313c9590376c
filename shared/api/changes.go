package api

import (
	"context"
	"errors"
	"fmt"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
	"github.com/attended-sysupgrade/sysup/shared/changes"
)

// device finds the device of a request, where it is called otherwise in that
// version under its new name: then the request is changed. One that there are
// no images for any more is refused with the reason.
func (s *server) device(ctx context.Context, r *build.Request) (*catalog.Device, []changes.Change, error) {
	device, err := s.Catalog.Device(ctx, r.Version, r.Target, r.Profile, r.Model)
	refusal, ok := errors.AsType[*build.Refusal](err)
	if !ok || refusal.Code != build.CodeUnsupported && refusal.Code != build.CodeUnknownDevice {
		return device, nil, err
	}
	table := changes.Builtin()
	target, profile, moved := table.Find(r.Version, r.Target, r.Profile)
	if len(moved) > 0 {
		found, findErr := s.Catalog.Device(ctx, r.Version, target, profile, r.Model)
		if findErr == nil {
			r.Target, r.Profile = target, profile
			return found, moved, nil
		}
	}
	if dropped, ok := table.Dropped(r.Version, target, profile); ok {
		return nil, nil, &build.Refusal{Code: build.CodeUnsupported, Detail: noImages(r.Version, dropped)}
	}
	return nil, nil, err
}

// noImages is the refusal of a device that was dropped.
func noImages(version string, dropped changes.Change) string {
	text := fmt.Sprintf("There are no images of %s for %s. %s", version, dropped.From, dropped.Reason)
	if dropped.Link != "" {
		text += fmt.Sprintf(" Read %s first.", dropped.Link)
	}
	return text
}

// plan holds a request against the catalogue, after what its version calls
// otherwise was put right.
func (s *server) plan(ctx context.Context, r build.Request, device *catalog.Device, moved []changes.Change) (build.Plan, error) {
	facts := device.Facts
	image := changes.Image{
		Version: facts.Version, Revision: facts.Revision, Target: facts.Target, Profile: facts.Profile, Moved: moved,
		Packages: r.Packages, Versions: r.PackagesVersions, Exact: r.DiffPackages, Defaults: facts.Defaults, Has: device.Has,
	}
	if r.DiffPackages && !changes.Builtin().Knows(facts.Version) {
		before, err := s.before(ctx, facts)
		if err != nil {
			return build.Plan{}, err
		}
		image.Before = before
	}
	out := changes.Builtin().Apply(&image)
	r.Packages, r.PackagesVersions = out.Packages, out.Versions
	facts.Mandatory, facts.Rules = out.Mandatory, out.Rules
	plan := build.Resolve(&r, facts, s.Settings, device.Canonical)
	for _, c := range append(out.Changes, changes.Builtin().Notes(facts.Version, facts.Revision, facts.Target, facts.Profile)...) {
		plan.Changes = append(plan.Changes, build.Amendment(c))
	}
	return plan, nil
}

// before is what images of a device held by default in the newest release that
// the table of changes knows: all that came later is new to it, and to whoever
// upgrades. There is none if the device is new. While that cannot be said, the
// error is a refusal: an image that lacks a new driver would not start, and the
// same request would mean another image a moment later.
func (s *server) before(ctx context.Context, facts build.Facts) ([][]string, error) {
	known, err := s.Catalog.Overview(ctx)
	if err != nil {
		return nil, err
	}
	for _, b := range known.Branches { // newest first
		if b.Snapshot || !b.Enabled || len(b.Versions) == 0 || !changes.Builtin().Knows(b.Name) {
			continue
		}
		device, err := s.Catalog.Device(ctx, b.Versions[0], facts.Target, facts.Profile, "")
		switch {
		case refused(err, build.CodeUnsupported), refused(err, build.CodeUnknownDevice):
			return nil, nil
		case err != nil:
			return nil, err
		}
		return [][]string{device.Facts.Defaults}, nil
	}
	return nil, nil
}
