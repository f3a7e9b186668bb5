/** Which meta image is used for a plain image. */

import {
  errorText,
  FileSource,
  mapConcurrent,
  NotFoundError,
  ObdError,
  Scratch,
} from "../io/mod.ts";
import {
  type Descriptor,
  type ImageManifest,
  normalizePlatform,
  parseManifest,
  type Reference,
  type Repository,
  type ResolvedManifest,
} from "../registry/mod.ts";
import {
  Annotation,
  META_FORMAT_VERSION,
  NATIVE_ARTIFACT_TYPE,
  TURBO_ARTIFACT_TYPE,
} from "./annotations.ts";
import { buildImage } from "./build.ts";
import type { ImageEnvironment } from "./environment.ts";
import { checkMetaBlob } from "./meta_blobs.ts";
import {
  type LayerRole,
  layerRoles,
  metaFormatVersion,
  misfit,
} from "./meta_image.ts";
import { nativeMisfit } from "./native_fit.ts";
import type { PlainManifest, SourceImage } from "./source.ts";

/** Ways to a meta image: tag `sha256-HEX-obd`, tag `TAG-obd`, a referrer, building it here. Native conversions end in `-overlaybd`. */
export type MetaWay = "digest" | "tag" | "referrer" | "build";

/** All ways; building comes last. */
export const META_WAYS: readonly MetaWay[] = [
  "digest",
  "tag",
  "referrer",
  "build",
];

/** Most referrers of one image that are looked at. */
const REFERRERS_MAX = 64;
/** Most images of one meta index that are looked at. */
const INDEX_ENTRIES_MAX = 64;
/**
 * How long the list of referrers is waited for when a tag has named one of an
 * older format, in ms: all that it can add is a better one.
 */
const REFERRERS_GRACE_MS = 5_000;
/** Referrers that are looked at at once. */
const LOOK_CONCURRENCY = 8;

/** A meta image that fits. */
export interface FoundMeta {
  descriptor: Descriptor;
  manifest: ImageManifest;
}

/** What is looked for under which names, in this order. */
const FORMS = [
  { ending: "-obd", artifactType: TURBO_ARTIFACT_TYPE, isNative: false },
  { ending: "-overlaybd", artifactType: NATIVE_ARTIFACT_TYPE, isNative: true },
] as const;

type Form = typeof FORMS[number];

/** A search for meta images. */
export interface MetaSearch {
  environment: ImageEnvironment;
  repository: Repository;
  reference: Reference;
  ways: readonly MetaWay[];
  /** `"spans"`: only what can be checked span by span. */
  forms?: "all" | "spans";
  /** Asked for manifests instead of the repository, with its answers. */
  resolve?: ManifestResolver;
  /** Told of each meta image that fits, before it is known whether it is the one to use. */
  onFit?: (fit: FoundMeta) => void;
}

/** @see Repository.resolve */
export type ManifestResolver = (
  target: string,
  signal: AbortSignal,
) => Promise<ResolvedManifest>;

/** The tag whose name alone says that it may be a meta image of a reference; undefined if there is none. */
export function tagToTry(
  reference: Reference,
  ways: readonly MetaWay[],
): string | undefined {
  const { tag } = reference;
  if (tag === undefined || !ways.includes("tag")) return undefined;
  const isMeta = FORMS.some(({ ending }) => tag.endsWith(ending));
  return isMeta ? undefined : tag + FORMS[0].ending;
}

/**
 * Looks for meta images of exactly this source, and where there are none, for
 * native conversions of it. What does not fit (a tag that stayed behind, a
 * planted referrer) is left alone with a line. Of several that fit: newest
 * format version, then what `TAG-obd` names before the digest's tag and those
 * before referrers, then fewest bytes, then chain key, then lowest digest. So
 * what a tag names is used without waiting for a list of referrers, and does
 * not depend on whether that comes.
 *
 * @param whole The source with its config, which is asked for only where needed.
 */
export async function findMeta(
  search: MetaSearch,
  source: PlainManifest,
  whole: () => Promise<SourceImage>,
): Promise<FoundMeta | undefined> {
  for (const form of FORMS) {
    if (form.isNative && search.forms === "spans") break;
    const found = await findForm(search, { source, whole, form });
    if (found) return found;
  }
  return undefined;
}

interface Wanted {
  source: PlainManifest;
  whole: () => Promise<SourceImage>;
  form: Form;
}

