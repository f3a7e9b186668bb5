/**
 * `obd verify`: reads all of an image and lists what is wrong with it. Unlike
 * opening, it does not stop at the first mistake, and leaves nothing to the
 * first read.
 */

import { FormatError, IntegrityError, NotFoundError } from "../io/mod.ts";
import { Ext4Reader } from "../ext4/mod.ts";
import { NULL_UUID } from "../layers/mod.ts";
import {
  parsePlatform,
  parseReference,
  type Repository,
  withTarget,
} from "../registry/mod.ts";
import { isConfigFile } from "./config_file.ts";
import type { ImageEnvironment } from "./environment.ts";
import { layerGroups, layerRoles, misfit } from "./meta_image.ts";
import { openImage } from "./open.ts";
import { resolveSource, type SourceImage } from "./source.ts";
import { verifyConfig } from "./verify_config.ts";
import {
  attempts,
  type Finding,
  type VerifiedLayer,
} from "./verify_findings.ts";
import {
  type LayerCheck,
  type LayerFacts,
  verifyAcceleration,
  verifyNative,
  verifyPlain,
  verifyTurbo,
} from "./verify_layer.ts";
import { shortDigest } from "./destination.ts";

export type { Finding, VerifiedLayer } from "./verify_findings.ts";

/** What {@linkcode verifyImage} found. */
export interface Verification {
  /** Digest of the manifest; absent for a `config.v1.json`. */
  digest?: string;
  layers: VerifiedLayer[];
  findings: Finding[];
}

/** Options of {@linkcode verifyImage}. */
export interface VerifyOptions {
  /** `OS/ARCH[/VARIANT]` of an index; default this machine's. */
  platform?: string | undefined;
}

/**
 * Checks a plain, TurboOCI, overlaybd-native or mixed image: digests, diffIDs,
 * annotations, checksums of every block, order and bounds of every index, every
 * span through the random-access index, targets, subject, and the file system.
 *
 * @throws {ObdError} If the image cannot even be named: no such tag, no such
 * registry, a manifest that is none.
 */
export async function verifyImage(
  environment: ImageEnvironment,
  text: string,
  options: VerifyOptions = {},
): Promise<Verification> {
  if (isConfigFile(text)) {
    const { layers, findings, facts } = await verifyConfig(environment, text);
    const attempt = attempts(findings, {});
    await attempt("stack", () => checkStack(facts));
    if (findings.length === 0) {
      await attempt(
        "file system",
        () => checkFileSystem(environment, text, options),
      );
    }
    return { layers, findings };
  }
  const { signal } = environment;
  const reference = parseReference(text);
  await using repository = await environment.openRepository(reference);
  const image = await resolveSource(repository, reference, {
    platform: options.platform === undefined
      ? undefined
      : parsePlatform(options.platform),
    signal,
  });
  const findings: Finding[] = [];
  const attempt = attempts(findings, {});
  const roles = await attempt(
    "manifest",
    () => Promise.resolve(layerRoles(image.manifest)),
  );
  await attempt("parts", () => Promise.resolve(layerGroups(roles ?? [])));
  const layers: VerifiedLayer[] = [];
  const facts: (LayerFacts | undefined)[] = [];
  for (const [i, layer] of image.manifest.layers.entries()) {
    const role = roles?.[i];
    const before = findings.length;
    const task = environment.progress.start(
      `verify ${shortDigest(layer)}`,
      role?.kind === "turbo" ? role.targetSize : layer.size,
    );
    const check: LayerCheck = {
      environment,
      repository,
      task,
      attempt: attempts(findings, { layer: i + 1, digest: layer.digest }),
    };
    const diffId = image.config.diffIds[i];
    try {
      if (role === undefined) await verifyPlain(check, layer, diffId!);
      else if (role.kind === "native") {
        facts.push(await verifyNative(check, layer, diffId));
      } else if (role.kind === "turbo") {
        facts.push(await verifyTurbo(check, role, diffId));
      } else await verifyAcceleration(check, layer);
    } finally {
      task.done();
    }
    layers.push({
      digest: layer.digest,
      kind: role?.kind ?? "plain",
      size: layer.size,
      ok: findings.length === before,
    });
  }
  if (roles) {
    await attempt("stack", () => checkStack(facts));
    await attempt("subject", () => checkSubject(repository, image, signal));
    if (findings.length === 0) {
      await attempt(
        "file system",
        () => checkFileSystem(environment, text, options),
      );
    }
  }
  return { digest: image.resolved.descriptor.digest, layers, findings };
}

