package aws

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/http"
	"regexp"
	"slices"
	"syscall"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	"golang.org/x/sync/errgroup"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// Objects are the objects of an S3 bucket. Content type and cache line are
// stored with each, for the CDN in front of the bucket, and its SHA-256 as
// metadata, by which equal bytes are known and what is read is checked.
//
// That an immutable key is stored once rests on the engine: it has to refuse
// PutObject and CompleteMultipartUpload with "If-None-Match: *" where the key
// exists, also of several that write at once. AWS and versitygw 1.8 do.
// SeaweedFS 4.16 lets several at once succeed, and fauxqs ignores the header:
// with such engines the random name of each attempt is all that keeps writers
// apart.
type Objects struct {
	client   *s3.Client
	bucket   string
	partSize int64
}

var _ build.Objects = (*Objects)(nil)

const (
	maxKey = 512 // bytes
	// An object of two parts or more is uploaded in parts, so many at once. S3
	// takes 10,000 of 5 MiB or more.
	partSize  = 16 << 20
	maxParts  = 10_000
	partsOnce = 4
	// abortTime is what a stopping process has for removing an unfinished
	// upload. What remains the bucket's lifecycle rule removes.
	abortTime = 4 * time.Second
	// storeTries is how often a write is begun that met another of its key.
	storeTries = 4
	sumName    = "sha256" // x-amz-meta-sha256, in hexadecimal
)

var keyPattern = regexp.MustCompile(`^[A-Za-z0-9._+~,@=/-]+$`)

// Objects are the objects of the settings' bucket.
func (c *Cloud) Objects() *Objects {
	client := s3.NewFromConfig(c.config, pathStyle, func(o *s3.Options) {
		// The driver has checksums of its own, which stand in headers: other
		// engines do not know all of the SDK's.
		o.RequestChecksumCalculation = sdk.RequestChecksumCalculationWhenRequired
		o.ResponseChecksumValidation = sdk.ResponseChecksumValidationWhenRequired
	})
	return &Objects{client, c.settings.Bucket, partSize}
}

// pathStyle is for other engines than AWS, which have no host name for each
// bucket.
func pathStyle(o *s3.Options) { o.UsePathStyle = o.BaseEndpoint != nil }

func valid(key string) bool {
	return len(key) <= maxKey && keyPattern.MatchString(key) && fs.ValidPath(key) && key != "."
}

// Put implements build.Objects. What it cannot read twice it copies first, to a
// temporary file if it is big. An error may hide that the object was stored
// all the same, whole.
func (o *Objects) Put(ctx context.Context, key string, r io.Reader, policy build.Policy) error {
	if !valid(key) {
		return fmt.Errorf("%q cannot be the key of an object; see build.Objects", key)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	b, err := load(r, o.partSize)
	if err == nil {
		defer b.close()
		err = o.store(ctx, &upload{key: key, content: b, policy: policy})
	}
	if err != nil {
		return fmt.Errorf("store %s: %w", key, explain(err))
	}
	return nil
}

// upload is what is to be stored.
type upload struct {
	key     string
	content *content
	policy  build.Policy
	id      *string // of the multipart upload
}

func (u *upload) metadata() map[string]string {
	return map[string]string{sumName: hex.EncodeToString(u.content.sum[:])}
}

// condition lets an immutable key be stored once.
func (u *upload) condition() *string {
	if u.policy.Mutable {
		return nil
	}
	return sdk.String("*")
}

// store uploads, and settles what another writer of the key, or an attempt of
// its own whose answer was lost, has to do with it.
func (o *Objects) store(ctx context.Context, u *upload) (err error) {
	for try := range storeTries {
		if err = o.upload(ctx, u); err == nil || !met(err) {
			return err
		}
		equal, e := o.compare(ctx, u)
		switch {
		case errors.Is(e, build.ErrNotFound): // the other was deleted, or is not complete
		case e != nil:
			return e
		case equal:
			return nil
		case !u.policy.Mutable:
			return build.ErrExists
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond << try):
		}
	}
	return err
}

// met tells whether the upload was refused because of another of the same key:
// one that is complete, or one at the same time. An engine may say so before it
// has read the body and hang up: then the answer is lost, as a rule.
func met(err error) bool {
	status := statusOf(err)
	return status == http.StatusPreconditionFailed || status == http.StatusConflict ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func statusOf(err error) int {
	var response *awshttp.ResponseError
	if errors.As(err, &response) {
		return response.HTTPStatusCode()
	}
	return 0
}

// compare tells whether the key holds the same bytes, or returns ErrNotFound.
func (o *Objects) compare(ctx context.Context, u *upload) (bool, error) {
	head, err := o.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &o.bucket, Key: &u.key})
	if err != nil {
		return false, missing(err)
	}
	if sdk.ToInt64(head.ContentLength) != u.content.size {
		return false, nil
	}
	if sum, ok := head.Metadata[sumName]; ok {
		return sum == u.metadata()[sumName], nil
	}
	r, _, err := o.Open(ctx, u.key) // stored by somebody else
	if err != nil {
		return false, err
	}
	defer r.Close()
	h := sha256.New()
	_, err = io.Copy(h, r)
	return [sha256.Size]byte(h.Sum(nil)) == u.content.sum, err
}

func (o *Objects) upload(ctx context.Context, u *upload) error {
	if u.content.parts != nil {
		return o.uploadParts(ctx, u)
	}
	_, err := o.client.PutObject(ctx, &s3.PutObjectInput{
		Bucket: &o.bucket, Key: &u.key, Body: u.content.section(0, u.content.size), ContentLength: &u.content.size,
		ChecksumSHA256: checksum(u.content.sum), IfNoneMatch: u.condition(),
		ContentType: &u.policy.ContentType, CacheControl: &u.policy.CacheControl, Metadata: u.metadata(),
	})
	return err
}

