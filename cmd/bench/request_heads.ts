/** Which bytes of which blobs clients ask a registry for, out of the heads of their requests. */

/** Bytes of a request's head that are looked at. */
const HEAD_MAX = 8 * 1024;
/** Ranges kept of one blob: beyond that the closest neighbours become one. */
const RANGES_MAX = 4096;

/** What was asked for of one blob. */
export interface BlobTraffic {
  digest: string;
  /** `[start, end)` in bytes, ascending without overlap; the end is null for "to its end". */
  ranges: [start: number, end: number | null][];
}

/** Collects ranges by blob. */
export class RequestHeads {
  readonly #ranges = new Map<string, [number, number][]>();

  /**
   * Takes note of a piece that a client sent.
   *
   * @returns Whether it begins a request.
   */
  note(piece: Uint8Array): boolean {
    const first = piece[0];
    // G, H, P: no other method is asked for here, and pieces of bodies are rare.
    if (first !== 0x47 && first !== 0x48 && first !== 0x50) return false;
    const head = latin1(piece.subarray(0, HEAD_MAX));
    const line = /^(GET|HEAD|POST|PUT|PATCH) (\S+) HTTP\/1\.[01]\r\n/.exec(
      head,
    );
    if (!line) return false;
    const digest = /\/blobs\/(sha256:[0-9a-f]{64})(?:\?|$)/.exec(line[2]!)?.[1];
    if (line[1] !== "GET" || digest === undefined) return true;
    const range = /\r\nrange: *bytes=(\d{1,15})-(\d{0,15})\r\n/i.exec(head);
    const start = range ? Number(range[1]) : 0;
    const end = range?.[2] ? Number(range[2]) + 1 : Infinity;
    const ranges = this.#ranges.get(digest) ?? [];
    this.#ranges.set(digest, ranges);
    ranges.push([start, end]);
    if (ranges.length >= 2 * RANGES_MAX) {
      this.#ranges.set(digest, joined(ranges));
    }
    return true;
  }

  /** All blobs, in the order of their first requests. */
  blobs(): BlobTraffic[] {
    return [...this.#ranges].map(([digest, ranges]) => ({
      digest,
      ranges: joined(ranges).map((
        [start, end],
      ) => [start, end === Infinity ? null : end]),
    }));
  }
}

/** In order, what meets or overlaps as one, at most {@linkcode RANGES_MAX}. */
function joined(ranges: readonly [number, number][]): [number, number][] {
  const sorted = [...ranges].sort((a, b) => a[0] - b[0]);
  let joinable = 0;
  for (;;) {
    const out: [number, number][] = [];
    for (const [start, end] of sorted) {
      const last = out.at(-1);
      if (last && start <= last[1] + joinable) {
        last[1] = Math.max(last[1], end);
      } else out.push([start, end]);
    }
    if (out.length <= RANGES_MAX) return out;
    joinable = joinable === 0 ? 4096 : joinable * 4;
  }
}

function latin1(bytes: Uint8Array): string {
  return Array.from(bytes, (b) => String.fromCharCode(b)).join("");
}
