/** What tells where to decode: `gzip.meta`, `obd.spans`, and the meta blob that holds them. */

import { createHash } from "node:crypto";
import * as zlib from "node:zlib";
import {
  concatBytes,
  equalBytes,
  getU64,
  MemorySink,
  MemorySource,
  silentLogger,
  viewOf,
} from "../../../lib/io/mod.ts";
import {
  decodeSpans,
  GZ,
  GZ_ENTRY,
  LsmtSource,
  META_MEMBER,
  openTurboLayer,
  PinnedStore,
  readGzipMeta,
  readMetaBlob,
  SP,
  SpanCache,
  type Target as LayerTarget,
  writeMetaBlob,
} from "../../../lib/layers/mod.ts";
import { inlineCodec } from "../inline_codec.ts";
import { digestOf, type MadeLayer, madeLayers } from "../layers_made.ts";
import { Mutant, mutate } from "../mutant.ts";
import type { Random } from "../random.ts";
import {
  goldenBytes,
  goldenFiles,
  putCrc32c,
  putTarChecksum,
  readSome,
  sourceOf,
  u64,
} from "../seeds.ts";
import { must, type Seed, type Target } from "../target.ts";

const CHECKSUM = 32;

/** Opens a turbo layer of these members over a blob, and reads its target. */
async function readThrough(
  members: ReadonlyMap<string, Uint8Array>,
  blob: Uint8Array,
  target: Pick<LayerTarget, "digest" | "mediaType">,
  random: Random,
): Promise<void> {
  await using pinnedStore = await PinnedStore.open();
  const layer = await openTurboLayer(
    members,
    { ...target, open: () => Promise.resolve(new MemorySource(blob)) },
    {
      inflater: inlineCodec,
      spanCache: new SpanCache({ memoryBytes: 4 * 1024 * 1024 }),
      pinnedStore,
      blobBlockSize: 64 * 1024,
      logger: silentLogger,
    },
  );
  const size = Math.min(layer.virtualSize, 2 ** 30);
  await using device = new LsmtSource([layer], size);
  await readSome(device, random);
  if (random.oneIn(4)) await readSome(layer.target!, random);
}

/** A warp layer that asks nothing of its target. */
function anyFsMeta(): Uint8Array | undefined {
  return goldenBytes("turbo-gz/layer2.ext4.fs.meta");
}

// ---- gzip.meta ---------------------------------------------------------------

/** Changes entries behind their zlib stream, and tells of as many as there are. */
function mutateEntries(mutant: Mutant, random: Random): void {
  const { bytes } = mutant;
  const view = viewOf(bytes);
  const start = getU64(view, GZ.indexStart);
  const isPlain = bytes[GZ.windowAlgorithm] === 0;
  const stored = bytes.slice(start);
  const entries = new Mutant(isPlain ? stored : zlib.inflateSync(stored));
  for (let n = random.length(4); n > 0; n--) {
    const count = Math.floor(entries.length / GZ_ENTRY.SIZE);
    if (count === 0) break;
    const at = random.below(count) * GZ_ENTRY.SIZE;
    const field = random.pick([0, 8, 16, 24, 25]);
    const width = field === 24 ? 1 : field === 25 ? 4 : 8;
    if (random.oneIn(3)) {
      const other = random.below(count) * GZ_ENTRY.SIZE;
      const size = random.oneIn(2) ? GZ_ENTRY.SIZE : width;
      entries.write(
        at + (size === width ? field : 0),
        entries.bytes.slice(other + (size === width ? field : 0)).slice(
          0,
          size,
        ),
      );
    } else if (random.oneIn(2)) {
      const value = BigInt(
        field === 24
          ? entries.bytes[at + field]!
          : field === 25
          ? viewOf(entries.bytes).getUint32(at + field, true)
          : getU64(viewOf(entries.bytes), at + field),
      );
      entries.put(at + field, width, value + BigInt(random.below(99) - 49));
    } else mutate(entries, [[at, at + GZ_ENTRY.SIZE]], random);
    if (random.oneIn(8)) entries.resize(at);
  }
  const area = isPlain
    ? entries.bytes
    : zlib.deflateSync(entries.bytes, { level: 1 });
  mutant.resize(start);
  mutant.insert(start, area);
  mutant.write(GZ.fileSize, u64(mutant.length));
  mutant.write(GZ.indexLength, u64(mutant.length - start));
  if (!random.oneIn(4)) {
    const count = Math.floor(entries.length / GZ_ENTRY.SIZE);
    mutant.write(GZ.entryCount, u64(count));
  }
}

