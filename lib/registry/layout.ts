/** An OCI image layout directory as a {@linkcode Repository} that can be written. */

import {
  type ByteSource,
  DeadlineError,
  delay,
  FileSource,
  IntegrityError,
  NotFoundError,
  ObdError,
  syncDirectory,
  UsageError,
  writeAll,
  writeFileAtomic,
} from "../io/mod.ts";
import {
  checkDigest,
  digestHex,
  DigestVerifier,
  isDigest,
  sha256Digest,
} from "./digest.ts";
import {
  type LayoutIndex,
  LayoutReader,
  REF_NAME_ANNOTATION,
} from "./layout_reader.ts";
import { type Descriptor, parseManifest, writeIndex } from "./manifest.ts";
import { MediaType } from "./media_types.ts";
import { isRefName } from "./reference.ts";
import { throwIfAborted } from "./signals.ts";
import type {
  BlobContent,
  PushBlobOptions,
  PushResult,
  Repository,
} from "./repository.ts";

const LOCK_TIMEOUT_MS = 30_000;
const LOCK_POLL_MS = 20;
/** Files of a process that was killed while it made the layout: who writes them has the lock. */
const UNFINISHED = /^(oci-layout|index\.json)\.tmp-[0-9a-f-]{36}$/;

/**
 * An OCI layout directory. Blobs and `index.json` appear whole or not at all;
 * changes of `index.json` by several processes follow each other (a lock on
 * the directory itself, so no file is left behind).
 */
export class LayoutRepository extends LayoutReader implements Repository {
  readonly name: string;
  readonly writable = true;
  readonly #path: string;

  private constructor(path: string) {
    super();
    this.#path = path.replace(/(.)\/+$/, "$1");
    this.name = `oci:${this.#path}`;
  }

  /**
   * Opens a layout.
   *
   * @param options.create Make the directory and an empty layout where there is none.
   * @throws {NotFoundError} If there is none.
   * @throws {UsageError} If the directory has other files.
   */
  static async open(
    path: string,
    options: { create?: boolean } = {},
  ): Promise<LayoutRepository> {
    const repository = new LayoutRepository(path);
    if (!await isFile(`${path}/index.json`)) {
      if (!options.create) {
        throw new NotFoundError(
          `No OCI layout in "${path}": index.json is missing`,
        );
      }
      await repository.#create();
    }
    return repository;
  }

