import assert from "node:assert/strict";
import { type ByteSink, FileSink, MemorySink } from "../../lib/io/mod.ts";

async function fill(sink: ByteSink): Promise<Uint8Array> {
  const want = new Uint8Array(20_000);
  for (let at = 0; at < 20_000; at += 2500) {
    want.fill(at / 2500 + 1, at, at + 2500);
    await sink.write(want.slice(at, at + 2500));
  }
  await sink.rewrite!(Uint8Array.of(9, 9, 9), 100);
  want.fill(9, 100, 103);
  await sink.write(Uint8Array.of(7));
  await assert.rejects(sink.rewrite!(Uint8Array.of(1, 2), 20_000), TypeError);
  return Uint8Array.of(...want, 7);
}

Deno.test("MemorySink keeps what is written and rewritten", async () => {
  const sink = new MemorySink();
  assert.equal(sink.bytes().length, 0);
  const want = await fill(sink);
  assert.equal(sink.length, 20_001);
  assert.deepEqual(sink.bytes(), want);
});

Deno.test("FileSink writes from where the file stands", async () => {
  const path = await Deno.makeTempFile();
  try {
    {
      using file = await Deno.open(path, { write: true });
      await file.write(Uint8Array.of(1, 2, 3));
      const sink = new FileSink(file, 3);
      const want = await fill(sink);
      assert.equal(sink.length, 20_001);
      const got = await Deno.readFile(path);
      assert.deepEqual(got.subarray(0, 3), Uint8Array.of(1, 2, 3));
      assert.deepEqual(got.subarray(3), want);
    }
  } finally {
    await Deno.remove(path);
  }
});
