package main

import (
	"bufio"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestReadAnswer: answers one after the other on a connection, and what is none.
func TestReadAnswer(t *testing.T) {
	two := "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX: y\r\n\r\nabcHTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
	r := bufio.NewReader(strings.NewReader(two))
	for _, want := range []int{200, 503} {
		if got, err := readAnswer(r); got != want || err != nil {
			t.Errorf("%d, %v, want %d", got, err, want)
		}
	}
	for _, bad := range []string{"", "hello\n", "HTTP/1.1 abc no\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"} {
		if status, err := readAnswer(bufio.NewReader(strings.NewReader(bad))); err == nil {
			t.Errorf("%q is taken for an answer with status %d", bad, status)
		}
	}
}

func TestQuantile(t *testing.T) {
	times := []time.Duration{1, 2, 3, 4}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 3, 0.99: 4, 1: 4} {
		if got := quantile(times, q); got != want {
			t.Errorf("%v: %d, want %d", q, got, want)
		}
	}
	if got := quantile(nil, 0.5); got != 0 {
		t.Errorf("of none: %d", got)
	}
}

// TestSalvo counts what is answered as it should, and what is not.
func TestSalvo(t *testing.T) {
	asked := 0
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked++; asked%2 == 0 {
			w.WriteHeader(http.StatusTeapot)
		}
	}))
	t.Cleanup(web.Close)
	host := strings.TrimPrefix(web.URL, "http://")
	now := time.Now()
	s := salvo{begin: now.Add(-time.Hour), end: now.Add(100 * time.Millisecond)}
	s.fire(host, always(get(host, "/")), http.StatusOK)
	if answered := len(s.times) + s.errors; answered != asked || answered < 2 || s.errors != asked/2 || s.first == nil {
		t.Errorf("of %d requests %d were right, %d wrong: %v", asked, len(s.times), s.errors, s.first)
	}
}
