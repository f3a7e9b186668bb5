import assert from "node:assert/strict";
import {
  findTarPayload,
  tarWrapperHead,
  tarWrapperTail,
  unwrapTar,
} from "../../lib/layers/mod.ts";
import {
  concatBytes,
  FormatError,
  MemorySource,
  ObdError,
  readBytes,
} from "../../lib/io/mod.ts";
import { seeded } from "../testutil/lsmt_image.ts";
import { checkTarWrapper } from "../testutil/overlaybd_rules.ts";
import { golden, requires } from "../testutil/requires.ts";

function wrapped(size: number): Uint8Array {
  const payload = new Uint8Array(size).fill(0x5a);
  return concatBytes([tarWrapperHead(size), payload, tarWrapperTail(size)]);
}

const find = (bytes: Uint8Array) => findTarPayload(new MemorySource(bytes));

Deno.test("tar wrapper: what we write is found again", async () => {
  for (const size of [0, 1, 511, 512, 513, 99_999, 1_000_000]) {
    const file = wrapped(size);
    checkTarWrapper(file, size);
    assert.deepEqual(await find(file), { offset: 1536, size });
    const inner = await unwrapTar(new MemorySource(file));
    assert.equal(inner.size, size);
    assert.ok((await readBytes(inner, 0, size)).every((b) => b === 0x5a));
  }
});

Deno.test("tar wrapper: sizes above 8 GiB are written right", () => {
  for (const size of [2 ** 33 - 1, 2 ** 33, 2 ** 52]) {
    const text = new TextDecoder().decode(
      tarWrapperHead(size).subarray(512, 1024),
    ).replace(/\0.*/s, "");
    assert.equal(text, `${text.length} size=${size}\n`);
  }
});

Deno.test({
  name: "tar wrapper: head is overlaybd's, byte for byte",
  ignore: golden("unit/zt") === undefined,
  async fn() {
    const theirs = await Deno.readFile(golden("unit/zt")!);
    const payload = await find(theirs);
    assert.deepEqual(payload, { offset: 1536, size: 1462 });
    assert.deepEqual(
      concatBytes([
        tarWrapperHead(1462),
        theirs.subarray(1536, 1536 + 1462),
        tarWrapperTail(1462),
      ]).toHex(),
      theirs.toHex(),
    );
  },
});

Deno.test({
  name: "tar wrapper: tar lists and extracts what we write",
  ignore: !requires("tar"),
  async fn() {
    const dir = await Deno.makeTempDir();
    try {
      await Deno.writeFile(`${dir}/w.tar`, wrapped(1000));
      const { code, stdout } = await new Deno.Command("tar", {
        args: ["-xvf", `${dir}/w.tar`, "-C", dir],
      }).output();
      assert.equal(code, 0);
      assert.equal(new TextDecoder().decode(stdout), "overlaybd.commit\n");
      const file = await Deno.stat(`${dir}/overlaybd.commit`);
      assert.equal(file.size, 1000);
    } finally {
      await Deno.remove(dir, { recursive: true });
    }
  },
});

Deno.test("tar wrapper: detection wants magic, version and checksum", async () => {
  const change = (at: number, value: number, fix = true) => {
    const file = wrapped(600);
    file[at] = value;
    if (!fix) return file;
    const sum = file.subarray(0, 512).reduce(
      (n, b, i) => n + (i >= 148 && i < 156 ? 32 : b),
      0,
    );
    file.set(
      new TextEncoder().encode(sum.toString(8).padStart(6, "0") + "\0 "),
      148,
    );
    return file;
  };
  assert.ok(await find(change(0, 0x41)), "any name will do");
  assert.ok(await find(change(262, 0x20)), "five magic characters count");
  assert.equal(await find(change(261, 0x20)), undefined);
  assert.equal(await find(change(263, 0x20)), undefined);
  assert.equal(await find(change(264, 0)), undefined);
  assert.equal(await find(change(0, 0x41, false)), undefined, "checksum");
  assert.equal(await find(new Uint8Array(511)), undefined);
  assert.equal(await find(new Uint8Array(0)), undefined);
  // A signed sum is accepted where a byte is above 127.
  const signed = change(10, 0xff);
  const sum = signed.subarray(0, 512).reduce(
    (n, b, i) => n + (i >= 148 && i < 156 ? 32 : b > 127 ? b - 256 : b),
    0,
  );
  signed.set(
    new TextEncoder().encode(sum.toString(8).padStart(6, "0") + "\0 "),
    148,
  );
  assert.ok(await find(signed));
});

Deno.test("tar wrapper: what cannot be told is refused", async () => {
  const paxTwoBlocks = wrapped(600);
  const plainShort = wrapped(600).subarray(0, 1600);
  const fix = (file: Uint8Array) => {
    const sum = file.subarray(0, 512).reduce(
      (n, b, i) => n + (i >= 148 && i < 156 ? 32 : b),
      0,
    );
    file.set(
      new TextEncoder().encode(sum.toString(8).padStart(6, "0") + "\0 "),
      148,
    );
  };
  paxTwoBlocks.set(new TextEncoder().encode("       1001 "), 124);
  fix(paxTwoBlocks);
  const badRecord = wrapped(600);
  badRecord[512] = 0x78;
  const hugeRecord = wrapped(600);
  hugeRecord.set(new TextEncoder().encode("14 size=99999\n"), 512);
  for (const bad of [paxTwoBlocks, plainShort, badRecord, hugeRecord]) {
    await assert.rejects(find(bad), FormatError);
  }
});

Deno.test("tar wrapper survives mutations", async () => {
  const random = seeded(11);
  for (let i = 0; i < 2000; i++) {
    const bad = wrapped(700);
    for (let n = 1 + Math.floor(random() * 3); n > 0; n--) {
      bad[Math.floor(random() * 1100)] = Math.floor(random() * 256);
    }
    const sum = bad.subarray(0, 512).reduce(
      (s, b, at) => s + (at >= 148 && at < 156 ? 32 : b),
      0,
    );
    bad.set(
      new TextEncoder().encode(sum.toString(8).padStart(6, "0") + "\0 "),
      148,
    );
    try {
      const payload = await find(bad);
      if (payload) assert.ok(payload.offset + payload.size <= bad.length);
    } catch (error) {
      assert.ok(error instanceof ObdError, String(error));
    }
  }
});
