/** Typed errors across threads: `postMessage` keeps neither their class nor their fields. */

import {
  CancelledError,
  FormatError,
  IntegrityError,
  LimitError,
  ObdError,
  UnsupportedError,
} from "../io/mod.ts";

/** How an error travels. */
export interface ErrorMessage {
  kind:
    | "format"
    | "integrity"
    | "unsupported"
    | "limit"
    | "cancelled"
    | "state";
  message: string;
  /** The fields of its class. */
  parts: string[];
}

/** Packs an error for `postMessage`. What is not an `ObdError` becomes one with the code `"state"`. */
export function packError(error: unknown): ErrorMessage {
  const message = error instanceof Error ? error.message : String(error);
  if (error instanceof FormatError) {
    return { kind: "format", message, parts: [error.format, error.field] };
  }
  if (error instanceof IntegrityError) {
    const { what, want, got } = error;
    return { kind: "integrity", message, parts: [what, want, got] };
  }
  if (error instanceof UnsupportedError) {
    return { kind: "unsupported", message, parts: [error.feature] };
  }
  if (error instanceof LimitError) return { kind: "limit", message, parts: [] };
  if (error instanceof CancelledError) {
    return { kind: "cancelled", message, parts: [] };
  }
  return { kind: "state", message, parts: [] };
}

/** The error that {@linkcode packError} packed, with its message as it was. */
export function unpackError(packed: ErrorMessage): ObdError {
  const { message } = packed;
  const [a = "", b = "", c = ""] = packed.parts;
  switch (packed.kind) {
    case "format": {
      const error = new FormatError(a, b, "is malformed");
      error.message = message;
      return error;
    }
    case "integrity":
      return new IntegrityError(a, b, c);
    case "unsupported":
      return new UnsupportedError(a, message);
    case "limit":
      return new LimitError(message);
    case "cancelled":
      return new CancelledError(message);
    case "state":
      return new ObdError("state", message);
  }
}
