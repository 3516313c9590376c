package main

import "math"

// Usage is what the service does: calls, sizes and times. usage.toml says
// where each number comes from.
type Usage struct {
	Lambda      lambda      `toml:"lambda"`
	Request     request     `toml:"request"`
	Record      record      `toml:"record"`
	Build       build       `toml:"build"`
	Builder     builder     `toml:"builder"`
	Archives    archives    `toml:"archives"`
	Housekeeper housekeeper `toml:"housekeeper"`
	Rest        rest        `toml:"rest"`
	Worst       worst       `toml:"worst"`
}

type lambda struct {
	MemoryMB        float64 `toml:"memory_mb"`
	PollMS          float64 `toml:"poll_ms"`
	PostMS          float64 `toml:"post_ms"`
	CertifyMS       float64 `toml:"certify_ms"`
	HousekeeperMS   float64 `toml:"housekeeper_ms"`
	LogBytesPerCall float64 `toml:"log_bytes_per_call"`
}

type request struct {
	AnswerKB            float64 `toml:"answer_kb"`
	NewReads            float64 `toml:"new_reads"`
	NewCatalogueGets    float64 `toml:"new_catalogue_gets"`
	NewBoardUpdates     float64 `toml:"new_board_updates"`
	RefusedReads        float64 `toml:"refused_reads"`
	RefusedBoardUpdates float64 `toml:"refused_board_updates"`
}

type record struct {
	OpenKB      float64 `toml:"open_kb"`
	DoneKB      float64 `toml:"done_kb"`
	IndexWrites float64 `toml:"index_writes"`
}

type build struct {
	Polls            float64 `toml:"polls"`
	Beats            float64 `toml:"beats"`
	BoardUpdates     float64 `toml:"board_updates"`
	Puts             float64 `toml:"puts"`
	SQSRequests      float64 `toml:"sqs_requests"`
	MakeS            float64 `toml:"make_s"`
	OtherS           float64 `toml:"other_s"`
	LogBytes         float64 `toml:"log_bytes"`
	ImageMB          float64 `toml:"image_mb"`
	KeptDays         float64 `toml:"kept_days"`
	Downloads        float64 `toml:"downloads"`
	DownloadRequests float64 `toml:"download_requests"`
	DoubleSlashes    float64 `toml:"double_slashes"`
}

type builder struct {
	VCPU         float64 `toml:"vcpu"`
	MemoryGB     float64 `toml:"memory_gb"`
	DiskGB       float64 `toml:"disk_gb"`
	StartupS     float64 `toml:"startup_s"`
	UnpackS      float64 `toml:"unpack_s"`
	IdleS        float64 `toml:"idle_s"`
	WaitS        float64 `toml:"wait_s"`
	BuildsBusy   float64 `toml:"builds_busy"`
	Gets         float64 `toml:"gets"`
	Puts         float64 `toml:"puts"`
	KMSRequests  float64 `toml:"kms_requests"`
	BoardUpdates float64 `toml:"board_updates"`
}

type archives struct {
	TargetsIn1000 float64 `toml:"targets_in_1000"`
	MB            float64 `toml:"mb"`
	KeptDays      float64 `toml:"kept_days"`
	PartMB        float64 `toml:"part_mb"`
}

type housekeeper struct {
	EveryMin    float64 `toml:"every_min"`
	DueQueries  float64 `toml:"due_queries"`
	Lists       float64 `toml:"lists"`
	Gets        float64 `toml:"gets"`
	Puts        float64 `toml:"puts"`
	BoardReads  float64 `toml:"board_reads"`
	SQSRequests float64 `toml:"sqs_requests"`
}

type rest struct {
	CatalogueMB float64 `toml:"catalogue_mb"`
	ContainerMB float64 `toml:"container_mb"`
	Containers  float64 `toml:"containers"`
	ArtifactsMB float64 `toml:"artifacts_mb"`
	Alarms      float64 `toml:"alarms"`
	Dashboards  float64 `toml:"dashboards"`
	Metrics     float64 `toml:"metrics"`
	APICalls    float64 `toml:"api_calls"`
	KMSRequests float64 `toml:"kms_requests"`
}

type worst struct {
	Builders          float64 `toml:"builders"`
	BuildsPerDay      float64 `toml:"builds_per_day"`
	RequestsPerSecond float64 `toml:"requests_per_second"`
	GatewayPerSecond  float64 `toml:"gateway_per_second"`
	WAFRules          float64 `toml:"waf_rules"`
}

