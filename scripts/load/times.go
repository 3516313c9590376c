package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/client"
)

type overheadCmd struct {
	Server string        `help:"Address of the server." required:"" placeholder:"URL"`
	Builds int           `help:"How many." default:"40"`
	First  int           `help:"Size of the first root file system in MiB; each next one is one larger, and so another image." default:"200"`
	Poll   time.Duration `help:"Pause between two polls." default:"5ms"`
}

// Run prints what a build costs beside make, and what of that is which step.
func (c *overheadCmd) Run() error {
	remote := &client.Client{URL: c.Server, Poll: c.Poll}
	var whole, overhead []time.Duration
	steps := map[string][]time.Duration{}
	for i := range c.Builds + 1 {
		took, timings, err := c.build(remote, c.First+i)
		if err != nil {
			return err
		}
		if i == 0 {
			continue // it may have fetched and unpacked the ImageBuilder
		}
		whole, overhead = append(whole, took), append(overhead, took-timings["make"])
		for step, time := range timings {
			steps[step] = append(steps[step], time)
		}
	}
	printTimes("POST to 200", whole)
	printTimes("POST to 200 without make", overhead)
	for _, step := range slices.Sorted(maps.Keys(steps)) {
		printTimes("  step "+step, steps[step])
	}
	return nil
}

// build has an image of its own made, and returns how long that took and what
// the server says about its steps.
func (c *overheadCmd) build(remote *client.Client, size int) (time.Duration, map[string]time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	request := client.Request{Version: "24.10.0", Target: "x86/64", Profile: "generic", Packages: []string{"nano", "tmux"}, RootfsSizeMB: &size}
	began := time.Now()
	built, err := remote.Wait(ctx, request, nil)
	took := time.Since(began)
	if err != nil {
		return 0, nil, err
	}
	var provenance struct {
		Result struct {
			Timings map[string]int64 `json:"timings"`
		} `json:"result"`
	}
	if err := getJSON(c.Server+"/store/"+built.BinDir+"/build.json", &provenance); err != nil {
		return 0, nil, err
	}
	timings := map[string]time.Duration{}
	for step, ms := range provenance.Result.Timings {
		timings[step] = time.Duration(ms) * time.Millisecond
	}
	return took, timings, nil
}

func getJSON(url string, to any) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(to)
}

type touchCmd struct {
	Server string `help:"Address of the server." required:"" placeholder:"URL"`
}

// Run asks every target of the newest version for a package that no feed has:
// to refuse it the server reads profiles and packages, and builds nothing.
func (c *touchCmd) Run() error {
	var overview struct {
		Branches map[string]struct {
			Versions []string          `json:"versions"`
			Targets  map[string]string `json:"targets"`
		} `json:"branches"`
	}
	if err := getJSON(c.Server+"/json/v1/overview.json", &overview); err != nil {
		return err
	}
	asked := 0
	for _, branch := range overview.Branches {
		for target := range branch.Targets {
			if err := c.ask(branch.Versions[0], target); err != nil {
				return err
			}
			asked++
		}
	}
	fmt.Printf("%-34s %d\n", "targets asked for", asked)
	return nil
}

func (c *touchCmd) ask(version, target string) error {
	for range 20 {
		body := fmt.Sprintf(`{"version":%q,"target":%q,"profile":"vendor_device-1","packages":["a-package-that-nobody-has"]}`, version, target)
		resp, err := http.Post(c.Server+"/api/v1/build", "application/json", strings.NewReader(body))
		if err != nil {
			return err
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		switch {
		case err != nil:
			return err
		case resp.StatusCode == http.StatusUnprocessableEntity:
			return nil
		case resp.StatusCode != http.StatusServiceUnavailable:
			return fmt.Errorf("%s %s: %s: %s", version, target, resp.Status, text)
		}
		time.Sleep(500 * time.Millisecond)
	}
	return fmt.Errorf("%s %s is not read in time", version, target)
}

type startCmd struct {
	Times   int      `help:"How often." default:"10"`
	Address string   `help:"Address that the server listens on." required:""`
	Command []string `arg:"" help:"Program and arguments." passthrough:""`
}

// Run prints the time from the start of the process to its first answer.
func (c *startCmd) Run() error {
	var times []time.Duration
	for range c.Times {
		took, err := c.once()
		if err != nil {
			return err
		}
		times = append(times, took)
	}
	printTimes("start to first answer", times)
	return nil
}

func (c *startCmd) once() (time.Duration, error) {
	cmd := exec.Command(c.Command[0], c.Command[1:]...)
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		_ = cmd.Process.Signal(os.Interrupt) // it is waited for anyway
		_ = cmd.Wait()
	}()
	for time.Since(began) < 20*time.Second {
		resp, err := http.Get("http://" + c.Address + "/healthz")
		if err == nil {
			resp.Body.Close()
			return time.Since(began), nil
		}
		time.Sleep(time.Millisecond)
	}
	return 0, fmt.Errorf("%s does not answer; run it by hand to see why", strings.Join(c.Command, " "))
}

type fsyncCmd struct {
	Dir   string `arg:"" help:"Folder on the disk in question." type:"existingdir"`
	Times int    `help:"How often." default:"200"`
}

func (c *fsyncCmd) Run() error {
	f, err := os.Create(filepath.Join(c.Dir, "fsync"))
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	var times []time.Duration
	for range c.Times {
		began := time.Now()
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		times = append(times, time.Since(began))
	}
	printTimes("fsync of 4 KB", times)
	return nil
}
