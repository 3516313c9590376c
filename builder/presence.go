package builder

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// Presence is for workers that come and go. It notes on the board until when
// those of this process receive, so that nobody starts others while they are
// there, and somebody does when they are gone.
type Presence struct {
	fleet build.Fleet
	idle  time.Duration
	log   *slog.Logger

	mu       sync.Mutex
	handling int       // messages
	rested   time.Time // since when there was no build
}

// linger is how long workers receive beyond their promise: a message may be
// sent in its last moment, and clocks differ.
const linger = 10 * time.Second

// NewPresence returns the presence of workers that leave when there was no
// build for the time idle; 0 is never.
func NewPresence(records build.Records, idle time.Duration, log *slog.Logger) *Presence {
	return &Presence{fleet: build.Fleet{Records: records}, idle: idle, log: log, rested: time.Now()}
}

// Run renews the promise. It returns when there was no build for so long that
// the workers are to leave, or when ctx ends.
func (p *Presence) Run(ctx context.Context) {
	for ctx.Err() == nil {
		until, wait := p.next(time.Now())
		if wait <= 0 {
			return
		}
		p.tell(ctx, until)
		pause(ctx, wait)
	}
}

// next is until when the workers would receive if nothing came, and how long
// that stands: nothing if they leave.
func (p *Presence) next(now time.Time) (until time.Time, wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.idle == 0:
		return now.Add(build.AliveTime), build.AliveBeat
	case p.handling > 0: // after a build there is the whole time of rest
		return now.Add(build.AliveTime), min(build.AliveBeat, p.idle)
	}
	until = p.rested.Add(p.idle)
	return until, min(build.AliveBeat, until.Add(linger).Sub(now))
}

func (p *Presence) tell(ctx context.Context, until time.Time) {
	if err := p.fleet.Present(ctx, until); err != nil && ctx.Err() == nil {
		p.log.Warn("the board was not told that workers are here", "error", err) // at worst another one is started
	}
}

// handle notes that a message is handled; the function it returns, that it was.
// Both may be called without a Presence.
func (p *Presence) handle() (end func()) {
	if p == nil {
		return func() {}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handling++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.handling--
	}
}

// built notes that a build has ended just now.
func (p *Presence) built() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rested = time.Now()
}
