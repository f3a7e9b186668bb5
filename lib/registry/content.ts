/** Content for uploads, from wherever it lies. */

import type { ByteSource } from "../io/mod.ts";
import type { Descriptor } from "./manifest.ts";
import type { BlobContent, Repository } from "./repository.ts";

const PIECE_SIZE = 256 * 1024;

/** Content in memory; borrows `bytes` until the push ends. */
export function blobFromBytes(bytes: Uint8Array): BlobContent {
  return {
    async *open(offset) {
      for (let at = offset; at < bytes.length; at += PIECE_SIZE) {
        yield bytes.slice(at, at + PIECE_SIZE);
      }
    },
  };
}

/** All bytes of a source from `offset`, in pieces of their own, or all in one buffer. */
export async function* readPieces(
  source: ByteSource,
  offset = 0,
  signal?: AbortSignal,
  borrows = false,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  // Buffers that are dropped pile up: up to 64 MB before the runtime collects them.
  const shared = borrows ? new Uint8Array(PIECE_SIZE) : undefined;
  for (let at = offset; at < source.size; at += PIECE_SIZE) {
    const size = Math.min(PIECE_SIZE, source.size - at);
    const piece = shared?.subarray(0, size) ?? new Uint8Array(size);
    await source.pread(piece, at, { signal });
    yield piece;
  }
}

/** Content of a source, e.g. a file; borrows it until the push ends. */
export function blobFromSource(source: ByteSource): BlobContent {
  return {
    open: (offset, borrows) => readPieces(source, offset, undefined, borrows),
  };
}

/** A blob of another repository. Always read from its start, so that its digest is checked. */
export function blobFromRepository(
  repository: Repository,
  descriptor: Descriptor,
): BlobContent {
  return {
    async *open(offset) {
      let skip = offset;
      for await (const piece of repository.fetchBlob(descriptor)) {
        if (skip >= piece.length) skip -= piece.length;
        else {
          yield skip > 0 ? piece.subarray(skip) : piece;
          skip = 0;
        }
      }
    },
  };
}
