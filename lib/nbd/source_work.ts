/** What the server does with a source when it must wait for it. */

import type { AcquireOptions, ByteBudget, ByteSource } from "../io/mod.ts";
import type { BufferPool } from "./buffer_pool.ts";
import type { Cookie } from "./protocol.ts";
import { layOutRead, type ReadPlan } from "./read_plan.ts";

/** A CACHE request is read in pieces of this size, so many at once. */
const CACHE_PIECE = 1024 * 1024;
const CACHE_LANES = 4;

/** Memory for waiting requests. */
export interface WorkMemory {
  readonly budget: ByteBudget;
  readonly pool: BufferPool;
}

/** A buffer that is given back once. */
export interface Lease {
  readonly buffer: Uint8Array<ArrayBuffer>;
  give(): void;
}

/** Waits for memory; "prefetch" waits behind everything else. */
export async function lease(
  memory: WorkMemory,
  length: number,
  options: AcquireOptions,
): Promise<Lease> {
  const release = await memory.budget.acquire(length, options);
  const buffer = memory.pool.take(length);
  return {
    buffer,
    give: () => {
      memory.pool.give(buffer);
      release();
    },
  };
}

/**
 * Fills `buffer` with the whole answer to a read.
 *
 * Settles only when every read of the source has: each owns its part of the
 * buffer until then, also when another failed.
 */
export async function readAnswer(
  source: ByteSource,
  plan: ReadPlan,
  cookie: Cookie,
  buffer: Uint8Array<ArrayBuffer>,
  signal: AbortSignal,
): Promise<void> {
  const view = new DataView(buffer.buffer);
  const reads: Promise<void>[] = [];
  layOutRead(plan, cookie, buffer, view, 0, (dst, offset) => {
    try {
      reads.push(source.pread(dst, offset, { signal }));
    } catch (error) {
      reads.push(Promise.reject(error));
    }
    return true;
  });
  const results = await Promise.allSettled(reads);
  for (const r of results) if (r.status === "rejected") throw r.reason;
}

/** Reads a range as prefetch and drops it, so that caches below keep it. */
export async function warmRange(
  source: ByteSource,
  offset: number,
  length: number,
  memory: WorkMemory,
  signal: AbortSignal,
): Promise<void> {
  const end = offset + length;
  let next = offset;
  const lane = async () => {
    while (next < end && !signal.aborted) {
      const at = next;
      const count = Math.min(CACHE_PIECE, end - at);
      next += count;
      const { buffer, give } = await lease(memory, count, {
        signal,
        priority: "prefetch",
      });
      try {
        const dst = buffer.subarray(0, count);
        await source.pread(dst, at, { signal, priority: "prefetch" });
      } catch (error) {
        // The request is answered with this: nobody would end the other lanes.
        next = end;
        throw error;
      } finally {
        give();
      }
    }
  };
  await Promise.all(Array.from({ length: CACHE_LANES }, lane));
}