/** Nothing that it asked for is under way when it ends. */
async function findForm(
  search: MetaSearch,
  wanted: Wanted,
): Promise<FoundMeta | undefined> {
  const { environment } = search;
  const over = new AbortController();
  const signal = AbortSignal.any([
    ...(environment.signal ? [environment.signal] : []),
    over.signal,
  ]);
  const asked: Promise<unknown>[] = [];
  try {
    return await askForm(
      { ...search, environment: { ...environment, signal } },
      wanted,
      asked,
    );
  } finally {
    over.abort();
    await Promise.allSettled(asked);
  }
}

/** @param asked Gets what is asked for, which may go on when there is an answer. */
async function askForm(
  search: MetaSearch,
  wanted: Wanted,
  asked: Promise<unknown>[],
): Promise<FoundMeta | undefined> {
  const { reference, ways, onFit } = search;
  const { digest } = wanted.source.resolved.descriptor;
  const { ending, artifactType, isNative } = wanted.form;
  const tags = new Set<string>();
  if (ways.includes("tag") && reference.tag !== undefined) {
    tags.add(`${reference.tag}${ending}`);
  }
  if (ways.includes("digest")) tags.add(`${digest.replace(":", "-")}${ending}`);
  const look = async (target: string) => {
    const fit = await consider(search, target, wanted);
    if (fit) onFit?.(fit);
    return fit;
  };
  // Each costs a round trip: they are all asked for at once.
  const answers = [...tags].map(look);
  const patience = new AbortController();
  const listing = ways.includes("referrer")
    ? listReferrers(search, digest, artifactType, patience.signal)
    : Promise.resolve([]);
  asked.push(...answers, listing);
  for (const answer of asked) answer.catch(() => {});
  const found: FoundMeta[] = [];
  for (const answer of answers) {
    const fit = await answer;
    const isNewest = isNative ||
      fit && metaFormatVersion(fit.manifest) === META_FORMAT_VERSION;
    if (fit && isNewest) return fit;
    if (fit) found.push(fit);
  }
  const timer = found.length > 0
    ? setTimeout(() => patience.abort(), REFERRERS_GRACE_MS)
    : undefined;
  const listed = await listing.finally(() => clearTimeout(timer));
  const others = listed.filter((one) =>
    !found.some(({ descriptor }) => descriptor.digest === one)
  );
  const more = await mapConcurrent(others, LOOK_CONCURRENCY, look);
  const referrers = more.filter((fit) => fit !== undefined);
  // Sorting leaves what a tag named before what is as good.
  return [...found, ...referrers.sort(compareFound)].sort(compareVersions)[0];
}

/** @param patience Ends it without any. */
async function listReferrers(
  { environment, repository }: MetaSearch,
  digest: string,
  artifactType: string,
  patience: AbortSignal,
): Promise<string[]> {
  const { signal, log } = environment;
  try {
    const referrers = await repository.referrers(digest, artifactType, {
      signal: signal ? AbortSignal.any([signal, patience]) : patience,
    });
    return referrers.slice(0, REFERRERS_MAX).map((d) => d.digest);
  } catch (error) {
    if (!(error instanceof ObdError) || signal?.aborted) throw error;
    log.warn("cannot list referrers", {
      repository: repository.name,
      reason: patience.aborted
        ? "no answer when a tag had long named a meta image"
        : errorText(error),
    });
    return [];
  }
}

async function consider(
  search: MetaSearch,
  target: string,
  wanted: Wanted,
): Promise<FoundMeta | undefined> {
  const { log } = search.environment;
  const ignore = (reason: string) =>
    log.warn("ignoring a meta image that does not fit", {
      repository: search.repository.name,
      meta: target,
      reason,
    });
  try {
    const fitting = await resolveFitting(search, target, wanted);
    if (typeof fitting !== "string") return fitting;
    ignore(fitting);
  } catch (error) {
    if (error instanceof NotFoundError) return undefined;
    if (!(error instanceof ObdError) || error.code === "cancelled") throw error;
    ignore(errorText(error));
  }
  return undefined;
}

