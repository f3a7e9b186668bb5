/**
 * Which slots of the data file are free.
 *
 * The data file is an array of slots of one size; an entry takes as many as it
 * needs, in one run where possible, in several where not, so that there is
 * never external fragmentation to defragment.
 */

/** Slots `[start, start + count)`. */
export interface SlotRun {
  start: number;
  count: number;
}

/** How many free runs are tried for a fit before fragments are taken. */
const FIT_TRIES = 32;

/** Hands out slots of a file that grows up to `capacity` slots. */
export class SlotAllocator {
  readonly capacity: number;
  #end: number;
  #free: SlotRun[] = [];
  #freeCount = 0;

  /**
   * @param capacity Slots in all.
   * @param used Runs taken already, sorted and disjoint, within the capacity.
   */
  constructor(capacity: number, used: readonly SlotRun[] = []) {
    this.capacity = capacity;
    let at = 0;
    for (const run of used) {
      if (run.start > at) this.release([{ start: at, count: run.start - at }]);
      at = run.start + run.count;
    }
    this.#end = at;
  }

  /** Slots that others take of the capacity; what is above it then is to be released. */
  reserved = 0;

  /** Slots of the file: behind the last one that was ever taken. */
  get end(): number {
    return this.#end;
  }

  /** Slots that are free; negative while more are used than there should be. */
  get available(): number {
    return this.#freeCount + this.capacity - this.#end - this.reserved;
  }

  /** The free runs below the end of the file: storage that can be given back. */
  get freeRuns(): readonly SlotRun[] {
    return this.#free;
  }

  /**
   * @param maxRuns Most pieces the result may have.
   * @returns Runs of `count` slots together, or undefined when there are not
   * enough free, or only in too many pieces.
   */
  allocate(count: number, maxRuns: number): SlotRun[] | undefined {
    if (count > this.available) return undefined;
    const tries = Math.min(FIT_TRIES, this.#free.length);
    for (let i = 1; i <= tries; i++) {
      const at = this.#free.length - i;
      if (this.#free[at]!.count >= count) return [this.#take(at, count)];
    }
    if (this.capacity - this.#end >= count) {
      this.#end += count;
      return [{ start: this.#end - count, count }];
    }
    this.#mergeFree();
    const fit = this.#free.findLastIndex((run) => run.count >= count);
    if (fit >= 0) return [this.#take(fit, count)];
    const runs: SlotRun[] = [];
    let missing = count;
    while (missing > 0 && runs.length < maxRuns) {
      if (this.#free.length === 0) {
        runs.push({ start: this.#end, count: missing });
        this.#end += missing;
        missing = 0;
        break;
      }
      const at = this.#free.length - 1;
      const run = this.#take(at, Math.min(missing, this.#free[at]!.count));
      runs.push(run);
      missing -= run.count;
    }
    if (missing === 0) return runs;
    this.release(runs);
    return undefined;
  }

  /** Frees runs that were allocated. */
  release(runs: readonly SlotRun[]): void {
    for (const run of runs) {
      this.#free.push({ start: run.start, count: run.count });
      this.#freeCount += run.count;
    }
  }

  /** Frees everything; the file is to be emptied. */
  clear(): void {
    this.#free = [];
    this.#freeCount = 0;
    this.#end = 0;
  }

  /** Neighbours become one run: entries that were stored in a row are mostly evicted in a row. */
  #mergeFree(): void {
    const free = this.#free.sort((a, b) => a.start - b.start);
    let last: SlotRun | undefined;
    this.#free = free.filter((run) => {
      const joins = last !== undefined && last.start + last.count === run.start;
      if (joins) last!.count += run.count;
      else last = run;
      return !joins;
    });
  }

  #take(at: number, count: number): SlotRun {
    const run = this.#free[at]!;
    const taken = { start: run.start, count };
    run.start += count;
    run.count -= count;
    this.#freeCount -= count;
    if (run.count === 0) {
      const last = this.#free.pop()!;
      if (last !== run) this.#free[at] = last;
    }
    return taken;
  }
}
