/**
 * Traces beside their images: an artifact whose `subject` is the plain image
 * (or an image of another tool, where that is all there is). Offsets are those
 * of a device, so a trace says which: by the SHA-256 of the device's first
 * bytes, which hold the superblock and thus change with any other layout.
 */

import { createHash } from "node:crypto";
import {
  type ByteSource,
  errorText,
  LimitError,
  type Logger,
  ObdError,
  utf8,
} from "../io/mod.ts";
import { decodeTrace, encodeTrace, type TraceRecord } from "../layers/mod.ts";
import {
  blobFromBytes,
  type Descriptor,
  type ImageManifest,
  MediaType,
  parseManifest,
  type Repository,
  sha256Digest,
} from "../registry/mod.ts";
import { Annotation, TRACE_ARTIFACT_TYPE } from "./annotations.ts";
import { readSmallBlob } from "./source.ts";

/** Bytes of a trace that is read without being asked for: 16 GiB of reads of 64 KiB each. */
const TRACE_SIZE_MAX = 8 * 1024 * 1024;
/** Artifacts of one image that are looked at. */
const CANDIDATES_MAX = 8;
/** Of the device, for its fingerprint. */
const FINGERPRINT_BYTES = 64 * 1024;
const SERIAL_MAX = 1_000_000_000;

interface RequestContext {
  log: Logger;
  signal?: AbortSignal | undefined;
}

/** A trace in a registry. */
export interface TraceArtifact {
  descriptor: Descriptor;
  manifest: ImageManifest;
}

/** Names the layout of a device: hex digits. */
export async function deviceFingerprint(
  source: ByteSource,
  signal?: AbortSignal,
): Promise<string> {
  const bytes = new Uint8Array(Math.min(source.size, FINGERPRINT_BYTES));
  await source.pread(bytes, 0, { signal });
  return createHash("sha256").update(bytes).digest("hex");
}

/**
 * Whether a device is the one that a trace was recorded of.
 *
 * @param named First digits of that one's {@linkcode deviceFingerprint}; without
 * any, as overlaybd's traces are, every device may be it.
 */
export async function isTraceOf(
  named: string | undefined,
  source: ByteSource,
  signal?: AbortSignal,
): Promise<boolean> {
  return !named || (await deviceFingerprint(source, signal)).startsWith(named);
}

/**
 * Traces of an image, the one that counts first. What is malformed is left out
 * with a line; a registry that does not answer is one, too: traces only save
 * time.
 *
 * @param subject Digest of the image's manifest.
 * @throws {CancelledError} When the signal is aborted.
 */
export async function listTraces(
  repository: Repository,
  subject: string,
  { log, signal }: RequestContext,
): Promise<TraceArtifact[]> {
  const found: TraceArtifact[] = [];
  const attempt = async (what: string, work: () => Promise<void>) => {
    try {
      await work();
    } catch (error) {
      if (!(error instanceof ObdError) || error.code === "cancelled") {
        throw error;
      }
      log.warn(what, {
        repository: repository.name,
        subject,
        reason: errorText(error),
      });
    }
  };
  let listed: Descriptor[] = [];
  await attempt("cannot look for traces", async () => {
    listed = await repository.referrers(subject, TRACE_ARTIFACT_TYPE, {
      signal,
    });
  });
  // Listings carry the annotations of what they list.
  listed.sort((a, b) => serialOf(b) - serialOf(a));
  await Promise.all(
    listed.slice(0, CANDIDATES_MAX).map((entry) =>
      attempt("ignoring a trace", async () => {
        const resolved = await repository.resolve(entry.digest, { signal });
        const { descriptor } = resolved;
        const manifest = parseManifest(resolved.bytes, descriptor.mediaType);
        const fits = manifest.kind === "image" &&
          manifest.artifactType === TRACE_ARTIFACT_TYPE &&
          manifest.subject?.digest === subject && manifest.layers.length === 1;
        if (fits) found.push({ descriptor, manifest });
      })
    ),
  );
  return found.sort((a, b) =>
    serialOf(b.manifest) - serialOf(a.manifest) ||
    (a.descriptor.digest < b.descriptor.digest ? -1 : 1)
  );
}

function serialOf(
  { annotations }: { annotations?: Record<string, string> | undefined },
): number {
  const text = annotations?.[Annotation.obdTraceSerial] ?? "";
  return /^\d{1,9}$/.test(text) ? Number(text) : 0;
}

/** Whether a trace's offsets are those of a device. */
export function isOfDevice(
  { manifest }: TraceArtifact,
  fingerprint: string,
): boolean {
  return manifest.annotations[Annotation.obdTraceDevice] === fingerprint;
}

/**
 * Fetches a trace.
 *
 * @throws {IntegrityError} If it is not what its descriptor says.
 * @throws {FormatError} If it is too large, or no trace.
 */
export async function fetchTrace(
  repository: Repository,
  { manifest }: TraceArtifact,
  signal?: AbortSignal,
): Promise<TraceRecord[]> {
  return decodeTrace(
    await readSmallBlob(
      repository,
      manifest.layers[0]!,
      TRACE_SIZE_MAX,
      "trace",
      signal,
    ),
  );
}

/** What {@linkcode pushTraceReferrer} did. */
export interface PushedTrace {
  /** Of the artifact's manifest. */
  digest: string;
  /** False: the same trace was the one that counts already. */
  isNew: boolean;
}

/**
 * Pushes a trace as a referrer. It is the one that counts from then on.
 *
 * @param subject Descriptor of the image's manifest.
 * @param device {@linkcode deviceFingerprint} of what was traced.
 */
export async function pushTraceReferrer(
  repository: Repository,
  subject: Descriptor,
  device: string,
  records: readonly TraceRecord[],
  context: RequestContext,
): Promise<PushedTrace> {
  const { signal } = context;
  const blob = encodeTrace(records);
  if (blob.length > TRACE_SIZE_MAX) {
    throw new LimitError(
      `The trace has ${blob.length} bytes, at most ${TRACE_SIZE_MAX} are read with an image`,
    );
  }
  const layer = {
    mediaType: TRACE_ARTIFACT_TYPE,
    digest: sha256Digest(blob),
    size: blob.length,
  };
  const others = (await listTraces(repository, subject.digest, context))
    .filter((other) => isOfDevice(other, device));
  const first = others[0];
  if (first && first.manifest.layers[0]!.digest === layer.digest) {
    return { digest: first.descriptor.digest, isNew: false };
  }
  const serial = Math.min(
    SERIAL_MAX - 1,
    first ? serialOf(first.manifest) + 1 : 1,
  );
  const empty = utf8("{}");
  const config = {
    mediaType: MediaType.ociEmpty,
    digest: sha256Digest(empty),
    size: empty.length,
  };
  await repository.pushBlob(config, blobFromBytes(empty), { signal });
  await repository.pushBlob(layer, blobFromBytes(blob), { signal });
  const { mediaType, digest, size } = subject;
  const manifest = utf8(JSON.stringify({
    schemaVersion: 2,
    mediaType: MediaType.ociManifest,
    artifactType: TRACE_ARTIFACT_TYPE,
    config,
    layers: [layer],
    subject: { mediaType, digest, size },
    annotations: {
      [Annotation.obdTraceDevice]: device,
      [Annotation.obdTraceSerial]: String(serial),
    },
  }));
  const pushed = await repository.pushManifest(
    manifest,
    MediaType.ociManifest,
    undefined,
    { signal },
  );
  return { digest: pushed.digest, isNew: true };
}
