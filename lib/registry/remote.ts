/** A repository in a registry (OCI distribution-spec 1.1, Docker Registry HTTP API V2). */

import {
  type ByteSource,
  delay,
  IntegrityError,
  MemorySource,
  NotFoundError,
} from "../io/mod.ts";
import { RegistryBlobSource } from "./blob_source.ts";
import { checkDigest, isDigest, sha256Digest } from "./digest.ts";
import { RegistryError } from "./errors.ts";
import { fetchBlob } from "./fetch_blob.ts";
import { checkTarget } from "./layout.ts";
import {
  checkNotSchema1,
  type Descriptor,
  type Manifest,
  MANIFEST_SIZE_MAX,
  manifestMediaType,
  parseJsonObject,
  parseManifest,
  referrerDescriptor,
} from "./manifest.ts";
import { MANIFEST_ACCEPT } from "./media_types.ts";
import { isTag } from "./reference.ts";
import {
  addToFallback,
  filterReferrers,
  listReferrers,
  readFallback,
  type TagAccess,
} from "./referrers.ts";
import type {
  BlobContent,
  FetchBlobOptions,
  PushBlobOptions,
  PushManifestOptions,
  PushResult,
  Repository,
  RequestOptions,
  ResolvedManifest,
} from "./repository.ts";
import type { Session } from "./session.ts";
import type { Exchange } from "./transport.ts";
import { remoteBlobSize } from "./blob_size.ts";
import { hasBlob, isSurelyThere, uploadBlob } from "./upload.ts";

/** Waiting for another client's push of the same manifest: 1.5 s in all. */
const PUT_RETRIES = 4;
const PUT_RETRY_MS = 100;

/** One repository of a registry. Borrows its connections. */
export class RemoteRepository implements Repository {
  readonly name: string;
  readonly writable = true;
  readonly #session: Session;
  readonly #onDispose: () => Promise<void>;

  /** @param onDispose Lets go of what only this repository uses. */
  constructor(
    session: Session,
    onDispose: () => Promise<void> = () => Promise.resolve(),
  ) {
    this.#session = session;
    this.#onDispose = onDispose;
    this.name = `${session.registry}/${session.repository}`;
  }

  /** Path in the registry, as `mountFrom` wants it. */
  get repository(): string {
    return this.#session.repository;
  }

  /** The registry's name. */
  get registry(): string {
    return this.#session.registry;
  }

