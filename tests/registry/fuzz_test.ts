/** Whatever comes in, what comes out is a value or an ObdError. */

import { ok } from "node:assert/strict";
import { loadLibc, ObdError } from "../../lib/io/mod.ts";
import { parseChallenges } from "../../lib/registry/challenge.ts";
import {
  ArchiveRepository,
  LayoutRepository,
  MediaType,
  parseImageConfig,
  parseManifest,
  parsePlatform,
  parseReference,
  sha256Digest,
} from "../../lib/registry/mod.ts";
import { manifestOf, withTempDir } from "./helpers.ts";

loadLibc(); // not a leak of the first test

/** Small seeded generator (mulberry32). */
function random(seed: number): () => number {
  let a = seed;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

const SEED = Number(Deno.env.get("OBD_FUZZ_SEED") ?? 1);

/** Flips, cuts, doubles, or puts a telling byte. */
function mutate(
  bytes: Uint8Array,
  next: () => number,
): Uint8Array<ArrayBuffer> {
  let out = new Uint8Array(bytes);
  for (let n = 1 + Math.floor(next() * 4); n > 0; n--) {
    const at = Math.floor(next() * out.length);
    switch (Math.floor(next() * 5)) {
      case 0:
        out[at]! ^= 1 << Math.floor(next() * 8);
        break;
      case 1:
        out = out.slice(0, at);
        break;
      case 2: {
        const piece = out.slice(at, at + Math.floor(next() * 64));
        const joined = new Uint8Array(out.length + piece.length);
        joined.set(out.subarray(0, at));
        joined.set(piece, at);
        joined.set(out.subarray(at), at + piece.length);
        out = joined;
        break;
      }
      case 3:
        out[at] = [0, 0x22, 0x2d, 0x30, 0x39, 0x5b, 0x7b, 0xff][
          Math.floor(next() * 8)
        ]!;
        break;
      default:
        if (out.length > 0) out.copyWithin(at, Math.floor(next() * out.length));
    }
  }
  return out;
}

function check(error: unknown, input: Uint8Array): void {
  ok(
    error instanceof ObdError,
    `seed ${SEED}: ${error} for ${
      JSON.stringify(new TextDecoder().decode(input))
    }`,
  );
}

const encode = (x: unknown) => new TextEncoder().encode(JSON.stringify(x));
const digest = `sha256:${"ab".repeat(32)}`;
const blob = { mediaType: MediaType.ociLayerGzip, digest, size: 100 };
const config = encode({
  os: "linux",
  architecture: "amd64",
  rootfs: { diff_ids: [digest] },
  history: [{ created_by: "x" }],
});
const index = encode({
  schemaVersion: 2,
  mediaType: MediaType.ociIndex,
  manifests: [{ ...blob, platform: { os: "linux", architecture: "arm" } }],
});

const PARSERS: [
  seeds: Uint8Array[],
  parse: (bytes: Uint8Array, text: string) => unknown,
][] = [
  [
    [encode(manifestOf(blob, [blob], { subject: blob })), index],
    (bytes) => parseManifest(bytes),
  ],
  [[config], (bytes) => parseImageConfig(bytes)],
  [
    [
      `ghcr.io:443/a/b-c:tag@${digest}`,
      "[::1]:80/x",
      "oci:/a/b:c",
      "docker://a/b",
    ].map((t) => new TextEncoder().encode(t)),
    (_, text) => parseReference(text),
  ],
  [
    ["linux/arm64/v8"].map((t) => new TextEncoder().encode(t)),
    (_, text) => parsePlatform(text),
  ],
  [
    ['Bearer realm="https://x/y",service=a , Basic realm="q\\"x"'].map((t) =>
      new TextEncoder().encode(t)
    ),
    (_, text) => parseChallenges(text),
  ],
];

Deno.test("parsers: mutated input gives a value or an ObdError", () => {
  const next = random(SEED);
  for (const [seeds, parse] of PARSERS) {
    for (let i = 0; i < 3000; i++) {
      const input = mutate(seeds[i % seeds.length]!, next);
      try {
        parse(input, new TextDecoder("latin1").decode(input));
      } catch (error) {
        check(error, input);
      }
    }
  }
});

Deno.test("layouts and archives: mutated input gives a value or an ObdError", async () => {
  await withTempDir(async (dir) => {
    const next = random(SEED + 1);
    const layout = `${dir}/l`;
    const repository = await LayoutRepository.open(layout, { create: true });
    const descriptor = {
      mediaType: "application/json",
      digest: sha256Digest(config),
      size: config.length,
    };
    await repository.pushBlob(descriptor, {
      async *open() {
        yield await Promise.resolve(config);
      },
    });
    await repository.pushManifest(
      encode(manifestOf(descriptor, [])),
      MediaType.ociManifest,
      "v1",
    );
    const good = await Deno.readFile(`${layout}/index.json`);
    await new Deno.Command("tar", {
      args: ["-C", layout, "--format=pax", "-cf", `${dir}/good.tar`, "."],
    }).output();
    const tar = await Deno.readFile(`${dir}/good.tar`);
    for (let i = 0; i < 150; i++) {
      const text = mutate(good, next);
      await Deno.writeFile(`${layout}/index.json`, text);
      try {
        await repository.resolve("v1");
        await repository.referrers(digest);
      } catch (error) {
        check(error, text);
      }
      const bytes = mutate(tar, next);
      await Deno.writeFile(`${dir}/x.tar`, bytes);
      try {
        await using archive = await ArchiveRepository.open(`${dir}/x.tar`);
        await archive.resolve("v1");
        await archive.referrers(digest);
      } catch (error) {
        check(error, new Uint8Array(0));
      }
    }
  });
});
