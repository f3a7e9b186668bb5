/** The ways in which layers are compressed out there, each with the tool that does it. */

import { concatBytes } from "../../lib/io/mod.ts";
import { runTool } from "../testutil/debian_image.ts";
import { makeEstargz } from "../testutil/estargz.ts";
import {
  dir,
  file,
  layerTar,
  makeImage,
  symlink,
  writeLayout,
} from "../testutil/oci_image.ts";
import { compressWith, seekable, skippable } from "../zstd/helpers.ts";

type Bytes = Uint8Array<ArrayBuffer>;

/** A way to store a layer. */
export interface LayerKind {
  name: string;
  mediaType: string;
  /** Programs that it needs. */
  tools: readonly string[];
  /** Keeps neither sparse files nor zeros behind the end: of these it makes another tar, or none. */
  rewritesTar?: true;
  /**
   * Stores a tar.
   *
   * @param dir For files of the call.
   * @returns The blob, and the tar that it holds where that is another one.
   */
  store(tar: Bytes, dir: string): Promise<{ blob: Bytes; tar?: Bytes }>;
}

const TYPE = "application/vnd.oci.image.layer.v1.tar";

function gzip(name: string, ...command: string[]): LayerKind {
  return made(name, `${TYPE}+gzip`, command);
}

function zstd(name: string, ...command: string[]): LayerKind {
  return made(name, `${TYPE}+zstd`, command);
}

function made(name: string, mediaType: string, command: string[]): LayerKind {
  return {
    name,
    mediaType,
    tools: [command[0]!],
    store: async (tar) => ({ blob: await compressWith(command, tar) }),
  };
}

/** Parts compressed by themselves, with something between them, back to back. */
function joined(
  name: string,
  mediaType: string,
  command: string[],
  parts: number,
  between = new Uint8Array(),
): LayerKind {
  return {
    name,
    mediaType,
    tools: [command[0]!],
    async store(tar) {
      const size = Math.ceil(tar.length / parts);
      const blobs: Uint8Array[] = [];
      for (let at = 0; at < tar.length; at += size) {
        const part = new Uint8Array(tar.subarray(at, at + size));
        blobs.push(await compressWith(command, part), between);
      }
      return { blob: concatBytes(blobs) };
    },
  };
}

/** Kinds that umoci unpacks too. */
export const GZIP_KINDS: readonly LayerKind[] = [
  {
    name: "plain tar",
    mediaType: TYPE,
    tools: [],
    store: (tar) => Promise.resolve({ blob: tar }),
  },
  gzip("gzip -1", "gzip", "-1"),
  gzip("gzip -6", "gzip", "-6"),
  gzip("gzip -9", "gzip", "-9"),
  gzip("gzip --rsyncable", "gzip", "--rsyncable"),
  gzip("gzip with a name and time", "gzip", "-N", "-c", "FILE"),
  gzip("pigz", "pigz", "-p", "2", "-b", "128"),
  gzip("pigz -i", "pigz", "-i", "-p", "2", "-b", "128"),
  gzip("pigz -11", "pigz", "-11", "-I", "1", "-p", "2"),
  gzip("bgzip", "bgzip", "-c"),
  gzip("igzip", "igzip", "-c", "FILE"),
  joined("gzip members joined", `${TYPE}+gzip`, ["gzip"], 5),
  {
    name: "eStargz",
    mediaType: `${TYPE}+gzip`,
    tools: [],
    store(tar) {
      const { blob, tar: other } = estargzOf(tar);
      return Promise.resolve({ blob, tar: other });
    },
  },
];

/** Of some content, so that its files differ from those of other layers. */
function estargzOf(content: Bytes): { blob: Bytes; tar: Bytes } {
  const part = (from: number, to: number) => content.slice(from, to);
  return makeEstargz(
    [
      dir("estargz"),
      file("estargz/first", part(0, 700_000), { mode: 0o755 }),
      symlink("estargz/link", "first"),
    ],
    [
      file("estargz/empty"),
      file("estargz/second", part(700_000, 2_000_001)),
      file("estargz/third", part(2_000_001, 2_000_600)),
    ],
  );
}

