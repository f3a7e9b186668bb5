/**
 * Finds out what to open for a reference. Somebody waits for it, and each
 * answer takes a round trip: what does not depend on an answer is asked for at
 * once.
 */

import { NotFoundError } from "../io/mod.ts";
import {
  type Descriptor,
  type ImageManifest,
  parsePlatform,
  type Reference,
  type Repository,
  type ResolvedManifest,
} from "../registry/mod.ts";
import type { ImageEnvironment } from "./environment.ts";
import {
  buildLocally,
  findMeta,
  type FoundMeta,
  META_WAYS,
  type MetaSearch,
  type MetaWay,
  tagToTry,
} from "./find_meta.ts";
import type { MetaBlobs } from "./meta_blobs.ts";
import { layerGroups, type LayerRole, layerRoles } from "./meta_image.ts";
import {
  loadSource,
  type PlainManifest,
  resolveManifest,
  type SourceImage,
  warnOfPlatform,
} from "./source.ts";

/** What to open, and where meta blobs come from when not from the repository. */
export interface OpenPlan {
  roles: readonly LayerRole[];
  /** Members of each layer's meta blob, where they are at hand. */
  members?: readonly ReadonlyMap<string, Uint8Array>[] | undefined;
  metaDigest: string;
  sourceDigest: string | undefined;
}

/** Where to look. All are borrowed. */
export interface OpenPlace {
  environment: ImageEnvironment;
  repository: Repository;
  reference: Reference;
  /** Begins to fetch those of a meta image as soon as there is one. */
  blobs: MetaBlobs;
}

/**
 * Finds out what to open: the image itself, if it is a meta image or one of
 * overlaybd's; else one that is looked up, or built in memory.
 *
 * @param onSubject Told the digest that traces of the image refer to, as soon as it is known.
 * @throws {NotFoundError} If the image, or every allowed way to a meta image, is missing.
 */
export async function planOpen(
  place: OpenPlace,
  options: {
    platform?: string | undefined;
    metaFrom?: readonly MetaWay[] | undefined;
    requireSpans?: boolean | undefined;
  },
  onSubject: (digest: string) => void,
): Promise<OpenPlan> {
  const { environment, repository, reference, blobs } = place;
  const { signal } = environment;
  const ways = options.metaFrom ?? META_WAYS;
  using guess = new ManifestGuess(repository, signal);
  // Its name is known before the image's digest is.
  const likelyTag = tagToTry(reference, ways);
  if (likelyTag !== undefined) guess.begin(likelyTag);
  const platform = options.platform === undefined
    ? undefined
    : parsePlatform(options.platform);
  const plain = await resolveManifest(repository, reference, {
    platform,
    signal,
  });
  const loading = loadSource(repository, reference, plain, signal);
  loading.catch(() => {}); // whoever waits for it is told
  const roles = layerRoles(plain.manifest);
  const subject = roles && plain.manifest.subject?.digest;
  onSubject(subject ?? plain.resolved.descriptor.digest);
  if (roles) {
    layerGroups(roles); // throws where they cannot be stacked, before any is fetched
    blobs.begin(metaDescriptors(roles));
    warnOfPlatform(environment.log, await loading, platform);
    return {
      roles,
      metaDigest: plain.resolved.descriptor.digest,
      sourceDigest: subject,
    };
  }
  const found = await lookUp(
    {
      environment,
      repository,
      reference,
      ways,
      forms: options.requireSpans ? "spans" : "all",
      resolve: (target, signal) => guess.resolve(target, signal),
    },
    blobs,
    plain,
    () => loading,
  );
  const source = await loading;
  warnOfPlatform(environment.log, source, platform);
  if (found) return found;
  const sourceDigest = plain.resolved.descriptor.digest;
  if (!ways.includes("build")) {
    throw new NotFoundError(
      `No meta image for ${repository.name}@${sourceDigest} (looked by ${
        ways.join(", ")
      }): run obd build, or allow "build" in metaFrom`,
    );
  }
  return { ...await buildLocally(environment, source), sourceDigest };
}

/** Looks for a meta image of a plain one, and begins to fetch what it has. */
async function lookUp(
  search: MetaSearch,
  blobs: MetaBlobs,
  plain: PlainManifest,
  whole: () => Promise<SourceImage>,
): Promise<OpenPlan | undefined> {
  let isBegun = false;
  // Mostly the only one: what is fetched of it is there sooner.
  const onFit = ({ manifest }: FoundMeta) => {
    if (!isBegun) blobs.begin(metaDescriptors(rolesOf(manifest)));
    isBegun = true;
  };
  const found = await findMeta({ ...search, onFit }, plain, whole);
  const roles = found && rolesOf(found.manifest);
  blobs.keep(metaDescriptors(roles ?? []));
  return found && {
    roles: roles!,
    metaDigest: found.descriptor.digest,
    sourceDigest: plain.resolved.descriptor.digest,
  };
}

function rolesOf(manifest: ImageManifest): LayerRole[] {
  return layerRoles(manifest) ?? [];
}

function metaDescriptors(roles: readonly LayerRole[]): Descriptor[] {
  return roles.filter(({ kind }) => kind === "turbo")
    .map(({ descriptor }) => descriptor);
}

/** Asks for a manifest before it is sure to be needed. Disposing of it ends what was asked in vain. */
class ManifestGuess implements Disposable {
  readonly #repository: Repository;
  readonly #control = new AbortController();
  readonly #begun = new Map<string, Promise<ResolvedManifest>>();
  readonly #signal: AbortSignal;

  constructor(repository: Repository, signal: AbortSignal | undefined) {
    this.#repository = repository;
    const own = this.#control.signal;
    this.#signal = signal ? AbortSignal.any([signal, own]) : own;
  }

  begin(target: string): void {
    const answer = this.#repository.resolve(target, { signal: this.#signal });
    answer.catch(() => {}); // whoever waits for it is told
    this.#begun.set(target, answer);
  }

  /** @param signal Of this question; one that was begun goes on. */
  resolve(target: string, signal: AbortSignal): Promise<ResolvedManifest> {
    return this.#begun.get(target) ??
      this.#repository.resolve(target, { signal });
  }

  [Symbol.dispose](): void {
    this.#control.abort();
  }
}
