package build_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/build/buildtest"
)

var secret = []byte("0123456789abcdef0123456789abcdef")

func basePlan() build.Plan {
	return build.Plan{Distribution: "OpenWrt", Version: "24.10.5", Revision: "r29087-d9c5716d1d", Target: "x86/64", Profile: "generic"}
}

// pinned are the IDs of plans that differ from basePlan in one field. They
// are written down whole, because a change of any makes every client's
// request_hash another: it has to be meant, and goes with a new domain.
var pinned = []struct {
	field string // of build.Plan
	id    build.ID
	alter func(*build.Plan)
}{
	{"", "3f40b1a5a64c1730ea1b11a19d8ceb769f04ab3964fe18c86e71cd8b5c705888", func(*build.Plan) {}},
	{"Distribution", "c86e1f5695e08024df6f262eb09213211bb730a6fb631ce541b866f9ac61a0a4", func(p *build.Plan) { p.Distribution = "LibreMesh" }},
	{"Version", "e8af44fcc8be5e29f9dc7124760d8a1c8b933758873d1c3d5772d19fbeb900b6", func(p *build.Plan) { p.Version = "24.10.4" }},
	{"Snapshot", "c8a4c81ca4b80289d1ad963a6e17e2b957a800eeac5b37e3f9c19f6675eaec19", func(p *build.Plan) { p.Snapshot = true }},
	{"Target", "9174b7c0ff8382cc20bfdc0c25aab36e65abcbf2e04ac75b018378facfb8604b", func(p *build.Plan) { p.Target = "ath79/generic" }},
	{"Profile", "f87c523577dc0fd37154bea54b7464939da39e80f0b8423935bfe4b5d6dc95ca", func(p *build.Plan) { p.Profile = "tplink_archer-c7-v5" }},
	{"Add", "f67816a6caa76966ca7abde544a5bd390df7079cb65016c80aae1a58e9f8c39d", func(p *build.Plan) { p.Add = []string{"luci", "tmux"} }},
	{"Remove", "6c93c64b03decc0535d98025141705ce812f63f96377da984d5aae918e2a0201", func(p *build.Plan) { p.Remove = []string{"dnsmasq", "ppp"} }},
	{"Pins", "d9c1b06f91f734aa6d2e9de1bcc56c24e321a3ac155b780ff5e927c470c8b725", func(p *build.Plan) {
		p.Pins = []build.Pin{{Name: "luci", Version: "26.1"}, {Name: "tmux", Version: "3.5a-r1"}}
	}},
	{"Filesystem", "b7a1d8e8fc6296c3361582aa2cecad3d60aeb2241902d73a4ebaecd09de50f36", func(p *build.Plan) { p.Filesystem = "squashfs" }},
	{"RootfsSizeMB", "63f099e8fed0c0eec302a50450877b43ce08facf320843a5e0be8bdb052b78a3", func(p *build.Plan) { p.RootfsSizeMB = 256 }},
	{"Repositories", "4a903f7d0ced1c9cb107daccb89d4414bd99296990cafe582ce5988b573199b8", func(p *build.Plan) {
		p.Repositories = []build.Repository{{Name: "b", URL: "https://feed.example/b"}, {Name: "a", URL: "https://feed.example/a"}}
	}},
	{"RepositoriesMode", "c34ef2ef8472c37898fefc5c173bf6be2b3a722cd1437a55ea93f5c217f8e4e7", func(p *build.Plan) { p.RepositoriesMode = "append" }},
	{"RepositoryKeys", "3fed56e228ef32252fce3f53a77d1279c1671179378a4bafec2d746d9c95b640", func(p *build.Plan) { p.RepositoryKeys = []string{strings.Repeat("A", 56)} }},
	{"Settings", "ddac43895779f559c08ab34757891aa25122b79ce8fb3841602d3d39f3d6be14", func(p *build.Plan) { p.Settings = []string{"server-pub=0123456789abcdef"} }},
	{"Rules", "415ea04763eeabcbd4271a1f88716fba269afd0352d5e60869c63331b668ab92", func(p *build.Plan) { p.Rules = strings.Repeat("0f", 32) }},
	{"Private", "83a46171ed35a349e083d69f837607c385523cfedef6830054e718bf0b8d6a68", func(p *build.Plan) { p.Private = true }},
	{"Defaults", "5cf5203f3054148a1061d1d7c7769cff8d791938176b2cafe72c7e46bd7fc377", func(p *build.Plan) { p.Private, p.Defaults = true, "uci set wireless.radio0.key=secret\n" }},
}

