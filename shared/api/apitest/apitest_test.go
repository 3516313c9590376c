package apitest

import (
	"net/http"
	"strings"
	"testing"
)

func answer(status int, body string, headers ...string) Answer {
	a := Answer{Status: status, Header: http.Header{}, Body: []byte(body), Length: int64(len(body))}
	a.Header.Set("Access-Control-Allow-Origin", "*")
	for _, line := range headers {
		name, value, _ := strings.Cut(line, ": ")
		a.Header.Set(name, value)
	}
	return a
}

// TestClientsStumble: answers that a server may well give and a client cannot
// read are noticed.
func TestClientsStumble(t *testing.T) {
	const images = `"images":[{"name":"a","type":"sysupgrade","filesystem":"squashfs","sha256":"1","sha256_unsigned":"2"}],"bin_dir":"x","version_number":"1","version_code":"r1","id":"x","target":"a/b","build_at":"now"`
	for _, test := range []struct{ client, want, body string }{
		{"luci-2022 202", Throws, `{"request_hash":"x","imagebuilder_status":"container_setup"}`},
		{"luci-2025 202", AsksOn, `{"request_hash":"x","imagebuilder_status":"container_setup"}`},
		{"luci-2025 202", Throws, `{"request_hash":"x","detail":"started"}`},
		{"luci-rebuilder 202", AsksOn + ": nothing new", `{"request_hash":"x","queue_position":1}`},
		{"luci-2022 202", AsksOn + ": queue position 0", `{"request_hash":"x","queue_position":0}`},
		{"luci-2022 422", Throws, `{"detail":[{"msg":"bad"}]}`},
		{"luci-2022 429", ForEver, `{"detail":"busy"}`},
		{"luci-2022 404", ForEver, `{"detail":"gone"}`},
		{"luci-2022 200", Done, `{` + images + `}`},
		{"luci-2022 200", Throws, `{` + strings.Replace(images, `"sha256_unsigned":"2"`, `"size":1`, 1) + `}`},
		{"luci-2021 202", Throws, `{"queue_position":1}`},
		{"auc-2021 202", AsksOn + ": queue position 3", `{"status":"queued","request_hash":"x","queue_position":3}`},
		{"auc-2021 202", ForEver, `{"status":202,"request_hash":"x","detail":"queued"}`},
		{"auc-2021 202", ForEver, `{"status":"queued"}`},
		{"auc-2021 200", Done, `{"status":200,"request_hash":"x",` + images + `}`},
		{"auc-2021 200", ForEver, `{"status":"done","request_hash":"x",` + images + `}`},
		{"auc-2021 500", Stops + ": Bad message", `{"detail":"x"}`},
		{"auc 422", Stops + ": unknown package (null)", `{"detail":"x"}`},
		{"auc 503", Stops + ": Bad message", `{"detail":"x"}`},
		{"auc 202", Stops + ": Bad message", `{"detail":"x"}`},
		{"auc 200", Stops + ": Bad message", `{"images":{}}`},
		{"owut 200", Throws + ": no request", `{"status":200,` + images + `}`},
		{"owut 200", Throws + ": no status", `{` + images + `}`},
		{"owut 200", Stops + ": expected r2, but got r1", `{"status":200,"request":{"version_code":"r2","rootfs_size_mb":null,"defaults":""},"manifest":{},` + images + `}`},
		{"owut 500", AsksOn, `{"status":202,"detail":"started"}`},
		{"firmware-selector 502", Throws, `<html>`},
		{"firmware-selector 422", Throws, `{"detail":[{"msg":"bad"}]}`},
		{"firmware-selector 200", Throws + ": no build_cmd", `{` + images + `}`},
	} {
		name, status, _ := strings.Cut(test.client, " ")
		code := int(status[0]-'0')*100 + int(status[1]-'0')*10 + int(status[2]-'0')
		if got := Clients[name](answer(code, test.body)); !strings.HasPrefix(got, test.want) {
			t.Errorf("%s reads %q in %s, want %q", test.client, got, test.body, test.want)
		}
	}
}

