/**
 * The rules of overlaybd for whole images in an OCI layout, checked on stored
 * bytes by code that shares nothing with lib/. OVERLAYBD_RULES.md lists them.
 */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { gunzipSync, inflateSync as inflate } from "node:zlib";
import {
  checkGzipMeta,
  checkLsmt,
  checkMetaTar,
  checkTarWrapper,
  checkZFile,
  type LsmtEntry,
} from "./overlaybd_rules.ts";

const PREFIX = "containerd.io/snapshot/overlaybd";
const OCI = "application/vnd.oci.image";
const DOCKER = "application/vnd.docker";
const NULL_UUID = "00000000-0000-0000-0000-000000000000";

interface Descriptor {
  mediaType: string;
  digest: string;
  size: number;
  annotations?: Record<string, string>;
}

/** How native layers were asked for; defaults are the tools'. */
export interface ImageWish {
  virtualSize: number;
  codec?: "lz4" | "zstd";
  blockSize?: number;
}

/** What was found, so that a test can see that it saw enough. */
export interface CheckedImage {
  kinds: ("turbo" | "native")[];
  entries: LsmtEntry[][];
}

const digestOf = (bytes: Uint8Array) =>
  `sha256:${createHash("sha256").update(bytes).digest("hex")}`;

/** Reads a blob and compares it with its name and size. */
function readBlob(layout: string, digest: string, size?: number): Uint8Array {
  const bytes = Deno.readFileSync(
    `${layout}/blobs/${digest.replace(":", "/")}`,
  );
  assert.equal(digestOf(bytes), digest, "digest");
  if (size !== undefined) assert.equal(bytes.length, size, "descriptor size");
  return bytes;
}

/** Asserts every rule on the image under a tag. */
export function checkImage(
  layout: string,
  tag: string,
  wish: ImageWish,
): CheckedImage {
  const json = (bytes: Uint8Array) =>
    JSON.parse(new TextDecoder().decode(bytes));
  const index = json(Deno.readFileSync(`${layout}/index.json`));
  const named = index.manifests.find((m: Descriptor) =>
    m.annotations?.["org.opencontainers.image.ref.name"] === tag
  );
  assert.ok(named, `tag ${tag}`);
  const manifest = json(readBlob(layout, named.digest, named.size));
  const layers: Descriptor[] = manifest.layers;
  const config = json(
    readBlob(layout, manifest.config.digest, manifest.config.size),
  );
  const isDocker = manifest.mediaType.startsWith(DOCKER);
  assert.equal(manifest.schemaVersion, 2);
  assert.equal(
    manifest.mediaType,
    isDocker
      ? `${DOCKER}.distribution.manifest.v2+json`
      : `${OCI}.manifest.v1+json`,
  );
  assert.equal(
    manifest.config.mediaType,
    isDocker ? `${DOCKER}.container.image.v1+json` : `${OCI}.config.v1+json`,
  );
  assert.ok(layers.length >= 1 && layers.length <= 255, "layers in a stack");
  const diffIds: string[] = config.rootfs.diff_ids;
  assert.equal(diffIds.length, layers.length, "one diff_id for each layer");
  assert.equal(config.rootfs.type, "layers");
  if (config.history) {
    const steps = config.history.filter((s: { empty_layer?: boolean }) =>
      !s.empty_layer
    );
    assert.equal(steps.length, layers.length, "history goes with the layers");
  }
  const found: CheckedImage = { kinds: [], entries: [] };
  let below = NULL_UUID;
  for (const [i, layer] of layers.entries()) {
    const blob = readBlob(layout, layer.digest, layer.size);
    const note = layer.annotations ?? {};
    assert.equal(note[`${PREFIX}/blob-digest`], layer.digest);
    assert.equal(note[`${PREFIX}/blob-size`], String(layer.size));
    const isTurbo = note[`${PREFIX}/turbo-oci/target-digest`] !== undefined;
    found.kinds.push(isTurbo ? "turbo" : "native");
    if (isTurbo) {
      found.entries.push(checkTurboLayer(layout, layer, diffIds[i]!, wish));
      below = NULL_UUID;
      continue;
    }
    assert.equal(note[`${PREFIX}/version`], "0.1.0");
    assert.equal(
      layer.mediaType,
      isDocker ? `${DOCKER}.image.rootfs.diff.tar` : `${OCI}.layer.v1.tar`,
      "a native layer's type names no compression",
    );
    assert.equal(diffIds[i], layer.digest, "diff_id is the blob's digest");
    const { entries, uuid, parent } = checkNativeBlob(blob, wish);
    found.entries.push(entries);
    if (below !== NULL_UUID) assert.equal(parent, below, "parent UUID");
    below = uuid;
  }
  const isNative = found.kinds.every((kind) => kind === "native");
  if (isDocker) {
    assert.ok(!("subject" in manifest) && !("artifactType" in manifest));
  } else {
    assert.equal(
      manifest.artifactType,
      `application/vnd.containerd.overlaybd.${
        isNative ? "native" : "turbo"
      }.v1+json`,
    );
    const { mediaType, digest, size } = manifest.subject;
    assert.equal(json(readBlob(layout, digest, size)).mediaType, mediaType);
  }
  return found;
}