/** Layers of one device, each naming the one below where it names any. */
function checkStack(facts: (LayerFacts | undefined)[]): Promise<void> {
  let size = 0;
  for (const [i, layer] of facts.entries()) {
    const own = layer?.virtualSize ?? 0;
    if (own === 0) continue;
    // overlaybd-resize grows devices; what became smaller is of another stack.
    if (own < size) {
      throw new FormatError(
        "stack",
        `virtual size of layer ${i + 1}`,
        `is ${own} bytes, layers below have ${size}`,
      );
    }
    size = own;
  }
  const bottom = facts[0];
  if (bottom && isNamed(bottom.parentUuid)) {
    throw new FormatError(
      "stack",
      "parent UUID of layer 1",
      `is ${bottom.parentUuid}, but nothing lies below`,
    );
  }
  for (const [i, layer] of facts.entries()) {
    const below = facts[i - 1];
    if (!layer || !below) continue;
    const { parentUuid } = layer;
    if (!isNamed(parentUuid) || !isNamed(below.uuid)) continue;
    if (parentUuid.toUpperCase() !== below.uuid.toUpperCase()) {
      throw new FormatError(
        "stack",
        `parent UUID of layer ${i + 1}`,
        `is ${parentUuid}, the layer below is ${below.uuid}`,
      );
    }
  }
  return Promise.resolve();
}

/** Many tools write the null UUID, or nothing. */
function isNamed(uuid: string): boolean {
  return uuid !== NULL_UUID && /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-/i.test(uuid);
}

/** A meta image's source, where it names one, must still be the one that it was made from. */
async function checkSubject(
  repository: Repository,
  image: SourceImage,
  signal: AbortSignal | undefined,
): Promise<void> {
  const { subject } = image.manifest;
  const hasTurbo = layerRoles(image.manifest)?.some((r) => r.kind === "turbo");
  if (!subject || !hasTurbo) return;
  let source: SourceImage;
  try {
    source = await resolveSource(
      repository,
      withTarget(image.reference, { digest: subject.digest }),
      { signal },
    );
  } catch (error) {
    if (!(error instanceof NotFoundError)) throw error;
    throw new NotFoundError(
      `Subject ${subject.digest} is not in ${repository.name}: registries may remove its layers`,
    );
  }
  const problem = misfit(image.manifest, source);
  if (problem !== undefined) {
    throw new IntegrityError("Source of the image", "the subject", problem);
  }
}

/**
 * Reads the whole tree of an ext4 device, and where the data of its files is; of other file systems nothing is known here.
 */
async function checkFileSystem(
  environment: ImageEnvironment,
  text: string,
  options: VerifyOptions,
): Promise<void> {
  await using opened = await openImage(environment, text, options);
  const magic = new Uint8Array(2);
  if (opened.source.size < 2048) return;
  await opened.source.pread(magic, EXT4_MAGIC_AT);
  if (magic[0] !== 0x53 || magic[1] !== 0xef) return;
  const reader = await Ext4Reader.open(opened.source);
  const linked = new Set<number>();
  for await (const entry of reader.walk()) {
    environment.signal?.throwIfAborted();
    const { ino } = entry;
    const { type, links } = reader.statOf(entry);
    if (links > 1) {
      if (linked.has(ino)) continue;
      linked.add(ino);
    }
    // What a directory holds was read for the walk.
    if (type === "file") await reader.fileMap(entry);
    else if (type === "symlink") await reader.readlink(ino);
    await reader.xattrs(ino);
  }
}

/** Bytes 0x38 and 0x39 of the superblock at 1024 hold 0xEF53 (kernel fs/ext4/ext4.h). */
const EXT4_MAGIC_AT = 1024 + 0x38;
