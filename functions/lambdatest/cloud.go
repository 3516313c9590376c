package lambdatest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/aws/awstest"
)

// Cloud stands between functions and AWS's services. DynamoDB, SQS and S3 are
// the engines of awstest; SSM's parameters, KMS's key and ECS's tasks are kept
// here.
type Cloud struct {
	engines map[string]http.Handler // by the service's name in X-Amz-Target, S3 has none
	environ []string

	mu         sync.Mutex
	counts     map[string]int // of calls by their operation
	bodies     map[string][]string
	rules      map[string]rule
	parameters map[string]Parameter
	started    int
	alive      int
	running    int           // calls at this moment
	since      time.Time     // when the first of these began
	waited     time.Duration // with one call or more, before that
	key        ed25519.PrivateKey
}

// Parameter is one of SSM's. Type is "String" or "SecureString".
type Parameter struct{ Value, Type string }

// Fault is what becomes of a call.
type Fault int

// The ways in which a service lets its callers down.
const (
	Works     Fault = iota
	Throttled       // refused, nothing happens
	Broken          // 500, nothing happens
	Lost            // 500, but everything happened
)

type rule struct {
	fault Fault
	times int // -1 = always
	spare int // calls that work before
}

// NewCloud starts a cloud with all services, which lives as long as the test.
func NewCloud(t testing.TB) *Cloud {
	c := NewSecrets(t)
	c.engines = map[string]http.Handler{
		"DynamoDB_20120810": proxy(t, awstest.DynamoDB(t)), "AmazonSQS": proxy(t, awstest.SQS(t)), "": proxy(t, awstest.S3(t)),
	}
	return c
}

// NewSecrets starts a cloud that has no engines, only what is kept here.
func NewSecrets(t testing.TB) *Cloud {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &Cloud{counts: map[string]int{}, bodies: map[string][]string{}, rules: map[string]rule{}, parameters: map[string]Parameter{}, key: key}
	server := httptest.NewServer(http.HandlerFunc(c.route))
	t.Cleanup(server.Close)
	c.environ = []string{
		"AWS_REGION=" + awstest.Region, "AWS_ACCESS_KEY_ID=" + awstest.AccessKey, "AWS_SECRET_ACCESS_KEY=" + awstest.SecretKey,
		"AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null",
		"AWS_ENDPOINT_URL=" + server.URL,
	}
	return c
}

func (c *Cloud) route(w http.ResponseWriter, r *http.Request) {
	service, operation, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	if service == "" {
		operation = "S3 " + r.Method
	}
	own := map[string]http.HandlerFunc{"AmazonSSM": c.ssm, "TrentService": c.kms, "AmazonEC2ContainerServiceV20141113": c.ecs}
	if handler, ok := own[service]; ok {
		c.pass(w, r, operation, handler)
	} else if engine, ok := c.engines[service]; ok {
		c.pass(w, r, operation, engine)
	} else {
		http.Error(w, "there is no service "+service+" in this test", http.StatusNotImplemented)
	}
}

// Environ are the variables by which the AWS SDK finds the cloud.
func (c *Cloud) Environ() []string { return c.environ }

// proxy passes requests on with their Host header, which their signature
// covers.
func proxy(t testing.TB, endpoint string) http.Handler {
	t.Helper()
	to, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	return &httputil.ReverseProxy{ErrorLog: log.New(io.Discard, "", 0), Rewrite: func(r *httputil.ProxyRequest) {
		r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = to.Scheme, to.Host, r.In.Host
	}}
}

// Fail makes the operation ("PutItem", "SendMessage", "GetParameter", "S3 PUT")
// fail so many times, -1 = from now on.
func (c *Cloud) Fail(operation string, fault Fault, times int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rules[operation] = rule{fault: fault, times: times}
}

// FailFrom makes the operation fail from the nth call (from 1) on.
func (c *Cloud) FailFrom(operation string, fault Fault, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rules[operation] = rule{fault: fault, times: -1, spare: n - 1}
}

// Counts returns how often each operation was called since the last time.
func (c *Cloud) Counts() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	counts := maps.Clone(c.counts)
	clear(c.counts)
	clear(c.bodies)
	return counts
}

// Bodies returns what was sent with an operation since the last Counts.
func (c *Cloud) Bodies(operation string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bodies[operation]
}

// next counts the call and tells what becomes of it.
func (c *Cloud) next(operation, body string) Fault {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[operation]++
	c.bodies[operation] = append(c.bodies[operation], body)
	r := c.rules[operation]
	switch {
	case r.times == 0:
		return Works
	case r.spare > 0:
		r.spare--
		c.rules[operation] = r
		return Works
	}
	r.times--
	c.rules[operation] = r
	return r.fault
}

// Waited is how long the cloud was at work for a call, or for several at once,
// since it began: what is not a function's own time.
func (c *Cloud) Waited() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waited
}

func (c *Cloud) enter() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running++; c.running == 1 {
		c.since = time.Now()
	}
}

func (c *Cloud) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running--; c.running == 0 {
		c.waited += time.Since(c.since)
	}
}

