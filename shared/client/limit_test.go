package client

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func (zeros) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Status: "200 OK", Request: r, Body: io.NopCloser(zeros{}), ContentLength: -1}, nil
}

// TestEndlessFile: a server that never stops sending is stopped.
func TestEndlessFile(t *testing.T) {
	d := download{client: &Client{URL: "http://sysup.example", HTTP: &http.Client{Transport: zeros{}}}, left: 1 << 20}
	w := &counter{w: io.Discard, report: func(int64) {}}
	err := d.fetch(t.Context(), "/store/x/a.img", "a.img", w)
	if err == nil || !strings.Contains(err.Error(), "cannot be right") || w.done > 1<<20+1 {
		t.Errorf("%d bytes, %v", w.done, err)
	}
}
