import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import * as zlib from "node:zlib";
import {
  META_MEMBER,
  type MetaMember,
  readMetaBlob,
  writeMetaBlob,
} from "../../lib/layers/mod.ts";
import {
  concatBytes,
  MemorySink,
  MemorySource,
  ObdError,
} from "../../lib/io/mod.ts";
import { seeded } from "../testutil/lsmt_image.ts";
import { WaitingSource } from "../testutil/sources.ts";
import { checkMetaTar } from "../testutil/overlaybd_rules.ts";
import { golden, requires } from "../testutil/requires.ts";

function noise(seed: number, length: number): Uint8Array {
  const random = seeded(seed);
  return Uint8Array.from({ length }, () => Math.floor(random() * 256));
}

function members(seed = 1): MetaMember[] {
  return [
    { name: META_MEMBER.ext4, content: noise(seed, 200_001) },
    { name: META_MEMBER.marker, content: new Uint8Array(0) },
    { name: META_MEMBER.gzipMeta, content: noise(seed + 1, 512) },
    { name: META_MEMBER.spans, content: noise(seed + 2, 70_000) },
  ];
}

async function write(list: readonly MetaMember[]) {
  const sink = new MemorySink();
  const summary = await writeMetaBlob(sink, list);
  return { blob: sink.bytes().slice(), summary };
}

const sha256 = (bytes: Uint8Array) =>
  `sha256:${createHash("sha256").update(bytes).digest("hex")}`;

Deno.test("meta blob: round trip, digests, rules", async () => {
  const list = members();
  const { blob, summary } = await write(list);
  const tar = new Uint8Array(zlib.gunzipSync(blob));
  assert.deepEqual(summary, {
    digest: sha256(blob),
    size: blob.length,
    diffId: sha256(tar),
    tarSize: tar.length,
  });
  assert.deepEqual(blob.subarray(0, 10).toHex(), "1f8b08000000000002ff");
  checkMetaTar(tar, list.map((m) => m.name));
  for (const source of [new MemorySource(blob), new WaitingSource(blob)]) {
    const got = await readMetaBlob(source);
    const { members: found, ...rest } = got;
    assert.deepEqual(rest, summary);
    assert.deepEqual([...found.keys()], list.map((m) => m.name));
    for (const { name, content } of list) {
      assert.deepEqual(found.get(name), content);
    }
  }
  const plain = await readMetaBlob(new MemorySource(tar));
  assert.equal(plain.diffId, summary.diffId);
  assert.equal(plain.digest, summary.diffId);
  assert.equal(plain.members.size, 4);
});

Deno.test("meta blob: the same bytes from memory and from a source", async () => {
  const { blob } = await write(members());
  const again = await write(
    members().map(({ name, content }) => ({
      name,
      content: new WaitingSource(content as Uint8Array),
    })),
  );
  assert.deepEqual(again.blob, blob);
  assert.notDeepEqual((await write(members(5))).blob, blob);
});

Deno.test({
  name: "meta blob: tar and gzip read it",
  ignore: !requires("tar", "gzip"),
  async fn() {
    const dir = await Deno.makeTempDir();
    try {
      const list = members();
      await Deno.writeFile(`${dir}/m.tar.gz`, (await write(list)).blob);
      const { code, stdout } = await new Deno.Command("tar", {
        args: ["-xvzf", `${dir}/m.tar.gz`, "-C", dir],
      }).output();
      assert.equal(code, 0);
      assert.deepEqual(
        new TextDecoder().decode(stdout).trim().split("\n"),
        list.map((m) => m.name),
      );
      for (const { name, content } of list) {
        const file = await Deno.readFile(`${dir}/${name}`);
        assert.deepEqual(file, content);
      }
    } finally {
      await Deno.remove(dir, { recursive: true });
    }
  },
});

for (const folder of ["turbo-gz", "turbo-tar", "turbo-gz-erofs"]) {
  const fs = folder.endsWith("erofs") ? "erofs" : "ext4";
  const file = `${folder}/layer1.turboOCIv1.tar.gz`;
  Deno.test({
    name: `golden ${folder}: members, and the tar rewritten alike`,
    ignore: golden(file) === undefined,
    async fn() {
      const theirs = await Deno.readFile(golden(file)!);
      const got = await readMetaBlob(new MemorySource(theirs));
      assert.equal(got.digest, sha256(theirs));
      const names = [`${fs}.fs.meta`, ".turbo.ociv1"];
      if (folder !== "turbo-tar") names.push("gzip.meta");
      assert.deepEqual([...got.members.keys()], names);
      const meta = await Deno.readFile(
        golden(`${folder}/layer1.${fs}.fs.meta`)!,
      );
      assert.deepEqual(got.members.get(names[0]!), meta);
      const list = names.map((name) => ({
        name,
        content: got.members.get(name)!,
      }));
      const { summary } = await write(list);
      assert.equal(summary.diffId, got.diffId);
    },
  });
}

function tarOf(
  list: { name: string; content: Uint8Array }[],
): Promise<Uint8Array> {
  return write(list).then(({ blob }) => new Uint8Array(zlib.gunzipSync(blob)));
}

