package aws

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/middleware"

	"github.com/attended-sysupgrade/sysup/shared/aws/awstest"
	"github.com/attended-sysupgrade/sysup/shared/build"
)

// The contract of build.Objects is tested in package buildtest.

// Parts are as small as S3 has them here.
const (
	testPart  = 5 << 20
	bigObject = 2 * testPart
)

// bucket is an empty one on versitygw.
func bucket(t *testing.T, hooks ...func(*middleware.Stack) error) *Objects {
	t.Helper()
	o := onEngine(awstest.S3(t), Settings{Bucket: awstest.Bucket(t)}, hooks...).Objects()
	o.partSize = testPart
	return o
}

// pattern is n bytes of which no two parts are equal.
func pattern(n int, seed byte) []byte {
	b := bytes.Repeat([]byte{seed}, n)
	for i := 0; i+8 <= n; i += 1000 {
		binary.BigEndian.PutUint64(b[i:], uint64(i))
	}
	return b
}

func wantObject(t *testing.T, o *Objects, key string, want []byte) {
	t.Helper()
	r, _, err := o.Open(t.Context(), key)
	if err != nil {
		t.Errorf("open %s: %v", key, err)
		return
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s holds %d bytes, which are not the %d that were stored (%v)", key, len(got), len(want), err)
	}
}

func wantNoObject(t *testing.T, o *Objects, key string) {
	t.Helper()
	if _, _, err := o.Open(t.Context(), key); !errors.Is(err, build.ErrNotFound) {
		t.Errorf("open %s returns %v, not ErrNotFound", key, err)
	}
}

// wantNoParts fails if an upload is unfinished: it would be paid for.
func wantNoParts(t *testing.T, o *Objects) {
	t.Helper()
	out, err := o.client.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: &o.bucket})
	if err != nil || len(out.Uploads) > 0 {
		t.Errorf("there are unfinished uploads (%v)", err)
	}
}

// TestServed is what the CDN in front of the bucket gets.
func TestServed(t *testing.T) {
	for _, size := range []int{0, 5, bigObject + 1} {
		o := bucket(t)
		policy := build.PolicyJSON.Private()
		if err := o.Put(t.Context(), "store/private/x", bytes.NewReader(pattern(size, 0)), policy); err != nil {
			t.Fatal(err)
		}
		head, err := o.client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &o.bucket, Key: sdk.String("store/private/x")})
		if err != nil {
			t.Fatal(err)
		}
		if sdk.ToString(head.ContentType) != policy.ContentType || sdk.ToString(head.CacheControl) != policy.CacheControl || len(head.Metadata[sumName]) != 64 {
			t.Errorf("%d bytes are served with %q, %q and %v", size, *head.ContentType, sdk.ToString(head.CacheControl), head.Metadata)
		}
	}
}

// TestBigObjects are uploaded in parts, from each kind of reader.
func TestBigObjects(t *testing.T) {
	content := pattern(2*testPart+testPart/2, 0)
	name := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(name, append([]byte("skipped"), content...), 0o600); err != nil {
		t.Fatal(err)
	}
	for kind, open := range map[string]func(t *testing.T) io.Reader{
		"memory": func(*testing.T) io.Reader { return bytes.NewReader(content) },
		"stream": func(*testing.T) io.Reader { return io.MultiReader(bytes.NewReader(content)) },
		"file": func(t *testing.T) io.Reader {
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			if _, err := f.Seek(int64(len("skipped")), io.SeekStart); err != nil {
				t.Fatal(err)
			}
			return f
		},
	} {
		t.Run(kind, func(t *testing.T) {
			f := &mishaps{operation: "UploadPart", plan: []mishap{works}}
			o := bucket(t, f.hook)
			for range 2 { // equal bytes succeed again
				if err := o.Put(t.Context(), "k", open(t), build.PolicyImage); err != nil {
					t.Fatal(err)
				}
			}
			if f.attempts() != 2*3 {
				t.Errorf("%d parts were sent, not twice three", f.attempts())
			}
			wantObject(t, o, "k", content)
			err := o.Put(t.Context(), "k", bytes.NewReader(pattern(len(content), 1)), build.PolicyImage)
			if !errors.Is(err, build.ErrExists) {
				t.Errorf("other bytes: %v", err)
			}
			wantObject(t, o, "k", content)
			if err := o.Put(t.Context(), "k", bytes.NewReader(content[1:]), build.PolicyCatalog); err != nil {
				t.Errorf("a mutable object: %v", err)
			}
			wantObject(t, o, "k", content[1:])
			wantNoParts(t, o)
		})
	}
}

