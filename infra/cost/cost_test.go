package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// example has round numbers, so that the sums below can be checked by hand.
var example = Usage{
	Lambda:      lambda{MemoryMB: 512, PollMS: 10, PostMS: 100, CertifyMS: 1000, HousekeeperMS: 2000, LogBytesPerCall: 1000},
	Request:     request{AnswerKB: 5, NewReads: 1, NewCatalogueGets: 2, NewBoardUpdates: 2, RefusedReads: 1, RefusedBoardUpdates: 1},
	Record:      record{OpenKB: 2, DoneKB: 8, IndexWrites: 2},
	Build:       build{Polls: 10, Beats: 4, BoardUpdates: 3, Puts: 14, SQSRequests: 5, MakeS: 40, OtherS: 10, LogBytes: 1000, ImageMB: 60, KeptDays: 7, Downloads: 2, DownloadRequests: 10, DoubleSlashes: 0.25},
	Builder:     builder{VCPU: 2, MemoryGB: 8, DiskGB: 30, StartupS: 40, UnpackS: 20, IdleS: 300, WaitS: 20, BuildsBusy: 10, Gets: 10, Puts: 2, KMSRequests: 1, BoardUpdates: 3},
	Archives:    archives{TargetsIn1000: 50, MB: 100, KeptDays: 14, PartMB: 8},
	Housekeeper: housekeeper{EveryMin: 5, DueQueries: 32, Lists: 2, Gets: 4, Puts: 1, BoardReads: 2, SQSRequests: 2},
	Rest:        rest{CatalogueMB: 200, ContainerMB: 120, Containers: 5, ArtifactsMB: 300, Alarms: 10, Dashboards: 1, Metrics: 12, APICalls: 0, KMSRequests: 100},
	Worst:       worst{Builders: 2, BuildsPerDay: 1000, RequestsPerSecond: 100, GatewayPerSecond: 2000, WAFRules: 3},
}

func TestAmounts(t *testing.T) {
	const day = 365.0 / 12
	for _, c := range []struct {
		name string
		got  amounts
		want map[string]float64
	}{
		{"a poll reads 8 KB, two units", example.poll(8), map[string]float64{
			"lambda_request": 1, "lambda_gb_second": 0.005, "api_request": 1, "cloudfront_request": 1,
			"cloudfront_gb": 5e-6, "dynamodb_read": 2, "log_gb": 1e-6,
		}},
		{"a new POST: one read of nothing, two boards, 2 KB and one index entry", example.post(), map[string]float64{
			"lambda_request": 1, "lambda_gb_second": 0.05, "api_request": 1, "cloudfront_request": 1,
			"cloudfront_gb": 5e-6, "dynamodb_read": 1, "dynamodb_write": 2 + 2 + 1, "s3_get": 2, "log_gb": 1e-6,
		}},
		{"a build: POST, 10 polls, claim and 4 beats at 4 units, commit at 10, removal at 9", example.built(), map[string]float64{
			"lambda_request": 11, "lambda_gb_second": 0.05 + 10*0.005, "api_request": 11, "cloudfront_request": 11 + 2*10,
			"cloudfront_gb":  11*5e-6 + 0.06*2,
			"dynamodb_read":  1 + 9*1 + 2 + 1,
			"dynamodb_write": 5 + 5*4 + 10 + 9 + 3,
			"sqs_request":    5,
			"s3_put":         14 + 0.05*(2+13), // 100 MB are 13 parts of 8
			"s3_get":         2 + 20, "cloudfront_function": 5,
			"dynamodb_gb_month": 8e-6 * 7 / day,
			"s3_gb_month":       0.06*7/day + 0.05*0.1*14/day,
			"log_gb":            11*1e-6 + 1e-6,
		}},
		{"a builder for an hour", example.running(3600), map[string]float64{
			"fargate_vcpu_hour": 2, "fargate_gb_hour": 8, "fargate_disk_gb_hour": 10, "ipv4_hour": 1,
		}},
		{"Fargate bills a minute at least", example.running(1), example.running(60)},
		{"a start: 300 idle seconds are 15 receives", example.start(), map[string]float64{
			"lambda_request": 1, "lambda_gb_second": 0.5, "log_gb": 1e-6, "sqs_request": 15,
			"s3_get": 10, "s3_put": 2, "kms_request": 1, "dynamodb_write": 3,
		}},
		{"8,760 runs of the housekeeper: 32 empty questions and two boards are 18 units", example.housekeeping(), map[string]float64{
			"lambda_request": 8760, "lambda_gb_second": 8760, "log_gb": 0.00876, "schedule_event": 8760,
			"dynamodb_read": 8760 * 18, "s3_put": 8760 * 3, "s3_get": 8760 * 4, "sqs_request": 8760 * 2,
		}},
		{"the busiest month: 30,416 builds, 98 more lists an hour, two builders for 730 hours", only(example.busiest(), "fargate_vcpu_hour", "s3_put", "dynamodb_write"), map[string]float64{
			"fargate_vcpu_hour": 2 * 2 * 730,
			"s3_put":            1000*day*(14+0.05*15) + 8760*3 + 730*98,
			"dynamodb_write":    1000 * day * 47,
		}},
		{"attackers: 262.8 million requests, half refused", only(example.attacked(100), "api_request", "dynamodb_read", "dynamodb_write"), map[string]float64{
			"api_request": 262.8e6, "dynamodb_read": 131.4e6 * 3, "dynamodb_write": 131.4e6,
		}},
		{"the same blocked by an ACL of three rules", example.blocked(), map[string]float64{
			"waf_acl_month": 1, "waf_rule_month": 3, "waf_request": 262.8e6,
		}},
	} {
		t.Run(c.name, func(t *testing.T) { equal(t, c.got, c.want) })
	}
}

