/** Meta blobs of an image: fetched whole, checked, taken apart. */

import { type ByteSource, IntegrityError, MemorySource } from "../io/mod.ts";
import { MAX_META_TAR, type MetaBlob, readMetaBlob } from "../layers/mod.ts";
import type { Descriptor, Repository } from "../registry/mod.ts";
import { readSmallBlob } from "./source.ts";

/**
 * Fetches one meta blob.
 *
 * @throws {IntegrityError} If it is not what its descriptor says.
 */
export async function fetchMetaBlob(
  repository: Repository,
  descriptor: Descriptor,
  signal: AbortSignal | undefined,
): Promise<MetaBlob> {
  const bytes = await readSmallBlob(
    repository,
    descriptor,
    MAX_META_TAR,
    "meta blob",
    signal,
  );
  return await checkMetaBlob(new MemorySource(bytes), descriptor.digest);
}

/** Reads a meta blob that lies anywhere, and checks its digest. */
export async function checkMetaBlob(
  source: ByteSource,
  digest: string,
): Promise<MetaBlob> {
  const blob = await readMetaBlob(source);
  if (blob.digest !== digest) {
    throw new IntegrityError("Digest of a meta blob", digest, blob.digest);
  }
  return blob;
}
