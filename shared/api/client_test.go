package api

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

var proxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8:ffff::/48"), netip.MustParsePrefix("192.0.2.80/32")}

func request(peer string, forwarded ...string) *http.Request {
	return &http.Request{RemoteAddr: peer, Header: http.Header{"X-Forwarded-For": forwarded}}
}

func TestBehind(t *testing.T) {
	for name, test := range map[string]struct {
		peer      string
		forwarded []string
		want      string
	}{
		"nobody between":               {"198.51.100.7:1234", nil, "198.51.100.7"},
		"nobody between, made up":      {"198.51.100.7:1234", []string{"203.0.113.9"}, "198.51.100.7"},
		"behind a proxy":               {"10.0.0.1:80", []string{"203.0.113.9"}, "203.0.113.9"},
		"behind one, made up":          {"10.0.0.1:80", []string{"192.0.2.1, 203.0.113.9"}, "203.0.113.9"},
		"behind two":                   {"10.0.0.1:80", []string{"1.2.3.4, 203.0.113.9, 192.0.2.80"}, "203.0.113.9"},
		"behind two, in two lines":     {"10.0.0.1:80", []string{"203.0.113.9", "192.0.2.80"}, "203.0.113.9"},
		"of IPv6":                      {"[2001:db8:ffff::1]:80", []string{"2001:db8::9"}, "2001:db8::9"},
		"by an IPv4 address of IPv6":   {"[::ffff:10.0.0.1]:80", []string{"203.0.113.9"}, "203.0.113.9"},
		"of the proxy itself":          {"10.0.0.1:80", nil, "10.0.0.1"},
		"proxies alone":                {"10.0.0.1:80", []string{"10.0.0.3, 10.0.0.2"}, "10.0.0.3"},
		"no address":                   {"10.0.0.1:80", []string{"203.0.113.9, unknown"}, "10.0.0.1"},
		"no address behind a second":   {"10.0.0.1:80", []string{"203.0.113.9, <script>, 10.0.0.2"}, "10.0.0.2"},
		"an address with a port":       {"10.0.0.1:80", []string{"203.0.113.9:99"}, "10.0.0.1"},
		"an empty header":              {"10.0.0.1:80", []string{""}, "10.0.0.1"},
		"a socket that has no address": {"@", []string{"203.0.113.9"}, ""},
	} {
		if got := Behind(proxies)(request(test.peer, test.forwarded...)); got != test.want {
			t.Errorf("%s: the client is %q, not %q", name, got, test.want)
		}
		if got := Behind(nil)(request(test.peer, test.forwarded...)); got != Peer(request(test.peer)) {
			t.Errorf("%s: without proxies it is %q", name, got)
		}
	}
}

// FuzzBehind: whatever a client writes before what the proxy appends, it is
// known by what the proxy appended.
func FuzzBehind(f *testing.F) {
	f.Add("1.2.3.4, 10.0.0.9")
	f.Add("")
	f.Add("::ffff:10.0.0.2,,")
	f.Fuzz(func(t *testing.T, made string) {
		lines := []string{made + ", 203.0.113.9"}
		if strings.Contains(made, ",") {
			before, after, _ := strings.Cut(made, ",")
			lines = []string{before, after, "203.0.113.9"}
		}
		if got := Behind(proxies)(request("10.0.0.1:80", lines...)); got != "203.0.113.9" {
			t.Errorf("%q makes it %q", made, got)
		}
		direct := Behind(proxies)(request("198.51.100.1:80", slices.Insert(lines, 0, made)...))
		if direct != "198.51.100.1" {
			t.Errorf("%q makes it %q", made, direct)
		}
	})
}
