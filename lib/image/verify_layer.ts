/** The checks of `obd verify` on one layer: everything is read, nothing is taken from a cache. */

import { createHash } from "node:crypto";
import {
  type ByteSource,
  FormatError,
  IntegrityError,
  MemorySource,
  type ProgressTask,
  toHex,
} from "../io/mod.ts";
import {
  ACCELERATION_SIZE_MAX,
  checkContainers,
  checkWindows,
  KIND,
  META_MEMBER,
  type OpenedLayer,
  openLayer,
  openTarget,
  readAccelerationLayer,
  readGzipMeta,
  scanLayer,
  SpanCache,
  type Target,
} from "../layers/mod.ts";
import type { Descriptor, Repository } from "../registry/mod.ts";
import { Annotation } from "./annotations.ts";
import type { ImageEnvironment } from "./environment.ts";
import { fetchMetaBlob } from "./meta_blobs.ts";
import type { LayerRole } from "./meta_image.ts";
import { servicesOf } from "./open.ts";
import { readSmallBlob } from "./source.ts";

/** Bytes read at once. */
const PIECE = 1024 * 1024;

/** Runs one check; what it throws becomes a finding, and undefined comes back. */
export type Attempt = <T>(
  check: string,
  work: () => Promise<T>,
) => Promise<T | undefined>;

/** What a layer's checks work with. */
export interface LayerCheck {
  environment: ImageEnvironment;
  repository: Repository;
  attempt: Attempt;
  task: ProgressTask;
}

/** What is known of a layer's device afterwards. */
export interface LayerFacts {
  virtualSize: number;
  uuid: string;
  parentUuid: string;
}

/** A layer of a plain image: the blob's digest, and its tar's. */
export async function verifyPlain(
  check: LayerCheck,
  layer: Descriptor,
  diffId: string,
): Promise<void> {
  await check.attempt(
    "blob",
    () => scanBlob(check, layer, layer.size, diffId),
  );
}

/** A native layer: its blob's digest, every block's checksum, the rules of its index. */
export async function verifyNative(
  check: LayerCheck,
  layer: Descriptor,
  diffId: string | undefined,
): Promise<LayerFacts | undefined> {
  const { repository, environment, attempt, task } = check;
  await attempt("annotations", () => checkAnnotations(layer));
  await attempt("diffID", () => {
    // The blob is its own uncompressed form (accelerated-container-image, builder/overlaybd_builder.go).
    if (diffId !== undefined && diffId !== layer.digest) {
      throw new IntegrityError("Layer diffID", layer.digest, diffId);
    }
    return Promise.resolve();
  });
  await attempt("blob digest", async () => {
    const blob = repository.fetchBlob(layer, { signal: environment.signal });
    for await (const bytes of blob) task.add(bytes.length);
  });
  return await verifyNativeBlob(
    attempt,
    () => repository.openBlob(layer),
    environment.signal,
  );
}

/**
 * The containers and the map of a native layer, and every byte that it stores,
 * hidden by layers above or not.
 *
 * @param open Opens the blob; called twice, each result is disposed of.
 */
export async function verifyNativeBlob(
  attempt: Attempt,
  open: () => Promise<ByteSource>,
  signal: AbortSignal | undefined,
): Promise<LayerFacts | undefined> {
  const facts = await attempt("layer", async () => {
    const opened = await openLayer(await open(), "native");
    try {
      await readAll(opened.data, signal);
      return factsOf(opened);
    } finally {
      await opened.data[Symbol.asyncDispose]();
    }
  });
  if (facts) {
    await attempt("containers", async () => {
      await using blob = await open();
      await checkContainers(blob);
    });
  }
  return facts;
}

/**
 * A TurboOCI layer: the meta blob as a native layer's, and the target's digest
 * and diffID, then the whole tar again through the random-access index, span by
 * span.
 */
export async function verifyTurbo(
  check: LayerCheck,
  role: LayerRole & { kind: "turbo" },
  diffId: string | undefined,
): Promise<LayerFacts | undefined> {
  const { repository, environment, attempt } = check;
  const { signal } = environment;
  const { descriptor } = role;
  await attempt("annotations", () => checkAnnotations(descriptor));
  const meta = await attempt("meta blob", async () => {
    const blob = await fetchMetaBlob(repository, descriptor, signal);
    if (diffId !== undefined && diffId !== blob.diffId) {
      throw new IntegrityError("Meta layer diffID", blob.diffId, diffId);
    }
    return blob;
  });
  const target = await attempt("target", async () => {
    const { targetDigest, targetMediaType, targetSize } = role;
    const size = await repository.blobSize(targetDigest, { signal });
    if (targetSize !== undefined && targetSize !== size) {
      throw new IntegrityError(
        `Size of target "${targetDigest}"`,
        String(targetSize),
        String(size),
      );
    }
    return await scanBlob(
      check,
      { mediaType: targetMediaType, digest: targetDigest, size },
      size,
    );
  });
  if (!meta) return undefined;
  const { members } = meta;
  const facts = await verifyMap(attempt, members, target, signal);
  if (facts && target) {
    const { targetDigest: digest, targetMediaType: mediaType } = role;
    await verifyIndex(check, members, target, {
      digest,
      mediaType,
      open: (size) =>
        repository.openBlob({
          mediaType,
          digest,
          size: size ?? target.blobSize,
        }),
    });
  }
  return facts;
}

