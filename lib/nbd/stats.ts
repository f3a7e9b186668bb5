/** Counters of an export: plain numbers that the status API reads. */

/** Upper bounds of the latency buckets, in seconds; one more bucket holds the rest. */
export const LATENCY_BOUNDS_SECONDS: readonly number[] = [
  0.0001,
  0.00025,
  0.0005,
  0.001,
  0.0025,
  0.005,
  0.01,
  0.025,
  0.05,
  0.1,
  0.25,
  0.5,
  1,
  2.5,
  5,
  10,
  30,
  60,
];

/** What happened on an export since it was added. Live: it goes on changing. */
export interface ExportStats {
  /** Connections now. */
  connections: number;
  connectionsTotal: number;
  /** Requests that wait for their source now. */
  inFlight: number;
  reads: number;
  /** Bytes asked for by good reads. */
  readBytes: number;
  /** Reads answered at once, from memory or the page cache. */
  readsAtOnce: number;
  writes: number;
  writeBytes: number;
  flushes: number;
  trims: number;
  writeZeroes: number;
  caches: number;
  blockStatuses: number;
  /** Requests answered with an error, the client's own mistakes included. */
  errors: number;
  /** Of these, requests that passed their deadline. */
  deadlines: number;
  /** Time from a read's arrival to its answer, good or bad. */
  readLatency: LatencyHistogram;
}

/** Counts per bucket, not cumulative. */
export interface LatencyHistogram {
  readonly boundsSeconds: readonly number[];
  /** One more than there are bounds. */
  readonly counts: number[];
  sumSeconds: number;
  maxSeconds: number;
}

/** Fresh counters. */
export function newExportStats(): ExportStats {
  return {
    connections: 0,
    connectionsTotal: 0,
    inFlight: 0,
    reads: 0,
    readBytes: 0,
    readsAtOnce: 0,
    writes: 0,
    writeBytes: 0,
    flushes: 0,
    trims: 0,
    writeZeroes: 0,
    caches: 0,
    blockStatuses: 0,
    errors: 0,
    deadlines: 0,
    readLatency: {
      boundsSeconds: LATENCY_BOUNDS_SECONDS,
      counts: new Array<number>(LATENCY_BOUNDS_SECONDS.length + 1).fill(0),
      sumSeconds: 0,
      maxSeconds: 0,
    },
  };
}

/** Counts one latency. */
export function recordLatency(h: LatencyHistogram, seconds: number): void {
  h.sumSeconds += seconds;
  if (seconds > h.maxSeconds) h.maxSeconds = seconds;
  let bucket = 0;
  // Most answers fall in the first buckets, so a linear search is the fast one.
  while (
    bucket < h.boundsSeconds.length && seconds > h.boundsSeconds[bucket]!
  ) {
    bucket++;
  }
  h.counts[bucket]!++;
}