function gzipMetaSeed(
  name: string,
  bytes: Uint8Array,
  blob: Uint8Array | undefined,
): Seed {
  const gzipSize = getU64(viewOf(bytes), GZ.gzipSize);
  return {
    name,
    bytes,
    hot: [[0, 57], [GZ.indexStart, GZ.SIZE], [
      getU64(viewOf(bytes), GZ.indexStart),
      bytes.length,
    ]],
    mutate: mutateEntries,
    repair(mutant, random) {
      if (random.oneIn(2)) mutant.write(GZ.fileSize, u64(mutant.length));
      putCrc32c(mutant, GZ.crc, 0, GZ.crc);
    },
    async read({ bytes }, random) {
      const meta = readGzipMeta(bytes, gzipSize);
      const { count, uncompressedOffset, compressedOffset } = meta.checkpoints;
      for (let i = 0; i < count; i++) {
        must(
          uncompressedOffset[i]! <= meta.uncompressedSize &&
            compressedOffset[i]! <= gzipSize,
          `Checkpoint ${i} is out of bounds`,
        );
        const { buffer, byteOffset, length } = meta.checkpoints.window[i]!;
        const end = byteOffset - bytes.byteOffset + length;
        must(
          buffer !== bytes.buffer ||
            end <= getU64(viewOf(bytes), GZ.indexStart),
          `Window ${i} is not among the windows`,
        );
      }
      const fsMeta = blob && random.oneIn(8) && anyFsMetaOnce();
      if (!fsMeta) return;
      await readThrough(
        new Map([[META_MEMBER.ext4, fsMeta], [META_MEMBER.gzipMeta, bytes]]),
        blob,
        { digest: digestOf(blob), mediaType: "+gzip" },
        random,
      );
    },
  };
}

let fsMeta: Uint8Array | undefined;
function anyFsMetaOnce(): Uint8Array | undefined {
  return fsMeta ??= anyFsMeta();
}

async function gzipMetaSeeds(): Promise<Seed[]> {
  const seeds: Seed[] = [];
  const layer2 = goldenBytes("layers/layer2.tar.gz");
  const pairs: [string, Uint8Array | undefined][] = [
    ["turbo-gz/layer1.gzip.meta", undefined],
    ["turbo-gz/layer2.gzip.meta", layer2],
    ["unit/g.idx", goldenBytes("unit/L.tar.gz")],
    ["unit/t.idx", undefined],
  ];
  for (const [name, blob] of pairs) {
    for (const [_, bytes] of goldenFiles([name])) {
      const fits = blob?.length === getU64(viewOf(bytes), GZ.gzipSize);
      seeds.push(gzipMetaSeed(name, bytes, fits ? blob : undefined));
    }
  }
  for (const { name, gzipMeta, blob } of await madeLayers()) {
    if (gzipMeta) seeds.push(gzipMetaSeed(name, gzipMeta, blob));
  }
  return seeds;
}

// ---- obd.spans ----------------------------------------------------------------

/** Changes one section as it is unpacked, and stores it so. */
function mutateSections(mutant: Mutant, random: Random): void {
  const { bytes } = mutant;
  const view = viewOf(bytes);
  const u32 = (at: number) => view.getUint32(at, true);
  const lengths = [
    view.getUint16(SP.mediaTypeSize, true),
    u32(SP.sizesStored),
    u32(SP.spanCount) * 32,
    u32(SP.checkpointsStored),
    getU64(view, SP.windowsSize),
  ];
  let at: number = SP.SIZE;
  const sections = lengths.map((length) => bytes.slice(at, at += length));
  const raw = [0, SP.sizesRaw, 0, SP.checkpointsRaw, 0];
  raw.forEach((field, i) => {
    const packed = sections[i]!;
    if (field === 0 || packed.length === u32(field)) return;
    sections[i] = new Uint8Array(zlib.inflateSync(packed));
  });
  const chosen = random.below(sections.length);
  const section = new Mutant(sections[chosen]!);
  mutate(section, undefined, random);
  sections[chosen] = section.bytes.slice();
  const header = bytes.slice(0, SP.SIZE);
  const h = viewOf(header);
  h.setUint16(SP.mediaTypeSize, sections[0]!.length, true);
  for (
    const [stored, rawSize, i] of [
      [SP.sizesStored, SP.sizesRaw, 1],
      [SP.checkpointsStored, SP.checkpointsRaw, 3],
    ] as const
  ) {
    h.setUint32(stored, sections[i]!.length, true);
    h.setUint32(rawSize, sections[i]!.length, true);
  }
  if (!random.oneIn(4)) {
    h.setUint32(SP.spanCount, Math.floor(sections[2]!.length / 32), true);
    sections[2] = sections[2]!.subarray(0, sections[2]!.length & ~31);
  }
  header.set(u64(sections[4]!.length), SP.windowsSize);
  mutant.replace(
    concatBytes([header, ...sections, new Uint8Array(CHECKSUM)]),
  );
}

