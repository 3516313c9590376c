package catalog

import (
	"fmt"

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
