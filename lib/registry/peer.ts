/**
 * A P2P agent on this machine, as overlaybd uses one (`p2pConfig`): blobs are
 * asked for at `ADDRESS/URL`, where URL is the registry's or the storage's own,
 * scheme included; all headers stay (overlaybd registryfs/registryfs_v2.cpp:
 * get_data). What does not come that way is fetched directly.
 */

import {
  CancelledError,
  errorText,
  type Logger,
  UsageError,
} from "../io/mod.ts";
import type { Clock } from "./clock.ts";
import { redactUrl } from "./errors.ts";

/** Time for which an agent that failed is left alone. */
const PAUSE_MS = 30_000;

/** Refusals that are the registry's: a token is missing, or the range. */
const PASSED_ON: readonly number[] = [401, 403, 416];

/**
 * The agent's URL.
 *
 * @throws {UsageError} If the address is none.
 */
export function peerUrl(address: string): string {
  // overlaybd's own default has no scheme.
  const text = /^https?:\/\//.test(address) ? address : `http://${address}`;
  if (!URL.canParse(text)) {
    throw new UsageError(`Key "p2pConfig.address": "${address}" is no URL`);
  }
  return text.replace(/\/+$/, "");
}

/** Knows whether the agent is worth asking. */
export class Peer {
  readonly #address: string;
  readonly #clock: Clock;
  readonly #logger: Logger;
  #pausedUntilMs = -Infinity;

  /** @throws {UsageError} If the address is no URL. */
  constructor(address: string, clock: Clock, logger: Logger) {
    this.#address = peerUrl(address);
    this.#clock = clock;
    this.#logger = logger;
  }

  /**
   * Asks the agent.
   *
   * @param isRange A range is asked for: an agent answers with it.
   * @returns Its answer, or undefined if it has none: the registry is to be asked.
   */
  async try<T extends { status: number; discard(): Promise<void> }>(
    url: URL,
    send: (url: URL) => Promise<T>,
    isRange: boolean,
    signal?: AbortSignal,
  ): Promise<T | undefined> {
    if (this.#clock.now() < this.#pausedUntilMs) return undefined;
    try {
      const answer = await send(new URL(`${this.#address}/${url.href}`));
      const { status } = answer;
      if (isRange && status === 200) {
        await answer.discard();
        this.#leaveAlone("ranges are ignored");
        return undefined;
      }
      if (status < 400 || PASSED_ON.includes(status)) return answer;
      await answer.discard();
      // An agent that does not have it, or is not what one took it for.
      if (status < 500) return undefined;
      this.#leaveAlone(`status ${answer.status}`);
    } catch (error) {
      this.failed(error, signal);
    }
    return undefined;
  }

  /**
   * What it said broke off.
   *
   * @throws {unknown} `error`, if it is not the agent's: whoever asked gave up.
   */
  failed(error: unknown, signal?: AbortSignal): void {
    if (error instanceof CancelledError || signal?.aborted) throw error;
    this.#leaveAlone(errorText(error));
  }

  #leaveAlone(problem: string): void {
    // Many reads may see one failure.
    if (this.#clock.now() < this.#pausedUntilMs) return;
    this.#pausedUntilMs = this.#clock.now() + PAUSE_MS;
    this.#logger.warn("P2P agent failed: blobs are fetched directly", {
      agent: redactUrl(new URL(this.#address)),
      error: problem,
      forSeconds: PAUSE_MS / 1000,
    });
  }
}
