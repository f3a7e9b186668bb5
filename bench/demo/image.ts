/** Writes layers as gzip blobs on the way to a registry; memory holds one file at a time. */

import { createHash } from "node:crypto";
import { once } from "node:events";
import { createGzip } from "node:zlib";
import { FileSource, utf8, writeAll } from "../../lib/io/mod.ts";
import {
  blobFromBytes,
  blobFromSource,
  type Descriptor,
  MediaType,
  type Repository,
} from "../../lib/registry/mod.ts";
import { type LayerEntry, tarEntry } from "../../tests/testutil/oci_image.ts";
import type { ExpectedTree } from "./expected.ts";

/** A layer as a file. */
export interface WrittenLayer {
  title: string;
  path: string;
  descriptor: Descriptor;
  diffId: string;
  /** Entries of the tar, whiteouts included. */
  entries: number;
  /** Bytes of the uncompressed tar. */
  tarSize: number;
}

const END_OF_ARCHIVE = new Uint8Array(1024);
const ARCHITECTURES: Record<string, string> = {
  x86_64: "amd64",
  aarch64: "arm64",
};

/** Writes a layer to a file and applies it to what is expected. */
export async function writeLayer(
  path: string,
  title: string,
  entries: Iterable<LayerEntry>,
  expected: ExpectedTree,
): Promise<WrittenLayer> {
  using file = await Deno.open(path, { write: true, createNew: true });
  const tarHash = createHash("sha256");
  const blobHash = createHash("sha256");
  const gzip = createGzip({ level: 4 });
  let size = 0;
  const writing = (async () => {
    for await (const piece of gzip as AsyncIterable<Uint8Array>) {
      blobHash.update(piece);
      size += piece.length;
      await writeAll(file, piece);
    }
  })();
  let tarSize = 0;
  const put = async (bytes: Uint8Array) => {
    tarHash.update(bytes);
    tarSize += bytes.length;
    if (!gzip.write(bytes)) await once(gzip, "drain");
  };
  let count = 0;
  expected.nextLayer();
  for (const entry of entries) {
    expected.add(entry);
    count++;
    await put(tarEntry(entry));
  }
  await put(END_OF_ARCHIVE);
  gzip.end();
  await writing;
  return {
    title,
    path,
    descriptor: {
      mediaType: MediaType.ociLayerGzip,
      digest: `sha256:${blobHash.digest("hex")}`,
      size,
    },
    diffId: `sha256:${tarHash.digest("hex")}`,
    entries: count,
    tarSize,
  };
}

/** Pushes layers as one image. */
export async function pushImage(
  repository: Repository,
  tag: string,
  layers: readonly WrittenLayer[],
): Promise<Descriptor> {
  for (const { path, descriptor } of layers) {
    await using blob = await FileSource.open(path);
    await repository.pushBlob(descriptor, blobFromSource(blob));
  }
  const config = utf8(JSON.stringify({
    created: "2023-11-14T22:13:20Z",
    os: "linux",
    architecture: ARCHITECTURES[Deno.build.arch] ?? Deno.build.arch,
    config: {},
    rootfs: { type: "layers", diff_ids: layers.map((l) => l.diffId) },
  }));
  const configDescriptor = {
    mediaType: MediaType.ociConfig,
    digest: `sha256:${createHash("sha256").update(config).digest("hex")}`,
    size: config.length,
  };
  await repository.pushBlob(configDescriptor, blobFromBytes(config));
  const manifest = utf8(JSON.stringify({
    schemaVersion: 2,
    mediaType: MediaType.ociManifest,
    config: configDescriptor,
    layers: layers.map((l) => l.descriptor),
  }));
  return await repository.pushManifest(manifest, MediaType.ociManifest, tag);
}
