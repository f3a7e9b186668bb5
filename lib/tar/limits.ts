/** Bounds on what an archive may ask for. */
import { type ByteString, LimitError, quoteName } from "../io/mod.ts";

/** Bounds of one walk. */
export interface TarLimits {
  /** Bytes of one PAX record area or GNU long name. */
  extensionBytes: number;
  /** Segments of one file's sparse map. */
  sparseSegments: number;
  /** Bytes of all {@linkcode TarPatch}es of the archive together. */
  patchBytes: number;
  /** Bytes of one file, and of its body in the tar (exclusive). */
  fileBytes: number;
}

/**
 * What is used unless told otherwise. `extensionBytes` is the bound of Go's
 * archive/tar, so of containerd and Docker too.
 */
export const DEFAULT_TAR_LIMITS: Readonly<TarLimits> = {
  extensionBytes: 1024 * 1024,
  sparseSegments: 1_000_000,
  patchBytes: 64 * 1024 * 1024,
  fileBytes: 2 ** 44,
};

/** The patch bytes that an archive may still use. */
export class PatchBudget {
  #left: number;
  readonly #limit: number;

  constructor(limit: number) {
    this.#left = this.#limit = limit;
  }

  /** @throws {LimitError} When `bytes` more pass the limit; they are those of the file at `path`. */
  take(bytes: number, path: ByteString): void {
    if (bytes > this.#left) {
      throw new LimitError(
        `Cannot map file ${
          quoteName(path)
        }: with it more than ${this.#limit} bytes of this layer do not lie on whole sectors of the tar`,
      );
    }
    this.#left -= bytes;
  }
}
