package api

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestFeedAddresses: whatever makes an address look as if it lay below an
// allowed one is refused, by its pattern or by the list.
func TestFeedAddresses(t *testing.T) {
	rig := newRig(t)
	rig.config.RepositoryAllow = []string{
		"https://feeds.example.org/packages", "http://plain.example.org:8080", "https://[2001:db8::1]/x", "https://who@named.example.org/", "nonsense", "",
	}
	h := rig.handler()
	for address, allowed := range map[string]bool{
		"https://feeds.example.org/packages":            true,
		"https://feeds.example.org/packages/":           true,
		"https://feeds.example.org/packages/a/b-c_d+~1": true,
		"https://feeds.example.org:443/packages/a":      true,
		"https://FEEDS.example.ORG/packages":            true,
		"http://plain.example.org:8080/any/where":       true,
		"https://feeds.example.org/packages/.hidden":    true,

		// Elsewhere.
		"https://feeds.example.org":                       false,
		"https://feeds.example.org/":                      false,
		"https://feeds.example.org/packages2":             false,
		"https://feeds.example.org/Packages":              false,
		"https://feeds.example.org/package":               false,
		"https://feeds.example.org/x/packages":            false,
		"https://feeds.example.org.evil.example/packages": false,
		"https://evil.example/feeds.example.org/packages": false,
		"https://xfeeds.example.org/packages":             false,
		"https://feeds.example.orgpackages":               false,
		"https://plain.example.org:8080/x":                false,
		"http://plain.example.org/x":                      false,
		"http://plain.example.org:80/x":                   false,
		"http://plain.example.org:08080/x":                false,

		// Another scheme, or none.
		"http://feeds.example.org/packages":  false,
		"HTTPS://feeds.example.org/packages": false,
		"ftp://feeds.example.org/packages":   false,
		"file:///packages":                   false,
		"//feeds.example.org/packages":       false,
		"feeds.example.org/packages":         false,
		"":                                   false,

		// Another port.
		"https://feeds.example.org:444/packages":      false,
		"https://feeds.example.org:80/packages":       false,
		"https://feeds.example.org:0443/packages":     false,
		"https://feeds.example.org:/packages":         false,
		"https://feeds.example.org:443:443/packages":  false,
		"https://feeds.example.org:+443/packages":     false,
		"https://feeds.example.org:99999999/packages": false,

		// A user before the host, or something that some take for the host's end.
		"https://feeds.example.org@evil.example/packages":     false,
		"https://feeds.example.org:443@evil.example/packages": false,
		"https://evil.example@feeds.example.org/packages":     false,
		"https://who@named.example.org/":                      false,
		"https://evil.example\\@feeds.example.org/packages":   false,
		"https://evil.example#@feeds.example.org/packages":    false,
		"https://evil.example?@feeds.example.org/packages":    false,
		"https://evil.example%2f@feeds.example.org/packages":  false,
		"https://evil.example%00.feeds.example.org/packages":  false,
		"https://feeds.example.org%2f.evil.example/packages":  false,
		"https://feeds.example.org\t.evil.example/packages":   false,
		"https://feeds.example.org\n/packages":                false,
		"https://feeds.example.org /packages":                 false,
		" https://feeds.example.org/packages":                 false,
		"https:/\\evil.example/packages":                      false,
		"https:\\\\feeds.example.org/packages":                false,
		"https:///feeds.example.org/packages":                 false,
		"https://[2001:db8::1]/x":                             false, // the pattern has no addresses of that kind
		"https://feeds.example.org./packages":                 false,
		"https://feeds.example.org../packages":                false,
		"https://.feeds.example.org/packages":                 false,
		"https://feeds。example。org/packages":                  false,
		"https://feeds.ex\u0430mple.org/packages":             false, // Cyrillic
		"https://feeds.example.org\u200b/packages":            false,
		"https://ﬀeeds.example.org/packages":                  false,
		"https://xn--feeds-.example.org/packages":             false,

		// Out of the folder again.
		"https://feeds.example.org/packages/../secret":                   false,
		"https://feeds.example.org/packages/..":                          false,
		"https://feeds.example.org/x/../packages/a":                      false,
		"https://feeds.example.org/packages/%2e%2e/secret":               false,
		"https://feeds.example.org/packages/%2E./secret":                 false,
		"https://feeds.example.org/packages%2f..%2fsecret":               false,
		"https://feeds.example.org/packages/..;/secret":                  false,
		"https://feeds.example.org/packages/..\\secret":                  false,
		"https://feeds.example.org//packages":                            false,
		"https://feeds.example.org/packages//a":                          false,
		"https://feeds.example.org/packages/a?x=/../..":                  false,
		"https://feeds.example.org/packages#/../secret":                  false,
		"https://feeds.example.org/packages/a b":                         false,
		"https://feeds.example.org/packages/$(id)":                       false,
		"https://feeds.example.org/packages/a;id":                        false,
		"https://feeds.example.org/packages/a\nsrc/gz b http":            false,
		"https://feeds.example.org/packages" + strings.Repeat("/a", 300): false,
	} {
		quoted, err := json.Marshal(address)
		if err != nil {
			t.Fatal(err)
		}
		for _, mode := range []string{"append", "replace"} {
			w := call(h, "POST", "/api/v1/build", with(`"repositories":{"a":`+string(quoted)+`},"repositories_mode":"`+mode+`"`))
			if want := map[bool]int{true: 202, false: 400}[allowed]; w.Code != want || !allowed && sentence(w) == "" {
				t.Errorf("%q: %d %s", address, w.Code, w.Body)
			}
		}
	}
}

