#!/bin/bash
# Makes the tree's own keys, when there are none: with opkg they sign its package
# index and its images, with apk the index alone.
set -e
if [ -n "$CONFIG_USE_APK" ]; then
	[ ! -s private-key.pem ] || exit 0
	echo 'Generate local signing keys...'
	apk-key private-key.pem public-key.pem
	cp public-key.pem "keys/local-$(sha256sum < public-key.pem | cut -c 1-16).pem"
else
	[ ! -s key-build ] || [ ! -s key-build.pub ] || exit 0
	echo 'Generate local signing keys...'
	usign -G -s key-build -p key-build.pub -c 'Local build key'
	usign -S -m key-build.pub -s key-build -x key-build.ucert
	cp key-build.pub "keys/$(usign -F -p key-build.pub)"
fi
