/** A small NBD client: for tests, the demo and benchmarks. */

import {
  type BlockSource,
  CancelledError,
  checkRange,
  DeadlineError,
  type Extent,
  ObdError,
  type ReadOptions,
  type SourceDescription,
  UnsupportedError,
  withDeadline,
} from "../io/mod.ts";
import { formatNbdUri, type NbdTarget, parseNbdUri } from "./address.ts";
import {
  connectAndTalk,
  type ExportInfo,
  type ListedExport,
} from "./client_handshake.ts";
import { NbdError, nbdErrorName } from "./errno.ts";
import { COMMAND, COMMAND_FLAG, TRANSMISSION } from "./protocol.ts";
import {
  type PendingReplies,
  type PendingReply,
  readReplies,
} from "./reply_reader.ts";
import { RequestSender } from "./request_sender.ts";
import type { ReceiveBuffer, SharedStream } from "./stream.ts";

/** Large reads and writes are split into requests of this size, as nbdcopy does it. */
const REQUEST_BYTES = 256 * 1024;
/** Pieces of one large read that are under way at once. */
const SPLIT_DEPTH = 8;

/** Settings of a connection. */
export interface NbdClientOptions {
  /** Ask for structured replies. Default true. */
  structured?: boolean | undefined;
  /** Ask for `base:allocation`. Default true. */
  allocation?: boolean | undefined;
  /** For the handshake, and for each request; then the connection ends. Default 60,000. */
  deadlineMs?: number | undefined;
}

interface Pending extends PendingReply {
  readonly generation: number;
  readonly started: number;
  readonly resolve: (value: void) => void;
  readonly reject: (error: unknown) => void;
}

/** One connection to one export. */
export class NbdClient implements BlockSource {
  readonly size: number;
  readonly blockSize: number;
  /** What the server said of the export. */
  readonly info: Readonly<ExportInfo>;
  readonly target: NbdTarget;
  readonly #stream: SharedStream;
  readonly #deadlineMs: number;
  /** Requests by slot; the slot is the low half of the cookie. */
  readonly #slots: (Pending | undefined)[] = [];
  readonly #freeSlots: number[] = [];
  #pendingCount = 0;
  #generation = 0;
  readonly #sender: RequestSender;
  #dead: Error | undefined;
  #disposed = false;
  #reading: Promise<void>;
  #timer: ReturnType<typeof setTimeout> | undefined;