// A month as AWS bills it.
const (
	hoursPerMonth   = 730.0
	daysPerMonth    = hoursPerMonth / 24
	secondsPerMonth = hoursPerMonth * 3600
)

// What DynamoDB counts as one unit, in KB, Fargate's shortest bill, and how many
// objects one LIST of S3 tells.
const (
	readUnitKB        = 4
	writeUnitKB       = 1
	fargateMinSeconds = 60
	listed            = 1000
)

// amounts are units by price key.
type amounts map[string]float64

func (a amounts) add(other amounts, times float64) amounts {
	for key, n := range other {
		a[key] += n * times
	}
	return a
}

// readUnits is what a consistent read of that many KB costs.
func readUnits(kb float64) float64 { return math.Ceil(kb / readUnitKB) }

// writeUnits is what a write costs that changes the index so often. The larger
// of the item before and after counts.
func writeUnits(kb, indexWrites float64) float64 { return math.Ceil(kb/writeUnitKB) + indexWrites }

// call is one run of a function, with its log lines.
func (u Usage) call(ms float64) amounts {
	return amounts{
		"lambda_request":   1,
		"lambda_gb_second": u.Lambda.MemoryMB / 1024 * ms / 1000,
		"log_gb":           u.Lambda.LogBytesPerCall / 1e9,
	}
}

// visit is one request to the API through CloudFront, without what it asks of
// the table.
func (u Usage) visit(ms float64) amounts {
	return u.call(ms).add(amounts{
		"api_request":        1,
		"cloudfront_request": 1,
		"cloudfront_gb":      u.Request.AnswerKB / 1e6,
	}, 1)
}

// poll is a poll, or a POST of what is known: one read of a record that large.
func (u Usage) poll(kb float64) amounts {
	return u.visit(u.Lambda.PollMS).add(amounts{"dynamodb_read": readUnits(kb)}, 1)
}

// post is a POST that creates a build.
func (u Usage) post() amounts {
	return u.visit(u.Lambda.PostMS).add(amounts{
		"s3_get":         u.Request.NewCatalogueGets,
		"dynamodb_read":  u.Request.NewReads, // of nothing: one unit
		"dynamodb_write": u.Request.NewBoardUpdates + writeUnits(u.Record.OpenKB, 1),
	}, 1)
}

// refused is a POST that the limits turn down.
func (u Usage) refused() amounts {
	return u.visit(u.Lambda.PollMS).add(amounts{
		"dynamodb_read":  u.Request.RefusedReads,
		"dynamodb_write": u.Request.RefusedBoardUpdates,
	}, 1)
}

// built is all of one build but the builder's time: its request and polls, the
// changes of its record, its files.
func (u Usage) built() amounts {
	b := u.Build
	gb, requests := b.ImageMB/1000, b.DownloadRequests*b.Downloads
	return u.post().add(u.poll(u.Record.OpenKB), b.Polls-1).add(u.poll(u.Record.DoneKB), 1).add(amounts{
		"dynamodb_read":       readUnits(u.Record.OpenKB), // before the claim
		"dynamodb_write":      u.changes() + b.BoardUpdates,
		"dynamodb_gb_month":   u.Record.DoneKB / 1e6 * b.KeptDays / daysPerMonth,
		"sqs_request":         b.SQSRequests,
		"s3_put":              b.Puts,
		"s3_gb_month":         gb * b.KeptDays / daysPerMonth,
		"log_gb":              b.LogBytes / 1e9,
		"s3_get":              requests,
		"cloudfront_request":  requests,
		"cloudfront_function": requests * b.DoubleSlashes,
		"cloudfront_gb":       gb * b.Downloads,
	}, 1).add(u.archive(), u.Archives.TargetsIn1000/1000)
}

// changes are the write units of a record's life after its creation: claim and
// beats, commit, removal.
func (u Usage) changes() float64 {
	r := u.Record
	return (1+u.Build.Beats)*writeUnits(r.OpenKB, r.IndexWrites) + writeUnits(r.DoneKB, r.IndexWrites) + writeUnits(r.DoneKB, 1)
}

// archive is an ImageBuilder that is put into S3 and kept there.
func (u Usage) archive() amounts {
	return amounts{
		"s3_put":      2 + math.Ceil(u.Archives.MB/u.Archives.PartMB), // a multipart upload is begun and completed
		"s3_gb_month": u.Archives.MB / 1000 * u.Archives.KeptDays / daysPerMonth,
	}
}

