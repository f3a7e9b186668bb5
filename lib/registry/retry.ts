/** Repeating what failed for a passing reason: exponential pauses with full jitter, bounded in number and time. */

import { DeadlineError, type Logger, ObdError } from "../io/mod.ts";
import type { Clock } from "./clock.ts";
import { RegistryError } from "./errors.ts";
import { throwIfAborted } from "./signals.ts";
import type { TransportLimits } from "./transport.ts";

/** Errors after which there must be a pause, in milliseconds. */
const retryAfter = new WeakMap<Error, number>();

/** Notes the answer's `Retry-After` (RFC 9110 §10.2.3) on an error. */
export function noteRetryAfter(error: Error, headers: Headers): void {
  const value = headers.get("retry-after")?.trim();
  if (!value) return;
  const milliseconds = /^[0-9]{1,9}$/.test(value)
    ? Number(value) * 1000
    : Date.parse(value) - Date.now();
  if (milliseconds > 0) noteWait(error, milliseconds);
}

/** Notes a pause without which another attempt has no point. */
export function noteWait(error: Error, milliseconds: number): void {
  retryAfter.set(error, milliseconds);
}

/** Whether the same work may succeed if it is done again. */
export function isTemporary(error: unknown): boolean {
  return error instanceof DeadlineError ||
    (error instanceof RegistryError && error.temporary);
}

/** Bytes that count as progress; fewer would let a server keep us for ever. */
const PROGRESS_SIZE = 64 * 1024;

/** Counts failures of one piece of work and waits between them. */
export class Retrier {
  readonly #limits: TransportLimits;
  readonly #clock: Clock;
  readonly #logger: Logger;
  #failures = 0;
  #progress = 0;
  #since: number;

  constructor(
    transport: { limits: TransportLimits; clock: Clock; logger: Logger },
  ) {
    this.#limits = transport.limits;
    this.#clock = transport.clock;
    this.#logger = transport.logger;
    this.#since = this.#clock.now();
  }

  /** Bytes came forward: the bounds start anew, unless it was a mere drip. */
  progressed(bytes: number): void {
    this.#progress += bytes;
    if (this.#progress < PROGRESS_SIZE) return;
    this.#progress = 0;
    this.#failures = 0;
    this.#since = this.#clock.now();
  }

  /**
   * Waits until the next attempt is due.
   *
   * @throws {unknown} `error` itself, if it is final or a bound is reached.
   */
  async pause(error: unknown, signal?: AbortSignal): Promise<void> {
    throwIfAborted(signal);
    this.#failures++;
    if (!isTemporary(error) || this.#failures >= this.#limits.attempts) {
      throw error;
    }
    const { pauseMs, pauseMaxMs, retryAfterMaxMs, totalMs } = this.#limits;
    const bound = Math.min(pauseMaxMs, pauseMs * 2 ** (this.#failures - 1));
    const asked = retryAfter.get(error as Error) ?? 0;
    if (asked > retryAfterMaxMs) throw error;
    const wait = Math.max(asked, this.#clock.random() * bound);
    if (this.#clock.now() + wait - this.#since > totalMs) throw error;
    this.#logger.debug("registry request is repeated", {
      attempt: this.#failures + 1,
      waitMs: Math.round(wait),
      error: (error as ObdError).message,
    });
    await this.#clock.delay(wait, signal);
  }
}

/** Does `work` until it succeeds, fails for good, or the bounds are reached. */
export async function withRetries<T>(
  transport: { limits: TransportLimits; clock: Clock; logger: Logger },
  work: () => Promise<T>,
  signal?: AbortSignal,
): Promise<T> {
  const retrier = new Retrier(transport);
  for (;;) {
    try {
      return await work();
    } catch (error) {
      await retrier.pause(error, signal);
    }
  }
}
