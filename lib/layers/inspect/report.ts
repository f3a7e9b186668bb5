/** What `obd inspect` finds out about one file, as a tree of facts. */

import {
  type ByteSource,
  CancelledError,
  type ErrorCode,
  errorText,
  ObdError,
} from "../../io/mod.ts";

/** A value that a report may hold. Sizes and offsets in bytes unless the name says otherwise. */
export type Fact = string | number | boolean;

/** Kinds of files that are recognised. */
export type FileKind =
  | "acceleration-layer"
  | "empty"
  | "erofs"
  | "ext4"
  | "foreign-layer"
  | "gzip-layer"
  | "gzip.meta"
  | "lsmt-index"
  | "lsmt-layer"
  | "lsmt-writable"
  | "marker"
  | "meta-blob"
  | "obd.spans"
  | "tar-layer"
  | "tar-wrapper"
  | "trace"
  | "unknown"
  | "zfile"
  | "zstd-layer";

/** Why something is broken. */
export interface Problem {
  code: ErrorCode;
  message: string;
}

/** A file, and the files that lie in it. */
export interface FileReport {
  kind: FileKind;
  /** What it is, for people. */
  title: string;
  /** Bytes. */
  size: number;
  facts: Record<string, Fact>;
  /** Content of containers, members of archives. */
  parts: FilePart[];
  /** Worth knowing, not wrong. */
  notes: string[];
  /** What is wrong with it; what was found before that stands in `facts`. */
  problem?: Problem;
}

/** One file in another. */
export interface FilePart {
  name: string;
  report: FileReport;
}

/** What inspecting needs to know. */
export interface InspectOptions {
  signal?: AbortSignal | undefined;
  /** Called with bytes that were read for checking them. */
  onProgress?: ((bytes: number) => void) | undefined;
  /** `sha256:…` that the whole file must have. */
  expectedDigest?: string | undefined;
}

/** Pieces that files are read through in. */
const PIECE = 1024 * 1024;

/** An empty report. */
export function newReport(
  kind: FileKind,
  title: string,
  source: { readonly size: number },
): FileReport {
  return { kind, title, size: source.size, facts: {}, parts: [], notes: [] };
}

/**
 * Runs a check; what it throws on purpose becomes the report's problem.
 *
 * @throws Cancellations, and errors that are not the file's fault.
 */
export async function guard(
  report: FileReport,
  check: () => Promise<void>,
): Promise<FileReport> {
  try {
    await check();
  } catch (error) {
    report.problem ??= problemOf(error);
  }
  return report;
}

/** @throws `error` itself, if it is a cancellation or no error of ours. */
export function problemOf(error: unknown): Problem {
  if (!(error instanceof ObdError) || error.code === "cancelled") throw error;
  return { code: error.code, message: errorText(error) };
}

/** The first problem in a report and all its parts, outermost first. */
export function firstProblem(report: FileReport): Problem | undefined {
  if (report.problem) return report.problem;
  for (const { report: inner } of report.parts) {
    const problem = firstProblem(inner);
    if (problem) return problem;
  }
  return undefined;
}

/** All bytes of a source, in order. The pieces belong to the reader. */
export async function* piecesOf(
  source: ByteSource,
  options: InspectOptions,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const { signal, onProgress } = options;
  for (let at = 0; at < source.size; at += PIECE) {
    if (signal?.aborted) throw new CancelledError();
    const piece = new Uint8Array(Math.min(PIECE, source.size - at));
    await source.pread(piece, at, { signal });
    onProgress?.(piece.length);
    yield piece;
  }
}

/** A source that somebody else closes. */
export function borrowed(source: ByteSource): ByteSource {
  return new BorrowedSource(source);
}

class BorrowedSource implements ByteSource {
  readonly size: number;
  readonly #inner: ByteSource;

  constructor(inner: ByteSource) {
    this.#inner = inner;
    this.size = inner.size;
  }

  pread(
    dst: Uint8Array,
    offset: number,
    options?: { signal?: AbortSignal | undefined },
  ): Promise<void> {
    return this.#inner.pread(dst, offset, options);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }
}
