package main

import (
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/attended-sysupgrade/sysup/scripts/instant"
	"github.com/attended-sysupgrade/sysup/shared/catalog/catalogtest"
)

type upstreamCmd struct {
	Listen   string `help:"Address to listen on." default:"127.0.0.1:8001"`
	Key      string `help:"File to write the public key of the upstream to." required:""`
	Targets  int    `help:"Instead of the one with the instant ImageBuilder: a generated branch of so many targets."`
	Packages int    `help:"Packages of each generated target." default:"9000"`
}

func (c *upstreamCmd) Run() error {
	handler, err := c.handler()
	if err != nil {
		return err
	}
	server := http.Server{Addr: c.Listen, Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	return server.ListenAndServe()
}

func (c *upstreamCmd) handler() (http.Handler, error) {
	if c.Targets > 0 {
		u, err := catalogtest.Big(c.Targets, c.Packages)
		if err != nil {
			return nil, err
		}
		return u, os.WriteFile(c.Key, u.Keys()[0].Marshal(), 0o644)
	}
	dir, err := os.MkdirTemp("", "upstream-") // scripts/bench sets TMPDIR to a folder that it removes
	if err != nil {
		return nil, err
	}
	u, err := instant.Write(dir, instant.Options{URL: "http://" + c.Listen})
	if err != nil {
		return nil, fmt.Errorf("make the upstream: %w", err)
	}
	return http.FileServer(http.Dir(dir)), os.WriteFile(c.Key, u.Key.Public().Marshal(), 0o644)
}
