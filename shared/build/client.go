package build

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// client is the name of a client by its address: 128 bits in hex, under the
// secret, so that neither board nor queue holds an address. It is "" for an
// address that is not known.
func (s *Service) client(address string) string {
	if address == "" {
		return ""
	}
	e := encoder{hmac.New(sha256.New, s.Secret)}
	e.text(domainClient)
	e.text(network(address))
	return hex.EncodeToString(e.h.Sum(nil)[:16])
}

// network is what counts as one client: an IPv4 address or the /64 of an IPv6
// one, since whoever has one address there has them all. Whatever is no
// address counts together.
func network(address string) string {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return ""
	}
	if a = a.Unmap().WithZone(""); a.Is4() {
		return a.String()
	}
	return netip.PrefixFrom(a, 64).Masked().String()
}

func hourOf(now time.Time) int64 { return now.Unix() / int64(time.Hour/time.Second) }

func endOf(hour int64) time.Time { return time.Unix((hour+1)*int64(time.Hour/time.Second), 0) }

// clientBoard is the item that counts a client's builds of one hour.
func clientBoard(client string, hour int64) string { return fmt.Sprintf("client/%s/%d", client, hour) }

// hourSet remembers names for the rest of the hour. It forgets all of them when
// there are too many: then the board is asked again.
type hourSet struct {
	mu    sync.Mutex
	hour  int64
	names map[string]struct{}
}

const hourSetSize = 10_000

func (h *hourSet) add(hour int64, name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.hour != hour || len(h.names) >= hourSetSize {
		h.hour, h.names = hour, map[string]struct{}{}
	}
	h.names[name] = struct{}{}
}

func (h *hourSet) has(hour int64, name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.names[name]
	return ok && h.hour == hour
}
