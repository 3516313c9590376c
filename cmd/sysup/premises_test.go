package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/scripts/instant"
	"github.com/attended-sysupgrade/sysup/shared/aws"
	"github.com/attended-sysupgrade/sysup/shared/aws/awstest"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/client"
)

// premises are what an operator has who runs servers and workers on machines of
// his own: the program, three engines, a file of variables, a token.
type premises struct {
	*testing.T
	dir string
	env []string
}

func newPremises(t *testing.T, options instant.Options) *premises {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test runs builds as another user; run it as root")
	}
	options.Versions = []string{"24.10.0"}
	up, upstream := instantUpstream(t, options)
	p := &premises{T: t, dir: t.TempDir()}
	if err := os.WriteFile(p.path("token"), []byte(strings.Repeat("t", 32)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.env = append(awstest.Environment(t), "PATH="+os.Getenv("PATH"), "SYSUP_UPSTREAM="+upstream, "SYSUP_UPSTREAM_KEY="+up.KeyFile)
	return p
}

func (p *premises) path(name string) string { return filepath.Join(p.dir, name) }

func (p *premises) command(args ...string) *exec.Cmd {
	p.Helper()
	file, err := program()
	if err != nil {
		p.Fatal(err)
	}
	cmd := exec.Command(file, args...)
	cmd.Env = p.env
	return cmd
}

// run runs a command to its end, which has to be good, and returns what it
// prints.
func (p *premises) run(args ...string) string {
	p.Helper()
	output, err := p.command(args...).Output()
	if err != nil {
		p.Fatalf("sysup %q: %v", args, err)
	}
	return string(output)
}

// prepare makes what is missing and takes the settings that are printed.
func (p *premises) prepare(name string) string {
	p.Helper()
	text := p.run("prepare", "--table", name, "--queue", name, "--bucket", name)
	comment, settings, _ := strings.Cut(strings.TrimSpace(text), "\n")
	p.env = append(p.env, strings.Split(settings, "\n")...)
	return comment
}

// serving is a `sysup serve` that answers.
type serving struct {
	*workerProcess
	url, certifier string
}

var (
	servesAt    = regexp.MustCompile(`msg="sysup serves" address=http://(\S+)`)
	certifiesAt = regexp.MustCompile(`msg="sysup certifies workers" address=http://(\S+)/certify`)
)

func (p *premises) serve(data, listen, certify string, workers int) serving {
	p.Helper()
	w := launch(p.T, p.command("serve", "--workers", fmt.Sprint(workers), "--build-uid", fmt.Sprint(67000+workerUID.Add(1)), "--data", p.path(data),
		"--listen", listen, "--certify-listen", certify, "--certify-token-file", p.path("token")), "")
	for begin := time.Now(); time.Since(begin) < 30*time.Second && !w.hasEnded(50*time.Millisecond); {
		log := w.log.String()
		at, certifier := servesAt.FindStringSubmatch(log), certifiesAt.FindStringSubmatch(log)
		if at == nil || certifier == nil {
			continue
		}
		if resp, err := http.Get("http://" + at[1] + "/readyz"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return serving{w, at[1], certifier[1]}
			}
		}
	}
	p.Fatalf("the server is not ready:\n%s", w.log)
	panic("unreachable")
}

func (p *premises) worker(data, certifier string) *workerProcess {
	p.Helper()
	return launch(p.T, p.command("worker", "--idle", "0", "--data", p.path(data), "--build-uid", fmt.Sprint(67000+workerUID.Add(1)),
		"--certifier", "http://"+certifier, "--certifier-token-file", p.path("token")), "")
}

// build asks the server for an image with the package.
func (p *premises) build(server, name string) *workerProcess {
	p.Helper()
	return launch(p.T, p.command("build", "--server", "http://"+server, "--version", "24.10.0", "--target", "x86/64", "--profile", "generic",
		"--package", name, "--output", p.path("image-"+name), "--key", p.path("serve/keys/server.pub"), "--poll", "100ms"), "")
}

// killBusy kills the worker that has a job in its data folder.
func (p *premises) killBusy(workers map[string]*workerProcess) {
	p.Helper()
	for data, w := range workers {
		if jobs, err := os.ReadDir(filepath.Join(p.path(data), scratchFolder)); err != nil || len(jobs) == 0 {
			continue
		}
		if err := w.kill(); err != nil {
			p.Fatal(err)
		}
		delete(workers, data)
	}
	if len(workers) != 1 {
		p.Fatalf("%d workers are left, want 1", len(workers))
	}
}

