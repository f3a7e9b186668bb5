"""Reads a gzip blob at random through a gzip.meta, by the letter of its format.

Knows nothing of obd. Does what gzfile.cpp does, with the system's zlib:
inflatePrime for the bits, inflateSetDictionary for the window.
Usage: zran.py BLOB GZIP_META TAR OFFSET:LENGTH..., prints "ok N" or fails.
"""

import ctypes
import struct
import sys
import zlib


def read_index(meta, blob_size):
    assert meta[:7] == b"ddgzidx" and meta[8] == 1, "magic, version"
    algorithm, span, window, entry_size = struct.unpack_from("<B2x2i", meta, 10) + \
        struct.unpack_from("<i", meta, 21)
    count, gzip_size, file_size, tar_size = struct.unpack_from("<4q", meta, 25)
    start, length = struct.unpack_from("<2q", meta, 313)
    assert algorithm == 1 and window == 32768 and entry_size == 29
    assert span >= 65536, "smallest span of the format"
    assert gzip_size == blob_size and file_size == len(meta)
    assert start + length == len(meta)
    area = zlib.decompress(meta[start:])
    assert len(area) == 29 * count
    entries = []
    for i in range(count):
        de_pos, en_pos, win_pos, bits, win_len = struct.unpack_from(
            "<3qBI", area, 29 * i)
        entries.append((de_pos, en_pos, bits, meta[win_pos:win_pos + win_len]))
    assert entries[0][0] == 0
    assert all(a[0] < b[0] for a, b in zip(entries, entries[1:]))
    return entries, tar_size


class ZStream(ctypes.Structure):
    _fields_ = [
        ("next_in", ctypes.c_void_p), ("avail_in", ctypes.c_uint),
        ("total_in", ctypes.c_ulong), ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint), ("total_out", ctypes.c_ulong),
        ("msg", ctypes.c_char_p), ("state", ctypes.c_void_p),
        ("zalloc", ctypes.c_void_p), ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p), ("data_type", ctypes.c_int),
        ("adler", ctypes.c_ulong), ("reserved", ctypes.c_ulong),
    ]


LIBZ = ctypes.CDLL("libz.so.1")
LIBZ.zlibVersion.restype = ctypes.c_char_p


def pread(blob, entries, offset, length):
    entry = [e for e in entries if e[0] <= offset][-1]
    de_pos, en_pos, bits, stored = entry
    window = zlib.decompress(stored)
    assert len(window) == 32768
    z = ZStream()
    ref = ctypes.byref(z)
    assert LIBZ.inflateInit2_(
        ref, -15, LIBZ.zlibVersion(), ctypes.sizeof(z)) == 0
    try:
        if bits:
            first = blob[en_pos - 1] >> (8 - bits)
            assert LIBZ.inflatePrime(ref, bits, first) == 0
        assert LIBZ.inflateSetDictionary(ref, window, len(window)) == 0
        data = blob[en_pos:]
        out = ctypes.create_string_buffer(offset - de_pos + length)
        z.next_in = ctypes.cast(data, ctypes.c_void_p)
        z.avail_in = len(data)
        z.next_out = ctypes.cast(out, ctypes.c_void_p)
        z.avail_out = len(out)
        status = LIBZ.inflate(ref, 2)
        assert status in (0, 1) and z.avail_out == 0, (status, z.msg)
        return out.raw[offset - de_pos:]
    finally:
        LIBZ.inflateEnd(ref)


def main(blob_path, meta_path, tar_path, *wanted):
    with open(blob_path, "rb") as file:
        blob = file.read()
    with open(meta_path, "rb") as file:
        entries, tar_size = read_index(file.read(), len(blob))
    with open(tar_path, "rb") as file:
        tar = file.read()
    assert tar_size == len(tar)
    ranges = [tuple(map(int, w.split(":"))) for w in wanted]
    # The first bytes behind each place to resume are those that windows matter to.
    ranges += [(e[0], min(40000, len(tar) - e[0])) for e in entries]
    for offset, length in ranges:
        got = pread(blob, entries, offset, length)
        assert got == tar[offset:offset + length], f"wrong at {offset}"
    print("ok", len(ranges))


main(*sys.argv[1:])
