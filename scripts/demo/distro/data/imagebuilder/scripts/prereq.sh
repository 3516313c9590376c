#!/bin/bash
# Looks for the host's tools and links them into the tree, by the path at which
# they are found now. Usage: prereq.sh STAMP
exec >&2
missing=
for tool in bash make tar find gawk gzip wget python3 sha256sum sort touch truncate ${OLD:+python2}; do
	path=$(PATH=${PATH#*:} command -v "$tool")
	if [ -z "$path" ]; then
		echo "Checking '$tool'... failed."
		missing="$missing $tool"
		continue
	fi
	echo "Checking '$tool'... ok."
	ln -sfn "$path" "staging_dir/host/bin/$tool"
done
if [ -n "$missing" ]; then
	echo
	for tool in $missing; do
		echo "Build dependency: Please install '$tool'"
	done
	exit 1
fi
touch "$1"
