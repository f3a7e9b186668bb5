/** Abort signals as typed errors. */

import { CancelledError, ObdError } from "../io/mod.ts";

/** @throws {CancelledError} Or the signal's own reason, if that is one of our errors. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (!signal?.aborted) return;
  throw abortError(signal);
}

/** The error for work that stopped because of `signal`. */
export function abortError(signal: AbortSignal): ObdError {
  const reason: unknown = signal.reason;
  return reason instanceof ObdError
    ? reason
    : new CancelledError(undefined, { cause: reason });
}
