/** Digests of blobs and manifests: `sha256:` and 64 lower-case hex digits. */

import { createHash, type Hash } from "node:crypto";
import { IntegrityError, UnsupportedError, UsageError } from "../io/mod.ts";

const SHA256 = /^sha256:[0-9a-f]{64}$/;
// OCI image-spec, descriptor.md §Digests.
const ANY_DIGEST = /^[a-z0-9]+(?:[+._-][a-z0-9]+)*:[A-Za-z0-9=_-]+$/;

/** Digest of no bytes at all. */
export const EMPTY_DIGEST =
  "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/** Whether `text` is a well-formed SHA-256 digest. */
export function isDigest(text: string): boolean {
  return SHA256.test(text);
}

/**
 * Checks a digest that a user gave.
 *
 * @returns `text` itself.
 * @throws {UnsupportedError} If it is a digest of another algorithm.
 * @throws {UsageError} If it is no digest.
 */
export function checkDigest(text: string): string {
  if (SHA256.test(text)) return text;
  const algorithm = text.slice(0, Math.max(0, text.indexOf(":")));
  if (ANY_DIGEST.test(text) && algorithm !== "sha256") {
    throw new UnsupportedError(
      `digest algorithm ${algorithm}`,
      `Digest algorithm "${algorithm}" is not supported: only sha256 is`,
    );
  }
  throw new UsageError(
    `Bad digest "${text.slice(0, 200)}": expected sha256: and 64 hex digits`,
  );
}

/** The 64 hex digits of a digest. */
export function digestHex(digest: string): string {
  return checkDigest(digest).slice("sha256:".length);
}

/** Digest of bytes in memory. */
export function sha256Digest(bytes: Uint8Array): string {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}

/** Checks digest and size of a stream while it passes by. */
export class DigestVerifier {
  readonly #what: string;
  readonly #digest: string;
  readonly #size: number;
  readonly #hash: Hash = createHash("sha256");
  #seen = 0;

  /** @param what Subject of the error message, e.g. `Blob "sha256:…"`. */
  constructor(what: string, digest: string, size: number) {
    this.#what = what;
    this.#digest = digest;
    this.#size = size;
  }

  /** Bytes so far. */
  get seen(): number {
    return this.#seen;
  }

  /** @throws {IntegrityError} As soon as there are more bytes than the size says. */
  update(bytes: Uint8Array): void {
    this.#seen += bytes.length;
    if (this.#seen > this.#size) {
      throw new IntegrityError(
        `Size of ${this.#what}`,
        `${this.#size} bytes`,
        `at least ${this.#seen} bytes`,
      );
    }
    this.#hash.update(bytes);
  }

  /** @throws {IntegrityError} If size or digest is not the expected one. */
  finish(): void {
    if (this.#seen !== this.#size) {
      throw new IntegrityError(
        `Size of ${this.#what}`,
        `${this.#size} bytes`,
        `${this.#seen} bytes`,
      );
    }
    const got = `sha256:${this.#hash.digest("hex")}`;
    if (got !== this.#digest) {
      throw new IntegrityError(
        `Digest of ${this.#what}`,
        this.#digest,
        got,
      );
    }
  }
}