func only(a amounts, keys ...string) amounts {
	b := amounts{}
	for _, k := range keys {
		b[k] = a[k]
	}
	return b
}

func equal(t *testing.T, got amounts, want map[string]float64) {
	t.Helper()
	for key, n := range want {
		if !near(got[key], n) {
			t.Errorf("%s = %v, by hand %v", key, got[key], n)
		}
	}
	for key := range got {
		if _, ok := want[key]; !ok {
			t.Errorf("%s = %v was not expected", key, got[key])
		}
	}
}

func near(a, b float64) bool { return math.Abs(a-b) <= 1e-9*max(1, math.Abs(a), math.Abs(b)) }

// TestBusyBuilds is 1,000 builds in 100 lives of a builder, each of 40 + 20 +
// 10·50 + 300 = 860 s.
func TestBusyBuilds(t *testing.T) {
	a := example.builds(1000, 10)
	equal(t, only(a, "fargate_vcpu_hour", "ipv4_hour", "lambda_request", "dynamodb_write"), map[string]float64{
		"fargate_vcpu_hour": 2 * 86000.0 / 3600, "ipv4_hour": 86000.0 / 3600,
		"lambda_request": 11000 + 100, "dynamodb_write": 47000 + 300,
	})
	s := spot(a)
	if _, ok := s["fargate_vcpu_hour"]; ok || s["fargate_spot_vcpu_hour"] != a["fargate_vcpu_hour"] || s["fargate_spot_gb_hour"] != a["fargate_gb_hour"] {
		t.Errorf("Spot's hours are %v and on demand's %v", s, a)
	}
	if a["fargate_vcpu_hour"] == 0 {
		t.Error("spot changed the amounts that it was given")
	}
}

// TestBill: the free tier is taken once, from the amount, and never below
// zero; the list's sum ignores it.
func TestBill(t *testing.T) {
	prices := Prices{List: []Price{
		{Key: "call", Name: "calls", Unit: "call", Per: 1_000_000, USD: 0.2, AlwaysFree: 1_000_000},
		{Key: "gb", Name: "storage", Unit: "GB", Per: 1, USD: 0.023},
		{Key: "alarm", Name: "alarms", Unit: "alarm", Per: 1, USD: 0.1, AlwaysFree: 10},
	}}
	b, err := prices.bill(question{title: "t", amounts: amounts{"call": 3_500_000, "gb": 20, "alarm": 8}})
	if err != nil {
		t.Fatal(err)
	}
	if !near(b.USD, 0.7+0.46+0.8) || !near(b.AfterFree, 0.5+0.46) {
		t.Errorf("%v and %v, by hand 1.96 and 0.96", b.USD, b.AfterFree)
	}
	if _, err := prices.bill(question{title: "t", amounts: amounts{"call": 1, "nothing": 1}}); err == nil || !strings.Contains(err.Error(), "nothing") {
		t.Errorf("an amount without a price: %v", err)
	}
}

// TestDefaults holds the tables that are built in: all is priced, nothing is
// priced in vain, and a month at rest keeps to the aim.
func TestDefaults(t *testing.T) {
	report, err := load("", "")
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, b := range report.Bills {
		for _, l := range b.Lines {
			used[l.Key] = true
			if l.Amount <= 0 || l.USD <= 0 {
				t.Errorf("%s: %s is %v for %v USD", b.Title, l.Key, l.Amount, l.USD)
			}
		}
	}
	for _, p := range report.prices.List {
		if !used[p.Key] {
			t.Errorf("nothing uses the price %q", p.Key)
		}
	}
	if rest := find(t, report, "A month at rest"); rest.AfterFree > 1 {
		t.Errorf("a month at rest costs %.3f USD, the aim is 1 at most", rest.AfterFree)
	}
}

