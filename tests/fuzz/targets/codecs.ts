/** Decoders: gzip and zstd blobs in one pass and by spans, raw deflate, LZ4 blocks, single zstd frames. */

import * as zlib from "node:zlib";
import {
  concatBytes,
  equalBytes,
  FormatError,
  ObdError,
  viewOf,
} from "../../../lib/io/mod.ts";
import {
  inflateAt,
  inputStart,
  lz4Compress,
  lz4CompressBound,
  lz4Decompress,
  zstdCompress,
  zstdDecompress,
} from "../../../lib/compress/mod.ts";
import {
  openRawInflate,
  PlainRawInflate,
  type RawInflate,
} from "../../../lib/compress/raw_inflate.ts";
import type { LayerScan } from "../../../lib/layers/mod.ts";
import {
  digestOf,
  type MadeLayer,
  madeLayers,
  plausibleBytes,
  scanInline,
  SPAN_SIZE,
} from "../layers_made.ts";
import type { Random } from "../random.ts";
import { openScanned } from "../read_spans.ts";
import { goldenFiles, putGzipTrailer, readSome } from "../seeds.ts";
import { must, type Seed, type Target } from "../target.ts";

/** Bombs end here. */
const CONTENT_MAX = 64 * 1024 * 1024;

/** A pass over a blob that keeps what it gives. */
async function scanWhole(
  blob: Uint8Array,
): Promise<{ scan: LayerScan; content: Uint8Array }> {
  const parts: Uint8Array[] = [];
  let size = 0;
  const scan = await scanInline(blob, (bytes) => {
    size += bytes.length;
    if (size > CONTENT_MAX) {
      throw new FormatError("fuzz input", "content", "is a bomb");
    }
    parts.push(bytes.slice());
  });
  const content = concatBytes(parts);
  must(scan.tarSize === content.length, "The size is not the content's");
  must(scan.diffId === digestOf(content), "The diffID is not the content's");
  return { scan, content };
}

/** Reads a scanned blob through the index as it would be stored. */
async function readSpans(
  blob: Uint8Array,
  scan: LayerScan,
  content: Uint8Array,
  random: Random,
): Promise<void> {
  const source = openScanned(blob, scan, SPAN_SIZE);
  if (!source) return;
  await using _ = source;
  await readSome(source, random, (got, offset) =>
    must(
      equalBytes(got, content.subarray(offset, offset + got.length)),
      `Bytes at ${offset} differ from those of the pass`,
    ));
}

/** What zlib makes of a gzip blob; undefined if it refuses it. */
function gunzip(blob: Uint8Array): Uint8Array | undefined {
  try {
    return zlib.gunzipSync(blob, { maxOutputLength: CONTENT_MAX });
  } catch {
    return undefined;
  }
}

function blobSeed(
  name: string,
  bytes: Uint8Array,
  compression: "gzip" | "zstd",
): Seed {
  return {
    name,
    bytes,
    hot: [[0, 32], [Math.max(0, bytes.length - 64), bytes.length]],
    repair: compression === "gzip" && !/members/.test(name)
      ? (mutant) => putGzipTrailer(mutant, 10)
      : undefined,
    async read({ bytes: blob }, random) {
      const { scan, content } = await scanWhole(blob);
      if (scan.compression === "gzip") {
        const want = gunzip(blob);
        must(want !== undefined, "zlib refuses what the pass took");
        must(equalBytes(content, want), "zlib gives other bytes");
      }
      if (scan.compression === "none") return;
      if (scan.tarSize > 0) await readSpans(blob, scan, content, random);
    },
  };
}

async function blobSeeds(compression: "gzip" | "zstd"): Promise<Seed[]> {
  const layers = (await madeLayers()).filter((layer: MadeLayer) =>
    layer.scan.compression === compression
  );
  const seeds = layers.map(({ name, blob }) =>
    blobSeed(name, blob, compression)
  );
  if (compression === "gzip") {
    const small = plausibleBytes(700, 3);
    seeds.push(blobSeed(
      "header with every field",
      withHeaderFields(zlib.gzipSync(small)),
      "gzip",
    ));
    for (const [name, bytes] of goldenFiles(["unit/L.tar.gz"])) {
      seeds.push(blobSeed(name, bytes, "gzip"));
    }
  }
  return seeds;
}

/** Extra field, name, comment and header CRC (RFC 1952 §2.3.1). */
function withHeaderFields(gzip: Uint8Array): Uint8Array {
  const head = Uint8Array.of(
    ...[0x1f, 0x8b, 8, 0x1e, 1, 2, 3, 4, 0, 3],
    ...[5, 0, 1, 2, 3, 4, 5],
    ...new TextEncoder().encode("name\0comment\0"),
  );
  const crc = new Uint8Array(2);
  viewOf(crc).setUint16(0, zlib.crc32(head) & 0xffff, true);
  return concatBytes([head, crc, gzip.subarray(10)]);
}

