/**
 * The thread behind {@linkcode CodecPool}: one job at a time, and spans whose
 * input is still arriving, each decoded a bit further with each message.
 * Nothing else is kept between jobs.
 */

import { createHash, type Hash } from "node:crypto";
import * as zlib from "node:zlib";
import {
  FormatError,
  IntegrityError,
  setThreadBackground,
  toHex,
  workerRole,
} from "../io/mod.ts";
import { inflateAt, type InflateRequest, SpanDecoder } from "./inflate_at.ts";
import { WINDOW_SIZE } from "./raw_inflate.ts";
import { type ErrorMessage, packError } from "./worker_errors.ts";
import { decodeZstdSpans, type ZstdSpans } from "./zstd_spans.ts";

/** The role of this module's worker. */
export const CODEC_ROLE = "obd:codec";
/** This module; in a one-file bundle, the bundle. */
export const CODEC_WORKER_URL = import.meta.url;

/** A span to inflate, as it is posted. */
export interface PostedSpan {
  input: Uint8Array;
  bits: number;
  window: Uint8Array;
  windowIsZlib: boolean;
  length: number;
  sha256: Uint8Array | undefined;
  output: Uint8Array | undefined;
}

/** What is posted for a span whose input is still arriving; `stream` says which. */
export type StreamMessage =
  | { kind: "begin"; stream: number; span: PostedSpan }
  /** So much of the input is there. */
  | { kind: "advance"; stream: number; available: number }
  | { kind: "drop"; stream: number };

/** A job as it is posted. */
export type CodecJob =
  & {
    id: number;
    /** Nobody waits for it: whatever else the machine has to do goes first. */
    isAhead?: boolean;
  }
  & (
    | { kind: "inflate" } & PostedSpan
    | { kind: "zstd"; request: ZstdSpans; length: number }
    | { kind: "sha256"; input: Uint8Array }
    | { kind: "crash" }
  );

/** How a job ended. */
export type CodecResult = { bytes: Uint8Array } | { error: ErrorMessage };

/** The answer to a {@linkcode CodecJob}, or to the last of a stream's messages. */
export type CodecReply =
  | ({ id: number } | { stream: number }) & CodecResult
  /** The thread has let go of a stream that was called off. */
  | { stream: number; isDropped: true };

/** Only tests ask for it: what a defect outside of a job's code would do. */
class CrashRequest extends Error {}

/**
 * What the thread does with a job; for tests, on the calling thread.
 *
 * @throws {ObdError} If the input is malformed, or its SHA-256 another.
 */
export function runCodecJob(job: CodecJob): Uint8Array {
  if (job.kind === "crash") {
    throw new CrashRequest();
  }
  if (job.kind === "sha256") return sha256(job.input);
  if (job.kind === "zstd") {
    const output = new Uint8Array(job.length);
    decodeZstdSpans(job.request, output);
    return output;
  }
  const output = job.output ?? new Uint8Array(job.length);
  inflateAt(requestOf(job), output);
  if (job.sha256 !== undefined) {
    checkDigest(createHash("sha256").update(output), job.sha256);
  }
  return output;
}

function requestOf(span: PostedSpan): InflateRequest {
  const { input, bits, window } = span;
  return {
    input,
    bits,
    window: span.windowIsZlib ? inflateWindow(window) : window,
  };
}

function checkDigest(hash: Hash, wanted: Uint8Array): void {
  const got = hash.digest("hex");
  const want = toHex(wanted);
  if (got !== want) throw new IntegrityError("Span SHA-256", want, got);
}

/** Spans on their way, one after the other: decoded and hashed as far as the input is there. */
class SpanStream {
  readonly #decoder = new SpanDecoder();
  #output: Uint8Array = new Uint8Array(0);
  #sha256: Uint8Array | undefined;
  #hash: Hash | undefined;
  #done = 0;

  /** Starts a span; the one before may have been left where it was. */
  start(span: PostedSpan): void {
    this.#output = span.output ?? new Uint8Array(span.length);
    this.#sha256 = span.sha256;
    this.#hash = span.sha256 && createHash("sha256");
    this.#done = 0;
    this.#decoder.start(requestOf(span), this.#output);
  }

  /** @returns The span's bytes once all of them are decoded and checked. */
  advance(available: number): Uint8Array | undefined {
    const done = this.#decoder.advance(available);
    this.#hash?.update(this.#output.subarray(this.#done, done));
    this.#done = done;
    if (done < this.#output.length) return undefined;
    if (this.#hash) checkDigest(this.#hash, this.#sha256!);
    return this.#output;
  }
}

function sha256(bytes: Uint8Array): Uint8Array {
  return new Uint8Array(createHash("sha256").update(bytes).digest());
}

function inflateWindow(packed: Uint8Array): Uint8Array {
  if (packed.length === 0) return packed;
  try {
    const window = zlib.inflateSync(packed, { maxOutputLength: WINDOW_SIZE });
    if (window.length === WINDOW_SIZE) return window;
  } catch (error) {
    throw new FormatError("gzip span", "window", "is malformed", {
      cause: error,
    });
  }
  throw new FormatError("gzip span", "window", "is too short");
}

/** The streams of a thread, which are used again: each has a decoder. */
class SpanStreams {
  readonly #streams = new Map<number, SpanStream>();
  readonly #spare: SpanStream[] = [];

  /** @returns What to answer, if this message ended the stream. */
  handle(message: StreamMessage): CodecReply | undefined {
    const { stream: id } = message;
    if (message.kind === "drop") {
      this.#end(id);
      return { stream: id, isDropped: true };
    }
    try {
      if (message.kind === "begin") {
        const stream = this.#spare.pop() ?? new SpanStream();
        this.#streams.set(id, stream);
        stream.start(message.span);
        return undefined;
      }
      // What comes behind a failure is for nobody.
      const bytes = this.#streams.get(id)?.advance(message.available);
      if (!bytes) return undefined;
      this.#end(id);
      return { stream: id, bytes };
    } catch (error) {
      this.#end(id);
      return { stream: id, error: packError(error) };
    }
  }

  #end(id: number): void {
    const stream = this.#streams.get(id);
    if (!stream) return;
    this.#streams.delete(id);
    this.#spare.push(stream);
  }
}

function resultOf(job: CodecJob): CodecResult {
  try {
    return { bytes: runCodecJob(job) };
  } catch (error) {
    if (error instanceof CrashRequest) throw error;
    return { error: packError(error) };
  }
}

function serve(): void {
  const scope = globalThis as unknown as {
    onmessage: (event: MessageEvent<CodecJob | StreamMessage>) => void;
    postMessage(reply: CodecReply, transfer: Transferable[]): void;
  };
  const streams = new SpanStreams();
  const reply = (answer: CodecReply) => {
    const transfer: Transferable[] = [];
    if ("bytes" in answer && answer.bytes.buffer instanceof ArrayBuffer) {
      transfer.push(answer.bytes.buffer);
    }
    scope.postMessage(answer, transfer);
  };
  scope.onmessage = ({ data }) => {
    if ("stream" in data) {
      setThreadBackground(false);
      const answer = streams.handle(data);
      if (answer) reply(answer);
      return;
    }
    setThreadBackground(data.isAhead ?? false);
    reply({ id: data.id, ...resultOf(data) });
  };
}

if (workerRole() === CODEC_ROLE) serve();
