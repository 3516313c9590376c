package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// jsonImageInfo writes what profiles.json will say of one image; scripts/json_overview_image_info.py
// merges these files.
//
//	json_image_info --output F --image F --sha256-unsigned HEX --type T [--filesystem FS] --profile ID --prefix P
//	                --title T | --vendor V --model M [--supported "a b"] [--packages "a b"] [--size 1] [--size-limit N]
func jsonImageInfo(args []string) error {
	a := parse(args)
	data, err := os.ReadFile(a.options["image"])
	if err != nil {
		return err
	}
	digest := sha256.Sum256(data)
	image := map[string]any{
		"name":            filepath.Base(a.options["image"]),
		"sha256":          hex.EncodeToString(digest[:]),
		"sha256_unsigned": a.options["sha256-unsigned"],
		"type":            a.options["type"],
	}
	if fs := a.options["filesystem"]; fs != "" {
		image["filesystem"] = fs
	}
	profile := map[string]any{
		"device_packages":   list(a.words("packages")),
		"image_prefix":      a.options["prefix"],
		"images":            []any{image},
		"supported_devices": list(a.words("supported")),
		"titles":            []any{title(a)},
	}
	if a.options["size"] != "" {
		image["size"] = len(data)
		profile["file_size_limits"] = sizeLimits(a.options["size-limit"])
	}
	text, err := json.MarshalIndent(map[string]any{"id": a.options["profile"], "profile": profile}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(a.options["output"], text, 0o644)
}

// list makes JSON show an empty list as such.
func list(words []string) []string { return append([]string{}, words...) }

func title(a arguments) map[string]string {
	if t := a.options["title"]; t != "" {
		return map[string]string{"title": t}
	}
	return map[string]string{"vendor": a.options["vendor"], "model": a.options["model"]}
}

func sizeLimits(limit string) map[string]int {
	limits := map[string]int{}
	if n, err := strconv.Atoi(limit); err == nil {
		limits["image"] = n
	}
	return limits
}

// checkImageSize is check_image_size LIMIT FILE: a file that is too big is removed with a warning, and
// that is no failure.
func checkImageSize(args []string) error {
	if len(args) != 2 {
		return errors.New("a limit and a file must be given")
	}
	limit, err := strconv.ParseInt(args[0], 10, 64)
	if err != nil {
		return err
	}
	info, err := os.Stat(args[1])
	if err != nil || info.Size() <= limit {
		return err
	}
	fmt.Fprintf(os.Stderr, "WARNING: Image file %s is too big: %d > %d\n", args[1], info.Size(), limit)
	return os.Remove(args[1])
}

// bomMain is bom MANIFEST: it prints a CycloneDX bill of materials of the packages in a manifest. As
// with the real one, it holds the time of day.
func bomMain(args []string) error {
	if len(args) != 1 {
		return errors.New("a manifest must be given")
	}
	manifest, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	components := []any{}
	for line := range strings.Lines(string(manifest)) {
		name, version, _ := strings.Cut(strings.TrimSpace(line), " - ")
		components = append(components, map[string]string{
			"type": "application", "name": name, "version": version, "bom-ref": name + "-" + version,
		})
	}
	text, err := json.MarshalIndent(map[string]any{
		"bomFormat": "CycloneDX", "specVersion": "1.4", "version": 1,
		"metadata":   map[string]string{"timestamp": time.Now().UTC().Format(time.RFC3339)},
		"components": components,
	}, "", "  ")
	fmt.Println(string(text))
	return err
}

// targetinfoMain is targetinfo FILE: it prints the make variables of a target's profiles.
func targetinfoMain(args []string) error {
	if len(args) != 1 {
		return errors.New("one file must be given")
	}
	data, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	var device string
	var names []string
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		switch key {
		case "Default-Packages":
			fmt.Println("DEFAULT_PACKAGES :=", value)
		case "Target-Profile":
			device = value
			names = append(names, device)
		case "Target-Profile-Name", "Target-Profile-Packages", "Target-Profile-SupportedDevices", "Target-Profile-hasImageMetadata":
			fmt.Printf("%s_%s := %s\n", device, strings.TrimPrefix(key, "Target-Profile-"), value)
		}
	}
	fmt.Println("PROFILE_NAMES :=", strings.Join(names, " "))
	return nil
}
