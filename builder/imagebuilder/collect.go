package imagebuilder

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// Limits of what a build may leave in its output folder.
const (
	maxFiles        = 256
	maxFileSize     = 4 << 30
	maxOutput       = 16 << 30
	maxProfilesJSON = 256 << 10 // one profile has some 5 KB
	maxManifest     = 256 << 10
)

var outputName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~-]{0,199}$`)

// Output is what a successful build left: checked, hashed, without the tree's
// own signatures.
type Output struct {
	Profile  build.Profile
	Images   []build.Image
	Manifest []Installed
	Files    []OutputFile // images and all others, without sha256sums

	json  map[string]any // profiles.json, to be written anew
	parts map[string]any // of the list of parts, if there is one
}

// Installed is a line of the manifest, with the name as the ImageBuilder wrote it.
type Installed struct{ Name, Version string }

// OutputFile is one file of the output folder.
type OutputFile struct {
	Name   string
	SHA256 [sha256.Size]byte
	Size   int64
}

// Collect reads the output folder after everything that could write to it is
// dead. It answers with a *build.Failure of KindTooBig if the build left no
// image, and of KindOutput if what it left breaks a rule: the folder's content
// comes from package scripts and is not to be trusted.
func Collect(dir, profile string) (*Output, error) {
	return collect(dir, profile, nil)
}

// collect is Collect. told is what the tree says of itself if it is one that
// writes no profiles.json, else nil; then the images are known by their names.
func collect(dir, profile string, told *overview) (*Output, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	names, err := regularFiles(root)
	if err != nil {
		return nil, err
	}
	text, err := profilesOfBuild(root, profile, names, told)
	if err != nil {
		return nil, err
	}
	out := &Output{}
	if err := out.profiles(text, profile); err != nil {
		return nil, err
	}
	if err := out.manifest(root, names); err != nil {
		return nil, err
	}
	return out, out.hash(root, names)
}

// profilesOfBuild is the profiles.json that the build left, or the one that it
// would have left.
func profilesOfBuild(root *os.Root, profile string, names []string, told *overview) ([]byte, error) {
	switch {
	case slices.Contains(names, "profiles.json"):
		return readAll(root, "profiles.json", maxProfilesJSON)
	case told != nil:
		return told.of(profile, names)
	}
	return nil, build.Fail(build.KindTooBig, "The ImageBuilder left no image: what was chosen is too big for this device. Leave packages out.")
}

// reserved are the names that the builder itself adds to a result.
var (
	reserved = map[string]bool{"build.json": true, "sha256sums.sig": true, "worker.pub": true, "worker.pub.sig": true}
	logName  = regexp.MustCompile(`^build-.*\.log$`)
)

// regularFiles lists the folder and refuses everything that is not a plain
// file with a plain name and one link.
func regularFiles(root *os.Root) ([]string, error) {
	dir, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	entries, err := dir.ReadDir(maxFiles + 1) // no more than that are read
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(entries) > maxFiles {
		return nil, build.Fail(build.KindOutput, "The build left more than %d files.", maxFiles)
	}
	var names []string
	var total int64
	for _, entry := range entries {
		info, err := root.Lstat(entry.Name())
		if err != nil {
			return nil, err
		}
		if err := acceptable(info); err != nil {
			return nil, err
		}
		if total += info.Size(); total > maxOutput {
			return nil, build.Fail(build.KindOutput, "The build left more than %d GiB.", maxOutput>>30)
		}
		names = append(names, info.Name())
	}
	slices.Sort(names)
	return names, nil
}

func acceptable(info fs.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !outputName.MatchString(info.Name()):
		return build.Fail(build.KindOutput, "The build left a file with a name that is not allowed: %q.", clip(info.Name()))
	case reserved[info.Name()] || logName.MatchString(info.Name()):
		return build.Fail(build.KindOutput, "The build left a file named %s, a name that belongs to the server.", info.Name())
	case !info.Mode().IsRegular():
		return build.Fail(build.KindOutput, "The build left %s, which is not a regular file.", info.Name())
	case ok && stat.Nlink != 1:
		return build.Fail(build.KindOutput, "The build left %s, which has another name elsewhere.", info.Name())
	case info.Size() > maxFileSize:
		return build.Fail(build.KindOutput, "The build left %s, which is larger than %d GiB.", info.Name(), maxFileSize>>30)
	}
	return nil
}

// profilesJSON is the part of profiles.json (metadata_version 1) that is read.
type profilesJSON struct {
	ArchPackages    string          `json:"arch_packages"`
	DefaultPackages []string        `json:"default_packages"`
	LinuxKernel     json.RawMessage `json:"linux_kernel"`
	SourceDateEpoch int64           `json:"source_date_epoch"`
	VersionCode     string          `json:"version_code"`
	VersionNumber   string          `json:"version_number"`
	Profiles        map[string]struct {
		DevicePackages   []string        `json:"device_packages"`
		ImagePrefix      string          `json:"image_prefix"`
		SupportedDevices []string        `json:"supported_devices"`
		Titles           json.RawMessage `json:"titles"`
		Images           []struct {
			Filesystem     string `json:"filesystem"`
			Name           string `json:"name"`
			Type           string `json:"type"`
			SHA256         string `json:"sha256"`
			SHA256Unsigned string `json:"sha256_unsigned"`
		} `json:"images"`
	} `json:"profiles"`
}

func (o *Output) profiles(text []byte, id string) (err error) {
	var all profilesJSON
	if o.json, err = decodeProfiles(text, &all); err != nil {
		return build.Fail(build.KindOutput, "The build left a profiles.json that cannot be read.")
	}
	profile, ok := all.Profiles[id]
	if !ok || len(profile.Images) == 0 {
		return build.Fail(build.KindTooBig, "The ImageBuilder left no image for %s: what was chosen is too big for this device. Leave packages out.", id)
	}
	o.Profile = build.Profile{
		ArchPackages: all.ArchPackages, DefaultPackages: all.DefaultPackages, LinuxKernel: all.LinuxKernel,
		SourceDateEpoch: all.SourceDateEpoch, VersionCode: all.VersionCode, VersionNumber: all.VersionNumber,
		DevicePackages: profile.DevicePackages, ImagePrefix: profile.ImagePrefix,
		SupportedDevices: profile.SupportedDevices, Titles: profile.Titles,
	}
	for _, text := range []string{all.ArchPackages, all.VersionCode, all.VersionNumber, profile.ImagePrefix} {
		if !word.MatchString(text) {
			return build.Fail(build.KindOutput, "The build's profiles.json has a word that is not allowed: %q.", clip(text))
		}
	}
	for _, image := range profile.Images {
		if !outputName.MatchString(image.Name) || !word.MatchString(image.Type) || !word.MatchString(image.Filesystem) {
			return build.Fail(build.KindOutput, "The build's profiles.json names an image that is not allowed: %q.", clip(image.Name))
		}
		o.Images = append(o.Images, build.Image{Name: image.Name, Type: image.Type, Filesystem: image.Filesystem,
			SHA256: image.SHA256, SHA256Unsigned: image.SHA256Unsigned})
	}
	return nil
}

var (
	word    = regexp.MustCompile(`^[A-Za-z0-9._+~-]{0,200}$`)
	jsonKey = regexp.MustCompile(`^[a-z0-9_]{1,64}$`)
)

// decodeProfiles reads the text into typed, and returns all of it. Both mean
// the same: what one decoder may take for another member (twice the same, or
// only alike in upper and lower case) is an error or left out of both.
func decodeProfiles(text []byte, typed *profilesJSON) (map[string]any, error) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var all map[string]any
	if err := decoder.Decode(&all); err != nil {
		return nil, err
	}
	for _, object := range objects(all) {
		for key := range object {
			if !jsonKey.MatchString(key) {
				return nil, fmt.Errorf("profiles.json has the member %q", clip(key))
			}
		}
	}
	text, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	return all, json.Unmarshal(text, typed)
}

// objects are those of profiles.json whose members are read by name: itself,
// its profiles and their images.
func objects(all map[string]any) []map[string]any {
	list := []map[string]any{all}
	profiles, _ := all["profiles"].(map[string]any)
	for _, value := range profiles {
		profile, _ := value.(map[string]any)
		list = append(list, profile)
		list = append(list, images(profile)...)
	}
	return list
}

func images(profile map[string]any) (list []map[string]any) {
	values, _ := profile["images"].([]any)
	for _, value := range values {
		image, _ := value.(map[string]any)
		list = append(list, image)
	}
	return list
}

func (o *Output) manifest(root *os.Root, names []string) error {
	i := slices.IndexFunc(names, func(name string) bool { return strings.HasSuffix(name, ".manifest") })
	if i < 0 {
		return build.Fail(build.KindOutput, "The build left no manifest.")
	}
	text, err := readAll(root, names[i], maxManifest)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		name, version, ok := strings.Cut(strings.TrimSpace(line), " - ")
		if !ok || !manifestName.MatchString(name) || !manifestVersion.MatchString(version) {
			return build.Fail(build.KindOutput, "The build's manifest has a line that cannot be read: %q.", clip(line))
		}
		o.Manifest = append(o.Manifest, Installed{name, version})
	}
	return nil
}

var manifestName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.+~-]{0,127}$`)

