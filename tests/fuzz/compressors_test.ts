/**
 * What the compressors of the world write: for each of them, an index with any
 * interval reads at random what the decompressor of the format gives.
 */

import assert from "node:assert/strict";
import * as zlib from "node:zlib";
import { concatBytes, equalBytes, loadLibc } from "../../lib/io/mod.ts";
import { requires } from "../testutil/requires.ts";
import { compressWith, seekable, skippable } from "../zstd/helpers.ts";
import { plausibleBytes, scanInline } from "./layers_made.ts";
import { Random } from "./random.ts";
import { openScanned } from "./read_spans.ts";

loadLibc(); // not a leak of the first test

const KIB = 1024;
const MIB = 1024 * KIB;
/** Uncompressed bytes between checkpoints. */
const INTERVALS = [64 * KIB, 100_003, 256 * KIB, MIB];
const READS = 40;
const READ_MAX = 150_000;

/** Text, noise, zeros and far repeats: every kind of block occurs. */
const CONTENT = concatBytes([
  plausibleBytes(500_000, 11),
  new Random(1, "noise").bytes(150_000),
  new Uint8Array(300_000),
  plausibleBytes(250_001, 12),
]);

interface Compressor {
  name: string;
  command: string[];
  /** Bytes of the content; slow ones get less. */
  size?: number;
  /** At least so many members or frames come out. */
  members?: number;
}

const GZIP: Compressor[] = [
  ...["-1", "-6", "-9"].map((level): Compressor => ({
    name: `gzip ${level}`,
    command: ["gzip", "-c", level],
  })),
  { name: "gzip --rsyncable", command: ["gzip", "-c", "--rsyncable"] },
  {
    name: "gzip with a name",
    command: ["gzip", "-c", "--name", "FILE"],
  },
  { name: "pigz -p2", command: ["pigz", "-c", "-p2", "-b", "128"] },
  {
    name: "pigz -p2 -i",
    command: ["pigz", "-c", "-p2", "-i", "-b", "128"],
  },
  { name: "pigz -p1 -1", command: ["pigz", "-c", "-p1", "-1"] },
  {
    name: "pigz --rsyncable",
    command: ["pigz", "-c", "-p2", "--rsyncable"],
  },
  {
    name: "pigz -11 (zopfli)",
    command: ["pigz", "-c", "-p1", "-11", "-I", "1"],
    size: 120_000,
  },
  { name: "bgzip", command: ["bgzip", "-c"], members: 10 },
  { name: "bgzip -l 9", command: ["bgzip", "-c", "-l", "9"], members: 10 },
  ...["-0", "-1", "-3"].map((level): Compressor => ({
    name: `igzip ${level}`,
    command: ["igzip", "-c", level, "FILE"],
  })),
  {
    name: "zopfli",
    command: ["zopfli", "-c", "--i1", "FILE"],
    size: 120_000,
  },
];

const ZSTD: Compressor[] = [
  { name: "zstd -1", command: ["zstd", "-qc", "-1"] },
  { name: "zstd -T2", command: ["zstd", "-qc", "-T2", "-B256K", "FILE"] },
  { name: "zstd --rsyncable", command: ["zstd", "-qc", "-T2", "--rsyncable"] },
  { name: "zstd --long=27", command: ["zstd", "-qc", "--long=27", "FILE"] },
  {
    name: "zstd --ultra -22",
    command: ["zstd", "-qc", "--ultra", "-22", "FILE"],
  },
  { name: "zstd --no-check", command: ["zstd", "-qc", "--no-check"] },
  {
    name: "pzstd",
    command: ["pzstd", "-q", "-1", "-p", "2", "-c", "FILE"],
  },
];

async function decompress(
  program: string,
  blob: Uint8Array<ArrayBuffer>,
): Promise<Uint8Array> {
  return await compressWith([program, "-dc"], blob);
}

/** Indexes with every interval, and reads at random through each index. */
async function check(
  blob: Uint8Array,
  want: Uint8Array,
  seed: string,
): Promise<number> {
  let members = 0;
  for (const interval of INTERVALS) {
    const parts: Uint8Array[] = [];
    const scan = await scanInline(
      blob,
      (bytes) => parts.push(bytes.slice()),
      interval,
    );
    assert.ok(equalBytes(concatBytes(parts), want), `pass at ${interval}`);
    assert.equal(scan.tarSize, want.length);
    members = scan.members;
    const source = openScanned(blob, scan, interval);
    assert.ok(source, "cannot be read at random");
    await using _ = source;
    const random = new Random(interval, seed);
    for (let i = 0; i < READS; i++) {
      const length = Math.min(want.length, random.length(READ_MAX));
      const offset = random.below(want.length - length + 1);
      const dst = new Uint8Array(length);
      await source.pread(dst, offset);
      assert.ok(
        equalBytes(dst, want.subarray(offset, offset + length)),
        `interval ${interval}: ${length} bytes at ${offset}`,
      );
    }
  }
  return members;
}

for (
  const [decompressor, list] of [["gzip", GZIP], ["zstd", ZSTD]] as const
) {
  for (const { name, command, size, members = 1 } of list) {
    Deno.test({
      name: `${name}: any index reads what ${decompressor} -dc gives`,
      ignore: !requires(command[0]!, decompressor),
      async fn() {
        const content = CONTENT.slice(0, size ?? CONTENT.length);
        const blob = await compressWith(command, content);
        const want = await decompress(decompressor, blob);
        assert.ok(equalBytes(want, content), "the tools disagree");
        const got = await check(blob, want, name);
        assert.ok(got >= members, `${got} members`);
      },
    });
  }
}

Deno.test({
  name: "members and frames of several tools behind each other",
  ignore: !requires("gzip", "pigz", "bgzip", "igzip", "zstd", "pzstd"),
  async fn() {
    const pieces = [0, 100_000, 100_001, 420_000, 700_000, 1_200_001];
    const parts = (list: readonly Compressor[]) =>
      Promise.all(
        list.map(({ command }, i) =>
          compressWith(command, CONTENT.slice(pieces[i], pieces[i + 1]))
        ),
      );
    const gzip = concatBytes(
      await parts([GZIP[0]!, GZIP[6]!, GZIP[10]!, GZIP[12]!, GZIP[3]!]),
    );
    const gzipWant = await decompress("gzip", gzip);
    assert.ok(equalBytes(gzipWant, CONTENT));
    await check(gzip, gzipWant, "gzip mixed");
    const frames = await parts([
      ZSTD[0]!,
      ZSTD[1]!,
      ZSTD[6]!,
      ZSTD[3]!,
      ZSTD[5]!,
    ]);
    const zstd = concatBytes(
      frames.flatMap((frame, i) => [
        skippable(new Random(i, "skipped").bytes(i * 1000), i),
        frame,
        new Uint8Array(zlib.zstdCompressSync(new Uint8Array())),
      ]),
    );
    const zstdWant = await decompress("zstd", zstd);
    assert.ok(equalBytes(zstdWant, CONTENT));
    await check(zstd, zstdWant, "zstd mixed");
  },
});

Deno.test({
  name: "the seekable format of zstd, which no packaged tool writes",
  ignore: !requires("zstd"),
  async fn() {
    for (const size of [10_000, 131_072, 400_000]) {
      const blob = seekable(CONTENT, size);
      const want = await decompress("zstd", blob);
      assert.ok(equalBytes(want, CONTENT));
      const members = await check(blob, want, `seekable ${size}`);
      assert.equal(members, Math.ceil(CONTENT.length / size));
    }
  },
});
