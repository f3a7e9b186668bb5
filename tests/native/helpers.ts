/** What the tests of native layers share: reading a layout's native images with independent code. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { openImage } from "../../lib/image/mod.ts";
import { type ByteSource, isZero } from "../../lib/io/mod.ts";
import { blobPath } from "../testutil/oci_image.ts";
import {
  checkLsmt,
  checkTarWrapper,
  checkZFile,
  type LsmtEntry,
} from "../testutil/overlaybd_rules.ts";
import { layoutTags, testEnvironment } from "../image/helpers.ts";

const BLOCK = 4096;

/** SHA-256 over a device's blocks that are not zero, with their places. */
export async function deviceDigest(device: ByteSource): Promise<string> {
  const hash = createHash("sha256").update(`${device.size}\n`);
  const extents = device.extents?.(0, device.size) ??
    [{ offset: 0, length: device.size, kind: "data" }];
  const block = new Uint8Array(BLOCK);
  let last = -1;
  for (const { offset, length, kind } of extents) {
    if (kind !== "data") continue;
    const first = Math.max(Math.floor(offset / BLOCK), last + 1);
    for (let at = first; at * BLOCK < offset + length; at++) {
      await device.pread(block, at * BLOCK);
      last = at;
      if (!isZero(block)) hash.update(`${at}\n`).update(block);
    }
  }
  return hash.digest("hex");
}

/** The same of an image. */
export async function imageDigest(image: string): Promise<string> {
  await using environment = await testEnvironment();
  await using opened = await openImage(environment, image, {
    metaFrom: ["digest", "tag", "referrer"],
  });
  return await deviceDigest(opened.source);
}

/** A manifest as it is stored, with its config. */
export interface StoredImage {
  mediaType: string;
  artifactType?: string;
  subject?: { digest: string };
  config: { mediaType: string; digest: string };
  layers: {
    mediaType: string;
    digest: string;
    size: number;
    annotations: Record<string, string>;
  }[];
  annotations: Record<string, string>;
  diffIds: string[];
  history: { empty_layer?: boolean }[];
}

/** Reads what a tag of a layout names. */
export async function readImage(
  layout: string,
  tag: string,
): Promise<StoredImage> {
  const digest = (await layoutTags(layout)).get(tag);
  assert.ok(digest, `tag ${tag}`);
  const json = async (of: string) =>
    JSON.parse(await Deno.readTextFile(blobPath(layout, of)));
  const manifest = await json(digest);
  const config = await json(manifest.config.digest);
  return {
    ...manifest,
    diffIds: config.rootfs.diff_ids,
    history: config.history ?? [],
  };
}

/** What an independent reader finds in a native layer blob. */
export interface CheckedNative {
  entries: LsmtEntry[];
  /** The LSMT file. */
  lsmt: Uint8Array;
  uuid: string;
  parentUuid: string;
}

/** Asserts every rule of the three containers. */
export function checkNative(
  blob: Uint8Array,
  wish: { virtualSize: number; codec?: "lz4" | "zstd"; blockSize?: number },
): CheckedNative {
  const record = new TextDecoder().decode(blob.subarray(512, 560));
  const payload = checkTarWrapper(
    blob,
    Number(/^\d+ size=(\d+)\n/.exec(record)?.[1]),
  );
  const lsmt = checkZFile(payload, {
    codec: wish.codec ?? "lz4",
    blockSize: wish.blockSize ?? 4096,
    headerOverwrite: true,
  });
  const entries = checkLsmt(lsmt, "native", wish.virtualSize);
  let joined = false;
  for (const [i, { offset, length, moffset, zeroed }] of entries.entries()) {
    const next = entries[i + 1];
    const wasJoined = joined;
    // A run over 16383 sectors goes on in the next entry.
    joined = next?.offset === offset + length && next.zeroed === zeroed;
    if (wasJoined || joined || zeroed) continue;
    // Whole blocks, on the blocks of the ZFile.
    assert.equal(offset % 8, 0);
    assert.equal(moffset % 8, 0);
    for (let at = 0; at < length; at += 8) {
      const from = (moffset + at) * 512;
      assert.ok(!isZero(lsmt.subarray(from, from + BLOCK)), "zeros are stored");
    }
  }
  const text = (at: number) =>
    new TextDecoder().decode(lsmt.subarray(at, at + 36));
  return { entries, lsmt, uuid: text(56), parentUuid: text(93) };
}