Deno.test("readMetaBlob(): only members that mean something, found by name", async () => {
  const tar = await tarOf([
    { name: "README", content: noise(1, 700) },
    { name: "./ext4.fs.meta", content: noise(2, 600) },
    { name: "dir/gzip.meta", content: noise(3, 5) },
  ]);
  const { members: found } = await readMetaBlob(new MemorySource(tar));
  assert.deepEqual([...found.keys()], ["ext4.fs.meta"]);
  // No end-of-archive blocks: accepted, as everywhere.
  const cut = tar.subarray(0, tar.length - 1024);
  assert.equal((await readMetaBlob(new MemorySource(cut))).members.size, 1);
  const none = await readMetaBlob(new MemorySource(new Uint8Array(0)));
  assert.equal(none.members.size, 0);
});

Deno.test("readMetaBlob() refuses what is broken", async () => {
  const { blob } = await write(members());
  const tar = new Uint8Array(zlib.gunzipSync(blob));
  const twice = await tarOf([
    { name: "gzip.meta", content: noise(1, 10) },
    { name: "gzip.meta", content: noise(2, 10) },
  ]);
  const badSum = tar.slice();
  badSum[0]! ^= 1;
  const badCrc = blob.slice();
  badCrc[blob.length - 8]! ^= 1;
  const badDeflate = blob.slice();
  badDeflate.fill(0xff, 20, 60);
  const cases: [string, Uint8Array, RegExp][] = [
    ["twice", twice, /twice/],
    ["checksum", badSum, /checksum/],
    ["short member", tar.subarray(0, 5000), /ends inside member/],
    ["short header", tar.subarray(0, 300), /ends inside a header/],
    ["gzip cut", blob.subarray(0, blob.length - 20), /gzip/],
    ["gzip CRC", badCrc, /gzip/],
    ["deflate", badDeflate, /gzip/],
    ["magic only", Uint8Array.of(0x1f, 0x8b), /gzip/],
  ];
  for (const [what, bytes, message] of cases) {
    await assert.rejects(
      readMetaBlob(new MemorySource(bytes)),
      (error: unknown) => {
        assert.ok(error instanceof ObdError, `${what}: ${error}`);
        assert.match(error.message, message, what);
        return true;
      },
    );
  }
});

Deno.test("readMetaBlob() stops a bomb at its limit", async () => {
  // 600 MiB of zeros behind one good header, in 600 gzip members of 1 MiB.
  const mebibyte = zlib.gzipSync(new Uint8Array(1 << 20));
  const tar = await tarOf([{ name: "x", content: noise(1, 1) }]);
  const head = zlib.gzipSync(tar.subarray(0, 1024));
  const bomb = concatBytes([head, ...Array(600).fill(mebibyte)]);
  await assert.rejects(readMetaBlob(new MemorySource(bomb)), { code: "limit" });
});

Deno.test("meta blob: failures of either end come out", async () => {
  const failing = new WaitingSource(noise(1, 500_000));
  failing.failAt = 300_000;
  await assert.rejects(
    write([{ name: "obd.spans", content: failing }]),
    /injected/,
  );
  await assert.rejects(readMetaBlob(failing), /injected|checksum|octal/);
  const { blob } = await write(members());
  const source = new WaitingSource(blob);
  source.failAt = blob.length - 5;
  await assert.rejects(readMetaBlob(source), /injected/);
  let left = 2;
  const full = {
    write: () =>
      left-- > 0 ? Promise.resolve() : Promise.reject(new Error("disk full")),
  };
  await assert.rejects(writeMetaBlob(full, members()), /disk full/);
});

Deno.test("readMetaBlob() survives mutations", async () => {
  const tar = await tarOf([
    { name: "ext4.fs.meta", content: noise(1, 3000) },
    { name: "obd.spans", content: noise(2, 10) },
  ]);
  const random = seeded(6);
  for (let i = 0; i < 1500; i++) {
    const bad = tar.slice(
      0,
      random() < 0.2 ? Math.floor(random() * tar.length) : tar.length,
    );
    for (let n = 1 + Math.floor(random() * 3); n > 0; n--) {
      const at = (random() < 0.5 ? 0 : 3584) + Math.floor(random() * 512);
      if (at < bad.length) bad[at] = Math.floor(random() * 256);
    }
    if (i % 2 === 0 && bad.length >= 512) fixSum(bad, 0);
    if (i % 2 === 0 && bad.length >= 4096) fixSum(bad, 3584);
    try {
      await readMetaBlob(new MemorySource(bad));
    } catch (error) {
      assert.ok(error instanceof ObdError, String(error));
    }
  }
});

function fixSum(tar: Uint8Array, at: number): void {
  let sum = 0;
  for (let i = 0; i < 512; i++) sum += i >= 148 && i < 156 ? 32 : tar[at + i]!;
  const text = sum.toString(8).padStart(6, "0") + "\0 ";
  tar.set(new TextEncoder().encode(text), at + 148);
}
