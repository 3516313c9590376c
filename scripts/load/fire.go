package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/client"
)

type fireCmd struct {
	Server      string        `help:"Address of the server." required:"" placeholder:"URL"`
	Kind        string        `help:"poll (GET of a finished build), same (POST of its request), new (POSTs that all differ) or overview." enum:"poll,same,new,overview" required:""`
	Connections int           `help:"Connections, each with one request at a time." default:"16"`
	Time        time.Duration `help:"How long to count." default:"3s"`
	Warmup      time.Duration `help:"How long to fire before." default:"500ms"`
	Process     int           `help:"Process number of the server, to tell what processor time it spends." placeholder:"PID"`
}

// Run prints one line: how many requests were answered in a second, how long
// that took each, how many were not answered as they should.
func (c *fireCmd) Run() error {
	server, err := url.Parse(c.Server)
	if err != nil {
		return err
	}
	request, wanted, err := c.requests(server.Host)
	if err != nil {
		return err
	}
	var salvo salvo
	salvo.begin = time.Now().Add(c.Warmup)
	salvo.end = salvo.begin.Add(c.Time)
	var wait sync.WaitGroup
	for range c.Connections {
		wait.Go(func() { salvo.fire(server.Host, request, wanted) })
	}
	time.Sleep(c.Warmup)
	theirs, ours := processorTime(strconv.Itoa(c.Process)), processorTime("self")
	time.Sleep(c.Time)
	theirs, ours = processorTime(strconv.Itoa(c.Process))-theirs, processorTime("self")-ours
	wait.Wait()
	slices.Sort(salvo.times)
	each := time.Duration(max(1, len(salvo.times)))
	fmt.Printf("%-34s %7.0f/s, p50 %s ms, p99 %s ms, max %s ms, processor %d us + %d us here, %d errors\n",
		fmt.Sprintf("%s, %d connections", c.Kind, c.Connections), float64(len(salvo.times))/c.Time.Seconds(),
		ms(quantile(salvo.times, 0.5)), ms(quantile(salvo.times, 0.99)), ms(quantile(salvo.times, 1)),
		(theirs / each).Microseconds(), (ours / each).Microseconds(), salvo.errors)
	if salvo.first != nil {
		return fmt.Errorf("the first of %d errors: %w", salvo.errors, salvo.first)
	}
	return nil
}

// processorTime is what a process has spent so far, 0 if there is none.
func processorTime(process string) time.Duration {
	own, _ := processorTimes(process)
	return own
}

// processorTimes are what a process has spent so far, and what those had that
// it waited for.
func processorTimes(process string) (own, children time.Duration) {
	text, err := os.ReadFile("/proc/" + process + "/stat")
	if err != nil {
		return 0, 0
	}
	_, after, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(after)
	if len(fields) < 15 {
		return 0, 0
	}
	return ticks(fields[11:13]), ticks(fields[13:15])
}

// ticks adds times as the kernel prints them, in units of USER_HZ.
func ticks(fields []string) (sum time.Duration) {
	for _, field := range fields {
		n, err := strconv.Atoi(field)
		if err != nil {
			return 0
		}
		sum += time.Duration(n) * (time.Second / 100)
	}
	return sum
}

// requests returns what makes the bytes of one request after the other, and
// the status that answers them.
func (c *fireCmd) requests(host string) (next func() []byte, wanted int, err error) {
	if c.Kind == "overview" {
		return always(get(host, "/json/v1/overview.json")), http.StatusOK, nil
	}
	order, hash, err := c.order()
	if err != nil {
		return nil, 0, err
	}
	body, err := json.Marshal(order)
	if err != nil {
		return nil, 0, err
	}
	switch c.Kind {
	case "poll":
		return always(get(host, "/api/v1/build/"+hash)), http.StatusOK, nil
	case "same":
		return always(post(host, body)), http.StatusOK, nil
	}
	// Each asks for another version of one package: so nothing is shared.
	before, after, found := bytes.Cut(body, []byte(`"nano":"`))
	if !found {
		return nil, 0, errors.New("the build has no nano")
	}
	var count atomic.Int64
	count.Store(time.Now().UnixMicro())
	return func() []byte {
		return post(host, slices.Concat(before, []byte(`"nano":"`+strconv.FormatInt(count.Add(1), 36)+"-"), after))
	}, http.StatusAccepted, nil
}

