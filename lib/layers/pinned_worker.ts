/**
 * The thread that decodes a layer into its pinned file, span by span. It writes
 * only what has the right SHA-256, and not what is there already.
 */

import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import {
  ByteRing,
  type ErrorMessage,
  GzipStream,
  packError,
  ZstdStream,
} from "../compress/mod.ts";
import {
  FormatError,
  IntegrityError,
  ShrunkFileError,
  toHex,
  workerRole,
} from "../io/mod.ts";

/** The role of this module's worker. */
export const PIN_ROLE = "obd:pin";
/** This module; in a one-file bundle, the bundle. */
export const PIN_WORKER_URL = import.meta.url;
/** Bytes of input posted at once, at most. */
export const PIN_CHUNK = 1024 * 1024;

const DIGEST_SIZE = 32;

/** The first message. */
export interface PinStart {
  kind: "start";
  compression: "gzip" | "zstd";
  /** File to write, as long as the tar already. */
  path: string;
  /** Start of each span in the tar. */
  offsets: Float64Array;
  tarSize: number;
  /** SHA-256 of each span, 32 bytes each. */
  digests: Uint8Array;
  /** 1 for each span that the file is known to hold. */
  verified: Uint8Array;
}

/** What follows: pieces of the blob in order; the last one may be empty. */
export interface PinInput {
  kind: "input";
  bytes: Uint8Array;
  isLast: boolean;
}

/** A span is in the file; a piece is used up; all is in the file; or it failed at a span, because the file is too short or else. */
export type PinReply =
  | { kind: "span"; index: number }
  | { kind: "used" }
  | { kind: "done" }
  | { kind: "error"; span: number; isShort: boolean; error: ErrorMessage };

class PinWriter {
  readonly #start: PinStart;
  readonly #post: (reply: PinReply) => void;
  readonly #fd: number;
  readonly #input = new ByteRing(new Uint8Array(2 * PIN_CHUNK));
  readonly #stream: GzipStream | ZstdStream;
  readonly #span: Uint8Array;
  readonly #there: Uint8Array;
  #head = 0;
  #filled = 0;
  index = 0;

  constructor(start: PinStart, post: (reply: PinReply) => void) {
    this.#start = start;
    this.#post = post;
    let longest = 0;
    for (let i = 0; i < start.offsets.length; i++) {
      longest = Math.max(longest, this.#sizeOf(i));
    }
    this.#span = new Uint8Array(longest);
    this.#there = new Uint8Array(longest);
    this.#stream = start.compression === "gzip"
      ? new GzipStream(this.#input)
      : new ZstdStream(this.#input);
    this.#fd = fs.openSync(start.path, "r+");
  }

  #sizeOf(index: number): number {
    const { offsets, tarSize } = this.#start;
    return (offsets[index + 1] ?? tarSize) - offsets[index]!;
  }

  get done(): boolean {
    return this.index === this.#start.offsets.length;
  }

  /** Decodes as far as the input goes. */
  take(bytes: Uint8Array, isLast: boolean): void {
    this.#input.put(this.#head, bytes);
    this.#head += bytes.length;
    while (!this.done) {
      const size = this.#sizeOf(this.index);
      const step = this.#stream.step(
        this.#head,
        isLast,
        this.#span,
        this.#filled,
        size,
      );
      if (step === "input") return;
      if (step === "end") {
        const what = `${this.#start.compression} stream`;
        throw new FormatError(what, "length", "ends before the tar");
      }
      if (step !== "data") continue;
      this.#filled += this.#stream.produced;
      if (this.#filled < size) continue;
      this.#finishSpan(this.#span.subarray(0, size));
      this.#filled = 0;
      this.index++;
    }
  }

  #finishSpan(bytes: Uint8Array): void {
    const { digests, verified, offsets } = this.#start;
    const { index } = this;
    const at = index * DIGEST_SIZE;
    const want = toHex(digests.subarray(at, at + DIGEST_SIZE));
    const got = toHex(createHash("sha256").update(bytes).digest());
    if (got !== want) throw new IntegrityError(`Span ${index}`, want, got);
    if (verified[index] === 1) return;
    const offset = offsets[index]!;
    if (!this.#holds(bytes, offset)) {
      this.#checkLength();
      for (let done = 0; done < bytes.length;) {
        const left = bytes.length - done;
        done += fs.writeSync(this.#fd, bytes, done, left, offset + done);
      }
    }
    this.#post({ kind: "span", index });
  }

  /** Whether the file has these bytes, e.g. from before a crash. */
  #holds(bytes: Uint8Array, offset: number): boolean {
    const there = this.#there.subarray(0, bytes.length);
    try {
      const got = fs.readSync(this.#fd, there, 0, there.length, offset);
      return got === bytes.length && Buffer.compare(there, bytes) === 0;
    } catch {
      // What the disk has lost is written again.
      return false;
    }
  }

  /**
   * Whoever reads the file believes that it holds what was written. A write
   * behind the end of one that somebody emptied would turn that into zeros.
   */
  #checkLength(): void {
    const { path, tarSize } = this.#start;
    if (fs.fstatSync(this.#fd).size < tarSize) {
      throw new ShrunkFileError(path);
    }
  }

  close(): void {
    this.#stream.close();
    fs.closeSync(this.#fd);
  }
}

function serve(): void {
  const scope = globalThis as unknown as {
    onmessage: (event: MessageEvent<PinStart | PinInput>) => void;
    postMessage(reply: PinReply): void;
  };
  const post = (reply: PinReply) => scope.postMessage(reply);
  let writer: PinWriter | undefined;
  let isOver = false;
  scope.onmessage = ({ data }) => {
    if (isOver) return;
    try {
      if (data.kind === "start") writer = new PinWriter(data, post);
      else {
        writer!.take(data.bytes, data.isLast);
        post({ kind: "used" });
      }
      isOver = writer!.done;
      if (isOver) post({ kind: "done" });
    } catch (error) {
      isOver = true;
      post({
        kind: "error",
        span: writer?.index ?? 0,
        isShort: error instanceof ShrunkFileError,
        error: packError(error),
      });
    }
    if (isOver) writer?.close();
  };
}

if (workerRole() === PIN_ROLE) serve();
