/** Learns whether readers of a layer that want a span soon want its neighbour. */

/** A span has a neighbour if one beside it is among so many that were wanted last. */
const MEMORY = 64;
/** Of a small layer, no more than this share: else random reads would look like neighbours. */
const MEMORY_SHARE = 8;
/** What the answer is drawn from. */
const SAMPLES = 32;
const MIN_SAMPLES = 8;

/**
 * Follows which spans are wanted, in the order of their first read. Programs
 * that start read files that were packed together, back and forth and with
 * gaps: they are no sequential readers, but most of the spans that they want
 * lie beside others. Those of random reads do not.
 */
export class NeighbourPredictor {
  readonly #count: number;
  readonly #memory: number;
  /** Spans wanted lately; a set keeps the order of insertion. */
  readonly #recent = new Set<number>();
  /** Ring: whether each of the last spans had a neighbour. */
  readonly #samples = new Uint8Array(SAMPLES);
  #taken = 0;
  #withNeighbour = 0;

  /** @param count Spans of the layer. */
  constructor(count: number) {
    this.#count = count;
    this.#memory = Math.min(MEMORY, Math.floor(count / MEMORY_SHARE));
  }

  /**
   * Takes note of a span that is wanted for the first time.
   *
   * @returns The span to read ahead; undefined where guessing does not pay.
   */
  wanted(index: number): number | undefined {
    if (this.#memory === 0) return undefined;
    const recent = this.#recent;
    this.#sample(recent.has(index - 1) || recent.has(index + 1) ? 1 : 0);
    recent.add(index);
    if (recent.size > this.#memory) {
      recent.delete(recent.values().next().value!);
    }
    const samples = Math.min(this.#taken, SAMPLES);
    // Exactly half are also those of requests that span two, wherever they lie.
    if (samples < MIN_SAMPLES || this.#withNeighbour * 2 <= samples) {
      return undefined;
    }
    return index + 1 < this.#count ? index + 1 : undefined;
  }

  #sample(value: 0 | 1): void {
    const slot = this.#taken++ % SAMPLES;
    this.#withNeighbour += value - this.#samples[slot]!;
    this.#samples[slot] = value;
  }
}
