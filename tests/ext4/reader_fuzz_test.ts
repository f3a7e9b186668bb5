/** Seeded mutation of small images: whatever is wrong, it is an ObdError, soon. */

import assert from "node:assert/strict";
import { MemorySource, ObdError, viewOf } from "../../lib/io/mod.ts";
import { Ext4Reader } from "../../lib/ext4/reader.ts";
import { requires } from "../testutil/requires.ts";
import { debugfsWrite, run, withTempDir } from "./reader_images.ts";

const SEED = 20_240_611;
const ROUNDS = 400;
const ROUND_MS_MAX = 3_000;
const VALUES = [
  0,
  1,
  2,
  7,
  0x7f,
  0x80,
  0xff,
  0x7fff,
  0xffff,
  0x7fffffff,
  0xffffffff,
];

function random(seed: number): (limit: number) => number {
  return (limit) => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return Math.floor(((t ^ (t >>> 14)) >>> 0) / 2 ** 32 * limit);
  };
}

const MAKE_SOURCE = `
import os, sys
os.chdir(sys.argv[1])
for d in ("a", "a/b", "c"):
    os.mkdir(d)
for i in range(40):
    open("c/name-%d" % i, "w").write("body %d" % i)
with open("holes", "wb") as f:
    for i in range(100):
        f.seek(i * 2048)
        f.write(b"x" * 1024)
os.symlink("../c/name-1", "a/b/short")
os.symlink("long/" * 30, "a/b/long")
`;

async function makeImage(
  directory: string,
  options: string[],
): Promise<Uint8Array<ArrayBuffer>> {
  const source = `${directory}/source`;
  await Deno.mkdir(source);
  await run("python3", ["-c", MAKE_SOURCE, source]);
  const image = `${directory}/image`;
  await run("mke2fs", [
    ...["-q", "-F", "-b", "1024", "-I", "256", "-N", "128", ...options],
    ...["-d", source, image, "1M"],
  ]);
  await Deno.writeTextFile(`${directory}/value`, "v".repeat(300));
  await debugfsWrite(image, [`ea_set -f ${directory}/value holes user.v`]);
  return await Deno.readFile(image);
}

/** Reads everything that the reader can read. */
async function readAll(bytes: Uint8Array): Promise<void> {
  const reader = await Ext4Reader.open(new MemorySource(bytes));
  for await (const _ of reader.bitmaps("block"));
  for await (const _ of reader.inodes());
  for await (const entry of reader.walk()) {
    await reader.xattrs(entry.ino);
    const { type, ino } = reader.statOf(entry);
    if (type === "symlink") await reader.readlink(ino);
    if (type !== "file") continue;
    await using body = await reader.openFile(ino);
    const part = new Uint8Array(Math.min(body.size, 4096));
    await body.pread(part, 0);
    await body.pread(part, body.size - part.length);
    let pieces = 0;
    for (const _ of body.extents!(0, body.size)) pieces++;
    assert.ok(pieces < 4096);
  }
}

/** Blocks that hold something, so that mutations do not all hit zeros. */
function busyBlocks(bytes: Uint8Array): number[] {
  const blocks: number[] = [];
  for (let at = 0; at < bytes.length; at += 1024) {
    if (bytes.subarray(at, at + 1024).some((byte) => byte !== 0)) {
      blocks.push(at);
    }
  }
  return blocks;
}

for (const type of ["ext4", "ext2"]) {
  Deno.test({
    name:
      `mutated ${type} images never do worse than an ObdError (seed ${SEED})`,
    ignore: !requires("mke2fs", "debugfs", "python3"),
    fn: () =>
      withTempDir(async (directory) => {
        const options = type === "ext2"
          ? ["-t", "ext2"]
          : ["-t", "ext4", "-O", "^metadata_csum,^has_journal,uninit_bg"];
        const original = await makeImage(directory, options);
        await readAll(original);
        const blocks = busyBlocks(original);
        const next = random(SEED);
        let refused = 0;
        for (let round = 0; round < ROUNDS; round++) {
          const bytes = original.slice();
          for (let change = next(6); change >= 0; change--) {
            const at = blocks[next(blocks.length)]! + next(255) * 4;
            const value = VALUES[next(VALUES.length)]!;
            const width = next(3);
            if (width === 0) bytes[at + next(4)] = value;
            else if (width === 1) viewOf(bytes).setUint16(at, value, true);
            else viewOf(bytes).setUint32(at, value, true);
          }
          const start = performance.now();
          try {
            await readAll(bytes);
          } catch (error) {
            assert.ok(
              error instanceof ObdError,
              `round ${round}: ${(error as Error).stack}`,
            );
            refused++;
          }
          const took = performance.now() - start;
          assert.ok(took < ROUND_MS_MAX, `round ${round} took ${took} ms`);
        }
        // A harness that changes nothing that matters would prove nothing.
        assert.ok(refused > ROUNDS / 20, `only ${refused} refused`);
      }),
  });
}
