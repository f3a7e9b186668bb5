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

/**
 * Waits for work that others may share, no longer than `signal` lets; it goes on
 * without us.
 *
 * @throws {CancelledError} As {@linkcode throwIfAborted}.
 */
export async function unlessAborted<T>(
  work: Promise<T>,
  signal: AbortSignal | undefined,
): Promise<T> {
  if (!signal) return await work;
  const aborted = Promise.withResolvers<never>();
  const onAbort = () => aborted.reject(abortError(signal));
  signal.addEventListener("abort", onAbort, { once: true });
  if (signal.aborted) onAbort();
  try {
    return await Promise.race([aborted.promise, work]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