  private constructor(
    stream: SharedStream,
    rx: ReceiveBuffer,
    target: NbdTarget,
    info: ExportInfo,
    deadlineMs: number,
  ) {
    this.#stream = stream;
    this.target = target;
    this.info = info;
    this.size = info.size;
    this.blockSize = info.preferredBlockSize;
    this.#deadlineMs = deadlineMs;
    this.#sender = new RequestSender(stream, (error) => this.#die(error));
    const replies: PendingReplies = {
      find: (cookieHi, cookieLo) => {
        const pending = this.#slots[cookieLo];
        return pending?.generation === cookieHi ? pending : undefined;
      },
      finish: (pending, slot) => this.#finish(pending as Pending, slot),
      isRead: (pending) => pending.type === COMMAND.read,
      isBlockStatus: (pending) => pending.type === COMMAND.blockStatus,
      structured: info.structured,
      allocationId: info.allocationId,
    };
    this.#reading = readReplies(rx, replies).then(
      () => this.#die(new ObdError("state", "NBD server hung up")),
      (error) => this.#die(error as Error),
    );
  }

  /**
   * Connects to an export.
   *
   * @param target A URI as of {@linkcode parseNbdUri}, or its parts.
   * @throws {NotFoundError} If the server has no such export.
   * @throws {NbdError} If the server refuses otherwise.
   * @throws {FormatError} If it does not speak the protocol.
   * @throws {DeadlineError} If the handshake takes too long.
   */
  static async connect(
    target: string | NbdTarget,
    options: NbdClientOptions = {},
  ): Promise<NbdClient> {
    const to = typeof target === "string" ? parseNbdUri(target) : target;
    const deadlineMs = options.deadlineMs ?? 60_000;
    const { stream, result } = await connectAndTalk(
      to,
      deadlineMs,
      async (talk, rx) => {
        const info = await talk.go(to.exportName, {
          structured: options.structured ?? true,
          allocation: options.allocation ?? true,
        });
        return { info, rx };
      },
    );
    const { info, rx } = result;
    return new NbdClient(stream, rx, to, info, deadlineMs);
  }

  /** The exports of a server, as it lists them. */
  static async list(
    target: string | NbdTarget,
    options: { deadlineMs?: number } = {},
  ): Promise<ListedExport[]> {
    const to = typeof target === "string" ? parseNbdUri(target) : target;
    const { stream, result } = await connectAndTalk(
      to,
      options.deadlineMs ?? 60_000,
      async (talk) => {
        const found = await talk.list();
        await talk.abort();
        return found;
      },
    );
    stream.close();
    return result;
  }

  /** Whether the server takes no writes. */
  get readOnly(): boolean {
    return this.#can(TRANSMISSION.readOnly);
  }

  /** Whether several connections see the same bytes at any time. */
  get canMultiConn(): boolean {
    return this.#can(TRANSMISSION.canMultiConn);
  }

  /**
   * Fills all of `dst`. Safe to call concurrently: requests are pipelined, and
   * those of one turn of the event loop go out in one write.
   *
   * @throws {NbdError} With the server's errno.
   */
  async pread(
    dst: Uint8Array,
    offset: number,
    options: ReadOptions = {},
  ): Promise<void> {
    checkRange(this.size, offset, dst.length);
    if (options.signal?.aborted) throw new CancelledError();
    const { length } = dst;
    if (length === 0) return;
    if (length <= REQUEST_BYTES) {
      return await this.#request(COMMAND.read, 0, offset, length, {
        dst,
        signal: options.signal,
      });
    }
    await this.#split(
      length,
      (at, count) =>
        this.#request(COMMAND.read, 0, offset + at, count, {
          dst: dst.subarray(at, at + count),
          signal: options.signal,
        }),
    );
  }

  /**
   * Reads one request's worth into `dst` with explicit flags, as tests and
   * benchmarks want it: nothing is split.
   *
   * @param options.df Ask for the answer in one piece.
   */
  readRequest(
    dst: Uint8Array,
    offset: number,
    options: { df?: boolean } = {},
  ): Promise<void> {
    const flags = options.df ? COMMAND_FLAG.df : 0;
    return this.#request(COMMAND.read, flags, offset, dst.length, { dst });
  }

  /** Writes all of `src`. */
  async pwrite(
    src: Uint8Array,
    offset: number,
    options: { fua?: boolean } = {},
  ): Promise<void> {
    checkRange(this.size, offset, src.length);
    const flags = options.fua ? COMMAND_FLAG.fua : 0;
    await this.#split(
      src.length,
      (at, count) =>
        this.#request(COMMAND.write, flags, offset + at, count, {
          src: src.subarray(at, at + count),
        }),
    );
  }

  /** Resolves when all answered writes are on stable storage. */
  flush(): Promise<void> {
    return this.#request(COMMAND.flush, 0, 0, 0, {});
  }

  trim(offset: number, length: number): Promise<void> {
    checkRange(this.size, offset, length);
    return this.#request(COMMAND.trim, 0, offset, length, {});
  }

  writeZeroes(
    offset: number,
    length: number,
    options: { noHole?: boolean } = {},
  ): Promise<void> {
    checkRange(this.size, offset, length);
    const flags = options.noHole ? COMMAND_FLAG.noHole : 0;
    return this.#request(COMMAND.writeZeroes, flags, offset, length, {});
  }

  /** Asks the server to have a range at hand. */
  cache(offset: number, length: number): Promise<void> {
    checkRange(this.size, offset, length);
    return this.#request(COMMAND.cache, 0, offset, length, {});
  }

  /**
   * What a range holds; the server may answer for its beginning only.
   *
   * @param options.reqOne Ask for the first extent alone.
   * @throws {UnsupportedError} If the server does not offer `base:allocation`.
   */
  async blockStatus(
    offset: number,
    length: number,
    options: { reqOne?: boolean } = {},
  ): Promise<Extent[]> {
    checkRange(this.size, offset, length);
    if (this.info.allocationId === undefined) {
      throw new UnsupportedError(
        "base:allocation",
        "NBD server does not offer block status",
      );
    }
    const flags = options.reqOne ? COMMAND_FLAG.reqOne : 0;
    const answer: { extents?: Extent[] } = {};
    await this.#request(COMMAND.blockStatus, flags, offset, length, { answer });
    return answer.extents!;
  }

  describe(): SourceDescription {
    return {
      kind: "nbd",
      detail: { uri: formatNbdUri(this.target), size: this.size },
    };
  }

  /** Says goodbye and closes; requests under way fail. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#disposed) {
      this.#disposed = true;
      if (!this.#dead) {
        const goodbye = this.#request(COMMAND.disconnect, 0, 0, 0, {});
        goodbye.catch(() => {});
        await withDeadline("Disconnect", 1000, () => this.#sender.written())
          .catch(() => {});
      }
      this.#die(new CancelledError("NBD connection is closed"));
    }
    await this.#reading;
  }

  #can(flag: number): boolean {
    return (this.info.flags & flag) !== 0;
  }

  /**
   * Runs `work` over pieces of at most one request, a few at once. Settles when
   * all of them have, also when one failed: each has its part of the buffer.
   */
  async #split(
    length: number,
    work: (at: number, count: number) => Promise<void>,
  ): Promise<void> {
    const most = Math.min(REQUEST_BYTES, this.info.maximumPayload);
    let next = 0;
    const lane = async () => {
      while (next < length) {
        const at = next;
        const count = Math.min(most, length - at);
        next += count;
        try {
          await work(at, count);
        } catch (error) {
          next = length;
          throw error;
        }
      }
    };
    const lanes = Math.min(SPLIT_DEPTH, Math.ceil(length / most));
    const results = await Promise.allSettled(
      Array.from({ length: lanes }, lane),
    );
    for (const r of results) if (r.status === "rejected") throw r.reason;
  }

  #request(
    type: number,
    flags: number,
    offset: number,
    length: number,
    extra: {
      dst?: Uint8Array;
      src?: Uint8Array;
      signal?: AbortSignal | undefined;
      answer?: { extents?: Extent[] };
    },
  ): Promise<void> {
    if (this.#dead) return Promise.reject(this.#dead);
    return new Promise((resolve, reject) => {
      const slot = this.#freeSlots.pop() ?? this.#slots.length;
      const { signal, answer } = extra;
      const pending: Pending = {
        type,
        offset,
        length,
        dst: extra.dst,
        receiving: false,
        coverage: undefined,
        extents: undefined,
        error: 0,
        errorMessage: "",
        generation: this.#generation,
        started: performance.now(),
        resolve: () => {
          signal?.removeEventListener("abort", onAbort);
          if (answer) answer.extents = pending.extents!;
          if (signal?.aborted) reject(new CancelledError());
          else resolve();
        },
        reject: (error) => {
          signal?.removeEventListener("abort", onAbort);
          reject(error);
        },
      };
      const onAbort = () => {
        // The reply will still come, and must be taken; but not into the
        // buffer. What is on its way into it is awaited.
        if (pending.receiving) return;
        pending.dst = undefined;
        pending.reject(new CancelledError());
      };
      signal?.addEventListener("abort", onAbort, { once: true });
      this.#generation = (this.#generation + 1) >>> 0;
      this.#slots[slot] = pending;
      this.#pendingCount++;
      this.#timer ??= setTimeout(() => this.#checkDeadline(), this.#deadlineMs);
      const { generation: cookieHi } = pending;
      this.#sender.send(
        { flags, type, cookieHi, cookieLo: slot, offset, length },
        extra.src,
      );
    });
  }

  #finish(pending: Pending, slot: number): void {
    this.#slots[slot] = undefined;
    this.#freeSlots.push(slot);
    this.#pendingCount--;
    if (this.#pendingCount === 0) {
      clearTimeout(this.#timer);
      this.#timer = undefined;
    }
    if (pending.error === 0) return pending.resolve();
    const detail = pending.errorMessage;
    const name = nbdErrorName(pending.error);
    pending.reject(
      new NbdError(
        `NBD request for ${pending.length} bytes at ${pending.offset} ` +
          `failed: ${name}` +
          (detail === "" || detail === name ? "" : `: ${detail}`),
        pending.error,
      ),
    );
  }

  /** A reply that does not come cannot be given up alone: the whole connection ends. */
  #checkDeadline(): void {
    let oldest = Infinity;
    for (const p of this.#slots) {
      if (p && p.started < oldest) oldest = p.started;
    }
    const left = oldest + this.#deadlineMs - performance.now();
    if (left <= 0) {
      this.#die(new DeadlineError("NBD request", this.#deadlineMs));
    } else this.#timer = setTimeout(() => this.#checkDeadline(), left);
  }

  #die(error: Error): void {
    if (this.#dead) return;
    this.#dead = error;
    clearTimeout(this.#timer);
    this.#sender.stop();
    this.#stream.close();
    for (const pending of this.#slots.splice(0)) {
      if (!pending) continue;
      pending.dst = undefined;
      pending.reject(error);
    }
  }
}
