package build

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"strings"
	"time"
	"unicode/utf8"
)

// Request is what a client asks, decoded from any dialect and not yet held
// against the catalogue. The zero value of a field means that the client did
// not send it.
type Request struct {
	Distro           string            `json:"distro,omitempty"`
	Version          string            `json:"version"`
	VersionCode      string            `json:"version_code,omitempty"` // the revision that the client expects
	Target           string            `json:"target"`                 // "x86/64"
	Profile          string            `json:"profile,omitempty"`      // an id, an alias or a board name
	Model            string            `json:"model,omitempty"`        // a title, the second thing to look a device up by
	Packages         []string          `json:"packages,omitempty"`     // "name", "+name", "-name", "name=version"
	PackagesVersions map[string]string `json:"packages_versions,omitempty"`
	DiffPackages     bool              `json:"diff_packages,omitempty"` // the list is the whole image, not an addition
	Filesystem       string            `json:"filesystem,omitempty"`
	RootfsSizeMB     int               `json:"rootfs_size_mb,omitempty"`
	Defaults         string            `json:"defaults,omitempty"` // first-boot script; makes the request private
	Repositories     []Repository      `json:"repositories,omitempty"`
	RepositoriesMode string            `json:"repositories_mode,omitempty"` // "append" or "replace"
	RepositoryKeys   []string          `json:"repository_keys,omitempty"`
	Client           string            `json:"client,omitempty"`
}

// Repository is a package feed that a client adds. Order matters, so it is a
// list and not a map.
type Repository struct {
	Name string `json:"name"`
	URL  string `json:"url"`
}

// Limits of a request.
const (
	MaxPackages     = 1000
	MaxRepositories = 32
	MaxKeys         = 16
	MaxDefaults     = 20480 // bytes
	MaxRootfsSizeMB = 1024
)

// The patterns of everything in a request that reaches a file name, a make
// variable or a shell. None admits a character that make or a shell expands.
var (
	distroPattern     = newWord(alnum, "_-", 32)
	versionPattern    = newWord(alnum, ".+_-", 40)
	revisionPattern   = newWord(alnum, ".+_-", 64)
	targetPattern     = pair{newWord(alnum, "_-", 32)}
	profilePattern    = newWord(alnum, "_.,+-", 128)
	modelPattern      = newRare(`^[\pL\pN][\pL\pN _.,()+/:#@-]{0,127}$`)
	packagePattern    = newWord(alnum, "_.+-", 128)
	pkgVersionPattern = newWord(alnum, "_.+~:-", 128)
	filesystemPattern = newWord(lower, "-", 20)
	repoNamePattern   = newWord(alnum, "_.-", 64)
	repoURLPattern    = newRare(`^https?://[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?(/[A-Za-z0-9._~+-]+){0,32}/?$`)
	usignKeyPattern   = newRare(`^RW[Q-T][A-Za-z0-9+/]{53}$`) // 42 bytes that begin with "Ed"
	pemKeyPattern     = newRare(`^-----BEGIN PUBLIC KEY-----\n[A-Za-z0-9+/=\n]{1,1000}-----END PUBLIC KEY-----\n?$`)
	clientPattern     = newWord(alnum, " /._~+():;,-", 128)
)

type field struct {
	name, value string
	pattern     pattern
	required    bool
}

func (f field) check() error {
	if f.value == "" && !f.required {
		return nil
	}
	if f.value == "" {
		return invalid("The request lacks %q; send it as a string.", f.name)
	}
	if !f.pattern.MatchString(f.value) {
		return invalid("%q has characters or a length that are not allowed in it: %s", f.name, quote(f.value))
	}
	return nil
}

func checkFields(fields ...field) error {
	for _, f := range fields {
		if err := f.check(); err != nil {
			return err
		}
	}
	return nil
}

// quote shows a bit of what a client sent without passing its control
// characters on.
func quote(s string) string {
	if len(s) > 60 {
		s = s[:60] + "..."
	}
	return strings.ToValidUTF8(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s), "?")
}

// Check holds every field against its pattern and limit. The error is a
// Refusal that names the field.
func (r *Request) Check() error {
	err := checkFields(
		field{"distro", r.Distro, distroPattern, false},
		field{"version", r.Version, versionPattern, true},
		field{"version_code", r.VersionCode, revisionPattern, false},
		field{"target", r.Target, targetPattern, true},
		field{"profile", r.Profile, profilePattern, false},
		field{"model", r.Model, modelPattern, false},
		field{"client", r.Client, clientPattern, false},
	)
	if err != nil {
		return err
	}
	if err := checkPackages(r.Packages, r.PackagesVersions); err != nil {
		return err
	}
	return checkOptions(r.Filesystem, r.RootfsSizeMB, r.Defaults, r.Repositories, r.RepositoriesMode, r.RepositoryKeys)
}

