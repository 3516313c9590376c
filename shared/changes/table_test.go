package changes

import (
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// TestBuiltin parses the table that comes with the program, and looks for what
// is known to be in it.
func TestBuiltin(t *testing.T) {
	b, err := os.ReadFile("changes.json")
	if err != nil {
		t.Fatal(err)
	}
	table, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if len(table.packages) < 20 || len(table.defaults) < 100 || len(table.devices) < 40 {
		t.Errorf("the table has only %d, %d and %d rows", len(table.packages), len(table.defaults), len(table.devices))
	}
	if table.BranchOff("24.10") != 27990 || table.BranchOff("SNAPSHOT") != 0 {
		t.Error("the branches begin elsewhere")
	}
}

func TestParseRefuses(t *testing.T) {
	const branches = `"branches":{"23.05":23069,"24.10":27990}`
	const why = `"why":"It has another name now."`
	for name, tt := range map[string]struct{ text, want string }{
		"no JSON":                      {`{`, "unexpected EOF"},
		"an unknown key":               {`{"brnaches":{}}`, "brnaches"},
		"an unknown key of a row":      {`{` + branches + `,"packages":[{"since":"24.10","form":"a",` + why + `}]}`, "form"},
		"something behind":             {`{} {}`, "follows"},
		"no reason":                    {`{` + branches + `,"packages":[{"since":"24.10","from":"a","to":["b"]}]}`, "no sentence"},
		"a reason that is no sentence": {`{` + branches + `,"packages":[{"since":"24.10","from":"a","to":["b"],"why":"renamed"}]}`, "no sentence"},
		"a link that is none":          {`{` + branches + `,"packages":[{"since":"24.10","from":"a",` + why + `,"link":"http://example.org/"}]}`, "no https link"},
		"an unknown branch":            {`{` + branches + `,"packages":[{"since":"24.01","from":"a",` + why + `}]}`, "none of the branches"},
		"a revision after the branch":  {`{` + branches + `,"packages":[{"since":"24.10","revision":28000,"from":"a",` + why + `}]}`, "ends at 27990"},
		"a revision of the one before": {`{` + branches + `,"packages":[{"since":"24.10","revision":23000,"from":"a",` + why + `}]}`, "in 23.05 already"},
		"a snapshot's that is older":   {`{` + branches + `,"packages":[{"since":"SNAPSHOT","revision":27000,"from":"a",` + why + `}]}`, "in 24.10 already"},
		"a name with a space":          {`{` + branches + `,"packages":[{"since":"24.10","from":"a b",` + why + `}]}`, "not the name of a package"},
		"a target with a semicolon":    {`{` + branches + `,"packages":[{"since":"24.10","from":"a","to":["b;c"],` + why + `}]}`, "not a name"},
		"one twice":                    {`{` + branches + `,"packages":[{"since":"24.10","from":"a","to":["b","b"],` + why + `}]}`, "twice"},
		"a pattern renamed":            {`{` + branches + `,"packages":[{"since":"24.10","from":"a*","to":["b"],` + why + `}]}`, "not a pattern"},
		"unless for nothing":           {`{` + branches + `,"packages":[{"since":"24.10","from":"a","unless":["b"],` + why + `}]}`, "unless"},
		"a circle": {`{` + branches + `,"packages":[{"since":"23.05","from":"a","to":["b"],` + why + `},
			{"since":"24.10","from":"b","to":["c","a"],` + why + `}]}`, "a, b, a"},
		"a name that becomes itself": {`{` + branches + `,"packages":[{"since":"24.10","from":"a","to":["a"],` + why + `}]}`, "a, a"},
		"defaults of nothing":        {`{` + branches + `,"defaults":[{"since":"24.10","packages":[],` + why + `}]}`, "no package"},
		"a target without a slash":   {`{` + branches + `,"defaults":[{"since":"24.10","targets":["x86"],"packages":["a"],` + why + `}]}`, "not a name"},
		"a device without a target":  {`{` + branches + `,"devices":[{"since":"24.10","profiles":["a"],"dropped":true,` + why + `}]}`, "needs its targets"},
		"dropped and moved":          {`{` + branches + `,"devices":[{"since":"24.10","targets":["a/b"],"to_target":"c/d","dropped":true,` + why + `}]}`, "not found elsewhere"},
		"all become one":             {`{` + branches + `,"devices":[{"since":"24.10","targets":["a/b"],"to_profile":"c",` + why + `}]}`, "too much"},
		"devices in a circle": {`{` + branches + `,"devices":[{"since":"23.05","targets":["a/b"],"to_target":"c/d",` + why + `},
			{"since":"24.10","targets":["c/d"],"to_target":"a/b",` + why + `}]}`, "a/b, c/d, a/b"},
		"profiles in a circle": {`{` + branches + `,"devices":[{"since":"23.05","targets":["a/b"],"profiles":["x"],"to_profile":"y",` + why + `},
			{"since":"24.10","targets":["a/b"],"profiles":["y"],"to_profile":"x",` + why + `}]}`, "a/b x, a/b y, a/b x"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Parse([]byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("the error is %v, want one about %q", err, tt.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add(text)
	f.Add([]byte(`{"branches":{"24.10":1},"packages":[{"since":"24.10","from":"a*","why":"It is gone for good."}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := Parse(b)
		if err != nil {
			return
		}
		packages := []string{"a", "-b", "luci-i18n-opkg-de"}
		img := &Image{Version: "24.10.5", Target: "a/b", Profile: "c", Packages: packages, Has: func(name string) bool { return name != "a" }}
		out := table.Apply(img)
		img.Packages = out.Packages
		if again := table.Apply(img); again.Rules != "" {
			t.Errorf("%q became %q and then %q", packages, out.Packages, again.Packages)
		}
		table.Find("24.10.5", "a/b", "c")
	})
}

func TestKnows(t *testing.T) {
	for version, want := range map[string]bool{
		"24.10": true, "24.10.5": true, "24.10-SNAPSHOT": true, "25.12.0-rc1": true, "SNAPSHOT": false, "26.11.0": false, "19.07.10": false, "gluon": false, "": false,
	} {
		if got := Builtin().Knows(version); got != want {
			t.Errorf("the table knows %q: %v", version, got)
		}
	}
}

// TestForBranch: the clients' form is what owut and auc read, with integers,
// and without what they could not do anything with.
func TestForBranch(t *testing.T) {
	old := Builtin().ForBranch("21.02")
	if old == nil || len(old) != 0 {
		t.Errorf("21.02 has changes %v, want an empty list", old)
	}
	rows := map[string]PackageChange{}
	list := Builtin().ForBranch("24.10")
	for _, c := range list {
		rows[c.Source] = c
		if c.Source == "" || c.Revision <= 0 || strings.Contains(c.Source, "*") {
			t.Errorf("%+v is of no use to clients", c)
		}
	}
	for _, want := range []PackageChange{ // as clients have known them for years
		{"firewall", "firewall4", 18611, false}, {"kmod-nft-nat6", "", 20282, true}, {"libustream-wolfssl", "libustream-mbedtls", 21994, false},
		{"px5g-wolfssl", "px5g-mbedtls", 21994, false}, {"wpad-basic-wolfssl", "wpad-basic-mbedtls", 21994, false},
		{"luci-app-diag-core", "", 25984, true}, {"auc", "owut", 26792, false}, {"luci-app-opkg", "luci-app-package-manager", 27897, false},
	} {
		if rows[want.Source] != want {
			t.Errorf("%s is %+v, want %+v", want.Source, rows[want.Source], want)
		}
	}
	if _, ok := rows["opkg"]; ok {
		t.Error("24.10 has a change of 25.12")
	}
	if !slices.IsSortedFunc(list, func(a, b PackageChange) int { return a.Revision - b.Revision }) {
		t.Errorf("the rows are not by age: %v", list)
	}
	snapshot := Builtin().ForBranch("SNAPSHOT")
	if len(snapshot) <= len(list) || slices.ContainsFunc(snapshot, func(c PackageChange) bool { return c.Source == "kmod-lib-crc32c" }) {
		t.Errorf("the snapshot has %v", snapshot)
	}
	encoded, err := json.Marshal(rows["auc"])
	if err != nil || string(encoded) != `{"source":"auc","target":"owut","revision":26792}` {
		t.Errorf("encoded as %s, %v", encoded, err)
	}
}

func TestFind(t *testing.T) {
	for _, tt := range []struct{ version, target, profile, newTarget, newProfile string }{
		{"24.10.5", "ipq807x/generic", "xiaomi_ax3600", "qualcommax/ipq807x", "xiaomi_ax3600"},
		{"23.05.5", "ipq807x/generic", "xiaomi_ax3600", "", ""},
		{"SNAPSHOT", "ipq807x/generic", "xiaomi,ax3600", "qualcommax/ipq807x", "xiaomi,ax3600"},
		{"25.12.1", "lantiq/xrx200", "tplink,tdw8970", "lantiq/xrx200_legacy", "tplink,tdw8970"},
		{"25.12.1", "lantiq/xrx200", "bt_homehub-v5a", "", ""},
		{"25.12.1", "sunxi/cortexa7", "sinovoip_bananapi-m3", "sunxi/cortexa7", "sinovoip_bpi-m3"},
		{"25.12.1", "armvirt/64", "", "armsr/armv8", ""},
		{"unheard-of", "armvirt/64", "", "", ""},
	} {
		target, profile, changes := Builtin().Find(tt.version, tt.target, tt.profile)
		if tt.newTarget == "" {
			if len(changes) > 0 || target != tt.target || profile != tt.profile {
				t.Errorf("%v moved to %s %s: %v", tt, target, profile, changes)
			}
			continue
		}
		if target != tt.newTarget || profile != tt.newProfile || len(changes) != 1 || changes[0].Reason == "" || !strings.HasPrefix(changes[0].From, tt.target) {
			t.Errorf("%v: %s %s %v", tt, target, profile, changes)
		}
	}
}

// TestFindSpelling: what a client calls a board is no part of what was changed,
// or requests for one image would have hashes of their own.
func TestFindSpelling(t *testing.T) {
	_, _, board := Builtin().Find("25.12.1", "lantiq/xrx200", "tplink,tdw8970")
	_, _, profile := Builtin().Find("25.12.1", "lantiq/xrx200", "tplink_tdw8970")
	if len(board) != 1 || !slices.Equal(board, profile) {
		t.Errorf("%v, %v", board, profile)
	}
}

// TestFindChain: a device that moved twice is found.
func TestFindChain(t *testing.T) {
	table, err := Parse([]byte(`{"branches":{"23.05":23069,"24.10":27990},"devices":[
		{"since":"23.05","targets":["a/b"],"profiles":["x"],"to_profile":"y","why":"It has another name now."},
		{"since":"24.10","targets":["a/b"],"to_target":"c/d","why":"The target has another name."}]}`))
	if err != nil {
		t.Fatal(err)
	}
	target, profile, changes := table.Find("24.10.1", "a/b", "x")
	if target != "c/d" || profile != "y" || len(changes) != 2 {
		t.Errorf("%s %s %v", target, profile, changes)
	}
}

func TestDropped(t *testing.T) {
	for _, tt := range []struct {
		version, target, profile, want string
	}{
		{"24.10.5", "ar71xx/generic", "archer-c7-v2", "https://openwrt.org/docs/guide-user/installation/ar71xx.to.ath79"},
		{"SNAPSHOT", "oxnas/ox820", "", "https://openwrt.org/releases/24.10/notes-24.10.0"},
		{"24.10.5", "ramips/rt305x", "zyxel,keenetic", "https://openwrt.org/releases/23.05/notes-23.05.0"},
	} {
		if c, ok := Builtin().Dropped(tt.version, tt.target, tt.profile); !ok || c.Link != tt.want || c.Reason == "" {
			t.Errorf("%v: %v %v", tt, c, ok)
		}
	}
	for _, tt := range []struct{ version, target, profile string }{
		{"19.07.10", "ar71xx/generic", "archer-c7-v2"}, {"24.10.5", "ath79/generic", "tplink_archer-c7-v2"}, {"22.03.7", "ramips/rt305x", "zyxel_keenetic"}, {"", "ar71xx/generic", ""},
	} {
		if c, ok := Builtin().Dropped(tt.version, tt.target, tt.profile); ok {
			t.Errorf("%v is dropped: %v", tt, c)
		}
	}
}

func TestNotes(t *testing.T) {
	for _, tt := range []struct {
		version, target, profile, want string
	}{
		{"23.05.5", "ipq40xx/generic", "avm_fritzbox-4040", "DSA since 23.05"},
		{"24.10.5", "ipq806x/generic", "netgear_r7800", "DSA since 24.10"},
		{"25.12.1", "mediatek/mt7622", "linksys,e8450-ubi", "another layout since 24.10"},
		{"22.03.7", "ipq40xx/generic", "avm_fritzbox-4040", ""},
		{"24.10.5", "ramips/mt7621", "any", ""}, // too long ago
		{"23.05.5", "ramips/mt7621", "any", "DSA since 21.02"},
		{"25.12.1", "x86/64", "generic", ""},
	} {
		notes := Builtin().Notes(tt.version, "r1-a", tt.target, tt.profile)
		if tt.want == "" && notes != nil || tt.want != "" && (len(notes) != 1 || !strings.Contains(notes[0].Reason, tt.want) || notes[0].From != "" || notes[0].To != "") {
			t.Errorf("%v: %v", tt, notes)
		}
	}
}

// TestSplit: what became two packages becomes both.
func TestSplit(t *testing.T) {
	table, err := Parse([]byte(`{"branches":{"23.05":23069,"24.10":27990},"packages":[
		{"since":"23.05","from":"one","to":["left","middle"],"why":"It was split into several."},
		{"since":"24.10","targets":["a/b"],"from":"middle","to":["right"],"why":"It was renamed once more."}]}`))
	if err != nil {
		t.Fatal(err)
	}
	out := table.Apply(&Image{Version: "24.10.1", Target: "a/b", Packages: []string{"one"}, Has: has("left right")})
	want := []Change{{From: "one", To: "left", Reason: "It was split into several. It was renamed once more."}, {From: "one", To: "right", Reason: "It was split into several. It was renamed once more."}}
	if !reflect.DeepEqual(out.Changes, want) || sorted(out.Packages) != "left right" {
		t.Errorf("%v %v", out.Packages, out.Changes)
	}
	if list := table.ForBranch("24.10"); !reflect.DeepEqual(list, []PackageChange{{Source: "one", Target: "left", Revision: 23069}}) {
		t.Errorf("clients are told %v", list)
	}
	if out := table.Apply(&Image{Version: "24.10.1", Target: "c/d", Packages: []string{"middle"}, Has: has("right")}); out.Rules != "" {
		t.Errorf("a row of another target was applied: %v", out.Changes)
	}
}
