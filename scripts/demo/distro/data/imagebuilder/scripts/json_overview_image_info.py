#!/usr/bin/env python3
"""Merges the notes about single images into profiles.json.

Usage: json_overview_image_info.py FOLDER OUTPUT. Without notes nothing is written.
"""

import json
import os
import pathlib
import sys

folder, output = sys.argv[1:]
profiles = {}
for note in sorted(pathlib.Path(folder).glob("*.json")):
    info = json.loads(note.read_text())
    profile = profiles.setdefault(info["id"], info["profile"])
    if profile is not info["profile"]:
        profile["images"] += info["profile"]["images"]

if not profiles:
    print("json_overview_image_info: no images were made", file=sys.stderr)
    sys.exit(0)

env = os.environ
overview = {
    "arch_packages": env["ARCH_PACKAGES"],
    "default_packages": sorted(env["DEFAULT_PACKAGES"].split()),
    "linux_kernel": {
        "release": env["LINUX_RELEASE"],
        "vermagic": env["LINUX_VERMAGIC"],
        "version": env["LINUX_VERSION"],
    },
    "metadata_version": 1,
    "profiles": profiles,
    "source_date_epoch": int(env["SOURCE_DATE_EPOCH"]),
    "target": env["BOARD"] + "/" + env["SUBTARGET"],
    "version_code": env["REVISION"],
    "version_number": env["VERSION_NUMBER"],
}
pathlib.Path(output).write_text(json.dumps(overview, sort_keys=True, separators=(",", ":")))
