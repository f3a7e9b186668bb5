"""Trees, archives and listings for the tests of lib/tar, with Python's tarfile.

make DIR ROOT   a tree with every kind of entry ("1" as ROOT: devices, owners)
stat DIR        JSON of the tree as the file system has it
write TAR FORMAT SEED   a random archive (ustar, gnu, pax)
list TAR        JSON of an archive as tarfile reads it

Names and values are given as latin1 of their bytes.
"""
import hashlib
import io
import json
import os
import random
import stat
import sys
import tarfile


def latin1(raw):
    return raw.decode("latin1")


def tar_text(text):
    return latin1(text.encode("utf-8", "surrogateescape"))


def sha256(raw):
    return hashlib.sha256(raw).hexdigest()


def write_at(path, size, pieces):
    with open(path, "wb") as f:
        f.truncate(size)
        for offset, raw in pieces:
            f.seek(offset)
            f.write(raw)


def make(root, is_root):
    rnd = random.Random(7)
    os.makedirs(root)
    os.chdir(os.fsencode(root))
    os.makedirs("dir/sub")
    for size in (0, 1, 511, 512, 513, 4096, 70001):
        write_at(f"dir/f{size}", size, [(0, rnd.randbytes(size))])
    write_at("sparse", 3_000_001, [(65536, rnd.randbytes(9000)), (2_000_000, b"x")])
    write_at("sparse-end", 1_000_000, [(999_000, rnd.randbytes(1000))])
    pieces = [(i * 12288, rnd.randbytes(100)) for i in range(60)]
    write_at("sparse-many", 60 * 12288, pieces)
    write_at("holes", 400_000, [])
    os.link("dir/f511", "dir/hard")
    os.symlink("../dir/./f1", "dir/sym")
    os.symlink("/absolute//target/", "sym-absolute")
    os.mkfifo("fifo")
    os.chmod("dir/f512", 0o4755)
    os.chmod("dir/sub", 0o1777)
    if is_root:
        os.mknod("char", 0o620 | stat.S_IFCHR, os.makedev(5, 1))
        os.mknod("block", 0o660 | stat.S_IFBLK, os.makedev(259, 70000))
        os.chown("dir/f1", 1000, 65534)
    os.utime("dir/f513", ns=(0, 1_600_000_000_123_456_789))


def make_long(root):
    """What only the newer formats can hold."""
    os.chdir(os.fsencode(root))
    deep = "/".join(["d" * 90] * 4)
    os.makedirs(deep)
    write_at(f"{deep}/{'n' * 255}", 3, [(0, b"abc")])
    os.symlink("t" * 300, f"{deep}/sym")
    os.link(f"{deep}/{'n' * 255}", f"{deep}/hard")
    write_at(b"caf\xe9 \xff\n", 2, [(0, b"ok")])
    write_at("snow\u2603", 2, [(0, b"ok")])
    os.utime("dir/f1", ns=(0, -1_500_000_000))
    try:
        os.setxattr("dir/f1", "user.b", b"\0\xff=\n")
        os.setxattr("dir/f1", "user.a", b"text")
        os.setxattr("dir/f512", "user.empty", b"")
    except OSError:
        pass  # a file system without them: nothing to compare


def stat_one(path):
    st = os.lstat(path)
    kind = stat.S_IFMT(st.st_mode)
    out = {
        "mode": stat.S_IMODE(st.st_mode),
        "uid": st.st_uid,
        "gid": st.st_gid,
        "mtimeNs": str(st.st_mtime_ns),
        "size": 0,
        "link": "",
        "dev": [0, 0],
        "xattrs": [],
    }
    if kind == stat.S_IFREG:
        out["type"] = "file"
        out["size"] = st.st_size
        with open(path, "rb") as f:
            out["sha256"] = sha256(f.read())
        names = os.listxattr(path, follow_symlinks=False)
        out["xattrs"] = sorted(
            [n, os.getxattr(path, n).hex()] for n in names if n.startswith("user.")
        )
        if st.st_nlink > 1:
            out["inode"] = st.st_ino
    elif kind == stat.S_IFDIR:
        out["type"] = "directory"
    elif kind == stat.S_IFLNK:
        out["type"] = "symlink"
        out["link"] = latin1(os.readlink(path))
    elif kind == stat.S_IFIFO:
        out["type"] = "fifo"
    else:
        out["type"] = "char" if kind == stat.S_IFCHR else "block"
        out["dev"] = [os.major(st.st_rdev), os.minor(st.st_rdev)]
    return out


