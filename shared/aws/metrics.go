package aws

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"
)

// MetricsNamespace is the namespace of all metrics in CloudWatch.
const MetricsNamespace = "Sysup"

// The metrics. Each costs money by the month, so they are few and have no
// dimensions.
const (
	MetricPending      = "Pending"
	MetricAlive        = "BuildersAlive"
	MetricDeadLetters  = "DeadLetters"
	MetricCatalogueAge = "CatalogueAge" // minutes
	MetricBuildSeconds = "BuildSeconds"
	MetricDone         = "BuildsDone"
	MetricFailed       = "BuildsFailed"
	MetricRefused      = "Refused"
	MetricSandbox      = "SandboxLevel" // by rank, 4 is the best; once for each start of a builder
	MetricDisagreed    = "Disagreed"    // resolver and ImageBuilder; none is printed as long as there is none
	MetricPathsDiffer  = "PathsDiffer"  // fast and plain path of an ImageBuilder, likewise
)

// units are CloudWatch's words. It has none for minutes.
var units = map[string]string{
	MetricPending: "Count", MetricAlive: "Count", MetricDeadLetters: "Count", MetricCatalogueAge: "None",
	MetricBuildSeconds: "Seconds", MetricDone: "Count", MetricFailed: "Count", MetricRefused: "Count", MetricDisagreed: "Count", MetricSandbox: "None",
}

type emf struct {
	Timestamp int64          // milliseconds
	Metrics   []emfDirective `json:"CloudWatchMetrics"`
}

type emfDirective struct {
	Namespace  string
	Dimensions [][]string
	Metrics    []emfMetric
}

type emfMetric struct{ Name, Unit string }

// Metrics writes the values, by the names above, as one line in CloudWatch's
// embedded metric format. The log of a Lambda function or of a task is read for
// it, so this takes no call.
func Metrics(w io.Writer, values map[string]float64) error {
	if len(values) == 0 {
		return nil
	}
	line, directive := map[string]any{}, emfDirective{Namespace: MetricsNamespace, Dimensions: [][]string{{}}}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		value, unit := values[name], units[name]
		if unit == "" {
			return fmt.Errorf("%.40q is none of the metrics", name)
		}
		line[name] = value
		directive.Metrics = append(directive.Metrics, emfMetric{name, unit})
	}
	line["_aws"] = emf{time.Now().UnixMilli(), []emfDirective{directive}}
	text, err := json.Marshal(line)
	if err != nil {
		return fmt.Errorf("write metrics: %w", err) // of what is no number
	}
	_, err = w.Write(append(text, '\n'))
	return err
}
