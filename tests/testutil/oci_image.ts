/**
 * Builds OCI images from descriptions in memory: layers as lists of tar
 * entries of every kind, image manifests, indexes with several platforms. They
 * go into an OCI layout directory or into the embedded registry. The same
 * description always gives the same bytes.
 *
 * ```ts
 * const image = makeImage({
 *   layers: [
 *     { entries: [dir("etc"), file("etc/motd", "hello\n")] },
 *     { entries: [whiteout("etc/motd")], compression: "none" },
 *   ],
 * });
 * await writeLayout(path, [{ tag: "v1", image }]);
 * await putImage(server, "app", "v1", image);
 * ```
 *
 * Names are byte strings (one character per byte), as everywhere in obd.
 */

import { createHash } from "node:crypto";
import { gzipSync } from "node:zlib";
import {
  bytesFromLatin1,
  type ByteString,
  concatBytes,
} from "../../lib/io/mod.ts";
import { archive, header, padded, pax } from "../tar/tar_bytes.ts";
import type { RegistryServer } from "./registry_server.ts";

/** Seconds since 1970, with nanoseconds if need be. */
export type EntryTime = number | { seconds: number; nanoseconds: number };

/** A sparse file's content. */
export interface SparseContent {
  /** Bytes of the whole file. */
  size: number;
  /** What is not zero: ascending, apart from each other. */
  segments: readonly { offset: number; bytes: Uint8Array }[];
}

/** One entry of a layer's tar. */
export interface LayerEntry {
  path: ByteString;
  /** Default "file". */
  type?:
    | "file"
    | "directory"
    | "symlink"
    | "hardlink"
    | "char"
    | "block"
    | "fifo";
  /** Default 0755 for directories, 0777 for symlinks, else 0644. */
  mode?: number;
  uid?: number;
  gid?: number;
  /** Default 1,700,000,000. */
  mtime?: EntryTime;
  /** Of a file. */
  content?: Uint8Array | string;
  /** Of a file, instead of `content`; written as GNU sparse 1.0. */
  sparse?: SparseContent;
  /** Written behind the content where a body's padding should be zeros; the rest stays zeros. */
  dirtyPadding?: number;
  /** By name, values as bytes; strings are byte strings. */
  xattrs?: Readonly<Record<string, Uint8Array | string>>;
  linkTarget?: ByteString;
  devMajor?: number;
  devMinor?: number;
}

const TYPE_FLAGS = {
  file: "0",
  hardlink: "1",
  symlink: "2",
  char: "3",
  block: "4",
  directory: "5",
  fifo: "6",
} as const;
/** Time of entries that say none. */
export const DEFAULT_MTIME = 1_700_000_000;
/** Most characters of a header's name and link name (ustar, without prefix). */
const NAME_MAX = 100;

// ---- short forms of entries ---------------------------------------------------

/** A regular file. */
export function file(
  path: ByteString,
  content: Uint8Array | string = "",
  more: Partial<LayerEntry> = {},
): LayerEntry {
  return { path, type: "file", content, ...more };
}

/** A directory. */
export function dir(
  path: ByteString,
  more: Partial<LayerEntry> = {},
): LayerEntry {
  return { path, type: "directory", ...more };
}

/** A symbolic link. */
export function symlink(
  path: ByteString,
  linkTarget: ByteString,
  more: Partial<LayerEntry> = {},
): LayerEntry {
  return { path, type: "symlink", linkTarget, ...more };
}

/** A hard link; its header repeats the target's attributes where `more` gives them. */
export function hardlink(
  path: ByteString,
  linkTarget: ByteString,
  more: Partial<LayerEntry> = {},
): LayerEntry {
  return { path, type: "hardlink", linkTarget, ...more };
}

/** `DIR/.wh.NAME` for `DIR/NAME`. */
export function whiteout(path: ByteString): LayerEntry {
  const cut = path.lastIndexOf("/") + 1;
  return file(`${path.slice(0, cut)}.wh.${path.slice(cut)}`);
}

/** The opaque marker in a directory. */
export function opaque(directory: ByteString): LayerEntry {
  return file(directory === "" ? ".wh..wh..opq" : `${directory}/.wh..wh..opq`);
}

