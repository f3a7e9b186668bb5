/**
 * Threads that compress ZFile blocks. A block's stored form depends on its own
 * bytes alone, so the file is the same whatever the number of threads.
 */

import { unpackError } from "../compress/mod.ts";
import { CancelledError, ObdError, startWorker } from "../io/mod.ts";
import type { BlockCodec } from "./format.ts";
import {
  PACK_ROLE,
  PACK_WORKER_URL,
  type PackJob,
  type PackReply,
} from "./pack_worker.ts";
import type { PackedBlocks } from "./pack_blocks.ts";

/** Packed blocks, and the memory of their content back. */
export interface PackedBatch extends PackedBlocks {
  content: ArrayBuffer;
}

interface Waiting {
  resolve(batch: PackedBatch): void;
  reject(error: unknown): void;
}

interface Member {
  worker: Worker;
  /** In the order of the jobs sent, which is that of the replies. */
  jobs: Waiting[];
}

/** A fixed number of threads, started with the first jobs, ended by disposing. */
export class BlockPacker implements Disposable {
  /** Jobs that keep all threads busy. */
  readonly depth: number;
  readonly #threads: number;
  readonly #members: Member[] = [];
  #error: ObdError | undefined;

  /** @param threads At least 1. */
  constructor(threads: number) {
    this.#threads = Math.max(1, threads);
    this.depth = this.#threads + 1;
  }

  /**
   * Packs the first `length` bytes of `content` into `room`. Both are handed
   * over and come back with the result, to be used again.
   *
   * @param room Of at least `packedRoom` bytes.
   */
  pack(
    content: ArrayBuffer,
    room: ArrayBuffer,
    length: number,
    blockSize: number,
    codec: BlockCodec,
  ): Promise<PackedBatch> {
    if (this.#error) return Promise.reject(this.#error);
    const member = this.#pick();
    return new Promise((resolve, reject) => {
      member.jobs.push({ resolve, reject });
      const job: PackJob = { content, room, length, blockSize, codec };
      member.worker.postMessage(job, [content, room]);
    });
  }

  /** Fails what is under way and ends the threads. */
  [Symbol.dispose](): void {
    this.#fail(new CancelledError("Block packer was closed"));
  }

  /** The thread with the least to do. */
  #pick(): Member {
    const least = this.#members.reduce<Member | undefined>(
      (best, m) => best && best.jobs.length <= m.jobs.length ? best : m,
      undefined,
    );
    const isFull = this.#members.length === this.#threads;
    if (least && (isFull || least.jobs.length === 0)) return least;
    return this.#start();
  }

  #start(): Member {
    const worker = startWorker(PACK_WORKER_URL, PACK_ROLE);
    const member: Member = { worker, jobs: [] };
    worker.onmessage = ({ data }: MessageEvent<PackReply>) => {
      const job = member.jobs.shift();
      if ("error" in data) job?.reject(unpackError(data.error));
      else job?.resolve(data.batch);
    };
    worker.onerror = (event) => {
      event.preventDefault();
      this.#fail(
        new ObdError("state", `Compression worker failed: ${event.message}`),
      );
    };
    this.#members.push(member);
    return member;
  }

  #fail(error: ObdError): void {
    this.#error ??= error;
    for (const { worker, jobs } of this.#members.splice(0)) {
      worker.terminate();
      for (const job of jobs) job.reject(this.#error);
    }
  }
}
