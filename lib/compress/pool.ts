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
  type CodecResult,
  type PostedSpan,
  type StreamMessage,
} from "./codec_worker.ts";
import { unpackError } from "./worker_errors.ts";
import type { ZstdSpans } from "./zstd_spans.ts";

/** From a job's announcement to the start of a thread for it. */
const WARM_DELAY_MS = 2;

/** Where a job may wait and who may call it off. */
export interface JobOptions extends Urgent {
  /** Rejects with `CancelledError`; a job that already runs is left to end by itself. */
  signal?: AbortSignal | undefined;
  /**
   * Called once, when no thread looks at the job's memory any more: at its end,
   * or somewhat after it was called off. Never, if its thread had to be ended:
   * nobody knows when that stops.
   */
  onFree?: (() => void) | undefined;
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

/** A span that is decoded while its input arrives; see {@linkcode CodecPool.streamSpan}. */
export interface ArrivingSpan {
  /** What {@linkcode CodecPool.inflateSpan} gives; settles once all input is there, or fails before. */
  readonly bytes: Promise<Uint8Array>;
  /** Says how many bytes of the input are there; they must not change any more. */
  advance(available: number): void;
  /** Lets go of it, if it has not ended; `bytes` rejects with `CancelledError`. The thread may look at the input until `onFree`. */
  drop(): void;
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

interface Stream {
  output: Uint8Array | undefined;
  onFree: (() => void) | undefined;
  resolve(bytes: Uint8Array): void;
  reject(error: unknown): void;
  /** Runs once all input is there. */
  timer: ReturnType<typeof setTimeout> | undefined;
}

interface Member {
  worker: Worker;
  job: Job | undefined;
  streams: Map<number, Stream>;
  /** Streams that were called off, and that the thread has not let go of; what to call then. */
  dropped: Map<number, (() => void) | undefined>;
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
    return this.#run({ kind: "inflate", ...postedSpan(job) }, job);
  }