/** The value of a POSIX ACL attribute as it is in a tar: version 2, 8-byte entries. */
export function posixAcl(
  entries: readonly (readonly [tag: number, permissions: number, id: number])[],
): Uint8Array {
  const bytes = new Uint8Array(4 + entries.length * 8);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, 2, true);
  for (const [i, [tag, permissions, id]] of entries.entries()) {
    view.setUint16(4 + i * 8, tag, true);
    view.setUint16(6 + i * 8, permissions, true);
    view.setUint32(8 + i * 8, id, true);
  }
  return bytes;
}

// ---- tar ------------------------------------------------------------------------

/** The uncompressed tar of a layer. */
export function layerTar(
  entries: readonly LayerEntry[],
): Uint8Array<ArrayBuffer> {
  return archive(...entries.map(tarEntry));
}

/** One entry: PAX records where the header cannot say it, header, body. */
export function tarEntry(entry: LayerEntry): Uint8Array<ArrayBuffer> {
  const type = entry.type ?? "file";
  const records: [string, string][] = [];
  let name = type === "directory" && entry.path !== ""
    ? `${entry.path}/`
    : entry.path || "./";
  const linkName = entry.linkTarget ?? "";
  const { seconds, nanoseconds } = timeOf(entry.mtime ?? DEFAULT_MTIME);
  if (nanoseconds !== 0 || seconds < 0) {
    records.push(["mtime", decimalTime(seconds, nanoseconds)]);
  }
  if (linkName.length > NAME_MAX) records.push(["linkpath", linkName]);
  for (const id of ["uid", "gid"] as const) {
    if ((entry[id] ?? 0) >= 8 ** 7) records.push([id, String(entry[id])]);
  }
  for (const key of Object.keys(entry.xattrs ?? {}).sort()) {
    const value = entry.xattrs![key]!;
    records.push([
      `SCHILY.xattr.${key}`,
      typeof value === "string" ? value : latin1(value),
    ]);
  }
  let body: Uint8Array = typeof entry.content === "string"
    ? bytesFromLatin1(entry.content)
    : entry.content ?? new Uint8Array();
  if (entry.sparse) {
    records.push(
      ["GNU.sparse.major", "1"],
      ["GNU.sparse.minor", "0"],
      ["GNU.sparse.name", name],
      ["GNU.sparse.realsize", String(entry.sparse.size)],
    );
    name = "GNUSparseFile.0/sparse";
    body = sparseBody(entry.sparse);
  } else if (name.length > NAME_MAX) records.push(["path", name]);
  const filled = padded(body);
  if (entry.dirtyPadding !== undefined) {
    filled.fill(entry.dirtyPadding, body.length);
  }
  return concatBytes([
    ...(records.length > 0 ? [pax(records)] : []),
    header({
      name: name.slice(0, NAME_MAX),
      mode: entry.mode ?? defaultMode(type),
      uid: fits(entry.uid ?? 0, 7),
      gid: fits(entry.gid ?? 0, 7),
      size: body.length,
      mtime: Math.max(0, seconds),
      type: TYPE_FLAGS[type],
      linkName: linkName.slice(0, NAME_MAX),
      devMajor: entry.devMajor ?? 0,
      devMinor: entry.devMinor ?? 0,
    }),
    filled,
  ]);
}

/** Map and segments of a sparse file (GNU tar manual, "PAX 1.0"). */
function sparseBody(sparse: SparseContent): Uint8Array<ArrayBuffer> {
  const segments = [...sparse.segments];
  const last = segments.at(-1);
  // GNU tar ends a map with an empty segment where the file ends in a hole.
  if (!last || last.offset + last.bytes.length < sparse.size) {
    segments.push({ offset: sparse.size, bytes: new Uint8Array() });
  }
  const map = [
    segments.length,
    ...segments.flatMap((s) => [
      s.offset,
      s.bytes.length,
    ]),
  ];
  return concatBytes([
    padded(bytesFromLatin1(map.map((n) => `${n}\n`).join(""))),
    ...segments.map((s) => s.bytes),
  ]);
}

function timeOf(time: EntryTime): { seconds: number; nanoseconds: number } {
  return typeof time === "number" ? { seconds: time, nanoseconds: 0 } : time;
}