func checkPackages(list []string, versions map[string]string) error {
	if len(list)+len(versions) > MaxPackages {
		return invalid("The request names %d packages; at most %d are allowed.", len(list)+len(versions), MaxPackages)
	}
	for _, entry := range list {
		name, version, pinned := splitPackage(entry)
		if !packagePattern.MatchString(name) || pinned && !pkgVersionPattern.MatchString(version) {
			return invalid("%q is not a package name.", quote(entry))
		}
	}
	for name, version := range versions {
		if !packagePattern.MatchString(name) || !pkgVersionPattern.MatchString(version) {
			return invalid("packages_versions: %q with version %q is not a package name with a version.", quote(name), quote(version))
		}
	}
	return nil
}

func checkOptions(filesystem string, size int, defaults string, repos []Repository, mode string, keys []string) error {
	if filesystem != "" && !filesystemPattern.MatchString(filesystem) {
		return invalid("%q is not the name of a file system.", quote(filesystem))
	}
	if size < 0 || size > MaxRootfsSizeMB {
		return invalid("rootfs_size_mb is %d; it has to be between 1 and %d.", size, MaxRootfsSizeMB)
	}
	if len(defaults) > MaxDefaults {
		return invalid("defaults has %d bytes; at most %d are allowed.", len(defaults), MaxDefaults)
	}
	if !utf8.ValidString(defaults) || strings.ContainsRune(defaults, 0) {
		return invalid("defaults has to be text: it holds bytes that are none.")
	}
	return checkRepositories(repos, mode, keys)
}

func checkRepositories(repos []Repository, mode string, keys []string) error {
	if len(repos) > MaxRepositories || len(keys) > MaxKeys {
		return invalid("At most %d repositories and %d repository_keys are allowed.", MaxRepositories, MaxKeys)
	}
	if mode != "" && mode != "append" && mode != "replace" {
		return invalid(`repositories_mode has to be "append" or "replace".`)
	}
	seen := map[string]bool{}
	for _, repo := range repos {
		if !repoNamePattern.MatchString(repo.Name) || len(repo.URL) > 512 || !repoURLPattern.MatchString(repo.URL) || strings.Contains(repo.URL, "/..") {
			return invalid("repositories: %q with address %q is not a feed name with an http address.", quote(repo.Name), quote(repo.URL))
		}
		if seen[repo.Name] {
			return invalid("repositories: the feed %q is named twice.", repo.Name)
		}
		seen[repo.Name] = true
	}
	for _, key := range keys {
		if !usignKeyPattern.MatchString(key) && !isPEMKey(key) {
			return invalid("repository_keys: %q is no key. Send the second line of a feed's usign public key file, or its PEM public key.", quote(key))
		}
	}
	return nil
}

// isPEMKey tells whether the text holds what every kind of public key is
// wrapped in. Which kinds there are is for apk to know.
func isPEMKey(text string) bool {
	if !pemKeyPattern.MatchString(text) {
		return false
	}
	block, _ := pem.Decode([]byte(text)) // the pattern takes only one
	if block == nil {
		return false
	}
	var wrapped struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	rest, err := asn1.Unmarshal(block.Bytes, &wrapped)
	return err == nil && len(rest) == 0 && wrapped.Key.BitLength > 0
}

// splitPackage takes an entry of a package list apart: the sign is cut from
// the name, a version pin ("base-files=1~r1", as /etc/apk/world holds them)
// is returned beside it.
func splitPackage(entry string) (name, version string, pinned bool) {
	if entry != "" && (entry[0] == '+' || entry[0] == '-') {
		entry = entry[1:]
	}
	return strings.Cut(entry, "=")
}

// Private tells whether the request holds something that nobody else may see.
func (r *Request) Private() bool { return r.Defaults != "" }

// Facts is what the catalogue knows about the device and the version that a
// request names.
type Facts struct {
	Distribution string // "OpenWrt"
	Version      string // "24.10.5", "SNAPSHOT"
	Snapshot     bool   // its revision moves while its version stays
	Revision     string // "r29233-443ec4032a"
	Target       string // "x86/64"
	Profile      string // the profile's id
	Defaults     []string
	// Mandatory are packages that diff_packages must not remove, because a
	// device would not survive without them.
	Mandatory []string
	// Rules is the digest of the package-change rules that were applied, ""
	// for none.
	Rules string
}

// Now is the clock of the package's transitions; records keep whole
// milliseconds so that every driver stores them exactly.
func Now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }

// Since is time.Since by the clock that went further; it is negative for what
// is still to come. While a process is frozen, as Lambda does between two
// events, its monotonic clock may stand still; and the other one may be set back.
func Since(t time.Time) time.Duration {
	return max(time.Since(t), time.Since(t.Round(0)))
}