// TestTemplate: what usage.toml says of template.yaml is what stands there.
func TestTemplate(t *testing.T) {
	b, err := os.ReadFile("../../template.yaml")
	if err != nil {
		t.Fatal(err)
	}
	u, err := parseUsage(defaultUsage)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		pattern string
		want    float64
	}{
		{`MemorySize: (\d+)`, u.Lambda.MemoryMB},
		{`(?s)BuilderCpu:\n.*?Default: "?(\d+)`, u.Builder.VCPU * 1024},
		{fmt.Sprintf(`"%v": \{ Memory: "(\d+)" \}`, u.Builder.VCPU*1024), u.Builder.MemoryGB * 1024},
		{`(?s)BuilderStorage:\n.*?Default: "?(\d+)`, u.Builder.DiskGB},
		{`SYSUP_IDLE, Value: (\d+)m`, u.Builder.IdleS / 60},
		{`(?s)MaxBuilders:\n.*?Default: (\d+)`, u.Worst.Builders},
		{`(?s)BuildsPerDay:\n.*?Default: (\d+)`, u.Worst.BuildsPerDay},
		{`ThrottlingRateLimit: (\d+)`, u.Worst.GatewayPerSecond},
		{`rate\((\d+) minutes\)`, u.Housekeeper.EveryMin},
		{`Prefix: imagebuilder/\n\s+ExpirationInDays: (\d+)`, u.Archives.KeptDays},
		{`"countNumber": (\d+)`, u.Rest.Containers},
	} {
		found := regexp.MustCompile(c.pattern).FindSubmatch(b)
		if found == nil {
			t.Errorf("template.yaml has nothing like %s", c.pattern)
		} else if got, _ := strconv.ParseFloat(string(found[1]), 64); got != c.want {
			t.Errorf("%s is %v in template.yaml and %v in usage.toml", c.pattern, got, c.want)
		}
	}
	waf, err := os.ReadFile("../waf.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(string(waf), " Priority: "); float64(got) != u.Worst.WAFRules {
		t.Errorf("infra/waf.yaml has %d rules and usage.toml %v", got, u.Worst.WAFRules)
	}
	for kind, want := range map[string]float64{"AWS::CloudWatch::Alarm": u.Rest.Alarms, "AWS::CloudWatch::Dashboard": u.Rest.Dashboards} {
		if got := strings.Count(string(b), "Type: "+kind+"\n"); float64(got) != want {
			t.Errorf("template.yaml has %d of %s and usage.toml %v", got, kind, want)
		}
	}
}

// TestProse: the limits that docs/deploy.md names beside the tables are those
// of the templates.
func TestProse(t *testing.T) {
	text := func(file string) string {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return strings.ReplaceAll(string(b), ",", "")
	}
	doc := text("../../docs/deploy.md")
	for _, c := range []struct{ file, pattern, prose string }{
		{"../../template.yaml", `ThrottlingRateLimit: (\d+)`, `throttle \((\d+) a second`},
		{"../../template.yaml", `ThrottlingRateLimit: (\d+)`, `for the account (\d+) in the template`},
		{"../../template.yaml", `ThrottlingBurstLimit: (\d+)`, `bursts of (\d+)`},
		{"../waf.yaml", `(?s)RequestsPerFiveMinutes:.*?Default: (\d+)`, `requests of one address \| (\d+) in five minutes`},
	} {
		set, said := regexp.MustCompile(c.pattern).FindStringSubmatch(text(c.file)), regexp.MustCompile(c.prose).FindAllStringSubmatch(doc, -1)
		if set == nil || len(said) != 1 || said[0][1] != set[1] {
			t.Errorf("%s of %s is %q, docs/deploy.md says %q", c.pattern, c.file, set, said)
		}
	}
}

// TestPolls is the sum of one million polls with the built-in prices: 0.20
// Lambda, 0.0667 its time, 1.00 API Gateway, 0.25 reads, 1.00 and 0.425
// CloudFront, 0.50 logs.
func TestPolls(t *testing.T) {
	prices, err := parsePrices(defaultPrices)
	if err != nil {
		t.Fatal(err)
	}
	b, err := prices.bill(question{title: "polls", amounts: amounts{}.add(example.poll(8), 1e6)})
	if err != nil {
		t.Fatal(err)
	}
	if math.Abs(b.USD-3.441667) > 1e-5 || math.Abs(b.AfterFree-1.25) > 1e-5 {
		t.Errorf("%v and %v, by hand 3.441667 and 1.25", b.USD, b.AfterFree)
	}
}

func find(t *testing.T, r Report, title string) Bill {
	t.Helper()
	for _, b := range r.Bills {
		if b.Title == title {
			return b
		}
	}
	t.Fatalf("the report has no bill %q", title)
	return Bill{}
}