// TestOneBigObject stores other bytes under one key at once, in parts.
func TestOneBigObject(t *testing.T) {
	t.Parallel()
	o := bucket(t)
	results := make([]error, 3)
	done := make(chan int)
	for i := range results {
		go func() {
			results[i] = o.Put(t.Context(), "k", bytes.NewReader(pattern(bigObject, byte(i))), build.PolicyImage)
			done <- i
		}()
	}
	for range results {
		<-done
	}
	winners := 0
	for i, err := range results {
		switch {
		case err == nil:
			winners++
			wantObject(t, o, "k", pattern(bigObject, byte(i)))
		case !errors.Is(err, build.ErrExists):
			t.Errorf("Put: %v", err)
		}
	}
	if winners != 1 {
		t.Errorf("%d of three succeed", winners)
	}
	wantNoParts(t, o)
}

// TestStop ends a process in the middle of an upload.
func TestStop(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	f := &mishaps{operation: "UploadPart", plan: []mishap{works, hanging}}
	o := bucket(t, f.hook)
	time.AfterFunc(time.Second, cancel)
	start := time.Now()
	err := o.Put(ctx, "k", bytes.NewReader(pattern(4*testPart, 0)), build.PolicyImage)
	if took := time.Since(start); !errors.Is(err, context.Canceled) || took > 4*time.Second {
		t.Errorf("Put returns %v after %v", err, took)
	}
	wantNoObject(t, o, "k")
	wantNoParts(t, o)
}

// TestPutFaults injects each fault into the calls that store. In no case is
// there another object than the whole one, and after each the same Put works.
func TestPutFaults(t *testing.T) {
	for _, size := range []int{1000, bigObject} {
		operation := map[bool]string{true: "PutObject", false: "CompleteMultipartUpload"}[size < bigObject]
		for _, policy := range []build.Policy{build.PolicyImage, build.PolicyCatalog} {
			for _, test := range plans {
				t.Run(fmt.Sprintf("%s/mutable %v/%s", operation, policy.Mutable, test.name), func(t *testing.T) {
					t.Parallel()
					content := pattern(size, 0)
					f := &mishaps{operation: operation, plan: test.plan}
					o := bucket(t, f.hook)
					if policy.Mutable {
						if err := onSame(o).Put(t.Context(), "k", strings.NewReader("old"), policy); err != nil {
							t.Fatal(err)
						}
					}
					err := o.Put(t.Context(), "k", bytes.NewReader(content), policy)
					// Whether an upload in parts was completed is looked up.
					if fails := test.fails && (!test.happens || size < bigObject); (err != nil) != fails || f.attempts() != test.attempts {
						t.Errorf("Put returns %v after %d attempts", err, f.attempts())
					}
					switch {
					case test.happens:
						wantObject(t, o, "k", content)
					case policy.Mutable:
						wantObject(t, o, "k", []byte("old"))
					default:
						wantNoObject(t, o, "k")
					}
					wantNoParts(t, o)
					if err := onSame(o).Put(t.Context(), "k", bytes.NewReader(content), policy); err != nil {
						t.Errorf("the next Put: %v", err)
					}
					wantObject(t, o, "k", content)
				})
			}
		}
	}
}

// onSame is the same bucket without faults.
func onSame(o *Objects) *Objects {
	return onEngine(*o.client.Options().BaseEndpoint, Settings{Bucket: o.bucket}).Objects() // with parts of the usual size
}

// TestOtherFaults are those of the parts and of deleting.
func TestOtherFaults(t *testing.T) {
	for _, test := range plans {
		t.Run("part/"+test.name, func(t *testing.T) {
			t.Parallel()
			f := &mishaps{operation: "UploadPart", plan: test.plan}
			o := bucket(t, f.hook)
			content := pattern(bigObject, 0)
			err := o.Put(t.Context(), "k", bytes.NewReader(content), build.PolicyImage)
			if (err != nil) != test.fails {
				t.Errorf("Put returns %v", err)
			}
			if test.fails {
				wantNoObject(t, o, "k")
			} else {
				wantObject(t, o, "k", content)
			}
			wantNoParts(t, o)
		})
		t.Run("delete/"+test.name, func(t *testing.T) {
			t.Parallel()
			f := &mishaps{operation: "DeleteObject", plan: test.plan}
			o := bucket(t, f.hook)
			if err := o.Put(t.Context(), "k", strings.NewReader("x"), build.PolicyText); err != nil {
				t.Fatal(err)
			}
			if err := o.Delete(t.Context(), "k"); (err != nil) != test.fails {
				t.Errorf("Delete returns %v", err)
			}
			if test.happens {
				wantNoObject(t, o, "k")
			} else {
				wantObject(t, o, "k", []byte("x"))
			}
		})
	}
}