// TestOnPremises is docs/deploy.md's "On premises", with the same commands:
// two workers build for a server that keeps nothing but its keys; the server
// is started anew and a worker is killed while a client waits; a second server
// joins the first.
func TestOnPremises(t *testing.T) {
	t.Parallel()
	p, name := newPremises(t, instant.Options{Before: "sleep 2"}), awstest.Name()
	if said := p.prepare(name); !strings.Contains(said, "queue "+name+"-dead") {
		t.Errorf("prepare says %q", said)
	}
	if said := p.prepare(name); !strings.Contains(said, "all of it was there") {
		t.Errorf("prepare says %q when all is there", said)
	}
	server := p.serve("serve", "127.0.0.1:0", "127.0.0.1:0", 0)
	workers := map[string]*workerProcess{"one": p.worker("one", server.certifier), "two": p.worker("two", server.certifier)}
	p.build(server.url, "nano").leaves(60 * time.Second)
	p.run("verify", "--key", p.path("serve/keys/server.pub"), p.path("image-nano"))

	waiting := p.build(server.url, "htop")
	cloud := p.cloud(name)
	records := cloud.Records()
	id := p.await(records, server.url, "htop")
	p.killBusy(workers)
	server.stop()
	if waiting.hasEnded(0) {
		t.Fatalf("the client gave up:\n%s", waiting.log)
	}
	dead := cloud.QueueFor(awstest.SQS(t)+"/000000000000/"+name+"-dead", time.Minute)
	if err := dead.Send(t.Context(), id, build.ClassInteractive, ""); err != nil {
		t.Fatal(err)
	}
	server = p.serve("serve", server.url, server.certifier, 0)
	p.endLease(records, id)
	waiting.leaves(60 * time.Second)
	if !strings.Contains(waiting.log.String(), "verified: ") {
		t.Errorf("the client says\n%s", waiting.log)
	}
	if rec, err := records.Get(t.Context(), id); err != nil || rec.Attempts != 2 || rec.State != build.Done {
		t.Errorf("the build is %s after %d attempts (%v)", rec.State, rec.Attempts, err)
	}
	for begin := time.Now(); !strings.Contains(server.log.String(), "dead_letters=1"); time.Sleep(50 * time.Millisecond) {
		if time.Since(begin) > 10*time.Second {
			t.Fatalf("no word of a dead letter in the server's log:\n%s", server.log)
		}
	}
	for _, w := range workers {
		w.stop()
	}
	p.secondServer(server)
	server.stop()
}

func (p *premises) cloud(name string) *aws.Cloud {
	p.Helper()
	for _, variable := range awstest.Environment(p.T) {
		key, value, _ := strings.Cut(variable, "=")
		os.Setenv(key, value) // the same for all tests of the process
	}
	settings := aws.Settings{Table: name, QueueURL: awstest.SQS(p.T) + "/000000000000/" + name, Bucket: name}
	cloud, err := aws.Open(p.Context(), settings, testLog(p.T))
	if err != nil {
		p.Fatal(err)
	}
	return cloud
}

// await waits until the ImageBuilder of the build runs, and returns its ID.
func (p *premises) await(records build.Records, server, name string) build.ID {
	p.Helper()
	remote := &client.Client{URL: "http://" + server}
	for begin := time.Now(); time.Since(begin) < 30*time.Second; time.Sleep(50 * time.Millisecond) {
		status, err := remote.Submit(p.Context(), usual(name)) // joins the client's
		if err != nil {
			p.Fatal(err)
		}
		if rec, err := records.Get(p.Context(), build.ID(status.RequestHash)); err == nil && making(rec) {
			return rec.ID
		}
	}
	p.Fatal("no worker builds")
	panic("unreachable")
}

// endLease ends by hand what lasts a minute. The rest is the client's polls':
// the build is due, so one of them sends it again.
func (p *premises) endLease(records build.Records, id build.ID) {
	p.Helper()
	lost, err := records.Get(p.Context(), id)
	if err != nil || lost.State != build.Building {
		p.Fatalf("the lost build is %s (%v)", lost.State, err)
	}
	stale := lost
	stale.LeaseUntil = build.Now().Add(-build.LeaseMargin - time.Second)
	stale.DueAt = build.Now().Add(-time.Second)
	if err := records.Replace(p.Context(), lost, stale); err != nil {
		p.Fatal(err)
	}
}

// secondServer: one with a key of its own is refused; with the first one's keys
// it answers as that one does, and it may have a worker, which builds for both.
func (p *premises) secondServer(first serving) {
	p.Helper()
	foreign := launch(p.T, p.command("serve", "--workers", "0", "--data", p.path("second"), "--listen", "127.0.0.1:0"), "")
	if !foreign.hasEnded(20*time.Second) || foreign.cmd.ProcessState.ExitCode() != exitFailure ||
		!strings.Contains(foreign.log.String(), "of another server") {
		p.Fatalf("a server with another key ended with %v:\n%s", foreign.err, foreign.log)
	}
	keys := p.path("second/keys")
	if err := os.RemoveAll(keys); err != nil {
		p.Fatal(err)
	}
	if err := os.CopyFS(keys, os.DirFS(p.path("serve/keys"))); err != nil {
		p.Fatal(err)
	}
	second := p.serve("second", "127.0.0.1:0", "127.0.0.1:0", 1)
	for _, server := range []string{first.url, second.url} {
		remote := &client.Client{URL: "http://" + server}
		if status, err := remote.Submit(p.Context(), usual("nano")); err != nil || !status.Done() {
			p.Errorf("%s says %+v of what is built (%v)", server, status, err)
		}
	}
	p.build(first.url, "tmux").leaves(60 * time.Second)
	second.stop()
}

// TestServeKeepsSecrets: what a server with workers keeps from its builds.
func TestServeKeepsSecrets(t *testing.T) {
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/etc/sysup/credentials")
	for _, test := range []struct {
		name string
		c    serveCmd
		want []string
		not  string
	}{
		{"alone", serveCmd{}, nil, "/etc/sysup/credentials"},
		{"with a certifier", serveCmd{certifyFlags: certifyFlags{CertifyTokenFile: "/etc/sysup/token"}}, []string{"/etc/sysup/token"}, "-"},
		{"with shared stores", serveCmd{storeFlags: storeFlags{Table: "sysup"}}, []string{"/etc/sysup/credentials"}, "/etc/sysup/token"},
	} {
		test.c.Data = "/srv/sysup"
		hidden := (&server{serveCmd: test.c}).hidden()
		for _, file := range append(test.want, "/srv/sysup/keys", "/srv/sysup/records", "/srv/sysup/objects") {
			if !slices.Contains(hidden, file) {
				t.Errorf("%s: %s is not among %q", test.name, file, hidden)
			}
		}
		if slices.Contains(hidden, test.not) {
			t.Errorf("%s: %s is among %q", test.name, test.not, hidden)
		}
	}
}
