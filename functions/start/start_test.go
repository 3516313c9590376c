package start

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
)

type common struct {
	Name string `env:"SYSUP_TEST_NAME"`
}

type sample struct {
	common
	Limit int64    `default:"500" env:"SYSUP_TEST_LIMIT"`
	Most  int      `env:"SYSUP_TEST_MOST"`
	On    bool     `env:"SYSUP_TEST_ON"`
	List  []string `env:"SYSUP_TEST_LIST"`
	Where string   `default:"here" env:"SYSUP_TEST_WHERE"`
}

func TestReadEnvironment(t *testing.T) {
	for _, c := range []struct {
		environ map[string]string
		want    sample
	}{
		{nil, sample{Limit: 500, Where: "here"}},
		{
			map[string]string{"NAME": "n", "LIMIT": "-7", "MOST": "3", "ON": "true", "LIST": "a,b", "WHERE": "there"},
			sample{common{"n"}, -7, 3, true, []string{"a", "b"}, "there"},
		},
		{ // as templates set what is not wanted
			map[string]string{"NAME": "", "LIMIT": "", "MOST": "", "ON": "", "LIST": "", "WHERE": ""},
			sample{Limit: 500, Where: "here"},
		},
		{map[string]string{"ON": "false", "LIMIT": "0"}, sample{Where: "here"}},
	} {
		t.Run("", func(t *testing.T) {
			for name, value := range c.environ {
				t.Setenv("SYSUP_TEST_"+name, value)
			}
			var got sample
			if err := readEnvironment(&got); err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("%v: %+v (%v), want %+v", c.environ, got, err, c.want)
			}
		})
	}
}

func TestWrongEnvironment(t *testing.T) {
	for name, value := range map[string]string{"LIMIT": "1e3", "MOST": "1 ", "ON": "2", "UNHEARD_OF": "x"} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("SYSUP_TEST_"+name, value)
			var got sample
			err := readEnvironment(&got)
			if err == nil || !strings.Contains(err.Error(), "SYSUP_TEST_"+name) {
				t.Errorf("%s=%q: %v", name, value, err)
			}
		})
	}
}

// TestWaker: what needs a builder starts one, and only one, and does without
// where builders run all the time.
func TestWaker(t *testing.T) {
	if waker(nil) != nil {
		t.Error("without a fleet somebody is woken")
	}
	started := 0
	fleet := &build.Fleet{Records: buildtest.NewRecords(t), Max: 2, Start: func(context.Context, int) error { started++; return nil }}
	for range 3 {
		if err := waker(fleet)(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if started != 1 {
		t.Errorf("%d builders were started", started)
	}
	fleet = &build.Fleet{Records: buildtest.NewRecords(t), Max: 2, Start: func(context.Context, int) error { return errors.New("no room") }}
	if err := waker(fleet)(t.Context()); err == nil {
		t.Error("a start that failed is not told")
	}
}