// TestForeignObject compares with an object that has no sum beside it.
func TestForeignObject(t *testing.T) {
	o := bucket(t)
	_, err := o.client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &o.bucket, Key: sdk.String("k"), Body: strings.NewReader("same")})
	if err != nil {
		t.Fatal(err)
	}
	for content, want := range map[string]error{"same": nil, "some": build.ErrExists, "same!": build.ErrExists} {
		if err := o.Put(t.Context(), "k", strings.NewReader(content), build.PolicyText); !errors.Is(err, want) {
			t.Errorf("Put of %q returns %v, not %v", content, err, want)
		}
	}
	wantObject(t, o, "k", []byte("same"))
}

// TestChangedBytes reads an object whose bytes are not those that were stored.
func TestChangedBytes(t *testing.T) {
	for _, content := range []string{"hellO", "hell"} {
		o := answering(func(r *http.Request) (*http.Response, error) {
			answer := reply(r, 200, content)
			answer.Header.Set("X-Amz-Meta-Sha256", "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824") // of "hello"
			return answer, nil
		}, Settings{Bucket: "bucket"}).Objects()
		r, _, err := o.Open(t.Context(), "k")
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(r); err == nil || !strings.Contains(err.Error(), "other bytes") {
			t.Errorf("%q is read as what was stored (%v)", b, err)
		}
	}
}

// TestChangingFile stores a file that changes after it was hashed: the engine
// refuses it.
func TestChangingFile(t *testing.T) {
	o := bucket(t)
	if err := o.Put(t.Context(), "k", &fickle{Reader: strings.NewReader("hello")}, build.PolicyText); err == nil {
		t.Error("bytes that are not those of the sum are stored")
	}
	wantNoObject(t, o, "k")
}

// fickle has other bytes when it is read again.
type fickle struct {
	*strings.Reader
	reads int
}

func (f *fickle) ReadAt(p []byte, offset int64) (int, error) {
	n, err := f.Reader.ReadAt(p, offset)
	if f.reads++; f.reads > 1 && n > 0 {
		p[0] = 'j'
	}
	return n, err
}

// TestAccess uses the wrong secret, and none.
func TestAccess(t *testing.T) {
	good := bucket(t)
	if err := good.Put(t.Context(), "k", strings.NewReader("x"), build.PolicyText); err != nil {
		t.Fatal(err)
	}
	for name, keys := range map[string]sdk.CredentialsProvider{
		"wrong secret": credentials.NewStaticCredentialsProvider(awstest.AccessKey, "wrong", ""),
		"unknown user": credentials.NewStaticCredentialsProvider("AKIDNOBODY", awstest.SecretKey, ""), // 404 here, 403 on AWS
		"anonymous":    sdk.AnonymousCredentials{},
	} {
		cfg := awstest.Config(awstest.S3(t))
		cfg.Credentials = keys
		o := New(cfg, Settings{Bucket: good.bucket}, quietLog()).Objects()
		_, _, openErr := o.Open(t.Context(), "k")
		var listErr error
		for _, err := range o.List(t.Context(), "") {
			listErr = err
		}
		for what, err := range map[string]error{
			"Put": o.Put(t.Context(), "new", strings.NewReader("x"), build.PolicyText), "Open": openErr, "List": listErr,
			"Put over": o.Put(t.Context(), "k", strings.NewReader("y"), build.PolicyCatalog), "Delete": o.Delete(t.Context(), "k"),
		} {
			if status := statusOf(err); status != http.StatusForbidden && name != "unknown user" || err == nil || errors.Is(err, build.ErrNotFound) {
				t.Errorf("%s: %s is answered with %v", name, what, err)
			}
		}
	}
	wantObject(t, good, "k", []byte("x"))
	wantNoObject(t, good, "new")
}

// TestHTTPS stores and reads through TLS, where the SDK signs and sums in other
// ways.
func TestHTTPS(t *testing.T) {
	engine, err := url.Parse(awstest.S3(t))
	if err != nil {
		t.Fatal(err)
	}
	tls := httptest.NewTLSServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = engine.Scheme, engine.Host, r.In.Host // which is signed
	}})
	defer tls.Close()
	cfg := awstest.Config(tls.URL)
	cfg.HTTPClient = tls.Client()
	o := New(cfg, Settings{Bucket: awstest.Bucket(t)}, quietLog()).Objects()
	o.partSize = testPart
	for name, content := range map[string][]byte{"small": pattern(1000, 0), "empty": {}, "big": pattern(bigObject+1, 0)} {
		for range 2 {
			if err := o.Put(t.Context(), name, bytes.NewReader(content), build.PolicyImage); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		wantObject(t, o, name, content)
		if err := o.Put(t.Context(), name, strings.NewReader("other"), build.PolicyImage); !errors.Is(err, build.ErrExists) {
			t.Errorf("%s: other bytes: %v", name, err)
		}
	}
}

