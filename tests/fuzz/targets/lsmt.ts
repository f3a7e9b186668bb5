/** LSMT layers: bare, and in their containers. */

import {
  equalBytes,
  getU64,
  MemorySource,
  viewOf,
} from "../../../lib/io/mod.ts";
import {
  LsmtSource,
  mergeTables,
  type OpenedLayer,
  openLayer,
  openLsmtLayer,
  SegmentTable,
} from "../../../lib/layers/mod.ts";
import type { Random } from "../random.ts";
import { allBytes, goldenFiles, readSome, sourceOf } from "../seeds.ts";
import { type FuzzInput, must, type Seed, type Target } from "../target.ts";

const HEADER = 4096;
const SECTOR = 512;
/** A stand-in for the tar behind a warp layer; reads beyond it are zeros. */
const TARGET = new Uint8Array(1024 * 1024).map((_, i) => i * 7 >>> 3);
/** Devices larger than this are read near their ends only; all are. */
const VIRTUAL_MAX = 2 ** 53 - 1;

/** Where a layer keeps its numbers: header, index, trailer. */
function hotRanges(bytes: Uint8Array): [number, number][] {
  const trailer = bytes.length - HEADER;
  const index = getU64(viewOf(bytes), trailer + 32);
  return [[0, 60], [index, trailer], [trailer, trailer + 60]];
}

/** What a device of a single native layer holds, worked out entry by entry. */
function naiveRead(
  file: Uint8Array,
  offset: number,
  length: number,
): Uint8Array {
  const view = viewOf(file);
  const trailer = file.length - HEADER;
  const index = getU64(view, trailer + 32);
  const count = getU64(view, trailer + 40);
  const out = new Uint8Array(length);
  const limit = Math.floor(index / SECTOR) * SECTOR;
  for (let i = 0; i < count; i++) {
    const word0 = view.getBigUint64(index + i * 16, true);
    const word1 = view.getBigUint64(index + i * 16 + 8, true);
    const start = Number(word0 & (2n ** 50n - 1n)) * SECTOR;
    const end = start + Number(word0 >> 50n) * SECTOR;
    const isPadding = (word0 & (2n ** 50n - 1n)) === 2n ** 50n - 1n;
    if (isPadding || (word1 >> 55n & 1n) === 1n) continue;
    const from = Number(word1 & (2n ** 55n - 1n)) * SECTOR;
    must(
      from >= HEADER && from + end - start <= limit,
      `Entry ${i} maps ${from}, outside of the data`,
    );
    const first = Math.max(start, offset);
    const last = Math.min(end, offset + length);
    if (first >= last) continue;
    out.set(
      file.subarray(from + first - start, from + last - start),
      first - offset,
    );
  }
  return out;
}

async function useLayer(
  layer: OpenedLayer,
  random: Random,
  onRead?: (bytes: Uint8Array, offset: number) => void,
): Promise<void> {
  const size = Math.min(
    layer.virtualSize || layer.table.highestMapped() * SECTOR,
    VIRTUAL_MAX,
  );
  const device = new LsmtSource([{
    table: layer.table,
    data: layer.data,
    target: new MemorySource(TARGET),
  }], size);
  await readSome(device, random, onRead);
  const length = Math.min(size, 2 ** 30);
  let at = 0;
  for (const extent of device.extents(0, length)) {
    must(extent.offset === at && extent.length > 0, "Extents have a gap");
    at += extent.length;
  }
  must(at === length, "Extents do not reach the end");
  for (
    const { source, offset, length } of device.origins(
      0,
      Math.min(size, 65536),
    )
  ) {
    must(offset >= 0 && length > 0 && source.size >= 0, "Origin is odd");
  }
  device.highestMapped();
  device.nextUnmapped(0);
}

const BARE: readonly (readonly [
  name: string,
  kind: "native" | "warp" | "auto",
])[] = [
  ...["plain", "a2", "a7", "b0", "b1", "b2", "sld"].map((name) =>
    [`unit/${name}`, "native"] as const
  ),
  ["unit/a8", "auto"],
  ["unit/w1", "warp"],
  ["unit/w2", "warp"],
];
const WRAPPED: readonly [name: string, kind: "native" | "warp"][] = [
  ["unit/fs.meta", "warp"],
  ["unit/erofs.meta", "warp"],
  ["unit/zt", "native"],
  ["turbo-gz/layer1.ext4.fs.meta", "warp"],
  ["turbo-gz/layer2.ext4.fs.meta", "warp"],
  ["turbo-gz-erofs/layer1.erofs.fs.meta", "warp"],
];