function decimalTime(seconds: number, nanoseconds: number): string {
  if (seconds < 0 && nanoseconds > 0) {
    const rest = String(1e9 - nanoseconds).padStart(9, "0");
    return `${seconds + 1 === 0 ? "-0" : seconds + 1}.${rest}`;
  }
  return `${seconds}.${String(nanoseconds).padStart(9, "0")}`;
}

function defaultMode(type: LayerEntry["type"]): number {
  return type === "directory" ? 0o755 : type === "symlink" ? 0o777 : 0o644;
}

/** Zero for what a PAX record says instead. */
function fits(id: number, digits: number): number {
  return id < 8 ** digits ? id : 0;
}

function latin1(bytes: Uint8Array): ByteString {
  return Array.from(bytes, (b) => String.fromCharCode(b)).join("");
}

// ---- images ---------------------------------------------------------------------

/** A layer to make. */
export interface LayerDescription {
  /** The entries, or a whole tar. */
  entries: readonly LayerEntry[] | Uint8Array<ArrayBuffer>;
  /** Default "gzip". */
  compression?: "gzip" | "none";
  /** Level of gzip; default 6. */
  level?: number;
  /** Default what fits the compression. */
  mediaType?: string;
  /** The stored blob instead of what `compression` gives: to lie about it. */
  blob?: Uint8Array<ArrayBuffer>;
  /** Instead of the tar's own. */
  diffId?: string;
}

/** An image to make. */
export interface ImageDescription {
  layers: readonly LayerDescription[];
  /** Default linux/amd64. */
  platform?: { os: string; architecture: string; variant?: string };
  /** Annotations of the manifest. */
  annotations?: Record<string, string>;
  /** Further fields of the image config. */
  config?: Record<string, unknown>;
  /** Docker's media types instead of OCI's. */
  docker?: boolean;
}

/** Names content. */
export interface MadeDescriptor {
  mediaType: string;
  digest: string;
  size: number;
}

/** Content with its name. */
export interface MadeBlob extends MadeDescriptor {
  bytes: Uint8Array<ArrayBuffer>;
}

/** One made layer. */
export interface MadeLayer extends MadeBlob {
  tar: Uint8Array<ArrayBuffer>;
  diffId: string;
}

/** A made image. */
export interface MadeImage {
  kind: "image";
  manifest: MadeBlob;
  config: MadeBlob;
  layers: MadeLayer[];
  platform: { os: string; architecture: string; variant?: string };
}

/** A made index. */
export interface MadeIndex {
  kind: "index";
  manifest: MadeBlob;
  images: MadeImage[];
}

const OCI = {
  manifest: "application/vnd.oci.image.manifest.v1+json",
  index: "application/vnd.oci.image.index.v1+json",
  config: "application/vnd.oci.image.config.v1+json",
  none: "application/vnd.oci.image.layer.v1.tar",
  gzip: "application/vnd.oci.image.layer.v1.tar+gzip",
} as const;
const DOCKER = {
  manifest: "application/vnd.docker.distribution.manifest.v2+json",
  index: "application/vnd.docker.distribution.manifest.list.v2+json",
  config: "application/vnd.docker.container.image.v1+json",
  none: "application/vnd.docker.image.rootfs.diff.tar",
  gzip: "application/vnd.docker.image.rootfs.diff.tar.gzip",
} as const;

/** `sha256:HEX` of bytes. */
export function digestOf(bytes: Uint8Array): string {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}

/** Bytes with their name. */
export function makeBlob(
  mediaType: string,
  content: Uint8Array<ArrayBuffer> | object,
): MadeBlob {
  const bytes = content instanceof Uint8Array
    ? content
    : new TextEncoder().encode(JSON.stringify(content));
  return { mediaType, digest: digestOf(bytes), size: bytes.length, bytes };
}

/** A blob's name alone, as it stands in documents. */
export function nameOf(blob: MadeDescriptor): MadeDescriptor {
  return { mediaType: blob.mediaType, digest: blob.digest, size: blob.size };
}