func (c *Cloud) pass(w http.ResponseWriter, r *http.Request, operation string, to http.Handler) {
	c.enter()
	defer c.leave()
	var body []byte
	if !strings.HasPrefix(operation, "S3") {
		body, _ = io.ReadAll(r.Body) // a caller that is gone sees nothing of it
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	switch c.next(operation, string(body)) {
	case Works:
		to.ServeHTTP(w, r)
	case Throttled:
		fail(w, operation, http.StatusBadRequest, "ThrottlingException")
	case Broken:
		fail(w, operation, http.StatusInternalServerError, "InternalServerError")
	case Lost:
		to.ServeHTTP(httptest.NewRecorder(), r)
		fail(w, operation, http.StatusInternalServerError, "InternalServerError")
	}
}

// fail answers as the services do: S3 in XML, with statuses of its own.
func fail(w http.ResponseWriter, operation string, status int, code string) {
	if !strings.HasPrefix(operation, "S3") {
		answer(w, status, map[string]any{"__type": "com.amazonaws#" + code, "message": "injected"})
		return
	}
	if code == "ThrottlingException" {
		status, code = http.StatusServiceUnavailable, "SlowDown"
	}
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>injected</Message></Error>", code)
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a caller that is gone sees nothing of it
}

// SetParameter puts a parameter of SSM.
func (c *Cloud) SetParameter(name, value string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.parameters[name] = Parameter{value, "SecureString"}
}

// Parameters are those of SSM.
func (c *Cloud) Parameters() map[string]Parameter {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.parameters)
}

func (c *Cloud) ssm(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Name, Value, Type string
		Overwrite         bool
	}
	if !decode(w, r, &in) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	stored, known := c.parameters[in.Name]
	switch put := strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".PutParameter"); {
	case put && known && !in.Overwrite:
		answer(w, http.StatusBadRequest, map[string]any{"__type": "ParameterAlreadyExists", "message": "The parameter already exists."})
	case put:
		c.parameters[in.Name] = Parameter{in.Value, in.Type}
		answer(w, http.StatusOK, map[string]any{"Version": 1, "Tier": "Standard"})
	case !known:
		answer(w, http.StatusBadRequest, map[string]any{"__type": "ParameterNotFound"})
	default:
		answer(w, http.StatusOK, map[string]any{"Parameter": map[string]any{"Name": in.Name, "Value": stored.Value, "Type": stored.Type, "Version": 1}})
	}
}

func decode(w http.ResponseWriter, r *http.Request, in any) bool {
	if err := json.NewDecoder(r.Body).Decode(in); err != nil {
		answer(w, http.StatusBadRequest, map[string]any{"__type": "SerializationException"})
		return false
	}
	return true
}

// Key is the public half of the only key in KMS, which has any name.
func (c *Cloud) Key() ed25519.PublicKey { return c.key.Public().(ed25519.PublicKey) }

func (c *Cloud) kms(w http.ResponseWriter, r *http.Request) {
	var in struct {
		KeyID            string `json:"KeyId"`
		Message          []byte
		MessageType      string
		SigningAlgorithm string
	}
	if !decode(w, r, &in) {
		return
	}
	if strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".Sign") {
		if in.MessageType != "RAW" || in.SigningAlgorithm != "ED25519_SHA_512" || len(in.Message) > 4096 {
			answer(w, http.StatusBadRequest, map[string]any{"__type": "ValidationException"})
			return
		}
		answer(w, http.StatusOK, map[string]any{"KeyId": in.KeyID, "Signature": ed25519.Sign(c.key, in.Message), "SigningAlgorithm": in.SigningAlgorithm})
		return
	}
	der, err := x509.MarshalPKIXPublicKey(c.Key())
	if err != nil {
		answer(w, http.StatusInternalServerError, map[string]any{"__type": "KMSInternalException"})
		return
	}
	answer(w, http.StatusOK, map[string]any{
		"KeyId": in.KeyID, "PublicKey": der, "KeySpec": "ECC_NIST_EDWARDS25519", "KeyUsage": "SIGN_VERIFY", "SigningAlgorithms": []string{"ED25519_SHA_512"},
	})
}

// Started is how many tasks ECS was asked to run until now.
func (c *Cloud) Started() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.started
}

// SetAlive sets how many tasks ECS lists.
func (c *Cloud) SetAlive(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.alive = n
}

func (c *Cloud) ecs(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Count         int
		DesiredStatus string
	}
	if !decode(w, r, &in) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".RunTask") {
		c.started += max(1, in.Count)
		answer(w, http.StatusOK, map[string]any{"tasks": tasks(max(1, in.Count)), "failures": []any{}})
		return
	}
	listed := []string{}
	for i := range c.alive {
		listed = append(listed, taskARN(i))
	}
	answer(w, http.StatusOK, map[string]any{"taskArns": listed})
}

func tasks(n int) []any {
	var list []any
	for i := range n {
		list = append(list, map[string]any{"taskArn": taskARN(i), "lastStatus": "PROVISIONING"})
	}
	return list
}

func taskARN(i int) string {
	return fmt.Sprintf("arn:aws:ecs:us-east-1:123456789012:task/test/%032d", i)
}