  async #create(): Promise<void> {
    await Deno.mkdir(this.#path, { recursive: true });
    await this.#locked(async () => {
      if (await isFile(`${this.#path}/index.json`)) return;
      const unfinished: string[] = [];
      for await (const { name } of Deno.readDir(this.#path)) {
        if (UNFINISHED.test(name)) unfinished.push(name);
        else if (name !== "blobs" && name !== "oci-layout") {
          throw new UsageError(
            `Cannot make an OCI layout in "${this.#path}": the directory has other files`,
          );
        }
      }
      for (const name of unfinished) await Deno.remove(`${this.#path}/${name}`);
      await Deno.mkdir(this.#blobDirectory, { recursive: true });
      await writeFileAtomic(
        `${this.#path}/oci-layout`,
        '{"imageLayoutVersion":"1.0.0"}',
      );
      await this.#writeIndex({
        schemaVersion: 2,
        mediaType: MediaType.ociIndex,
        manifests: [],
      });
    });
  }

  get #blobDirectory(): string {
    return `${this.#path}/blobs/sha256`;
  }

  protected async openFile(path: string): Promise<ByteSource | undefined> {
    try {
      return await FileSource.open(`${this.#path}/${path}`);
    } catch (error) {
      if ((error as { code?: string }).code === "ENOENT") return undefined;
      throw error;
    }
  }

  async pushBlob(
    descriptor: Descriptor,
    content: BlobContent,
    options: PushBlobOptions = {},
  ): Promise<PushResult> {
    const hex = digestHex(descriptor.digest);
    const path = `${this.#blobDirectory}/${hex}`;
    if (await this.#holds(path, descriptor, options)) return "exists";
    await Deno.mkdir(this.#blobDirectory, { recursive: true });
    // Beside index.json, so that a crash leaves no strange name among the blobs.
    const temp = `${this.#path}/.blob-${hex}.tmp-${crypto.randomUUID()}`;
    try {
      const file = await Deno.open(temp, { write: true, createNew: true });
      try {
        await copyVerified(file, descriptor, content, options);
        await file.sync();
      } finally {
        file.close();
      }
      await Deno.rename(temp, path);
    } catch (error) {
      await Deno.remove(temp).catch(() => {});
      throw error;
    }
    await syncDirectory(this.#blobDirectory);
    return "uploaded";
  }

  /** Whether a blob is there and sound: one that was damaged is written anew. */
  async #holds(
    path: string,
    descriptor: Descriptor,
    options: PushBlobOptions,
  ): Promise<boolean> {
    if (!await hasSize(path, descriptor.size)) return false;
    const { signal } = options;
    try {
      for await (const _ of this.fetchBlob(descriptor, { signal }));
      return true;
    } catch (error) {
      if (error instanceof IntegrityError) return false;
      throw error;
    }
  }

  async pushManifest(
    bytes: Uint8Array,
    mediaType: string,
    tagOrDigest?: string,
  ): Promise<Descriptor> {
    const manifest = parseManifest(bytes, mediaType);
    const digest = sha256Digest(bytes);
    const tag = checkTarget(tagOrDigest, digest);
    const descriptor: Descriptor = {
      mediaType: manifest.mediaType,
      digest,
      size: bytes.length,
    };
    await this.pushBlob(descriptor, {
      open: async function* (offset) {
        yield bytes.subarray(offset);
      },
    });
    if (tag !== undefined || manifest.subject) {
      const entry = {
        ...descriptor,
        ...(manifest.artifactType && { artifactType: manifest.artifactType }),
      };
      await this.#locked(() => this.#addEntry(entry, tag));
    }
    return descriptor;
  }

  async #addEntry(entry: Descriptor, tag: string | undefined): Promise<void> {
    const index = await this.readIndex();
    const manifests = tag === undefined
      ? [...index.raw.manifests]
      : await this.#withoutTag(index, tag);
    const digestAt = (m: unknown) => (m as Descriptor).digest;
    if (tag !== undefined) {
      const tagged = {
        ...entry,
        annotations: { [REF_NAME_ANNOTATION]: tag },
      };
      // One untagged entry becomes the tagged one; other tags stay beside it.
      const at = manifests.findIndex((m) =>
        digestAt(m) === entry.digest && tagOf(m) === undefined
      );
      if (at >= 0) manifests[at] = tagged;
      else manifests.push(tagged);
    } else if (!manifests.some((m) => digestAt(m) === entry.digest)) {
      manifests.push(entry);
    }
    await this.#writeIndex({ ...index.raw, manifests });
  }

  /**
   * The entries after `tag` was taken from the one that has it. As in a
   * registry, a referrer is still found when its tag has moved on.
   */
  async #withoutTag(index: LayoutIndex, tag: string): Promise<unknown[]> {
    const kept: unknown[] = [];
    for (const [i, raw] of index.raw.manifests.entries()) {
      if (tagOf(raw) !== tag) {
        kept.push(raw);
        continue;
      }
      const entry = index.entries[i]!;
      const others = index.raw.manifests.some((m, j) =>
        j !== i && (m as Descriptor).digest === entry.digest
      );
      if (others || !await this.#isReferrer(entry)) continue;
      const { annotations, ...rest } = raw as Descriptor;
      const { [REF_NAME_ANNOTATION]: _tag, ...more } = annotations ?? {};
      kept.push(
        Object.keys(more).length > 0 ? { ...rest, annotations: more } : rest,
      );
    }
    return kept;
  }

  async #isReferrer(entry: Descriptor): Promise<boolean> {
    try {
      const { bytes, descriptor } = await this.resolve(entry.digest);
      return parseManifest(bytes, descriptor.mediaType).subject !== undefined;
    } catch (error) {
      if (error instanceof ObdError) return false; // broken or none of ours
      throw error;
    }
  }

  async #writeIndex(index: Parameters<typeof writeIndex>[1]): Promise<void> {
    const path = `${this.#path}/index.json`;
    await writeFileAtomic(path, writeIndex(`"${path}"`, index));
  }

  /** Runs `work` while no other process (or caller here) changes the layout. */
  async #locked(work: () => Promise<void>): Promise<void> {
    const directory = await Deno.open(this.#path);
    try {
      for (let waited = 0; !await directory.tryLock(true);) {
        if (waited >= LOCK_TIMEOUT_MS) {
          throw new DeadlineError(
            `Waiting for the lock of "${this.#path}"`,
            LOCK_TIMEOUT_MS,
          );
        }
        await delay(LOCK_POLL_MS);
        waited += LOCK_POLL_MS;
      }
      await work();
    } finally {
      directory.close();
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }
}

function tagOf(entry: unknown): string | undefined {
  return (entry as Descriptor).annotations?.[REF_NAME_ANNOTATION];
}

/**
 * The tag to push under, if any.
 *
 * @throws {UsageError} If it is neither a tag nor `digest`.
 */
export function checkTarget(
  target: string | undefined,
  digest: string,
  isName: (text: string) => boolean = isRefName,
): string | undefined {
  if (target === undefined || target === digest) return undefined;
  if (isDigest(target) || target.startsWith("sha256:")) {
    throw new UsageError(
      `Cannot push a manifest as "${
        checkDigest(target)
      }": its digest is ${digest}`,
    );
  }
  if (!isName(target)) throw new UsageError(`"${target}" cannot be a tag`);
  return target;
}

async function copyVerified(
  file: Deno.FsFile,
  descriptor: Descriptor,
  content: BlobContent,
  options: PushBlobOptions,
): Promise<void> {
  const verifier = new DigestVerifier(
    `blob "${descriptor.digest}"`,
    descriptor.digest,
    descriptor.size,
  );
  for await (const piece of content.open(0, true)) {
    throwIfAborted(options.signal);
    verifier.update(piece);
    await writeAll(file, piece);
    options.onProgress?.(verifier.seen);
  }
  verifier.finish();
}

async function isFile(path: string): Promise<boolean> {
  try {
    return (await Deno.stat(path)).isFile;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

async function hasSize(path: string, size: number): Promise<boolean> {
  try {
    const info = await Deno.stat(path);
    return info.isFile && info.size === size;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}
