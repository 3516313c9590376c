package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// Publish stores what clients read below /json/v1 as objects, for deployments
// where a CDN answers these addresses and not the handler. It writes only what
// changed. Of the Config it reads Catalog, Objects, AllowDefaults,
// RepositoryAllow and Version.
func Publish(ctx context.Context, c Config) error {
	s := &server{Config: c}
	known, err := s.Catalog.Overview(ctx)
	if err != nil {
		return err
	}
	return errors.Join(
		s.publish(ctx, "json/v1/overview.json", s.overview(known)),
		s.publish(ctx, "json/v1/latest.json", latest(known)),
	)
}

func (s *server) publish(ctx context.Context, key string, body any) error {
	o, err := encode(body)
	if err != nil {
		return err
	}
	if same, err := s.holds(ctx, key, o.body); err != nil || same {
		return err
	}
	if err := s.Objects.Put(ctx, key, bytes.NewReader(o.body), build.PolicyCatalog); err != nil {
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
