/**
 * What the reads of one image wait for. Counted where something is not at hand,
 * so a read from memory costs nothing; a load costs some five looks at the
 * clock.
 */

import {
  type ByteSource,
  type Extent,
  priorityOf,
  type ReadOptions,
  type SourceDescription,
  type Urgency,
} from "../io/mod.ts";

/** What a load goes through: a place in a budget, the blob's bytes, decoding and checking them. */
export type Stage = "queue" | "fetch" | "decode";

/** Seconds by stage. */
export type StageSeconds = Record<Stage, number>;

/**
 * What was brought to memory: spans, and of layers without spans the runs of
 * blocks that were fetched together.
 */
export interface LoadCounters {
  loads: number;
  /** Bytes of blobs that were read for them, from the registry or its cache. */
  storedBytes: number;
  /** Bytes that came of these. */
  bytes: number;
  /** Of all loads, also of those that failed; loads at once count each. */
  seconds: StageSeconds;
}

/** All counters of one image, since it was opened. */
export interface ReadCounters {
  /** Demand reads that were not answered at once. */
  waits: number;
  /** Their times, added up. */
  waitSeconds: number;
  /** Time in which at least one of them waited: by so much a reader could have been faster. */
  waitingSeconds: number;
  /**
   * The same by what was waited for, in equal parts of all loads that demand
   * was waiting for. "other": caches on disk, layers that are decoded from
   * their start.
   */
  waitingFor: StageSeconds & { other: number };
  /** Loads that a demand read asked for, or came to wait for. */
  demand: LoadCounters;
  /** Loads that nobody waited for: traces, neighbours, readahead. */
  ahead: LoadCounters;
}

const STAGES: readonly Stage[] = ["queue", "fetch", "decode"];

/** Counts for one image; shared by its layers. */
export class ReadStats {
  readonly #counters: ReadCounters = {
    waits: 0,
    waitSeconds: 0,
    waitingSeconds: 0,
    waitingFor: { queue: 0, fetch: 0, decode: 0, other: 0 },
    demand: newLoads(),
    ahead: newLoads(),
  };
  readonly #now: () => number;
  /** Demand reads that wait now. */
  #readers = 0;
  /** Loads that demand waits for now, by stage. */
  readonly #wanted: Record<Stage, number> = { queue: 0, fetch: 0, decode: 0 };
  /** Up to when waiting has been counted, in ms. */
  #at: number;

  /** @param now Milliseconds that never go back; for tests. */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
    this.#at = now();
  }

  /** A copy, exact to now. */
  counters(): ReadCounters {
    this.#pass();
    const { waitingFor, demand, ahead, ...counters } = this.#counters;
    const copy = (loads: LoadCounters) => ({
      ...loads,
      seconds: { ...loads.seconds },
    });
    return {
      ...counters,
      waitingFor: { ...waitingFor },
      demand: copy(demand),
      ahead: copy(ahead),
    };
  }

  /** A demand read begins to wait. @returns Ends that; to be called exactly once. */
  wait(): () => void {
    this.#pass();
    this.#readers++;
    this.#counters.waits++;
    return () => {
      this.#pass();
      this.#readers--;
    };
  }

  /** A load begins, in its queue; it counts for demand from when its urgency says so. */
  load(urgency: Urgency): LoadTimer {
    let stage: Stage = "queue";
    let since = this.#now();
    let isDemand = false;
    let storedBytes = 0;
    let ended = false;
    const seconds = { queue: 0, fetch: 0, decode: 0 };
    const leave = urgency.onHurry(() => {
      this.#pass();
      isDemand = true;
      this.#wanted[stage]++;
    });
    const change = (next: Stage | undefined) => {
      const now = this.#pass();
      seconds[stage] += (now - since) / 1000;
      since = now;
      if (isDemand) this.#wanted[stage]--;
      if (next === undefined) return;
      stage = next;
      if (isDemand) this.#wanted[stage]++;
    };
    return {
      enter: (next, bytes = 0) => {
        if (ended) return;
        storedBytes += bytes;
        change(next);
      },
      end: (bytes) => {
        if (ended) return;
        ended = true;
        leave();
        change(undefined);
        const sum = this.#counters[isDemand ? "demand" : "ahead"];
        for (const each of STAGES) sum.seconds[each] += seconds[each];
        sum.storedBytes += storedBytes;
        if (bytes === undefined) return;
        sum.loads++;
        sum.bytes += bytes;
      },
    };
  }

  /** Counts the time until now for those that waited in it. @returns Now. */
  #pass(): number {
    const now = this.#now();
    const seconds = (now - this.#at) / 1000;
    this.#at = now;
    if (this.#readers === 0) return now;
    const { waitingFor } = this.#counters;
    this.#counters.waitSeconds += this.#readers * seconds;
    this.#counters.waitingSeconds += seconds;
    const { queue, fetch, decode } = this.#wanted;
    const loads = queue + fetch + decode;
    if (loads === 0) waitingFor.other += seconds;
    else {
      for (const stage of STAGES) {
        waitingFor[stage] += seconds * this.#wanted[stage] / loads;
      }
    }
    return now;
  }
}

/** One load on its way. */
export interface LoadTimer {
  /** It goes on to a stage; `storedBytes` more of the blob are read in it. */
  enter(stage: Stage, storedBytes?: number): void;
  /** It is there, with so many bytes; undefined: it failed. Only the first call counts. */
  end(bytes?: number): void;
}

function newLoads(): LoadCounters {
  return {
    loads: 0,
    storedBytes: 0,
    bytes: 0,
    seconds: { queue: 0, fetch: 0, decode: 0 },
  };
}

/** A device whose waiting readers are counted. Borrows the device. */
export class CountedSource implements ByteSource {
  readonly size: number;
  /** The device's own: reads from memory pay for no detour. */
  readonly preadNow: (dst: Uint8Array, offset: number) => boolean;
  readonly extents: (offset: number, length: number) => Iterable<Extent>;
  readonly #inner: ByteSource;
  readonly #stats: ReadStats;

  constructor(
    inner: ByteSource & Required<Pick<ByteSource, "preadNow" | "extents">>,
    stats: ReadStats,
  ) {
    this.size = inner.size;
    this.#inner = inner;
    this.#stats = stats;
    this.preadNow = inner.preadNow.bind(inner);
    this.extents = inner.extents.bind(inner);
  }

  async pread(
    dst: Uint8Array,
    offset: number,
    options: ReadOptions = {},
  ): Promise<void> {
    if (priorityOf(options) !== "demand") {
      return await this.#inner.pread(dst, offset, options);
    }
    const end = this.#stats.wait();
    try {
      await this.#inner.pread(dst, offset, options);
    } finally {
      end();
    }
  }

  describe(): SourceDescription {
    const inner = this.#inner.describe?.();
    return { kind: "counted", ...(inner ? { inner: [inner] } : {}) };
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }
}