var manifestVersion = regexp.MustCompile(`^[A-Za-z0-9_.+~:-]{1,128}$`)

// hash cuts off the tree's own signatures, reads every file once, and rewrites
// profiles.json to what is served.
func (o *Output) hash(root *os.Root, names []string) error {
	for _, name := range names {
		if name == "sha256sums" || name == "profiles.json" {
			continue
		}
		if isParts(name) {
			var err error
			if o.parts, err = settleParts(root, name, o.Profile.SourceDateEpoch); err != nil {
				return err
			}
		}
		i := slices.IndexFunc(o.Images, func(image build.Image) bool { return image.Name == name })
		file, err := hashFile(root, name, i >= 0)
		if err != nil {
			return unreadable(name, err)
		}
		if i >= 0 {
			if err := measured(&o.Images[i], file); err != nil {
				return err
			}
		}
		o.Files = append(o.Files, file)
	}
	for _, image := range o.Images {
		if image.Size == 0 {
			return build.Fail(build.KindOutput, "The build's profiles.json names %s, but there is no such file, or it is empty.", image.Name)
		}
	}
	file, err := o.rewrite(root)
	o.Files = append(o.Files, file)
	return err
}

// unreadable tells a file that the build closed to us from a fault of ours.
func unreadable(name string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return build.Fail(build.KindOutput, "The build left %s, which cannot be read.", name)
	}
	return fault("read "+name, err)
}

