/** Decodes the spans of a zstd blob from the frame where they start. */

import { createHash } from "node:crypto";
import { FormatError, IntegrityError, LimitError, toHex } from "../io/mod.ts";
import { ByteRing } from "./byte_ring.ts";
import { SPAN_SIZE_MAX } from "./gzip_index.ts";
import { ZstdStream } from "./zstd_stream.ts";

const DIGEST_SIZE = 32;

/** What {@linkcode decodeZstdSpans} needs to know. */
export interface ZstdSpans {
  /** Frames: from the start of one up to the end of the one that the last span ends in, or further. */
  input: Uint8Array;
  /** Bytes of each span, the first of which starts with the input. */
  sizes: Float64Array;
  /** SHA-256 of each span, 32 bytes each. */
  sha256: Uint8Array;
}

/**
 * Fills all of `output` with consecutive spans and checks them.
 *
 * @param output Owned by the caller; as long as the spans are together, at most 128 MiB.
 * @throws {FormatError} If the input is malformed or ends first; `output` is undefined then.
 * @throws {IntegrityError} If a span has another SHA-256.
 * @throws {LimitError} If `output` is too long.
 */
export function decodeZstdSpans(request: ZstdSpans, output: Uint8Array): void {
  const { input, sizes, sha256 } = request;
  if (output.length > SPAN_SIZE_MAX) {
    throw new LimitError(
      `Spans of ${output.length} bytes are over the limit of ${SPAN_SIZE_MAX}`,
    );
  }
  const stream = new ZstdStream(new ByteRing(input));
  try {
    for (let done = 0; done < output.length;) {
      const { length } = output;
      const step = stream.step(input.length, true, output, done, length);
      if (step === "data") done += stream.produced;
      else if (step === "end") {
        throw new FormatError(
          "zstd span",
          "input",
          "ends before the span does",
        );
      }
    }
  } finally {
    stream.close();
  }
  let at = 0;
  for (const [i, size] of sizes.entries()) {
    const bytes = output.subarray(at, at += size);
    const got = toHex(createHash("sha256").update(bytes).digest());
    const want = toHex(
      sha256.subarray(i * DIGEST_SIZE, (i + 1) * DIGEST_SIZE),
    );
    if (got !== want) throw new IntegrityError("Span SHA-256", want, got);
  }
}
