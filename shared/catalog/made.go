package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/usign"
	"github.com/cenkalti/backoff/v5"
)

// Upstreams up to 19.07, and some of derived distributions, have no
// profiles.json. The ImageBuilder knows what would stand there, so it is asked
// once: the answer is kept beside the target and holds for as long as the
// archive is the same. Its package indices are read as everywhere.
//
// Over a store, who has no ImageBuilder leaves a wish there, and builders leave
// the answer, by the archive's sum.

var (
	// errUnmade says that the ImageBuilder is being asked, or that somebody was
	// told to ask it.
	errUnmade = errors.New("its ImageBuilder has not yet said what it builds")
	// errUninspected says that it was asked and gave no answer.
	errUninspected = errors.New("its ImageBuilder could not be asked what it builds")
)

const (
	// madeFile is what the ImageBuilder said, in the form of a profiles.json.
	madeFile = ".made"

	inspectLimit    = time.Hour       // with the fetch of the archive
	inspectPatience = 3 * time.Second // that an update waits for it
	unmadeRest      = 5 * time.Second // between one such update and the next
	failedRest      = time.Minute     // before an ImageBuilder is asked again
	inspectionsKept = 32
)

// profilesOf returns what a target can build: its verified profiles.json or, if
// the upstream has none, what its ImageBuilder says.
func (c *Catalog) profilesOf(ctx context.Context, f files, version, name string, sums usign.Sums) ([]byte, meta, error) {
	body, m, err := c.web.get(ctx, folder(version)+"/targets/"+name+"/profiles.json", maxProfilesFile, meta{})
	_, listed := sums["profiles.json"]
	archive := archiveOf(sums)
	switch {
	case err == nil:
		return body, m, sums.Check("profiles.json", bytes.NewReader(body))
	case errors.Is(err, errAbsent) && !listed && archive.Name != "":
		return c.made(ctx, f, version, name, c.located(version, name, archive))
	case errors.Is(err, errAbsent):
		err = backoff.Permanent(err)
	}
	return nil, meta{}, err
}

// located completes an archive by its address.
func (c *Catalog) located(version, name string, a Archive) Archive {
	a.URL = c.web.base + "/" + folder(version) + "/targets/" + name + "/" + a.Name
	return a
}

// made returns what an ImageBuilder said, or has it asked.
func (c *Catalog) made(ctx context.Context, f files, version, name string, a Archive) ([]byte, meta, error) {
	key := version + "/" + name + "/" + madeFile
	m, text, err := f.read(key)
	if err == nil && m.Sum == a.SHA256 {
		return []byte(text), m, nil
	}
	profiles, err := c.inspected(ctx, version, name, a)
	if err != nil {
		return nil, meta{}, backoff.Permanent(err)
	}
	m = meta{Form: form, Source: a.URL, Sum: a.SHA256}
	return profiles, m, f.write(key, m, profiles)
}

// inspected waits for an inspection as long as those who need it can wait.
func (c *Catalog) inspected(ctx context.Context, version, name string, a Archive) ([]byte, error) {
	if c.store != nil {
		profiles, err := c.store.made(ctx, a)
		if err == nil || errors.Is(err, errStore) {
			return profiles, err
		}
	}
	switch {
	case c.inspect == nil && c.store == nil:
		return nil, errAbsent
	case c.inspect == nil:
		c.wish(ctx, version+"/"+name)
		return nil, errUnmade
	}
	run, err := c.inspections.begin(c, version, name, a)
	if err != nil {
		return nil, err
	}
	patience := time.NewTimer(inspectPatience)
	defer patience.Stop()
	select {
	case <-run.ended:
		return run.profiles, run.err
	case <-patience.C:
	case <-ctx.Done():
	}
	return nil, errUnmade
}

// wish asks the builders that read the same store, and wakes one.
func (c *Catalog) wish(ctx context.Context, unit string) {
	err := c.store.wantOnce(ctx, unit)
	if err == nil && c.wake != nil {
		err = c.wake(ctx)
	}
	if err != nil {
		c.log.Warn("catalogue: no builder was told to ask an ImageBuilder what it builds", "what", unit, "error", err)
	}
}

// inspections are the questions to ImageBuilders that are under way or were
// answered lately, by the unit of their target.
type inspections struct {
	mu     sync.Mutex
	runs   map[string]*inspection
	grants map[string]time.Time // when a wish was made that was fulfilled
}

// inspection is one question; the other fields hold once ended is closed.
type inspection struct {
	sum      string // of the archive
	ended    chan struct{}
	profiles []byte
	err      error
	at       time.Time
}

func (i *inspection) running() bool {
	select {
	case <-i.ended:
		return false
	default:
		return true
	}
}

// good tells whether the question need not be put again.
func (i *inspection) good(sum string) bool {
	return i.running() || i.sum == sum && (i.err == nil || time.Since(i.at) < failedRest)
}

func (s *inspections) find(unit string) *inspection {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.runs[unit]
}