// running is a builder for so many seconds.
func (u Usage) running(seconds float64) amounts {
	hours := max(seconds, fargateMinSeconds) / 3600
	return amounts{
		"fargate_vcpu_hour":    hours * u.Builder.VCPU,
		"fargate_gb_hour":      hours * u.Builder.MemoryGB,
		"fargate_disk_gb_hour": hours * max(0, u.Builder.DiskGB-20),
		"ipv4_hour":            hours,
	}
}

// start is a builder's life without its builds: start-up, one ImageBuilder,
// the certificate, and the idle tail.
func (u Usage) start() amounts {
	b := u.Builder
	return u.call(u.Lambda.CertifyMS).add(amounts{
		"sqs_request":    math.Ceil(b.IdleS / b.WaitS),
		"s3_get":         b.Gets,
		"s3_put":         b.Puts,
		"kms_request":    b.KMSRequests,
		"dynamodb_write": b.BoardUpdates,
	}, 1)
}

// builds are n builds of which each builder does so many before it idles.
func (u Usage) builds(n, perStart float64) amounts {
	b := u.Builder
	seconds := b.StartupS + b.UnpackS + perStart*(u.Build.MakeS+u.Build.OtherS) + b.IdleS
	life := u.start().add(u.running(seconds), 1)
	return amounts{}.add(u.built(), n).add(life, n/perStart)
}

// housekeeping is a month of the housekeeper.
func (u Usage) housekeeping() amounts {
	h := u.Housekeeper
	run := u.call(u.Lambda.HousekeeperMS).add(amounts{
		"schedule_event": 1,
		"dynamodb_read":  h.DueQueries/2 + h.BoardReads, // an eventually consistent query without an answer is half a unit
		"s3_put":         h.Lists + h.Puts,
		"s3_get":         h.Gets,
		"sqs_request":    h.SQSRequests,
	}, 1)
	return amounts{}.add(run, hoursPerMonth*60/h.EveryMin)
}

// storedGB is what lies in S3 while nobody builds.
func (u Usage) storedGB() float64 { return (u.Rest.CatalogueMB + u.Rest.ArtifactsMB) / 1000 }

// idle is a month in which nobody builds.
func (u Usage) idle() amounts {
	a := u.housekeeping().add(u.poll(u.Record.DoneKB), u.Rest.APICalls).add(amounts{
		"s3_gb_month":     u.storedGB(),
		"ecr_gb_month":    u.Rest.ContainerMB / 1000 * u.Rest.Containers,
		"alarm_month":     u.Rest.Alarms,
		"dashboard_month": u.Rest.Dashboards,
		"metric_month":    u.Rest.Metrics,
		"kms_request":     u.Rest.KMSRequests,
	}, 1)
	a["log_gb_month"] = a["log_gb"] // a month's retention
	return a
}

// attacked is a month of attackers at that rate: as many polls as POSTs that
// are refused.
func (u Usage) attacked(perSecond float64) amounts {
	n := perSecond * secondsPerMonth
	return amounts{}.add(u.poll(u.Record.DoneKB), n/2).add(u.refused(), n/2)
}

// blocked is the same month with a web ACL that blocks all of them.
func (u Usage) blocked() amounts {
	return amounts{"waf_acl_month": 1, "waf_rule_month": u.Worst.WAFRules, "waf_request": u.Worst.RequestsPerSecond * secondsPerMonth}
}

// busiest is a month at every default limit, without attackers: all builders
// all the time, all the builds of every day.
func (u Usage) busiest() amounts {
	stored := u.Worst.BuildsPerDay * u.Build.KeptDays * u.Build.Puts
	return u.idle().
		add(u.built(), u.Worst.BuildsPerDay*daysPerMonth).
		add(u.running(secondsPerMonth), u.Worst.Builders).
		add(amounts{"s3_put": hoursPerMonth * math.Floor(stored/listed)}, 1) // looking for strays
}

// spot is the same with Spot's prices for the builders.
func spot(a amounts) amounts {
	s := amounts{}.add(a, 1)
	for from, to := range map[string]string{"fargate_vcpu_hour": "fargate_spot_vcpu_hour", "fargate_gb_hour": "fargate_spot_gb_hour"} {
		s[to] = s[from]
		delete(s, from)
	}
	return s
}