async function bareSeeds(): Promise<Seed[]> {
  const seeds: Seed[] = [];
  const add = (
    name: string,
    bytes: Uint8Array,
    kind: "native" | "warp" | "auto",
  ) => {
    seeds.push({
      name: `${name} (${kind})`,
      bytes,
      hot: hotRanges(bytes),
      mutate: mutateIndex,
      async read({ bytes }, random) {
        const data = sourceOf(bytes);
        const layer = await openLsmtLayer(data, kind);
        const isNative = layer.kind === "native";
        await useLayer(
          { ...layer, data, containers: [] },
          random,
          isNative
            ? (got, offset) =>
              must(
                equalBytes(got, naiveRead(bytes, offset, got.length)),
                `Bytes at ${offset} are not those that the index maps`,
              )
            : undefined,
        );
      },
    });
  };
  for (const [name, kind] of BARE) {
    for (const [_, bytes] of goldenFiles([name])) add(name, bytes, kind);
  }
  for (const [name, kind] of WRAPPED) {
    for (const [_, bytes] of goldenFiles([name])) {
      const layer = await openLayer(new MemorySource(bytes), kind);
      add(name, await allBytes(layer.data), kind);
    }
  }
  return seeds;
}

/** Changes of entries alone: offsets, lengths, positions, kinds. */
function mutateIndex(
  mutant: Parameters<NonNullable<Seed["mutate"]>>[0],
  random: Random,
): void {
  const { bytes } = mutant;
  const trailer = bytes.length - HEADER;
  const view = viewOf(bytes);
  const index = getU64(view, trailer + 32);
  const count = getU64(view, trailer + 40);
  for (let n = random.length(4); n > 0; n--) {
    const at = index + random.below(count) * 16;
    if (at + 16 > bytes.length) return;
    const word0 = view.getBigUint64(at, true);
    const word1 = view.getBigUint64(at + 8, true);
    const near = BigInt(random.below(65) - 32);
    switch (random.below(6)) {
      case 0:
        mutant.put(at, 8, word0 + near);
        break;
      case 1:
        mutant.put(at, 8, word0 + (near << 50n));
        break;
      case 2:
        mutant.put(at + 8, 8, word1 + near);
        break;
      case 3:
        mutant.put(at + 8, 8, word1 ^ (1n << 55n));
        break;
      case 4:
        mutant.put(at + 15, 1, BigInt(random.below(4)));
        break;
      default:
        mutant.put(trailer + 40, 8, BigInt(count) + near);
    }
  }
}

/** Three layers on each other, the middle one changed: merging must not care. */
async function stackSeeds(): Promise<Seed[]> {
  const files = goldenFiles(["unit/b0", "unit/b1", "unit/b2"]);
  if (files.length < 3) return [];
  const open = async (bytes: Uint8Array) =>
    await openLsmtLayer(new MemorySource(bytes), "native");
  const [bottom, , top] = await Promise.all(files.map(([, b]) => open(b)));
  const middle = files[1]![1];
  return [{
    name: "b0+b1+b2",
    bytes: middle,
    hot: hotRanges(middle),
    async read({ bytes }: FuzzInput, random) {
      const data = sourceOf(bytes);
      const layer = await openLsmtLayer(data, "native");
      const tables = [bottom!.table, layer.table, top!.table];
      must(mergeTables(tables) instanceof SegmentTable, "No table");
      const device = new LsmtSource(
        tables.map((table, i) => ({
          table,
          data: i === 1 ? data : new MemorySource(files[i]![1]),
        })),
        1024 * 1024,
      );
      await readSome(device, random);
    },
  }];
}

/** Whole blobs as they lie in registries and on nodes. */
function blobSeeds(): Seed[] {
  const names = [
    ...["zt", "native_layer_zt", "tw_ustar", "tw_gnu", "tw_pax", "fs.meta"],
    ...["erofs.meta", "erofs2.meta", "plain", "sps", "ext4_64"],
  ].map((name) => `unit/${name}`).concat([
    "native-lz4/layer1.overlaybd.commit",
    "native-lz4/layer2.overlaybd.commit",
    "native-zstd/layer1.overlaybd.commit",
    "native-zstd/layer2.overlaybd.commit",
    "turbo-gz/layer1.ext4.fs.meta",
    "turbo-gz-erofs/layer2e.erofs.fs.meta",
  ]);
  return goldenFiles(names).map(([name, bytes]): Seed => {
    const { length } = bytes;
    return {
      name,
      bytes,
      // Tar header, ZFile header, LSMT header; the tables and trailers at the end.
      hot: [[0, 2560], [Math.max(0, length - 12_288), length]],
      async read({ bytes }, random) {
        const kind = /fs\.meta|erofs/.test(name) ? "warp" : "native";
        const layer = await openLayer(sourceOf(bytes), kind);
        await useLayer(layer, random);
      },
    };
  });
}

/** Targets of this file. */
export const LSMT_TARGETS: Target[] = [
  {
    name: "lsmt",
    summary: "LSMT layers, native and warp: index, merged index, reads",
    weight: 120,
    load: async () => [...await bareSeeds(), ...await stackSeeds()],
  },
  {
    name: "layer",
    summary: "layer blobs: tar wrapper, ZFile and LSMT in one",
    weight: 60,
    load: () => Promise.resolve(blobSeeds()),
  },
];
