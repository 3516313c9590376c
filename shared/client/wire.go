// Package client is the Go client of /api/v1 and the owner of its JSON types.
//
// The same types are what the server encodes, so that both sides agree by
// construction. Other clients of the same protocol (LuCI, auc, owut, the
// firmware selector) know them too: names and types are theirs.
package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// Request is the body of POST /api/v1/build. Fields left empty are not sent,
// but for those that every server wants to see.
type Request struct {
	Distro      string `json:"distro,omitempty"` // "openwrt"
	Version     string `json:"version"`          // "24.10.5", "SNAPSHOT"
	VersionCode string `json:"version_code"`     // the revision expected, "" for any
	Target      string `json:"target"`           // "x86/64"
	Profile     string `json:"profile"`          // a profile's id or any board name it supports
	// Packages are names, with "-" before those to leave out.
	Packages         []string          `json:"packages,omitempty"`
	PackagesVersions map[string]string `json:"packages_versions,omitempty"` // names to the versions relied on
	DiffPackages     bool              `json:"diff_packages"`               // the list is the whole image, not an addition
	Filesystem       string            `json:"filesystem,omitempty"`        // "squashfs", "ext4"; "" for all
	RootfsSizeMB     *int              `json:"rootfs_size_mb"`              // in MiB; null for the target's own size
	Defaults         string            `json:"defaults"`                    // first-boot script; answers say "(private)"
	Repositories     Repositories      `json:"repositories,omitempty"`      // feed names to addresses
	RepositoriesMode string            `json:"repositories_mode,omitempty"` // "append" or "replace"
	RepositoryKeys   []string          `json:"repository_keys,omitempty"`   // usign base64 or PEM
	Client           string            `json:"client,omitempty"`            // who asks, "name/version"
}

// Repositories is on the wire an object from feed names to addresses. Its
// order decides which feed wins, so it is kept.
type Repositories []build.Repository

// MarshalJSON writes the object in the list's order.
func (r Repositories) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i, repo := range r {
		name, nameErr := json.Marshal(repo.Name)
		url, urlErr := json.Marshal(repo.URL)
		if err := errors.Join(nameErr, urlErr); err != nil {
			return nil, err
		}
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(append(b, name...), ':'), url...)
	}
	return append(b, '}'), nil
}

// UnmarshalJSON reads the object in the order in which it was written.
func (r *Repositories) UnmarshalJSON(b []byte) error {
	*r = nil
	d := json.NewDecoder(bytes.NewReader(b))
	open, err := d.Token()
	if err != nil || open == nil {
		return err
	}
	if open != json.Delim('{') {
		return errors.New("repositories: not an object")
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return err
		}
		var url string
		if err := d.Decode(&url); err != nil {
			return fmt.Errorf("repositories: %w", err)
		}
		*r = append(*r, build.Repository{Name: name.(string), URL: url})
	}
	return nil
}

// Status is the body of every answer about a build that is not done, and the
// first part of that of a done one.
type Status struct {
	Code        int    `json:"status"` // the HTTP status: 200 done, 202 under way, else failed
	Detail      string `json:"detail"` // "queued", "started", "done" or a sentence about the failure
	RequestHash string `json:"request_hash,omitempty"`
	// QueuePosition is 1 for the next one; 0 unless the build is queued.
	// Clients take its presence as the sign of a queued build.
	QueuePosition int64       `json:"queue_position,omitempty"`
	Stage         build.Stage `json:"imagebuilder_status,omitempty"` // while building
	EnqueuedAt    string      `json:"enqueued_at,omitempty"`         // RFC 3339, UTC
	Request       *Request    `json:"request,omitempty"`             // what was asked
	Command       []string    `json:"build_cmd,omitempty"`           // the call of make, once it ended
	Log           string      `json:"log,omitempty"`                 // path of the whole log below the server's address
	// Changes are what is not as it was asked for, because the version has it
	// under another name or not at all.
	Changes []build.Amendment `json:"changes,omitempty"`
	Stdout  string            `json:"stdout"` // tails of make's output
	Stderr  string            `json:"stderr"`
}

// Done tells whether the build has its images.
func (s Status) Done() bool { return s.Code == 200 }

// Result is the body of the answer about a done build: its Status and, merged
// into it as upstream's profiles.json names them, what was built.
type Result struct {
	Status
	// BinDir is the folder of the files below /store/; opaque.
	BinDir           string            `json:"bin_dir"`
	ID               string            `json:"id"` // the profile
	Target           string            `json:"target"`
	Titles           json.RawMessage   `json:"titles"` // list of objects for people
	VersionNumber    string            `json:"version_number"`
	VersionCode      string            `json:"version_code"`
	BuildAt          string            `json:"build_at"` // SOURCE_DATE_EPOCH as a date, not the time of the build
	BuiltAt          string            `json:"built_at"` // time of signing, RFC 3339, UTC
	Images           []Image           `json:"images"`
	ImageHash        string            `json:"image_hash"` // identity of what was built, whatever was asked
	Manifest         map[string]string `json:"manifest"`   // ABI-free package names to versions
	MetadataVersion  int               `json:"metadata_version"`
	ArchPackages     string            `json:"arch_packages"`
	DefaultPackages  []string          `json:"default_packages"`
	DevicePackages   []string          `json:"device_packages"`
	ImagePrefix      string            `json:"image_prefix"`
	SupportedDevices []string          `json:"supported_devices"`
	SourceDateEpoch  int64             `json:"source_date_epoch"`
	LinuxKernel      json.RawMessage   `json:"linux_kernel,omitempty"` // object: release, vermagic, version
	Notes            []string          `json:"notes,omitempty"`        // sentences about what differs from what was asked
}

// Image is one file of a result. SHA256 is that of the bytes served,
// SHA256Unsigned that of the bytes before an operator's signature.
type Image struct {
	Name           string `json:"name"`
	Type           string `json:"type"` // "sysupgrade", "combined", "combined-efi", "factory", …
	Filesystem     string `json:"filesystem"`
	Size           int64  `json:"size,omitempty"` // bytes
	SHA256         string `json:"sha256"`
	SHA256Unsigned string `json:"sha256_unsigned"`
}
