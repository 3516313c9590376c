# Functions that package scripts may use, on the host (with IPKG_INSTROOT) and
# on the device.

# add_user NAME ID: adds a user and a group unless they are there.
add_user() {
	local etc="$IPKG_INSTROOT/etc"
	grep -q "^$1:" "$etc/passwd" || echo "$1:x:$2:$2:$1:/var/run/$1:/bin/false" >> "$etc/passwd"
	grep -q "^$1:" "$etc/group" || echo "$1:x:$2:" >> "$etc/group"
	grep -q "^$1:" "$etc/shadow" || echo "$1:x:0:0:99999:7:::" >> "$etc/shadow"
}