// measured takes the digest of the bytes without the tree's signature. It has
// to be what the ImageBuilder itself noted before it signed.
func measured(image *build.Image, file OutputFile) error {
	sum := hex.EncodeToString(file.SHA256[:])
	if image.SHA256Unsigned != "" && image.SHA256Unsigned != sum {
		return build.Fail(build.KindOutput, "The image %s is not the one that the ImageBuilder wrote: its checksum differs.", image.Name)
	}
	image.SHA256, image.SHA256Unsigned, image.Size = sum, sum, file.Size
	return nil
}

func hashFile(root *os.Root, name string, image bool) (OutputFile, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return OutputFile{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return OutputFile{}, err
	}
	size := info.Size()
	if image {
		if size, err = cutSignature(root, name, f, size); err != nil {
			return OutputFile{}, err
		}
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return OutputFile{}, err
	}
	return OutputFile{Name: name, SHA256: [sha256.Size]byte(h.Sum(nil)), Size: size}, nil
}

// cutSignature removes the signature by the tree's random key, which routers
// with ucert would refuse.
func cutSignature(root *os.Root, name string, f *os.File, size int64) (int64, error) {
	unsigned, found, err := usign.CutSignature(f, size)
	if err != nil || !found {
		return size, err
	}
	w, err := root.OpenFile(name, os.O_WRONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return size, err
	}
	return unsigned, errors.Join(w.Truncate(unsigned), w.Close())
}

// rewrite puts the digests of what is served into profiles.json and keeps the
// rest of it as it is.
func (o *Output) rewrite(root *os.Root) (OutputFile, error) {
	profiles, _ := o.json["profiles"].(map[string]any)
	for _, value := range profiles {
		profile, _ := value.(map[string]any)
		for _, image := range images(profile) {
			o.served(image)
		}
	}
	text, err := json.Marshal(o.json)
	if err != nil {
		return OutputFile{}, err
	}
	if err := root.Remove("profiles.json"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return OutputFile{}, err
	}
	if err := root.WriteFile("profiles.json", text, 0o644); err != nil {
		return OutputFile{}, fault("write profiles.json", err)
	}
	return OutputFile{Name: "profiles.json", SHA256: sha256.Sum256(text), Size: int64(len(text))}, nil
}

func (o *Output) served(entry map[string]any) {
	for _, image := range o.Images {
		if entry["name"] == image.Name {
			entry["sha256"], entry["sha256_unsigned"], entry["size"] = image.SHA256, image.SHA256Unsigned, image.Size
		}
	}
}

func readAll(root *os.Root, name string, limit int64) ([]byte, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, unreadable(name, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if int64(len(text)) > limit {
		return nil, build.Fail(build.KindOutput, "The build left a %s of more than %d bytes.", name, limit)
	}
	return text, nil
}
