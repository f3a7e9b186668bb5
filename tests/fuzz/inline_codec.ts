/** The codec threads' work on the calling thread: thousands of jobs a second, and a hang is this process's. */

import { concatBytes } from "../../lib/io/mod.ts";
import type { SpanJob, ZstdJob } from "../../lib/compress/mod.ts";
import { runCodecJob } from "../../lib/compress/codec_worker.ts";
import type { SpanInflater, ZstdDecoder } from "../../lib/layers/mod.ts";

/** Stands in for a `CodecPool`. */
export const inlineCodec: SpanInflater & ZstdDecoder = {
  // deno-lint-ignore require-await -- throws must reject
  async inflateSpan(job: SpanJob): Promise<Uint8Array> {
    return runCodecJob({
      id: 0,
      kind: "inflate",
      input: job.input,
      bits: job.bits,
      window: job.window,
      windowIsZlib: job.windowIsZlib ?? false,
      length: job.length,
      sha256: job.sha256,
      output: job.output,
    });
  },
  // deno-lint-ignore require-await -- throws must reject
  async decodeZstd(job: ZstdJob): Promise<Uint8Array> {
    const { input, sizes, sha256 } = job;
    const length = sizes.reduce((sum, size) => sum + size, 0);
    const request = { input, sizes, sha256 };
    return runCodecJob({ id: 0, kind: "zstd", request, length });
  },
};

/** A blob in pieces of odd sizes, as a network gives it. */
export async function* piecesOf(
  blob: Uint8Array,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  for (let at = 0, size = 7; at < blob.length; size = size * 5 % 65_537 + 1) {
    yield concatBytes([blob.subarray(at, at + size)]);
    at += size;
    await Promise.resolve();
  }
}
