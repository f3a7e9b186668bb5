/** Makes an input that shows a defect smaller, or at least more like its seed. */

/** Whether bytes still show the defect. */
export type StillFails = (bytes: Uint8Array<ArrayBuffer>) => Promise<boolean>;

/** Equal bytes that do not end a range of differing ones. */
const GAP = 8;

/** Where two arrays of one length differ. */
function differences(
  a: Uint8Array,
  b: Uint8Array,
): [start: number, end: number][] {
  const ranges: [number, number][] = [];
  for (let i = 0; i < a.length; i++) {
    if (a[i] === b[i]) continue;
    const last = ranges.at(-1);
    if (last && i - last[1] < GAP) last[1] = i + 1;
    else ranges.push([i, i + 1]);
  }
  return ranges;
}

/**
 * Cuts the end off while the defect stays, then gives the seed's bytes back
 * wherever that changes nothing.
 *
 * @param tries Most questions to `stillFails`.
 * @returns The smallest input found; `bytes` itself if none is smaller.
 */
export async function shrink(
  bytes: Uint8Array<ArrayBuffer>,
  seed: Uint8Array,
  stillFails: StillFails,
  tries: number,
): Promise<Uint8Array<ArrayBuffer>> {
  let best = bytes;
  let left = tries;
  const keep = async (candidate: Uint8Array<ArrayBuffer>) => {
    if (left-- <= 0 || !await stillFails(candidate)) return false;
    best = candidate;
    return true;
  };
  for (let cut = best.length >>> 1; cut > 0 && left > 0; cut >>>= 1) {
    while (cut < best.length && await keep(best.slice(0, -cut)));
  }
  const undo = (ranges: readonly (readonly [number, number])[]) => {
    const candidate = best.slice();
    for (const [start, end] of ranges) {
      candidate.set(seed.subarray(start, end), start);
    }
    return candidate;
  };
  const common = Math.min(best.length, seed.length);
  const ranges = differences(best.subarray(0, common), seed);
  // Halves first: most changes of an input have nothing to do with the defect.
  for (let size = ranges.length; size > 0 && left > 0; size >>>= 1) {
    for (let i = 0; i < ranges.length && left > 0;) {
      const group = ranges.slice(i, i + size);
      if (group.length < ranges.length && await keep(undo(group))) {
        ranges.splice(i, size);
      } else i += size;
    }
  }
  return best;
}
