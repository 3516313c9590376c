package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/attended-sysupgrade/sysup/functions/lambdatest"
	"github.com/attended-sysupgrade/sysup/shared/aws"
	"github.com/attended-sysupgrade/sysup/shared/aws/awstest"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

func generate(t testing.TB) usign.SecretKey {
	t.Helper()
	key, err := usign.Generate("")
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func question(t testing.TB) aws.CertifyRequest {
	public := generate(t).Public()
	return aws.CertifyRequest{Worker: public.Fingerprint.String(), Key: public.Key}
}

// rig is a bucket in a cloud, with the server's key in SSM.
type rig struct {
	cloud   *lambdatest.Cloud
	bucket  string
	server  usign.SecretKey
	environ []string
}

func newRig(t testing.TB, keyRef string) *rig {
	r := &rig{cloud: lambdatest.NewCloud(t), bucket: awstest.Bucket(t), server: generate(t)}
	r.cloud.SetParameter("/sysup/main/server-key", string(r.server.Marshal()))
	r.environ = append(r.cloud.Environ(), "SYSUP_BUCKET="+r.bucket, "SYSUP_SERVER_KEY="+keyRef)
	return r
}

// object reads what the function has stored, by another way than its own, nil
// if there is none.
func (r *rig) object(t testing.TB, key string) []byte {
	t.Helper()
	out, err := awstest.S3Client(t).GetObject(t.Context(), &s3.GetObjectInput{Bucket: &r.bucket, Key: &key})
	if _, ok := errors.AsType[*types.NoSuchKey](err); ok {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	body, err := io.ReadAll(out.Body)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

const inSSM = "ssm:/sysup/main/server-key"

func TestBinaryCertifies(t *testing.T) {
	binary := lambdatest.Build(t, runtime.GOARCH)
	for _, ref := range []string{inSSM, "kms:alias/sysup"} {
		r := newRig(t, ref)
		server := r.server.Public()
		if ref != inSSM {
			server = usign.PublicKey{Fingerprint: usign.FingerprintOf(r.cloud.Key()), Key: r.cloud.Key()}
		}
		f := lambdatest.Start(t, binary, r.environ...)
		q := question(t)
		for range 2 { // the second as if the first one's answer was lost
			var answer aws.CertifyAnswer
			f.Invoke(t, q, &answer)
			text, err := json.Marshal(answer)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := aws.ParseCertifyAnswer(text, q.Key); err != nil {
				t.Errorf("%s: %v", ref, err)
			}
			if err := usign.VerifyFile([]usign.PublicKey{server}, answer.PublicKey, answer.Signature); err != nil {
				t.Errorf("%s: %v", ref, err)
			}
			name := "keys/worker-" + q.Worker + ".pub"
			if !bytes.Equal(r.object(t, name), answer.PublicKey) || !bytes.Equal(r.object(t, name+".sig"), answer.Signature) {
				t.Errorf("%s: what is stored is not what was returned", ref)
			}
		}
		stored, err := usign.ParsePublicKey(r.object(t, "keys/server.pub"))
		if err != nil || !stored.Key.Equal(server.Key) || stored.Fingerprint != server.Fingerprint {
			t.Errorf("%s: keys/server.pub is %+v (%v)", ref, stored, err)
		}
		if secret := string(r.server.Marshal()); strings.Contains(f.Output(), strings.Fields(secret)[4]) {
			t.Error("the log has the server's key")
		}
	}
}

func TestBinaryRefuses(t *testing.T) {
	r := newRig(t, inSSM)
	f := lambdatest.Start(t, lambdatest.Build(t, runtime.GOARCH), r.environ...)
	good := question(t)
	for what, event := range map[string]any{
		"another key's name": aws.CertifyRequest{Worker: question(t).Worker, Key: good.Key},
		"a path for a name":  aws.CertifyRequest{Worker: "../server", Key: good.Key},
		"a short key":        aws.CertifyRequest{Worker: good.Worker, Key: good.Key[:31]},
		"no key":             aws.CertifyRequest{Worker: good.Worker},
		"a list":             []int{1},
		"a text":             "x",
		"a long name":        aws.CertifyRequest{Worker: strings.Repeat("a", 1<<20), Key: good.Key},
	} {
		if answer, err := f.Call(event); err == nil {
			t.Errorf("%s was certified: %s", what, answer)
		}
	}
	if r.object(t, "keys/worker-"+good.Worker+".pub") != nil {
		t.Error("a certificate was stored for what was refused")
	}
	var answer aws.CertifyAnswer
	f.Invoke(t, good, &answer) // and it goes on
}

// TestFaults has each service fail, for a while and for good.
func TestFaults(t *testing.T) {
	binary := lambdatest.Build(t, runtime.GOARCH)
	for _, operation := range []string{"GetParameter", "S3 PUT"} {
		for name, fault := range map[string]lambdatest.Fault{"throttled": lambdatest.Throttled, "broken": lambdatest.Broken, "lost": lambdatest.Lost} {
			t.Run(operation+" "+name, func(t *testing.T) {
				t.Parallel()
				r := newRig(t, inSSM)
				f := lambdatest.Start(t, binary, r.environ...)
				q := question(t)
				r.cloud.Fail(operation, fault, -1)
				if answer, err := f.Call(q); err == nil {
					t.Errorf("while it fails, the answer is %s", answer)
				}
				r.cloud.Fail(operation, fault, 1)
				var answer aws.CertifyAnswer
				f.Invoke(t, q, &answer)
				if err := usign.VerifyFile([]usign.PublicKey{r.server.Public()}, answer.PublicKey, answer.Signature); err != nil {
					t.Error(err)
				}
				if !bytes.Equal(r.object(t, "keys/worker-"+q.Worker+".pub"), answer.PublicKey) {
					t.Error("what is stored is not what was returned")
				}
			})
		}
	}
}

func TestWrongSettings(t *testing.T) {
	binary := lambdatest.Build(t, runtime.GOARCH)
	good := map[string]string{"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "SYSUP_BUCKET": "bucket", "SYSUP_SERVER_KEY": inSSM}
	for _, c := range []struct{ key, value, want string }{
		{"SYSUP_BUCKET", "", `SYSUP_BUCKET has to be set, it is ""`},
		{"SYSUP_BUCKET", "Not_a_bucket", `SYSUP_BUCKET has to be the name of a bucket`},
		{"SYSUP_SERVER_KEY", "", `SYSUP_SERVER_KEY has to be set, it is ""`},
		{"SYSUP_SERVER_KEY", "RWQ123", `it is "RWQ123"`},
		{"SYSUP_REGION", "x", "SYSUP_REGION, which is no setting"},
		{"AWS_REGION", "", "AWS_REGION has to be"},
	} {
		environ := []string{"AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE=/dev/null"}
		for key, value := range good {
			if key != c.key {
				environ = append(environ, key+"="+value)
			}
		}
		output := lambdatest.Refused(t, binary, append(environ, c.key+"="+c.value)...)
		if !strings.Contains(output, "sysup certifier: ") || !strings.Contains(output, c.want) {
			t.Errorf("%s=%q: it says %q, want %q", c.key, c.value, output, c.want)
		}
	}
}