// granted tells whether there is nothing to do about the wish of that time: it
// was fulfilled, and the leader removes it when it has seen that, or the
// ImageBuilder has just failed.
func (s *inspections) granted(unit string, wished time.Time) bool {
	run := s.find(unit)
	if run != nil && !run.running() && run.err != nil && time.Since(run.at) < failedRest {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.grants[unit]
	return ok && at.Equal(wished)
}

func (s *inspections) grant(unit string, wished time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.grants == nil {
		s.grants = map[string]time.Time{}
	}
	s.grants[unit] = wished
}

// begin puts the question, unless it was put. It goes on when those who wait for
// it leave.
func (s *inspections) begin(c *Catalog, version, name string, a Archive) (*inspection, error) {
	unit := version + "/" + name
	s.mu.Lock()
	defer s.mu.Unlock()
	if run := s.runs[unit]; run != nil && run.good(a.SHA256) {
		return run, nil
	}
	if c.jobs.ctx.Err() != nil {
		return nil, errClosed
	}
	if s.runs == nil {
		s.runs = map[string]*inspection{}
	}
	s.forget()
	run := &inspection{sum: a.SHA256, ended: make(chan struct{})}
	s.runs[unit] = run
	c.jobs.group.Go(func() {
		defer close(run.ended)
		run.profiles, run.err = c.ask(version, name, a)
		run.at = time.Now()
	})
	return run, nil
}

// forget makes room: answers that were wanted are in the cache by now.
func (s *inspections) forget() {
	for unit, run := range s.runs {
		if len(s.runs) >= inspectionsKept && !run.running() {
			delete(s.runs, unit)
		}
	}
}

// ask asks an ImageBuilder, and holds that the answer is of use.
func (c *Catalog) ask(version, name string, a Archive) ([]byte, error) {
	ctx, cancel := context.WithTimeout(c.jobs.ctx, inspectLimit)
	defer cancel()
	profiles, err := c.inspect(ctx, version, name, a)
	if err == nil && len(profiles) > maxProfilesFile {
		err = fmt.Errorf("its answer has %d bytes", len(profiles))
	}
	if err == nil {
		_, err = parseProfiles(profiles, version, name)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUninspected, err)
	}
	if c.store != nil {
		err = c.store.keepMade(ctx, a, profiles)
	}
	return profiles, err
}

// MakeWanted asks the ImageBuilders that servers without a builder wished to be
// asked, and stores what they say for these. It is for the builders that follow
// a store, which call it now and then. They write nothing else of the catalogue:
// who runs code of others is not to say what archives have to be.
func (c *Catalog) MakeWanted(ctx context.Context) error {
	wanted, err := c.store.wanted(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, unit := range slices.Sorted(maps.Keys(wanted)) {
		p, ok := parsePart(unit)
		if !ok || p.Target == "" || c.inspections.granted(unit, wanted[unit].Modified) {
			continue
		}
		err := c.makeOne(ctx, p.Version, p.Target)
		if err == nil {
			c.inspections.grant(unit, wanted[unit].Modified)
		} else if ctx.Err() == nil {
			errs = append(errs, fmt.Errorf("%s: %w", unit, err))
		}
	}
	return errors.Join(errs...)
}

// makeOne waits for the ImageBuilder of one target, unless its upstream has a
// profiles.json.
func (c *Catalog) makeOne(ctx context.Context, version, name string) error {
	dir := folder(version) + "/targets/" + name
	body, _, err := c.web.get(ctx, dir+"/sha256sums", maxSums, meta{})
	if err != nil {
		return err
	}
	sums, _, err := c.verifiedSums(ctx, dir, body)
	if err != nil {
		return err
	}
	for {
		_, _, err := c.profilesOf(ctx, newBundle(c.web.base), version, name, sums)
		run := c.inspections.find(version + "/" + name)
		if !errors.Is(err, errUnmade) || run == nil {
			return err
		}
		select {
		case <-run.ended:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Prepare brings a target and the packages for it into the cache, however long
// that takes, and returns its ImageBuilder. It is what the first request would
// wait for. The error is a sentence.
func (c *Catalog) Prepare(ctx context.Context, version, name string) (Archive, error) {
	t, err := c.prepareTarget(ctx, canonicalVersion(version), name)
	if err != nil {
		return Archive{}, err
	}
	n := need{maxAge: c.maxAge(t.version), fresh: true, until: time.Now().Add(updateLimit)}
	if _, err := c.feeds.get(ctx, t.version+"/"+t.Arch, n); err != nil {
		return Archive{}, c.refusal(ctx, fmt.Sprintf("The list of packages of %s %s", c.distribution, t.version), err)
	}
	return c.located(t.version, t.name, t.Archive), nil
}

func (c *Catalog) prepareTarget(ctx context.Context, version, name string) (*target, error) {
	const most = 4 // times after the ImageBuilder has answered
	for tries := 0; ; {
		t, err := c.target(ctx, version, name, need{fresh: true, until: time.Now().Add(updateLimit)})
		run := c.inspections.find(version + "/" + name)
		if err == nil || run == nil || tries == most {
			return t, err
		}
		select {
		case <-run.ended:
			if tries++; run.err != nil {
				return nil, c.refusal(ctx, c.distribution+" "+version+" for "+name, run.err)
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		select {
		case <-time.After(unmadeRest):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Targets returns the names of a version's targets, sorted. The error is a
// build.Refusal, as that of Device.
func (c *Catalog) Targets(ctx context.Context, version string) ([]string, error) {
	n := need{until: time.Now().Add(patience)}
	version, err := c.version(ctx, version, n)
	if err != nil {
		return nil, err
	}
	list, err := c.list(ctx, version, n.until)
	if err != nil {
		return nil, c.refusal(ctx, c.distribution+" "+version, err)
	}
	return slices.Sorted(maps.Keys(*list)), nil
}