// TestSound: answers that break what all clients rely on are noticed.
func TestSound(t *testing.T) {
	without := func(a Answer, name string) Answer { a.Header.Del(name); return a }
	chunked := answer(200, "{}")
	chunked.Length, chunked.Chunked = -1, true
	for name, a := range map[string]Answer{
		"no CORS":           without(answer(200, "{}"), "Access-Control-Allow-Origin"),
		"CORS for one":      answer(200, "{}", "Access-Control-Allow-Origin: http://192.168.1.1"),
		"a redirect":        answer(301, "", "Location: /json/v1/overview.json"),
		"gzip":              answer(200, "{}", "Content-Encoding: gzip"),
		"chunks":            chunked,
		"a list for detail": answer(422, `{"detail":[]}`),
		"no sentence":       answer(404, `not found`),
		"another status":    answer(200, `{"status":202}`),
	} {
		if a.Sound() == nil {
			t.Errorf("%s: not noticed", name)
		}
	}
	for _, good := range []Answer{answer(200, `{"status":200,"detail":"done"}`), answer(404, `{"detail":"gone"}`), answer(200, "image"), answer(304, "")} {
		if err := good.Sound(); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
}

// TestPreflight: a browser that is not allowed a Content-Type does not go on.
func TestPreflight(t *testing.T) {
	for _, test := range []struct {
		status           int
		methods, headers string
		ok               bool
	}{
		{204, "GET, POST", "Content-Type", true}, {200, "*", "*", true}, {204, "GET, POST", "Range", false}, {204, "GET", "Content-Type", false}, {404, "POST", "*", false},
	} {
		a := answer(test.status, "", "Access-Control-Allow-Methods: "+test.methods, "Access-Control-Allow-Headers: "+test.headers)
		if err := a.preflight("POST"); (err == nil) != test.ok {
			t.Errorf("%+v: %v", test, err)
		}
	}
}

// TestOffers: which versions a client finds depends on their order and on all
// that it demands of a branch.
func TestOffers(t *testing.T) {
	const branch = `{"name":"24.10","enabled":true,"path":"releases/{version}","path_packages":"releases/packages-{branch}","versions":["24.10.1","24.10.0"],"targets":{"a/b":"x"},"package_changes":[]}`
	for _, test := range []struct{ client, body, installed, want string }{
		{"luci", `{"latest":["25.12.0","24.10.1","23.05.6"]}`, "24.10.0", "24.10.1"},
		{"luci", `{"latest":["25.12.0","24.10.1","23.05.6"]}`, "24.10.1", ""},
		{"luci", `{"latest":["25.12.0","24.10.1"]}`, "23.05.1", ""},
		{"luci", `{"revision":"r10-abc"}`, "r9-def", "r10-abc"},
		{"luci", `{"revision":"r10-abc"}`, "r10-abc", ""},
		{"owut", `{"upstream_url":"http://x","branches":{"24.10":` + branch + `}}`, "24.10.0", "24.10.1 24.10.0"},
		{"owut", `{"upstream_url":"http://x","branches":[` + branch + `]}`, "24.10.0", ""},
		{"auc", `[` + branch + `]`, "24.10.0", "24.10.1 24.10.0"},
		{"auc", `[` + strings.Replace(branch, "path_packages", "paths", 1) + `]`, "24.10.0", ""},
		{"auc", `[` + branch + `]`, "23.05.5", ""},
		{"auc-2021", `[` + branch + `]`, "24.10.0", ""},
		{"auc-2021", `[{"updates":"","pubkey":"","repos":[],` + branch[1:] + `]`, "24.10.0", "24.10.1 24.10.0"},
		{"auc-2021", `{"24.10":{"updates":"","pubkey":"","repos":[],` + branch[1:] + `}`, "24.10.0", ""},
	} {
		if got := strings.Join(finders[test.client](answer(200, test.body), test.installed), " "); got != test.want {
			t.Errorf("%s offers %q, want %q: %s", test.client, got, test.want, test.body)
		}
	}
}
