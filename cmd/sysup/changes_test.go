package main

import (
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

func TestChangesInWords(t *testing.T) {
	for want, change := range map[string]build.Amendment{
		"owut in place of auc. It was given up. https://example.org/": {From: "auc", To: "owut", Reason: "It was given up.", Link: "https://example.org/"},
		"kmod-x is left out. It is a part of kmod-y.":                 {From: "kmod-x", Reason: "It is a part of kmod-y."},
		"fitblk is installed as well. Upgrades need it.":              {To: "fitblk", Reason: "Upgrades need it."},
		"Settings cannot be kept.":                                    {Reason: "Settings cannot be kept."},
	} {
		if got := inWords(change); got != want {
			t.Errorf("%+v reads %q, want %q", change, got, want)
		}
	}
}

// TestMovedDeviceIsWhatWasAsked: a result for another target is only taken if
// what was signed says that the device moved there.
func TestMovedDeviceIsWhatWasAsked(t *testing.T) {
	moves := []build.Amendment{
		{From: "a/b vendor,old", To: "a/b vendor,new", Reason: "It has another name."}, {From: "auc", To: "owut"},
		{From: "a/b vendor,new", To: "c/d vendor,new", Reason: "It has another target."},
	}
	for name, tt := range map[string]struct {
		target, profile string
		changes         []build.Amendment
		signed          string // target and profile
		want            string // of the error, "" for none
	}{
		"as asked":            {"a/b", "vendor_old", nil, "a/b vendor_old", ""},
		"moved":               {"a/b", "vendor,old", moves, "c/d vendor_new", ""},
		"without a word":      {"a/b", "vendor,old", nil, "c/d vendor_new", "not what was asked for"},
		"another one's move":  {"x/y", "vendor,old", moves, "c/d vendor_new", "not what was asked for"},
		"another destination": {"a/b", "vendor,old", moves, "e/f vendor_new", "not what was asked for"},
		"another profile":     {"a/b", "vendor,old", moves, "c/d vendor_other", "not what was asked for"},
	} {
		t.Run(name, func(t *testing.T) {
			target, profile, _ := strings.Cut(tt.signed, " ")
			signed := build.Provenance{Plan: build.Plan{Version: "25.12.1", Target: target, Profile: profile, Changes: tt.changes}}
			err := (&buildCmd{Version: "25.12.1", Target: tt.target, Profile: tt.profile}).answers(signed)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("the error is %v, want %q", err, tt.want)
			}
		})
	}
}
