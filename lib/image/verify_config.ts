/**
 * `obd verify` of a stack by its `config.v1.json`: every layer by itself, so
 * that bytes are checked which layers above hide.
 */

import {
  type ByteSource,
  FormatError,
  IntegrityError,
  type ProgressTask,
  readBytes,
  UnsupportedError,
} from "../io/mod.ts";
import { META_MEMBER, openWritableLayer, scanLayer } from "../layers/mod.ts";
import {
  gzipMembers,
  layerFiles,
  type Lower,
  openFile,
  openPart,
  readAll as readWhole,
  readConfig,
  type Upper,
} from "./config_file.ts";
import type { ImageEnvironment } from "./environment.ts";
import { configLayers, openPlaces, type Places } from "./overlaybd_config.ts";
import {
  attempts,
  type Finding,
  type VerifiedLayer,
} from "./verify_findings.ts";
import {
  type Attempt,
  type LayerFacts,
  readAll,
  type ScannedTarget,
  verifyIndex,
  verifyMap,
  verifyNativeBlob,
} from "./verify_layer.ts";

/** Bytes read at once. */
const PIECE = 1024 * 1024;

/** One layer under check. */
interface LowerCheck {
  environment: ImageEnvironment;
  places: Places;
  attempt: Attempt;
  task: ProgressTask;
}

/** What was found, and what is known of each layer. */
export interface VerifiedConfig {
  layers: VerifiedLayer[];
  findings: Finding[];
  facts: (LayerFacts | undefined)[];
}

/**
 * Checks all layers.
 *
 * @throws {ObdError} If the configuration cannot be read.
 */
export async function verifyConfig(
  environment: ImageEnvironment,
  file: string,
): Promise<VerifiedConfig> {
  const config = await readConfig(file);
  const { lowers, upper } = configLayers(file, config);
  await using stack = new AsyncDisposableStack();
  const places = await openPlaces(environment, file, config, stack);
  const found: VerifiedConfig = { layers: [], findings: [], facts: [] };
  for (const [i, lower] of lowers.entries()) {
    const name = lower.digest || lower.file || lower.dir;
    const before = found.findings.length;
    const task = environment.progress.start(
      `verify layer ${i + 1}`,
      lower.size || undefined,
    );
    const check: LowerCheck = {
      environment,
      places,
      task,
      attempt: attempts(found.findings, { layer: i + 1, digest: name }),
    };
    const isTurbo = lower.targetFile !== "" || lower.targetDigest !== "";
    try {
      const size = await check.attempt("blob", () => blobSize(check, lower));
      found.facts.push(
        size === undefined
          ? undefined
          : isTurbo
          ? await verifyTurboLower(check, lower)
          : await verifyNativeLower(check, lower),
      );
      found.layers.push({
        digest: name,
        kind: isTurbo ? "turbo" : "native",
        size: size ?? 0,
        ok: found.findings.length === before,
      });
    } finally {
      task.done();
    }
  }
  if (upper) {
    const before = found.findings.length;
    const named = { layer: lowers.length + 1, digest: upper.data };
    const task = environment.progress.start("verify upper layer", undefined);
    const attempt = attempts(found.findings, named);
    const check = { environment, places, task, attempt };
    try {
      const size = await verifyUpper(check, upper, lowers.length);
      found.layers.push({
        digest: upper.data,
        kind: upper.target === "" ? "native" : "turbo",
        size,
        ok: found.findings.length === before,
      });
    } finally {
      task.done();
    }
  }
  return found;
}

async function openBlob({ places }: LowerCheck, lower: Lower) {
  return await openPart(places.repository, {
    what: "layer",
    files: layerFiles(lower),
    digest: lower.digest,
    size: lower.size,
  });
}

async function blobSize(check: LowerCheck, lower: Lower): Promise<number> {
  const { source } = await openBlob(check, lower);
  await using blob = source;
  return blob.size;
}

async function verifyNativeLower(
  check: LowerCheck,
  lower: Lower,
): Promise<LayerFacts | undefined> {
  const { attempt, environment: { signal } } = check;
  await attempt("blob digest", () => checkDigest(check, lower));
  return await verifyNativeBlob(
    attempt,
    async () => (await openBlob(check, lower)).source,
    signal,
  );
}