// order is what a router sends that wants to keep its packages: all of them
// with their versions. It comes with the hash of its build, which is done, but
// for new ones, of which nothing is built.
func (c *fireCmd) order() (client.Request, string, error) {
	order := client.Request{Distro: "openwrt", Version: "24.10.0", Target: "x86/64", Profile: "generic", Packages: []string{"nano", "htop", "tmux"}, Client: "load/1"}
	if c.Kind == "new" {
		return keeping(order, known), "", nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	remote := client.Client{URL: c.Server, Poll: 20 * time.Millisecond}
	built, err := remote.Wait(ctx, order, nil)
	if err != nil {
		return order, "", err
	}
	order = keeping(order, built.Manifest)
	built, err = remote.Wait(ctx, order, nil)
	return order, built.RequestHash, err
}

func keeping(order client.Request, installed map[string]string) client.Request {
	order.DiffPackages, order.PackagesVersions = true, installed
	order.Packages = slices.Sorted(maps.Keys(installed))
	return order
}

// known are packages that the instant upstream has.
var known = map[string]string{
	"base-files": "1700~r28427-6df0e3d02a", "busybox": "1.36.1-r2", "ca-bundle": "20240203-r1", "dnsmasq": "2.90-r4",
	"dropbear": "2024.86-r1", "firewall4": "2024.12.18~18fc0ead-r1", "fstools": "2024.07.14~408c2cc4-r1", "htop": "3.3.0-r1",
	"jansson": "2.14-r3", "kernel": "6.6.73~60a938df1b4c2f8f0c1e2d3a4b5c6d7e-r1", "kmod-e1000": "6.6.73-r1", "kmod-igb": "6.6.73-r1",
	"kmod-r8169": "6.6.73-r1", "libc": "1.2.5-r4", "libfoo2": "1.0-r1", "libubox": "2024.03.29~eb9bcb64-r1", "logd": "2024.04.26~85f10530-r1",
	"luci": "24.339", "luci-base": "24.339", "mtd": "26", "nano": "8.3-r1", "netifd": "2024.12.17~ea01ed41-r1",
	"procd": "2024.12.22~42d39376-r1", "tmux": "3.4-r1", "uci": "2023.08.10~5781664d-r1", "urandom-seed": "3",
}

func always(request []byte) func() []byte { return func() []byte { return request } }

func get(host, path string) []byte {
	return fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: load\r\n\r\n", path, host)
}

func post(host string, body []byte) []byte {
	head := fmt.Appendf(nil, "POST /api/v1/build HTTP/1.1\r\nHost: %s\r\nUser-Agent: load\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", host, len(body))
	return append(head, body...)
}

// salvo is what came of all connections.
type salvo struct {
	begin, end time.Time

	mu     sync.Mutex
	times  []time.Duration
	errors int
	first  error
}

// fire uses one connection until the end. It is as bare as can be, since the
// server works on the same processors.
func (s *salvo) fire(host string, next func() []byte, wanted int) {
	var times []time.Duration
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.times = append(s.times, times...)
	}()
	connection, err := net.Dial("tcp", host)
	if err != nil {
		s.missed(err)
		return
	}
	defer connection.Close()
	answers := bufio.NewReaderSize(connection, 64<<10)
	for began := time.Now(); began.Before(s.end); {
		if _, err := connection.Write(next()); err != nil {
			s.missed(err)
			return
		}
		status, err := readAnswer(answers)
		if err != nil {
			s.missed(err)
			return
		}
		now := time.Now()
		switch {
		case status != wanted:
			s.missed(fmt.Errorf("status %d instead of %d", status, wanted))
		case began.After(s.begin):
			times = append(times, now.Sub(began))
		}
		began = now
	}
}

func (s *salvo) missed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errors++
	if s.first == nil {
		s.first = err
	}
}

// readAnswer reads an answer with Content-Length, which all of sysup's have,
// and returns its status.
func readAnswer(r *bufio.Reader) (status int, err error) {
	line, err := r.ReadSlice('\n')
	if err != nil || len(line) < len("HTTP/1.1 200") {
		return 0, fmt.Errorf("no answer: %q, %w", line, err)
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, err
	}
	length := -1
	for {
		line, err = r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		if line = bytes.TrimSpace(line); len(line) == 0 {
			break
		}
		if value, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			if length, err = strconv.Atoi(string(value)); err != nil {
				return 0, err
			}
		}
	}
	if length < 0 {
		return 0, errors.New("an answer without Content-Length")
	}
	_, err = io.CopyN(io.Discard, r, int64(length))
	return status, err
}
