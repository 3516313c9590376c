package catalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// Overview is what the upstream offers. It is shared: nothing in it may be
// changed.
type Overview struct {
	Distribution string   // "OpenWrt"
	Upstream     string   // its address, without a slash at the end
	Latest       []string // of each supported branch, newest first
	Versions     []string // all that can be built, newest first, then snapshots
	Branches     []Branch // snapshots, then newest first
}

// Branch is a line of versions, as "24.10".
type Branch struct {
	Name     string
	Path     string // "releases/{version}" or "snapshots"
	Enabled  bool   // something of it can be built
	Snapshot bool
	Versions []string          // newest first, its snapshot last
	Targets  map[string]string // of the newest version: "x86/64" → "x86_64"
	Trouble  string            // why versions of it are missing: a sentence for the operator
}

// probed are the versions whose targets and signer stand for all of the
// branch: its newest release, and its snapshot.
func (b *Branch) probed() []string {
	if last := len(b.Versions) - 1; last > 0 && isSnapshot(b.Versions[last]) {
		return []string{b.Versions[0], b.Versions[last]}
	}
	return b.Versions[:1]
}

// view is what is known of all versions at one moment.
type view struct {
	overview Overview
	trouble  map[string]string      // version → why it cannot be built, or ""
	lists    map[string]*targetList // of the versions that stand for their branches
}

// look makes the view from the cache.
func (c *Catalog) look(f files, list versionList) {
	v := &view{
		overview: Overview{Distribution: c.distribution, Upstream: c.web.base},
		trouble:  map[string]string{}, lists: map[string]*targetList{},
	}
	var moving []string
	for _, b := range list.branches() {
		if !c.assess(f, &b, v) {
			continue
		}
		v.overview.Branches = append(v.overview.Branches, b)
		for _, version := range b.Versions {
			switch {
			case !b.Enabled:
			case isSnapshot(version):
				moving = append(moving, version)
			default:
				v.overview.Versions = append(v.overview.Versions, version)
			}
		}
	}
	v.overview.Versions = append(v.overview.Versions, moving...)
	v.overview.Latest = slices.DeleteFunc(list.latest(), func(s string) bool { return v.trouble[s] != "" })
	c.report(v)
	c.view.Store(v)
}

// assess fills in a branch: what of it exists, and what of that can be built.
// It tells whether anything exists.
func (c *Catalog) assess(f files, b *Branch, v *view) bool {
	b.Targets = map[string]string{}
	var offered, known []string
	for _, version := range b.Versions {
		stands := version // for this one
		if !isSnapshot(version) {
			stands = b.Versions[0]
		}
		list, err := c.loadList(f, stands)
		if isSnapshot(version) && err != nil {
			continue // there need not be one
		}
		if list != nil {
			v.lists[stands] = list
		}
		if list != nil && len(b.Targets) == 0 {
			b.Targets = *list
		}
		known = append(known, version)
		trouble := cmp.Or(c.signerTrouble(f, stands), archiveTrouble(f, stands))
		if v.trouble[version] = trouble; trouble == "" {
			offered = append(offered, version)
		} else if b.Trouble == "" {
			b.Trouble = fmt.Sprintf("%s %s cannot be built: %s", c.distribution, version, trouble)
		}
	}
	b.Enabled, b.Versions = len(offered) > 0, offered
	if !b.Enabled {
		b.Versions = known
	}
	return len(known) > 0
}

// signerTrouble says what is wrong with the key that signs a version, as far
// as it was seen.
func (c *Catalog) signerTrouble(f files, version string) string {
	_, text, err := f.read(version + "/.signer")
	if err != nil {
		return ""
	}
	signer, err := usign.ParseFingerprint(text)
	switch {
	case err != nil:
		return "its upstream has no usign signature for it."
	case c.knows(signer):
		return ""
	}
	return fmt.Sprintf("it is signed by the key %s, which this server does not know. If you trust that key, give its file with --upstream-key.", signer)
}

// archiveTrouble says so if a version has no ImageBuilder, as far as was seen.
func archiveTrouble(f files, version string) string {
	if _, name, err := f.read(version + "/.archive"); err == nil && name == "" {
		return "its upstream has no ImageBuilder for it."
	}
	return ""
}

func (c *Catalog) knows(signer usign.Fingerprint) bool {
	return slices.ContainsFunc(c.keys, func(k usign.PublicKey) bool { return k.Fingerprint == signer })
}

// report logs what changed for the worse.
func (c *Catalog) report(v *view) {
	before := map[string]string{}
	if old := c.view.Load(); old != nil {
		for _, b := range old.overview.Branches {
			before[b.Name] = b.Trouble
		}
	}
	for _, b := range v.overview.Branches {
		if b.Trouble != "" && b.Trouble != before[b.Name] {
			c.log.Error("catalogue: " + b.Trouble)
		}
	}
}

// Ready returns nil once there are versions that can be built, from the
// upstream or from the cache; else a build.Refusal with CodeUnavailable that
// says what is missing.
func (c *Catalog) Ready() error { return c.ready(context.Background()) }

