/** overlaybd's `config.v1.json`, and writable layers, which are opened through it. */

import {
  type ByteSource,
  MemorySource,
  NotFoundError,
  Semaphore,
  silentLogger,
  silentProgress,
} from "../../../lib/io/mod.ts";
import type { ImageEnvironment } from "../../../lib/image/mod.ts";
import { openConfigImage } from "../../../lib/image/overlaybd_config.ts";
import {
  LsmtSource,
  openWritableLayer,
  PinnedStore,
  SpanCache,
} from "../../../lib/layers/mod.ts";
import { golden } from "../../testutil/requires.ts";
import { inlineCodec } from "../inline_codec.ts";
import { mutate } from "../mutant.ts";
import { goldenBytes, readSome, sourceOf } from "../seeds.ts";
import type { Seed, Target } from "../target.ts";

/** Without threads, and without a network. */
async function environment(): Promise<ImageEnvironment> {
  const pinnedStore = await PinnedStore.open();
  return {
    log: silentLogger,
    progress: silentProgress,
    signal: undefined,
    inflater: inlineCodec,
    spanCache: new SpanCache({ memoryBytes: 4 * 1024 * 1024 }),
    pinnedStore,
    blobStore: undefined,
    blobBlockSize: 64 * 1024,
    localBuilds: new Semaphore(1),
    hostStatistics: () => [],
    openRepository: () =>
      Promise.reject(new NotFoundError("No registry is reached from here")),
    [Symbol.asyncDispose]: () => pinnedStore[Symbol.asyncDispose](),
  };
}

function lowersOf(): [name: string, lowers: Record<string, string>[]][] {
  const file = (name: string) => golden(name) ?? "";
  const native = (name: string) => ({ file: file(`unit/${name}`) });
  const turbo = (name: string, index: boolean) => ({
    file: file(`turbo-gz/${name}.ext4.fs.meta`),
    targetFile: file(`layers/${name}.tar.gz`),
    targetDigest: `sha256:${"0".repeat(64)}`,
    ...(index ? { gzipIndex: file(`turbo-gz/${name}.gzip.meta`) } : {}),
  });
  return [
    ["native", [native("b0"), native("b1"), native("b2")]],
    ["turbo", [turbo("layer2", true)]],
    ["both", [native("zt"), turbo("layer2", true)]],
    ["turbo without an index", [turbo("layer2", false)]],
  ];
}

async function configSeeds(): Promise<Seed[]> {
  if (golden("unit") === undefined) return [];
  const shared = await environment();
  const path = await Deno.makeTempFile({
    prefix: "obd-fuzz-",
    suffix: ".json",
  });
  globalThis.addEventListener("unload", () => {
    try {
      Deno.removeSync(path);
    } catch {
      // Gone with its directory.
    }
  });
  return lowersOf().map(([name, lowers]): Seed => {
    const text = JSON.stringify({
      repoBlobUrl: "",
      lowers,
      upper: { index: "", data: "" },
      resultFile: "/dev/null/result",
      accelerationLayer: false,
      recordTracePath: "",
      download: { enable: true },
    });
    return {
      name,
      bytes: new TextEncoder().encode(text),
      mutate(mutant, random) {
        const json = JSON.parse(text);
        const keys = Object.keys(json);
        const lower = random.pick<Record<string, unknown>>(json.lowers);
        const target = random.oneIn(2) ? json : lower;
        const key = random.oneIn(4)
          ? random.pick(["dir", "size", "digest", "gzipIndex", "targetFile"])
          : random.pick(target === json ? keys : Object.keys(lower));
        target[key] = random.pick<unknown>([
          ...[undefined, null, 0, -1, 1e300, "", [], {}, true, "/", ".", "x"],
          ...Object.values(random.pick(lowers)),
          "https://registry.example/v2/a/b/blobs",
          Array.from({ length: 300 }, () => ({ ...lower })),
          [{ ...lower }, null],
        ]);
        mutant.replace(new TextEncoder().encode(JSON.stringify(json)));
        if (random.oneIn(6)) mutate(mutant, undefined, random);
      },
      async read({ bytes }, random) {
        await Deno.writeFile(path, bytes);
        await using image = await openConfigImage(shared, path);
        await readSome(image.source, random);
      },
    };
  });
}

/** A writable layer of two files, one of which is changed. */
function writableSeed(
  name: string,
  kind: "native" | "warp",
  data: Uint8Array,
  index: Uint8Array,
  changed: "data" | "index",
): Seed {
  const bytes = changed === "data" ? data : index;
  return {
    name: `${name}, ${changed} file`,
    bytes,
    hot: changed === "data" ? [[0, 60]] : [[0, 60], [4096, bytes.length]],
    async read({ bytes: input }, random) {
      const source = sourceOf(changed === "data" ? input : data);
      const layer = await openWritableLayer(
        {
          data: source,
          openIndex: () =>
            Promise.resolve<ByteSource>(
              sourceOf(changed === "index" ? input : index),
            ),
          storedRanges: (offset) =>
            offset < source.size ? [{ start: offset, end: source.size }] : [],
        },
        kind,
        random.below(3),
      );
      const size = Math.min(
        layer.virtualSize || layer.table.highestMapped() * 512,
        2 ** 49,
      );
      await using device = new LsmtSource(
        [{ ...layer, data: source, target: new MemorySource(data) }],
        size,
      );
      await readSome(device, random);
    },
  };
}

function writableSeeds(): Seed[] {
  const [d, i, ti, tgt, sps] = ["d", "i", "ti", "tgt", "sps"].map((name) =>
    goldenBytes(`unit/${name}`)
  );
  const seeds: Seed[] = [];
  if (d && i) {
    seeds.push(
      writableSeed("append", "native", d, i, "data"),
      writableSeed("append", "native", d, i, "index"),
    );
  }
  if (ti && tgt) seeds.push(writableSeed("warp", "warp", tgt, ti, "index"));
  if (sps) {
    // What it was before it was sealed: without its index and trailer.
    const open = sps.slice(0, 1024 * 1024 + 4096);
    open[28] = 0x13;
    seeds.push(
      writableSeed("sparse", "native", open, new Uint8Array(0), "data"),
    );
  }
  return seeds;
}

/** Targets of this file. */
export const CONFIG_TARGETS: Target[] = [
  {
    name: "config",
    summary: "config.v1.json: images of files",
    weight: 15,
    load: configSeeds,
  },
  {
    name: "writable",
    summary: "writable layers: append, sparse, TurboOCI's",
    weight: 40,
    load: () => Promise.resolve(writableSeeds()),
  },
];
