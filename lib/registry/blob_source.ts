/**
 * A blob in a registry as random-access bytes, by Range requests.
 *
 * The registry often redirects to a storage with a signed URL. That URL is
 * remembered, so that a read costs one round trip; when it has expired the
 * registry is asked again, once per read, and when its host fails, with the
 * next attempt.
 */

import {
  type ByteSource,
  checkRange,
  IntegrityError,
  NotFoundError,
  priorityOf,
  type ReadOptions,
  type SourceDescription,
  Urgency,
} from "../io/mod.ts";
import { RegistryError } from "./errors.ts";
import type { Descriptor } from "./manifest.ts";
import {
  brokenBody,
  checkRangeAnswer,
  rangeHeader,
  skipBytes,
  type WantedRange,
} from "./range.ts";
import { noteWait, Retrier } from "./retry.ts";
import type { Session } from "./session.ts";
import { throwIfAborted } from "./signals.ts";
import type { Exchange } from "./transport.ts";

/** What a server without ranges may make us read for nothing, in one read. */
const IGNORED_RANGE_SKIP_MAX = 16 * 1024 * 1024;
/** Ten seconds in five pauses: the shortest in which a cache before the registry may have got a blob. */
const IGNORED_RANGE_PAUSE_MS = 2_000;

/** A shorter answer counts as one that broke off: repeated after a pause, and not without end. */
const SHORT_ANSWER_MIN = 64 * 1024;

/** Statuses by which a storage says that a signed URL is no longer good. */
const EXPIRED = [400, 401, 403, 404, 410];

/** A blob read by ranges. Its bytes are not checked against the digest. */
export class RegistryBlobSource implements ByteSource {
  readonly size: number;
  readonly #session: Session;
  readonly #descriptor: Descriptor;
  /** Where the last read was answered, unless that was the registry itself. */
  #storage: URL | undefined;
  /** The first read, or the first after an expiry, until it knows where to go. */
  #asking: { done: Promise<void>; urgency: Urgency } | undefined;
  #knowsTarget = false;
  #bytesRead = 0;
  #requests = 0;

  constructor(session: Session, descriptor: Descriptor) {
    this.#session = session;
    this.#descriptor = descriptor;
    this.size = descriptor.size;
  }

  /**
   * @throws {NotFoundError} If the registry does not have the blob.
   * @throws {RegistryError} If it does not give this range.
   * @throws {IntegrityError} If the blob has another size than its descriptor.
   */
  pread(
    dst: Uint8Array,
    offset: number,
    options: ReadOptions = {},
  ): Promise<void> {
    return this.preadProgressive(dst, offset, undefined, options);
  }

  /** @throws As {@linkcode pread}. */
  async preadProgressive(
    dst: Uint8Array,
    offset: number,
    onProgress: ((available: number) => void) | undefined,
    options: ReadOptions = {},
  ): Promise<void> {
    checkRange(this.size, offset, dst.length);
    const retrier = new Retrier(this.#session.transport);
    let done = 0;
    while (done < dst.length) {
      try {
        await this.#attempt(
          dst.subarray(done),
          offset + done,
          options,
          (length) => {
            done += length;
            retrier.progressed(length);
            // What has come stays: a further attempt goes on behind it.
            onProgress?.(done);
          },
        );
      } catch (error) {
        await retrier.pause(error, options.signal);
      }
    }
  }

