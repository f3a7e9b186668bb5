/**
 * Files that hold whole decoded layers for as long as the layers are open, and
 * stay for the next time while there is room.
 *
 * Nothing in a file is trusted: what is read from it is checked against the
 * layer's span digests first, once in every process.
 */

import * as fs from "node:fs";
import { promisify } from "node:util";
import {
  errorText,
  formatSize,
  LimitError,
  type Logger,
  ObdError,
  Scratch,
  silentLogger,
} from "../io/mod.ts";
import { type CacheStore, defaultKeepFree } from "./cache/mod.ts";

const statfs = promisify(fs.statfs);

const SUFFIX = ".tar";
/** Left to the spans of other layers. */
const STORE_MIN = 16 * 1024 * 1024;
/** Bytes that stay free beside a temporary directory's files. */
const TEMPORARY_KEEP_FREE = 64 * 1024 * 1024;

/** Options of {@linkcode PinnedStore}. */
export interface PinnedStoreOptions {
  /** Directory of its own, made if missing; default one that is removed with the store. */
  directory?: string | undefined;
  /** Whose bound the files count in. Borrowed. */
  store?: CacheStore | undefined;
  /** Bytes that stay free on the file system. */
  keepFreeBytes?: number | undefined;
  logger?: Logger | undefined;
}

/** One layer's file. */
export interface PinnedFile {
  readonly path: string;
  /** Whether it was there before, with content that may be right. */
  readonly existed: boolean;
  /** Spans that this process has checked; shared by all who hold the file. */
  readonly verified: Uint8Array;
  /** Gives it up; it may be removed when room is needed. */
  release(): Promise<void>;
}

interface Pinned {
  path: string;
  size: number;
  users: number;
  usedAt: number;
  existed: boolean;
  verified: Uint8Array;
}

/** See the module comment. */
export class PinnedStore implements AsyncDisposable {
  readonly #options: PinnedStoreOptions;
  readonly #logger: Logger;
  readonly #files = new Map<string, Pinned>();
  #directory: string | undefined;
  #scratch: Scratch | undefined;
  /** One change at a time. */
  #last: Promise<unknown> = Promise.resolve();
  #clock = 0;

  private constructor(options: PinnedStoreOptions) {
    this.#options = options;
    this.#logger = options.logger ?? silentLogger;
    this.#directory = options.directory;
  }

  /** Opens a store with the files that earlier processes left; they count from now on. */
  static async open(options: PinnedStoreOptions = {}): Promise<PinnedStore> {
    const store = new PinnedStore(options);
    if (options.directory !== undefined) await store.#adopt(options.directory);
    return store;
  }

