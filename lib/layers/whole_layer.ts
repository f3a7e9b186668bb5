/** Learns whether readers of a layer read everything that they come to: copying, archiving, scanning. */

/** What the answer is drawn from, at least: spans that readers came to with single reads. */
const MIN_SAMPLES = 32;
/**
 * Part of these spans' bytes that must have been read. Programs that start read
 * three to seven tenths of the spans of a layer that they touch; an archiver
 * comes from two thirds, while it is in the middle of many, to all.
 */
const READ_SHARE = 0.75;
/** Bytes guessed that nobody came to yet are no more than this part of what was wanted: nor is what is fetched in vain. */
const GUESS_SHARE = 0.5;
/** Guesses after the last read: a reader that stops ends them. */
const GUESSES_PER_READ = 16;

/** What is known of a span. */
const UNTOUCHED = 0;
const GUESSED = 1;
/** First read by a stream. */
const WANTED = 2;
/** First read otherwise: counts as evidence. */
const SAMPLE = 3;

/**
 * Follows how much is read of the spans that readers come to. One that reads
 * these (nearly) whole, many of them, in whatever order, will read the rest of
 * the layer too: it is worth fetching, from the last read outwards.
 *
 * Spans that a stream came to do not count: of one large file everything is
 * read as well, and how far ahead to read there is told by `readahead.ts`.
 */
export class WholeLayerPredictor {
  readonly #sizeOf: (index: number) => number;
  readonly #maxBytes: number;
  readonly #states: Uint8Array;
  /** Bytes read of each sample, as if no byte were read twice. */
  readonly #read: Uint32Array;
  #untouched: number;
  #samples = 0;
  #sampleBytes = 0;
  #readBytes = 0;
  #wantedBytes = 0;
  /** Of guesses that nobody came to yet. */
  #guessedBytes = 0;
  #place = 0;
  #sinceRead = 0;

  /**
   * @param spans The layer's; `sizeOf` in bytes.
   * @param maxBytes Most bytes of guesses that nobody came to yet, but for one span.
   */
  constructor(
    spans: { readonly count: number; sizeOf(index: number): number },
    maxBytes: number,
  ) {
    this.#sizeOf = (index) => spans.sizeOf(index);
    this.#maxBytes = maxBytes;
    this.#states = new Uint8Array(spans.count);
    this.#read = new Uint32Array(spans.count);
    this.#untouched = spans.count;
  }

  /**
   * Takes note of a demand read of one span.
   *
   * @param length Bytes of the span that it wants.
   * @param inStream Whether it belongs to a sequential reader.
   */
  read(index: number, length: number, inStream: boolean): void {
    this.#place = index;
    this.#sinceRead = 0;
    const state = this.#states[index]!;
    if (state === WANTED) return;
    const size = this.#sizeOf(index);
    if (state !== SAMPLE) {
      this.#wantedBytes += size;
      if (state === GUESSED) this.#guessedBytes -= size;
      else this.#untouched--;
      this.#states[index] = inStream ? WANTED : SAMPLE;
      if (inStream) return;
      this.#samples++;
      this.#sampleBytes += size;
    }
    const before = this.#read[index]!;
    const after = Math.min(size, before + length);
    this.#read[index] = after;
    this.#readBytes += after - before;
  }

  /**
   * A span to read ahead, each only once; undefined where guessing does not
   * pay (any more).
   */
  next(): number | undefined {
    if (
      this.#untouched === 0 || this.#samples < MIN_SAMPLES ||
      this.#sinceRead >= GUESSES_PER_READ ||
      this.#readBytes < READ_SHARE * this.#sampleBytes ||
      this.#guessedBytes >= this.#maxBytes ||
      this.#guessedBytes >= GUESS_SHARE * this.#wantedBytes
    ) return undefined;
    const index = this.#nearest();
    this.#guessedBytes += this.#sizeOf(index);
    this.#states[index] = GUESSED;
    this.#untouched--;
    this.#sinceRead++;
    return index;
  }

  /** The untouched span that is nearest to the last read; there is one. */
  #nearest(): number {
    const states = this.#states;
    for (let distance = 1;; distance++) {
      const after = this.#place + distance;
      if (states[after] === UNTOUCHED) return after;
      const before = this.#place - distance;
      if (states[before] === UNTOUCHED) return before;
    }
  }
}
