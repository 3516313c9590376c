package builder

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

const maxChainFile = 16 << 20

// complete looks whether the record's last attempt stored everything before
// its worker was lost. Then its result counts: what was signed needs no second
// build.
func (w *Worker) complete(ctx context.Context, rec build.Record) (*build.Result, bool) {
	result, err := w.recovered(ctx, rec)
	if err != nil && !errors.Is(err, build.ErrNotFound) {
		w.Log.Warn("an earlier attempt cannot be used", "build", rec.ID.Short(), "error", nameless(err, rec.ID))
	}
	return result, err == nil
}

func (w *Worker) recovered(ctx context.Context, rec build.Record) (*build.Result, error) {
	prefix := build.Prefix(rec.ID, rec.Attempt, rec.Plan.Private)
	var chain usign.Chain
	// build.json was stored last: without it there is nothing more to look at.
	for _, file := range []struct {
		name string
		to   *[]byte
	}{
		{usign.BuildFile, &chain.Build}, {usign.SumsFile, &chain.Sums}, {usign.SumsSigFile, &chain.SumsSig},
		{usign.WorkerFile, &chain.Worker}, {usign.WorkerSigFile, &chain.WorkerSig},
	} {
		text, err := w.read(ctx, prefix+file.name)
		if err != nil {
			return nil, err
		}
		*file.to = text
	}
	trust, err := w.trust(ctx)
	if err != nil {
		return nil, fmt.Errorf("the server's keys: %v", err) // nothing of the attempt is missing
	}
	verified, err := trust.VerifyChain(chain, time.Now())
	if err != nil {
		return nil, err
	}
	for name := range verified.Sums {
		if err := w.check(ctx, verified.Sums, prefix, name); err != nil {
			return nil, err
		}
	}
	return provenance(chain.Build, rec, prefix)
}

// trust is what clients would hold against the attempt: a worker's key may have
// been revoked since.
func (w *Worker) trust(ctx context.Context) (trust usign.Trust, err error) {
	if trust.Server, err = w.serverKeys(ctx); err != nil {
		return trust, err
	}
	list, err := w.read(ctx, "keys/revoked")
	if errors.Is(err, build.ErrNotFound) {
		return trust, nil
	}
	if err != nil {
		return trust, err
	}
	sig, err := w.read(ctx, "keys/revoked.sig")
	if err != nil {
		return trust, err
	}
	trust.Revoked, err = usign.VerifyRevoked(trust.Server, list, sig)
	return trust, err
}

func (w *Worker) serverKeys(ctx context.Context) ([]usign.PublicKey, error) {
	if w.ServerKeys != nil {
		return w.ServerKeys, nil
	}
	text, err := w.read(ctx, "keys/server.pub")
	if err != nil {
		return nil, err
	}
	key, err := usign.ParsePublicKey(text)
	return []usign.PublicKey{key}, err
}

func provenance(text []byte, rec build.Record, prefix string) (*build.Result, error) {
	var p build.Provenance
	if err := json.Unmarshal(text, &p); err != nil {
		return nil, err
	}
	if p.Schema != build.Schema || p.RequestHash != rec.ID || p.Attempt != rec.Attempt || p.Result.Prefix != prefix {
		return nil, fmt.Errorf("build.json of %s is about another build", rec.ID.Short())
	}
	return &p.Result, nil
}

func (w *Worker) read(ctx context.Context, key string) ([]byte, error) {
	r, info, err := w.Objects.Open(ctx, key)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if info.Size > maxChainFile {
		return nil, fmt.Errorf("%s has %d bytes", key, info.Size)
	}
	var b bytes.Buffer
	_, err = io.Copy(&b, r)
	return b.Bytes(), err
}

func (w *Worker) check(ctx context.Context, sums usign.Sums, prefix, name string) error {
	r, _, err := w.Objects.Open(ctx, prefix+name)
	if err != nil {
		return err
	}
	defer r.Close()
	return sums.Check(name, r)
}