func checksum(sum [sha256.Size]byte) *string {
	return sdk.String(base64.StdEncoding.EncodeToString(sum[:]))
}

// uploadParts stores a big object, which appears when all parts are there.
func (o *Objects) uploadParts(ctx context.Context, u *upload) error {
	begun, err := o.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
		Bucket: &o.bucket, Key: &u.key, ChecksumAlgorithm: types.ChecksumAlgorithmSha256,
		ContentType: &u.policy.ContentType, CacheControl: &u.policy.CacheControl, Metadata: u.metadata(),
	})
	if err != nil {
		return err
	}
	u.id = begun.UploadId
	parts := make([]types.CompletedPart, len(u.content.parts))
	group, partCtx := errgroup.WithContext(ctx)
	group.SetLimit(partsOnce)
	for i := range parts {
		group.Go(func() (err error) {
			parts[i], err = o.uploadPart(partCtx, u, i)
			return err
		})
	}
	err = group.Wait()
	if err == nil {
		err = o.complete(ctx, u, parts)
	}
	if err != nil {
		o.abort(ctx, u)
	}
	return err
}

func (o *Objects) uploadPart(ctx context.Context, u *upload, i int) (types.CompletedPart, error) {
	if err := ctx.Err(); err != nil {
		return types.CompletedPart{}, err
	}
	part := u.content.parts[i]
	number, sum := int32(i+1), checksum(part.sum)
	out, err := o.client.UploadPart(ctx, &s3.UploadPartInput{
		Bucket: &o.bucket, Key: &u.key, UploadId: u.id, PartNumber: &number,
		Body: u.content.section(part.offset, part.size), ContentLength: &part.size, ChecksumSHA256: sum,
	})
	if err != nil {
		return types.CompletedPart{}, fmt.Errorf("part %d: %w", number, err)
	}
	return types.CompletedPart{PartNumber: &number, ETag: out.ETag, ChecksumSHA256: sum}, nil
}

// complete makes the object. Whether it did when an error came back is seen by
// looking: an upload that is complete is unknown to S3 from then on.
func (o *Objects) complete(ctx context.Context, u *upload, parts []types.CompletedPart) error {
	_, err := o.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &o.bucket, Key: &u.key, UploadId: u.id, IfNoneMatch: u.condition(),
		MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
	})
	if err == nil || met(err) || ctx.Err() != nil {
		return err
	}
	if equal, e := o.compare(ctx, u); e == nil && equal {
		return nil
	}
	return err
}

// abort removes the parts, also when ctx has ended.
func (o *Objects) abort(ctx context.Context, u *upload) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTime)
	defer cancel()
	_, _ = o.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &o.bucket, Key: &u.key, UploadId: u.id})
}

// Open implements build.Objects. A reader whose bytes are not those that were
// stored ends with an error instead of io.EOF.
func (o *Objects) Open(ctx context.Context, key string) (io.ReadCloser, build.ObjectInfo, error) {
	var none build.ObjectInfo
	if err := ctx.Err(); err != nil {
		return nil, none, err
	}
	if !valid(key) {
		return nil, none, build.ErrNotFound
	}
	out, err := o.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &o.bucket, Key: &key})
	if err != nil {
		return nil, none, fmt.Errorf("open %s: %w", key, missing(err))
	}
	info := build.ObjectInfo{Key: key, Size: sdk.ToInt64(out.ContentLength), Modified: sdk.ToTime(out.LastModified).UTC()}
	sum, stored := out.Metadata[sumName]
	if !stored {
		return out.Body, info, nil
	}
	return &checkedReader{ReadCloser: out.Body, key: key, want: sum, hash: sha256.New()}, info, nil
}

// missing turns the answer "not found" into ErrNotFound, but not that of a
// bucket.
func missing(err error) error {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return err
	}
	switch api.ErrorCode() {
	case "NoSuchKey", "NotFound": // the latter is what HeadObject says
		return build.ErrNotFound
	}
	return err
}

// List implements build.Objects.
func (o *Objects) List(ctx context.Context, prefix string) iter.Seq2[build.ObjectInfo, error] {
	return func(yield func(build.ObjectInfo, error) bool) {
		if len(prefix) > maxKey || prefix != "" && !keyPattern.MatchString(prefix) {
			return // no key begins so
		}
		pages := s3.NewListObjectsV2Paginator(o.client, &s3.ListObjectsV2Input{Bucket: &o.bucket, Prefix: &prefix})
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				yield(build.ObjectInfo{}, fmt.Errorf("list %q: %w", prefix, err))
				return
			}
			for _, object := range page.Contents {
				key := sdk.ToString(object.Key)
				info := build.ObjectInfo{Key: key, Size: sdk.ToInt64(object.Size), Modified: sdk.ToTime(object.LastModified).UTC()}
				if valid(key) && !yield(info, nil) {
					return
				}
			}
		}
	}
}

// Delete implements build.Objects.
func (o *Objects) Delete(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !valid(key) {
		return nil
	}
	_, err := o.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &o.bucket, Key: &key})
	if err != nil && !errors.Is(missing(err), build.ErrNotFound) {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}

// fullCodes are what versitygw, Ceph and MinIO say when there is no space left.
var fullCodes = []string{"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"}

// explain makes ErrFull of what means that a store, or the disk for temporary
// files, has no space left.
func explain(err error) error {
	var api smithy.APIError
	full := errors.Is(err, syscall.ENOSPC) || statusOf(err) == http.StatusInsufficientStorage ||
		errors.As(err, &api) && slices.Contains(fullCodes, api.ErrorCode())
	if full {
		return fmt.Errorf("%w: %w", build.ErrFull, err)
	}
	return err
}
