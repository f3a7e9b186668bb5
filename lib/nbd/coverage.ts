/** Which bytes of a read have arrived: every byte once, none outside. */

/** Ranges in order, none touching the next. */
export class Coverage {
  readonly #starts: number[] = [];
  readonly #ends: number[] = [];

  /**
   * Adds `[start, end)`.
   *
   * @returns False if a byte of it was there before.
   */
  add(start: number, end: number): boolean {
    const { length } = this.#starts;
    let at = length;
    // Replies mostly come in order, so the search starts at the end.
    while (at > 0 && this.#starts[at - 1]! >= end) at--;
    if (at > 0 && this.#ends[at - 1]! > start) return false;
    const joinsLeft = at > 0 && this.#ends[at - 1] === start;
    const joinsRight = at < length && this.#starts[at] === end;
    if (joinsLeft && joinsRight) {
      this.#ends[at - 1] = this.#ends[at]!;
      this.#starts.splice(at, 1);
      this.#ends.splice(at, 1);
    } else if (joinsLeft) this.#ends[at - 1] = end;
    else if (joinsRight) this.#starts[at] = start;
    else {
      this.#starts.splice(at, 0, start);
      this.#ends.splice(at, 0, end);
    }
    return true;
  }

  /** Whether it is exactly `[start, end)`. */
  is(start: number, end: number): boolean {
    return this.#starts.length === 1 && this.#starts[0] === start &&
      this.#ends[0] === end;
  }
}
