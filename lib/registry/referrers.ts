/**
 * Which manifests refer to a subject (distribution-spec 1.1 §Listing
 * Referrers): the API, else the index under the tag `sha256-HEX`
 * (§Referrers Tag Schema).
 */

import { LimitError, NotFoundError, ObdError } from "../io/mod.ts";
import { sortedByDigest } from "./layout_reader.ts";
import {
  type Descriptor,
  type ImageIndex,
  INDEX_ENTRY_COUNT_MAX,
  type Manifest,
  MANIFEST_SIZE_MAX,
  parseManifest,
  writeIndex,
} from "./manifest.ts";
import { MediaType } from "./media_types.ts";
import type { RequestOptions, ResolvedManifest } from "./repository.ts";
import type { Session } from "./session.ts";
import type { Exchange } from "./transport.ts";

const PAGES_MAX = 100;
const UPDATE_ATTEMPTS_MAX = 8;

/** The manifest requests that a fallback index needs. */
export interface TagAccess {
  resolve(tag: string, options?: RequestOptions): Promise<ResolvedManifest>;
  put(
    tag: string,
    bytes: Uint8Array<ArrayBuffer>,
    mediaType: string,
    options?: RequestOptions,
  ): Promise<void>;
}

/** The tag under which referrers are listed where the API is missing. */
export function fallbackTag(digest: string): string {
  return digest.replace(":", "-");
}

/**
 * Asks the API.
 *
 * @returns Undefined if the registry does not have it.
 */
export async function listReferrers(
  session: Session,
  digest: string,
  artifactType: string | undefined,
  options: RequestOptions,
): Promise<Descriptor[] | undefined> {
  const query = artifactType ? `?${new URLSearchParams({ artifactType })}` : "";
  const found: Descriptor[] = [];
  let target: string | URL | undefined = `referrers/${digest}${query}`;
  for (let page = 0; target; page++) {
    if (page === PAGES_MAX || found.length > INDEX_ENTRY_COUNT_MAX) {
      throw new LimitError(
        `Referrers of "${digest}" are more than ${INDEX_ENTRY_COUNT_MAX}, or on more than ${PAGES_MAX} pages`,
      );
    }
    const result: Page | undefined = await session.request(
      {
        method: "GET",
        target,
        access: "pull",
        headers: { accept: MediaType.ociIndex },
        signal: options.signal,
      },
      // What registries without the API say.
      [200, 400, 404, 405, 406, 501],
      (answer) => readPage(session, answer),
    );
    if (!result) return page === 0 ? undefined : found;
    found.push(...result.entries);
    target = result.next;
  }
  return found;
}

interface Page {
  entries: Descriptor[];
  next: URL | undefined;
}

async function readPage(
  session: Session,
  answer: Exchange,
): Promise<Page | undefined> {
  const type = answer.headers.get("content-type") ?? "";
  // Some answer any path with a page for people.
  if (answer.status !== 200 || !type.startsWith(MediaType.ociIndex)) {
    return undefined;
  }
  const index = parseManifest(
    await answer.bytes(MANIFEST_SIZE_MAX),
    MediaType.ociIndex,
  ) as ImageIndex;
  const link = /<([^>]{1,4096})>\s*;\s*rel="?next"?/i
    .exec(answer.headers.get("link") ?? "");
  return {
    entries: index.manifests,
    next: link ? await session.checkHop(answer, link[1]!) : undefined,
  };
}

/** Reads the fallback index; absent is empty, and so is what is no index. */
export async function readFallback(
  tags: TagAccess,
  digest: string,
  options: RequestOptions,
): Promise<ImageIndex | undefined> {
  const found = await readTagged(tags, digest, options);
  return found?.kind === "index" ? found : undefined;
}

async function readTagged(
  tags: TagAccess,
  digest: string,
  options: RequestOptions,
): Promise<Manifest | undefined> {
  let resolved: ResolvedManifest;
  try {
    resolved = await tags.resolve(fallbackTag(digest), options);
  } catch (error) {
    if (error instanceof NotFoundError) return undefined;
    throw error;
  }
  return parseManifest(resolved.bytes, resolved.descriptor.mediaType);
}

/**
 * Adds a referrer to the fallback index of its subject. Another writer may
 * replace the index between our read and our write, so it is read again
 * afterwards and the work repeated until the entry stays.
 *
 * @throws {ObdError} If the tag is of something else, or has no more room.
 */
export async function addToFallback(
  session: Session,
  tags: TagAccess,
  subject: string,
  entry: Descriptor,
  options: RequestOptions,
): Promise<void> {
  const { clock } = session.transport;
  for (let attempt = 0; attempt < UPDATE_ATTEMPTS_MAX; attempt++) {
    const index = await readTagged(tags, subject, options);
    if (index?.kind === "image") {
      throw new ObdError(
        "conflict",
        `Cannot add "${entry.digest}" to the referrers tag "${
          fallbackTag(subject)
        }": what it names is no index`,
      );
    }
    const entries = index?.manifests ?? [];
    if (entries.some((e) => e.digest === entry.digest)) return;
    const bytes = writeIndex(`referrers tag "${fallbackTag(subject)}"`, {
      schemaVersion: 2,
      mediaType: MediaType.ociIndex,
      manifests: sortedByDigest([...entries, entry]),
    });
    await tags.put(
      fallbackTag(subject),
      bytes,
      MediaType.ociIndex,
      options,
    );
    // Two writers that keep in step would overwrite each other for ever.
    if (attempt > 0) {
      await clock.delay(clock.random() * 50 * 2 ** attempt, options.signal);
    }
  }
  throw new ObdError(
    "conflict",
    `Cannot add "${entry.digest}" to the referrers tag "${
      fallbackTag(subject)
    }": others keep replacing it`,
  );
}

/** Entries of one type, each once, in an order that does not depend on pushes. */
export function filterReferrers(
  entries: readonly Descriptor[],
  artifactType: string | undefined,
): Descriptor[] {
  const byDigest = new Map(
    entries
      .filter((e) => !artifactType || e.artifactType === artifactType)
      .map((e) => [e.digest, e]),
  );
  return sortedByDigest(byDigest.values());
}
