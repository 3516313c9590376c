package aws

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"os"
	"reflect"
	"testing"
	"time"
)

// TestMetrics holds a line against the embedded metric format: _aws with
// Timestamp and CloudWatchMetrics of Namespace, Dimensions and Metrics, whose
// names are members of the root with numbers.
func TestMetrics(t *testing.T) {
	var out bytes.Buffer
	values := map[string]float64{MetricPending: 3, MetricCatalogueAge: 12.5, MetricBuildSeconds: 0}
	if err := Metrics(&out, values); err != nil {
		t.Fatal(err)
	}
	if out.Bytes()[out.Len()-1] != '\n' || bytes.Count(out.Bytes(), []byte("\n")) != 1 {
		t.Errorf("%q is not one line", out.String())
	}
	var root map[string]any
	if err := json.Unmarshal(out.Bytes(), &root); err != nil {
		t.Fatal(err)
	}
	aws := root["_aws"].(map[string]any)
	if stamp := aws["Timestamp"].(float64); math.Abs(stamp-float64(time.Now().UnixMilli())) > 10_000 {
		t.Errorf("the timestamp is %v", stamp)
	}
	want := []any{map[string]any{
		"Namespace": "Sysup", "Dimensions": []any{[]any{}},
		"Metrics": []any{
			map[string]any{"Name": "BuildSeconds", "Unit": "Seconds"},
			map[string]any{"Name": "CatalogueAge", "Unit": "None"},
			map[string]any{"Name": "Pending", "Unit": "Count"},
		},
	}}
	if !reflect.DeepEqual(aws["CloudWatchMetrics"], want) {
		t.Errorf("the directive is %v", aws["CloudWatchMetrics"])
	}
	delete(root, "_aws")
	if !reflect.DeepEqual(root, map[string]any{"Pending": 3.0, "CatalogueAge": 12.5, "BuildSeconds": 0.0}) {
		t.Errorf("the values are %v", root)
	}
}

func TestNoMetrics(t *testing.T) {
	for _, values := range []map[string]float64{{"Other": 1}, {MetricPending: math.NaN()}, {MetricDone: math.Inf(1)}, {"": 0}, {"_aws": 1}} {
		var out bytes.Buffer
		if err := Metrics(&out, values); err == nil || out.Len() > 0 {
			t.Errorf("%v are written as %q (%v)", values, out.String(), err)
		}
	}
	var out bytes.Buffer
	if err := Metrics(&out, nil); err != nil || out.Len() > 0 {
		t.Errorf("no values are written as %q (%v)", out.String(), err)
	}
	if len(units) > 10 {
		t.Errorf("there are %d metrics; only ten are free of charge", len(units))
	}
	closed, _ := os.Open(os.DevNull)
	closed.Close()
	if err := Metrics(closed, map[string]float64{MetricDone: 1}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a writer that fails: %v", err)
	}
}