// ---- raw deflate ----------------------------------------------------------------

/** Decodes to the end in pieces of random sizes; undefined if it does not end, or is refused. */
function inflateWith(
  inflate: RawInflate,
  input: Uint8Array,
  random: Random,
): Uint8Array | undefined {
  const output = new Uint8Array(1024 * 1024);
  let at = 0;
  let to = 0;
  try {
    while (to < output.length) {
      const size = Math.min(random.length(4096), input.length - at);
      const room = Math.min(random.length(8192), output.length - to);
      inflate.write(input, at, size, output, to, room, random.oneIn(2));
      const used = size - inflate.availableIn;
      const made = room - inflate.availableOut;
      must(used >= 0 && used <= size, `Used ${used} of ${size}`);
      must(made >= 0 && made <= room, `Made ${made} of ${room}`);
      at += used;
      to += made;
      if (used === 0 && made === 0) break;
    }
    return output.slice(0, to);
  } catch (error) {
    if (error instanceof ObdError) return undefined;
    throw error;
  } finally {
    inflate.close();
  }
}

function deflateSeeds(): Seed[] {
  const content = plausibleBytes(60_000, 7);
  const inputs: [string, Uint8Array][] = [
    ["level 1", zlib.deflateRawSync(content, { level: 1 })],
    ["level 9", zlib.deflateRawSync(content, { level: 9 })],
    ["stored", zlib.deflateRawSync(content.subarray(0, 5000), { level: 0 })],
    [
      "fixed codes",
      zlib.deflateRawSync(content.subarray(0, 9000), {
        strategy: zlib.constants.Z_FIXED,
      }),
    ],
    [
      "many blocks",
      concatBytes([
        zlib.deflateRawSync(content.subarray(0, 3000), {
          finishFlush: zlib.constants.Z_FULL_FLUSH,
        }),
        zlib.deflateRawSync(content.subarray(3000, 9000), {
          finishFlush: zlib.constants.Z_SYNC_FLUSH,
        }),
        zlib.deflateRawSync(content.subarray(9000, 12_000)),
      ]),
    ],
  ];
  return inputs.map(([name, bytes]): Seed => ({
    name,
    bytes,
    hot: [[0, 128]],
    read({ bytes: input }, random) {
      let want: Uint8Array | undefined;
      try {
        want = zlib.inflateRawSync(input, { maxOutputLength: 512 * 1024 });
      } catch {
        want = undefined;
      }
      const plain = inflateWith(new PlainRawInflate(), input, random);
      const native = inflateWith(openRawInflate(), input, random);
      if (want) {
        must(
          plain !== undefined && equalBytes(plain, want),
          "The TypeScript decoder differs from zlib",
        );
        must(
          native !== undefined && equalBytes(native, want),
          "The native decoder differs from zlib",
        );
      } else if (plain && native) {
        must(equalBytes(plain, native), "The two decoders differ");
      }
      if (!plain) throw new FormatError("deflate", "data", "is refused");
    },
  }));
}

// ---- spans with hostile checkpoints ----------------------------------------------

async function inflateAtSeeds(): Promise<Seed[]> {
  const layers = (await madeLayers()).filter(({ name }) =>
    name === "gzip -6" || name === "gzip members"
  );
  return layers.map(({ name, blob, scan }): Seed => {
    const { checkpoints, spans } = scan;
    return {
      name,
      bytes: blob,
      read({ bytes: input }, random) {
        const i = random.below(checkpoints.count);
        const checkpoint = {
          compressedOffset: checkpoints.compressedOffset[i]!,
          bits: checkpoints.bits[i]!,
        };
        if (random.oneIn(3)) checkpoint.bits = random.below(9);
        if (random.oneIn(3)) {
          checkpoint.compressedOffset = 1 + random.below(input.length);
        }
        const window = random.oneIn(4)
          ? random.bytes(random.pick([0, 1, 32767, 32768]))
          : checkpoints.window[i]!.length === 0
          ? new Uint8Array(0)
          : new Uint8Array(zlib.inflateSync(checkpoints.window[i]!));
        const output = new Uint8Array(
          random.oneIn(4) ? random.length(200_000) : spans.size[i]!,
        );
        const part = input.subarray(
          inputStart(checkpoint),
          random.oneIn(2) ? input.length : checkpoints.compressedOffset[i + 1],
        );
        inflateAt({ bits: checkpoint.bits, window, input: part }, output);
      },
    };
  });
}

// ---- blocks ---------------------------------------------------------------------

