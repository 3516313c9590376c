package main

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/builder/sandbox"
	"github.com/attended-sysupgrade/sysup/shared/aws"
)

// TestSandboxMin: a machine that confines builds less than demanded builds nothing, and says what lacks; what it does is
// in the log and among the figures.
func TestSandboxMin(t *testing.T) {
	var log bytes.Buffer
	open := func(least sandbox.Level) (sandbox.Support, error) {
		dir := t.TempDir()
		for _, folder := range []string{dir, filepath.Dir(dir)} {
			if err := os.Chmod(folder, 0o711); err != nil {
				t.Fatal(err)
			}
		}
		return openScratch(t.Context(), filepath.Join(dir, "scratch"), 64646, least, slog.New(slog.NewTextHandler(&log, nil)))
	}
	support, err := open("")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"builds are confined", "level=" + string(support.Level), "mechanism=" + string(support.Mechanism), "seccomp"} {
		if !strings.Contains(log.String(), text) {
			t.Errorf("the log does not say %q:\n%s", text, log.String())
		}
	}
	if _, err := open(support.Level); err != nil {
		t.Errorf("what it has is demanded: %v", err)
	}
	_, err = open(sandbox.LevelSealed)
	for _, text := range []string{"--sandbox-min", "sealed", string(support.Level), "network is open"} {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("error %v, it has to say %q", err, text)
		}
	}
	if text := sysup(t, exitUsage, "serve", "--sandbox-min", "tight"); !strings.Contains(text, "--sandbox-min") || !strings.Contains(text, "network-open") {
		t.Errorf("a level that is none: %s", text)
	}

	var out bytes.Buffer
	s := &site{workerCmd: workerCmd{Metrics: true}, support: support, out: &out, log: slog.New(slog.DiscardHandler)}
	s.figure(aws.MetricSandbox, float64(support.Level.Rank()))
	var figure map[string]any
	if err := json.Unmarshal(out.Bytes(), &figure); err != nil || figure["SandboxLevel"] != float64(support.Level.Rank()) {
		t.Errorf("the figure is %s (%v)", out.String(), err)
	}
}
