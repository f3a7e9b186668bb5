/** An OCI layout directory: its images, and whether all their blobs are there. */

import {
  FileSource,
  FormatError,
  LimitError,
  NotFoundError,
  readBytes,
} from "../io/mod.ts";
import { type Problem, problemOf } from "../layers/mod.ts";
import {
  type Descriptor,
  formatPlatform,
  type ImageManifest,
  INDEX_ENTRY_COUNT_MAX,
  type Manifest,
  MANIFEST_SIZE_MAX,
  MediaType,
  parseManifest,
  REF_NAME_ANNOTATION,
  type Repository,
} from "../registry/mod.ts";
import type { ImageEnvironment } from "./environment.ts";
import { layerRoles } from "./meta_image.ts";

/** Indexes in indexes that are followed. */
const DEPTH_MAX = 3;
/** Entries of all of them: one index may name another thousands of times, which names a third. */
const ENTRIES_MAX = 2 * INDEX_ENTRY_COUNT_MAX;

/** One image, artifact or index of a layout. */
export interface LayoutEntry {
  tag?: string;
  digest: string;
  mediaType: string;
  platform?: string;
  kind: "index" | "plain" | "turbo" | "native" | "unknown";
  /** The manifest that this one is about. */
  subject?: string;
  layers?: number;
  /** Bytes of all layers. */
  layerBytes?: number;
  /** Images of an index. */
  entries?: LayoutEntry[];
  problem?: Problem;
}

/** A layout. */
export interface LayoutInspection {
  what: "layout";
  path: string;
  entries: LayoutEntry[];
  /** Files under `blobs/sha256`. */
  blobs: number;
  blobBytes: number;
  /** Blobs that nothing in `index.json` leads to. */
  unreferenced: number;
  problem?: Problem;
}

/** Inspects a layout. Sizes of blobs are compared; the digests of layers are not computed. */
export async function inspectLayout(
  environment: ImageEnvironment,
  path: string,
): Promise<LayoutInspection> {
  const report: LayoutInspection = {
    what: "layout",
    path,
    entries: [],
    blobs: 0,
    blobBytes: 0,
    unreferenced: 0,
  };
  await using repository = await environment.openRepository({
    kind: "layout",
    path,
  });
  const walk = new LayoutWalk(repository, environment.signal);
  try {
    for (const descriptor of await readIndex(path)) {
      report.entries.push(await walk.entry(descriptor, 0));
    }
  } catch (error) {
    report.problem = problemOf(error);
  }
  if (walk.firstProblem) report.problem ??= walk.firstProblem;
  await countBlobs(path, report, walk.reached);
  return report;
}

async function readIndex(path: string): Promise<Descriptor[]> {
  await using file = await FileSource.open(`${path}/index.json`);
  if (file.size > MANIFEST_SIZE_MAX) {
    throw new FormatError("index.json", "size", `is ${file.size} bytes`);
  }
  const index = parseManifest(
    await readBytes(file, 0, file.size),
    MediaType.ociIndex,
  );
  if (index.kind !== "index") {
    throw new FormatError("index.json", "mediaType", "is not of an index");
  }
  return index.manifests;
}

