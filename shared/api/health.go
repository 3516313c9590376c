package api

import (
	"errors"
	"net/http"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// getHealth says that the process is alive, whatever it lacks.
func (s *server) getHealth(w *response, r *http.Request) error {
	return w.json(http.StatusOK, health{http.StatusOK, "alive", s.Version})
}

// getReady says whether requests can be answered now.
func (s *server) getReady(w *response, r *http.Request) error {
	ctx, cancel := withTime(r)
	defer cancel()
	if err := s.Catalog.Ready(); err != nil {
		return err
	}
	if s.Ready != nil {
		if err := s.Ready(ctx); err != nil {
			return errors.Join(&build.Refusal{Code: build.CodeUnavailable, Detail: "This server does not reach its own storage."}, err)
		}
	}
	return w.json(http.StatusOK, health{http.StatusOK, "ready", s.Version})
}

type health struct {
	Status  int    `json:"status"`
	Detail  string `json:"detail"`
	Version string `json:"version"`
}