/** @returns The meta image, or why it does not fit. */
async function resolveFitting(
  { environment, repository, ...search }: MetaSearch,
  target: string,
  { source, whole, form: { isNative } }: Wanted,
): Promise<FoundMeta | string> {
  const { signal } = environment;
  const resolve = (target: string) =>
    search.resolve?.(target, signal!) ??
      repository.resolve(target, { signal });
  let { descriptor, bytes } = await resolve(target);
  let manifest = parseManifest(bytes, descriptor.mediaType);
  if (manifest.kind === "index") {
    // A meta index has one meta image per platform: the one with our subject
    // counts; Docker's types have none, there the content does.
    const wanted = source.resolved.descriptor.digest;
    for (const entry of manifest.manifests.slice(0, INDEX_ENTRIES_MAX)) {
      const inner = await resolve(entry.digest).catch(unlessAbsent);
      if (!inner) continue;
      const parsed = parseManifest(inner.bytes, entry.mediaType);
      if (parsed.kind !== "image") continue;
      const isOurs = parsed.subject === undefined && isNative
        ? isOfMachine(entry, await whole()) &&
          !await nativeMisfit(repository, parsed, await whole())
        : parsed.subject?.digest === wanted;
      if (isOurs) {
        ({ descriptor, bytes } = inner);
        manifest = parsed;
        break;
      }
    }
    if (manifest.kind === "index") {
      return "no image in its index is of this source";
    }
  }
  const problem = isNative
    ? await nativeMisfit(repository, manifest, await whole())
    : misfit(manifest, source);
  return problem ?? { descriptor, manifest };
}

/** One that has gone says nothing of the others. */
function unlessAbsent(error: unknown): undefined {
  if (!(error instanceof NotFoundError)) throw error;
}

/** Variants are not compared: who asks for an image by its digest may not know it. */
function isOfMachine(
  { platform }: Descriptor,
  source: SourceImage,
): boolean {
  if (!platform) return false;
  const [a, b] = [platform, source.platform].map(normalizePlatform);
  return a!.os === b!.os && a!.architecture === b!.architecture;
}

function compareVersions(a: FoundMeta, b: FoundMeta): number {
  return metaFormatVersion(b.manifest) - metaFormatVersion(a.manifest);
}

function compareFound(a: FoundMeta, b: FoundMeta): number {
  // All of it is fetched before the first read.
  const size = sumOf(a.manifest.layers) - sumOf(b.manifest.layers);
  if (size !== 0) return size;
  const keys = [a, b].map((f) =>
    f.manifest.annotations[Annotation.obdChainKey] ?? ""
  ) as [string, string];
  if (keys[0] !== keys[1]) return keys[0] < keys[1] ? -1 : 1;
  return a.descriptor.digest < b.descriptor.digest ? -1 : 1;
}

function sumOf(layers: readonly Descriptor[]): number {
  return layers.reduce((sum, { size }) => sum + size, 0);
}

/** A meta image that is nowhere but here. */
export interface LocalMeta {
  roles: LayerRole[];
  members: Map<string, Uint8Array>[];
  metaDigest: string;
}

/**
 * Builds a meta image in memory, when it is its turn; nothing is pushed, and
 * nothing that was built before is used.
 */
export function buildLocally(
  environment: ImageEnvironment,
  source: SourceImage,
): Promise<LocalMeta> {
  const { localBuilds, signal } = environment;
  return localBuilds.run(() => buildInMemory(environment, source), { signal });
}

async function buildInMemory(
  environment: ImageEnvironment,
  source: SourceImage,
): Promise<LocalMeta> {
  environment.log.info("no meta image found: building one", {
    image: source.repository.name,
    source: source.resolved.descriptor.digest,
  });
  await using scratch = await Scratch.make("obd-meta-");
  const built = await buildImage(environment, source, {
    scratch: `${scratch.path}/0`,
  });
  const members: Map<string, Uint8Array>[] = [];
  for (const layer of built.layers) {
    if (layer.reused) {
      throw new TypeError("Internal error: nothing is reused");
    }
    for (const { path, digest } of layer.parts) {
      await using file = await FileSource.open(path);
      members.push((await checkMetaBlob(file, digest)).members);
    }
  }
  const { manifest, layers } = built.documents;
  const roles = layerRoles({
    kind: "image",
    mediaType: manifest.descriptor.mediaType,
    config: built.documents.config.descriptor,
    layers,
    annotations: {},
    raw: {},
  });
  return {
    roles: roles ?? [],
    members,
    metaDigest: manifest.descriptor.digest,
  };
}
