/**
 * A bounded pool of threads for work that would stall the event loop.
 *
 * Workers start with the first job and end when nothing came for a while, so an
 * idle server stays small. A crashed worker fails the job it had and is
 * replaced.
 */

import {
  CancelledError,
  DeadlineError,
  ObdError,
  priorityOf,
  startWorker,
  UrgencyQueue,
  type Urgent,
} from "../io/mod.ts";
import {
  CODEC_ROLE,
  CODEC_WORKER_URL,
  type CodecJob,
  type CodecReply,
} from "./codec_worker.ts";
import { unpackError } from "./worker_errors.ts";
import type { ZstdSpans } from "./zstd_spans.ts";

/** From a job's announcement to the start of a thread for it. */
const WARM_DELAY_MS = 2;

/** Where a job may wait and who may call it off. */
export interface JobOptions extends Urgent {
  /** Rejects with `CancelledError`; a job that already runs is left to end by itself. */
  signal?: AbortSignal | undefined;
}

/** One span to decode. */
export interface SpanJob extends JobOptions {
  /** As in `InflateRequest`. Copied to the worker, unless it is shared memory. */
  input: Uint8Array;
  bits: number;
  window: Uint8Array;
  /** Whether `window` is a zlib stream of the window (as `gzip.meta` keeps it). */
  windowIsZlib?: boolean | undefined;
  /** Bytes of the span. */
  length: number;
  /** The span's SHA-256, checked in the worker before the bytes come back. */
  sha256?: Uint8Array | undefined;
  /** Shared memory of `length` bytes to decode into; then nothing is copied or allocated. */
  output?: Uint8Array<SharedArrayBuffer> | undefined;
}

/** Spans that start with a zstd frame; the input is copied, unless it is shared memory. */
export interface ZstdJob extends JobOptions, ZstdSpans {}

/** Options of {@linkcode CodecPool}. */
export interface CodecPoolOptions {
  /** Most threads at once; at least 1. Default: the machine's cores. */
  threads?: number | undefined;
  /** Milliseconds without a job after which a worker ends. */
  idleMs?: number | undefined;
  /** Milliseconds that a job may run. A span takes a few; this only ends a hang. */
  jobTimeoutMs?: number | undefined;
}

type JobBody = CodecJob extends infer J
  ? J extends CodecJob ? Omit<J, "id" | "isAhead"> : never
  : never;

interface Job {
  body: JobBody;
  options: JobOptions;
  resolve(bytes: Uint8Array): void;
  reject(error: unknown): void;
}

interface Member {
  worker: Worker;
  job: Job | undefined;
  timer: ReturnType<typeof setTimeout> | undefined;
}

/** See the module comment. */
export class CodecPool implements Disposable {
  readonly #threads: number;
  readonly #idleMs: number;
  readonly #jobTimeoutMs: number;
  readonly #members = new Set<Member>();
  readonly #idle: Member[] = [];
  readonly #queue = new UrgencyQueue<Job>();
  #warmTimer: ReturnType<typeof setTimeout> | undefined;
  #nextId = 0;
  #disposed = false;

