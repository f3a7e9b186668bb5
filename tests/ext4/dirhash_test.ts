import assert from "node:assert/strict";
import { bytesFromLatin1, FileSource, viewOf } from "../../lib/io/mod.ts";
import {
  HASH_VERSION,
  hashName,
  type HashOptions,
  type HashSeed,
} from "../../lib/ext4/dirhash.ts";
import {
  DX_NODE_ENTRIES,
  DX_ROOT,
  readDxEntries,
} from "../../lib/ext4/format.ts";
import { Ext4Reader } from "../../lib/ext4/reader.ts";
import { scanDirectoryBlock } from "../../lib/ext4/reader_dir.ts";
import { requires } from "../testutil/requires.ts";
import { debugfsWrite, run, withTempDir } from "./reader_images.ts";

const NO_SEED: HashSeed = [0, 0, 0, 0];
const NAMES = [
  "a",
  "ab",
  "libc.so.6",
  "sixteen-bytes-xx",
  "seventeen-bytes-x",
  "thirty-two-bytes-thirty-two-byte",
  "thirty-three-bytes-thirty-two-byt",
  "x".repeat(255),
];

Deno.test("hashName() gives known values", () => {
  // debugfs 1.47.0: dx_hash -h ALGORITHM hello-world-this-is-a-long-name.txt.gz
  const name = bytesFromLatin1("hello-world-this-is-a-long-name.txt.gz");
  const hash = (version: number) =>
    hashName(name, { version, signed: true, seed: NO_SEED });
  assert.deepEqual(hash(HASH_VERSION.legacy), { major: 0x38723028, minor: 0 });
  assert.deepEqual(hash(HASH_VERSION.halfMd4), {
    major: 0x78373a3a,
    minor: 0x70a3a431,
  });
  assert.deepEqual(hash(HASH_VERSION.tea), {
    major: 0x7d07ead2,
    minor: 0x84878f1f,
  });
  assert.equal(hash(6), undefined);
});

Deno.test("hashName() never gives the hash that means the end of a directory", () => {
  // Found by search: its legacy hash would be 0xfffffffe, and debugfs says so; the kernel does not.
  const options = { version: HASH_VERSION.legacy, signed: true, seed: NO_SEED };
  const hash = hashName(bytesFromLatin1("c7gVk1"), options);
  assert.deepEqual(hash, { major: 0xfffffffc, minor: 0 });
});

Deno.test("signedness matters for bytes above 0x7f only", () => {
  for (const version of [0, 1, 2]) {
    const hash = (text: string, signed: boolean) =>
      hashName(bytesFromLatin1(text), { version, signed, seed: NO_SEED });
    assert.deepEqual(hash("plain", true), hash("plain", false));
    assert.notDeepEqual(hash("n\xe4me", true), hash("n\xe4me", false));
    assert.deepEqual(
      hash("n\xe4me", false),
      hashName(bytesFromLatin1("n\xe4me"), {
        version: version + 3,
        signed: true,
        seed: NO_SEED,
      }),
    );
  }
});

Deno.test({
  name: "hashName() agrees with debugfs dx_hash",
  ignore: !requires("debugfs"),
  fn: async () => {
    const uuid = "12345678-9abc-def0-1234-56789abcdef0";
    const bytes = Uint8Array.fromHex(uuid.replaceAll("-", ""));
    const word = (at: number) => viewOf(bytes).getUint32(at, true);
    const seeded: HashSeed = [word(0), word(4), word(8), word(12)];
    const script: string[] = [];
    const expected: string[] = [];
    for (
      const [version, algorithm] of ["legacy", "half_md4", "tea"].entries()
    ) {
      for (const seed of [NO_SEED, seeded]) {
        for (const name of NAMES) {
          const option = seed === seeded ? `-s ${uuid} ` : "";
          script.push(`dx_hash -h ${algorithm} ${option}${name}`);
          const options = { version, signed: true, seed };
          const hash = hashName(bytesFromLatin1(name), options)!;
          const [major, minor] = [hash.major, hash.minor].map((value) =>
            `0x${value.toString(16)}`
          );
          expected.push(`Hash of ${name} is ${major} (minor ${minor})`);
        }
      }
    }
    const out = await run("debugfs", ["-f", "-"], {
      stdin: script.join("\n") + "\n",
    });
    const got = new TextDecoder().decode(out).split("\n")
      .filter((line) => line.startsWith("Hash of"));
    assert.deepEqual(got, expected);
  },
});

