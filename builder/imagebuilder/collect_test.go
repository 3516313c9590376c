package imagebuilder

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

const (
	imageText    = "an image"
	goodManifest = "base-files - 1\nlibubox20240329 - 2024.03.29~eb9bcb64-r1\n"
)

var imageSum = func() string { sum := sha256.Sum256([]byte(imageText)); return hex.EncodeToString(sum[:]) }()

// profilesOf is a profiles.json with these images, as JSON.
func profilesOf(images string) string {
	return fmt.Sprintf(`{"arch_packages":"mips_24kc","default_packages":["base-files"],"linux_kernel":{"version":"6.6"},"metadata_version":1,`+
		`"profiles":{"dev":{"device_packages":["-x"],"image_prefix":"openwrt","images":[%s],"supported_devices":["v,dev"],"titles":[{"title":"Dev"}]}},`+
		`"source_date_epoch":1738624177,"target":"ath79/generic","version_code":"r1-abc","version_number":"24.10.0"}`, images)
}

func imageJSON(name string) string {
	return fmt.Sprintf(`{"filesystem":"squashfs","name":%q,"sha256":"%064d","sha256_unsigned":%q,"type":"sysupgrade"}`, name, 0, imageSum)
}

// output makes an output folder.
func output(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func good() map[string]string {
	return map[string]string{"profiles.json": profilesOf(imageJSON("a.bin")), "x.manifest": goodManifest, "a.bin": imageText, "sha256sums": "forged"}
}

func TestCollect(t *testing.T) {
	dir := output(t, good())
	out, err := Collect(dir, "dev")
	if err != nil {
		t.Fatal(err)
	}
	want := build.Image{Name: "a.bin", Type: "sysupgrade", Filesystem: "squashfs", Size: int64(len(imageText)), SHA256: imageSum, SHA256Unsigned: imageSum}
	if !slices.Equal(out.Images, []build.Image{want}) {
		t.Errorf("the images are %+v", out.Images)
	}
	if !slices.Equal(out.Manifest, []Installed{{"base-files", "1"}, {"libubox20240329", "2024.03.29~eb9bcb64-r1"}}) {
		t.Errorf("the manifest is %+v", out.Manifest)
	}
	if p := out.Profile; p.VersionCode != "r1-abc" || p.SourceDateEpoch != 1738624177 || p.SupportedDevices[0] != "v,dev" || string(p.LinuxKernel) != `{"version":"6.6"}` {
		t.Errorf("the profile is %+v", p)
	}
	wantServed(t, dir, out)
	if text := readFile(t, dir, "profiles.json"); !strings.Contains(text, `"metadata_version":1`) || !strings.Contains(text, `"target":"ath79/generic"`) {
		t.Errorf("profiles.json has lost something: %s", text)
	}
}

// wantServed holds that what is told of the files is true of them, in the
// output and in profiles.json alike.
func wantServed(t testing.TB, dir string, out *Output) {
	t.Helper()
	var names []string
	for _, file := range out.Files {
		names = append(names, file.Name)
		text := readFile(t, dir, file.Name)
		if file.SHA256 != sha256.Sum256([]byte(text)) || file.Size != int64(len(text)) {
			t.Errorf("%s is not what the output says", file.Name)
		}
	}
	if slices.Contains(names, "sha256sums") || !slices.Contains(names, "profiles.json") {
		t.Errorf("the files are %q", names)
	}
	served := map[string]string{}
	var all profilesJSON
	if err := json.Unmarshal([]byte(readFile(t, dir, "profiles.json")), &all); err != nil {
		t.Fatalf("profiles.json: %v", err)
	}
	for _, profile := range all.Profiles {
		for _, image := range profile.Images {
			served[image.Name] = image.SHA256 + image.SHA256Unsigned
		}
	}
	if len(out.Images) == 0 {
		t.Error("a success without an image")
	}
	for _, image := range out.Images {
		sum := sha256.Sum256([]byte(readFile(t, dir, image.Name)))
		hex := hex.EncodeToString(sum[:])
		if image.SHA256 != hex || image.SHA256Unsigned != hex || served[image.Name] != hex+hex {
			t.Errorf("%s has sum %s, but %+v and %s are told", image.Name, hex, image, served[image.Name])
		}
		if !slices.Contains(names, image.Name) {
			t.Errorf("%s is no file of the output", image.Name)
		}
	}
}

func readFile(t testing.TB, dir, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestCollectRefuses(t *testing.T) {
	in := func(name string) func(string) error { // a file of 5 GiB that takes no space
		return func(dir string) error {
			return errors.Join(os.WriteFile(filepath.Join(dir, name), nil, 0o644), os.Truncate(filepath.Join(dir, name), 5<<30))
		}
	}
	with := func(name, text string) func(string) error {
		return func(dir string) error { return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644) }
	}
	profiles := func(text string) func(string) error { return with("profiles.json", text) }
	swap := func(old, new string) func(string) error {
		return profiles(strings.Replace(profilesOf(imageJSON("a.bin")), old, new, 1))
	}
	for _, test := range []struct {
		name  string
		spoil func(dir string) error
		kind  build.Kind
		says  string
	}{
		{"a socket", func(dir string) error {
			return syscall.Mknod(filepath.Join(dir, "s"), syscall.S_IFSOCK|0o644, 0)
		}, build.KindOutput, "not a regular file"},
		{"a long name", with(strings.Repeat("x", 201), ""), build.KindOutput, "name"},
		{"a hidden name", with(".x", ""), build.KindOutput, "name"},
		{"a file that is too large", in("huge.bin"), build.KindOutput, "larger than 4 GiB"},
		{"too much in all", func(dir string) error {
			for i := range 5 {
				name := filepath.Join(dir, fmt.Sprint("large", i))
				if err := errors.Join(os.WriteFile(name, nil, 0o644), os.Truncate(name, 7<<29)); err != nil {
					return err
				}
			}
			return nil
		}, build.KindOutput, "more than 16 GiB"},
		{"null", profiles("null"), build.KindTooBig, "no image"},
		{"a list", profiles("[]"), build.KindOutput, "cannot be read"},
		{"a profile of null", profiles(`{"profiles":{"dev":null}}`), build.KindTooBig, "no image"},
		{"images of another type", swap(`"images":[`, `"images":[1,`), build.KindOutput, "cannot be read"},
		{"a member in capitals", swap(`"sha256_unsigned"`, `"SHA256_unsigned"`), build.KindOutput, "cannot be read"},
		{"a profile list beside", swap(`"target"`, `"Profiles":{},"target"`), build.KindOutput, "cannot be read"},
		{"an epoch that is no number", swap(`1738624177`, `"now"`), build.KindOutput, "cannot be read"},
		{"an epoch without end", swap(`1738624177`, `1e999`), build.KindOutput, "cannot be read"},
		{"an image type in HTML", swap(`"type":"sysupgrade"`, `"type":"<b>"`), build.KindOutput, "not allowed"},
		{"a prefix with a path", swap(`"image_prefix":"openwrt"`, `"image_prefix":"../x"`), build.KindOutput, "not allowed"},
		{"one image twice", profiles(profilesOf(imageJSON("a.bin") + "," + imageJSON("a.bin"))), build.KindOutput, "no such file"},
		{"sha256sums as an image", profiles(profilesOf(imageJSON("sha256sums"))), build.KindOutput, "no such file"},
		{"profiles.json as an image", profiles(profilesOf(imageJSON("profiles.json"))), build.KindOutput, "no such file"},
		{"a manifest that is too large", with("x.manifest", strings.Repeat("a - 1\n", 1<<17)), build.KindOutput, "more than"},
		{"a manifest with control characters", with("x.manifest", "a\x1b[1m - 1\n"), build.KindOutput, "cannot be read"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := output(t, good())
			if err := test.spoil(dir); err != nil {
				t.Fatal(err)
			}
			_, err := Collect(dir, "dev")
			failure, ok := errors.AsType[*build.Failure](err)
			if !ok || failure.Kind != test.kind || !strings.Contains(failure.Detail, test.says) {
				t.Errorf("it ended by %v, want %s with %q", err, test.kind, test.says)
			}
		})
	}
}

