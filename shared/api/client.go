package api

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// Peer is the address at the other end of a request's connection.
func Peer(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	return host
}

// Behind returns a function for Config.Client that looks behind proxies: a
// request that one of them passed on is the client's whom they name last in
// X-Forwarded-For and who is none of them. Nobody else's header is believed.
// Without proxies it is Peer.
func Behind(proxies []netip.Prefix) func(*http.Request) string {
	trusted := func(text string) bool {
		address, err := netip.ParseAddr(text)
		return err == nil && slices.ContainsFunc(proxies, func(p netip.Prefix) bool { return p.Contains(address.Unmap().WithZone("")) })
	}
	return func(r *http.Request) string {
		client := Peer(r)
		entries := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
		for _, entry := range slices.Backward(entries) {
			if !trusted(client) {
				break
			}
			entry = strings.TrimSpace(entry)
			if _, err := netip.ParseAddr(entry); err != nil {
				break // whatever stands before it may be made up
			}
			client = entry
		}
		return client
	}
}
