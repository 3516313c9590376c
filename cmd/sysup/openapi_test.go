package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/scripts/instant"
	"github.com/attended-sysupgrade/sysup/shared/client"
)

// TestOpenAPIContract has Schemathesis hold the running server against the
// document that it gives out: each operation with what the document allows
// and with what it does not, each answer against its schema.
func TestOpenAPIContract(t *testing.T) {
	t.Parallel()
	up, url := instantUpstream(t, instant.Options{Versions: []string{"24.10.0"}})
	server := startServer(t, serveCmd{Upstream: url, UpstreamKey: []string{up.KeyFile}, AllowDefaults: true, BuildUID: 65380})
	request := client.Request{Version: "24.10.0", Target: "x86/64", Profile: "generic", Packages: []string{"nano"}, DiffPackages: true}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	result, err := (&client.Client{URL: server.url}).Wait(ctx, request, nil)
	if err != nil {
		t.Fatal(err)
	}
	document := withExamples(t, server.url, request, result)
	cmd := exec.CommandContext(ctx, "../../scripts/schemathesis", "run", document, "--url", server.url,
		"--checks", "all", "--exclude-checks", "positive_data_acceptance",
		"--phases", "examples,coverage,fuzzing", "--max-examples", "25", "--seed", "1", "--workers", "1", "--no-color", "--warnings", "off", "--generation-database", "none")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("the server and its document disagree, or Schemathesis is not installed (scripts/schemathesis install): %v\n%s", err, out)
	}
	t.Logf("%s", out[bytes.LastIndex(out, []byte("SUMMARY")):])
}

// withExamples writes the server's document with examples that lead to a
// finished build, so that the answers are not all refusals.
func withExamples(t *testing.T, server string, request client.Request, result client.Result) string {
	var doc map[string]any
	if err := json.Unmarshal(get(t, server+"/api/openapi.json"), &doc); err != nil {
		t.Fatal(err)
	}
	examples := map[string]any{
		"hash": result.RequestHash, "version": request.Version, "target": "x86", "subtarget": "64",
		"path": result.BinDir + "/" + result.Images[0].Name, "name": "server.pub",
	}
	for _, methods := range doc["paths"].(map[string]any) {
		for _, o := range methods.(map[string]any) {
			parameters, _ := o.(map[string]any)["parameters"].([]any)
			for _, p := range parameters {
				p.(map[string]any)["example"] = examples[p.(map[string]any)["name"].(string)]
			}
		}
	}
	post := doc["paths"].(map[string]any)["/api/v1/build"].(map[string]any)["post"].(map[string]any)
	post["requestBody"].(map[string]any)["content"].(map[string]any)["application/json"].(map[string]any)["example"] = request
	asked := doc["components"].(map[string]any)["schemas"].(map[string]any)["Request"].(map[string]any)["properties"].(map[string]any)
	for name, value := range map[string]string{"version": request.Version, "target": request.Target} {
		asked[name] = map[string]any{"const": value} // else what is wrong in the rest would not be what is refused
	}
	text, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "openapi.json")
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func get(t *testing.T, address string) []byte {
	t.Helper()
	resp, err := http.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %v %s", address, resp.Status, err, body)
	}
	return body
}
