// Package settings reads the settings of a program: flags, then SYSUP_*
// variables, then a TOML file. A setting that nobody knows is an error in all
// three: a misspelt key must not be ignored.
package settings

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/alecthomas/kong"
)

// Parse reads flags, then SYSUP_* variables, then the TOML file that --config
// or SYSUP_CONFIG names. Without arguments it shows the help.
func Parse(parser *kong.Kong, args []string) (*kong.Context, error) {
	if len(args) == 0 {
		args = []string{"--help"}
	}
	if file := configFile(args); file != "" {
		values, err := readConfig(kong.ExpandPath(file), knownFlags(parser))
		if err != nil {
			return nil, err
		}
		if err := kong.Resolvers(values).Apply(parser); err != nil {
			return nil, err
		}
	}
	parsed, err := parser.Parse(args)
	if err != nil {
		return nil, err
	}
	return parsed, unknownVariables(parser)
}

// configFile looks for --config before kong reads the rest, since the file is
// one of kong's sources.
func configFile(args []string) string {
	for i, arg := range args {
		if value, ok := strings.CutPrefix(arg, "--config="); ok {
			return value
		}
		if arg == "--config" && i+1 < len(args) {
			return args[i+1]
		}
	}
	return os.Getenv("SYSUP_CONFIG")
}

// knownFlags are the settings of all commands, so that one file can serve
// several of them.
func knownFlags(parser *kong.Kong) []*kong.Flag {
	flags := slices.Clone(parser.Model.Flags)
	for _, command := range parser.Model.Leaves(false) {
		flags = append(flags, command.Flags...)
	}
	return flags
}

func unknownVariables(parser *kong.Kong) error {
	var known []string
	for _, flag := range knownFlags(parser) {
		known = append(known, flag.Envs...)
	}
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		if strings.HasPrefix(name, "SYSUP_") && !slices.Contains(known, name) {
			return fmt.Errorf("the environment has %s, which is no setting of sysup", name)
		}
	}
	return nil
}

// file are the keys of a TOML file and their values as kong reads them, as
// a source for kong.
type file map[string]string

func readConfig(name string, known []*kong.Flag) (file, error) {
	var values map[string]any
	if _, err := toml.DecodeFile(name, &values); err != nil {
		return nil, fmt.Errorf("the settings in %s cannot be read: %w", name, err)
	}
	s := file{}
	for key, value := range values {
		at := slices.IndexFunc(known, func(f *kong.Flag) bool { return f.Name == key && key != "help" && key != "config" })
		if at < 0 {
			return nil, fmt.Errorf("%s has the key %q, which is no setting of sysup; keys are the long names of flags", name, key)
		}
		text, err := settingText(value, known[at].IsSlice())
		if err != nil {
			return nil, fmt.Errorf("%s: %s %w", name, key, err)
		}
		s[key] = text
	}
	return s, nil
}

// settingText is a value as kong reads it, a list as one text with commas.
func settingText(value any, list bool) (string, error) {
	switch value := value.(type) {
	case string, bool, int64:
		return fmt.Sprint(value), nil
	case []any:
		if !list {
			return "", errors.New("has to be one value, not a list")
		}
		var texts []string
		for _, element := range value {
			text, err := settingText(element, false)
			if err != nil {
				return "", err
			}
			texts = append(texts, text)
		}
		return kong.JoinEscaped(texts, ','), nil
	}
	return "", fmt.Errorf("has to be text, a whole number, true or false, or a list of such, it is %v", value)
}

// Validate implements kong.Resolver.
func (s file) Validate(*kong.Application) error { return nil }

// Resolve implements kong.Resolver, which would prefer a file to a variable.
func (s file) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	text, ok := s[flag.Name]
	if !ok || slices.ContainsFunc(flag.Envs, isSet) {
		return nil, nil
	}
	return text, nil
}

func isSet(variable string) bool {
	_, ok := os.LookupEnv(variable)
	return ok
}
