/**
 * The errors that callers act on. Everything else is a programmer's mistake
 * (`TypeError`, `RangeError`, {@linkcode invariant}) or comes from the runtime.
 *
 * Messages: capital first, no final period, the action and the current value,
 * strings quoted, colon before detail.
 */

/** Machine-readable kind of an {@linkcode ObdError}. */
export type ErrorCode =
  | "cancelled"
  | "conflict"
  | "deadline"
  | "format"
  | "integrity"
  | "limit"
  | "not-found"
  | "registry"
  | "state"
  | "unsupported"
  | "usage";

/** Base of all errors that obd raises on purpose. */
export class ObdError extends Error {
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
    this.name = new.target.name;
  }
}

/** Input that breaks its format's rules. */
export class FormatError extends ObdError {
  /** The structure, e.g. `"LSMT trailer"`. */
  readonly format: string;
  /** The field that is wrong, e.g. `"index_size"`. */
  readonly field: string;
  /** Byte offset of the structure in its file, where known. */
  readonly offset: number | undefined;

  constructor(
    format: string,
    field: string,
    problem: string,
    options: ErrorOptions & { offset?: number } = {},
  ) {
    const at = options.offset === undefined
      ? ""
      : ` at offset ${options.offset}`;
    super("format", `Bad ${format}${at}: ${field} ${problem}`, options);
    this.format = format;
    this.field = field;
    this.offset = options.offset;
  }
}

/** Valid input that obd does not handle. */
export class UnsupportedError extends ObdError {
  readonly feature: string;

  constructor(feature: string, message: string, options?: ErrorOptions) {
    super("unsupported", message, options);
    this.feature = feature;
  }
}

/** Bytes whose digest or checksum is not the expected one. */
export class IntegrityError extends ObdError {
  readonly what: string;
  readonly want: string;
  readonly got: string;

  constructor(what: string, want: string, got: string, options?: ErrorOptions) {
    super("integrity", `${what} is ${got}, expected ${want}`, options);
    this.what = what;
    this.want = want;
    this.got = got;
  }
}

/** A number from outside that passes one of our stated bounds. */
export class LimitError extends ObdError {
  constructor(message: string, options?: ErrorOptions) {
    super("limit", message, options);
  }
}

/** A named thing (tag, blob, path, export) that is not there. */
export class NotFoundError extends ObdError {
  constructor(message: string, options?: ErrorOptions) {
    super("not-found", message, options);
  }
}

/** The caller gave up. */
export class CancelledError extends ObdError {
  constructor(message = "Cancelled", options?: ErrorOptions) {
    super("cancelled", message, options);
  }
}

/** Something did not finish in time. */
export class DeadlineError extends ObdError {
  constructor(what: string, milliseconds: number, options?: ErrorOptions) {
    super("deadline", `${what} did not finish in ${milliseconds} ms`, options);
  }
}

/** A setting or argument that the user must change; the command line exits with 2. */
export class UsageError extends ObdError {
  constructor(message: string, options?: ErrorOptions) {
    super("usage", message, options);
  }
}

/** Throws when our own code is wrong. Never for anything that input can cause. */
export function invariant(
  condition: boolean,
  message: string,
): asserts condition {
  if (!condition) throw new TypeError(`Internal error: ${message}`);
}

/** The text of any thrown value, with the causes that add something. */
export function errorText(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const cause = error.cause;
  if (cause === undefined) return error.message;
  const inner = errorText(cause);
  return error.message.includes(inner)
    ? error.message
    : `${error.message}: ${inner}`;
}

/** Somebody made a file of ours shorter: what was beyond its end reads as zeros once more is written behind it. */
export class ShrunkFileError extends ObdError {
  constructor(path: string) {
    super("state", `Somebody made "${path}" shorter`);
  }
}
