package aws

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	kmstypes "github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/ssm"

	"github.com/attended-sysupgrade/sysup/shared/aws/awstest"
	"github.com/attended-sysupgrade/sysup/shared/build"
)

func TestSecretFile(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return "file:" + name
	}
	cloud := onEngine("http://127.0.0.1:9", Settings{})
	value, err := cloud.Secret(t.Context(), file("good", "a\nb\x00\n"))
	if err != nil || string(value) != "a\nb\x00\n" {
		t.Errorf("the file holds %q (%v)", value, err)
	}
	for ref, want := range map[string]string{
		file("empty", ""): "1 to 4096 bytes",
		file("big", strings.Repeat("s", maxSecret+1)): "1 to 4096 bytes",
		"file:" + dir:           "is a directory",
		"file:" + dir + "/none": "no such file",
		"file:relative":         "file:/PATH",
		"/etc/passwd":           "file:/PATH",
		"ssm:no-slash":          "ssm:/PATH",
		"kms:alias/x":           "ssm:/PATH",
		"":                      "ssm:/PATH",
	} {
		_, err := cloud.Secret(t.Context(), ref)
		if err == nil || !contains(err.Error(), want, ref) {
			t.Errorf("%q: %v", ref, err)
		}
	}
	if _, err := cloud.Secret(t.Context(), "file:"+dir+"/none"); !errors.Is(err, build.ErrNotFound) {
		t.Errorf("no file is %v", err)
	}
}

// TestParameters makes and reads parameters of the emulator.
func TestParameters(t *testing.T) {
	t.Parallel()
	const value = "untrusted comment: key\nsecret-value\n"
	cloud, path := emulated(t, Settings{}), "/sysup/"+awstest.Name()+"/server-key"
	if _, err := cloud.Secret(t.Context(), "ssm:"+path); !errors.Is(err, build.ErrNotFound) || !contains(err.Error(), path, "sysup keys new") {
		t.Errorf("no parameter: %v", err)
	}
	for range 2 { // the same once more is what is wanted
		if err := cloud.CreateSecret(t.Context(), path, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	err := cloud.CreateSecret(t.Context(), path, []byte("another-value"))
	if !errors.Is(err, build.ErrExists) || contains(err.Error(), "another-value") || contains(err.Error(), "secret-value") {
		t.Errorf("another value: %v", err)
	}
	if got, err := cloud.Secret(t.Context(), "ssm:"+path); err != nil || string(got) != value {
		t.Errorf("the parameter holds %q (%v)", got, err)
	}
	if err := cloud.CreateText(t.Context(), path+".pub", []byte("public")); err != nil {
		t.Error(err)
	}
	for name, kind := range map[string]string{path: "SecureString", path + ".pub": "String"} {
		out, err := ssm.NewFromConfig(cloud.config).GetParameter(t.Context(), &ssm.GetParameterInput{Name: &name})
		if err != nil || string(out.Parameter.Type) != kind || kind == "SecureString" && sdk.ToString(out.Parameter.Value) == value {
			t.Errorf("%s is no %s (%v)", name, kind, err)
		}
	}
}

func TestBadParameters(t *testing.T) {
	cloud := onEngine("http://127.0.0.1:9", Settings{})
	for _, test := range []struct{ path, value string }{
		{"relative", "s3cret"}, {"/a b", "s3cret"}, {"/", "s3cret"}, {"/sysup/x", ""}, {"/sysup/x", strings.Repeat("s3cret", 1000)}, {"/sysup/x", "s3cret\x00"},
	} {
		if err := cloud.CreateSecret(t.Context(), test.path, []byte(test.value)); err == nil || !contains(err.Error(), "1 to 4096 bytes") || contains(err.Error(), "s3cret") {
			t.Errorf("CreateSecret(%q) of %d bytes: %v", test.path, len(test.value), err)
		}
	}
}

// TestQuietErrors answers as AWS does to a value that it does not like: with
// the value.
func TestQuietErrors(t *testing.T) {
	cloud := answering(func(r *http.Request) (*http.Response, error) {
		return reply(r, 400, `{"__type":"ValidationException","message":"Value 's3cret' at 'value' failed to satisfy constraint"}`), nil
	}, Settings{})
	err := cloud.CreateSecret(t.Context(), "/sysup/x", []byte("s3cret"))
	if err == nil || contains(err.Error(), "s3cret") || !contains(err.Error(), "ValidationException", "/sysup/x") {
		t.Errorf("CreateSecret: %v", err)
	}
}

// TestParameterFaults injects each fault into the making of a parameter.
func TestParameterFaults(t *testing.T) {
	for _, test := range plans {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := &mishaps{operation: "PutParameter", plan: test.plan}
			cloud, path := emulated(t, Settings{}, f.hook), "/sysup/"+awstest.Name()
			if err := cloud.CreateSecret(t.Context(), path, []byte("value")); (err != nil) != test.fails || f.attempts() != test.attempts {
				t.Errorf("CreateSecret returns %v after %d attempts", err, f.attempts())
			}
			got, err := cloud.Secret(t.Context(), "ssm:"+path)
			if happened := err == nil && string(got) == "value"; happened != test.happens || !happened && !errors.Is(err, build.ErrNotFound) {
				t.Errorf("the parameter holds %q (%v)", got, err)
			}
		})
	}
}