def stat_tree(root):
    root = os.fsencode(root)
    out = {"": stat_one(root)}
    for folder, dirs, files in os.walk(root):
        for name in dirs + files:
            path = os.path.join(folder, name)
            out[latin1(os.path.relpath(path, root))] = stat_one(path)
    return out


TYPES = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.GNUTYPE_SPARSE: "file",
    tarfile.LNKTYPE: "hardlink",
    tarfile.SYMTYPE: "symlink",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.DIRTYPE: "directory",
    tarfile.FIFOTYPE: "fifo",
}


def list_tar(path):
    out = []
    with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as tf:
        for m in tf:
            is_device = m.type in (tarfile.CHRTYPE, tarfile.BLKTYPE)
            out.append({
                "path": tar_text(m.name),
                "type": TYPES[m.type],
                "mode": m.mode & 0o7777,
                "uid": m.uid,
                "gid": m.gid,
                "mtime": m.pax_headers.get("mtime", str(m.mtime)),
                "size": m.size if m.isreg() else 0,
                "sha256": sha256(tf.extractfile(m).read()) if m.isreg() else "",
                "link": tar_text(m.linkname) if m.islnk() or m.issym() else "",
                "dev": [m.devmajor, m.devminor] if is_device else [0, 0],
                "xattrs": sorted(
                    [tar_text(k[13:]), tar_text(v).encode("latin1").hex()]
                    for k, v in m.pax_headers.items()
                    if k.startswith("SCHILY.xattr.")
                ),
            })
    return out


def name(rnd, longest):
    parts = []
    for _ in range(rnd.randint(1, 4)):
        size = rnd.choice((1, 8, 30, longest))
        parts.append("".join(rnd.choice("abcXYZ019._- \u00e9\u2603") for _ in range(size)))
    # Dots alone would be another path.
    return "/".join(p if p.strip(".") else "x" for p in parts)


def write_tar(path, form, seed):
    rnd = random.Random(seed)
    formats = {
        "ustar": tarfile.USTAR_FORMAT,
        "gnu": tarfile.GNU_FORMAT,
        "pax": tarfile.PAX_FORMAT,
    }
    small = form == "ustar"
    with tarfile.open(path, "w", format=formats[form], encoding="utf-8") as tf:
        for i in range(120):
            m = tarfile.TarInfo(f"{i}" if small else f"{i}" + name(rnd, 60))
            m.type = rnd.choice((b"0", b"0", b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7"))
            m.mode = rnd.randint(0, 0o7777)
            top = 0o7777777 if small else 2**32 - 2
            m.uid, m.gid = rnd.randint(0, top), rnd.randint(0, top)
            m.mtime = rnd.randint(0, 2**33 - 1)
            if form == "gnu" and i % 5 == 0:
                m.mtime = -rnd.randint(1, 2**40)
            if m.type in (b"1", b"2"):
                m.linkname = "0target" if small else "t" + name(rnd, 90)
            if m.type in (b"3", b"4"):
                m.devmajor, m.devminor = rnd.randint(0, 4095), rnd.randint(0, 2**20 - 1)
            if form == "pax":
                m.pax_headers["mtime"] = f"{m.mtime}.{rnd.randint(0, 10**9 - 1):09}"
                if i % 3 == 0:
                    m.pax_headers["SCHILY.xattr.user.x"] = name(rnd, 50)
            raw = b""
            if m.type in (b"0", b"7"):
                raw = rnd.randbytes(rnd.choice((0, 1, 511, 512, 513, 3000)))
            m.size = len(raw)
            tf.addfile(m, io.BytesIO(raw))


def main(command, *args):
    if command == "make":
        make(args[0], args[1] == "1")
    elif command == "make-long":
        make_long(args[0])
    elif command == "stat":
        print(json.dumps(stat_tree(args[0])))
    elif command == "write":
        write_tar(args[0], args[1], int(args[2]))
    elif command == "list":
        print(json.dumps(list_tar(args[0])))


main(*sys.argv[1:])