// TestNoFeedsAllowed: without a list no feed is taken, whatever it is.
func TestNoFeedsAllowed(t *testing.T) {
	rig := newRig(t)
	rig.config.RepositoryAllow = nil
	h := rig.handler()
	for _, address := range []string{"https://downloads.openwrt.org/releases", "http://127.0.0.1/", "http://localhost"} {
		if w := call(h, "POST", "/api/v1/build", with(`"repositories":{"a":"`+address+`"}`)); w.Code != 400 || !strings.Contains(sentence(w), "does not allow") {
			t.Errorf("%s: %d %s", address, w.Code, w.Body)
		}
	}
}

// FuzzFeedAddress: an address that is taken is text that begins as one of the
// list does, host and port spelled as they may be, and stays below it.
func FuzzFeedAddress(f *testing.F) {
	for _, seed := range []string{
		"https://feeds.example.org/packages/a", "https://feeds.example.org:443/packages", "https://feeds.example.org/packages/../x",
		"https://feeds.example.org@evil.example/packages", "https://feeds.example.org./packages", "https://feeds.example.org/packages%2f..",
	} {
		f.Add(seed)
	}
	rig := newRig(f)
	rig.config.RepositoryAllow = []string{"https://feeds.example.org/packages"}
	h := rig.handler()
	f.Fuzz(func(t *testing.T, address string) {
		quoted, err := json.Marshal(address)
		if err != nil {
			t.Fatal(err)
		}
		w := call(h, "POST", "/api/v1/build", with(`"repositories":{"a":`+string(quoted)+`}`))
		if w.Code != 202 {
			if w.Code != 400 || sentence(w) == "" {
				t.Errorf("%q: %d %s", address, w.Code, w.Body)
			}
			return
		}
		lower := strings.Replace(strings.ToLower(address), ":443/", "/", 1)
		rest, below := strings.CutPrefix(lower, "https://feeds.example.org/packages")
		if !below || rest != "" && rest[0] != '/' || strings.Contains(rest, "..") || strings.ContainsAny(rest, "%?#@\\ :;$") || strings.Contains(rest, "//") {
			t.Errorf("%q was taken", address)
		}
	})
}
