/** Where the embedded registry keeps blobs and running uploads. */

import { createHash, type Hash } from "node:crypto";

/** Content-addressed bytes plus uploads that become such. */
export interface BlobStore {
  /** Bytes of the blob, or undefined when it is absent. */
  size(digest: string): Promise<number | undefined>;
  /** `[start, end)` in order, to be read only. */
  read(
    digest: string,
    start: number,
    end: number,
  ): AsyncIterable<Uint8Array<ArrayBuffer>>;
  put(bytes: Uint8Array): Promise<string>;
  createUpload(): Promise<StoredUpload>;
}

/** An upload that grows at its end. */
export interface StoredUpload {
  readonly size: number;
  append(bytes: Uint8Array): Promise<void>;
  /** Turns it into a blob if `digest` is right; it is gone either way. */
  finish(digest: string): Promise<boolean>;
  discard(): Promise<void>;
}

const PIECE_SIZE = 256 * 1024;

/** The digest of bytes in memory. */
export function digestOf(bytes: Uint8Array): string {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}

/** Blobs in memory. */
export class MemoryStore implements BlobStore {
  readonly #blobs = new Map<string, Uint8Array<ArrayBuffer>>();

  size(digest: string): Promise<number | undefined> {
    return Promise.resolve(this.#blobs.get(digest)?.length);
  }

  async *read(digest: string, start: number, end: number) {
    yield this.#blobs.get(digest)!.subarray(start, end);
  }

  put(bytes: Uint8Array): Promise<string> {
    const digest = digestOf(bytes);
    // A copy: the caller's bytes may change.
    this.#blobs.set(digest, bytes.slice());
    return Promise.resolve(digest);
  }

  createUpload(): Promise<StoredUpload> {
    const parts: Uint8Array[] = [];
    let size = 0;
    return Promise.resolve({
      get size() {
        return size;
      },
      append(bytes) {
        parts.push(bytes.slice());
        size += bytes.length;
        return Promise.resolve();
      },
      finish: (digest) => {
        const whole = new Uint8Array(size);
        let at = 0;
        for (const part of parts) {
          whole.set(part, at);
          at += part.length;
        }
        if (digestOf(whole) !== digest) return Promise.resolve(false);
        this.#blobs.set(digest, whole);
        return Promise.resolve(true);
      },
      discard: () => Promise.resolve(void (parts.length = 0)),
    });
  }
}

/** Blobs as files `DIRECTORY/sha256/HEX`, for images too large for memory. */
export class DirectoryStore implements BlobStore {
  readonly #directory: string;
  #uploads = 0;

  constructor(directory: string) {
    this.#directory = directory;
    Deno.mkdirSync(`${directory}/sha256`, { recursive: true });
    Deno.mkdirSync(`${directory}/uploads`, { recursive: true });
  }

  #path(digest: string): string {
    return `${this.#directory}/sha256/${digest.slice("sha256:".length)}`;
  }

  async size(digest: string): Promise<number | undefined> {
    try {
      return (await Deno.stat(this.#path(digest))).size;
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return undefined;
      throw error;
    }
  }

  async *read(digest: string, start: number, end: number) {
    const file = await Deno.open(this.#path(digest));
    try {
      await file.seek(start, Deno.SeekMode.Start);
      for (let rest = end - start; rest > 0;) {
        const piece = new Uint8Array(Math.min(PIECE_SIZE, rest));
        const length = await file.read(piece);
        if (length === null) throw new Error(`blob "${digest}" shrank`);
        yield piece.subarray(0, length);
        rest -= length;
      }
    } finally {
      file.close();
    }
  }

  async put(bytes: Uint8Array): Promise<string> {
    const digest = digestOf(bytes);
    const upload = await this.createUpload();
    await upload.append(bytes);
    await upload.finish(digest);
    return digest;
  }

  async createUpload(): Promise<StoredUpload> {
    const path = `${this.#directory}/uploads/${++this.#uploads}`;
    // Opened per append: an upload that a client forgets holds no descriptor.
    await Deno.writeFile(path, new Uint8Array(0));
    const hash: Hash = createHash("sha256");
    let size = 0;
    return {
      get size() {
        return size;
      },
      append: async (bytes) => {
        await Deno.writeFile(path, bytes, { append: true });
        hash.update(bytes);
        size += bytes.length;
      },
      finish: async (digest) => {
        const fits = `sha256:${hash.digest("hex")}` === digest;
        if (fits) await Deno.rename(path, this.#path(digest));
        else await Deno.remove(path);
        return fits;
      },
      discard: () => Deno.remove(path).catch(() => {}),
    };
  }
}
