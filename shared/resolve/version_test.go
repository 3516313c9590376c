package resolve

import "testing"

// The results are those of opkg compare-versions and of apk version -t.
func TestCompare(t *testing.T) {
	for _, c := range []struct {
		format Format
		a, b   string
		want   int
	}{
		{Opkg, "1.0", "1.0", 0},
		{Opkg, "1.0", "1.0.1", -1},
		{Opkg, "1.0~rc1", "1.0", -1},
		{Opkg, "1.0-1", "1.0", 1},
		{Opkg, "1:1.0", "2.0", 1},
		{Opkg, "2024.03.29~eb9bcb64-r1", "2024.03.29~eb9bcb65-r1", -1},
		{Opkg, "1.0a", "1.0", 1},
		{Opkg, "1.0+b", "1.0a", 1},
		{Opkg, "1.0-r10", "1.0-r9", 1},
		{Opkg, "1.0-1-2", "1.0-2-1", -1},
		{Opkg, "01", "1", 0},
		{Opkg, "1.0~~", "1.0~", -1},
		{Opkg, "1.a", "1.1", 1},
		{Opkg, "git-20.031-1", "git-20.031-2", -1},
		{Opkg, "1.0-r1", "1.0-1", 1},
		{Opkg, "99999999999999999999999", "100000000000000000000000", -1},
		{APK, "1.0", "1.0", 0},
		{APK, "1.0", "1.0.1", -1},
		{APK, "1.0_rc1", "1.0", -1},
		{APK, "1.0_p1", "1.0", 1},
		{APK, "1.0a", "1.0", 1},
		{APK, "1.0-r1", "1.0-r2", -1},
		{APK, "1.10", "1.9", 1},
		{APK, "1.010", "1.1", -1},
		{APK, "1.0~abc-r1", "1.0~abd-r1", -1},
		{APK, "6.6.73~0123456789abcdef-r1", "6.6.73~0123456789abcdef-r1", 0},
		{APK, "1.0~a", "1.0", 1},
		{APK, "1.0_git20200101", "1.0", 1},
		{APK, "1.0-r1", "1.0", 1},
		{APK, "26.1", "26.1-r1", -1},
		{APK, "1.0_alpha", "1.0_beta", -1},
		{APK, "1.0_alpha1", "1.0_alpha", 1},
		{APK, "1.0b", "1.0a", 1},
		{APK, "1.0.0", "1.00", -1},
		{APK, "1.0_rc1-r2", "1.0-r1", -1},
		{APK, "0~0abc", "1", -1},
		{APK, "1.0~a-r1", "1.0-r1", 1},
		{APK, "1.0_p1", "1.0a", -1},
		{APK, "5", "5-r0", -1},
	} {
		if got := c.format.Compare(c.a, c.b); got != c.want {
			t.Errorf("format %d: %s against %s is %d, want %d", c.format, c.a, c.b, got, c.want)
		}
		if got := c.format.Compare(c.b, c.a); got != -c.want {
			t.Errorf("format %d: %s against %s is %d, want %d", c.format, c.b, c.a, got, -c.want)
		}
	}
}

func TestMeets(t *testing.T) {
	for _, c := range []struct {
		version, op, bound string
		want               bool
	}{
		{"1.0-r1", "", "", true}, {"1.0-r1", "=", "1.0-r1", true}, {"1.0-r1", "=", "1.0-r2", false},
		{"1.0-r1", "<", "1.0-r2", true}, {"1.0-r2", "<", "1.0-r2", false}, {"1.0-r2", "<=", "1.0-r2", true}, {"1.0-r3", "<=", "1.0-r2", false},
		{"1.0-r3", ">", "1.0-r2", true}, {"1.0-r2", ">", "1.0-r2", false}, {"1.0-r2", ">=", "1.0-r2", true}, {"1.0-r1", ">=", "1.0-r2", false},
		{"1.0-r1", "~", "1", true}, {"1.0-r1", "~", "1.0", true}, {"10.0-r1", "~", "1", false}, {"2.0-r1", "~", "1", false}, {"1.0-r1", "~", "1.0-r1", true},
		{"1.0-r1", "?", "", true},
	} {
		for _, f := range []Format{Opkg, APK} {
			if got := f.meets(c.version, c.op, c.bound); got != c.want {
				t.Errorf("format %d: %s %s %s is %v", f, c.version, c.op, c.bound, got)
			}
		}
	}
}

// The order is one: no two versions are each newer than the other.
func FuzzCompare(f *testing.F) {
	f.Add("1.0~rc1-r1", "1.0_rc1", "1:01a")
	f.Add("1.0.0-r1", "1.00", "1.0~abc")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		for _, f := range []Format{Opkg, APK} {
			if f.Compare(a, a) != 0 || f.Compare(a, b) != -f.Compare(b, a) {
				t.Fatalf("format %d: %q and %q", f, a, b)
			}
			if f == Opkg && f.Compare(a, b) <= 0 && f.Compare(b, c) <= 0 && f.Compare(a, c) > 0 {
				t.Fatalf("%q, %q and %q go in a circle", a, b, c)
			}
		}
	})
}