  constructor(options: CodecPoolOptions = {}) {
    this.#threads = Math.max(
      1,
      options.threads ?? navigator.hardwareConcurrency,
    );
    this.#idleMs = options.idleMs ?? 10_000;
    this.#jobTimeoutMs = options.jobTimeoutMs ?? 60_000;
  }

  /** Running threads. */
  get size(): number {
    return this.#members.size;
  }

  /**
   * Says that a job will come as soon as its input has: a thread is started
   * meanwhile if none is idle. Starting one holds the calling thread for some
   * milliseconds, so it is done when what asks for the input is on its way.
   */
  expectJob(): void {
    if (!this.#mayWarm || this.#warmTimer !== undefined) return;
    this.#warmTimer = setTimeout(() => {
      this.#warmTimer = undefined;
      if (this.#mayWarm) this.#rest(this.#start());
    }, WARM_DELAY_MS);
  }

  get #mayWarm(): boolean {
    return !this.#disposed && this.#idle.length === 0 &&
      this.#members.size < this.#threads;
  }

  /**
   * Decodes a span.
   *
   * @returns Its bytes: `job.output`, or a new array that is the caller's.
   * @throws {FormatError} If the input is malformed or too short.
   * @throws {IntegrityError} If the bytes have another SHA-256.
   */
  inflateSpan(job: SpanJob): Promise<Uint8Array> {
    return this.#run({
      kind: "inflate",
      input: job.input,
      bits: job.bits,
      window: alone(job.window),
      windowIsZlib: job.windowIsZlib ?? false,
      length: job.length,
      sha256: job.sha256 && alone(job.sha256),
      output: job.output,
    }, job);
  }

  /**
   * Decodes consecutive spans of a zstd blob and checks them.
   *
   * @returns Their bytes back to back, the caller's.
   * @throws {FormatError} If the input is malformed or too short.
   * @throws {IntegrityError} If a span has another SHA-256.
   */
  decodeZstd(job: ZstdJob): Promise<Uint8Array> {
    const { input, sizes, sha256 } = job;
    const length = sizes.reduce((sum, size) => sum + size, 0);
    return this.#run(
      { kind: "zstd", request: { input, sizes, sha256 }, length },
      job,
    );
  }

  /** SHA-256 of `input`: 32 bytes. */
  sha256(input: Uint8Array, options: JobOptions = {}): Promise<Uint8Array> {
    return this.#run({ kind: "sha256", input }, options);
  }

  /** Ends the worker that takes this job as a defect would; for tests. */
  crashForTest(): Promise<Uint8Array> {
    return this.#run({ kind: "crash" }, {});
  }

  /** Fails what is queued or running and ends all threads. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    clearTimeout(this.#warmTimer);
    const gone = new CancelledError("Codec pool was closed");
    for (let job; (job = this.#queue.shift());) job.reject(gone);
    for (const member of [...this.#members]) this.#end(member, gone);
  }

  #run(body: JobBody, options: JobOptions): Promise<Uint8Array> {
    const { signal } = options;
    if (this.#disposed) {
      return Promise.reject(new CancelledError("Codec pool was closed"));
    }
    if (signal?.aborted) return Promise.reject(new CancelledError());
    return new Promise((resolve, reject) => {
      const onAbort = () => {
        leave();
        reject(new CancelledError());
      };
      const settle = () => signal?.removeEventListener("abort", onAbort);
      const job: Job = {
        body,
        options,
        resolve: (bytes) => (settle(), resolve(bytes)),
        reject: (error) => (settle(), reject(error)),
      };
      signal?.addEventListener("abort", onAbort, { once: true });
      const leave = this.#queue.push(job, options);
      this.#pump();
    });
  }

  /** Gives waiting jobs to idle workers, starting more up to the bound. */
  #pump(): void {
    while (this.#queue.length > 0) {
      let member = this.#idle.pop();
      if (member === undefined) {
        if (this.#members.size >= this.#threads) return;
        member = this.#start();
      }
      this.#give(member, this.#queue.shift()!);
    }
  }

  #start(): Member {
    const worker = startWorker(CODEC_WORKER_URL, CODEC_ROLE);
    const member: Member = { worker, job: undefined, timer: undefined };
    worker.onmessage = (event: MessageEvent<CodecReply>) => {
      this.#finish(member, event.data);
    };
    worker.onerror = (event) => {
      event.preventDefault();
      this.#end(
        member,
        new ObdError("state", `Codec worker failed: ${event.message}`),
      );
      this.#pump();
    };
    this.#members.add(member);
    return member;
  }

  #give(member: Member, job: Job): void {
    clearTimeout(member.timer);
    member.job = job;
    member.timer = setTimeout(() => {
      this.#end(member, new DeadlineError("Codec job", this.#jobTimeoutMs));
      this.#pump();
    }, this.#jobTimeoutMs);
    member.worker.postMessage({
      ...job.body,
      id: this.#nextId++,
      isAhead: priorityOf(job.options) === "prefetch",
    });
  }

  #finish(member: Member, reply: CodecReply): void {
    const job = member.job;
    clearTimeout(member.timer);
    member.job = undefined;
    this.#rest(member);
    if (job) {
      if ("error" in reply) job.reject(unpackError(reply.error));
      else if (job.body.kind === "inflate" && job.body.output !== undefined) {
        // The same memory came back behind another object.
        job.resolve(job.body.output);
      } else job.resolve(reply.bytes);
    }
    this.#pump();
  }

  /** Has a thread without a job wait for the next one, for a while. */
  #rest(member: Member): void {
    this.#idle.push(member);
    member.timer = setTimeout(() => this.#end(member), this.#idleMs);
    Deno.unrefTimer(member.timer as unknown as number);
  }

  #end(member: Member, error?: ObdError): void {
    clearTimeout(member.timer);
    member.worker.terminate();
    this.#members.delete(member);
    const at = this.#idle.indexOf(member);
    if (at >= 0) this.#idle.splice(at, 1);
    member.job?.reject(error);
    member.job = undefined;
  }
}

/**
 * A part of a larger buffer as a buffer of its own: posting a view copies all
 * of its buffer, and windows and digests lie in the tables of a whole layer.
 */
function alone(view: Uint8Array): Uint8Array {
  return view.length < view.buffer.byteLength ? view.slice() : view;
}
