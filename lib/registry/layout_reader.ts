/**
 * Reading an OCI image layout (image-spec 1.1, `image-layout.md`), wherever
 * its files are: `index.json` with the entry points, `blobs/sha256/HEX`.
 *
 * Tags are `org.opencontainers.image.ref.name` annotations. Archives made by
 * `docker save` carry the tag there too, and the full name in
 * `io.containerd.image.name`.
 */

import {
  type ByteSource,
  FormatError,
  IntegrityError,
  NotFoundError,
  readBytes,
  UsageError,
} from "../io/mod.ts";
import { readPieces } from "./content.ts";
import { digestHex, DigestVerifier, isDigest, sha256Digest } from "./digest.ts";
import {
  type Descriptor,
  INDEX_ENTRY_COUNT_MAX,
  type Manifest,
  MANIFEST_SIZE_MAX,
  manifestMediaType,
  parseDescriptor,
  parseJsonObject,
  parseManifest,
  referrerDescriptor,
} from "./manifest.ts";
import { throwIfAborted } from "./signals.ts";
import type {
  FetchBlobOptions,
  RequestOptions,
  ResolvedManifest,
} from "./repository.ts";

/** Annotation that holds the tag of an entry of `index.json`. */
export const REF_NAME_ANNOTATION = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME_ANNOTATION = "io.containerd.image.name";

/** A parsed `index.json`. */
export interface LayoutIndex {
  entries: Descriptor[];
  /** The whole document; `manifests` holds the entries as they were read. */
  raw: Record<string, unknown> & { manifests: unknown[] };
}

/** The read side of layout directories and archives. */
export abstract class LayoutReader {
  abstract readonly name: string;

  /** Opens a file of the layout; `undefined` when it is not there. */
  protected abstract openFile(path: string): Promise<ByteSource | undefined>;

  /** Reads `index.json` anew. */
  protected async readIndex(): Promise<LayoutIndex> {
    const bytes = await this.#readFile("index.json");
    if (!bytes) {
      throw new NotFoundError(
        `No OCI layout in "${this.name}": index.json is missing`,
      );
    }
    return parseLayoutIndex(bytes);
  }