/** Asserts the rules of one native blob. */
export function checkNativeBlob(
  blob: Uint8Array,
  wish: ImageWish,
): { entries: LsmtEntry[]; uuid: string; parent: string } {
  const text = new TextDecoder();
  const record = text.decode(blob.subarray(512, 1024));
  const size = Number(/^\d+ size=(\d+)\n\0*$/.exec(record)?.[1]);
  const lsmt = checkZFile(checkTarWrapper(blob, size), {
    codec: wish.codec ?? "lz4",
    blockSize: wish.blockSize ?? 4096,
    headerOverwrite: true,
  });
  const entries = checkLsmt(lsmt, "native", wish.virtualSize);
  checkTail(lsmt);
  return {
    entries,
    uuid: text.decode(lsmt.subarray(56, 92)),
    parent: text.decode(lsmt.subarray(93, 129)),
  };
}

/** A native index is filled up to 4096 bytes, as overlaybd's commit does. */
function checkTail(lsmt: Uint8Array): void {
  const at = lsmt.length - 4096;
  const count = Number(
    new DataView(lsmt.buffer, lsmt.byteOffset).getBigUint64(at + 40, true),
  );
  if (count < 1_000_000 - 256) assert.equal(count % 256, 0, "index padding");
}

function checkTurboLayer(
  layout: string,
  layer: Descriptor,
  diffId: string,
  wish: ImageWish,
): LsmtEntry[] {
  const note = layer.annotations!;
  assert.equal(note[`${PREFIX}/version`], "0.1.0-turbo.ociv1");
  assert.equal(layer.mediaType, `${OCI}.layer.v1.tar+gzip`);
  const blob = readBlob(layout, layer.digest, layer.size);
  assert.deepEqual(
    [...blob.subarray(0, 8)],
    [0x1f, 0x8b, 8, 0, 0, 0, 0, 0],
    "gzip header without flags and time",
  );
  const tar = new Uint8Array(gunzipSync(blob));
  assert.equal(digestOf(tar), diffId, "diff_id is that of the meta tar");
  const members = membersOf(tar);
  const names = [...members.keys()];
  checkMetaTar(tar, names);

  // The target: in the same repository, told as gzip if and only if it is.
  const target = readBlob(layout, note[`${PREFIX}/turbo-oci/target-digest`]!);
  const isGzip = target[0] === 0x1f && target[1] === 0x8b;
  const isPlain = target.length >= 1024 && target.length % 512 === 0 &&
    (new TextDecoder().decode(target.subarray(257, 262)) === "ustar" ||
      target.every((byte) => byte === 0));
  const told = note[`${PREFIX}/turbo-oci/target-media-type`]!;
  // What TurboOCI cannot read is told gzip and has no index, so that it fails to open.
  assert.equal(
    told,
    isPlain ? `${OCI}.layer.v1.tar` : `${OCI}.layer.v1.tar+gzip`,
  );
  const uncompressed = isGzip ? gunzipSync(target) : target;
  const hasIndex = members.has("gzip.meta");
  const expected = [
    "ext4.fs.meta",
    ".turbo.ociv1",
    ...(hasIndex ? ["gzip.meta"] : []),
    "obd.spans",
  ];
  assert.deepEqual(names, expected, "members in the order of the tools");
  assert.equal(members.get(".turbo.ociv1")!.length, 0);
  assert.ok(!hasIndex || isGzip, "gzip.meta of something else");
  if (hasIndex) {
    checkGzipMetaOf(members.get("gzip.meta")!, target, uncompressed.length);
  }

  const fsMeta = members.get("ext4.fs.meta")!;
  const view = new DataView(fsMeta.buffer, fsMeta.byteOffset);
  const blockSize = view.getUint32(72, true);
  assert.ok([4096, 8192, 16384, 32768].includes(blockSize), "ZFile blocks");
  const lsmt = checkZFile(fsMeta, {
    codec: fsMeta[76] === 1 ? "lz4" : "zstd",
    blockSize,
    headerOverwrite: (view.getUint32(32, true) & 8) !== 0,
  });
  const entries = checkLsmt(lsmt, "warp", wish.virtualSize);
  if (isGzip || isPlain) {
    const sectors = Math.ceil(uncompressed.length / 512);
    for (const { tag, zeroed, moffset, length } of entries) {
      if (tag !== 1 || zeroed) continue;
      assert.ok(moffset + length <= sectors, "mapping beyond the target");
    }
  }
  return entries;
}

/** The header fields that name the target; the entries are compared with no index of ours. */
function checkGzipMetaOf(
  file: Uint8Array,
  target: Uint8Array,
  uncompressedSize: number,
): void {
  const view = new DataView(file.buffer, file.byteOffset);
  const count = Number(view.getBigUint64(25, true));
  const start = Number(view.getBigUint64(313, true));
  const area = new Uint8Array(inflate(file.subarray(start)));
  const offsets = Array.from(
    { length: count },
    (_, i) =>
      Number(
        new DataView(area.buffer, area.byteOffset).getBigUint64(i * 29, true),
      ),
  );
  checkGzipMeta(file, {
    gzipSize: target.length,
    uncompressedSize,
    checkpoints: { count, uncompressedOffset: offsets },
  });
}

/** Regular members of a ustar archive, in order. */
function membersOf(tar: Uint8Array): Map<string, Uint8Array> {
  const members = new Map<string, Uint8Array>();
  const text = (at: number, length: number) =>
    String.fromCharCode(...tar.subarray(at, at + length)).replace(/\0.*$/s, "");
  for (let at = 0; tar[at] !== 0;) {
    const size = parseInt(text(at + 124, 12), 8);
    members.set(text(at, 100), tar.subarray(at + 512, at + 512 + size));
    at += 512 + Math.ceil(size / 512) * 512;
  }
  return members;
}
