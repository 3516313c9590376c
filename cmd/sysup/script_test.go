package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/attended-sysupgrade/sysup/scripts/instant"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// TestScript runs the program as its users do. Beside testscript's own
// commands the scripts have
//
//	exit N PROGRAM ARGS…  runs it and wants the exit status N
//	start ARGS…           runs sysup ARGS… until the script or finish ends it, and sets
//	                      $SYSUP_SERVER and $ADDRESS once it answers; server.log is its output
//	ready                 waits until the server has a catalogue
//	finish                ends it by SIGTERM and wants the exit status 0
//	certify STATUS FILE   has a new key certified with the token in the file and wants that answer
//	flip PATTERN          turns over a bit of the only file that matches, or back
//	age DIR DATA DAYS     makes a result be signed so many days ago, by the server of DATA
//
// and an upstream with its key in $SYSUP_UPSTREAM and $SYSUP_UPSTREAM_KEY.
func TestScript(t *testing.T) {
	up, url := instantUpstream(t, instant.Options{Versions: []string{"24.10.0", "25.12.0"}})
	var uid atomic.Int64
	uid.Store(65400)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Values["server"] = &running{}
			env.Vars = append(env.Vars, "SYSUP_UPSTREAM="+url, "SYSUP_UPSTREAM_KEY="+up.KeyFile, "SYSUP_LISTEN=127.0.0.1:0",
				"SYSUP_DATA="+filepath.Join(env.WorkDir, "data"), "SYSUP_BUILD_UID="+strconv.FormatInt(uid.Add(1), 10))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exit": exitCommand, "start": startCommand, "ready": readyCommand, "finish": finishCommand,
			"certify": certifyCommand, "flip": flipCommand, "age": ageCommand,
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

func exitCommand(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	if neg || err != nil || want == 0 {
		ts.Fatalf("usage: exit STATUS PROGRAM ARGS…, with a status other than 0")
	}
	err = ts.Exec(args[1], args[2:]...)
	failed, ok := errors.AsType[*exec.ExitError](err)
	if !ok || failed.ExitCode() != want {
		ts.Fatalf("%q ended with %v, want status %d", args[1:], err, want)
	}
}

// running is the server of a script.
type running struct {
	process *os.Process
	url     string
	ended   chan error
}

func scriptServer(ts *testscript.TestScript) *running { return ts.Value("server").(*running) }

var (
	addressInLog   = regexp.MustCompile(`msg="sysup serves" address=(http://(\S+))`)
	certifierInLog = regexp.MustCompile(`msg="sysup certifies workers" address=(http://\S+)/certify`)
)

func startCommand(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(ts.Exec("env"))
	cmd := exec.Command("sysup", args...)
	cmd.Env = strings.Split(strings.TrimSpace(ts.ReadFile("stdout")), "\n")
	cmd.Dir = ts.MkAbs(".")
	name := ts.MkAbs("server.log")
	log, err := os.Create(name)
	ts.Check(err)
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	ts.Check(cmd.Start())
	s := scriptServer(ts)
	s.process, s.ended = cmd.Process, make(chan error, 1)
	go func(ended chan error) { ended <- cmd.Wait() }(s.ended)
	ts.Defer(func() { s.end(os.Kill) })
	for range 1000 {
		text := ts.ReadFile(name)
		if found := addressInLog.FindStringSubmatch(text); found != nil {
			s.url = found[1]
			ts.Setenv("SYSUP_SERVER", found[1])
			ts.Setenv("ADDRESS", found[2])
			return
		}
		select {
		case err := <-s.ended:
			s.ended = nil
			ts.Fatalf("the server ended with %v:\n%s", err, text)
		case <-time.After(10 * time.Millisecond):
		}
	}
	ts.Fatalf("the server does not start:\n%s", ts.ReadFile(name))
}

// end waits for the process, once.
func (s *running) end(signal os.Signal) error {
	if s.ended == nil {
		return nil
	}
	_ = s.process.Signal(signal) // it may have ended by itself
	err := <-s.ended
	s.ended = nil
	return err
}

func readyCommand(ts *testscript.TestScript, neg bool, args []string) {
	for range 1000 {
		if resp, err := http.Get(scriptServer(ts).url + "/readyz"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("the server does not become ready:\n%s", ts.ReadFile("server.log"))
}

func finishCommand(ts *testscript.TestScript, neg bool, args []string) {
	if err := scriptServer(ts).end(syscall.SIGTERM); err != nil {
		ts.Fatalf("the server ended with %v:\n%s", err, ts.ReadFile("server.log"))
	}
}

func certifyCommand(ts *testscript.TestScript, neg bool, args []string) {
	found := certifierInLog.FindStringSubmatch(ts.ReadFile("server.log"))
	if found == nil {
		ts.Fatalf("the server does not say where it certifies:\n%s", ts.ReadFile("server.log"))
	}
	token, err := readToken(ts.MkAbs(args[1]))
	ts.Check(err)
	worker, err := usign.Generate("worker")
	ts.Check(err)
	_, err = askCertifier(found[1], token)(context.Background(), worker.Public().Fingerprint.String(), worker.Public().Key)
	if args[0] == "200" && err != nil || args[0] != "200" && (err == nil || !strings.Contains(err.Error(), " answered "+args[0]+" ")) {
		ts.Fatalf("it ended with %v, want status %s", err, args[0])
	}
}

// flipCommand changes a byte past the middle: the first line of keys and
// signatures is a comment that nothing covers.
func flipCommand(ts *testscript.TestScript, neg bool, args []string) {
	found, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(found) != 1 {
		ts.Fatalf("%s matches %q, it has to be one file", args[0], found)
	}
	text := []byte(ts.ReadFile(found[0]))
	text[len(text)*3/4] ^= 1
	ts.Check(os.WriteFile(found[0], text, 0o644))
}

func ageCommand(ts *testscript.TestScript, neg bool, args []string) {
	dir, data := ts.MkAbs(args[0]), ts.MkAbs(args[1])
	days, err := strconv.Atoi(args[2])
	ts.Check(err)
	keys, err := openKeys(filepath.Join(data, keysFolder))
	ts.Check(err)
	at := time.Now().AddDate(0, 0, -days).UTC().Truncate(time.Second)

	var provenance map[string]any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(filepath.Join(dir, usign.BuildFile))), &provenance))
	provenance["built_at"] = at
	text, err := json.Marshal(provenance)
	ts.Check(err)
	ts.Check(os.WriteFile(filepath.Join(dir, usign.BuildFile), text, 0o644))
	ts.Check(signAgain(dir, keys.sign, at))
}

// signAgain signs a changed result with a new worker's key, certified for the
// day after.
func signAgain(dir string, server usign.SecretKey, at time.Time) error {
	list, err := os.ReadFile(filepath.Join(dir, usign.SumsFile))
	if err != nil {
		return err
	}
	sums, err := usign.ParseSums(list)
	if err != nil {
		return err
	}
	build, err := os.ReadFile(filepath.Join(dir, usign.BuildFile))
	if err != nil {
		return err
	}
	sums[usign.BuildFile] = sha256.Sum256(build)
	list, err = sums.Marshal()
	if err != nil {
		return err
	}
	worker, err := usign.Generate("worker")
	if err != nil {
		return err
	}
	public, sig, err := usign.Certify(server, "test", worker.Public().Key, at, at.Add(24*time.Hour))
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, usign.SumsFile), list, 0o644),
		os.WriteFile(filepath.Join(dir, usign.SumsSigFile), worker.Sign(list).Marshal(), 0o644),
		os.WriteFile(filepath.Join(dir, usign.WorkerFile), public, 0o644),
		os.WriteFile(filepath.Join(dir, usign.WorkerSigFile), sig, 0o644),
	)
}
