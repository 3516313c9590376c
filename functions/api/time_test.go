package main

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/attended-sysupgrade/sysup/shared/api"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
)

// TestAnswersBeforeLambdaEnds: a function that runs out of time answers nothing
// that a client could read. The slowest answer has to come before.
func TestAnswersBeforeLambdaEnds(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../template.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var template struct {
		Resources map[string]struct {
			Properties struct {
				Timeout yaml.Node `yaml:"Timeout"`
			} `yaml:"Properties"`
		} `yaml:"Resources"`
	}
	if err := yaml.Unmarshal(text, &template); err != nil {
		t.Fatal(err)
	}
	var seconds int
	limit := template.Resources["Api"].Properties.Timeout
	if err := limit.Decode(&seconds); err != nil {
		t.Fatalf("the timeout of the API in template.yaml: %v", err)
	}
	if slowest := api.AnswerTime + build.SubmitTime; slowest >= time.Duration(seconds)*time.Second {
		t.Errorf("an answer may take %s, and Lambda ends the function after %d s", slowest, seconds)
	}
}

// TestFreezeEndsThePause: after a fault the secret is asked for again when the
// pause is over, also if Lambda froze the process in it.
func TestFreezeEndsThePause(t *testing.T) {
	t.Parallel()
	reads, down := 0, errors.New("down")
	k := &keeper{service: &build.Service{}, read: func(context.Context) ([]byte, error) { reads++; return nil, down }}
	for want, next := range map[int]time.Time{1: {}, 2: buildtest.Frozen(t, time.Hour).Add(secretPause)} {
		reads, k.next = want-1, next
		if err := k.ready(t.Context()); !errors.Is(err, down) || reads != want {
			t.Errorf("it asked %d times (%v), not %d", reads, err, want)
		}
		if err := k.ready(t.Context()); !errors.Is(err, down) || reads != want {
			t.Errorf("within the pause it asked %d times (%v), not %d", reads, err, want)
		}
	}
}