  /**
   * Decodes a span while its input arrives, so that little is left to do when
   * all of it is there. For spans that somebody waits for: the thread also does
   * other jobs meanwhile.
   *
   * @param job Its input in shared memory, which stays the thread's until
   * `bytes` is settled, or `onFree` is called where it was called off.
   * @returns Undefined when no thread is free for it: to be decoded by
   * {@linkcode inflateSpan} later.
   */
  streamSpan(job: SpanJob): ArrivingSpan | undefined {
    const { signal } = job;
    const member = signal?.aborted ? undefined : this.#freeForStream();
    if (!member) return undefined;
    const id = this.#nextId++;
    const post = (message: StreamMessage) => member.worker.postMessage(message);
    const { promise, resolve, reject } = Promise.withResolvers<Uint8Array>();
    const drop = () => {
      if (!this.#leave(member, id)) return;
      member.dropped.set(id, job.onFree);
      post({ kind: "drop", stream: id });
      reject(new CancelledError());
    };
    signal?.addEventListener("abort", drop, { once: true });
    // Whoever lets go of it need not look at how it ended.
    promise.catch(() => {}).finally(() =>
      signal?.removeEventListener("abort", drop)
    );
    const stream: Stream = {
      output: job.output,
      onFree: job.onFree,
      resolve,
      reject,
      timer: undefined,
    };
    member.streams.set(id, stream);
    post({ kind: "begin", stream: id, span: postedSpan(job) });
    return {
      bytes: promise,
      drop,
      advance: (available) => {
        if (!member.streams.has(id)) return;
        post({ kind: "advance", stream: id, available });
        if (available < job.input.length || stream.timer !== undefined) return;
        stream.timer = this.#endLater(member);
      },
    };
  }

  #freeForStream(): Member | undefined {
    if (this.#disposed) return undefined;
    const idle = this.#idle.findLast((member) => member.streams.size === 0);
    if (idle || this.#members.size >= this.#threads) return idle;
    const member = this.#start();
    this.#rest(member);
    return member;
  }

  /** Takes a stream off its thread's list. @returns Undefined when it had ended. */
  #leave(member: Member, id: number): Stream | undefined {
    const stream = member.streams.get(id);
    if (!stream) return undefined;
    clearTimeout(stream.timer);
    member.streams.delete(id);
    return stream;
  }

  #endLater(member: Member): ReturnType<typeof setTimeout> {
    return setTimeout(() => {
      this.#end(member, new DeadlineError("Codec job", this.#jobTimeoutMs));
      this.#pump();
    }, this.#jobTimeoutMs);
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
    for (let job; (job = this.#queue.shift());) {
      job.options.onFree?.();
      job.reject(gone);
    }
    for (const member of [...this.#members]) this.#end(member, gone);
  }

  #run(body: JobBody, options: JobOptions): Promise<Uint8Array> {
    const { signal } = options;
    if (this.#disposed || signal?.aborted) {
      options.onFree?.();
      return Promise.reject(
        new CancelledError(
          this.#disposed ? "Codec pool was closed" : undefined,
        ),
      );
    }
    return new Promise((resolve, reject) => {
      const onAbort = () => {
        // One that runs already is left to end by itself.
        if (leave()) options.onFree?.();
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
      let member = this.#takeIdle();
      if (member === undefined) {
        if (this.#members.size >= this.#threads) return;
        member = this.#start();
      }
      this.#give(member, this.#queue.shift()!);
    }
  }

  /** An idle thread; rather one without a span that arrives. */
  #takeIdle(): Member | undefined {
    const at = this.#idle.findLastIndex((member) => member.streams.size === 0);
    return at < 0 ? this.#idle.pop() : this.#idle.splice(at, 1)[0];
  }

  #start(): Member {
    const worker = startWorker(CODEC_WORKER_URL, CODEC_ROLE);
    const member: Member = {
      worker,
      job: undefined,
      streams: new Map(),
      dropped: new Map(),
      timer: undefined,
    };
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
    member.timer = this.#endLater(member);
    member.worker.postMessage({
      ...job.body,
      id: this.#nextId++,
      isAhead: priorityOf(job.options) === "prefetch",
    });
  }

  #finish(member: Member, reply: CodecReply): void {
    if ("stream" in reply) {
      const { stream: id } = reply;
      const stream = this.#leave(member, id);
      (stream?.onFree ?? member.dropped.get(id))?.();
      member.dropped.delete(id);
      if (!("isDropped" in reply)) settle(stream, reply);
      return;
    }
    const job = member.job;
    clearTimeout(member.timer);
    member.job = undefined;
    this.#rest(member);
    if (job) {
      job.options.onFree?.();
      const output = job.body.kind === "inflate" ? job.body.output : undefined;
      settle({ ...job, output }, reply);
    }
    this.#pump();
  }

  /** Has a thread without a job wait for the next one, for a while. */
  #rest(member: Member): void {
    this.#idle.push(member);
    this.#armIdleTimer(member);
  }

  #armIdleTimer(member: Member): void {
    member.timer = setTimeout(() => {
      if (member.streams.size > 0) this.#armIdleTimer(member);
      else this.#end(member);
    }, this.#idleMs);
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
    for (const id of [...member.streams.keys()]) {
      this.#leave(member, id)?.reject(error);
    }
  }
}

function postedSpan(job: SpanJob): PostedSpan {
  return {
    input: job.input,
    bits: job.bits,
    window: alone(job.window),
    windowIsZlib: job.windowIsZlib ?? false,
    length: job.length,
    sha256: job.sha256 && alone(job.sha256),
    output: job.output,
  };
}

/** Passes a result on to whoever waits, if anybody still does. */
function settle(
  waiting: Pick<Stream, "output" | "resolve" | "reject"> | undefined,
  result: CodecResult,
): void {
  if ("error" in result) waiting?.reject(unpackError(result.error));
  // With an output, the same memory came back behind another object.
  else waiting?.resolve(waiting.output ?? result.bytes);
}

/**
 * A part of a larger buffer as a buffer of its own: posting a view copies all
 * of its buffer, and windows and digests lie in the tables of a whole layer.
 */
function alone(view: Uint8Array): Uint8Array {
  return view.length < view.buffer.byteLength ? view.slice() : view;
}
