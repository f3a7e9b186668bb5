/** Traces on their way to a registry: as a referrer of the image, or as overlaybd's acceleration layer. */

import { FormatError, UsageError, utf8 } from "../io/mod.ts";
import {
  DEVICE_LAYER,
  type TraceRecord,
  writeAccelerationLayer,
} from "../layers/mod.ts";
import {
  blobFromBytes,
  type Descriptor,
  formatReference,
  MediaType,
  parsePlatform,
  parseReference,
  type Reference,
  sha256Digest,
  withTarget,
} from "../registry/mod.ts";
import { Annotation, NATIVE_VERSION } from "./annotations.ts";
import { isConfigFile } from "./config_file.ts";
import type { ImageEnvironment } from "./environment.ts";
import { layerRoles } from "./meta_image.ts";
import { type OpenedImage, openImage } from "./open.ts";
import { resolveSource, type SourceImage } from "./source.ts";
import { deviceFingerprint, pushTraceReferrer } from "./trace_referrer.ts";
import { toLayers } from "./traced_files.ts";

/** What is pushed, and to where. */
export interface TracePushOptions {
  /** A plain image, or a meta image. */
  image: string;
  records: readonly TraceRecord[];
  /** First digits of the fingerprint of the device that was traced, if known. */
  device?: string | undefined;
  platform?: string | undefined;
}

/** What {@linkcode pushTrace} did. */
export interface PushedReferrer {
  /** `REPOSITORY@DIGEST` of the artifact. */
  reference: string;
  /** Digest of the manifest that it refers to. */
  subject: string;
  /** False: this trace was there already. */
  isNew: boolean;
}

/**
 * Pushes a trace as a referrer of its image, where obd finds it.
 *
 * @throws {UsageError} If the image is a configuration file.
 * @throws {FormatError} If the trace cannot be one of this image.
 */
export async function pushTrace(
  environment: ImageEnvironment,
  options: TracePushOptions,
): Promise<PushedReferrer> {
  const { signal, log } = environment;
  const reference = referenceOf(options.image);
  await using image = await openImage(environment, options.image, {
    platform: options.platform,
  });
  const fingerprint = await checkTrace(image, options, signal);
  await using repository = await environment.openRepository(reference);
  const subject = await repository.resolve(
    image.sourceDigest ?? image.metaDigest!,
    { signal },
  );
  const pushed = await pushTraceReferrer(
    repository,
    subject.descriptor,
    fingerprint,
    options.records,
    { log, signal },
  );
  return {
    reference: formatReference(
      withTarget(reference, { digest: pushed.digest }),
    ),
    subject: subject.descriptor.digest,
    isNew: pushed.isNew,
  };
}

/** Its path may look like a reference. */
function referenceOf(image: string): Reference {
  if (isConfigFile(image)) {
    throw new UsageError(
      `"${image}" is a configuration file: traces are pushed to where an image is`,
    );
  }
  return parseReference(image);
}

/** A trace of another image would fetch what nobody needs. @returns The device's fingerprint. */
async function checkTrace(
  image: OpenedImage,
  { records, device = "" }: TracePushOptions,
  signal: AbortSignal | undefined,
): Promise<string> {
  checkRecords(image, records);
  const fingerprint = await deviceFingerprint(image.source, signal);
  if (!fingerprint.startsWith(device)) {
    throw new FormatError(
      "trace",
      "device",
      `is not that of ${image.name}: it was recorded of another image, or of this one built otherwise`,
    );
  }
  return fingerprint;
}

function checkRecords(
  image: OpenedImage,
  records: readonly TraceRecord[],
): void {
  const wrong = (i: number, problem: string) =>
    new FormatError("trace", `record ${i + 1}`, problem);
  for (const [i, { layer, offset, length }] of records.entries()) {
    if (layer === DEVICE_LAYER) {
      if (offset + length > image.source.size) {
        throw wrong(i, "is behind the end of the image's device");
      }
      continue;
    }
    const data = image.source.layerData(layer);
    if (!data) throw wrong(i, `is of layer ${layer}, which the image has not`);
    if (offset + length > data.size) {
      throw wrong(i, `is behind the end of layer ${layer}`);
    }
  }
  if (records.length === 0) {
    throw new FormatError("trace", "records", "are none");
  }
}

