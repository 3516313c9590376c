package start

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// readEnvironment fills target, a pointer to a struct with the tags "env" and
// "default", from the variables; a struct without a name within it counts as
// part of it. A variable SYSUP_* that is no setting is an error, and an empty
// one is like none: a template cannot leave one out.
//
// The commands' own reader (shared/settings) has the same tags. It stands on
// kong, which finds methods by their names, and so has the linker keep every
// method of the AWS SDK: ten megabytes that Lambda would load at each start.
func readEnvironment(target any) error {
	known := []string{}
	errs := []error{read(reflect.ValueOf(target).Elem(), &known)}
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		if strings.HasPrefix(name, "SYSUP_") && !slices.Contains(known, name) {
			errs = append(errs, fmt.Errorf("the environment has %s, which is no setting of this function", name))
		}
	}
	return errors.Join(errs...)
}

func read(s reflect.Value, known *[]string) error {
	var errs []error
	for i := range s.NumField() {
		field := s.Type().Field(i)
		if field.Anonymous {
			errs = append(errs, read(s.Field(i), known))
			continue
		}
		name := field.Tag.Get("env")
		*known = append(*known, name)
		text := os.Getenv(name)
		if text == "" {
			text = field.Tag.Get("default")
		}
		if err := set(s.Field(i), text); err != nil {
			errs = append(errs, fmt.Errorf("%s has to be %w, it is %.200q", name, err, text))
		}
	}
	return errors.Join(errs...)
}

// set reads a value of the field's kind. Its errors are the rules.
func set(field reflect.Value, text string) error {
	if text == "" {
		return nil
	}
	switch field.Kind() {
	case reflect.Bool:
		value, err := strconv.ParseBool(text)
		if err != nil {
			return errors.New("true or false")
		}
		field.SetBool(value)
	case reflect.Int, reflect.Int64:
		value, err := strconv.ParseInt(text, 10, field.Type().Bits())
		if err != nil {
			return errors.New("a whole number")
		}
		field.SetInt(value)
	case reflect.Slice:
		field.Set(reflect.ValueOf(strings.Split(text, ",")))
	default:
		field.SetString(text)
	}
	return nil
}
