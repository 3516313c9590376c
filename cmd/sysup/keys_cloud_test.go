package main

import (
	"bytes"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/attended-sysupgrade/sysup/functions/lambdatest"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// cloudSecrets is SSM and KMS for this process.
func cloudSecrets(t *testing.T) *lambdatest.Cloud {
	cloud := lambdatest.NewSecrets(t)
	for _, variable := range cloud.Environ() {
		name, value, _ := strings.Cut(variable, "=")
		t.Setenv(name, value)
	}
	return cloud
}

func keysInCloud(t *testing.T, args ...string) (status int, out, errs string) {
	var stdout, stderr bytes.Buffer
	status = run(t.Context(), append([]string{"keys", "new"}, args...), &stdout, &stderr)
	return status, stdout.String(), stderr.String()
}

// wantKeys checks that the parameters below the path belong together.
func wantKeys(t *testing.T, stored map[string]lambdatest.Parameter, path string, remote bool) usign.PublicKey {
	t.Helper()
	public, err := usign.ParsePublicKey([]byte(stored[path+"/server-pub"].Value))
	if err != nil {
		t.Fatal(err)
	}
	if got := stored[path+"/fingerprint"].Value; got != public.Fingerprint.String() {
		t.Errorf("the fingerprint is %q, the key's is %s", got, public.Fingerprint)
	}
	if raw, err := hex.DecodeString(stored[path+"/request-secret"].Value); err != nil || len(raw) != 32 {
		t.Errorf("the secret has %d bytes (%v)", len(raw), err)
	}
	types := map[string]string{"/server-pub": "String", "/fingerprint": "String", "/request-secret": "SecureString"}
	if !remote {
		types["/server-key"] = "SecureString"
		secret, err := usign.ParseSecretKey([]byte(stored[path+"/server-key"].Value))
		if err != nil || !secret.Public().Key.Equal(public.Key) || secret.Public().Fingerprint != public.Fingerprint {
			t.Errorf("the two keys do not belong together (%v)", err)
		}
	}
	got := map[string]string{}
	for name, p := range stored {
		got[strings.TrimPrefix(name, path)] = p.Type
	}
	if !maps.Equal(got, types) {
		t.Errorf("the parameters are %v, want %v", got, types)
	}
	return public
}

func TestKeysInSSM(t *testing.T) {
	cloud := cloudSecrets(t)
	status, out, errs := keysInCloud(t, "--ssm", "/sysup/main")
	if status != 0 {
		t.Fatalf("%d: %s", status, errs)
	}
	before := cloud.Parameters()
	public := wantKeys(t, before, "/sysup/main", false)
	if !strings.Contains(out, "fingerprint "+public.Fingerprint.String()+"\n") || !strings.Contains(out, "Next: ") {
		t.Errorf("it says %q", out)
	}
	for _, name := range []string{"/sysup/main/server-key", "/sysup/main/request-secret"} {
		if words := strings.Fields(before[name].Value); strings.Contains(out+errs, words[len(words)-1]) {
			t.Errorf("it prints %s", name)
		}
	}
	for _, args := range [][]string{{"--ssm", "/sysup/main"}, {"--ssm", "/sysup/main", "--kms", "alias/key"}} {
		status, _, errs = keysInCloud(t, args...)
		if status != exitFailure || !strings.Contains(errs, "has its keys already") || !strings.Contains(errs, public.Fingerprint.String()) {
			t.Errorf("%q again: %d, %s", args, status, errs)
		}
	}
	if !maps.Equal(cloud.Parameters(), before) {
		t.Error("a second run has changed something")
	}
	if status, out, _ := keysInCloud(t, "--ssm", "/sysup/other"); status != 0 || !strings.Contains(out, "KeyName=other") {
		t.Errorf("another name: %d, %s", status, out)
	}
}

func TestKeysInKMS(t *testing.T) {
	cloud := cloudSecrets(t)
	status, out, errs := keysInCloud(t, "--ssm", "/sysup/main", "--kms", "alias/key")
	if status != 0 || !strings.Contains(out, "ServerKeyArn") {
		t.Fatalf("%d: %s%s", status, out, errs)
	}
	if public := wantKeys(t, cloud.Parameters(), "/sysup/main", true); !public.Key.Equal(cloud.Key()) {
		t.Error("the public key is not that of KMS")
	}
}

// TestKeysAfterADeath lets each write of a run be its last, in both ways: the
// next run completes it, and keeps the key that was made.
func TestKeysAfterADeath(t *testing.T) {
	for _, c := range []struct {
		writes int
		args   []string
	}{{4, []string{"--ssm", "/sysup/main"}}, {3, []string{"--ssm", "/sysup/main", "--kms", "alias/key"}}} {
		for died := 1; died <= c.writes; died++ {
			for _, fault := range []lambdatest.Fault{lambdatest.Broken, lambdatest.Lost} {
				t.Run("", func(t *testing.T) { keysAfterADeath(t, died, fault, c.args) })
			}
		}
	}
}

func keysAfterADeath(t *testing.T, died int, fault lambdatest.Fault, args []string) {
	cloud := cloudSecrets(t)
	cloud.FailFrom("PutParameter", fault, died)
	first, _, _ := keysInCloud(t, args...)
	cloud.Fail("PutParameter", lambdatest.Works, 0)
	left := cloud.Parameters()
	if fault == lambdatest.Broken && (first == 0 || len(left) != died-1) {
		t.Fatalf("a run whose %dth write fails ends with %d and leaves %d parameters", died, first, len(left))
	}
	status, _, errs := keysInCloud(t, args...)
	_, complete := left["/sysup/main/fingerprint"]
	if (status == 0) == complete {
		t.Fatalf("the next run: %d, %s", status, errs)
	}
	stored := cloud.Parameters()
	wantKeys(t, stored, "/sysup/main", len(args) > 2)
	for name, p := range left {
		if stored[name] != p {
			t.Errorf("%s was changed", name)
		}
	}
}

// TestKeysOfAnotherKind has what somebody else left in the way.
func TestKeysOfAnotherKind(t *testing.T) {
	for name, c := range map[string]struct{ parameter, value, args, want string }{
		"a key in SSM, now KMS":       {"server-key", "any", "--kms=alias/key", "holds a key already"},
		"a key of KMS, now SSM":       {"server-pub", "any", "", "the secret key to it is not in SSM"},
		"what is no key":              {"server-key", "any", "", "is no key"},
		"a short secret":              {"request-secret", "short", "", "too short"},
		"another public key, and KMS": {"server-pub", "any", "--kms=alias/key", "never overwritten"},
	} {
		cloud := cloudSecrets(t)
		cloud.SetParameter("/sysup/main/"+c.parameter, c.value)
		args := slices.DeleteFunc([]string{"--ssm=/sysup/main", c.args}, func(s string) bool { return s == "" })
		status, _, errs := keysInCloud(t, args...)
		if status != exitFailure || !strings.Contains(errs, c.want) {
			t.Errorf("%s: %d, %s", name, status, errs)
		}
		stored := cloud.Parameters()
		if stored["/sysup/main/"+c.parameter].Value != c.value || stored["/sysup/main/fingerprint"].Value != "" {
			t.Errorf("%s: something was overwritten, or it looks complete", name)
		}
	}
}