async function countBlobs(
  path: string,
  report: LayoutInspection,
  reached: ReadonlySet<string>,
): Promise<void> {
  try {
    for await (const entry of Deno.readDir(`${path}/blobs/sha256`)) {
      if (!entry.isFile) continue;
      report.blobs++;
      report.blobBytes +=
        (await Deno.stat(`${path}/blobs/sha256/${entry.name}`)).size;
      if (!reached.has(`sha256:${entry.name}`)) report.unreferenced++;
    }
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/** Follows descriptors. */
class LayoutWalk {
  #entries = 0;
  readonly reached = new Set<string>();
  firstProblem: Problem | undefined;
  readonly #repository: Repository;
  readonly #signal: AbortSignal | undefined;

  constructor(repository: Repository, signal: AbortSignal | undefined) {
    this.#repository = repository;
    this.#signal = signal;
  }

  /** @throws {LimitError} If there are more entries than are followed. */
  async entry(descriptor: Descriptor, depth: number): Promise<LayoutEntry> {
    if (++this.#entries > ENTRIES_MAX) {
      throw new LimitError(
        `Indexes of the layout name more than ${ENTRIES_MAX} manifests`,
      );
    }
    this.#signal?.throwIfAborted();
    const tag = descriptor.annotations?.[REF_NAME_ANNOTATION];
    const entry: LayoutEntry = {
      ...(tag === undefined ? {} : { tag }),
      digest: descriptor.digest,
      mediaType: descriptor.mediaType,
      ...(descriptor.platform
        ? { platform: formatPlatform(descriptor.platform) }
        : {}),
      kind: "unknown",
    };
    try {
      await this.#fill(entry, descriptor, depth);
    } catch (error) {
      entry.problem = problemOf(error);
      this.firstProblem ??= entry.problem;
    }
    return entry;
  }

  async #fill(
    entry: LayoutEntry,
    descriptor: Descriptor,
    depth: number,
  ): Promise<void> {
    const signal = this.#signal;
    const { bytes } = await this.#repository.resolve(descriptor.digest, {
      signal,
    });
    this.reached.add(descriptor.digest);
    const manifest = parseManifest(bytes, descriptor.mediaType);
    if (manifest.subject) {
      entry.subject = manifest.subject.digest;
      await this.#reachSubject(manifest.subject, depth);
    }
    if (manifest.kind === "index") {
      entry.kind = "index";
      if (depth >= DEPTH_MAX) {
        throw new FormatError("index", "depth", `is more than ${DEPTH_MAX}`);
      }
      entry.entries = [];
      for (const inner of manifest.manifests) {
        entry.entries.push(await this.entry(inner, depth + 1));
      }
      return;
    }
    await this.#fillImage(entry, manifest);
  }

  async #fillImage(entry: LayoutEntry, manifest: ImageManifest): Promise<void> {
    entry.layers = manifest.layers.length;
    entry.layerBytes = manifest.layers.reduce((sum, l) => sum + l.size, 0);
    const roles = layerRoles(manifest);
    entry.kind = roles === undefined
      ? "plain"
      : roles.some((role) => role.kind === "turbo")
      ? "turbo"
      : "native";
    for (const blob of [manifest.config, ...manifest.layers]) {
      await this.#check(blob);
    }
    for (const role of roles ?? []) {
      if (role.kind !== "turbo") continue;
      const { targetDigest: digest } = role;
      if (await this.#repository.hasBlob(digest, { signal: this.#signal })) {
        this.reached.add(digest);
        continue;
      }
      throw new NotFoundError(
        `Target ${digest} of a meta layer is not in the layout`,
      );
    }
  }

  /** A subject has no entry of its own where a build has copied it; it need not be there at all. */
  async #reachSubject({ digest }: Descriptor, depth: number): Promise<void> {
    if (this.reached.has(digest) || depth > DEPTH_MAX) return;
    let manifest: Manifest;
    try {
      const { bytes, descriptor } = await this.#repository.resolve(digest, {
        signal: this.#signal,
      });
      manifest = parseManifest(bytes, descriptor.mediaType);
    } catch (error) {
      problemOf(error); // a cancellation is none
      return;
    }
    this.reached.add(digest);
    if (manifest.kind === "image") {
      for (const blob of [manifest.config, ...manifest.layers]) {
        this.reached.add(blob.digest);
      }
      return;
    }
    for (const inner of manifest.manifests) {
      await this.#reachSubject(inner, depth + 1);
    }
  }

  /** Whether a blob is there, with its size. */
  async #check(descriptor: Descriptor): Promise<void> {
    const blob = await this.#repository.openBlob(descriptor);
    await blob[Symbol.asyncDispose]();
    this.reached.add(descriptor.digest);
  }
}
