# resolve.awk INDEX PACKAGE…: which packages are installed, with what they need,
# and the complaints of opkg or apk. INDEX has tab-separated lines: full name,
# name without ABI version, version, size, depends, provides, conflicts, files.
# Writes "<name> - <version>" lines to out, without ABI versions to out.plain, the
# sum of sizes to out.size.
BEGIN {
	FS = "\t"
	while ((getline <ARGV[1]) > 0) {
		full[$1] = $1; version[$1] = $3; size[$1] = $4; plain[$1] = $2
		depends[$1] = $5; conflicts[$1] = $7; files[$1] = $8
		n = split($2 " " $6, p, " ")
		for (i = 1; i <= n; i++) if (!(p[i] in provider)) provider[p[i]] = $1
	}
	for (a = 2; a < ARGC; a++) { asked = ARGV[a]; install(asked, "") }
	check_conflicts()
	if (failed) exit 1
	print total + 0 >(out ".size")
	n = sorted(names)
	for (i = 1; i <= n; i++) {
		print names[i] " - " version[names[i]] >out
		print plain[names[i]] " - " version[names[i]] >(out ".plain")
	}
}

function sorted(list, n, i, j, name) {
	for (name in installed) {
		for (j = n++; j > 0 && list[j] > name; j--) list[j + 1] = list[j]
		list[j + 1] = name
	}
	return n + 0
}

function install(name, by, f, list, n, i) {
	f = (name in full) ? name : provider[name]
	if (f == "") { missing(name, by); return }
	if (f in installed) return
	installed[f] = 1
	total += size[f]
	n = split(depends[f], list, " ")
	for (i = 1; i <= n; i++) install(list[i], f)
	if (!apk && files[f] != "") {
		if (files[f] in owner) clash(f, files[f])
		owner[files[f]] = f
	}
	if (!failed) print apk ? "Installing " f " (" version[f] ")" : "Installing " f " (" version[f] ") to root..."
}

function say(line) { print line >"/dev/stderr" }

function collected() { if (!failed && !apk) say("Collected errors:"); failed = 1 }

function missing(name, by) {
	collected()
	if (apk) {
		if (!told++) say("ERROR: unable to select packages:")
		say("  " name " (no such package):")
		say("    required by: " (by == "" ? "world" : by "-" version[by]) "[" name "]")
		return
	}
	if (by == "") { say(" * opkg_install_cmd: Cannot install package " name "."); return }
	say(" * pkg_hash_check_unresolved: cannot find dependency " name " for " by)
	say(" * opkg_install_cmd: Cannot install package " asked ".")
}

function clash(name, file) {
	collected()
	say(" * check_data_file_clashes: Package " name " wants to install file " root file)
	say("\tBut that file is already provided by package  * " owner[file])
	say(" * opkg_install_cmd: Cannot install package " name ".")
}

function check_conflicts(name, list, n, i) {
	for (name in installed) {
		n = split(conflicts[name], list, " ")
		for (i = 1; i <= n; i++) if (list[i] in installed) conflict(name, list[i])
	}
}

function conflict(name, other) {
	collected()
	if (apk) {
		if (!told++) say("ERROR: unable to select packages:")
		say("  " other "-" version[other] ":")
		say("    breaks: " name "-" version[name] "[!" other "]")
		say("    satisfies: world[" other "]")
		return
	}
	say(" * check_conflicts_for: The following packages conflict with " name ":")
	say(" * check_conflicts_for: \t" other " * ")
	say(" * opkg_install_cmd: Cannot install package " name ".")
}