/** Checks that each leaf of a directory's htree holds just the hashes that its parent says. */
async function checkHtree(reader: Ext4Reader, path: string): Promise<number> {
  const stored = await reader.inode(await reader.lookup(path));
  const { extents } = await reader.fileMap(stored);
  const { blockSize } = reader;
  const physical = (logical: number) => {
    const e = extents.find((e) =>
      logical >= e.logicalBlock && logical < e.logicalBlock + e.count
    )!;
    return e.physicalBlock + logical - e.logicalBlock;
  };
  const read = async (logical: number) => {
    const bytes = new Uint8Array(blockSize);
    await device.pread(bytes, physical(logical) * blockSize);
    return bytes;
  };
  const device = devices.get(reader)!;
  const root = await read(0);
  const options: HashOptions = {
    ...reader.hashOptions,
    version: root[DX_ROOT.hashVersion]!,
  };
  let names = 0;
  const visit = async (
    logical: number,
    levels: number,
    low: number,
    high: number,
  ): Promise<void> => {
    const block = await read(logical);
    if (levels < 0) {
      const context = {
        ino: stored.ino,
        blockSize,
        inodesCount: reader.superblock.inodesCount,
        hasFileType: true,
        indexed: true,
        checksumSeed: reader.checksumSeedOf(stored.ino, stored.inode),
      };
      scanDirectoryBlock(context, block, logical, ({ name }) => {
        const { major } = hashName(bytesFromLatin1(name), options)!;
        assert.ok(major >= low && major <= high, name);
        names++;
      });
      return;
    }
    const at = logical === 0 ? DX_ROOT.entries : DX_NODE_ENTRIES;
    const pairs = readDxEntries(viewOf(block), at, blockSize - at)!;
    for (let i = 0; i < pairs.blocks.length; i++) {
      const from = i === 0 ? low : pairs.hashes[i]! & ~1;
      // An equal hash may continue in the next leaf.
      const to = i + 1 < pairs.blocks.length ? pairs.hashes[i + 1]! : high;
      await visit(pairs.blocks[i]!, levels - 1, from >>> 0, to);
    }
  };
  await visit(0, root[DX_ROOT.indirectLevels]!, 0, 0xffffffff);
  return names;
}

const devices = new WeakMap<Ext4Reader, FileSource>();

for (const algorithm of ["half_md4", "tea"]) {
  for (const flags of [1, 2]) {
    const sign = flags === 1 ? "signed" : "unsigned";
    Deno.test({
      name: `hashName() orders names as e2fsck -D does: ${algorithm}, ${sign}`,
      ignore: !requires("mke2fs", "debugfs", "tune2fs", "e2fsck", "python3"),
      fn: () =>
        withTempDir(async (directory) => {
          const image = `${directory}/image`;
          await Deno.mkdir(`${directory}/source`);
          await run("python3", ["-c", MAKE_NAMES, `${directory}/source/d`]);
          await run("mke2fs", [
            ...["-q", "-F", "-t", "ext4", "-b", "1024", "-N", "4000"],
            ...["-d", `${directory}/source`, image, "32M"],
          ]);
          await run("tune2fs", ["-E", `hash_alg=${algorithm}`, image]);
          await debugfsWrite(image, [`set_super_value flags ${flags}`]);
          await run("e2fsck", ["-fyD", image], { codes: [0, 1] });
          await run("e2fsck", ["-fn", image]);
          await using device = await FileSource.open(image);
          const reader = await Ext4Reader.open(device);
          devices.set(reader, device);
          assert.equal(reader.hashOptions.signed, flags === 1);
          assert.equal(await checkHtree(reader, "d"), 2500);
        }),
    });
  }
}

/** 2,500 names of up to 60 random bytes; two levels of htree in 1 KiB blocks. */
const MAKE_NAMES = `
import os, random, sys
random.seed(7)
d = os.fsencode(sys.argv[1])
os.mkdir(d)
for i in range(2500):
    tail = bytes(random.choice(range(128, 256)) for _ in range(random.randrange(60)))
    open(os.path.join(d, b"%d-" % i + tail), "w").close()
`;