  async #readFile(path: string): Promise<Uint8Array<ArrayBuffer> | undefined> {
    const file = await this.openFile(path);
    if (!file) return undefined;
    await using source = file;
    if (source.size > MANIFEST_SIZE_MAX) {
      throw new FormatError(
        path,
        "size",
        `is ${source.size} bytes, at most ${MANIFEST_SIZE_MAX} are allowed`,
      );
    }
    return await readBytes(source, 0, source.size);
  }

  /** @see Repository.resolve */
  async resolve(
    tagOrDigest: string,
    _options?: RequestOptions,
  ): Promise<ResolvedManifest> {
    const index = await this.readIndex();
    const entry = isDigest(tagOrDigest)
      ? index.entries.find((e) => e.digest === tagOrDigest)
      : tagOrDigest === ""
      ? await this.#onlyImage(index)
      : this.#tagged(index, tagOrDigest);
    return await this.#readManifest(entry?.digest ?? tagOrDigest, entry);
  }

  #tagged(index: LayoutIndex, tag: string): Descriptor {
    for (const key of [REF_NAME_ANNOTATION, CONTAINERD_NAME_ANNOTATION]) {
      const found = index.entries.filter((e) => e.annotations?.[key] === tag);
      const digests = new Set(found.map((e) => e.digest));
      if (digests.size > 1) {
        throw new FormatError(
          `index.json of "${this.name}"`,
          "manifests",
          `has ${digests.size} entries with tag "${tag}"; name one by its digest`,
        );
      }
      if (found[0]) return found[0];
    }
    throw new NotFoundError(
      `No image "${tag}" in "${this.name}": ${this.#tagText(index)}`,
    );
  }

  #tagText(index: LayoutIndex): string {
    const tags = index.entries
      .map((e) => e.annotations?.[REF_NAME_ANNOTATION])
      .filter((t) => t !== undefined);
    return tags.length === 0
      ? "it has no tags"
      : `it has ${tags.slice(0, 20).map((t) => `"${t}"`).join(", ")}`;
  }

  /** The image that is meant without a tag: artifacts that refer to another one do not count. */
  async #onlyImage(index: LayoutIndex): Promise<Descriptor> {
    const images = new Map<string, Descriptor>();
    for (const entry of index.entries) {
      if (entry.artifactType) continue;
      const manifest = await this.#tryParse(entry);
      if (manifest && !manifest.subject) images.set(entry.digest, entry);
    }
    const [only] = images.values();
    if (images.size === 1) return only!;
    if (images.size === 0) {
      throw new NotFoundError(`No image in "${this.name}"`);
    }
    throw new UsageError(
      `"${this.name}" has ${images.size} images: name one, ${
        this.#tagText(index)
      }`,
    );
  }

  /** The manifest of an entry, or undefined when it is absent, too large or none of ours. */
  async #tryParse(entry: Descriptor): Promise<Manifest | undefined> {
    if (entry.size > MANIFEST_SIZE_MAX) return undefined;
    try {
      const { bytes } = await this.#readManifest(entry.digest, entry);
      return parseManifest(bytes, entry.mediaType);
    } catch {
      return undefined;
    }
  }

  async #readManifest(
    digest: string,
    entry: Descriptor | undefined,
  ): Promise<ResolvedManifest> {
    const bytes = await this.#readFile(`blobs/sha256/${digestHex(digest)}`);
    if (!bytes) {
      throw new NotFoundError(`No manifest "${digest}" in "${this.name}"`);
    }
    const got = sha256Digest(bytes);
    if (got !== digest) {
      throw new IntegrityError(`Digest of manifest "${digest}"`, digest, got);
    }
    if (entry && entry.size !== bytes.length) {
      throw new IntegrityError(
        `Size of manifest "${digest}"`,
        `${entry.size} bytes`,
        `${bytes.length} bytes`,
      );
    }
    const mediaType = manifestMediaType(
      parseJsonObject("manifest", bytes),
      entry?.mediaType,
    );
    const descriptor = { mediaType, digest, size: bytes.length };
    return { descriptor, bytes };
  }

  /** @see Repository.openBlob */
  async openBlob(descriptor: Descriptor): Promise<ByteSource> {
    const source = await this.openFile(
      `blobs/sha256/${digestHex(descriptor.digest)}`,
    );
    if (!source) {
      throw new NotFoundError(
        `No blob "${descriptor.digest}" in "${this.name}"`,
      );
    }
    if (source.size !== descriptor.size) {
      await source[Symbol.asyncDispose]();
      throw new IntegrityError(
        `Size of blob "${descriptor.digest}"`,
        `${descriptor.size} bytes`,
        `${source.size} bytes`,
      );
    }
    return source;
  }

  /** @see Repository.fetchBlob */
  async *fetchBlob(
    descriptor: Descriptor,
    options: FetchBlobOptions = {},
  ): AsyncGenerator<Uint8Array<ArrayBuffer>> {
    await using source = await this.openBlob(descriptor);
    const verifier = new DigestVerifier(
      `blob "${descriptor.digest}"`,
      descriptor.digest,
      descriptor.size,
    );
    for await (const piece of readPieces(source, 0, options.signal)) {
      throwIfAborted(options.signal);
      verifier.update(piece);
      options.onProgress?.(verifier.seen);
      yield piece;
    }
    verifier.finish();
  }

  /** @see Repository.blobSize */
  async blobSize(digest: string, _options?: RequestOptions): Promise<number> {
    const source = await this.openFile(`blobs/sha256/${digestHex(digest)}`);
    if (!source) throw new NotFoundError(`No blob ${digest} in ${this.name}`);
    await source[Symbol.asyncDispose]();
    return source.size;
  }

  /** @see Repository.hasBlob */
  async hasBlob(digest: string, _options?: RequestOptions): Promise<boolean> {
    const source = await this.openFile(`blobs/sha256/${digestHex(digest)}`);
    await source?.[Symbol.asyncDispose]();
    return source !== undefined;
  }

  /** @see Repository.referrers */
  async referrers(
    digest: string,
    artifactType?: string,
    _options?: RequestOptions,
  ): Promise<Descriptor[]> {
    const found = new Map<string, Descriptor>();
    for (const entry of (await this.readIndex()).entries) {
      if (found.has(entry.digest)) continue;
      const manifest = await this.#tryParse(entry);
      if (manifest?.subject?.digest !== digest) continue;
      const descriptor = referrerDescriptor(entry, manifest);
      if (!artifactType || descriptor.artifactType === artifactType) {
        found.set(entry.digest, descriptor);
      }
    }
    return sortedByDigest(found.values());
  }
}

/** By digest, so that the order says nothing about when each was pushed. */
export function sortedByDigest(list: Iterable<Descriptor>): Descriptor[] {
  return [...list].sort((a, b) => a.digest < b.digest ? -1 : 1);
}

/** Parses `index.json`; entries that are no valid descriptors are an error. */
export function parseLayoutIndex(bytes: Uint8Array): LayoutIndex {
  const raw = parseJsonObject("index.json", bytes);
  const list = raw.manifests ?? [];
  if (!Array.isArray(list) || list.length > INDEX_ENTRY_COUNT_MAX) {
    throw new FormatError(
      "index.json",
      "manifests",
      `is no list of at most ${INDEX_ENTRY_COUNT_MAX} entries`,
    );
  }
  return {
    entries: list.map((d, i) => parseDescriptor(`index.json entry ${i}`, d)),
    raw: { ...raw, manifests: list },
  };
}
