#!/bin/bash
# Turns the folder of installed packages into a root file system: the user's
# files, then the packages' scripts and the services, which run here, on the
# host, as they do in OpenWrt.
if [ -n "$USER_FILES" ] && [ -d "$USER_FILES" ]; then
	cp -fpR "$USER_FILES/." "$TARGET_DIR"
fi
cd "$TARGET_DIR" || exit 1
if [ -n "$ADD_LOCAL_KEY" ] && [ -s "$TOPDIR/key-build.pub" ]; then
	mkdir -p etc/opkg/keys
	cp "$TOPDIR/key-build.pub" "etc/opkg/keys/$(usign -F -p "$TOPDIR/key-build.pub")"
fi

export IPKG_INSTROOT="$TARGET_DIR"
for script in ./usr/lib/opkg/info/*.postinst ./lib/apk/packages/*.postinst; do
	[ -f "$script" ] || continue
	bash "$script"
	status=$?
	if [ $status -ne 0 ]; then
		echo "postinst script $script has failed with exit code $status" >&2
		exit 1
	fi
done

for script in ./etc/init.d/*; do
	grep -q '^#!/bin/sh /etc/rc.common' "$script" 2>/dev/null || continue
	service=${script##*/}
	case " $DISABLED_SERVICES " in
	*" $service "*)
		bash ./etc/rc.common "$script" disable
		echo "Disabling $service" ;;
	*)
		bash ./etc/rc.common "$script" enable
		echo "Enabling $service" ;;
	esac
done

rm -rf ./tmp/* ./var/lock/*
find . -mindepth 1 -depth -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
touch -d "@$SOURCE_DATE_EPOCH" .