  async resolve(
    tagOrDigest: string,
    options: RequestOptions = {},
  ): Promise<ResolvedManifest> {
    const target = tagOrDigest === "" ? "latest" : tagOrDigest;
    if (!isTag(target)) checkDigest(target);
    return await this.#session.request(
      {
        method: "GET",
        target: `manifests/${target}`,
        access: "pull",
        headers: { accept: MANIFEST_ACCEPT },
        signal: options.signal,
      },
      [200, 404],
      (answer) => this.#readManifest(answer, target),
    );
  }

  async #readManifest(
    answer: Exchange,
    target: string,
  ): Promise<ResolvedManifest> {
    if (answer.status === 404) {
      throw new NotFoundError(`No manifest "${target}" in "${this.name}"`);
    }
    const contentType = answer.headers.get("content-type") ?? "";
    checkNotSchema1(contentType);
    const bytes = await answer.bytes(MANIFEST_SIZE_MAX);
    const digest = sha256Digest(bytes);
    const announced = answer.headers.get("docker-content-digest");
    const wanted = isDigest(target)
      ? target
      : announced?.startsWith("sha256:")
      ? announced
      : digest;
    if (digest !== wanted) {
      throw new IntegrityError(
        `Digest of manifest "${target}" of "${this.name}"`,
        wanted,
        digest,
      );
    }
    const mediaType = manifestMediaType(
      parseJsonObject("manifest", bytes),
      contentType,
    );
    return { descriptor: { mediaType, digest, size: bytes.length }, bytes };
  }

  openBlob(descriptor: Descriptor): Promise<ByteSource> {
    const embedded = embeddedBytes(descriptor);
    return Promise.resolve(
      embedded
        ? new MemorySource(embedded, "embedded blob")
        : new RegistryBlobSource(this.#session, descriptor),
    );
  }

  fetchBlob(
    descriptor: Descriptor,
    options: FetchBlobOptions = {},
  ): AsyncIterable<Uint8Array> {
    return fetchBlob(this.#session, descriptor, options);
  }

  blobSize(digest: string, options: RequestOptions = {}): Promise<number> {
    return remoteBlobSize(this.#session, checkDigest(digest), options);
  }

  hasBlob(digest: string, options: RequestOptions = {}): Promise<boolean> {
    return hasBlob(this.#session, checkDigest(digest), options);
  }

  async pushBlob(
    descriptor: Descriptor,
    content: BlobContent,
    options: PushBlobOptions = {},
  ): Promise<PushResult> {
    const digest = checkDigest(descriptor.digest);
    if (await isSurelyThere(this.#session, digest, options)) return "exists";
    return await uploadBlob(this.#session, descriptor, content, options);
  }

  async pushManifest(
    bytes: Uint8Array,
    mediaType: string,
    tagOrDigest?: string,
    options: PushManifestOptions = {},
  ): Promise<Descriptor> {
    const manifest = parseManifest(bytes, mediaType);
    const digest = sha256Digest(bytes);
    const tag = checkTarget(tagOrDigest, digest, isTag);
    const descriptor = {
      mediaType: manifest.mediaType,
      digest,
      size: bytes.length,
    };
    const knowsSubject = await this.#put(
      tag ?? digest,
      new Uint8Array(bytes),
      manifest,
      digest,
      options,
    );
    if (manifest.subject && !knowsSubject && options.referrer !== false) {
      await addToFallback(
        this.#session,
        this.#tagAccess,
        manifest.subject.digest,
        referrerDescriptor(descriptor, manifest),
        options,
      );
    }
    return descriptor;
  }

  /**
   * While another client pushes the same manifest, docker-registry's file
   * system driver has its link empty for a moment, and then calls the digest of
   * an index that names it invalid. Ours are not, so it is asked again.
   *
   * @returns Whether the registry keeps the list of referrers itself.
   */
  async #put(
    target: string,
    bytes: Uint8Array<ArrayBuffer>,
    manifest: Manifest,
    digest: string,
    options: RequestOptions,
  ): Promise<boolean> {
    for (let attempt = 0;; attempt++) {
      try {
        return await this.#putOnce(target, bytes, manifest, digest, options);
      } catch (error) {
        const isRace = error instanceof RegistryError &&
          error.status === 400 && error.codes.includes("DIGEST_INVALID");
        if (!isRace || attempt === PUT_RETRIES) throw error;
        await delay(PUT_RETRY_MS * 2 ** attempt, options.signal);
      }
    }
  }

  #putOnce(
    target: string,
    bytes: Uint8Array<ArrayBuffer>,
    manifest: Manifest,
    digest: string,
    options: RequestOptions,
  ): Promise<boolean> {
    return this.#session.request(
      {
        method: "PUT",
        target: `manifests/${target}`,
        access: "push",
        headers: { "content-type": manifest.mediaType },
        body: bytes,
        signal: options.signal,
      },
      [200, 201],
      (answer) => {
        const stored = answer.headers.get("docker-content-digest");
        if (stored?.startsWith("sha256:") && stored !== digest) {
          throw new IntegrityError("Digest of pushed manifest", digest, stored);
        }
        return Promise.resolve(answer.headers.has("oci-subject"));
      },
    );
  }

  get #tagAccess(): TagAccess {
    return {
      resolve: (tag, options) => this.resolve(tag, options),
      put: async (tag, bytes, mediaType, options = {}) => {
        const index = parseManifest(bytes, mediaType);
        await this.#put(tag, bytes, index, sha256Digest(bytes), options);
      },
    };
  }

  async referrers(
    digest: string,
    artifactType?: string,
    options: RequestOptions = {},
  ): Promise<Descriptor[]> {
    checkDigest(digest);
    const listed = await listReferrers(
      this.#session,
      digest,
      artifactType,
      options,
    );
    const entries = listed ??
      (await readFallback(this.#tagAccess, digest, options))?.manifests ?? [];
    return filterReferrers(entries, artifactType);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#onDispose();
  }
}

/** Content that the descriptor carries itself, if it is what the digest says. */
function embeddedBytes(
  descriptor: Descriptor,
): Uint8Array<ArrayBuffer> | undefined {
  if (descriptor.data === undefined) return undefined;
  try {
    const bytes = Uint8Array.fromBase64(descriptor.data);
    const fits = bytes.length === descriptor.size &&
      sha256Digest(bytes) === descriptor.digest;
    return fits ? bytes : undefined;
  } catch {
    return undefined; // no base64; the blob itself is still there
  }
}
