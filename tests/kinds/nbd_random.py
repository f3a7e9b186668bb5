#!/usr/bin/python3
"""Reads all of an NBD export's data in random order and compares it with a file.

Usage: nbd_random.py URI FILE SEED. The pieces have random sizes, many are under
way at once, and some lie in holes. Prints how many there were.
"""
import os
import random
import sys

import nbd

MAX_PIECE = 300_000
AT_ONCE = 8
HOLES = 50


def pieces(file, size, rng):
    at = 0
    while at < size:
        try:
            start = os.lseek(file, at, os.SEEK_DATA)
        except OSError:
            break
        at = os.lseek(file, start, os.SEEK_HOLE)
        while start < at:
            length = min(rng.choice([512, 4096, 70_001, MAX_PIECE]), at - start)
            yield start, length
            start += length
    for _ in range(HOLES):
        yield rng.randrange(size - 4096), 4096


def main():
    uri, path, seed = sys.argv[1:]
    rng = random.Random(int(seed))
    file = os.open(path, os.O_RDONLY)
    size = os.fstat(file).st_size
    handle = nbd.NBD()
    handle.connect_uri(uri)
    assert handle.get_size() == size, (handle.get_size(), size)
    todo = list(pieces(file, size, rng))
    rng.shuffle(todo)
    count = len(todo)
    flying = {}
    while todo or flying:
        while todo and len(flying) < AT_ONCE:
            offset, length = todo.pop()
            buffer = nbd.Buffer(length)
            flying[handle.aio_pread(buffer, offset)] = (buffer, offset, length)
        handle.poll(-1)
        for cookie in list(flying):
            if not handle.aio_command_completed(cookie):
                continue
            buffer, offset, length = flying.pop(cookie)
            if buffer.to_bytearray() != os.pread(file, length, offset):
                sys.exit(f"{length} bytes at {offset} differ")
    print(count)


main()