// TestPages lists more objects than one answer has.
func TestPages(t *testing.T) {
	var asked int
	o := answering(func(r *http.Request) (*http.Response, error) {
		asked++
		next := `<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>`
		if asked == 3 {
			next = `<IsTruncated>false</IsTruncated>`
		}
		return reply(r, 200, fmt.Sprintf(`<ListBucketResult>%s<Contents><Key>a/%d</Key><Size>%d</Size></Contents>
			<Contents><Key>a/%d/</Key><Size>0</Size></Contents></ListBucketResult>`, next, asked, asked, asked)), nil
	}, Settings{Bucket: "bucket"}).Objects()
	var keys []string
	for info, err := range o.List(t.Context(), "a/") {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, fmt.Sprint(info.Key, "=", info.Size))
	}
	if got := strings.Join(keys, " "); got != "a/1=1 a/2=2 a/3=3" {
		t.Errorf("List yields %s", got)
	}
}

// TestConflict answers as AWS does when two write at the same moment.
func TestConflict(t *testing.T) {
	var puts int
	o := answering(func(r *http.Request) (*http.Response, error) {
		if r.Method == http.MethodHead {
			return reply(r, 404, ""), nil
		}
		if puts++; puts < 3 {
			return reply(r, 409, `<Error><Code>ConditionalRequestConflict</Code></Error>`), nil
		}
		return reply(r, 200, ""), nil
	}, Settings{Bucket: "bucket"}).Objects()
	if err := o.Put(t.Context(), "k", strings.NewReader("x"), build.PolicyText); err != nil || puts != 3 {
		t.Errorf("Put returns %v after %d calls", err, puts)
	}
}

// TestHangUp: an engine that has the key refuses a big body before it has read
// it, and hangs up, so that the answer is lost.
func TestHangUp(t *testing.T) {
	for stored, want := range map[string]error{"same": nil, "else": build.ErrExists} {
		sum := sha256.Sum256([]byte(stored))
		o := answering(func(r *http.Request) (*http.Response, error) {
			if r.Method != http.MethodHead {
				return nil, &url.Error{Op: "Put", URL: r.URL.String(), Err: syscall.ECONNRESET}
			}
			there := reply(r, 200, "")
			there.Header.Set("Content-Length", "4")
			there.Header.Set("X-Amz-Meta-"+sumName, hex.EncodeToString(sum[:]))
			return there, nil
		}, Settings{Bucket: "bucket"}).Objects()
		if err := o.Put(t.Context(), "k", strings.NewReader("same"), build.PolicyImage); !errors.Is(err, want) {
			t.Errorf("Put over %q returns %v, not %v", stored, err, want)
		}
	}
}

// TestFull is what stores say that have no space left.
func TestFull(t *testing.T) {
	for _, test := range []struct {
		status int
		code   string
		full   bool
	}{
		{403, "QuotaExceeded", true}, {507, "InsufficientStorage", true}, {507, "XMinioStorageFull", true}, {507, "", true},
		{403, "AccessDenied", false}, {400, "EntityTooLarge", false},
	} {
		o := answering(func(r *http.Request) (*http.Response, error) {
			return reply(r, test.status, `<Error><Code>`+test.code+`</Code></Error>`), nil
		}, Settings{Bucket: "bucket"}).Objects()
		if err := o.Put(t.Context(), "k", strings.NewReader("x"), build.PolicyText); err == nil || errors.Is(err, build.ErrFull) != test.full {
			t.Errorf("%d %s becomes %v", test.status, test.code, err)
		}
	}
	if err := explain(fmt.Errorf("copy: %w", &os.PathError{Err: syscall.ENOSPC})); !errors.Is(err, build.ErrFull) {
		t.Errorf("a full disk for temporary files becomes %v", err)
	}
}

// TestLoad reads each kind of reader in a form that can be read again.
func TestLoad(t *testing.T) {
	for _, size := range []int{0, 1, memoryLimit - 1, memoryLimit, memoryLimit + 1} {
		want := pattern(size, 0)
		for name, r := range map[string]io.Reader{
			"seeker": bytes.NewReader(want), "stream": io.MultiReader(bytes.NewReader(want)), "slow stream": iotest.HalfReader(bytes.NewReader(want)),
		} {
			c, err := load(r, partSize)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(c.section(0, c.size))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes of a %s come back as %d (%v)", size, name, len(got), err)
			}
			c.close()
		}
		if _, err := load(io.MultiReader(bytes.NewReader(want), iotest.ErrReader(io.ErrUnexpectedEOF)), partSize); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("a reader that breaks after %d bytes: %v", size, err)
		}
	}
}