  async #adopt(directory: string): Promise<void> {
    await Deno.mkdir(directory, { recursive: true, mode: 0o700 });
    for await (const { name, isFile } of Deno.readDir(directory)) {
      const hex = /^([0-9a-f]{64})\.tar$/.exec(name)?.[1];
      if (!hex || !isFile) continue;
      const path = `${directory}/${name}`;
      const { size } = await Deno.stat(path);
      this.#files.set(`sha256:${hex}`, {
        ...{ path, size, users: 0, usedAt: 0, existed: true },
        verified: new Uint8Array(0),
      });
    }
    const limit = this.#limit();
    if (this.#used() > limit) await this.#makeRoom(this.#used() - limit);
    this.#reserve();
  }

  /** Bytes of all files, as if they were full. */
  get usedBytes(): number {
    return this.#used();
  }

  /**
   * The file of a layer, as long as its tar.
   *
   * @param diffId Names the content.
   * @param size Bytes of the tar.
   * @param spans How many spans it has.
   * @throws {LimitError} If it does not fit.
   */
  pin(diffId: string, size: number, spans: number): Promise<PinnedFile> {
    return this.#alone(async () => {
      const known = this.#files.get(diffId);
      const file = known?.size === size && await isUsable(known)
        ? known
        : await this.#create(diffId, size);
      if (file.verified.length !== spans) {
        file.verified = new Uint8Array(spans);
      }
      file.users++;
      let released: Promise<void> | undefined;
      return {
        path: file.path,
        existed: file.existed,
        verified: file.verified,
        release: () => released ??= this.#release(diffId, file),
      };
    });
  }

  #alone<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#last.then(work);
    this.#last = done.catch(() => {});
    return done;
  }

  #release(diffId: string, file: Pinned): Promise<void> {
    return this.#alone(async () => {
      file.usedAt = ++this.#clock;
      if (--file.users > 0 || this.#options.directory !== undefined) return;
      await this.#remove(diffId, file);
    });
  }

  async #create(diffId: string, size: number): Promise<Pinned> {
    const hex = /^sha256:([0-9a-f]{64})$/.exec(diffId)?.[1];
    if (!hex) throw new TypeError(`Cannot pin "${diffId}"`);
    const old = this.#files.get(diffId);
    if (old && old.users > 0) {
      throw new ObdError("conflict", `Layer "${diffId}" is open as another`);
    }
    if (old) await this.#remove(diffId, old);
    if (this.#directory === undefined) {
      this.#scratch = await Scratch.make("obd-pinned-");
      this.#directory = this.#scratch.path;
    }
    await Deno.mkdir(this.#directory, { recursive: true, mode: 0o700 });
    await this.#checkRoom(diffId, size);
    const path = `${this.#directory}/${hex}${SUFFIX}`;
    const file = await Deno.open(path, {
      ...{ write: true, create: true, truncate: true, mode: 0o600 },
    });
    try {
      await file.truncate(size);
    } finally {
      file.close();
    }
    const pinned = {
      ...{ path, size, users: 0, usedAt: ++this.#clock, existed: false },
      verified: new Uint8Array(0),
    };
    this.#files.set(diffId, pinned);
    this.#reserve();
    return pinned;
  }

  async #checkRoom(diffId: string, size: number): Promise<void> {
    const limit = this.#limit();
    const over = this.#used() + size - limit;
    if (over > 0 && await this.#makeRoom(over) > 0) {
      throw this.#tooLarge(
        diffId,
        size,
        `the cache has room for ${formatSize(limit)}, ${
          formatSize(this.#used())
        } of it taken`,
      );
    }
    for (let tried = false;; tried = true) {
      const { bavail, blocks, bsize } = await statfs(this.#directory!);
      const keep = this.#options.keepFreeBytes ??
        (this.#options.directory === undefined
          ? TEMPORARY_KEEP_FREE
          : defaultKeepFree(blocks * bsize));
      const promised = await this.#unwritten();
      const missing = size + keep + promised - bavail * bsize;
      if (missing <= 0) return;
      if (!tried) {
        const left = await this.#makeRoom(missing);
        const { store } = this.#options;
        // Not for what does not fit anyway.
        if (store && left > 0 && left <= store.storedBytes) {
          await store.giveBack(left);
        }
        continue;
      }
      throw this.#tooLarge(
        diffId,
        size,
        `the disk has ${formatSize(bavail * bsize)} free, ${
          formatSize(keep)
        } of it not to be used, ${
          formatSize(promised)
        } promised to other layers`,
      );
    }
  }

  #tooLarge(diffId: string, size: number, why: string): LimitError {
    return new LimitError(
      `Cannot open layer "${diffId}": it can only be decoded from its start, into "${this.#directory}", ${
        formatSize(size)
      }, but ${why}; give it more room (gzipCacheConfig.cacheSizeGB), or build the image with --convert-unseekable`,
    );
  }

  /** Most bytes for all files. */
  #limit(): number {
    const { store } = this.#options;
    return store ? Math.max(0, store.sizeBytes - STORE_MIN) : Infinity;
  }

  #used(): number {
    return this.#files.values().reduce((sum, file) => sum + file.size, 0);
  }

  /** Bytes that the files will still take of the disk: they are sparse until all of a layer is decoded. */
  async #unwritten(): Promise<number> {
    let bytes = 0;
    for (const { path, size } of this.#files.values()) {
      const info = await Deno.stat(path).catch(() => undefined);
      if (info) bytes += Math.max(0, size - (info.blocks ?? 0) * 512);
    }
    return bytes;
  }

  /** Removes files that nobody uses, oldest first; returns how many bytes are still missing. */
  async #makeRoom(missing: number): Promise<number> {
    const unused = [...this.#files].filter(([, file]) => file.users === 0)
      .sort(([, a], [, b]) => a.usedAt - b.usedAt);
    for (const [diffId, file] of unused) {
      if (missing <= 0) break;
      await this.#remove(diffId, file);
      missing -= file.size;
    }
    return missing;
  }

  async #remove(diffId: string, file: Pinned): Promise<void> {
    this.#files.delete(diffId);
    try {
      await Deno.remove(file.path);
    } catch (error) {
      this.#logger.warn("cache.pinned-not-removed", {
        file: file.path,
        error: errorText(error),
      });
    }
    this.#reserve();
  }

  #reserve(): void {
    this.#options.store?.reserve(this.#used());
  }

  /** Removes a temporary directory; files of a lasting one stay. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#last;
    await this.#scratch?.[Symbol.asyncDispose]().catch(() => {});
  }
}

/** Whether a file is there as we left it; of one that is open it does not matter. */
async function isUsable({ path, size, users }: Pinned): Promise<boolean> {
  if (users > 0) return true;
  const info = await Deno.stat(path).catch(() => undefined);
  return info?.isFile === true && info.size === size;
}
