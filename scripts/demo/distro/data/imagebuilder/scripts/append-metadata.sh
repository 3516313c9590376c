#!/bin/bash
# Appends what sysupgrade on the router compares with its board: append-metadata.sh IMAGE
boards=
for board in $SUPPORTED_DEVICES; do
	boards="$boards${boards:+, }\"$board\""
done
cat > "$1.metadata" <<END
{ "metadata_version": "1.1", "compat_version": "1.0", "supported_devices": [$boards],
  "version": { "dist": "OpenWrt", "version": "$VERSION_NUMBER", "revision": "$REVISION",
               "target": "$BOARD/$SUBTARGET", "board": "$PROFILE_ID" } }
END
fwtool -I "$1.metadata" "$1"