// The second of two equal members counts, for all that read it.
func TestCollectTwice(t *testing.T) {
	files := good()
	files["profiles.json"] = strings.Replace(files["profiles.json"], `"profiles":`, `"profiles":{"dev":{"images":[{"name":"gone.bin"}]}},"profiles":`, 1)
	dir := output(t, files)
	out, err := Collect(dir, "dev")
	if err != nil {
		t.Fatal(err)
	}
	wantServed(t, dir, out)
}

// FuzzCollect: whatever stands in profiles.json and in the manifest, the output
// is refused by a sentence, or all that is told of it is true.
func FuzzCollect(f *testing.F) {
	f.Add([]byte(profilesOf(imageJSON("a.bin"))), []byte(goodManifest))
	f.Add([]byte(profilesOf(imageJSON("a.bin")+","+imageJSON("b.bin"))), []byte("x - 1"))
	f.Add([]byte(strings.Replace(profilesOf(imageJSON("a.bin")), `"images"`, `"Images"`, 1)), []byte(""))
	f.Add([]byte(`{"profiles":{"dev":{"images":[{"name":"a.bin"}]},"dev":{"images":[{"name":"a.bin","name":"b.bin"}]}}}`), []byte("a - 1\n\n"))
	f.Add([]byte(`{"profiles":{"dev":{"images":[{"name":"../a.bin"}]}}} trailing`), []byte(" - "))
	f.Fuzz(func(t *testing.T, profiles, manifest []byte) {
		dir := output(t, map[string]string{"a.bin": imageText, "b.bin": imageText, "profiles.json": string(profiles), "x.manifest": string(manifest)})
		out, err := Collect(dir, "dev")
		if err != nil {
			failure, ok := errors.AsType[*build.Failure](err)
			if !ok || failure.Detail == "" || len(failure.Detail) > 1000 || strings.ToValidUTF8(failure.Detail, "") != failure.Detail {
				t.Errorf("it ended by %v", err)
			}
			return
		}
		wantServed(t, dir, out)
		for _, installed := range out.Manifest {
			if !manifestName.MatchString(installed.Name) || !manifestVersion.MatchString(installed.Version) {
				t.Errorf("the manifest has %q", installed)
			}
		}
	})
}
