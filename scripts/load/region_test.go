package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/events"

	"github.com/attended-sysupgrade/sysup/functions/lambdatest"
	"github.com/attended-sysupgrade/sysup/scripts/instant"
	"github.com/attended-sysupgrade/sysup/shared/aws"
	"github.com/attended-sysupgrade/sysup/shared/aws/awstest"
	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// region is the deployment on AWS without AWS: the engines, an upstream, the
// compiled functions behind a runtime like Lambda's, builders as processes.
type region struct {
	testing.TB
	folder   string // of binaries and secrets, and of the builders' data
	environ  []string
	settings aws.Settings
	records  build.Records
	objects  build.Objects
	server   usign.PublicKey
	url      string // of the API
	api      []*lambdatest.Function
	keeper   *lambdatest.Function
	builders int // started until now
}

// serverPub is the name of the parameter with the server's public key.
const serverPub = "/sysup/load/server-pub"

// newRegion has an upstream whose ImageBuilder waits that long, and so many
// API functions at once.
func newRegion(t testing.TB, wait time.Duration, functions int) *region {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("builders run the ImageBuilder as another user; run this as root")
	}
	r := &region{TB: t, folder: t.TempDir(), environ: append(awstest.Environment(t), "PATH="+os.Getenv("PATH"))}
	r.compile("sysup", "../../cmd/sysup")
	for _, name := range []string{"api", "housekeeper", "certifier"} {
		r.compile(name, "../../functions/"+name)
	}
	r.openStores()
	r.serveCertifier()
	r.serveUpstream(wait)
	r.keeper = r.function("housekeeper", "SYSUP_DEAD_LETTERS_URL="+r.settings.DeadLettersURL, "SYSUP_SERVER_PUB=ssm:"+serverPub)
	if err := r.keepHouse(); err != nil {
		t.Fatalf("the housekeeper: %v", err) // without a catalogue no request is taken
	}
	r.serveAPI(functions)
	return r
}

// compile makes a binary of this machine's architecture as it is deployed.
func (r *region) compile(name, from string) {
	r.Helper()
	cmd := exec.CommandContext(r.Context(), "go", "build", "-tags", "lambda.norpc", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(r.folder, name), from)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		r.Fatalf("build %s: %v\n%s", name, err, out)
	}
}

// ownEnvironment leads this process's calls to the engines, which are its own.
var ownEnvironment sync.Once

func (r *region) openStores() {
	r.Helper()
	ownEnvironment.Do(func() {
		for _, variable := range awstest.Environment(r) {
			name, value, _ := strings.Cut(variable, "=")
			if err := os.Setenv(name, value); err != nil {
				r.Fatal(err)
			}
		}
	})
	r.settings = aws.Settings{Table: awstest.Table(r, aws.CreateTable), Bucket: awstest.Bucket(r)}
	r.settings.QueueURL, r.settings.DeadLettersURL = awstest.Queue(r, time.Minute, 20)
	cloud, err := aws.Open(r.Context(), r.settings, slog.New(slog.DiscardHandler))
	if err != nil {
		r.Fatal(err)
	}
	r.records, r.objects = cloud.Records(), cloud.Objects()
	r.environ = append(r.environ, "SYSUP_TABLE="+r.settings.Table, "SYSUP_QUEUE_URL="+r.settings.QueueURL, "SYSUP_BUCKET="+r.settings.Bucket)
}

func (r *region) serveUpstream(wait time.Duration) {
	r.Helper()
	u, err := instant.Write(r.TempDir(), instant.Options{Versions: []string{"24.10.0"}, Before: fmt.Sprintf("sleep %g", wait.Seconds())})
	if err != nil {
		r.Fatal(err)
	}
	web := httptest.NewServer(http.FileServer(http.Dir(u.Dir)))
	r.Cleanup(web.Close)
	r.environ = append(r.environ, "SYSUP_UPSTREAM="+web.URL, "SYSUP_UPSTREAM_KEY="+u.KeyFile)
}

