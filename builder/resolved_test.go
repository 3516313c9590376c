package builder_test

import (
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/scripts/instant"
	"github.com/attended-sysupgrade/sysup/shared/build"
)

// TestDisagreement: a build that fails although the catalogue was sure of its
// packages is a defect, and so is an image without them. Both are reported; of
// private requests no more than that.
func TestDisagreement(t *testing.T) {
	t.Parallel()
	s := newSite(t, setting{upstream: instant.Options{
		Before: `[ "$CONFIG_TARGET_ROOTFS_PARTSIZE" != 301 ] || { echo " * opkg_install_cmd: Cannot install package nano." >&2; exit 1; }`,
		After:  `[ "$CONFIG_TARGET_ROOTFS_PARTSIZE" != 302 ] || for f in "$BIN_DIR"/*.manifest; do sed -i '/^nano /d' "$f"; done`,
	}})
	const report = "resolver and ImageBuilder disagree"
	for i, c := range []struct {
		size    int
		private bool
		kind    build.Kind // "" = no failure
		says    string     // "" = nothing is reported
	}{
		{300, false, "", ""},
		{301, false, build.KindUnknownPackage, "unknown-package: nano"},
		{302, false, "", "the image lacks nano"},
		{301, true, build.KindUnknownPackage, "a private request"},
	} {
		before := len(s.log.String())
		r := request("nano")
		r.RootfsSizeMB = c.size
		if c.private {
			r.Defaults = "# a secret"
		}
		rec := s.build(r)
		if c.kind == "" {
			s.done(rec)
		} else {
			s.failed(rec, c.kind, "nano")
		}
		told := s.log.String()[before:]
		if c.says == "" && strings.Contains(told, report) {
			t.Errorf("%d is reported: %s", i, told)
		}
		if c.says != "" && (strings.Count(told, report) != 1 || !strings.Contains(told, c.says) || !strings.Contains(told, rec.ID.Short())) {
			t.Errorf("%d is not reported once with %q: %s", i, c.says, told)
		}
		if c.private && strings.Contains(told, "nano") {
			t.Errorf("of a private request is told: %s", told)
		}
	}
	if n := s.defects.Load(); n != 3 {
		t.Errorf("%d defects are counted, want 3", n)
	}
}