/**
 * The digest is that of the blob in the registry. What containerd unpacked from
 * it lacks the tar wrapper: a local file of another size has no digest to be
 * compared with.
 */
async function checkDigest(check: LowerCheck, lower: Lower): Promise<void> {
  const { signal } = check.environment;
  const { source, isLocal } = await openBlob(check, lower);
  await using blob = source;
  if (lower.digest === "" || (isLocal && blob.size !== lower.size)) return;
  const digest = await readAll(blob, signal);
  check.task.add(blob.size);
  if (digest !== lower.digest) {
    throw new IntegrityError("Blob digest", lower.digest, digest);
  }
}

async function verifyTurboLower(
  check: LowerCheck,
  lower: Lower,
): Promise<LayerFacts | undefined> {
  const { attempt, environment } = check;
  const members = await attempt("meta files", async () => {
    const members = await gzipMembers(lower.gzipIndex);
    const { source } = await openBlob(check, lower);
    await using blob = source;
    return members.set(META_MEMBER.ext4, await readWhole(blob));
  });
  const target = await attempt("target", () => scanTarget(check, lower));
  if (!members) return undefined;
  const facts = await verifyMap(attempt, members, target, environment.signal);
  if (facts && target) await verifyTarget(check, lower, members, target);
  return facts;
}

/** Where a TurboOCI layer's content is. */
type TargetSource = Pick<Lower, "targetFile" | "targetDigest" | "gzipIndex">;

async function verifyTarget(
  check: LowerCheck,
  source: TargetSource,
  members: ReadonlyMap<string, Uint8Array>,
  scanned: ScannedTarget,
): Promise<void> {
  await verifyIndex(check, members, scanned, {
    digest: source.targetDigest || `file:${source.targetFile}`,
    mediaType: source.gzipIndex === "" ? "" : "+gzip",
    open: async () => (await openTargetPart(check, source)).source,
  });
}

async function openTargetPart({ places }: LowerCheck, lower: TargetSource) {
  return await openPart(places.repository, {
    what: "target",
    files: lower.targetFile === "" ? [] : [lower.targetFile],
    digest: lower.targetDigest,
    size: 0,
  });
}

/**
 * One pass over the target, which must be what the configuration takes it for:
 * with an index gzip, without one the tar itself.
 */
async function scanTarget(
  check: LowerCheck,
  lower: TargetSource,
): Promise<ScannedTarget> {
  const { signal } = check.environment;
  const { source } = await openTargetPart(check, lower);
  await using target = source;
  const expectedDigest = lower.targetDigest || await readAll(target, signal);
  const scan = await scanLayer(piecesOf(target), {
    blobSize: target.size,
    expectedDigest,
    sparseWindows: false,
    signal,
    onProgress: (bytes) => check.task.add(bytes),
  });
  const wanted = lower.gzipIndex === "" ? "none" : "gzip";
  if (scan.compression !== wanted) {
    throw wanted === "none"
      ? new FormatError(
        "config",
        "gzipIndex",
        `is missing, and the target is ${scan.compression}`,
      )
      : new UnsupportedError(
        scan.compression,
        `The target is no gzip, but has the gzip index "${lower.gzipIndex}"`,
      );
  }
  return scan;
}

async function* piecesOf(source: ByteSource): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < source.size; at += PIECE) {
    yield await readBytes(source, at, Math.min(PIECE, source.size - at));
  }
}

/** Of what it stores, only the index can be checked: no byte has a checksum. */
async function verifyUpper(
  check: LowerCheck,
  upper: Upper,
  lowerCount: number,
): Promise<number> {
  const { attempt } = check;
  const isTurbo = upper.target !== "";
  const size = await attempt("layer", async () => {
    await using data = await openFile("data file", upper.data);
    await openWritableLayer(
      {
        data,
        openIndex: () => openFile("index file", upper.index),
        storedRanges: (offset) => data.storedRanges(offset),
      },
      isTurbo ? "warp" : "native",
      lowerCount,
    );
    return data.size;
  });
  if (isTurbo) {
    const { target: targetFile, gzipIndex } = upper;
    const source = { targetFile, targetDigest: "", gzipIndex };
    const members = await attempt("meta files", () => gzipMembers(gzipIndex));
    const target = await attempt("target", () => scanTarget(check, source));
    if (members && target) {
      await verifyTarget(check, source, members, target);
    }
  }
  return size ?? 0;
}
