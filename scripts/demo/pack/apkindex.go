package pack

import (
	"crypto/ecdsa"
	"errors"
	"fmt"
	"slices"

	"github.com/attended-sysupgrade/sysup/shared/feed"
)

// APKIndexName is the file name of apk's index.
const APKIndexName = "packages.adb"

// ErrUntrusted says, in apk's words, that an index is not signed by any of the given keys.
var ErrUntrusted = errors.New("UNTRUSTED signature")

// APKIndex is the signed index over the given packages, sorted by name. Each package also provides
// <name>-any. Its identity, where apk has a digest of its own, is the file's SHA-256.
func APKIndex(metas []Meta, key *ecdsa.PrivateKey) ([]byte, error) {
	var packages []feed.Package
	for _, m := range metas {
		packages = append(packages, feed.Package{
			Name: m.Name, ABI: m.ABI, Version: m.Version, Arch: m.Arch, Description: m.Description,
			Depends: dependencies(m.Depends), Conflicts: dependencies(m.Conflicts),
			Provides: dependencies(append([]string{m.Name + "-any"}, m.Provides...)),
			Size:     m.Size, InstalledSize: m.InstalledSize, Identity: m.SHA256,
		})
	}
	return feed.WriteADB(packages, key)
}

func dependencies(list []string) []feed.Dependency {
	var all []feed.Dependency
	for _, s := range list {
		d := feed.Dependency{}
		if d.Name, d.Version = Dependency(s); d.Version != "" {
			d.Op = "="
		}
		all = append(all, d)
	}
	return all
}

// ParseAPKIndex returns what an index says once one of keys is seen to have signed it.
func ParseAPKIndex(data []byte, keys []*ecdsa.PublicKey) ([]Meta, error) {
	packages, _, err := feed.OpenADB(data, keys)
	if errors.Is(err, feed.ErrUnsigned) || errors.Is(err, feed.ErrUnknownKey) || errors.Is(err, feed.ErrBadSignature) {
		return nil, ErrUntrusted
	} else if err != nil {
		return nil, err
	}
	var metas []Meta
	for _, p := range packages {
		provides := wishes(p.Provides)
		metas = append(metas, Meta{
			Name: p.Name, ABI: p.ABI, Version: p.Version, Arch: p.Arch, Description: p.Description,
			Depends: wishes(p.Depends), Conflicts: wishes(p.Conflicts),
			Provides: slices.DeleteFunc(provides, func(name string) bool { return name == p.Name+"-any" }),
			Filename: p.File, Size: p.Size, InstalledSize: p.InstalledSize, SHA256: p.Identity,
		})
	}
	return metas, nil
}

// wishes writes "name" or "name (=version)".
func wishes(list []feed.Dependency) []string {
	var all []string
	for _, d := range list {
		if d.Op == "" {
			all = append(all, d.Name)
		} else {
			all = append(all, fmt.Sprintf("%s (%s%s)", d.Name, d.Op, d.Version))
		}
	}
	return all
}
