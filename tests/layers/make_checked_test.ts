import assert from "node:assert/strict";
import { deflateRawSync } from "node:zlib";
import { type SpanJob, zstdCompress } from "../../lib/compress/mod.ts";
import {
  CancelledError,
  IntegrityError,
  LimitError,
  type ReadOptions,
  UnsupportedError,
  Urgency,
} from "../../lib/io/mod.ts";
import { CachedSource } from "../../lib/layers/cache/mod.ts";
import { GunzipSource } from "../../lib/layers/gunzip.ts";
import { makeChecked } from "../../lib/layers/make_checked.ts";
import { ReadStats } from "../../lib/layers/read_stats.ts";
import { SpanCache } from "../../lib/layers/span_source.ts";
import { inlineCodec } from "../fuzz/inline_codec.ts";
import { tempStore } from "../testutil/cache_store.ts";
import { makeGzipLayer, sha256 } from "../testutil/gzip_layer.ts";
import { seededBytes } from "../testutil/source_contract.ts";
import { TestSource } from "../testutil/test_source.ts";
import { until } from "../testutil/until.ts";

const SPAN = 512 * 1024;
const CONTENT = seededBytes(5000, 1);
const FRAME = zstdCompress(CONTENT);
/** An empty member, then one whose header is longer than any that is read. */
const LONG_HEADER = new Uint8Array(1_100_000).fill(97);
LONG_HEADER.set([3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
LONG_HEADER.set([31, 139, 8, 0x08, 0, 0, 0, 0, 0, 255], 10);
const DEFLATED = new Uint8Array(LONG_HEADER.length);
DEFLATED.set(deflateRawSync(CONTENT));
const DICTIONARY = FRAME.slice();
DICTIONARY[4]! |= 1;

/** Damage of which decoders do not say that it is malformed. */
const DAMAGES = [
  {
    name: "needs a dictionary",
    wrong: DICTIONARY,
    good: FRAME,
    error: UnsupportedError,
    decode: (input: Uint8Array) => {
      const sizes = Float64Array.of(CONTENT.length);
      return inlineCodec.decodeZstd({ input, sizes, sha256: sha256(CONTENT) });
    },
  },
  {
    name: "has an endless header",
    wrong: LONG_HEADER,
    good: DEFLATED,
    error: LimitError,
    decode: (input: Uint8Array) =>
      inlineCodec.inflateSpan({
        input,
        bits: 0,
        window: new Uint8Array(0),
        length: CONTENT.length,
        sha256: sha256(CONTENT),
      }),
  },
];

for (const { name, wrong, good, error, decode } of DAMAGES) {
  Deno.test(`makeChecked() reads again what ${name}, and leaves none of it in the cache`, async () => {
    await assert.rejects(decode(wrong), error);
    await using store = await tempStore();
    const inner = new TestSource(wrong.slice());
    await using source = new CachedSource(inner, { key: "x", store });
    const make = () =>
      makeChecked({
        what: "It",
        source,
        start: 0,
        length: good.length,
        shared: true,
        sha256: sha256(CONTENT),
        decode,
        options: {
          signal: new AbortController().signal,
          urgency: new Urgency("demand"),
          timer: new ReadStats().load(new Urgency("demand")),
        },
      });
    await assert.rejects(make(), IntegrityError);
    inner.content.set(good);
    assert.deepEqual(await make(), CONTENT);
    // Damaged only in the cache.
    inner.content.set(wrong);
    source.discard(0, source.size);
    await source.pread(new Uint8Array(source.size), 0);
    inner.content.set(good);
    assert.deepEqual(await make(), CONTENT);
  });
}

Deno.test("GunzipSource uses the memory of spans that were called off again, but only when no thread looks at it any more", async () => {
  const layer = makeGzipLayer(seededBytes(3 * SPAN, 5), SPAN);
  const jobs: SpanJob[] = [];
  await using store = await tempStore();
  const inner = new ArrivingSource(layer.blob);
  await using source = new GunzipSource(
    new CachedSource(inner, { key: layer.digest }),
    {
      digest: layer.digest,
      spans: layer.spans,
      checkpoints: layer.checkpoints,
      cache: new SpanCache({ store }),
      readaheadBytes: 0,
      inflater: {
        inflateSpan: () => Promise.reject(new Error("not asked for")),
        streamSpan: (job) => {
          jobs.push(job);
          return {
            bytes: new Promise(() => {}),
            advance: () => {},
            drop: () => {},
          };
        },
      },
    },
  );
  const callOff = async (): Promise<SpanJob> => {
    const control = new AbortController();
    const before = jobs.length;
    const reading = source.pread(new Uint8Array(9), 0, {
      signal: control.signal,
    });
    await until(() => jobs.length > before);
    control.abort();
    await assert.rejects(reading, CancelledError);
    return jobs.at(-1)!;
  };
  const memory = (job: SpanJob) => [job.input.buffer, job.output!.buffer];
  const first = await callOff();
  const second = await callOff();
  for (const buffer of memory(first)) {
    assert.ok(!memory(second).includes(buffer), "it is still looked at");
  }
  first.onFree!();
  first.onFree!(); // again does nothing
  const third = await callOff();
  assert.deepEqual(
    memory(third).map((buffer) => memory(first).includes(buffer)),
    [true, true],
  );
  const fourth = await callOff();
  for (const buffer of memory(fourth)) {
    assert.ok(!memory(third).includes(buffer), "given twice");
  }
});

/** Says that half of a range has come, and no more. */
class ArrivingSource extends TestSource {
  preadProgressive(
    dst: Uint8Array,
    offset: number,
    onProgress: (available: number) => void,
    options: ReadOptions,
  ): Promise<void> {
    this.gate = new Promise(() => {});
    onProgress(dst.length / 2);
    return this.pread(dst, offset, options);
  }
}