  /** Asks once and reads as much as comes; a server may send less than the range. */
  async #attempt(
    dst: Uint8Array,
    offset: number,
    options: ReadOptions,
    onBytes: (length: number) => void,
  ): Promise<void> {
    const { digest } = this.#descriptor;
    const wanted: WantedRange = {
      digest,
      size: this.size,
      offset,
      end: offset + dst.length,
    };
    const answer = await this.#ask(wanted, options);
    try {
      if (answer.status === 404) {
        throw new NotFoundError(
          `No blob "${digest}" in "${this.#name}"`,
        );
      }
      if (answer.status === 416) {
        throw new IntegrityError(
          `Size of blob "${digest}"`,
          `${this.size} bytes`,
          `less than ${wanted.end} bytes`,
        );
      }
      if (answer.status !== 200 && answer.status !== 206) {
        throw await this.#session.error(answer);
      }
      const skip = checkRangeAnswer(answer, wanted);
      if (skip > IGNORED_RANGE_SKIP_MAX) {
        // A pull-through cache does until it has the blob, which it fetches now.
        const error = new RegistryError(
          `Cannot read blob "${digest}" at offset ${offset}: "${answer.url.host}" ignores ranges`,
          {
            status: answer.status,
            method: "GET",
            url: answer.url,
            temporary: true,
          },
        );
        noteWait(error, IGNORED_RANGE_PAUSE_MS);
        throw error;
      }
      await skipBytes(answer, skip);
      for (let at = 0; at < dst.length;) {
        const length = await answer.read(dst.subarray(at));
        if (length === 0) {
          // A shorter range than asked for; the rest is next. Without an end to
          // it, a byte at a time would never be late.
          if (at >= SHORT_ANSWER_MIN) return;
          throw brokenBody(answer, "ended early");
        }
        at += length;
        this.#bytesRead += length;
        onBytes(length);
      }
    } finally {
      await answer.discard();
    }
  }

  async #ask(wanted: WantedRange, options: ReadOptions): Promise<Exchange> {
    for (let mayAskAgain = true;; mayAskAgain = false) {
      // One read finds the way for all that come meanwhile, unless the registry
      // has shown that it answers itself: then waiting would be a round trip.
      if (
        !this.#knowsTarget && this.#asking &&
        this.#session.redirectsBlobs !== false
      ) {
        const { done, urgency } = this.#asking;
        // One that was fetched ahead may stand behind others that were.
        const unfollow = urgency.follow(options);
        await untilSettled(done, options.signal).finally(unfollow);
      }
      const storage = this.#storage;
      if (!storage) return await this.#askRegistry(wanted, options);
      this.#requests++;
      const answer = await this.#askStorage(storage, wanted, options);
      const isMoved = answer.status >= 300 && answer.status < 400;
      if (!mayAskAgain || !(isMoved || EXPIRED.includes(answer.status))) {
        return answer;
      }
      await answer.discard();
      this.#forget(storage);
    }
  }

  /** One that fails is forgotten: the registry may know another by the next attempt. */
  async #askStorage(
    storage: URL,
    wanted: WantedRange,
    options: ReadOptions,
  ): Promise<Exchange> {
    try {
      const answer = await this.#session.transport.exchange({
        method: "GET",
        url: storage,
        headers: { range: rangeHeader(wanted) },
        isBlob: true,
        ...options,
      });
      if (answer.status >= 500) this.#forget(storage);
      return answer;
    } catch (error) {
      if (!options.signal?.aborted) this.#forget(storage);
      throw error;
    }
  }

  #forget(storage: URL): void {
    if (this.#storage !== storage) return;
    this.#storage = undefined;
    this.#knowsTarget = false;
  }

  async #askRegistry(
    wanted: WantedRange,
    options: ReadOptions,
  ): Promise<Exchange> {
    const found = Promise.withResolvers<void>();
    const isFirst = !this.#knowsTarget && !this.#asking;
    const urgency = isFirst
      ? new Urgency(priorityOf(options))
      : options.urgency;
    if (isFirst) this.#asking = { done: found.promise, urgency: urgency! };
    const unfollow = isFirst ? urgency!.follow(options) : () => {};
    try {
      this.#requests++;
      const answer = await this.#session.send({
        method: "GET",
        target: `blobs/${this.#descriptor.digest}`,
        access: "pull",
        headers: { range: rangeHeader(wanted) },
        ...options,
        urgency,
      });
      if (answer.status === 200 || answer.status === 206) {
        const base = await this.#session.transport.baseUrl(
          this.#session.registry,
        );
        const isRedirected = answer.url.origin !== base.origin;
        this.#session.redirectsBlobs = isRedirected;
        this.#storage = isRedirected ? answer.url : undefined;
        this.#knowsTarget = true;
      }
      return answer;
    } finally {
      unfollow();
      if (isFirst) {
        this.#asking = undefined;
        found.resolve();
      }
    }
  }

  get #name(): string {
    return `${this.#session.registry}/${this.#session.repository}`;
  }

  describe(): SourceDescription {
    return {
      kind: "registry blob",
      detail: {
        repository: this.#name,
        digest: this.#descriptor.digest,
        size: this.size,
        requests: this.#requests,
        bytesRead: this.#bytesRead,
      },
    };
  }

  /** Connections belong to the transport: nothing to let go. */
  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }
}

/** Waits for a promise that never rejects, unless the signal comes first. */
async function untilSettled(
  promise: Promise<void>,
  signal: AbortSignal | undefined,
): Promise<void> {
  const aborted = Promise.withResolvers<void>();
  const onAbort = () => aborted.resolve();
  signal?.addEventListener("abort", onAbort, { once: true });
  try {
    if (!signal?.aborted) await Promise.race([promise, aborted.promise]);
  } finally {
    signal?.removeEventListener("abort", onAbort);
  }
  throwIfAborted(signal);
}