// TestSigner signs with a key of the emulator's KMS.
func TestSigner(t *testing.T) {
	t.Parallel()
	cloud := emulated(t, Settings{})
	made, err := kms.NewFromConfig(cloud.config).CreateKey(t.Context(), &kms.CreateKeyInput{
		KeySpec: kmstypes.KeySpecEccNistEdwards25519, KeyUsage: kmstypes.KeyUsageTypeSignVerify,
	})
	if err != nil {
		t.Fatal(err)
	}
	signer, err := cloud.Signer(t.Context(), "kms:"+*made.KeyMetadata.KeyId)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{0, 1, maxSigned} {
		message := pattern(size, 1)
		signature, err := signer.Sign(rand.Reader, message, crypto.Hash(0))
		if size == 0 && err != nil {
			continue // KMS may refuse to sign nothing, and nobody wants it to
		}
		if err != nil || !ed25519.Verify(signer.Public().(ed25519.PublicKey), message, signature) {
			t.Errorf("%d bytes: the signature does not verify (%v)", size, err)
		}
	}
	if _, err := signer.Sign(rand.Reader, pattern(maxSigned+1, 1), crypto.Hash(0)); err == nil || !contains(err.Error(), "at most 4096 bytes, these are 4097") {
		t.Errorf("a message that is too big: %v", err)
	}
	if _, err := signer.Sign(rand.Reader, pattern(32, 1), crypto.SHA256); err == nil {
		t.Error("it signs a hash")
	}
	rsa, err := kms.NewFromConfig(cloud.config).CreateKey(t.Context(), &kms.CreateKeyInput{
		KeySpec: kmstypes.KeySpecRsa2048, KeyUsage: kmstypes.KeyUsageTypeSignVerify,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cloud.Signer(t.Context(), "kms:"+*rsa.KeyMetadata.KeyId); err == nil || !contains(err.Error(), "ECC_NIST_EDWARDS25519") {
		t.Errorf("an RSA key: %v", err)
	}
	for _, ref := range []string{"kms:", "kms:a b", "ssm:/x", *made.KeyMetadata.KeyId} {
		if _, err := cloud.Signer(t.Context(), ref); err == nil || !contains(err.Error(), "kms:KEY") {
			t.Errorf("the reference %q: %v", ref, err)
		}
	}
}

// TestSignerWire pins what KMS is asked, and that its answer is checked.
func TestSignerWire(t *testing.T) {
	public, private, _ := ed25519.GenerateKey(nil)
	var sent string
	good := true
	s := signerOf(func(r *http.Request) (*http.Response, error) {
		b, err := io.ReadAll(r.Body)
		sent = string(b)
		signature := ed25519.Sign(private, []byte("message"))
		if !good {
			signature[0] ^= 1
		}
		return reply(r, 200, `{"Signature":"`+base64Text(signature)+`"}`), err
	}, public)
	if _, err := s.Sign(nil, []byte("message"), crypto.Hash(0)); err != nil {
		t.Error(err)
	}
	if !contains(sent, `"KeyId":"alias/k"`, `"MessageType":"RAW"`, `"SigningAlgorithm":"ED25519_SHA_512"`, base64Text([]byte("message"))) {
		t.Errorf("KMS is asked %s", sent)
	}
	good = false
	if _, err := s.Sign(nil, []byte("message"), crypto.Hash(0)); err == nil {
		t.Error("a wrong signature is passed on")
	}
}

func signerOf(f func(*http.Request) (*http.Response, error), public ed25519.PublicKey) *signer {
	return &signer{client: kms.NewFromConfig(answering(f, Settings{}).config), key: "alias/k", public: public}
}