func TestPinnedIDs(t *testing.T) {
	seen := map[build.ID]string{}
	for _, test := range pinned {
		plan := basePlan()
		test.alter(&plan)
		got := plan.ID(secret)
		if got != test.id {
			t.Errorf("the plan with another %q has the ID\n%s, not\n%s", test.field, got, test.id)
		}
		if other, taken := seen[got]; taken {
			t.Errorf("plans with another %q and another %q share an ID", test.field, other)
		}
		seen[got] = test.field
	}
}

// TestEveryFieldIsHashed fails when a field joins Plan that nobody thought of
// here.
func TestEveryFieldIsHashed(t *testing.T) {
	known := []string{"Revision", "Changes"} // see TestRevision and TestChangesAreNotHashed
	for _, test := range pinned {
		known = append(known, test.field)
	}
	plan := reflect.TypeFor[build.Plan]()
	for i := range plan.NumField() {
		if name := plan.Field(i).Name; !slices.Contains(known, name) {
			t.Errorf("Plan.%s is not among the pinned IDs: does it change the image?", name)
		}
	}
}

// TestRevision: a release's revision is only compared, a snapshot's says what
// is built.
func TestRevision(t *testing.T) {
	for _, snapshot := range []bool{false, true} {
		a := basePlan()
		a.Snapshot = snapshot
		b := a
		b.Revision = "r30000-0000000000"
		if same := a.ID(secret) == b.ID(secret); same == snapshot {
			t.Errorf("snapshot %v: do other revisions share an ID? %v", snapshot, same)
		}
	}
}

// TestChangesAreNotHashed: what is told about the rules is no part of the
// image, the digest of those that were applied is hashed.
func TestChangesAreNotHashed(t *testing.T) {
	a := basePlan()
	b := a
	b.Changes = []build.Amendment{{From: "auc", To: "owut", Reason: "It has another name."}}
	if a.ID(secret) != b.ID(secret) {
		t.Error("the words about a change are hashed")
	}
}

func TestPrivateIDs(t *testing.T) {
	plan := basePlan()
	if plan.ID(secret) != plan.ID([]byte("another secret")) {
		t.Error("a public ID depends on the secret")
	}
	public := plan
	plan.Private, plan.Defaults = true, "#!/bin/sh\n"
	if plan.ID(secret) == plan.ID([]byte("another secret")) {
		t.Error("a private ID does not depend on the secret")
	}
	if plan.ID(secret) == public.ID(secret) {
		t.Error("a private plan shares its ID with the public one")
	}
}

// canonical is the canonical form written down a second time, byte by byte.
func canonical(p *build.Plan) []byte {
	var b []byte
	count := func(n int) { b = binary.BigEndian.AppendUint64(b, uint64(n)) }
	texts := func(list ...string) {
		for _, s := range list {
			count(len(s))
			b = append(b, s...)
		}
	}
	list := func(list []string) { count(len(list)); texts(list...) }
	domain := "sysup request 1"
	if p.Private {
		domain = "sysup private request 1"
	}
	texts(domain, p.Distribution, p.Version, p.Target, p.Profile)
	if p.Snapshot {
		list([]string{p.Revision})
	} else {
		list(nil)
	}
	list(p.Add)
	list(p.Remove)
	count(len(p.Pins))
	for _, pin := range p.Pins {
		texts(pin.Name, pin.Version)
	}
	texts(p.Filesystem)
	count(p.RootfsSizeMB)
	count(len(p.Repositories))
	for _, repo := range p.Repositories {
		texts(repo.Name, repo.URL)
	}
	texts(p.RepositoriesMode)
	list(p.RepositoryKeys)
	list(p.Settings)
	texts(p.Rules)
	if p.Private {
		texts(p.Defaults)
	}
	return b
}

func wantID(t testing.TB, p *build.Plan) {
	t.Helper()
	sum := sha256.New()
	if p.Private {
		sum = hmac.New(sha256.New, secret)
	}
	sum.Write(canonical(p))
	if want := build.ID(hex.EncodeToString(sum.Sum(nil))); p.ID(secret) != want {
		t.Errorf("the ID of %+v is %s, not %s", p, p.ID(secret), want)
	}
}

func TestIDIsTheHashOfTheCanonicalForm(t *testing.T) {
	for _, test := range pinned {
		plan := basePlan()
		test.alter(&plan)
		wantID(t, &plan)
	}
}

