package catalog

import (
	"bytes"
	"fmt"
	"os"
	"regexp"

	"github.com/attended-sysupgrade/sysup/shared/feed"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// releaseKeys are OpenWrt's usign keys as its page of public keys publishes
// them (openwrt.org, "OpenWrt Public Keys", made from its keyring
// repository), under the name that the page gives them.
//
// The keys of 23.05 (fingerprint 682970064b87a917) and 25.12 are missing: that
// page does not show them, and what third parties pass around proves nothing.
// An operator who has them from OpenWrt gives them with --upstream-key.
var releaseKeys = []struct{ name, key string }{
	{"17.01 release builds", "RWR5LZ2bOfGA3FGliZosEDhodiAKDOISmQs/mmjo4rhcbFtqkibJqMzo"},
	{"18.06 release builds", "RWQQNaxzzE5Z41cVmEh2rilAPKLsyfPKm+S4BJWA1Yv+LP1hKebmGtXi"},
	{"19.07 release builds", "RWT5S53W/rrJY9BiIod3JF04AZ/eU1xDpVOb+rjZzAQBEcoETGx8BXEK"},
	{"21.02 release builds", "RWQviwuY4IMGvwLfs6842A0m4EZU1IjczTxKMSk3BQP8DAQLHBwdQiaU"},
	{"22.03 release builds", "RWRNAX5vHtXWFmt+n5di7XX8rTu0w+c8X7Ihv4oCyD6tzsUwmH0A6kO0"},
	{"24.10 release builds", "RWTTEMbygz6X95lKDAulctZy3aj15823THXfyrfXgwGbxZlXBd2brNcw"},
	{"unattended snapshot builds", "RWS1BD5w+adc3j2Hqg9+b66CvLR7NlHbsj7wjNVj0XGt/othDgIAOJS+"},
}

// ReleaseKeys returns OpenWrt's own keys, which every Catalog trusts beside
// those of its Options.
func ReleaseKeys() ([]usign.PublicKey, error) {
	var keys []usign.PublicKey
	for _, k := range releaseKeys {
		key, err := usign.ParsePublicKey([]byte("untrusted comment: OpenWrt, " + k.name + "\n" + k.key + "\n"))
		if err != nil {
			return nil, fmt.Errorf("built-in key of %s: %w", k.name, err)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// The base64 lines that stand for whole files: of usign's, and of PEM.
var (
	usignLine = regexp.MustCompile(`^[A-Za-z0-9+/]{56}$`)
	pemLine   = regexp.MustCompile(`^[A-Za-z0-9+/]{122}==$`)
)

const maxKeyFile = 4 << 10

// Trust adds public keys that sign for the upstream, each given as a file or as
// the base64 in it: usign's sign checksums and the indices of opkg, those in
// PEM sign the indices of apk. Empty values are left out.
func (o *Options) Trust(values []string) error {
	for _, value := range values {
		if value == "" {
			continue
		}
		if err := o.trust(value); err != nil {
			return fmt.Errorf("SYSUP_UPSTREAM_KEY has to be the file of a public key or its base64 line, it is %.200q: %w", value, err)
		}
	}
	return nil
}

func (o *Options) trust(value string) error {
	text, err := keyText(value)
	if err != nil {
		return err
	}
	if bytes.Contains(text, []byte("-----BEGIN ")) {
		key, err := feed.ParsePublicKey(text)
		if err == nil {
			o.APKKeys = append(o.APKKeys, key)
		}
		return err
	}
	key, err := usign.ParsePublicKey(text)
	if err == nil {
		o.Keys = append(o.Keys, key)
	}
	return err
}

func keyText(value string) ([]byte, error) {
	switch {
	case usignLine.MatchString(value):
		return []byte("untrusted comment: upstream\n" + value + "\n"), nil
	case pemLine.MatchString(value):
		return []byte("-----BEGIN PUBLIC KEY-----\n" + value + "\n-----END PUBLIC KEY-----\n"), nil
	}
	file, err := os.Open(value)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return readLimited(file, maxKeyFile)
}
