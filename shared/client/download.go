package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path"
	"regexp"
	"slices"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// Limits of a download. A server that exceeds them is broken or hostile.
const (
	maxFiles = 256
	maxTotal = 4 << 30 // bytes
	maxList  = 4 << 20 // bytes of sha256sums, of the list of revoked keys, of build.json
	stall    = time.Minute
)

// Names from the server are data: these are what may become the name of a
// file here, or part of an address.
var (
	filePattern   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~,@=-]{0,254}$`)
	folderPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){0,3}$`)
)

// The list of revoked worker keys, which not every server has. It belongs to
// the server and not to a result.
const (
	revokedFile    = "revoked"
	revokedSigFile = "revoked.sig"
)

// Download fetches every file of the result into dir, which it creates: the
// images, the manifest, profiles.json, the log, build.json, sha256sums and the
// signatures that Verify needs. progress, if not nil, is called as bytes
// arrive; total is -1 where the server does not say it. A file gets its name
// only once it is whole. Nothing is verified here.
func (c *Client) Download(ctx context.Context, r Result, dir string, progress func(name string, done, total int64)) error {
	if !folderPattern.MatchString(r.BinDir) {
		return fmt.Errorf("the server names a folder that cannot be one: %.100q", r.BinDir)
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return fmt.Errorf("make the output folder: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("open the output folder: %w", err)
	}
	defer root.Close()
	d := download{client: c, root: root, progress: progress, left: maxTotal}
	store := "/store/" + r.BinDir + "/"
	names, err := d.list(ctx, store, r.Images)
	if err != nil {
		return err
	}
	for _, name := range append(names, usign.SumsSigFile, usign.WorkerFile, usign.WorkerSigFile) {
		if err := d.file(ctx, store, name); err != nil {
			return err
		}
	}
	return d.revoked(ctx)
}

type download struct {
	client   *Client
	root     *os.Root
	progress func(name string, done, total int64)
	left     int64 // bytes that may still come
}

// list fetches sha256sums and returns the names in it, among which the images
// of the answer have to be.
func (d *download) list(ctx context.Context, store string, images []Image) ([]string, error) {
	if err := d.file(ctx, store, usign.SumsFile); err != nil {
		return nil, err
	}
	f, err := d.root.Open(usign.SumsFile)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxList))
	if err != nil {
		return nil, err
	}
	sums, err := usign.ParseSums(text)
	if err != nil {
		return nil, fmt.Errorf("the server's %s: %w", usign.SumsFile, err)
	}
	if len(sums) > maxFiles {
		return nil, fmt.Errorf("the server's %s lists %d files; at most %d are expected", usign.SumsFile, len(sums), maxFiles)
	}
	for _, image := range images {
		if sum, listed := sums[image.Name]; !listed || fmt.Sprintf("%x", sum) != image.SHA256 {
			return nil, fmt.Errorf("the server's answer and its %s disagree about %.100q", usign.SumsFile, image.Name)
		}
	}
	return slices.Sorted(maps.Keys(sums)), nil
}

// revoked fetches the list of revoked worker keys, if the server has one.
func (d *download) revoked(ctx context.Context) error {
	err := d.file(ctx, "/keys/", revokedFile)
	if e, ok := errors.AsType[*Error](err); ok && e.Status == http.StatusNotFound {
		return errors.Join(d.remove(revokedFile), d.remove(revokedSigFile))
	}
	if err != nil {
		return err
	}
	return d.file(ctx, "/keys/", revokedSigFile)
}

// remove takes away what an earlier download may have left.
func (d *download) remove(name string) error {
	if err := d.root.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// file fetches one file under a temporary name and renames it.
func (d *download) file(ctx context.Context, folder, name string) error {
	if !filePattern.MatchString(name) {
		return fmt.Errorf("the server names a file that cannot be one: %.100q", name)
	}
	part := "." + name[:min(len(name), 200)] + ".part"
	f, err := d.root.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o666)
	if err != nil {
		return fmt.Errorf("write to the output folder: %w", err)
	}
	err = d.fetch(ctx, path.Join(folder, name), name, f)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = d.root.Rename(part, name)
	}
	if err != nil {
		return errors.Join(err, d.remove(part))
	}
	return nil
}

// fetch copies one address to w. It gives up on a server that sends nothing
// for a minute.
func (d *download) fetch(ctx context.Context, address, name string, w io.Writer) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(stall, func() { cancel(fmt.Errorf("%s: the server sent nothing for %v", name, stall)) })
	defer watch.Stop()
	resp, err := d.client.do(ctx, http.MethodGet, address, nil)
	if err != nil {
		return cause(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, maxList)) // what arrives is enough for a sentence
		return newError(resp, body)
	}
	counted := &counter{w: w, report: func(done int64) {
		watch.Reset(stall)
		if d.progress != nil {
			d.progress(name, done, resp.ContentLength)
		}
	}}
	n, err := io.Copy(counted, io.LimitReader(resp.Body, d.left+1))
	if d.left -= n; d.left < 0 {
		return fmt.Errorf("%s: the server's files are larger than %d GiB together; that cannot be right", name, maxTotal>>30)
	}
	if err != nil {
		return fmt.Errorf("download %s: %w", name, cause(ctx, err))
	}
	return nil
}

// cause prefers the reason for which ctx was cancelled to "context canceled".
func cause(ctx context.Context, err error) error {
	if errors.Is(err, context.Canceled) && context.Cause(ctx) != nil {
		return context.Cause(ctx)
	}
	return err
}

// counter reports how many bytes went through.
type counter struct {
	w      io.Writer
	done   int64
	report func(done int64)
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.done += int64(n)
	c.report(c.done)
	return n, err
}
