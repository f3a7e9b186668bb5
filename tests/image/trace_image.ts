/** Small stacks whose sources note what is prefetched of them. */

import { type ByteSource, MemorySource } from "../../lib/io/mod.ts";
import { LsmtSource } from "../../lib/layers/mod.ts";
import { KIND, SegmentColumns } from "../../lib/layers/lsmt/mod.ts";
import type { LayerInfo } from "../../lib/image/mod.ts";

const SECTOR = 512;
const NONE = new SegmentColumns(0).finish();

/** A source that cannot be read, only prefetched. */
export class Prefetched implements ByteSource {
  readonly size: number;
  readonly seen: [offset: number, length: number][] = [];
  /** Awaited by every call. */
  gate: Promise<unknown> = Promise.resolve();
  failure: Error | undefined;
  running = 0;
  mostRunning = 0;

  constructor(size: number) {
    this.size = size;
  }

  pread(): Promise<void> {
    return Promise.reject(new Error("Nothing is to be read"));
  }

  async prefetch(
    offset: number,
    length: number,
    options: { signal?: AbortSignal | undefined } = {},
  ): Promise<void> {
    this.seen.push([offset, length]);
    this.mostRunning = Math.max(this.mostRunning, ++this.running);
    try {
      const stop = Promise.withResolvers<never>();
      options.signal?.addEventListener(
        "abort",
        () => stop.reject(new Error("aborted")),
      );
      await Promise.race([this.gate, stop.promise]);
      if (this.failure) throw this.failure;
    } finally {
      this.running--;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}

/** A row of a device: `length` bytes at `offset` come from `from` of the layer's target or own file. */
export interface Row {
  offset: number;
  length: number;
  from: number;
  layer?: number;
  isOwn?: boolean;
}

/** A device of one or more layers. Layer `i` has the target `targets[i]`; its own file is `data[i]`, or nothing. */
export function traceImage(
  size: number,
  rows: readonly Row[],
  targets: readonly ByteSource[],
  data: readonly ByteSource[] = [],
): { source: LsmtSource; layers: LayerInfo[] } {
  const stack = targets.map((target, layer) => {
    const columns = new SegmentColumns(rows.length);
    for (const row of rows) {
      if ((row.layer ?? 0) !== layer) continue;
      columns.push(
        row.offset / SECTOR,
        row.length / SECTOR,
        row.from / SECTOR,
        row.isOwn ? KIND.data : KIND.target,
        0,
      );
    }
    return {
      table: columns.count > 0 ? columns.finish() : NONE,
      data: data[layer] ?? new MemorySource(new Uint8Array()),
      target,
    };
  });
  return {
    source: new LsmtSource(stack, size),
    layers: targets.map((target, i) => ({
      digest: `sha256:${String(i).repeat(64)}`,
      kind: "turbo",
      integrity: "spans",
      size: target.size / 2,
    })),
  };
}
