package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
)

// Publish stores what clients read below /json/v1 as objects: what is offered,
// and of each part of the catalogue that the cache holds the files of it. It
// looks only at what changed since it was last here, and of that it writes
// only what is not the same. Of the Config it reads Catalog, Objects,
// AllowDefaults, RepositoryAllow, Version and Log.
//
// It may be stopped by its context at any time, and goes on the next time.
func Publish(ctx context.Context, c Config) error {
	s := &server{Config: c}
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	o, err := s.offering(ctx)
	if err != nil {
		return err
	}
	return errors.Join(
		s.publish(ctx, staticPrefix+"overview.json", o.overview),
		s.publish(ctx, staticPrefix+"latest.json", o.latest),
		s.publish(ctx, staticPrefix+"branches.json", o.branches),
		s.publish(ctx, "json/latest.json", o.latest), // for LuCI of 2021
		s.publishParts(ctx),
	)
}

const (
	publishedKey = "catalog/.published"
	maxPublished = 16 << 20 // bytes
	// publishedTime is left of Publish's time to note what was done.
	publishedTime = 5 * time.Second
	// trusted is how long what was published is believed to be there.
	trusted = 24 * time.Hour
	// putsAtOnce objects are compared or written at the same time.
	putsAtOnce = 16
)

// published is what is known of the objects of all parts, by where they are:
// the folder of a target, the key of the feeds of an architecture.
type published struct {
	Version string               `json:"version"` // of sysup: another one may make other files
	Parts   map[string]partState `json:"parts"`
}

type partState struct {
	Stamp string    `json:"stamp"` // of the part, when its objects were made
	At    time.Time `json:"at"`    // when they were last compared with it
}

func placeOf(p catalog.Part) string {
	if p.Target == "" {
		return listingFile{part: p}.key()
	}
	return targetFolder(p)
}

// publishParts goes through the parts of the catalogue, those first whose
// objects were not looked at for longest.
func (s *server) publishParts(ctx context.Context) error {
	held, err := s.Catalog.Parts(ctx)
	if err != nil {
		return err
	}
	known, err := s.readPublished(ctx)
	if err != nil {
		return err
	}
	work, cancel := context.WithCancel(ctx)
	if end, ok := ctx.Deadline(); ok {
		cancel()
		work, cancel = context.WithDeadline(ctx, end.Add(-publishedTime))
	}
	defer cancel()
	before := maps.Clone(known.Parts)
	err = errors.Join(s.renewParts(work, held, known), s.dropParts(work, held, known))
	if work.Err() != nil {
		err = nil // there is a next time
	}
	if !maps.Equal(before, known.Parts) {
		err = errors.Join(err, s.writePublished(ctx, known))
	}
	return err
}

// renewParts publishes what changed, or was not looked at for long.
func (s *server) renewParts(ctx context.Context, held map[catalog.Part]string, known published) error {
	last := func(p catalog.Part) partState { return known.Parts[placeOf(p)] }
	parts := slices.SortedFunc(maps.Keys(held), func(a, b catalog.Part) int {
		return cmp.Or(last(a).At.Compare(last(b).At), strings.Compare(placeOf(a), placeOf(b)))
	})
	var errs []error
	for _, part := range parts {
		now := time.Now().UTC().Truncate(time.Second)
		if stamp := held[part]; stamp == "" || stamp == last(part).Stamp && now.Sub(last(part).At) < trusted {
			continue
		}
		if ctx.Err() != nil {
			break
		}
		if err := s.publishPart(ctx, part); err != nil {
			errs = append(errs, err)
			continue
		}
		known.Parts[placeOf(part)] = partState{held[part], now}
	}
	return errors.Join(errs...)
}

// dropParts removes the objects of what is not offered any more.
func (s *server) dropParts(ctx context.Context, held map[catalog.Part]string, known published) error {
	offered := map[string]bool{}
	for part := range held {
		offered[placeOf(part)] = true
	}
	var errs []error
	for _, place := range slices.Sorted(maps.Keys(known.Parts)) {
		if offered[place] {
			continue
		}
		if err := s.withdraw(ctx, place, nil); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(known.Parts, place)
	}
	return errors.Join(errs...)
}

// publishPart makes the objects of a part what they have to be.
func (s *server) publishPart(ctx context.Context, part catalog.Part) error {
	l, err := s.Catalog.Listing(ctx, part)
	if refused(err, build.CodeUnsupported) {
		return s.withdraw(ctx, placeOf(part), nil)
	}
	if err != nil {
		return fmt.Errorf("publish %s: %w", part, err)
	}
	keep := map[string]bool{}
	g, all := errgroup.WithContext(ctx)
	g.SetLimit(putsAtOnce)
	for _, f := range files(l) {
		keep[f.key()] = true
		g.Go(func() error {
			d, err := f.document(l)
			if err != nil {
				return err
			}
			return s.publish(all, f.key(), d)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return s.withdraw(ctx, placeOf(part), keep)
}

// withdraw deletes what is stored there, but for the keys to keep.
func (s *server) withdraw(ctx context.Context, place string, keep map[string]bool) error {
	for info, err := range s.Objects.List(ctx, place) {
		if err == nil && !keep[info.Key] {
			err = s.Objects.Delete(ctx, info.Key)
		}
		if err != nil {
			return fmt.Errorf("remove what is not offered any more below %s: %w", place, err)
		}
	}
	return nil
}

func (s *server) readPublished(ctx context.Context) (published, error) {
	none := published{Version: s.Version, Parts: map[string]partState{}}
	object, _, err := s.Objects.Open(ctx, publishedKey)
	if errors.Is(err, build.ErrNotFound) {
		return none, nil
	}
	if err != nil {
		return none, fmt.Errorf("read %s: %w", publishedKey, err)
	}
	defer object.Close()
	text, err := io.ReadAll(io.LimitReader(object, maxPublished))
	if err != nil {
		return none, fmt.Errorf("read %s: %w", publishedKey, err)
	}
	known := none
	if err := json.Unmarshal(text, &known); err != nil || known.Parts == nil {
		s.Log.Error("what is known of the published catalogue is damaged; all of it will be compared", "error", err)
		return none, nil
	}
	if known.Version != s.Version {
		for place := range known.Parts {
			known.Parts[place] = partState{}
		}
		known.Version = s.Version
	}
	return known, nil
}

// writePublished stores it although the time may be over: what was done counts.
func (s *server) writePublished(ctx context.Context, known published) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), publishedTime)
	defer cancel()
	text, err := json.Marshal(known)
	if err == nil {
		err = s.Objects.Put(ctx, publishedKey, bytes.NewReader(text), build.PolicyCatalog)
	}
	if err != nil {
		return fmt.Errorf("store %s: %w", publishedKey, err)
	}
	return nil
}

// publish stores a document unless it is there.
func (s *server) publish(ctx context.Context, key string, d *document) error {
	if same, err := s.holds(ctx, key, d.body); err != nil || same {
		return err
	}
	if err := s.Objects.Put(ctx, key, bytes.NewReader(d.body), build.PolicyCatalog); err != nil {
		return fmt.Errorf("publish %s: %w", key, err)
	}
	return nil
}

// holds tells whether the object has exactly these bytes.
func (s *server) holds(ctx context.Context, key string, want []byte) (bool, error) {
	object, _, err := s.Objects.Open(ctx, key)
	if errors.Is(err, build.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", key, err)
	}
	defer object.Close()
	have, err := io.ReadAll(io.LimitReader(object, int64(len(want))+1))
	return bytes.Equal(have, want), err
}
