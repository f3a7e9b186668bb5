/** The record stage: all digests of a layer, and its checkpoints with packed windows. */

import { createHash, type Hash } from "node:crypto";
import {
  type ByteRing,
  type CheckpointCandidate,
  CheckpointMaker,
  type SpanSink,
} from "../../compress/mod.ts";
import { packCheckpoint, type PackedCheckpoint } from "./checkpoint_list.ts";
import type { LayerCompression } from "./types.ts";

/** What the record stage ends with. */
export interface LayerRecord {
  /** SHA-256 of the blob and of the tar. */
  blob: Uint8Array;
  tar: Uint8Array;
  /** 32 bytes for each span. */
  spans: Uint8Array;
  /** The start of each span. */
  checkpoints: PackedCheckpoint[];
}

/**
 * Follows a decoder as its span sink, and takes the blob's bytes.
 *
 * After a fork, what follows may still turn out to be the same span, so both
 * digests are kept up until it is resolved.
 */
export class LayerRecorder implements SpanSink {
  /** Blob bytes that were taken. */
  blobOffset = 0;
  /** Tar bytes that were taken. */
  tarOffset = 0;
  readonly #input: ByteRing;
  readonly #output: ByteRing;
  readonly #maker: CheckpointMaker;
  readonly #checkpoints: PackedCheckpoint[] = [];
  readonly #blob = createHash("sha256");
  /** undefined for a plain tar, whose digest is the blob's. */
  readonly #tar: Hash | undefined;
  #span: Hash | undefined;
  /** The span as it was at the fork. */
  #beforeFork: Hash | undefined;
  /** The span that starts at the fork, if one does. */
  #sinceFork: Hash | undefined;
  #digests = new Uint8Array(32 * 64);
  #digestCount = 0;

  /** @param input The blob's ring. @param output The tar's. */
  constructor(
    compression: LayerCompression,
    sparseWindows: boolean | undefined,
    input: ByteRing,
    output: ByteRing,
  ) {
    this.#input = input;
    this.#output = output;
    this.#maker = new CheckpointMaker(sparseWindows);
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

  split(candidate: CheckpointCandidate): void {
    if (!this.#addCheckpoint(candidate)) return;
    if (this.#span) this.#storeDigest(this.#span);
    this.#span = createHash("sha256");
  }

  fork(): void {
    this.#beforeFork = this.#span?.copy();
    this.#sinceFork = createHash("sha256");
  }

  resolve(candidate: CheckpointCandidate | undefined): void {
    if (candidate && this.#addCheckpoint(candidate)) {
      if (this.#beforeFork) this.#storeDigest(this.#beforeFork);
      this.#span = this.#sinceFork;
    }
    this.#beforeFork = undefined;
    this.#sinceFork = undefined;
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
      checkpoints: this.#checkpoints,
    };
  }

  #addCheckpoint(candidate: CheckpointCandidate): boolean {
    const checkpoint = this.#maker.make(candidate);
    if (checkpoint === undefined) return false;
    this.#checkpoints.push(packCheckpoint(checkpoint));
    return true;
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
