package distro

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/attended-sysupgrade/sysup/scripts/demo/pack"
)

// An ImageBuilder archive is two compressed tars one after the other, which every reader takes for one:
// a small one, made for each upstream, with what depends on its address, keys and revision; and the
// bulk, made once.

// folderName is the name of the ImageBuilder's folder; its archive's name follows from it.
func folderName(v version, t target) string {
	return "openwrt-imagebuilder-" + v.infix() + strings.ReplaceAll(t.Name, "/", "-") + ".Linux-x86_64"
}

// infix is the version as file names carry it: "24.10.90-", and nothing for a snapshot.
func (v version) infix() string {
	if v.Number == "SNAPSHOT" {
		return ""
	}
	return v.Number + "-"
}

// writeTar appends files, below folder, to a tar that is left open unless it is the last part.
func writeTar(w io.Writer, folder string, files []pack.File, epoch int64, last bool) error {
	tw := tar.NewWriter(w)
	made := map[string]bool{".": true}
	for _, f := range files {
		f.Path = path.Join(folder, f.Path)
		if err := writeFolders(tw, path.Dir(f.Path), made, epoch); err != nil {
			return err
		}
		if err := writeMember(tw, f, epoch); err != nil {
			return err
		}
	}
	if last {
		return tw.Close()
	}
	return tw.Flush()
}

func writeFolders(tw *tar.Writer, folder string, made map[string]bool, epoch int64) error {
	if made[folder] {
		return nil
	}
	made[folder] = true
	if err := writeFolders(tw, path.Dir(folder), made, epoch); err != nil {
		return err
	}
	return tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: folder + "/", Mode: 0o755, ModTime: time.Unix(epoch, 0)})
}

func writeMember(tw *tar.Writer, f pack.File, epoch int64) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: f.Path, Mode: int64(f.Mode.Perm()), Size: int64(len(f.Data)), ModTime: time.Unix(epoch, 0)}
	if f.Link != "" {
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err := tw.Write(f.Data)
	return err
}

// compress packs a part of a tar in the archive's way.
func compress(ctx context.Context, kind string, content []byte) ([]byte, error) {
	switch kind {
	case "tar.zst":
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		defer enc.Close()
		return enc.EncodeAll(content, nil), nil
	case "tar.xz":
		cmd := exec.CommandContext(ctx, "xz", "-0", "-T2", "-c")
		cmd.Stdin = bytes.NewReader(content)
		out, err := cmd.Output()
		if errors.Is(err, exec.ErrNotFound) {
			return nil, errors.New("xz is missing: run scripts/setup")
		}
		return out, err
	}
	return nil, fmt.Errorf("archives are not packed as %s", kind)
}

// packPart writes one compressed part of an archive to a file.
func packPart(ctx context.Context, name string, v version, t target, files []pack.File, last bool) error {
	var b bytes.Buffer
	if err := writeTar(&b, folderName(v, t), files, v.Epoch, last); err != nil {
		return err
	}
	content, err := compress(ctx, v.Archive, b.Bytes())
	if err != nil {
		return err
	}
	return os.WriteFile(name, content, 0o644)
}

// bulkName is where the second part of an archive is kept.
func bulkName(parts string, v version, t target) string {
	return filepath.Join(parts, "bulk", folderName(v, t)+"."+v.Archive)
}
