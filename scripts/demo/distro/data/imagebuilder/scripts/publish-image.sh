#!/bin/bash
# Puts a finished image into BIN_DIR, signed by the tree's own key where SIGN is
# set and there is one, and notes it for profiles.json: publish-image.sh FILE TYPE
set -e
file=$1
type=$2
target="$BIN_DIR/${file##*/}"
unsigned=$(sha256sum < "$file" | cut -d ' ' -f 1)
cp "$file" "$target.new"
if [ -n "$SIGN" ] && [ -s "$TOPDIR/key-build" ] && [ -s "$TOPDIR/key-build.ucert" ]; then
	usign -S -m "$file" -s "$TOPDIR/key-build" -x "$file.sig"
	cat "$TOPDIR/key-build.ucert" "$file.sig" > "$file.ucert"
	fwtool -S "$file.ucert" "$target.new"
fi
mv "$target.new" "$target"
json_image_info --output "$JSON_DIR/${file##*/}.json" --image "$target" --sha256-unsigned "$unsigned" \
	--type "$type" --filesystem "$FILESYSTEM" --profile "$PROFILE_ID" --prefix "$IMG_PREFIX-$PROFILE_ID" \
	--title "$DEVICE_TITLE" --vendor "$DEVICE_VENDOR" --model "$DEVICE_MODEL" \
	--supported "$SUPPORTED_DEVICES" --packages "$DEVICE_PACKAGES" \
	--size "$CONFIG_USE_APK" --size-limit "$SIZE_LIMIT"