function spansSeed(layer: MadeLayer): Seed {
  const { spans: bytes, blob, gzipMeta } = layer;
  const end = bytes.length - CHECKSUM;
  return {
    name: layer.name,
    bytes,
    hot: [[0, SP.SIZE], [SP.SIZE, end]],
    mutate: mutateSections,
    repair(mutant) {
      mutant.write(SP.fileSize, u64(mutant.length));
      const content = mutant.bytes.subarray(0, -CHECKSUM);
      const sum = createHash("sha256").update(content).digest();
      mutant.write(content.length, sum);
    },
    async read({ bytes: input, repaired }, random) {
      const index = decodeSpans(input);
      must(
        repaired || equalBytes(input, bytes),
        "A changed index was taken for good",
      );
      const fsMeta = anyFsMetaOnce();
      if (!fsMeta || !random.oneIn(4)) return;
      await readThrough(
        new Map([
          [META_MEMBER.ext4, fsMeta],
          [META_MEMBER.spans, input],
          ...(gzipMeta ? [[META_MEMBER.gzipMeta, gzipMeta] as const] : []),
        ]),
        blob,
        { digest: digestOf(blob), mediaType: index.mediaType },
        random,
      );
    },
  };
}

// ---- meta blobs ----------------------------------------------------------------

/** Makes the checksums of all headers right that can be found. */
function repairTar(mutant: Mutant): void {
  for (let at = 0; at + 512 <= mutant.length;) {
    putTarChecksum(mutant, at);
    const text = new TextDecoder("latin1").decode(
      mutant.bytes.subarray(at + 124, at + 135),
    );
    const size = parseInt(text, 8);
    if (!(size >= 0)) return;
    at += 512 + Math.ceil(size / 512) * 512;
  }
}

async function metaBlobSeed(
  name: string,
  bytes: Uint8Array<ArrayBuffer>,
  blob: Uint8Array | undefined,
): Promise<Seed> {
  const isGzip = bytes[0] === 0x1f;
  const good = await readMetaBlob(new MemorySource(bytes));
  return {
    name,
    bytes,
    hot: isGzip ? [[0, 20], [bytes.length - 8, bytes.length]] : tarHeads(bytes),
    repair: isGzip ? undefined : repairTar,
    async read({ bytes: input }, random) {
      const { members, digest, diffId, size } = await readMetaBlob(
        sourceOf(input),
      );
      must(
        size === input.length && digest === digestOf(input),
        "The digest is not the blob's",
      );
      if (diffId === good.diffId) {
        for (const [key, value] of good.members) {
          const got = members.get(key);
          must(got !== undefined && equalBytes(got, value), `"${key}" differs`);
        }
      }
      if (!blob || !random.oneIn(4)) return;
      await readThrough(
        members,
        blob,
        { digest: digestOf(blob), mediaType: "+gzip" },
        random,
      );
    },
  };
}

/** Ranges of a tar's headers. */
function tarHeads(bytes: Uint8Array): [number, number][] {
  const heads: [number, number][] = [];
  for (let at = 0; at + 512 <= bytes.length && bytes[at] !== 0;) {
    heads.push([at, at + 160], [at + 256, at + 265]);
    const text = new TextDecoder("latin1").decode(
      bytes.subarray(at + 124, at + 135),
    );
    at += 512 + Math.ceil(parseInt(text, 8) / 512) * 512;
  }
  return heads;
}

async function metaBlobSeeds(): Promise<Seed[]> {
  const seeds: Seed[] = [];
  const layer2 = goldenBytes("layers/layer2.tar.gz");
  const names = [
    "turbo-gz/layer1.turboOCIv1.tar.gz",
    "turbo-gz/layer2.turboOCIv1.tar.gz",
    "turbo-tar/layer1.turboOCIv1.tar.gz",
    "turbo-gz-erofs/layer2e.turboOCIv1.tar.gz",
  ];
  for (const [name, bytes] of goldenFiles(names)) {
    const blob = name === "turbo-gz/layer2.turboOCIv1.tar.gz"
      ? layer2
      : undefined;
    seeds.push(await metaBlobSeed(name, bytes, blob));
    const tar = new Uint8Array(zlib.gunzipSync(bytes));
    seeds.push(await metaBlobSeed(`${name} as a plain tar`, tar, blob));
  }
  const fsMeta = anyFsMeta();
  for (const layer of fsMeta ? await madeLayers() : []) {
    const sink = new MemorySink();
    await writeMetaBlob(sink, [
      { name: META_MEMBER.ext4, content: fsMeta! },
      ...(layer.gzipMeta
        ? [{ name: META_MEMBER.gzipMeta, content: layer.gzipMeta }]
        : []),
      { name: META_MEMBER.spans, content: layer.spans },
    ]);
    const tar = new Uint8Array(zlib.gunzipSync(sink.bytes()));
    seeds.push(await metaBlobSeed(layer.name, tar, layer.blob));
  }
  return seeds;
}

/** Targets of this file. */
export const INDEX_TARGETS: Target[] = [
  {
    name: "gzip-meta",
    summary: "overlaybd's gzip index, and spans read with it",
    weight: 80,
    load: gzipMetaSeeds,
  },
  {
    name: "spans",
    summary: "obd.spans of every compression, and spans read with it",
    weight: 60,
    load: async () => (await madeLayers()).map(spansSeed),
  },
  {
    name: "meta-blob",
    summary: "meta blobs, and the layers that they describe",
    weight: 30,
    load: metaBlobSeeds,
  },
];
