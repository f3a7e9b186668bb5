#!/usr/bin/env python3
"""Prints everything that a directory tree is, one JSON line per entry, sorted.

Used to compare what obd serves with what umoci unpacks. Hard-link groups are
named by their first path. Of several directories the lists are apart by an
empty line.
"""
import hashlib
import json
import os
import stat
import sys


def describe(root: bytes, path: bytes, groups: dict) -> dict:
    full = os.path.join(root, path) if path else root
    st = os.lstat(full)
    name = path.decode("utf-8", "surrogateescape").encode("utf-8", "backslashreplace").decode()
    entry = {
        "path": name,
        "type": stat.filemode(st.st_mode)[0],
        "mode": oct(stat.S_IMODE(st.st_mode)),
        "uid": st.st_uid,
        "gid": st.st_gid,
        "mtime": st.st_mtime_ns,
    }
    xattrs = {}
    for attr in sorted(os.listxattr(full, follow_symlinks=False)):
        # The overlay and SELinux mounts of the test machine add their own.
        if attr == "security.selinux" or attr.startswith("trusted.overlay."):
            continue
        xattrs[attr] = os.getxattr(full, attr, follow_symlinks=False).hex()
    if xattrs:
        entry["xattrs"] = xattrs
    if stat.S_ISLNK(st.st_mode):
        entry["target"] = os.readlink(full).hex()
    elif stat.S_ISREG(st.st_mode):
        entry["size"] = st.st_size
        digest = hashlib.sha256()
        with open(full, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        entry["sha256"] = digest.hexdigest()
    elif stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode):
        entry["rdev"] = [os.major(st.st_rdev), os.minor(st.st_rdev)]
    if not stat.S_ISDIR(st.st_mode) and st.st_nlink > 1:
        entry["group"] = groups.setdefault((st.st_dev, st.st_ino), name)
        entry["links"] = st.st_nlink
    return entry


def show(root: bytes) -> None:
    paths = [b""]
    for base, dirs, files in os.walk(root):
        for name in dirs + files:
            paths.append(os.path.relpath(os.path.join(base, name), root))
    groups: dict = {}
    for path in sorted(paths):
        print(json.dumps(describe(root, path, groups), sort_keys=True))


for number, argument in enumerate(sys.argv[1:]):
    if number > 0:
        print()
    show(os.fsencode(argument))
