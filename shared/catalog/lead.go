package catalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"golang.org/x/sync/errgroup"
)

const (
	unitsAtOnce = 4
	// wholeAge is how long only what changed is looked at, not what is new.
	wholeAge = 24 * time.Hour
	// goneAge is how long something stays in the store that the upstream does
	// not have any more, and how long a wish for it counts.
	goneAge   = 30 * 24 * time.Hour
	wantedAge = 24 * time.Hour
	// indexTime is left of a round's time to store the index.
	indexTime = 10 * time.Second
)

// round is one look of the leader at all that is in the store. What it knows
// of units is in the index, so it reads only those that others stored, or that
// changed. The index is stored last, and only once.
//
// Two leaders at once do no harm: units are replaced whole, each of them as
// good as the other, and what one's index lost is learnt again from the units.
type round struct {
	*Catalog
	index  *bundle
	began  time.Time
	stored map[string]build.ObjectInfo // units by name
	wanted map[string]build.ObjectInfo

	mu     sync.Mutex
	ledger ledger
}

func (c *Catalog) refreshStore(ctx context.Context) error {
	work, cancel := earlier(ctx, indexTime)
	defer cancel()
	r, err := c.newRound(work)
	if err != nil {
		return err
	}
	var v versionList
	err = c.retry(work, ".versions", func() (err error) {
		v, err = c.refreshVersions(work, r.index)
		return err
	})
	if err != nil {
		return err
	}
	r.lists(work, v)
	r.units(work, v)
	return r.publish(ctx)
}

// earlier is a context that ends some time before the other, if that ends.
func earlier(ctx context.Context, by time.Duration) (context.Context, context.CancelFunc) {
	end, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, end.Add(-min(by, time.Until(end)/4)))
}

func (c *Catalog) newRound(ctx context.Context) (*round, error) {
	r := &round{Catalog: c, began: time.Now(), index: newBundle(c.web.base)}
	o, err := c.store.read(ctx, indexUnit)
	switch {
	case errors.Is(err, errStore):
		return nil, err
	case err == nil:
		r.index = o.bundle
		r.index.drop(contentsFile)
		err = r.index.takeJSON(ledgerFile, &r.ledger)
	}
	if errors.Is(err, errDamaged) {
		c.log.Error("catalogue: the store's index is of no use and will be made anew", "error", err)
		r.ledger = ledger{}
	}
	if r.ledger.Lists == nil {
		r.ledger.Lists = map[string]time.Time{}
	}
	r.stored, r.wanted, err = c.store.list(ctx)
	return r, err
}

// due tells whether something of a version has to be looked at: of snapshots
// in each round, of releases once in their interval, give or take half a round.
func (r *round) due(version string, checked time.Time) bool {
	return isSnapshot(version) || r.began.Sub(checked) >= r.maxAgeRelease-r.maxAgeMoving/2
}