/** What {@linkcode pushAcceleration} did. */
export interface PushedAcceleration {
  reference: string;
  digest: string;
  /** Bytes that the trace reads and that such a layer cannot express. */
  leftOut: number;
}

/**
 * Pushes an image that is the given one with a trace as its topmost layer, as
 * `ctr record-trace` of accelerated-container-image does; overlaybd and obd
 * read it.
 *
 * @param tag Of the new image, in the same repository.
 * @throws {UsageError} If the image has no overlaybd layers.
 * @throws {FormatError} If the trace cannot be one of this image, or has nothing that can be expressed.
 */
export async function pushAcceleration(
  environment: ImageEnvironment,
  options: TracePushOptions & { tag: string },
): Promise<PushedAcceleration> {
  const { signal } = environment;
  const reference = referenceOf(options.image);
  await using image = await openImage(environment, options.image, {
    platform: options.platform,
  });
  await checkTrace(image, options, signal);
  const { records, leftOut } = toLayers(image, options.records);
  if (records.length === 0) {
    throw new FormatError(
      "trace",
      "records",
      "are all of the original layers, which an acceleration layer cannot express: push the trace as a referrer",
    );
  }
  await using repository = await environment.openRepository(reference);
  const source = await resolveSource(repository, reference, {
    platform: options.platform === undefined
      ? undefined
      : parsePlatform(options.platform),
    signal,
  });
  const tar = writeAccelerationLayer(records);
  const { config, manifest, layer } = withAcceleration(source, tar);
  await repository.pushBlob(layer, blobFromBytes(tar), { signal });
  await repository.pushBlob(config.descriptor, blobFromBytes(config.bytes), {
    signal,
  });
  const pushed = await repository.pushManifest(
    manifest,
    source.manifest.mediaType,
    options.tag,
    { signal },
  );
  return {
    reference: formatReference(withTarget(reference, { tag: options.tag })),
    digest: pushed.digest,
    leftOut,
  };
}

/** Documents of the image with that layer on top, in place of one that is there. */
function withAcceleration(source: SourceImage, tar: Uint8Array) {
  const roles = layerRoles(source.manifest);
  if (!roles) {
    throw new UsageError(
      "An acceleration layer goes on top of an overlaybd image (obd build --format overlaybd)",
    );
  }
  const kept = roles.filter((role) => role.kind !== "acceleration").length;
  const top = roles[kept - 1]!.descriptor.annotations ?? {};
  const isDocker = source.manifest.mediaType === MediaType.dockerManifest;
  const digest = sha256Digest(tar);
  const fsType = top[Annotation.blobFsType];
  const layer: Descriptor = {
    mediaType: isDocker ? MediaType.dockerLayer : MediaType.ociLayer,
    digest,
    size: tar.length,
    annotations: {
      [Annotation.version]: NATIVE_VERSION,
      [Annotation.blobDigest]: digest,
      [Annotation.blobSize]: String(tar.length),
      ...(fsType === undefined ? {} : { [Annotation.blobFsType]: fsType }),
      [Annotation.accelerationLayer]: "yes",
    },
  };
  const raw = source.config.raw as {
    history?: unknown;
    rootfs?: { diff_ids?: string[] };
  };
  const history = Array.isArray(raw.history) ? raw.history : undefined;
  const step = { created_by: ACCELERATION_STEP };
  const isThere = history?.[0]?.created_by === ACCELERATION_STEP;
  const config = utf8(JSON.stringify({
    ...source.config.raw,
    ...(history ? { history: isThere ? history : [step, ...history] } : {}),
    rootfs: {
      type: "layers",
      diff_ids: [...source.config.diffIds.slice(0, kept), digest],
    },
  }));
  const configDescriptor: Descriptor = {
    mediaType: source.manifest.config.mediaType,
    digest: sha256Digest(config),
    size: config.length,
  };
  const layers = source.manifest.layers.slice(0, kept);
  const manifest = utf8(JSON.stringify({
    ...source.manifest.raw,
    config: configDescriptor,
    layers: [...layers, layer],
  }));
  return {
    layer,
    config: { descriptor: configDescriptor, bytes: config },
    manifest,
  };
}

/** As aci cmd/ctr/record_trace.go names it in the history. */
const ACCELERATION_STEP = "Acceleration Layer";
