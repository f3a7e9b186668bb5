/**
 * Pushing a blob (distribution-spec §Pushing Blobs): mount it from another
 * repository, else upload it. Small blobs go in one PUT. Large ones go as one
 * streamed PATCH, which is what `docker push` sends and so what every registry
 * takes; after a break the upload goes on in pieces of known length where the
 * registry tells how far it got, and starts over where it does not.
 */

import { IntegrityError } from "../io/mod.ts";
import { DigestVerifier } from "./digest.ts";
import { RegistryError } from "./errors.ts";
import type { RequestBody } from "./http.ts";
import type { Descriptor } from "./manifest.ts";
import { brokenBody } from "./range.ts";
import type { BlobContent, PushBlobOptions, PushResult } from "./repository.ts";
import { isTemporary, Retrier } from "./retry.ts";
import type { Session } from "./session.ts";
import { throwIfAborted } from "./signals.ts";
import type { Exchange } from "./transport.ts";

/** Blobs up to this size are sent whole from memory. */
const SMALL_BLOB_SIZE_MAX = 4 * 1024 * 1024;
/** Size of pieces after a break; more than the 5 MiB that some storages ask for at least. */
const PIECE_SIZE = 16 * 1024 * 1024;
const MOUNT_CANDIDATES_MAX = 4;
/** How often an upload may turn out to be in another state than expected. */
const LOSSES_MAX = 3;
/** How often one may begin anew: what is sent again each time is no progress. */
const RESTARTS_MAX = 8;

/** Uploads or mounts a blob that is not there yet. */
export async function uploadBlob(
  session: Session,
  descriptor: Descriptor,
  content: BlobContent,
  options: PushBlobOptions,
): Promise<PushResult> {
  const candidates = (options.mountFrom ?? [])
    .filter((from) => from !== session.repository)
    .slice(0, MOUNT_CANDIDATES_MAX);
  let location: URL | undefined;
  for (const from of candidates) {
    const result = await tryMount(session, descriptor, from, options);
    if (result === "mounted") return result;
    location = result ?? location;
  }
  await new Upload(session, descriptor, content, options, location).run();
  return "uploaded";
}

/** "mounted", or the upload that the registry opened instead, or nothing. */
async function tryMount(
  session: Session,
  descriptor: Descriptor,
  from: string,
  options: PushBlobOptions,
): Promise<"mounted" | URL | undefined> {
  const query = new URLSearchParams({ mount: descriptor.digest, from });
  try {
    return await session.request(
      {
        method: "POST",
        target: `blobs/uploads/?${query}`,
        access: "push",
        scopes: [`repository:${from}:pull`],
        body: new Uint8Array(0),
        signal: options.signal,
      },
      [201, 202],
      async (answer) =>
        answer.status === 201
          ? "mounted"
          : await uploadLocation(session, answer),
    );
  } catch (error) {
    // No right to read there, or no mounts at all: upload. So where it fails
    // for another reason, which is the upload's too, or the mount's alone.
    if (error instanceof RegistryError || isTemporary(error)) return undefined;
    throw error;
  }
}

/** Where an upload goes on. Registries behind a TLS proxy may write "http:" for their own name. */
async function uploadLocation(
  session: Session,
  answer: Exchange,
): Promise<URL> {
  const header = answer.headers.get("location");
  const next = header === null ? null : URL.parse(header, answer.url);
  if (
    next?.protocol === "http:" && answer.url.protocol === "https:" &&
    next.hostname === answer.url.hostname
  ) {
    return new URL(`${next.pathname}${next.search}`, answer.url);
  }
  return await session.checkHop(answer, header);
}

/** One upload with its retries. */
class Upload {
  readonly #session: Session;
  readonly #descriptor: Descriptor;
  readonly #content: BlobContent;
  readonly #options: PushBlobOptions;
  readonly #retrier: Retrier;
  readonly #verifier: DigestVerifier;
  #location: URL | undefined;
  /** Bytes that the registry has. */
  #offset = 0;
  #inPieces = false;
  #losses = 0;
  #restarts = 0;

