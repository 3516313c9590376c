package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/api"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
)

// keeper sees to it that no request is hashed before the secret is there. It
// stands before the catalogue, which every new request asks first: while the
// secret cannot be read, that request is put off, and polls go on.
type keeper struct {
	api.Catalog
	service *build.Service
	read    func(context.Context) ([]byte, error)

	mu   sync.Mutex
	next time.Time // when to ask again after a fault
	err  error
}

const (
	warmTime    = 5 * time.Second // of the process's start
	secretTime  = 4 * time.Second
	secretPause = time.Second
	leastSecret = 32 // bytes
)

// warm does at the start, while Lambda gives a whole processor, what the first
// request would wait for. What fails is tried again by the requests.
func (k *keeper) warm(ctx context.Context, catalogue func(context.Context) error, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, warmTime)
	defer cancel()
	var all sync.WaitGroup
	for what, f := range map[string]func(context.Context) error{"the secret": k.ready, "the catalogue": catalogue, "the board": k.board} {
		all.Go(func() {
			if err := f(ctx); err != nil {
				log.Error("a part could not be read at the start", "part", what, "error", err)
			}
		})
	}
	all.Wait()
}

// board opens the connection to the table.
func (k *keeper) board(ctx context.Context) error {
	_, err := k.service.Pending(ctx)
	return err
}

// ready reads the secret unless it was read before.
func (k *keeper) ready(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.service.Secret != nil {
		return nil
	}
	if build.Since(k.next) >= 0 {
		k.next = time.Now().Add(secretPause)
		k.err = k.load(ctx)
	}
	return k.err
}

func (k *keeper) load(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, secretTime)
	defer cancel()
	secret, err := k.read(ctx)
	if err != nil {
		return err
	}
	if len(secret) < leastSecret {
		return fmt.Errorf("the secret of SYSUP_REQUEST_SECRET has to have %d bytes or more, it has %d", leastSecret, len(secret))
	}
	k.service.Secret = secret
	return nil
}

// Device implements api.Catalog.
func (k *keeper) Device(ctx context.Context, version, target, profile, model string) (*catalog.Device, error) {
	if err := k.ready(ctx); err != nil {
		return nil, build.PutOff(err)
	}
	return k.Catalog.Device(ctx, version, target, profile, model)
}
