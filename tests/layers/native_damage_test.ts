/** Native layers behind a cache that holds wrong bytes. */

import assert from "node:assert/strict";
import {
  type ByteSource,
  IntegrityError,
  loadLibc,
  MemorySource,
} from "../../lib/io/mod.ts";
import { CachedSource, LsmtSource, openLayer } from "../../lib/layers/mod.ts";
import { writeNativeBlob } from "../../lib/layers/native_layer.ts";
import { tempStore } from "../testutil/cache_store.ts";
import { seededBytes } from "../testutil/source_contract.ts";
import { TestSource } from "../testutil/test_source.ts";

loadLibc(); // not a leak of the first test

const SIZE = 3 * 2 ** 20;
const DEVICE = seededBytes(SIZE, 1);
/** Where the payload of the tar wrapper begins. */
const PAYLOAD = 1536;

async function nativeBlob(): Promise<Uint8Array> {
  const directory = await Deno.makeTempDir({ prefix: "obd-native-damage-" });
  try {
    await writeNativeBlob(`${directory}/blob`, {
      device: new MemorySource(DEVICE),
      runs: () => [{ start: 0, end: SIZE, zeroed: false }],
      virtualSize: SIZE,
    }, {});
    return await Deno.readFile(`${directory}/blob`);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

/** All of the device that a layer makes. */
async function readAll(blob: ByteSource): Promise<Uint8Array> {
  await using device = new LsmtSource([await openLayer(blob, "native")], SIZE);
  const bytes = new Uint8Array(SIZE);
  await device.pread(bytes, 0);
  return bytes;
}

Deno.test("a native layer is fetched again where the cache holds wrong bytes of it", async () => {
  const blob = await nativeBlob();
  const end = blob.length - 1024 - 512; // the ZFile's trailer, which nobody reads
  const places = [
    ...[0, 150, 600, PAYLOAD + 3, PAYLOAD + 45, PAYLOAD + 70, PAYLOAD + 600],
    ...Array.from({ length: 12 }, (_, i) => Math.floor(blob.length * i / 12)),
    ...[end - 10_000, end - 200, end - 4],
  ];
  for (const place of places) {
    await using store = await tempStore();
    const inner = new TestSource(blob.slice());
    inner.content[place]! ^= 0xff;
    const cached = new CachedSource(inner, { key: "native", store });
    await cached.pread(new Uint8Array(blob.length), 0);
    await store.settled();
    inner.content.set(blob);
    const got = await readAll(cached);
    assert.ok(Buffer.compare(got, DEVICE) === 0, `damage at ${place}`);
  }
});

Deno.test("a native layer that stays wrong fails its reads, and nothing wrong stays in the cache", async () => {
  const blob = await nativeBlob();
  await using store = await tempStore();
  const inner = new TestSource(blob.slice());
  const cached = new CachedSource(inner, { key: "native", store });
  await using device = new LsmtSource(
    [await openLayer(cached, "native")],
    SIZE,
  );
  inner.content[blob.length >> 1]! ^= 1;
  const before = inner.reads.length;
  const part = new Uint8Array(SIZE >> 1);
  await assert.rejects(device.pread(part, SIZE >> 2), IntegrityError);
  const reads = inner.reads.length - before;
  assert.ok(reads <= 8, `${reads} reads`);
  inner.content.set(blob);
  await device.pread(part, SIZE >> 2);
  assert.deepEqual(part, DEVICE.subarray(SIZE >> 2, (SIZE >> 2) + part.length));
});

Deno.test("CachedSource.discard() of a source of any size looks at what was read only", async () => {
  await using store = await tempStore();
  const BLOCK = 256 * 1024;
  const size = 2 ** 52;
  await using source = new CachedSource({
    size,
    pread: (dst) => Promise.resolve(void dst.fill(7)),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  }, { key: "endless", store });
  const places = [0, size / 2, size - 10];
  for (const place of places) await source.pread(new Uint8Array(5), place);
  const half = size / 2 + BLOCK;
  assert.ok(source.discard(half, size - half), "the last block");
  assert.ok(!source.discard(half, size - half));
  const isHeld = (place: number) => source.preadNow(new Uint8Array(5), place);
  assert.deepEqual(places.map(isHeld), [true, true, false]);
  assert.ok(source.discard(0, size));
  assert.deepEqual(places.map(isHeld), [false, false, false]);
});