/** A trace on top of a native image: its blob's digest, and that it is one. */
export async function verifyAcceleration(
  { repository, environment, attempt, task }: LayerCheck,
  layer: Descriptor,
): Promise<void> {
  const tar = await attempt("blob", () =>
    readSmallBlob(
      repository,
      layer,
      ACCELERATION_SIZE_MAX,
      "acceleration layer",
      environment.signal,
    ));
  if (!tar) return;
  task.add(tar.length);
  await attempt("trace", () => Promise.resolve(readAccelerationLayer(tar)));
}

/** What a pass over a target found. */
export type ScannedTarget = Pick<
  Awaited<ReturnType<typeof scanLayer>>,
  "diffId" | "tarSize" | "blobSize"
>;

/**
 * The metadata of a TurboOCI layer: its containers, map and every byte.
 *
 * @param target Where mappings must lie, as far as it is known.
 */
export async function verifyMap(
  attempt: Attempt,
  members: ReadonlyMap<string, Uint8Array>,
  target: ScannedTarget | undefined,
  signal: AbortSignal | undefined,
): Promise<LayerFacts | undefined> {
  const fsMeta = members.get(META_MEMBER.ext4) ??
    members.get(META_MEMBER.erofs);
  return await attempt("map", async () => {
    if (!fsMeta) {
      throw new FormatError("meta blob", META_MEMBER.ext4, "is missing");
    }
    const opened = await openLayer(new MemorySource(fsMeta), "warp");
    try {
      await readAll(opened.data, signal);
      await checkContainers(new MemorySource(fsMeta));
      if (target) checkMapped(opened, target.tarSize);
      return factsOf(opened);
    } finally {
      await opened.data[Symbol.asyncDispose]();
    }
  });
}

/** Reads the tar through the layer's own index and compares it with the decompressed blob. */
export async function verifyIndex(
  { environment, attempt }: Pick<LayerCheck, "environment" | "attempt">,
  members: ReadonlyMap<string, Uint8Array>,
  scanned: ScannedTarget,
  target: Target,
): Promise<void> {
  const gzipMeta = members.get(META_MEMBER.gzipMeta);
  if (gzipMeta) {
    await attempt("gzip index", () => {
      checkWindows(readGzipMeta(gzipMeta, scanned.blobSize).checkpoints);
      return Promise.resolve();
    });
  }
  await attempt("index", async () => {
    // Without caches: what they hold was right once.
    const opened = await openTarget(members, target, {
      ...servicesOf(environment),
      blobStore: undefined,
      spanCache: new SpanCache(),
    });
    await using tar = opened.target;
    if (opened.index && opened.index.diffId !== scanned.diffId) {
      throw new IntegrityError(
        "Layer diffID of obd.spans",
        scanned.diffId,
        opened.index.diffId,
      );
    }
    if (tar.size < scanned.tarSize) {
      throw new IntegrityError(
        "Size of the indexed tar",
        String(scanned.tarSize),
        String(tar.size),
      );
    }
    const digest = await readAll(tar, environment.signal, scanned.tarSize);
    if (digest !== scanned.diffId) {
      throw new IntegrityError(
        "Tar as the index decodes it",
        scanned.diffId,
        digest,
      );
    }
  });
}

/** Decompresses a blob from its start; checks its digest, size and gzip checksums. */
async function scanBlob(
  { repository, environment, task }: LayerCheck,
  layer: Descriptor,
  blobSize: number,
  expectedDiffId?: string,
) {
  const { signal } = environment;
  return await scanLayer(repository.fetchBlob(layer, { signal }), {
    blobSize,
    expectedDigest: layer.digest,
    expectedDiffId,
    sparseWindows: false,
    signal,
    onProgress: (bytes) => task.add(bytes),
  });
}

function checkAnnotations(layer: Descriptor): Promise<void> {
  const annotations = layer.annotations ?? {};
  const rules: [key: string, want: string][] = [
    [Annotation.blobDigest, layer.digest],
    [Annotation.blobSize, String(layer.size)],
  ];
  for (const [key, want] of rules) {
    const got = annotations[key];
    if (got !== want) {
      throw new FormatError(
        "layer descriptor",
        `annotation "${key}"`,
        got === undefined ? "is missing" : `is "${got}", expected "${want}"`,
      );
    }
  }
  return Promise.resolve();
}

/** Mappings beyond the target would read as zeros, silently. */
function checkMapped(layer: OpenedLayer, tarSize: number): void {
  const { table } = layer;
  const sectors = Math.ceil(tarSize / 512);
  for (let row = 0; row < table.count; row++) {
    if (table.kind[row] !== KIND.target) continue;
    const end = table.moffset[row]! + table.length[row]!;
    if (end > sectors) {
      throw new FormatError(
        "LSMT index",
        "moffset",
        `maps device sector ${
          table.offset[row]
        } to tar sectors up to ${end}, the tar has ${sectors}`,
      );
    }
  }
}

/**
 * Reads a source from start to end, so that everything in it is checked.
 *
 * @returns `sha256:…` of it.
 */
export async function readAll(
  source: ByteSource,
  signal: AbortSignal | undefined,
  size = source.size,
): Promise<string> {
  const hash = createHash("sha256");
  const buffer = new Uint8Array(PIECE);
  for (let at = 0; at < size; at += PIECE) {
    const piece = buffer.subarray(0, Math.min(PIECE, size - at));
    await source.pread(piece, at, { signal });
    hash.update(piece);
  }
  return `sha256:${toHex(hash.digest())}`;
}

function factsOf(layer: OpenedLayer): LayerFacts {
  const { virtualSize, uuid, parentUuid } = layer;
  return { virtualSize, uuid, parentUuid };
}
