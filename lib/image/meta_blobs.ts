/** Meta blobs of an image: fetched whole, checked, taken apart. */

import { type ByteSource, IntegrityError, mapConcurrent } from "../io/mod.ts";
import {
  MAX_META_TAR,
  type MetaBlob,
  readMetaBlob,
  readMetaStream,
} from "../layers/mod.ts";
import type { Descriptor, Repository } from "../registry/mod.ts";
import type { ImageEnvironment } from "./environment.ts";
import { checkBlobSize } from "./source.ts";

/** Blobs that are fetched at once. */
const FETCH_CONCURRENCY = 8;
/** Meta blobs up to this size are kept in the cache of blobs: those of ordinary images. */
const CACHED_SIZE_MAX = 16 * 1024 * 1024;

/**
 * Fetches one meta blob. It is decoded as it comes.
 *
 * @throws {IntegrityError} If it is not what its descriptor says.
 */
export async function fetchMetaBlob(
  repository: Repository,
  descriptor: Descriptor,
  signal: AbortSignal | undefined,
): Promise<MetaBlob> {
  checkBlobSize(descriptor, MAX_META_TAR, "meta blob");
  return await readFetched(
    repository.fetchBlob(descriptor, { signal, priority: "demand" }),
  );
}

/**
 * Takes a blob apart while it comes.
 *
 * @param pieces Of it; ends with a failure where they are not what the digest says.
 */
async function readFetched(
  pieces: AsyncIterable<Uint8Array>,
): Promise<MetaBlob> {
  const fetched = pieces[Symbol.asyncIterator]();
  // Without return(): it goes on after a failure of the reader.
  const lasting = {
    [Symbol.asyncIterator]: () => ({ next: () => fetched.next() }),
  };
  try {
    return await readMetaStream(lasting);
  } catch (error) {
    // Malformed, or damaged since it was written? The rest tells.
    while (!(await fetched.next()).done);
    throw error;
  } finally {
    await fetched.return?.();
  }
}

/** Reads a meta blob that lies anywhere, and checks its digest. */
export async function checkMetaBlob(
  source: ByteSource,
  digest: string,
): Promise<MetaBlob> {
  return await checkDigest(readMetaBlob(source), digest);
}

async function checkDigest(
  reading: Promise<MetaBlob>,
  digest: string,
): Promise<MetaBlob> {
  const blob = await reading;
  if (blob.digest !== digest) {
    throw new IntegrityError("Digest of a meta blob", digest, blob.digest);
  }
  return blob;
}

interface Fetch {
  control: AbortController;
  blob: Promise<MetaBlob>;
}

/**
 * The meta blobs of one image that is being opened: from the cache, else from
 * the repository, which may be asked for them before it is sure that they are
 * the ones. Disposing of it ends what is under way.
 */
export class MetaBlobs implements Disposable {
  readonly #environment: ImageEnvironment;
  readonly #repository: Repository;
  readonly #begun = new Map<string, Fetch>();

  constructor(environment: ImageEnvironment, repository: Repository) {
    this.#environment = environment;
    this.#repository = repository;
  }

  /** Begins to fetch what will probably be asked for. Failures are told to whoever asks. */
  begin(descriptors: readonly Descriptor[]): void {
    mapConcurrent(descriptors, FETCH_CONCURRENCY, (one) => this.fetch(one))
      .catch(() => {});
  }

  /** Ends what was begun and is not among these. */
  keep(descriptors: readonly Descriptor[]): void {
    const kept = new Set(descriptors.map(({ digest }) => digest));
    for (const [digest, { control }] of this.#begun) {
      if (kept.has(digest)) continue;
      control.abort();
      this.#begun.delete(digest);
    }
  }

  /** One blob; the second time the same. The caller must not change it. */
  fetch(descriptor: Descriptor): Promise<MetaBlob> {
    const { digest } = descriptor;
    let fetch = this.#begun.get(digest);
    if (!fetch) {
      const control = new AbortController();
      const { signal } = this.#environment;
      const either = signal
        ? AbortSignal.any([signal, control.signal])
        : control.signal;
      fetch = { control, blob: this.#load(descriptor, either) };
      this.#begun.set(digest, fetch);
    }
    return fetch.blob;
  }

  async #load(
    descriptor: Descriptor,
    signal: AbortSignal,
  ): Promise<MetaBlob> {
    const { blobStore: store } = this.#environment;
    const { digest, size } = descriptor;
    if (store === undefined || size > CACHED_SIZE_MAX) {
      return await fetchMetaBlob(this.#repository, descriptor, signal);
    }
    const key = `meta/${digest}`;
    const entry = store.get(key);
    const stored = entry?.size === size
      ? await store.readAll(entry)
      : undefined;
    if (stored) {
      try {
        return await checkDigest(readMetaStream(only(stored)), digest);
      } catch {
        // Whatever it is, it is not the blob: that is elsewhere.
        store.drop(entry!);
      }
    }
    const bytes = new Uint8Array(size);
    let at = 0;
    const fetched = this.#repository.fetchBlob(descriptor, {
      signal,
      priority: "demand", // somebody waits for the image
    });
    async function* kept() {
      for await (const piece of fetched) {
        bytes.set(piece, at);
        at += piece.length;
        yield piece;
      }
    }
    const blob = await readFetched(kept());
    store.put(key, bytes);
    return blob;
  }

  [Symbol.dispose](): void {
    this.keep([]);
  }
}

async function* only(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield await Promise.resolve(bytes);
}
