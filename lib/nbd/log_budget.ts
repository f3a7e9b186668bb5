/** Which of many lines about the same trouble are logged. */

/** Lines that are logged at once. */
const BURST = 50;
/** Milliseconds until one more may be. */
const REFILL_MS = 500;

/**
 * A client that asks again and again for what cannot be read gets a thousand
 * errors a second; as many lines would fill the disk, and push those that say
 * why out of what is kept of the log.
 */
export class LogBudget {
  #left = BURST;
  #refilledAt = 0;
  #unlogged = 0;

  /**
   * Asks for one line.
   *
   * @param now In ms, of a clock that does not go back.
   * @returns How many lines before it were not logged; undefined if it is not
   * to be, either.
   */
  take(now: number): number | undefined {
    const earned = Math.floor((now - this.#refilledAt) / REFILL_MS);
    this.#left = Math.min(BURST, this.#left + earned);
    this.#refilledAt += earned * REFILL_MS;
    if (this.#left === 0) {
      this.#unlogged++;
      return undefined;
    }
    this.#left--;
    const unlogged = this.#unlogged;
    this.#unlogged = 0;
    return unlogged;
  }
}
