/** A plain (uncompressed) tar layer, checked span by span. */

import { createHash } from "node:crypto";
import {
  type ByteSource,
  equalBytes,
  FormatError,
  IntegrityError,
  type SourceDescription,
  toHex,
} from "../io/mod.ts";
import { makeChecked } from "./make_checked.ts";
import {
  digestKey,
  type MadeSpan,
  type MakeOptions,
  type SpanMaker,
  SpanSource,
  type SpanSourceOptions,
  type StoredUnit,
} from "./span_source.ts";
import type { SpanTable } from "./span_table.ts";

/** Settings of a {@linkcode VerifiedSource}. */
export interface VerifiedOptions extends SpanSourceOptions {
  /** Digest of the blob. */
  digest: string;
  /** With digests: 128 KiB spans that cover the blob. */
  spans: SpanTable;
}

/**
 * Checks each span of a source against its SHA-256 before any of it is served
 * or stored. Owns the inner source.
 */
export class VerifiedSource extends SpanSource {
  /** @throws {FormatError} When the spans have no digests or do not cover the blob. */
  constructor(inner: ByteSource, options: VerifiedOptions) {
    super(new PlainMaker(inner, options), options);
  }
}

class PlainMaker implements SpanMaker {
  readonly name: string;
  readonly spans: SpanTable;
  readonly #inner: ByteSource;

  constructor(inner: ByteSource, options: VerifiedOptions) {
    this.name = options.digest;
    this.spans = options.spans;
    this.#inner = inner;
    if (options.spans.size !== inner.size) {
      throw new FormatError(
        "span table",
        "size",
        `is ${options.spans.size}, the blob has ${inner.size}`,
      );
    }
    if (options.spans.count > 0 && !options.spans.digestOf(0)) {
      throw new FormatError("span table", "digests", "are missing");
    }
  }

  keyOf(index: number): string {
    return digestKey(this.spans.digestOf(index)!);
  }

  async make(index: number, options: MakeOptions): Promise<MadeSpan> {
    const what = `Span ${index} of layer "${this.name}"`;
    const want = this.spans.digestOf(index)!;
    const bytes = await makeChecked({
      what,
      source: this.#inner,
      start: this.spans.offsetOf(index),
      length: this.spans.sizeOf(index),
      shared: false,
      sha256: want,
      decode: (bytes) => {
        const got = createHash("sha256").update(bytes).digest();
        if (equalBytes(got, want)) return Promise.resolve(bytes);
        const error = new IntegrityError(what, toHex(want), toHex(got));
        return Promise.reject(error);
      },
      options,
    });
    return { bytes };
  }

  unitOf(index: number): StoredUnit {
    const offset = this.spans.offsetOf(index);
    const length = this.spans.sizeOf(index);
    return { offset, length, blobOffset: offset, blobLength: length };
  }

  describe(): SourceDescription {
    const inner = this.#inner.describe?.();
    return {
      kind: "verify",
      detail: {
        layer: this.name,
        spans: this.spans.count,
        integrity: "spans",
      },
      ...(inner ? { inner: [inner] } : {}),
    };
  }

  dispose(): Promise<void> {
    return Promise.resolve(this.#inner[Symbol.asyncDispose]());
  }
}