// lists brings the index's lists and signers up to date.
func (r *round) lists(ctx context.Context, v versionList) {
	checked := map[string]time.Time{}
	v.probe(func(version string) {
		r.mu.Lock()
		at := r.ledger.Lists[version]
		r.mu.Unlock()
		if r.due(version, at) || r.index.meta(version+"/.signer").Source == "" {
			if err := r.list(ctx, version); err == nil {
				at = r.began
			}
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		checked[version] = at
	})
	r.ledger.Lists = checked
	for _, key := range slices.Collect(maps.Keys(r.index.files)) {
		version, _ := split(key)
		if _, used := checked[version]; !used && key != ".versions" {
			r.index.drop(key)
		}
	}
}

func (r *round) list(ctx context.Context, version string) error {
	if err := r.retry(ctx, listKey(version), func() error { return r.refreshList(ctx, r.index, version) }); err != nil {
		return err
	}
	list, err := r.loadList(r.index, version)
	if err == nil {
		r.refreshSigner(ctx, r.index, version, *list)
		r.refreshArchive(ctx, r.index, version, *list)
	}
	return err
}

// units looks after every unit that is stored or wanted: the wanted ones
// first, then those not looked at for longest.
func (r *round) units(ctx context.Context, v versionList) {
	versions := map[string]bool{}
	for _, b := range v.branches() {
		for _, version := range b.Versions {
			versions[version] = true
		}
	}
	old := r.ledger.Units
	r.ledger.Units = map[string]known{}
	all := maps.Clone(r.stored)
	maps.Copy(all, r.wanted)
	var g errgroup.Group
	g.SetLimit(unitsAtOnce)
	for _, name := range slices.SortedFunc(maps.Keys(all), r.byUrgency(old)) {
		u, ok := r.parseUnit(name)
		if !ok {
			continue // not ours
		}
		u.known, u.seen = old[name]
		u.info, u.stored = r.stored[name]
		_, u.wanted = r.wanted[name]
		u.offered = versions[u.version]
		g.Go(func() error {
			r.tend(ctx, u)
			return nil
		})
	}
	g.Wait()
}

func (r *round) byUrgency(old map[string]known) func(a, b string) int {
	wish := func(name string) int {
		if _, ok := r.wanted[name]; ok {
			return 0
		}
		return 1
	}
	return func(a, b string) int {
		return cmp.Or(wish(a)-wish(b), old[a].Checked.Compare(old[b].Checked), strings.Compare(a, b))
	}
}

// unit is one unit of the store with what is to be known of it in a round.
type unit struct {
	known
	name    string
	version string
	refresh func(ctx context.Context, f files) error
	sources func(f files) []meta

	info    build.ObjectInfo
	stored  bool
	seen    bool // by an earlier round
	wanted  bool
	offered bool    // the upstream lists its version
	files   *bundle // nil while they were not needed
}

// old tells whether any of its files is in a form of before.
func (u *unit) old() bool {
	return slices.ContainsFunc(u.Sources, func(m meta) bool { return m.Form != form })
}

// parseUnit tells what a unit holds by its name.
func (c *Catalog) parseUnit(name string) (*unit, bool) {
	version, rest := split(name)
	u := &unit{name: name, version: version}
	part, ok := parsePart(name)
	switch {
	case ok && part.Target == "":
		key := version + "/" + part.Arch
		u.refresh = func(ctx context.Context, f files) error { return c.refreshFeeds(ctx, f, key) }
		u.sources = func(f files) []meta { return feedSources(f, key) }
	case ok:
		u.refresh = func(ctx context.Context, f files) error { return c.refreshTarget(ctx, f, name) }
		u.sources = func(f files) []meta { return c.targetSources(f, name) }
	case rest == ".targets" && releasePattern.MatchString(version):
		u.refresh = func(ctx context.Context, f files) error { return c.refreshList(ctx, f, version) }
		u.sources = func(f files) []meta { return []meta{f.meta(name)} }
	default:
		return nil, false
	}
	return u, true
}

func feedSources(f files, key string) []meta {
	list := []meta{f.meta(feedsKey(key) + "/.names")}
	for _, name := range feedNames(f, key) {
		if m := f.meta(feedsKey(key) + "/" + name); m.Sum != "" {
			list = append(list, m)
		}
	}
	return list
}

// targetSources leaves out the indices that the target's sums vouch for: they
// change only with these.
func (c *Catalog) targetSources(f files, key string) []meta {
	t, err := c.loadBareTarget(f, key)
	if err != nil {
		return nil
	}
	dir := folder(t.version) + "/targets/" + t.name
	list := []meta{f.meta(key + "/.target")}
	for file, from := range t.indices() {
		m := f.meta(key + "/" + file)
		inside := strings.TrimPrefix(c.pathOf(m), dir+"/")
		if path.Dir(inside) == from && t.Indices[inside] != m.Sum {
			list = append(list, m)
		}
	}
	return list
}

// tend looks after one unit.
func (r *round) tend(ctx context.Context, u *unit) {
	err := r.learn(ctx, u)
	absent := !u.offered
	if err == nil && u.offered && ctx.Err() == nil && (u.wanted || !u.stored || u.old() || r.due(u.version, u.Checked)) {
		if err = r.update(ctx, u); err == nil {
			u.Gone = time.Time{}
		}
		absent = errors.Is(err, errAbsent)
	}
	if absent {
		u.Checked = r.began
		if u.Gone.IsZero() {
			u.Gone = r.began
		}
	}
	if u.wanted && ctx.Err() == nil && (err == nil || absent || r.began.Sub(r.wanted[u.name].Modified) > wantedAge) {
		r.forget(ctx, wantedPrefix+u.name)
	}
	if absent && r.began.Sub(u.Gone) > goneAge {
		r.forget(ctx, u.name)
		return
	}
	if u.stored {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ledger.Units[u.name] = u.known
	}
}

func (r *round) forget(ctx context.Context, name string) {
	if err := r.store.remove(ctx, name); err != nil {
		r.log.Warn("catalogue: not removed from the store", "what", name, "error", err)
	}
}

// learn reads a unit that is not the one of the ledger.
func (r *round) learn(ctx context.Context, u *unit) error {
	if !u.stored || u.seen && u.Size == u.info.Size && u.Modified.Equal(u.info.Modified) {
		return nil
	}
	if err := r.read(ctx, u); err != nil || u.files == nil {
		return err
	}
	u.Size, u.Modified = u.info.Size, u.info.Modified
	at := u.info.Modified
	if at.After(r.began) {
		at = r.began
	}
	if !u.seen {
		u.Whole = at
	}
	if at.After(u.Checked) {
		u.Checked = at
	}
	u.Sources = u.sources(u.files)
	return nil
}

// read takes the unit's files from the store. A unit that is damaged is as
// good as none.
func (r *round) read(ctx context.Context, u *unit) error {
	o, err := r.store.read(ctx, u.name)
	switch {
	case errors.Is(err, errStore):
		r.log.Error("catalogue: the store fails", "error", err)
		return err
	case err != nil:
		r.log.Warn("catalogue: part of the store is of no use and will be fetched anew", "what", u.name, "error", err)
		u.stored = false
	default:
		u.files, u.Stamp = o.bundle, o.stamp
	}
	return nil
}

// update asks the upstream whether anything of the unit changed, and then
// brings it up to date.
func (r *round) update(ctx context.Context, u *unit) error {
	if u.stored && len(u.Sources) > 0 && !u.old() && r.began.Sub(u.Whole) < wholeAge {
		changed := false
		err := r.retry(ctx, u.name, func() (err error) {
			changed, err = r.changed(ctx, u.Sources)
			return err
		})
		if err == nil && !changed {
			u.Checked = r.began
		}
		if err != nil || !changed {
			return err
		}
	}
	if u.stored && u.files == nil {
		if err := r.read(ctx, u); err != nil {
			return err
		}
	}
	if u.files == nil {
		u.files = newBundle(r.web.base)
	}
	if err := r.retry(ctx, u.name, func() error { return u.refresh(ctx, u.files) }); err != nil {
		return err
	}
	if u.files.changed || !u.stored {
		stamp, err := r.store.write(ctx, u.name, u.files)
		if err != nil {
			r.log.Error("catalogue: the store fails", "error", err)
			return err
		}
		// What the store will list for it shows in the next round.
		u.Stamp, u.Size, u.Modified, u.stored = stamp, 0, time.Time{}, true
	}
	u.Sources, u.Checked, u.Whole = u.sources(u.files), r.began, r.began
	return nil
}

// changed asks whether the upstream has any of the files otherwise than then.
func (c *Catalog) changed(ctx context.Context, sources []meta) (bool, error) {
	for _, m := range sources {
		if changed, err := c.web.changed(ctx, m); changed || err != nil {
			return changed, err
		}
	}
	return false, nil
}

// publish stores the index and goes by it.
func (r *round) publish(ctx context.Context) error {
	s := contents{Looked: r.began, Stamps: map[string]string{}}
	for name, e := range r.ledger.Units {
		s.Stamps[name] = e.Stamp
	}
	err := errors.Join(r.index.keepJSON(contentsFile, s), r.index.keepJSON(ledgerFile, r.ledger))
	if err == nil {
		_, err = r.store.write(ctx, indexUnit, r.index)
	}
	if err == nil {
		r.syncing <- struct{}{} // not in the middle of somebody's reading of the index before
		err = r.adopt(r.index)
		<-r.syncing
	}
	if err != nil {
		return fmt.Errorf("store the catalogue's index: %w", err)
	}
	return nil
}