/** Makes one layer. */
export function makeLayer(
  description: LayerDescription,
  docker = false,
): MadeLayer {
  const types = docker ? DOCKER : OCI;
  const { entries, compression = "gzip", level = 6 } = description;
  const tar = entries instanceof Uint8Array ? entries : layerTar(entries);
  const bytes = description.blob ??
    (compression === "gzip" ? new Uint8Array(gzipSync(tar, { level })) : tar);
  const mediaType = description.mediaType ?? types[compression];
  return {
    ...makeBlob(mediaType, bytes),
    tar,
    diffId: description.diffId ?? digestOf(tar),
  };
}

/** Makes one image. Layers that were made before can be given again. */
export function makeImage(
  description: Omit<ImageDescription, "layers"> & {
    layers: readonly (LayerDescription | MadeLayer)[];
  },
): MadeImage {
  const { docker = false } = description;
  const types = docker ? DOCKER : OCI;
  const platform = description.platform ??
    { os: "linux", architecture: "amd64" };
  const layers = description.layers.map((layer) =>
    "digest" in layer ? layer : makeLayer(layer, docker)
  );
  const config = makeBlob(types.config, {
    created: "2023-11-14T22:13:20Z",
    ...platform,
    config: { Cmd: ["/bin/sh"] },
    rootfs: { type: "layers", diff_ids: layers.map((l) => l.diffId) },
    ...description.config,
  });
  const manifest = makeBlob(types.manifest, {
    schemaVersion: 2,
    mediaType: types.manifest,
    config: nameOf(config),
    layers: layers.map(nameOf),
    ...(description.annotations
      ? { annotations: description.annotations }
      : {}),
  });
  return { kind: "image", manifest, config, layers, platform };
}

/** Makes an index of images for several platforms. */
export function makeIndex(images: readonly MadeImage[]): MadeIndex {
  const manifest = makeBlob(OCI.index, {
    schemaVersion: 2,
    mediaType: OCI.index,
    manifests: images.map((image) => ({
      ...nameOf(image.manifest),
      platform: image.platform,
    })),
  });
  return { kind: "index", manifest, images: [...images] };
}

// ---- where they go ----------------------------------------------------------------

/** Images and their tags. */
export interface Tagged {
  tag: string;
  image: MadeImage | MadeIndex;
}

function* blobsOf(image: MadeImage | MadeIndex): Generator<MadeBlob> {
  if (image.kind === "index") {
    for (const inner of image.images) {
      yield* blobsOf(inner);
      yield inner.manifest;
    }
  } else {
    yield image.config;
    yield* image.layers;
  }
}

/** Writes an OCI layout directory with these images; one that is there gets the blobs and a new `index.json`. */
export async function writeLayout(
  path: string,
  images: readonly Tagged[],
): Promise<void> {
  await Deno.mkdir(`${path}/blobs/sha256`, { recursive: true });
  const write = (blob: MadeBlob) =>
    Deno.writeFile(blobPath(path, blob.digest), blob.bytes);
  for (const { image } of images) {
    for (const blob of blobsOf(image)) await write(blob);
    await write(image.manifest);
  }
  await Deno.writeTextFile(
    `${path}/oci-layout`,
    '{"imageLayoutVersion":"1.0.0"}',
  );
  await Deno.writeTextFile(
    `${path}/index.json`,
    JSON.stringify({
      schemaVersion: 2,
      mediaType: OCI.index,
      manifests: images.map(({ tag, image }) => ({
        ...nameOf(image.manifest),
        annotations: { "org.opencontainers.image.ref.name": tag },
      })),
    }),
  );
}

/** File of a blob in a layout. */
export function blobPath(layout: string, digest: string): string {
  return `${layout}/blobs/${digest.replace(":", "/")}`;
}

/** Puts an image into a repository of the embedded registry. */
export async function putImage(
  server: RegistryServer,
  repository: string,
  tag: string | undefined,
  image: MadeImage | MadeIndex,
): Promise<void> {
  if (image.kind === "index") {
    for (const inner of image.images) {
      await putImage(server, repository, undefined, inner);
    }
  } else {
    for (const blob of blobsOf(image)) {
      await server.putBlob(repository, blob.bytes);
    }
  }
  const { bytes, mediaType } = image.manifest;
  server.putManifest(repository, tag, bytes, mediaType);
}
