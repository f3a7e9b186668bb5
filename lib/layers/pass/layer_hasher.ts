/** The digest stage: SHA-256 of the blob, of the tar and of each span. */

import { createHash, type Hash } from "node:crypto";
import type { ByteRing } from "../../compress/mod.ts";
import type { LayerCompression } from "./types.ts";

/** What the digest stage ends with. */
export interface LayerDigests {
  blob: Uint8Array;
  tar: Uint8Array;
  /** 32 bytes for each span. */
  spans: Uint8Array;
}

/**
 * Follows the commands of a decoder's span sink, and the blob's bytes.
 *
 * A fork means: what follows may still turn out to be the same span, so both
 * are kept until it is resolved.
 */
export class LayerHasher {
  /** Blob bytes that were taken. */
  blobOffset = 0;
  /** Tar bytes that were taken. */
  tarOffset = 0;
  readonly #input: ByteRing;
  readonly #output: ByteRing;
  readonly #blob = createHash("sha256");
  /** undefined for a plain tar, whose digest is the blob's. */
  readonly #tar: Hash | undefined;
  #span: Hash | undefined;
  /** The span as it was at the fork. */
  #beforeFork: Hash | undefined;
  /** The span that started at the fork, if one did. */
  #sinceFork: Hash | undefined;
  #digests = new Uint8Array(32 * 64);
  #digestCount = 0;

  constructor(
    compression: LayerCompression,
    input: ByteRing,
    output: ByteRing,
  ) {
    this.#input = input;
    this.#output = output;
    if (compression !== "none") this.#tar = createHash("sha256");
  }

  /** Takes the blob's bytes up to `to`. */
  takeBlob(to: number): void {
    for (const view of this.#input.views(this.blobOffset, to)) {
      this.#blob.update(view);
    }
    this.blobOffset = to;
  }

  advance(to: number): void {
    for (const view of this.#output.views(this.tarOffset, to)) {
      this.#tar?.update(view);
      this.#span?.update(view);
      this.#sinceFork?.update(view);
    }
    this.tarOffset = to;
  }

  split(): void {
    if (this.#span) this.#store(this.#span);
    this.#span = createHash("sha256");
  }

  fork(): void {
    this.#beforeFork = this.#span?.copy();
    this.#sinceFork = createHash("sha256");
  }

  resolve(isSplit: boolean): void {
    if (isSplit) {
      if (this.#beforeFork) this.#store(this.#beforeFork);
      this.#span = this.#sinceFork;
    }
    this.#beforeFork = undefined;
    this.#sinceFork = undefined;
  }

  /** Ends the last span. */
  finish(): LayerDigests {
    if (this.#span) this.#store(this.#span);
    this.#span = undefined;
    const blob = new Uint8Array(this.#blob.digest());
    return {
      blob,
      tar: this.#tar ? new Uint8Array(this.#tar.digest()) : blob,
      spans: this.#digests.slice(0, 32 * this.#digestCount),
    };
  }

  #store(hash: Hash): void {
    const at = 32 * this.#digestCount++;
    if (at === this.#digests.length) {
      const grown = new Uint8Array(2 * this.#digests.length);
      grown.set(this.#digests);
      this.#digests = grown;
    }
    this.#digests.set(hash.digest(), at);
  }
}
