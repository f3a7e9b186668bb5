/** The record stage: all digests of a layer. */

import { createHash, type Hash } from "node:crypto";
import type { ByteRing } from "../../compress/mod.ts";
import type { LayerCompression } from "./types.ts";

/** What the record stage ends with. */
export interface LayerRecord {
  /** SHA-256 of the blob and of the tar. */
  blob: Uint8Array;
  tar: Uint8Array;
  /** 32 bytes for each span. */
  spans: Uint8Array;
}

/** Follows what a decoder tells its span sink, and takes the blob's bytes. */
export class LayerRecorder {
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
  #digests = new Uint8Array(32 * 64);
  #digestCount = 0;

  /** @param input The blob's ring. @param output The tar's. */
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

  /** Takes the tar's bytes up to `to`; they belong to the current span. */
  advance(to: number): void {
    for (const view of this.#output.views(this.tarOffset, to)) {
      this.#tar?.update(view);
      this.#span?.update(view);
    }
    this.tarOffset = to;
  }

  /** Starts a span where the last one advanced to. */
  split(): void {
    if (this.#span) this.#storeDigest(this.#span);
    this.#span = createHash("sha256");
  }

  /** Ends the last span. */
  finish(): LayerRecord {
    if (this.#span) this.#storeDigest(this.#span);
    this.#span = undefined;
    const blob = new Uint8Array(this.#blob.digest());
    return {
      blob,
      tar: this.#tar ? new Uint8Array(this.#tar.digest()) : blob,
      spans: this.#digests.slice(0, 32 * this.#digestCount),
    };
  }

  #storeDigest(hash: Hash): void {
    const at = 32 * this.#digestCount++;
    if (at === this.#digests.length) {
      const grown = new Uint8Array(2 * this.#digests.length);
      grown.set(this.#digests);
      this.#digests = grown;
    }
    this.#digests.set(hash.digest(), at);
  }
}
