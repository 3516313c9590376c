package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/alecthomas/kong"
)

// parse reads flags, then SYSUP_* variables, then the TOML file. A setting that
// nobody knows is an error in all three: a misspelt key must not be ignored.
func parse(parser *kong.Kong, args []string) (*kong.Context, error) {
	if err := unknownVariables(parser); err != nil {
		return nil, err
	}
	file := configFile(args)
	if file == "" {
		return parser.Parse(args)
	}
	settings, err := readConfig(file, knownFlags(parser))
	if err != nil {
		return nil, err
	}
	if err := kong.Resolvers(settings).Apply(parser); err != nil {
		return nil, err
	}
	return parser.Parse(args)
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
			return fmt.Errorf("the environment has %s, which is no setting of sysup; see sysup serve --help", name)
		}
	}
	return nil
}

// settings are the keys of a TOML file, as a source for kong.
type settings map[string]any

func readConfig(file string, known []*kong.Flag) (settings, error) {
	var values settings
	if _, err := toml.DecodeFile(file, &values); err != nil {
		return nil, fmt.Errorf("the settings in %s cannot be read: %w", file, err)
	}
	for key := range values {
		if !slices.ContainsFunc(known, func(f *kong.Flag) bool { return f.Name == key }) {
			return nil, fmt.Errorf("%s has the key %q, which is no setting of sysup; keys are the long flags of sysup serve --help", file, key)
		}
	}
	return values, nil
}

func (s settings) Validate(*kong.Application) error { return nil }

// Resolve gives a list as kong reads it: one string, separated by commas.
func (s settings) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	value, ok := s[flag.Name]
	if !ok {
		return nil, nil
	}
	list, ok := value.([]any)
	if !ok {
		return fmt.Sprint(value), nil
	}
	var texts []string
	for _, element := range list {
		texts = append(texts, fmt.Sprint(element))
	}
	return strings.Join(texts, ","), nil
}
