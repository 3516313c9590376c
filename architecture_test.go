package sysup_test

import (
	"go/build"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/attended-sysupgrade/sysup/"

// layout says which packages of this module the packages below a folder may
// import. The longest matching folder counts; "*" admits everything.
var layout = map[string][]string{
	"cmd":                    {"*"},
	"functions":              {"shared", "functions"},
	"builder":                {"shared/build", "shared/catalog", "shared/resolve", "shared/usign", "builder"},
	"builder/imagebuilder":   {"builder/archive", "builder/sandbox", "shared/build", "shared/resolve", "shared/usign"},
	"builder/sandbox":        {},
	"builder/archive":        {},
	"shared/build":           {},
	"shared/build/buildtest": {"shared/build"},
	"shared/sqlite":          {"shared/build"},
	"shared/dir":             {"shared/build"},
	"shared/aws":             {"shared/build"},
	"shared/aws/awstest":     {},
	"shared/catalog":         {"shared/usign", "shared/build", "shared/feed", "shared/resolve", "shared/changes"},
	"shared/feed":            {},
	"shared/resolve":         {"shared/feed"},
	"shared/changes":         {},
	"shared/usign":           {},
	"shared/api":             {"shared/build", "shared/catalog", "shared/client", "shared/changes", "shared/web"},
	"shared/api/apitest":     {},
	"shared/web":             {"shared/build", "shared/catalog"},
	"shared/client":          {"shared/build", "shared/usign"},
	"shared/settings":        {},
	"shared/certify":         {"shared/usign", "shared/build"},
	"infra":                  {},
	"scripts":                {"shared/usign", "shared/feed", "shared/client", "shared/catalog/catalogtest", "scripts"},
	"scripts/paths":          {"builder/imagebuilder", "builder/sandbox", "shared/build"},
}

// owners are the only folders that may import what stands behind a driver,
// they and those below them.
var owners = map[string]string{
	"modernc.org/sqlite":        "shared/sqlite",
	"maragu.dev/goqite":         "shared/sqlite",
	"github.com/aws/aws-sdk-go": "shared/aws",
}

// TestArchitecture reads the imports of every package, build tags and test
// files aside, and holds them against the layout of docs/design.md.
func TestArchitecture(t *testing.T) {
	checked := 0
	for file, imports := range sourceImports(t) {
		folder := path.Dir(file)
		for _, imported := range imports {
			checked++
			if problem := forbidden(folder, imported); problem != "" {
				t.Errorf("%s imports %s: %s", file, imported, problem)
			}
		}
	}
	if checked < 50 {
		t.Fatalf("only %d imports were read; the test looks in the wrong place", checked)
	}
}

// TestArchitectureRules shows that the rules refuse what they are there for.
func TestArchitectureRules(t *testing.T) {
	for _, bad := range [][2]string{
		{"shared/build", module + "shared/usign"},
		{"shared/api", module + "builder"},
		{"shared/sqlite", module + "shared/dir"},
		{"builder", module + "cmd/sysup"},
		{"builder/sandbox", module + "builder/archive"},
		{"builder", "maragu.dev/goqite"},
		{"shared/api", "modernc.org/sqlite"},
		{"unheard/of", module + "shared/build"},
		{"cmd/sysup", module + "shared/aws/awstest"},
		{"shared/awsome", "github.com/aws/aws-sdk-go-v2/aws"},
	} {
		if forbidden(bad[0], bad[1]) == "" {
			t.Errorf("%s may import %s", bad[0], bad[1])
		}
	}
	if problem := forbidden("builder", module+"builder/sandbox"); problem != "" {
		t.Errorf("builder may not import its own sub-package: %s", problem)
	}
}

func forbidden(folder, imported string) string {
	for library, owner := range owners {
		if strings.HasPrefix(imported, library) && !strings.HasPrefix(folder+"/", owner+"/") {
			return "only " + owner + " may"
		}
	}
	target, ours := strings.CutPrefix(imported, module)
	if !ours {
		return ""
	}
	if target == "shared/aws/awstest" && !strings.HasSuffix(folder, "test") {
		return "only tests and what serves them may"
	}
	allowed, known := rule(folder)
	if !known {
		return "the folder has no place in the layout; add it to docs/design.md and to this test"
	}
	if !slices.ContainsFunc(allowed, func(a string) bool { return admits(a, target) }) {
		return "the layout does not allow it"
	}
	return ""
}

// admits compares whole folders for leaves of the layout and prefixes for the
// families that have sub-packages of their own.
func admits(allowed, target string) bool {
	family := allowed == "shared" || allowed == "builder" || allowed == "functions" || allowed == "scripts"
	return allowed == "*" || allowed == target || family && strings.HasPrefix(target, allowed+"/")
}

func rule(folder string) ([]string, bool) {
	for f := folder; f != "."; f = path.Dir(f) {
		if allowed, ok := layout[f]; ok {
			return allowed, true
		}
	}
	return nil, false
}

func sourceImports(t *testing.T) map[string][]string {
	t.Helper()
	files := map[string][]string{}
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "build" && path.Dir(filepath.ToSlash(name)) == "." || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range parsed.Imports {
			imported, _ := strconv.Unquote(spec.Path.Value)
			if !build.IsLocalImport(imported) {
				files[filepath.ToSlash(name)] = append(files[filepath.ToSlash(name)], imported)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