  constructor(
    session: Session,
    descriptor: Descriptor,
    content: BlobContent,
    options: PushBlobOptions,
    location: URL | undefined,
  ) {
    this.#session = session;
    this.#descriptor = descriptor;
    this.#content = content;
    this.#options = options;
    this.#location = location;
    this.#retrier = new Retrier(session.transport);
    this.#verifier = new DigestVerifier(
      `content of blob "${descriptor.digest}"`,
      descriptor.digest,
      descriptor.size,
    );
  }

  async run(): Promise<void> {
    for (let attempt = 0;; attempt++) {
      try {
        // The answer to a commit may have been lost.
        if (attempt > 0 && await this.#isThere()) return;
        this.#location ??= await this.#start();
        if (this.#descriptor.size <= SMALL_BLOB_SIZE_MAX) {
          await this.#sendWhole();
        } else if (this.#inPieces) await this.#sendPieces();
        else await this.#sendStream();
        return;
      } catch (error) {
        await this.#recover(error);
      }
    }
  }

  /** @throws {unknown} `error`, if another attempt is of no use. */
  async #recover(error: unknown): Promise<void> {
    const status = error instanceof RegistryError ? error.status : undefined;
    const wantsLength = status === 411 || status === 413;
    if (wantsLength && !this.#inPieces) {
      this.#restart();
      this.#inPieces = true;
      return;
    }
    // The registry's state differs from ours: the upload was forgotten, or has
    // bytes twice because the runtime sent a request again by itself when a
    // kept connection broke. The content was checked here, so it is no reason.
    const isLost = this.#location !== undefined &&
      (status === 400 || status === 404 || status === 416) &&
      this.#losses++ < LOSSES_MAX;
    await this.#retrier.pause(
      isLost ? brokenUpload(error as RegistryError, this.#location!) : error,
      this.#options.signal,
    );
    if (status === 400) this.#location = undefined;
    const mayResume = this.#descriptor.size > SMALL_BLOB_SIZE_MAX &&
      this.#location !== undefined;
    if (mayResume && await this.#resume()) return;
    if (this.#restarts++ === RESTARTS_MAX) throw error;
    this.#restart();
  }

  #restart(): void {
    this.#location = undefined;
    this.#offset = 0;
  }

  /**
   * Asks how far the upload got (§Pushing a blob in chunks).
   *
   * @returns False if it has to begin anew.
   */
  async #resume(): Promise<boolean> {
    try {
      const offset = await this.#session.once(
        {
          method: "GET",
          target: this.#location!,
          access: "push",
          signal: this.#options.signal,
        },
        [204],
        async (answer) => {
          this.#location = await uploadLocation(this.#session, answer)
            .catch(() => this.#location);
          return receivedBytes(answer);
        },
      );
      if (offset > 0 && offset <= this.#descriptor.size) {
        this.#retrier.progressed(Math.max(0, offset - this.#offset));
        this.#offset = offset;
        this.#inPieces = true;
        return true;
      }
    } catch (error) {
      if (!(error instanceof RegistryError) && !isTemporary(error)) throw error;
    }
    return false;
  }

  #isThere(): Promise<boolean> {
    const { digest } = this.#descriptor;
    return isSurelyThere(this.#session, digest, this.#options);
  }

  #start(): Promise<URL> {
    return this.#session.once(
      {
        method: "POST",
        target: "blobs/uploads/",
        access: "push",
        body: new Uint8Array(0),
        signal: this.#options.signal,
      },
      [202],
      (answer) => uploadLocation(this.#session, answer),
    );
  }

  async #sendWhole(): Promise<void> {
    const whole = new Uint8Array(this.#descriptor.size);
    let at = 0;
    for await (const piece of this.#read(0)) {
      whole.set(piece, at);
      at += piece.length;
    }
    await this.#commit(whole);
  }

  async #sendStream(): Promise<void> {
    await this.#patch(() => this.#read(0));
    await this.#commit(new Uint8Array(0));
  }

  async #sendPieces(): Promise<void> {
    const { size } = this.#descriptor;
    const buffer = new Uint8Array(Math.min(PIECE_SIZE, size));
    let used = 0;
    for await (const piece of this.#read(this.#offset)) {
      for (let at = 0; at < piece.length;) {
        const part = piece.subarray(at, at + buffer.length - used);
        buffer.set(part, used);
        used += part.length;
        at += part.length;
        if (used < buffer.length && this.#offset + used < size) continue;
        const first = this.#offset;
        await this.#patch(buffer.subarray(0, used), {
          "content-range": `${first}-${first + used - 1}`,
        });
        used = 0;
      }
    }
    await this.#commit(new Uint8Array(0));
  }

  async #patch(
    body: RequestBody,
    headers: Record<string, string> = {},
  ): Promise<void> {
    const first = this.#offset;
    const length = body instanceof Uint8Array
      ? body.length
      : this.#descriptor.size - first;
    await this.#session.once(
      {
        method: "PATCH",
        target: this.#location!,
        access: "push",
        headers: { "content-type": "application/octet-stream", ...headers },
        body,
        isUpload: true,
        signal: this.#options.signal,
      },
      [202, 204],
      async (answer) => {
        this.#location = await uploadLocation(this.#session, answer);
        const got = answer.headers.has("range")
          ? receivedBytes(answer)
          : first + length;
        if (got !== first + length) {
          this.#offset = got;
          throw brokenBody(answer, `was taken up to byte ${got} only`);
        }
      },
    );
    this.#offset = first + length;
    this.#retrier.progressed(length);
    this.#options.onProgress?.(this.#offset);
  }

  async #commit(body: Uint8Array<ArrayBuffer>): Promise<void> {
    const { digest } = this.#descriptor;
    const target = new URL(this.#location!);
    // Appended as text: the rest of the query is the registry's own and stays as it is.
    target.search = `${target.search ? `${target.search}&` : "?"}digest=${
      encodeURIComponent(digest)
    }`;
    await this.#session.once(
      {
        method: "PUT",
        target,
        access: "push",
        headers: { "content-type": "application/octet-stream" },
        body,
        isUpload: true,
        signal: this.#options.signal,
      },
      [201, 204],
      (answer) => {
        const stored = answer.headers.get("docker-content-digest");
        if (stored?.startsWith("sha256:") && stored !== digest) {
          throw new IntegrityError("Digest of uploaded blob", digest, stored);
        }
        return Promise.resolve();
      },
    );
    this.#options.onProgress?.(this.#descriptor.size);
  }

  /** The content from `offset`; what passes for the first time is checked, all of it before the last piece is given out. */
  async *#read(offset: number): AsyncGenerator<Uint8Array> {
    const { size } = this.#descriptor;
    // Bytes that were never read (an upload resumed beyond them) cannot be
    // skipped in the digest, so reading starts where checking stopped.
    const start = Math.min(offset, this.#verifier.seen);
    let at = start;
    let held: Uint8Array | undefined;
    for await (const piece of this.#content.open(start)) {
      throwIfAborted(this.#options.signal);
      const end = at + piece.length;
      if (end > this.#verifier.seen) {
        this.#verifier.update(
          piece.subarray(Math.max(0, this.#verifier.seen - at)),
        );
      }
      if (held) {
        yield held;
        // Held back by one piece, so this is what was surely taken.
        this.#options.onProgress?.(at);
      }
      held = end > offset
        ? piece.subarray(Math.max(0, offset - at))
        : undefined;
      at = end;
    }
    if (at !== size) {
      throw new IntegrityError(
        `Size of content for blob "${this.#descriptor.digest}"`,
        `${size} bytes`,
        `${at} bytes`,
      );
    }
    this.#checkDigest();
    if (held) yield held;
  }

  #checked = false;

  #checkDigest(): void {
    if (this.#checked) return;
    this.#verifier.finish();
    this.#checked = true;
  }
}

/** `Range: 0-LAST` of an upload's status. An upload without bytes has none, or "0-0". */
function receivedBytes(answer: Exchange): number {
  const match = /^(?:bytes=)?0-([0-9]{1,16})$/
    .exec(answer.headers.get("range")?.trim() ?? "");
  const last = Number(match?.[1] ?? 0);
  return last > 0 ? last + 1 : 0;
}

function brokenUpload(
  error: RegistryError,
  location: URL,
): RegistryError {
  return new RegistryError(error.message, {
    status: error.status,
    codes: error.codes,
    method: error.method,
    url: location,
    temporary: true,
  }, { cause: error });
}

/**
 * Whether the registry has a blob. Where a HEAD is refused, as by proxies that
 * know no such method, its first byte is asked for.
 *
 * @throws {RegistryError} If neither tells.
 */
export async function hasBlob(
  session: Session,
  digest: string,
  options: { signal?: AbortSignal | undefined },
): Promise<boolean> {
  try {
    return await askForBlob(session, "HEAD", digest, options);
  } catch (error) {
    if (!isRefusal(error)) throw error;
    return await askForBlob(session, "GET", digest, options);
  }
}

/** Whether a blob is surely there; where nobody tells, the upload has to. */
export async function isSurelyThere(
  session: Session,
  digest: string,
  options: { signal?: AbortSignal | undefined },
): Promise<boolean> {
  try {
    return await hasBlob(session, digest, options);
  } catch (error) {
    if (!isRefusal(error)) throw error;
    return false;
  }
}

/** An answer that is final and no matter of credentials. */
function isRefusal(error: unknown): boolean {
  return error instanceof RegistryError && error.status >= 400 &&
    error.status !== 401 && !error.temporary;
}

function askForBlob(
  session: Session,
  method: "HEAD" | "GET",
  digest: string,
  options: { signal?: AbortSignal | undefined },
): Promise<boolean> {
  return session.request(
    {
      method,
      target: `blobs/${digest}`,
      access: "pull",
      ...(method === "GET" ? { headers: { range: "bytes=0-0" } } : {}),
      // Only a blob that exists is redirected to a storage, and URLs signed
      // for GET would refuse the HEAD.
      keepRedirects: [302, 303, 307],
      signal: options.signal,
    },
    // 416 is the answer of an empty blob.
    [200, 206, 302, 303, 307, 404, 416],
    (answer) => Promise.resolve(answer.status !== 404),
  );
}