/** LZ4 as its block format says, byte by byte; undefined if malformed. */
function naiveLz4(
  src: Uint8Array,
  limit: number,
): Uint8Array | undefined {
  const out: number[] = [];
  for (let at = 0; at < src.length;) {
    const token = src[at++]!;
    const extend = (length: number): number => {
      if (length < 15) return length;
      for (let byte = 255; byte === 255;) {
        if (at >= src.length) return NaN;
        byte = src[at++]!;
        length += byte;
      }
      return length;
    };
    const literals = extend(token >>> 4);
    if (!(at + literals <= src.length)) return undefined;
    if (out.length + literals > limit) return undefined;
    for (let i = 0; i < literals; i++) out.push(src[at++]!);
    if (at === src.length) return Uint8Array.from(out);
    if (at + 2 > src.length) return undefined;
    const distance = src[at]! | src[at + 1]! << 8;
    at += 2;
    if (distance === 0 || distance > out.length) return undefined;
    const length = extend(token & 15) + 4;
    if (!(out.length + length <= limit)) return undefined;
    for (let i = 0; i < length; i++) out.push(out[out.length - distance]!);
  }
  return undefined;
}

function lz4Seeds(): Seed[] {
  return [1, 13, 500, 4096, 16_384].map((size): Seed => {
    const content = plausibleBytes(size, size);
    const buffer = new Uint8Array(lz4CompressBound(size));
    const bytes = buffer.slice(0, lz4Compress(content, buffer));
    return {
      name: `${size} bytes`,
      bytes,
      hot: [[0, Math.min(bytes.length, 64)]],
      read({ bytes: input }, random) {
        const room = random.oneIn(3) ? random.length(2 * size) : size;
        const guarded = new Uint8Array(room + 32).fill(0xa5);
        const length = lz4Decompress(input, guarded.subarray(16, 16 + room));
        const edges = [...guarded.subarray(0, 16), ...guarded.subarray(-16)];
        must(edges.every((b) => b === 0xa5), "Wrote outside of its buffer");
        const want = naiveLz4(input, room);
        must(want !== undefined, "Took what the format forbids");
        must(
          equalBytes(guarded.subarray(16, 16 + length), want),
          "Differs from the format's rules",
        );
      },
    };
  });
}

function zstdFrameSeeds(): Seed[] {
  return [0, 1, 300, 4096, 60_000].map((size): Seed => {
    const content = plausibleBytes(size, size);
    const bytes = zstdCompress(content);
    return {
      name: `${size} bytes`,
      bytes,
      hot: [[0, Math.min(bytes.length, 32)]],
      read({ bytes: input }, random) {
        const room = random.oneIn(3) ? random.length(2 * size + 1) : size;
        const dst = new Uint8Array(room);
        const length = zstdDecompress(input, dst);
        must(length <= room, "Gave more than there is room for");
        const want = zlib.zstdDecompressSync(input);
        must(equalBytes(dst.subarray(0, length), want), "zlib differs");
      },
    };
  });
}

/** Layers that lie under a whole-blob digest are safe; this is about what an index of ours covers. */
function tamperedSeeds(layers: readonly MadeLayer[]): Seed[] {
  return layers.filter(({ scan }) => scan.compression !== "none").map(
    ({ name, blob, content, scan }): Seed => ({
      name,
      bytes: blob,
      async read({ bytes: input }, random) {
        if (input.length !== blob.length) {
          throw new FormatError("fuzz input", "size", "is another");
        }
        await readSpans(input, scan, content, random);
      },
    }),
  );
}

/** Targets of this file. */
export const CODEC_TARGETS: Target[] = [
  {
    name: "gzip",
    summary: "the pass over gzip layers, then their spans; zlib as oracle",
    weight: 10,
    load: () => blobSeeds("gzip"),
  },
  {
    name: "zstd",
    summary: "the pass over zstd layers of every form, then their spans",
    weight: 12,
    load: () => blobSeeds("zstd"),
  },
  {
    name: "tampered",
    summary: "layer blobs that changed behind their index: never wrong bytes",
    weight: 30,
    load: async () => tamperedSeeds(await madeLayers()),
  },
  {
    name: "deflate",
    summary: "raw deflate: our decoder, the native one, zlib",
    weight: 60,
    load: () => Promise.resolve(deflateSeeds()),
  },
  {
    name: "inflate-at",
    summary: "spans of gzip from hostile checkpoints",
    weight: 20,
    load: inflateAtSeeds,
  },
  {
    name: "lz4",
    summary: "LZ4 blocks; a decoder written from the format as oracle",
    weight: 30,
    load: () => Promise.resolve(lz4Seeds()),
  },
  {
    name: "zstd-frame",
    summary: "single zstd frames, as in ZFile blocks; zlib as oracle",
    weight: 30,
    load: () => Promise.resolve(zstdFrameSeeds()),
  },
];