func TestPricesRefused(t *testing.T) {
	const good = "region = \"r\"\n[[price]]\nkey = \"k\"\nname = \"n\"\nunit = \"u\"\nusd = 1.5\nsource = \"https://aws.amazon.com/x/\"\nseen = \"general knowledge\"\ndate = \"2025-06\"\n"
	if p, err := parsePrices(good); err != nil || p.List[0].Per != 1 {
		t.Fatalf("%+v, %v", p, err)
	}
	for _, c := range []struct{ name, old, new, want string }{
		{"unknown key", "usd", "eur = 1\nusd", "eur"},
		{"no region", "region = \"r\"", "", "region"},
		{"no unit", "unit = \"u\"", "", "unit"},
		{"no name", "name = \"n\"", "", "name"},
		{"no date", "date = \"2025-06\"", "", "date"},
		{"odd date", "2025-06", "June 2025", "date"},
		{"no source", "source = \"https://aws.amazon.com/x/\"", "", "source"},
		{"source elsewhere", "https://aws.amazon.com/x/", "https://aws.amazon.com.example/", "source"},
		{"not seen", "seen = \"general knowledge\"", "", "seen"},
		{"free by mistake", "usd = 1.5", "usd = 0.0", "usd"},
		{"a negative unit", "usd = 1.5", "usd = 1.5\nper = -1", "per"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := parsePrices(strings.Replace(good, c.old, c.new, 1)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, expected a word about %s", err, c.want)
			}
		})
	}
	_, twice, _ := strings.Cut(good, "\n")
	if _, err := parsePrices(good + twice); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("a price given twice: %v", err)
	}
}

func TestUsageRefused(t *testing.T) {
	for _, c := range []struct{ name, old, new, want string }{
		{"unknown key", "[record]", "[record]\nkilobytes = 8", "kilobytes"},
		{"unknown table", "[record]", "[records]\nkb = 8\n[record]", "records"},
		{"a key is absent", "idle_s         = 300", "", "idle_s"},
		{"below zero", "idle_s         = 300", "idle_s = -1", "idle_s"},
		{"no number", "idle_s         = 300", "idle_s = \"5m\"", "idle_s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := strings.Replace(defaultUsage, c.old, c.new, 1)
			if text == defaultUsage {
				t.Fatalf("usage.toml has no %q", c.old)
			}
			if _, err := parseUsage(text); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, expected a word about %s", err, c.want)
			}
		})
	}
}

// TestDocument: docs/deploy.md says exactly what the program prints.
func TestDocument(t *testing.T) {
	report, err := load("", "")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("../../docs/deploy.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), beginMark)
	block, _, ended := strings.Cut(rest, endMark)
	if !ended || block != report.markdown() {
		t.Error("the tables in docs/deploy.md are stale; run: go run ./infra/cost -write docs/deploy.md")
	}
}

func TestWrite(t *testing.T) {
	file := filepath.Join(t.TempDir(), "doc.md")
	if err := os.WriteFile(file, []byte("before\n"+beginMark+"old\n"+endMark+"after\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // writing again changes nothing
		if err := run([]string{"-write", file}, nil); err != nil {
			t.Fatal(err)
		}
	}
	var printed strings.Builder
	if err := run(nil, &printed); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if want := "before\n" + beginMark + printed.String() + endMark + "after\n"; string(got) != want {
		t.Errorf("the document is\n%s", got)
	}
	if err := os.WriteFile(file, []byte("no marks"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run([]string{"-write", file}, nil); err == nil || !strings.Contains(err.Error(), "marks") {
		t.Errorf("a document without marks: %v", err)
	}
}

func TestJSON(t *testing.T) {
	var printed strings.Builder
	if err := run([]string{"-json"}, &printed); err != nil {
		t.Fatal(err)
	}
	var report Report
	if err := json.Unmarshal([]byte(printed.String()), &report); err != nil {
		t.Fatal(err)
	}
	if report.Region != "us-east-1" || find(t, report, "One million polls").USD == 0 {
		t.Errorf("the report is %+v", report)
	}
}

func TestNumber(t *testing.T) {
	for x, want := range map[float64]string{0: "0", 0.25: "0.25", 36.8056: "36.8", 999.6: "1,000", 1234: "1,234", 16050: "16,050", 262800000: "262,800,000", 0.0113: "0.0113"} {
		if got := number(x); got != want {
			t.Errorf("number(%v) = %q, expected %q", x, got, want)
		}
	}
	for x, want := range map[float64]string{0: "0", 0.0001: "<0.001", 0.0166: "0.017", 12.345: "12.35", 762.4: "762"} {
		if got := usd(x); got != want {
			t.Errorf("usd(%v) = %q, expected %q", x, got, want)
		}
	}
}
