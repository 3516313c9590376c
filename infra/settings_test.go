package infra_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// programs say where each program's settings are declared: its own, all of
// which the template has to set, and those it shares.
var programs = map[string]struct{ own, shared []string }{
	"Api":         {[]string{"functions/api"}, []string{"functions/start", "shared/aws"}},
	"Housekeeper": {[]string{"functions/housekeeper"}, []string{"functions/start", "shared/aws"}},
	"Certifier":   {[]string{"functions/certifier"}, []string{"functions/start", "shared/aws"}},
	"Builder":     {nil, []string{"cmd/sysup", "shared/aws"}},
}

// TestSettingsAreRead holds the variables of the template against those that
// the code declares: a misspelt one would be ignored, a forgotten one would
// have its default.
func TestSettingsAreRead(t *testing.T) {
	parsed, err := parse(readTemplate(t, templateFile))
	if err != nil {
		t.Fatal(err)
	}
	for program, folders := range programs {
		own := declared(t, folders.own)
		known := append(declared(t, folders.shared), own...)
		var set []string
		for _, line := range environment(parsed, program) {
			name, _, _ := strings.Cut(line, " ")
			set = append(set, name)
			if !slices.Contains(known, name) {
				t.Errorf("%s is started with %s, which it does not read", program, name)
			}
		}
		for _, name := range own {
			if !slices.Contains(set, name) {
				t.Errorf("%s reads %s, which the template does not set", program, name)
			}
		}
		if len(set) == 0 || len(known) == 0 {
			t.Errorf("%s: %d variables are set, %d declared; the test looks in the wrong place", program, len(set), len(known))
		}
	}
}

var declaration = regexp.MustCompile(`env:"(SYSUP_[A-Z_]+)"`)

// declared are the variables in the struct tags of the folders' sources.
func declared(t *testing.T, folders []string) []string {
	t.Helper()
	var names []string
	for _, folder := range folders {
		files, err := filepath.Glob(filepath.Join("..", folder, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no sources in %s (%v)", folder, err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, match := range declaration.FindAllStringSubmatch(string(text), -1) {
				names = append(names, match[1])
			}
		}
	}
	return names
}
