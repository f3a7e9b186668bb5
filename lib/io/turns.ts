/** Long work on the thread that serves, in pieces. */

/** Longest work between two turns of the event loop. */
const TURN_MS = 5;

/**
 * Lets everybody else have their turn now and then: on the event loop all
 * exports of a serve are served. Asked often: a look at the clock is cheap.
 */
export class Turns {
  #last = performance.now();

  /** Whether this work has held the event loop long enough. */
  get isDue(): boolean {
    return performance.now() - this.#last >= TURN_MS;
  }

  /** Resolves when everybody else had their turn. */
  async take(): Promise<void> {
    // Loaded with the first use: most threads take no turns, and each would start later for it.
    const { setImmediate } = await import("node:timers");
    await new Promise<void>((resolve) => setImmediate(resolve));
    this.#last = performance.now();
  }
}
