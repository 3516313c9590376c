package infra_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestLint has AWS's own knowledge of every resource and property judge the
// templates, offline. Nothing may be found, warnings included.
func TestLint(t *testing.T) {
	for _, file := range []string{templateFile, "waf.yaml", "budget.yaml"} {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			refuseSuppressions(t, file)
			found(t, "cfn-lint", "--non-zero-exit-code", "informational", file)
			if file == templateFile {
				found(t, "sam", "validate", "--lint", "--template-file", file)
			}
		})
	}
}

// TestLintNotices shows that the tools would find something.
func TestLintNotices(t *testing.T) {
	file := filepath.Join(t.TempDir(), "template.yaml")
	text := strings.Replace(readTemplate(t, templateFile), "VisibilityTimeout: 60", "VisibilityTimout: 60", 1)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if output, err := tool(t, "cfn-lint", file); err == nil || !strings.Contains(output, "VisibilityTimout") {
		t.Errorf("cfn-lint overlooks a misspelt property: %s", output)
	}
	if output, err := tool(t, "sam", "validate", "--lint", "--template-file", file); err == nil {
		t.Errorf("sam validate overlooks a misspelt property: %s", output)
	}
}

func refuseSuppressions(t *testing.T, file string) {
	t.Helper()
	if strings.Contains(readTemplate(t, file), "ignore_checks") {
		t.Errorf("%s suppresses what cfn-lint says", file)
	}
	for _, config := range []string{".cfnlintrc", ".cfnlintrc.yaml", ".cfnlintrc.yml"} {
		if _, err := os.Stat(filepath.Join("..", config)); err == nil {
			t.Errorf("%s changes what cfn-lint says", config)
		}
	}
}

func found(t *testing.T, name string, arguments ...string) {
	t.Helper()
	if output, err := tool(t, name, arguments...); err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(arguments, " "), err, output)
	}
}

// tool runs one that scripts/emulator installs.
func tool(t *testing.T, name string, arguments ...string) (string, error) {
	t.Helper()
	program, err := filepath.Abs("../build/emulator/tools/bin/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%s is not there: scripts/emulator install installs it", name)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, program, arguments...)
	// The same answer on every machine: no account, no configuration of a user, no report to the maker.
	command.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "AWS_DEFAULT_REGION=us-east-1", "SAM_CLI_TELEMETRY=0"}
	output, err := command.CombinedOutput()
	return string(output), err
}