/** Kinds that containerd unpacks, and umoci of today does not. */
export const ZSTD_KINDS: readonly LayerKind[] = [
  zstd("zstd", "zstd", "-q"),
  zstd("zstd -19", "zstd", "-q", "-19", "-c", "FILE"),
  zstd("zstd --fast", "zstd", "-q", "--fast=3", "--no-check"),
  zstd("zstd --long=27", "zstd", "-q", "--long=27"),
  zstd("zstd -T2", "zstd", "-q", "-T2", "-B524288"),
  zstd("pzstd", "pzstd", "-q", "-p", "2", "-c", "FILE"),
  joined("zstd frames joined", `${TYPE}+zstd`, ["zstd", "-q"], 4),
  joined(
    "zstd frames with skippable ones between",
    `${TYPE}+zstd`,
    ["zstd", "-q"],
    3,
    skippable(new Uint8Array(70_000), 3),
  ),
  {
    name: "zstd seekable",
    mediaType: `${TYPE}+zstd`,
    tools: [],
    store: (tar) => Promise.resolve({ blob: seekable(tar, 300_000) }),
  },
  {
    name: "zstd:chunked",
    mediaType: `${TYPE}+zstd`,
    tools: ["skopeo"],
    rewritesTar: true,
    store: async (tar, dir) => ({ blob: await chunkedBySkopeo(tar, dir) }),
  },
];

async function chunkedBySkopeo(tar: Bytes, dir: string): Promise<Bytes> {
  await writeLayout(`${dir}/plain`, [{
    tag: "v1",
    image: makeImage({ layers: [{ entries: tar, compression: "none" }] }),
  }]);
  await runTool(
    ...["skopeo", "copy", "-q", "--insecure-policy"] as const,
    ...["--dest-compress-format", "zstd:chunked"],
    ...[`oci:${dir}/plain:v1`, `oci:${dir}/chunked:v1`],
  );
  const read = async (digest: string) =>
    new Uint8Array(
      await Deno.readFile(
        `${dir}/chunked/blobs/${digest.replace(":", "/")}`,
      ),
    );
  const json = async (bytes: Promise<Bytes>) =>
    JSON.parse(new TextDecoder().decode(await bytes));
  const index = JSON.parse(
    await Deno.readTextFile(`${dir}/chunked/index.json`),
  );
  const manifest = await json(read(index.manifests[0].digest));
  return await read(manifest.layers[0].digest);
}

/**
 * A tar of a directory with all that tars have, made by GNU tar.
 *
 * @param seed What its files' content depends on.
 */
export async function sampleTar(
  name: string,
  seed: number,
  dir: string,
  isPlain: boolean,
): Promise<Bytes> {
  const words = Array.from(
    { length: 400 },
    (_, i) => ((i + 1) * (seed + 77) * 2_654_435_761 >>> 0).toString(36),
  );
  const text = (count: number, step: number) =>
    Array.from(
      { length: count },
      (_, i) => words[(i * step + (i >> 5) * 7 + seed) % words.length],
    ).join(" ");
  const root = `${dir}/tree`;
  await Deno.mkdir(`${root}/${name}/deep/er`, { recursive: true });
  const at = (path: string) => `${root}/${name}/${path}`;
  await Deno.writeTextFile(at("big"), text(280_000, 13));
  await Deno.writeTextFile(at("deep/er/file"), text(40_000, 5));
  await Deno.writeFile(at("random"), noise(600_000, seed));
  for (let i = 0; i < 60; i++) {
    await Deno.writeTextFile(at(`deep/f${i}`), text(i * 37, i + 1));
  }
  await Deno.link(at("big"), at("deep/linked"));
  await Deno.symlink("../random", at("deep/symbolic"));
  using sparse = await Deno.create(at("sparse"));
  await sparse.truncate(3_000_000);
  await sparse.seek(1_048_576, Deno.SeekMode.Start);
  await sparse.write(noise(5000, seed + 1));
  await Deno.chmod(at("deep/f1"), 0o4711);
  const path = `${dir}/layer.tar`;
  await runTool(
    ...["tar", "--format=pax", "--sort=name"] as const,
    ...(isPlain ? ["--blocking-factor=1"] : ["--sparse"]),
    ...[
      "--mtime=@1600000000.5",
      "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime",
    ],
    ...["-C", root, "-cf", path, name],
  );
  return new Uint8Array(await Deno.readFile(path));
}

function noise(length: number, seed: number): Bytes {
  const bytes = new Uint8Array(length);
  let state = seed * 2_654_435_761 + 1 >>> 0;
  for (let i = 0; i < length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    bytes[i] = state;
  }
  return bytes;
}

/** The last layer of a stack: removes and replaces some of what lies below. */
export function topLayer(names: readonly string[]): Bytes {
  return layerTar(names.flatMap((name, i) => [
    file(`${name}/deep/.wh.f${i}`),
    ...(i % 2 === 0 ? [file(`${name}/deep/f30`, `of the top: ${name}`)] : []),
    ...(i % 3 === 0 ? [file(`${name}/deep/er/.wh..wh..opq`)] : []),
  ]));
}