// secret writes a file and returns its reference.
func (r *region) secret(name, text string) string {
	r.Helper()
	file := filepath.Join(r.folder, name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		r.Fatal(err)
	}
	return "file:" + file
}

// function starts a function with more variables.
func (r *region) function(name string, environ ...string) *lambdatest.Function {
	r.Helper()
	return lambdatest.Start(r, filepath.Join(r.folder, name), append(environ, r.environ...)...)
}

// serveCertifier serves as much of Lambda's API as builders use, and of SSM's
// as the housekeeper does, who asks for the public key.
func (r *region) serveCertifier() {
	r.Helper()
	key, err := usign.Generate("server of the benchmark")
	if err != nil {
		r.Fatal(err)
	}
	r.server = key.Public()
	certifier := r.function("certifier", "SYSUP_SERVER_KEY="+r.secret("server.key", string(key.Marshal())))
	mux := http.NewServeMux()
	mux.HandleFunc("POST /2015-03-31/functions/certifier/invocations", func(w http.ResponseWriter, request *http.Request) {
		event, err := io.ReadAll(request.Body)
		answer, callErr := certifier.Call(json.RawMessage(event))
		if err != nil || callErr != nil {
			w.Header().Set("X-Amz-Function-Error", "Unhandled")
		}
		w.Write(answer)
	})
	mux.HandleFunc("POST /{$}", func(w http.ResponseWriter, request *http.Request) {
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		json.NewEncoder(w).Encode(map[string]any{"Parameter": map[string]string{
			"Name": serverPub, "Type": "String", "Value": string(key.Public().Marshal()),
		}})
	})
	web := httptest.NewServer(mux)
	r.Cleanup(web.Close)
	r.environ = append(r.environ, "AWS_ENDPOINT_URL_LAMBDA="+web.URL, "AWS_ENDPOINT_URL_SSM="+web.URL)
}

// keepHouse does what a schedule does on AWS.
func (r *region) keepHouse() error {
	_, err := r.keeper.Call(map[string]string{"source": "aws.events"})
	return err
}

// serveAPI does what API Gateway and Lambda do: one event at a time for each
// function.
func (r *region) serveAPI(functions int) {
	r.Helper()
	secret := r.secret("request.secret", strings.Repeat("0123456789abcdef", 4))
	free := make(chan *lambdatest.Function, functions)
	for range functions {
		f := r.function("api", "SYSUP_REQUEST_SECRET="+secret, "SYSUP_MAX_PENDING=0", "SYSUP_BUILDS_PER_DAY=0", "SYSUP_BUILDS_PER_CLIENT=0")
		r.api = append(r.api, f)
		free <- f
	}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(request.Body)
		if err != nil {
			return // the client is gone
		}
		f := <-free
		text, err := f.Call(event(request, body))
		free <- f
		if err == nil {
			err = pass(w, text)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
		}
	}))
	r.Cleanup(web.Close)
	r.url = web.URL
}

// event is a request as API Gateway hands it to a function.
func event(request *http.Request, body []byte) events.APIGatewayV2HTTPRequest {
	e := events.APIGatewayV2HTTPRequest{
		Version: "2.0", RouteKey: "$default", RawPath: request.URL.EscapedPath(), RawQueryString: request.URL.RawQuery, Body: string(body),
		Headers: map[string]string{"host": request.Host, "content-type": request.Header.Get("Content-Type")},
	}
	e.RequestContext.HTTP.Method, e.RequestContext.HTTP.SourceIP = request.Method, "127.0.0.1"
	return e
}

// pass hands a function's answer to the client.
func pass(w http.ResponseWriter, text []byte) error {
	var answer events.APIGatewayV2HTTPResponse
	if err := json.Unmarshal(text, &answer); err != nil {
		return err
	}
	body := []byte(answer.Body)
	if answer.IsBase64Encoded {
		var err error
		if body, err = base64.StdEncoding.DecodeString(answer.Body); err != nil {
			return err
		}
	}
	for name, value := range answer.Headers {
		w.Header().Set(name, value)
	}
	w.WriteHeader(answer.StatusCode)
	_, err := w.Write(body)
	return err
}
