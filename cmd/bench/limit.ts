/**
 * The limit: what no lazy start can beat. The service starts with everything at
 * hand, and before it does, the blocks that it touches come over the link as
 * they are stored, with nothing else and without a pause.
 */

/** See the module's comment; seconds. */
export interface Limit {
  /** The warm start of the same container: median of several. */
  warmSeconds: number;
  /** Stored size of what is touched ÷ the link's speed; 0 for a link that is not shaped. */
  transferSeconds: number;
  /** One round trip. */
  rttSeconds: number;
  totalSeconds: number;
}

/**
 * Adds it up.
 *
 * @param storedBytes What the touched blocks take, by the compression ratio of their layers.
 */
export function limitOf(options: {
  warmSeconds: number;
  storedBytes: number;
  bytesPerSecond: number | undefined;
  rttMs: number;
}): Limit {
  const { warmSeconds, storedBytes, bytesPerSecond, rttMs } = options;
  const transferSeconds = bytesPerSecond === undefined
    ? 0
    : storedBytes / bytesPerSecond;
  const rttSeconds = rttMs / 1000;
  return {
    warmSeconds,
    transferSeconds,
    rttSeconds,
    totalSeconds: warmSeconds + transferSeconds + rttSeconds,
  };
}

/** Bytes fetched for each byte wanted; undefined where nothing was. */
export function readAmplification(
  fetchedBytes: number,
  wantedBytes: number | undefined,
): number | undefined {
  return wantedBytes ? fetchedBytes / wantedBytes : undefined;
}
