/** Who still looks at bytes whose memory is used again. */

import { invariant } from "../../io/mod.ts";

/**
 * A count of holders. Who makes a lease is the first; whoever keeps the bytes
 * beyond the turn in which it was given them retains, and releases once when it
 * has let go of every reference to them. With the last release the memory goes
 * back and is overwritten.
 *
 * Releasing is a promise, so who does not know whether a thread still looks at
 * the memory does not release: a lease that is dropped leaves it to the
 * collector, which is always safe.
 */
export class Lease {
  #holders = 1;
  #giveBack: (() => void) | undefined;

  /** @param giveBack Called once, by the last release. */
  constructor(giveBack: () => void) {
    this.#giveBack = giveBack;
  }

  /** @throws {TypeError} When nobody holds it any more: the bytes may be others by now. */
  retain(): void {
    invariant(this.#holders > 0, "a lease is retained after its end");
    this.#holders++;
  }

  /**
   * Retains it for somebody who may say more than once that they are done.
   *
   * @returns Releases it; again does nothing.
   * @throws {TypeError} As {@linkcode retain}.
   */
  lend(): () => void {
    this.retain();
    let isOut = true;
    return () => {
      if (isOut) this.release();
      isOut = false;
    };
  }

  /** @throws {TypeError} When it is released more often than it was retained. */
  release(): void {
    invariant(this.#holders > 0, "a lease is released twice");
    if (--this.#holders > 0) return;
    const giveBack = this.#giveBack!;
    // It refers to the memory, and leases that ended stay in tables of spans.
    this.#giveBack = undefined;
    giveBack();
  }
}
