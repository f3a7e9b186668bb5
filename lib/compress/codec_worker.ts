/** The thread behind {@linkcode CodecPool}: one job at a time, nothing kept between jobs. */

import { createHash } from "node:crypto";
import * as zlib from "node:zlib";
import {
  FormatError,
  IntegrityError,
  setThreadBackground,
  toHex,
  workerRole,
} from "../io/mod.ts";
import { inflateAt } from "./inflate_at.ts";
import { WINDOW_SIZE } from "./raw_inflate.ts";
import { type ErrorMessage, packError } from "./worker_errors.ts";
import { decodeZstdSpans, type ZstdSpans } from "./zstd_spans.ts";

/** The role of this module's worker. */
export const CODEC_ROLE = "obd:codec";
/** This module; in a one-file bundle, the bundle. */
export const CODEC_WORKER_URL = import.meta.url;

/** A job as it is posted. */
export type CodecJob =
  & {
    id: number;
    /** Nobody waits for it: whatever else the machine has to do goes first. */
    isAhead?: boolean;
  }
  & (
    | {
      kind: "inflate";
      input: Uint8Array;
      bits: number;
      window: Uint8Array;
      windowIsZlib: boolean;
      length: number;
      sha256: Uint8Array | undefined;
      output: Uint8Array | undefined;
    }
    | { kind: "zstd"; request: ZstdSpans; length: number }
    | { kind: "sha256"; input: Uint8Array }
    | { kind: "crash" }
  );

/** The answer to a {@linkcode CodecJob}. */
export type CodecReply =
  | { id: number; bytes: Uint8Array }
  | { id: number; error: ErrorMessage };

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
  const { input, bits, length } = job;
  const window = job.windowIsZlib ? inflateWindow(job.window) : job.window;
  const output = job.output ?? new Uint8Array(length);
  inflateAt({ input, bits, window }, output);
  if (job.sha256 !== undefined) {
    const got = toHex(sha256(output));
    const want = toHex(job.sha256);
    if (got !== want) throw new IntegrityError("Span SHA-256", want, got);
  }
  return output;
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

function serve(): void {
  const scope = globalThis as unknown as {
    onmessage: (event: MessageEvent<CodecJob>) => void;
    postMessage(reply: CodecReply, transfer: Transferable[]): void;
  };
  scope.onmessage = ({ data: job }) => {
    setThreadBackground(job.isAhead ?? false);
    let reply: CodecReply;
    try {
      reply = { id: job.id, bytes: runCodecJob(job) };
    } catch (error) {
      if (error instanceof CrashRequest) throw error;
      reply = { id: job.id, error: packError(error) };
    }
    const transfer: Transferable[] = [];
    if ("bytes" in reply && reply.bytes.buffer instanceof ArrayBuffer) {
      transfer.push(reply.bytes.buffer);
    }
    scope.postMessage(reply, transfer);
  };
}

if (workerRole() === CODEC_ROLE) serve();