// meaning is what of a plan makes an image, for comparison as a structure.
func meaning(p build.Plan) build.Plan {
	if !p.Snapshot {
		p.Revision = ""
	}
	if !p.Private {
		p.Defaults = ""
	}
	for _, list := range []*[]string{&p.Add, &p.Remove, &p.RepositoryKeys, &p.Settings} {
		*list = append([]string{}, *list...)
	}
	p.Pins = append([]build.Pin{}, p.Pins...)
	p.Repositories = append([]build.Repository{}, p.Repositories...)
	return p
}

// dealt fills a plan's fields with the pieces of a text. Equal texts cut
// elsewhere give plans that a careless hash takes for one.
func dealt(text string, cuts *rand.Rand) build.Plan {
	piece := func() string {
		n := cuts.IntN(4)
		if cuts.IntN(3) == 0 {
			n = 0
		}
		n = min(n, len(text))
		s := text[:n]
		text = text[n:]
		return s
	}
	pieces := func() []string {
		var list []string
		for range cuts.IntN(3) {
			list = append(list, piece())
		}
		return list
	}
	p := build.Plan{Distribution: piece(), Version: piece(), Target: piece(), Profile: piece(), Snapshot: cuts.IntN(2) == 0, Revision: piece()}
	p.Add, p.Remove = pieces(), pieces()
	for range cuts.IntN(3) {
		p.Pins = append(p.Pins, build.Pin{Name: piece(), Version: piece()})
	}
	p.Filesystem, p.RootfsSizeMB = piece(), cuts.IntN(2)
	for range cuts.IntN(3) {
		p.Repositories = append(p.Repositories, build.Repository{Name: piece(), URL: piece()})
	}
	p.RepositoriesMode, p.RepositoryKeys, p.Settings, p.Rules = piece(), pieces(), pieces(), piece()
	p.Private = cuts.IntN(4) == 0
	p.Defaults = piece()
	return p
}

// wantInjective checks that id is equal for two plans exactly if they mean
// the same.
func wantInjective(t testing.TB, id func(*build.Plan) string, p, q build.Plan) {
	t.Helper()
	same := reflect.DeepEqual(meaning(p), meaning(q))
	if (id(&p) == id(&q)) != same {
		t.Errorf("do these mean the same? %v, but share an ID? %v\n%+v\n%+v", same, !same, p, q)
	}
}

func planID(p *build.Plan) string { return string(p.ID(secret)) }

func manyPairs(t testing.TB, id func(*build.Plan) string) {
	for seed := range uint64(500) {
		if t.Failed() {
			return
		}
		cuts := rand.New(rand.NewPCG(seed, 1))
		// Short texts of few letters make for many near misses.
		text := strings.Repeat("ab", 1+int(seed%4))
		p := dealt(text, cuts)
		wantInjective(t, id, p, dealt(text, cuts))
		wantInjective(t, id, p, shifted(p, cuts))
		wantInjective(t, id, p, p)
		for _, test := range pinned {
			other := p
			test.alter(&other)
			wantInjective(t, id, p, other)
		}
		other := p
		other.Revision += "x"
		wantInjective(t, id, p, other)
	}
}

// shifted moves what lies around the boundary of two fields across it.
func shifted(p build.Plan, cuts *rand.Rand) build.Plan {
	p.Add, p.Remove = slices.Clone(p.Add), slices.Clone(p.Remove)
	if cuts.IntN(2) == 0 && len(p.Add) > 0 { // from one list to the next
		last := len(p.Add) - 1
		p.Add, p.Remove = p.Add[:last], slices.Insert(p.Remove, 0, p.Add[last])
		return p
	}
	fields := []*string{&p.Distribution, &p.Version, &p.Target, &p.Profile}
	i := cuts.IntN(len(fields) - 1)
	if all := *fields[i] + *fields[i+1]; all != "" {
		at := cuts.IntN(len(all) + 1)
		*fields[i], *fields[i+1] = all[:at], all[at:]
	}
	return p
}

func TestDifferentMeaningsNeverShareAnID(t *testing.T) { manyPairs(t, planID) }

// TestIDTestsNoticeCarelessHashes shows that the test above would have caught
// the mistakes that others made.
func TestIDTestsNoticeCarelessHashes(t *testing.T) {
	for name, id := range map[string]func(*build.Plan) string{
		"joined without separators": func(p *build.Plan) string {
			q := *p
			q.Distribution, q.Version = "", ""
			return p.Distribution + p.Version + planID(&q)
		},
		"formatted": func(p *build.Plan) string { return fmt.Sprint(*p) },
		"truncated": func(p *build.Plan) string { return planID(p)[:2] },
		"without removals": func(p *build.Plan) string {
			q := *p
			q.Remove = nil
			return planID(&q)
		},
		"without the length of lists": func(p *build.Plan) string {
			q := *p
			q.Add, q.Remove = append(slices.Clone(p.Add), p.Remove...), nil
			return planID(&q)
		},
		"with the revision of a release": func(p *build.Plan) string { return planID(p) + p.Revision },
		"without that of a snapshot": func(p *build.Plan) string {
			q := *p
			q.Revision = ""
			return planID(&q)
		},
	} {
		t.Run(name, func(t *testing.T) {
			buildtest.Fails(t, func(t testing.TB) { manyPairs(t, id) })
		})
	}
}

