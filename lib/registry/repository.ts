/** The one interface over registries, OCI layout directories and OCI archives. */

import type { ByteSource, Priority } from "../io/mod.ts";
import type { Descriptor } from "./manifest.ts";

/** A manifest or index as it is stored: `descriptor` fits `bytes` in digest, size and media type. */
export interface ResolvedManifest {
  descriptor: Descriptor;
  bytes: Uint8Array<ArrayBuffer>;
}

/** Options of calls that wait for a network. */
export interface RequestOptions {
  signal?: AbortSignal | undefined;
}

/** Options of {@linkcode Repository.fetchBlob}. */
export interface FetchBlobOptions extends RequestOptions {
  /** Called with the bytes received so far, after each piece. */
  onProgress?: ((receivedBytes: number) => void) | undefined;
  /** Default `"prefetch"`: large blobs must not keep readers waiting. */
  priority?: Priority | undefined;
}

/** Options of {@linkcode Repository.pushBlob}. */
export interface PushBlobOptions extends RequestOptions {
  /** Paths of repositories in the same registry that may have the blob. */
  mountFrom?: readonly string[] | undefined;
  /** Called with the bytes sent so far; falls back when an upload starts over. */
  onProgress?: ((sentBytes: number) => void) | undefined;
}

/** Options of {@linkcode Repository.pushManifest}. */
export interface PushManifestOptions extends RequestOptions {
  /** False: leave the list of referrers alone where the registry does not keep it by itself. */
  referrer?: boolean | undefined;
}

/** What a push had to do. */
export type PushResult = "exists" | "mounted" | "uploaded";

/** Content to upload; opened again for each attempt. */
export interface BlobContent {
  /**
   * All bytes from `offset`, in order; pieces belong to the reader.
   *
   * @param borrows The reader is done with each piece when it asks for the
   * next, so that one buffer will do.
   */
  open(offset: number, borrows?: boolean): AsyncIterable<Uint8Array>;
}

/**
 * One repository. Digests are checked on everything that is read whole; a
 * random-access read can not be checked here, whoever reads checks.
 */
export interface Repository extends AsyncDisposable {
  /** For people, e.g. `127.0.0.1:5000/app` or `oci:/dir`. */
  readonly name: string;
  /** Whether pushes are possible at all. */
  readonly writable: boolean;

  /**
   * Reads a manifest or index.
   *
   * @param tagOrDigest A tag, a digest, or "" for the only image of a layout.
   * @throws {NotFoundError} If there is none.
   * @throws {IntegrityError} If it is not what its digest says.
   */
  resolve(
    tagOrDigest: string,
    options?: RequestOptions,
  ): Promise<ResolvedManifest>;

  /**
   * Random access to a blob. Its bytes are NOT checked against the digest.
   *
   * @throws {NotFoundError} If it is absent. A registry may say so on the first read only.
   */
  openBlob(descriptor: Descriptor): Promise<ByteSource>;

  /**
   * A whole blob in order. A break is resumed where it happened. Digest and
   * size are right when the iteration ends normally; until then nothing is
   * sure. Pieces belong to the caller.
   *
   * @throws {IntegrityError} At the end, if digest or size differ.
   * @throws {NotFoundError} If it is absent.
   */
  fetchBlob(
    descriptor: Descriptor,
    options?: FetchBlobOptions,
  ): AsyncIterable<Uint8Array>;

  /**
   * Bytes of a blob of which only the digest is known.
   *
   * @throws {NotFoundError} If it is absent.
   */
  blobSize(digest: string, options?: RequestOptions): Promise<number>;

  /** Whether the blob is there. */
  hasBlob(digest: string, options?: RequestOptions): Promise<boolean>;

  /**
   * Stores a blob unless it is there.
   *
   * @throws {IntegrityError} If `content` is not what `descriptor` says.
   */
  pushBlob(
    descriptor: Descriptor,
    content: BlobContent,
    options?: PushBlobOptions,
  ): Promise<PushResult>;

  /**
   * Stores a manifest or index under its digest, and under a tag if one is
   * given. One with a `subject` is found by {@linkcode referrers} afterwards,
   * also where the registry knows no referrers.
   *
   * @param tagOrDigest A tag, the digest of `bytes`, or nothing.
   * @returns Its descriptor.
   */
  pushManifest(
    bytes: Uint8Array,
    mediaType: string,
    tagOrDigest?: string,
    options?: PushManifestOptions,
  ): Promise<Descriptor>;

  /**
   * Manifests whose `subject` is `digest`, sorted by digest. None is an empty list.
   *
   * @param artifactType Only those of this type.
   */
  referrers(
    digest: string,
    artifactType?: string,
    options?: RequestOptions,
  ): Promise<Descriptor[]>;
}
