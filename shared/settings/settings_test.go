package settings

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
)

// program has a setting of each kind, and a second command.
type program struct {
	Config string `env:"SYSUP_CONFIG"`
	Run    struct {
		Name  string        `env:"SYSUP_NAME" default:"nobody"`
		Count int           `env:"SYSUP_COUNT" default:"1"`
		Wait  time.Duration `env:"SYSUP_WAIT" default:"1m"`
		Loud  bool          `env:"SYSUP_LOUD"`
		Feeds []string      `env:"SYSUP_FEEDS"`
	} `cmd:""`
	Other struct {
		Colour string `env:"SYSUP_COLOUR"`
	} `cmd:""`
}

// parse runs the program's parser with the file, if there is text for it, and
// the variables, "NAME=value".
func parse(t *testing.T, file string, variables, args []string) (*program, error) {
	t.Helper()
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "SYSUP_") {
			t.Setenv(name, "") // to have it back afterwards
			os.Unsetenv(name)
		}
	}
	for _, variable := range variables {
		name, value, _ := strings.Cut(variable, "=")
		t.Setenv(name, value)
	}
	if file != "" {
		name := filepath.Join(t.TempDir(), "sysup.toml")
		if err := os.WriteFile(name, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config="+name)
	}
	p := &program{}
	parser, err := kong.New(p, kong.Exit(func(int) {}))
	if err != nil {
		t.Fatal(err)
	}
	_, err = Parse(parser, args)
	return p, err
}

// TestOrder: flags win over variables, variables over the file, the file over
// what is usual.
func TestOrder(t *testing.T) {
	for _, test := range []struct {
		file string
		env  []string
		args []string
		want string
	}{
		{want: "nobody"},
		{file: `name = "file"`, want: "file"},
		{file: `name = "file"`, env: []string{"SYSUP_NAME=variable"}, want: "variable"},
		{file: `name = "file"`, env: []string{"SYSUP_NAME="}, want: ""},
		{file: `name = "file"`, env: []string{"SYSUP_NAME=variable"}, args: []string{"--name=flag"}, want: "flag"},
		{file: `name = "file"`, args: []string{"--name", "flag"}, want: "flag"},
	} {
		p, err := parse(t, test.file, test.env, append([]string{"run"}, test.args...))
		if err != nil || p.Run.Name != test.want {
			t.Errorf("file %q, variables %q, arguments %q: %q (%v), not %q", test.file, test.env, test.args, p.Run.Name, err, test.want)
		}
	}
}

// TestKinds: each kind of value comes through each source.
func TestKinds(t *testing.T) {
	feeds := []string{"https://one.example/a,b", "two"}
	for name, source := range map[string]struct {
		file      string
		env, args []string
	}{
		"file":      {file: "count = 7\nwait = \"5s\"\nloud = true\nfeeds = [\"https://one.example/a,b\", \"two\"]\ncolour = \"red\""},
		"variables": {env: []string{"SYSUP_COUNT=7", "SYSUP_WAIT=5s", "SYSUP_LOUD=true", `SYSUP_FEEDS=https://one.example/a\,b,two`}},
		"flags":     {args: []string{"--count=7", "--wait=5s", "--loud", `--feeds=https://one.example/a\,b`, "--feeds=two"}},
	} {
		p, err := parse(t, source.file, source.env, append([]string{"run"}, source.args...))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if r := p.Run; r.Count != 7 || r.Wait != 5*time.Second || !r.Loud || !slices.Equal(r.Feeds, feeds) {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// TestWrong: what is no setting, or no value of one, is an error that names it.
func TestWrong(t *testing.T) {
	for _, test := range []struct {
		file string
		env  []string
		args []string
		want []string
	}{
		{file: `nmae = "x"`, want: []string{`key "nmae"`, "no setting"}},
		{file: `help = true`, want: []string{`key "help"`}},
		{file: `config = "x"`, want: []string{`key "config"`}},
		{file: `name = [`, want: []string{"cannot be read"}},
		{file: `name = ["x"]`, want: []string{"name", "one value, not a list"}},
		{file: `feeds = [["x"]]`, want: []string{"feeds", "one value"}},
		{file: `name = 2026-01-01`, want: []string{"name", "has to be text"}},
		{file: "[run]\nname = \"x\"", want: []string{`key "run"`}},
		{file: `count = "many"`, want: []string{"count", "many"}},
		{env: []string{"SYSUP_NMAE=x"}, want: []string{"SYSUP_NMAE", "no setting"}},
		{env: []string{"SYSUP_COUNT=many"}, want: []string{"SYSUP_COUNT", "many"}},
		{env: []string{"SYSUP_CONFIG=/absent.toml"}, want: []string{"/absent.toml", "cannot be read"}},
		{args: []string{"--nmae=x"}, want: []string{"--nmae"}},
	} {
		_, err := parse(t, test.file, test.env, append([]string{"run"}, test.args...))
		for _, word := range test.want {
			if err == nil || !strings.Contains(err.Error(), word) {
				t.Errorf("file %q, variables %q, arguments %q: %v does not tell of %q", test.file, test.env, test.args, err, word)
			}
		}
	}
}