func (c *Catalog) ready(ctx context.Context) error {
	if err := c.follows(ctx, followAge); err != nil {
		return err
	}
	v := c.view.Load()
	if v == nil && !c.refreshed.Load() {
		r := unavailable("The list of versions is being fetched from %s. Try again in a few seconds.", c.web.base)
		r.RetryAfter = time.Second
		return r
	}
	if v == nil {
		return unavailable("The list of versions could not be fetched from %s yet. Try again in a minute.", c.web.base)
	}
	if len(v.overview.Versions) > 0 {
		return nil
	}
	for _, b := range v.overview.Branches {
		if b.Trouble != "" {
			return unavailable("No version of %s can be built: %s", c.web.base, b.Trouble)
		}
	}
	return unavailable("%s has no version that can be built.", c.web.base)
}

// Overview returns what the upstream offers, or a build.Refusal with
// CodeUnavailable. It never waits for the upstream.
func (c *Catalog) Overview(ctx context.Context) (Overview, error) {
	v, err := c.current(ctx, followAge)
	if err != nil {
		return Overview{}, err
	}
	return v.overview, nil
}

func (c *Catalog) current(ctx context.Context, maxAge time.Duration) (*view, error) {
	if err := c.follows(ctx, maxAge); err != nil {
		return nil, err
	}
	if v := c.view.Load(); v != nil {
		return v, nil
	}
	return nil, c.ready(ctx)
}

// follows has what is known of the store as new as it has to be. While the
// store does not answer, what is in memory will do, but for what has to be
// right at this moment.
func (c *Catalog) follows(ctx context.Context, maxAge time.Duration) error {
	if c.store == nil {
		return nil
	}
	err := c.sync(ctx, maxAge)
	r := c.synced.Load()
	switch {
	case err == nil, maxAge == followAge && c.view.Load() != nil, r != nil && build.Since(r.at) < followAge:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, fs.ErrNotExist):
		return unavailable("The list of versions has not been stored yet. The server does that every few minutes. Try again in a minute.")
	}
	return unavailable("The list of versions cannot be read from the store of this server at the moment. Try again in a minute.")
}

// version returns the canonical spelling of a version that can be built.
func (c *Catalog) version(ctx context.Context, name string, n need) (string, error) {
	maxAge := followAge
	if n.maxAge == justNow {
		maxAge = momentAge
	}
	v, err := c.current(ctx, maxAge)
	if err != nil {
		return "", err
	}
	version := canonicalVersion(name)
	trouble, ok := v.trouble[version]
	switch {
	case !ok:
		return "", unsupported("%s %q is not built here. These versions are: %s.", c.distribution, name, few(v.overview.Versions))
	case trouble != "":
		return "", unsupported("%s %s cannot be built here: %s", c.distribution, version, trouble)
	}
	return version, nil
}

// few names the first of many.
func few(names []string) string {
	const enough = 20
	if len(names) <= enough {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:enough], ", "), len(names)-enough)
}

// refusal turns the error of a fetch into an answer that says no more than a
// client has to know; the log has the rest.
func (c *Catalog) refusal(ctx context.Context, what string, err error) error {
	var refused *build.Refusal
	switch {
	case err == nil || errors.As(err, &refused):
		return err
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	code := build.CodeUnavailable
	if errors.Is(err, errAbsent) {
		code = build.CodeUnsupported
	}
	r := unavailable("%s", c.explain(what, err))
	r.Code = code
	return r
}

// explain says what is wrong with the upstream's files of something.
func (c *Catalog) explain(what string, err error) string {
	switch {
	case errors.Is(err, usign.ErrUnknownKey):
		return fmt.Sprintf("%s cannot be verified: %v. The operator of this server has to give that key with --upstream-key.", what, err)
	case errors.Is(err, usign.ErrBadSignature), errors.Is(err, usign.ErrFormat), errors.Is(err, usign.ErrSum):
		return fmt.Sprintf("%s cannot be verified: its signature or checksum at %s is wrong at the moment. Try again in a few minutes.", what, c.web.base)
	case errors.Is(err, errAbsent):
		return fmt.Sprintf("%s cannot be built: %s lacks the files that this needs.", what, c.web.base)
	case errors.Is(err, errUnmade):
		return fmt.Sprintf("%s is being prepared: %s has no list of its devices, so its ImageBuilder is asked for them. That is done once and takes some minutes. Try again in half a minute.", what, c.web.base)
	case errors.Is(err, errUninspected):
		var failure *build.Failure
		if !errors.As(err, &failure) {
			failure = &build.Failure{Detail: "Its ImageBuilder does not say what it builds."}
		}
		return fmt.Sprintf("%s cannot be prepared at the moment. %s Try again in a few minutes, or tell the operator of this server.", what, failure.Detail)
	case errors.Is(err, errStore):
		return fmt.Sprintf("%s cannot be read from the store of this server at the moment. Try again in a minute.", what)
	case errors.Is(err, errSlow):
		return fmt.Sprintf("%s is being fetched from %s. Try again in half a minute.", what, c.web.base)
	}
	return fmt.Sprintf("%s cannot be read from %s at the moment. Try again in a minute.", what, c.web.base)
}
