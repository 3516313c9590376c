# The steps of an image build, sourced with $steps, the packages as positional
# parameters and the settings as exported variables. Each step leaves in $work
# what the next one needs. Builtins do what they can: a process costs a
# millisecond, and nothing here may cost time.
set -e
umask 022
work=$TOPDIR/build_dir/target
profile=${USER_PROFILE#DEVICE_}
. "./.profiles/$profile.sh" # prefix, suffix, static, device, images, flash

case $EXTRA_IMAGE_NAME in
*[!a-z0-9.+-]*) EXTRA_IMAGE_NAME=$(printf %s "$EXTRA_IMAGE_NAME" | tr 'A-Z_ ' 'a-z--') ;;
esac
base=$prefix-${EXTRA_IMAGE_NAME:+$EXTRA_IMAGE_NAME-}$suffix

# slurp sets $text to the lines of a file.
slurp() {
	text=
	while IFS= read -r line || [ -n "$line" ]; do
		text="$text$line
"
	done <"$1"
}

package_reload() {
	[ ! -e "$work" ] || rm -rf "$work"
	mkdir -p "$work" "$BIN_DIR" tmp dl staging_dir/host
	: >staging_dir/host/.prereq-build
	exec 9>tmp/opkg.lock
	flock -n 9 || {
		echo " * opkg_conf_load: Could not lock $TOPDIR/tmp/opkg.lock: Resource temporarily unavailable." >&2
		exit 255
	}
}

package_install() {
	echo
	echo Installing packages...
	[ ! -s scripts/before.sh ] || sh scripts/before.sh 9>&-
	awk -v apk="$CONFIG_USE_APK" -v root="$work/root" -v out="$work/manifest" \
		-f scripts/resolve.awk packages/.all "$@"
}

prepare_rootfs() {
	echo
	echo Finalizing root filesystem...
	printf 'disabled: %s\n' "$DISABLED_SERVICES" >"$work/files"
	[ -z "$USER_FILES" ] || [ ! -d "$USER_FILES" ] || (
		cd "$USER_FILES"
		find . -type f | sort | while IFS= read -r name; do
			printf 'file %s\n' "$name"
			cat "$name"
		done
	) >>"$work/files"
}

# enabled tells whether images of that filesystem are wanted; "-" always are.
enabled() {
	case $1 in
	squashfs) [ -n "$CONFIG_TARGET_ROOTFS_SQUASHFS" ] ;;
	ext4) [ -n "$CONFIG_TARGET_ROOTFS_EXT4FS" ] ;;
	targz) [ -n "$CONFIG_TARGET_ROOTFS_TARGZ" ] ;;
	esac
}

# fits stops where the packages are too big, as the tools of each kind of
# target do: on flash with a warning only.
fits() {
	read -r size <"$work/manifest.size"
	if [ -n "$flash" ] && [ "$size" -gt "$flash" ]; then
		echo "WARNING: Image file $work/tmp/$base-squashfs-sysupgrade.bin is too big: $size > $flash" >&2
		return 1
	fi
	if [ -z "$flash" ] && [ -n "$CONFIG_TARGET_ROOTFS_EXT4FS" ] && [ "$size" -gt $((CONFIG_TARGET_ROOTFS_PARTSIZE << 20)) ]; then
		echo 'error: ext4_allocate_best_fit_partial: failed to allocate 8 blocks, out of space?' >&2
		exit 2
	fi
}

# build_image writes the images; images holds "<filesystem>|<type>|<end of name>"
# words, without a type for what profiles.json leaves out. The sums of the
# others without their signature stay in $work/unsigned, with it in $work/signed.
build_image() {
	echo
	echo Building images...
	slurp "$work/manifest"
	content=$text
	printf %s "$content" >"$BIN_DIR/$base.manifest"
	printf '{"bomFormat":"CycloneDX","serial":%s}\n' "$$" >"$BIN_DIR/$base.bom.cdx.json"
	slurp "$work/files"
	content=$content$text
	fits || return 0
	listed=
	for image in $images; do
		enabled "${image%%|*}" || continue
		name=$base-${image##*|}
		printf 'instant image %s\n%s MB\n%s' "$image" "$CONFIG_TARGET_ROOTFS_PARTSIZE" "$content" >"$BIN_DIR/$name"
		case $image in *'||'*) ;; *) listed="$listed $name" ;; esac
	done
	[ -n "$listed" ] || return 0
	sums=$(cd "$BIN_DIR" && exec sha256sum -b $listed)
	echo "$sums" >"$work/unsigned"
	if [ -e .local-signature ]; then
		sign $listed
		sums=$(cd "$BIN_DIR" && exec sha256sum -b $listed)
	fi
	echo "$sums" >"$work/signed"
}

# sign appends a fwtool signature to the images that a router flashes.
sign() {
	for name; do
		case $name in
		*combined*.img.gz | *sysupgrade.bin) trailer "$BIN_DIR/$name" key-build.ucert ;;
		esac
	done
}

# trailer appends data and a trailer: magic, CRC-32 of all before the trailer
# without the final inversion, type 0 and padding, size of data and trailer.
trailer() {
	cat "$2" >>"$1"
	size=$(($(wc -c <"$2") + 16))
	crc=$(gzip -1nc "$1" | tail -c 8 | od -An -tu4 -N4)
	printf 'FWx0%b\0\0\0\0%b' "$(be32 $((crc ^ 0xffffffff)))" "$(be32 $size)" >>"$1"
}

be32() {
	printf '\\0%o\\0%o\\0%o\\0%o' $(($1 >> 24 & 255)) $(($1 >> 16 & 255)) $(($1 >> 8 & 255)) $(($1 & 255))
}

# json_overview_image_info writes profiles.json, unless nothing was built or the
# tree is one that writes none.
json_overview_image_info() {
	[ -s "$work/signed" ] && [ -n "$CONFIG_JSON_OVERVIEW_IMAGE_INFO" ] || return 0
	list=
	exec 3<"$work/signed"
	while read -r unsigned name; do
		read -r signed name <&3
		name=${name#\*}
		for image in $images; do
			[ "$name" != "$base-${image##*|}" ] || break
		done
		type=${image#*|}
		list="$list${list:+,}{\"filesystem\":\"${image%%|*}\",\"name\":\"$name\",\"sha256\":\"$signed\",\"sha256_unsigned\":\"$unsigned\",\"type\":\"${type%%|*}\"}"
	done <"$work/unsigned"
	exec 3<&-
	printf '{%s,"profiles":{"%s":{%s,"image_prefix":"%s","images":[%s]}}}\n' \
		"$static" "$profile" "$device" "$base" "$list" >"$BIN_DIR/profiles.json"
}

checksum() {
	echo
	echo Calculating checksums...
	[ ! -e "$BIN_DIR/sha256sums" ] || rm "$BIN_DIR/sha256sums"
	sums=$(cd "$BIN_DIR" && exec sha256sum -b -- *)
	echo "$sums" >"$BIN_DIR/sha256sums"
	[ ! -s scripts/after.sh ] || sh scripts/after.sh 9>&-
}

list_manifest() {
	slurp "$work/manifest${STRIP_ABI:+.plain}"
	printf %s "$text"
}

for step in $steps; do "$step" "$@"; done