func FuzzID(f *testing.F) {
	f.Add("24.10.10", "24.10.10", uint64(1), uint64(2))
	f.Add("24.10.1", "24.10.10", uint64(3), uint64(3))
	f.Add("\x00\x00\x00\x00\x00\x00\x00\x01a", "a", uint64(4), uint64(5))
	f.Fuzz(func(t *testing.T, a, b string, cutsA, cutsB uint64) {
		p, q := dealt(a, rand.New(rand.NewPCG(cutsA, 0))), dealt(b, rand.New(rand.NewPCG(cutsB, 0)))
		wantInjective(t, planID, p, q)
		wantID(t, &p)
		if _, err := build.ParseID(planID(&p)); err != nil {
			t.Errorf("an ID that is none: %v", err)
		}
	})
}

func TestImageHash(t *testing.T) {
	plan := basePlan()
	manifest, images := []string{"busybox 1.36", "luci 26.1"}, []string{strings.Repeat("0", 64), strings.Repeat("f", 64)}
	base := build.ImageHash(&plan, manifest, images)
	if want := "04ee1fb69d34923b95c4818f4579a968199baf17264048806ab299d11d92b301"; base != want {
		t.Errorf("the image hash is %s, not %s", base, want)
	}
	request := plan
	request.Add, request.RootfsSizeMB = []string{"luci"}, 100
	if build.ImageHash(&request, manifest, images) != base {
		t.Error("the image hash depends on what was asked, not only on what came of it")
	}
	other := plan
	other.Profile = "other"
	for name, hash := range map[string]string{
		"profile":  build.ImageHash(&other, manifest, images),
		"manifest": build.ImageHash(&plan, manifest[:1], images),
		"images":   build.ImageHash(&plan, manifest, images[:1]),
		"boundary": build.ImageHash(&plan, append(slices.Clone(manifest), images[0]), images[1:]),
	} {
		if hash == base {
			t.Errorf("another %s has the same image hash", name)
		}
	}
}

func TestParseID(t *testing.T) {
	good := strings.Repeat("0123456789abcdef", 4)
	if id, err := build.ParseID(good); err != nil || string(id) != good {
		t.Errorf("ParseID(%q) is %q, %v", good, id, err)
	}
	for _, s := range []string{"", good[:63], good + "0", strings.ToUpper(good), good[:63] + "g", good[:63] + "\n", " " + good[1:], "../" + good[3:]} {
		if _, err := build.ParseID(s); err == nil {
			t.Errorf("ParseID(%q) takes it", s)
		}
	}
}

func TestShortRevealsNothing(t *testing.T) {
	id := buildtest.NewID()
	if short := id.Short(); len(short) != 12 || strings.Contains(string(id), short) {
		t.Errorf("the label of %s is %s", id, short)
	}
}

func TestPrefix(t *testing.T) {
	id, attempt := buildtest.NewID(), build.NewAttempt()
	for _, private := range []bool{false, true} {
		prefix := build.Prefix(id, attempt, private)
		gotID, gotAttempt, gotPrivate, ok := build.ParsePrefix(prefix)
		if !ok || gotID != id || gotAttempt != attempt || gotPrivate != private {
			t.Errorf("%s is taken apart as %s, %s, %v, %v", prefix, gotID, gotAttempt, gotPrivate, ok)
		}
		if want := "store/" + build.BinDir(id, attempt, private) + "/"; prefix != want {
			t.Errorf("the prefix is %s, the folder %s", prefix, want)
		}
	}
}

func FuzzParsePrefix(f *testing.F) {
	id, attempt := strings.Repeat("a", 64), strings.Repeat("0", 32)
	for _, s := range []string{"", "store/", "store/" + id + "/" + attempt + "/", "store/private/" + id + "/" + attempt + "/", "store/" + id + "//", "store/private/", "store/" + id + "/" + attempt + "/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, attempt, private, ok := build.ParsePrefix(s)
		if ok && strings.TrimSuffix(build.Prefix(id, attempt, private), "/") != strings.TrimSuffix(s, "/") {
			t.Errorf("%q is taken for an attempt's folder", s)
		}
	})
}
