package changes

import (
	"strings"
	"testing"
)

// BenchmarkApply is an upgrade over two releases with 150 packages.
func BenchmarkApply(b *testing.B) {
	packages := strings.Fields(defaults2410 + strings.Repeat(" luci-app-something kmod-usb-storage collectd", 45) + " auc luci-app-opkg luci-i18n-opkg-de")
	known := map[string]bool{}
	for _, name := range strings.Fields(release2512) {
		known[name] = true
	}
	img := &Image{
		Version: "25.12.1", Target: "mediatek/filogic", Profile: "glinet_gl-mt6000", Packages: packages, Exact: true,
		Defaults: strings.Fields(defaults2512), Has: func(name string) bool { return known[name] },
	}
	b.ReportAllocs()
	for b.Loop() {
		Builtin().Apply(img)
		Builtin().Notes(img.Version, "", img.Target, img.Profile)
	}
}

// BenchmarkRead is what a process pays once.
func BenchmarkRead(b *testing.B) {
	for b.Loop() {
		if _, err := read(text); err != nil {
			b.Fatal(err)
		}
	}
}
