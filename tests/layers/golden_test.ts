import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import * as zlib from "node:zlib";
import {
  KIND,
  LayerWriter,
  LsmtSource,
  type OpenedLayer,
  openLayer,
  stackVirtualSize,
} from "../../lib/layers/mod.ts";
import {
  type ByteSource,
  equalBytes,
  FormatError,
  MemorySink,
  MemorySource,
  readBytes,
} from "../../lib/io/mod.ts";
import { openZFile } from "../../lib/zfile/mod.ts";
import { golden } from "../testutil/requires.ts";

const unit = (name: string) => Deno.readFileSync(golden(`unit/${name}`)!);
const open = (name: string, kind: "native" | "warp" | "auto" = "auto") =>
  openLayer(new MemorySource(unit(name)), kind);

/** A test that needs one golden file. */
function goldenTest(file: string, name: string, fn: () => Promise<void>): void {
  Deno.test({ name, ignore: golden(file) === undefined, fn });
}

async function openOwned(blob: Uint8Array, kind: "native" | "warp") {
  const layer = await openLayer(new MemorySource(blob), kind);
  return {
    ...layer,
    [Symbol.asyncDispose]: () => layer.data[Symbol.asyncDispose](),
  };
}

/** SHA-256 of a whole device; holes are hashed from one zero buffer. */
async function deviceDigest(device: LsmtSource): Promise<string> {
  const hash = createHash("sha256");
  const zeros = new Uint8Array(1 << 20);
  const buffer = new Uint8Array(1 << 20);
  for (const extent of device.extents(0, device.size)) {
    for (let at = 0; at < extent.length; at += buffer.length) {
      const length = Math.min(buffer.length, extent.length - at);
      const piece = extent.kind === "data" ? buffer : zeros;
      if (extent.kind === "data") {
        await device.pread(buffer.subarray(0, length), extent.offset + at);
      }
      hash.update(piece.subarray(0, length));
    }
  }
  return hash.digest("hex");
}

function wanted(name: string): string {
  const lines = Deno.readTextFileSync(golden("merged-device.sha256")!);
  return lines.split("\n").map((l) => l.split(/ +/)).find((l) =>
    l[1] === name
  )![0]!;
}

for (const codec of ["lz4", "zstd"]) {
  for (const count of [1, 2]) {
    goldenTest(
      `native-${codec}/layer1.overlaybd.commit`,
      `golden native-${codec}: device of ${count} layers`,
      async () => {
        const layers: OpenedLayer[] = [];
        for (let i = 1; i <= count; i++) {
          const blob = await Deno.readFile(
            golden(`native-${codec}/layer${i}.overlaybd.commit`)!,
          );
          layers.push(await openLayer(new MemorySource(blob), "native"));
          assert.deepEqual(layers[i - 1]!.containers, ["tar", "zfile"]);
        }
        await using device = new LsmtSource(layers, stackVirtualSize(layers));
        assert.equal(device.size, 2 ** 30);
        assert.equal(
          await deviceDigest(device),
          wanted(`native-${codec}-layer${count}`),
        );
      },
    );
  }
}

const turbo: [string, string, string[]][] = [
  ["turbo-gz", "ext4", ["layer1", "layer2"]],
  ["turbo-tar", "ext4", ["layer1", "layer2"]],
  ["turbo-gz-erofs", "erofs", ["layer1", "layer2e"]],
];
for (const [folder, fs, names] of turbo) {
  for (const count of [1, 2]) {
    goldenTest(
      `${folder}/layer1.${fs}.fs.meta`,
      `golden ${folder}: device of ${count} layers`,
      async () => {
        const layers = await Promise.all(
          names.slice(0, count).map(async (name) => {
            const meta = await Deno.readFile(
              golden(`${folder}/${name}.${fs}.fs.meta`)!,
            );
            const layer = await openLayer(new MemorySource(meta), "warp");
            assert.deepEqual(layer.containers, ["zfile"]);
            const blob = await Deno.readFile(golden(`layers/${name}.tar.gz`)!);
            return {
              ...layer,
              target: new MemorySource(zlib.gunzipSync(blob)),
            };
          }),
        );
        await using device = new LsmtSource(layers, stackVirtualSize(layers));
        assert.equal(
          await deviceDigest(device),
          wanted(`${folder}-${names[count - 1]}`),
        );
      },
    );
  }
}

for (
  const [file, kind] of [
    ["unit/fs.meta", "warp"],
    ["unit/erofs.meta", "warp"],
    ["unit/erofs2.meta", "warp"],
    ["turbo-gz/layer1.ext4.fs.meta", "warp"],
    ["turbo-gz/layer2.ext4.fs.meta", "warp"],
    ["native-lz4/layer2.overlaybd.commit", "native"],
  ] as const
) {
  goldenTest(
    file,
    `golden ${file}: rewriting gives the same bytes`,
    async () => {
      const blob = await Deno.readFile(golden(file)!);
      await using layer = await openOwned(blob, kind);
      const { table, data, virtualSize, uuid, parentUuid, userTag } = layer;
      const sink = new MemorySink();
      const fields = { virtualSize, uuid, parentUuid, userTag };
      const writer = await LayerWriter.start(sink, kind, fields);
      for (let row = 0; row < table.count; row++) {
        const offset = table.offset[row]! * 512;
        const length = table.length[row]! * 512;
        const from = table.moffset[row]! * 512;
        if (table.kind[row] === KIND.target) writer.map(offset, length, from);
        else if (table.kind[row] === KIND.zeroed) writer.zero(offset, length);
        else await writer.write(offset, await readBytes(data, from, length));
      }
      await writer.finish();
      const theirs = await readBytes(data, 0, data.size);
      assert.ok(equalBytes(sink.bytes(), theirs));
    },
  );
}

goldenTest(
  "unit/plain",
  "golden unit: bare LSMT and its tar+ZFile form agree",
  async () => {
    const plain = await open("plain");
    assert.equal(plain.uuid, "11111111-2222-3333-4444-555555555555");
    assert.equal(plain.entryCount, 3);
    assert.equal(plain.virtualSize, 8 << 20);
    const zt = await open("zt");
    assert.deepEqual(zt.containers, ["tar", "zfile"]);
    assert.deepEqual((await open("zbody")).containers, ["zfile"]);
    for (const layer of [plain, zt, await open("sld")]) {
      await using device = new LsmtSource([layer], layer.virtualSize);
      const head = await readBytes(device, 0, 12288);
      const want = new Uint8Array(12288);
      want.fill(0x41, 0, 4096); // 4096 'A' at 0
      want.fill(0x42, 4096, 4608); // 512 'B' at 4096
      want.fill(0x43, 8192, 12288); // 4096 'C' at 8192, its first 2048 trimmed
      want.fill(0, 8192, 8192 + 2048);
      assert.equal(head.toHex(), want.toHex());
    }
  },
);

goldenTest("unit/b0", "golden unit: a stack of three", async () => {
  const layers = await Promise.all(["b0", "b1", "b2"].map((n) => open(n)));
  assert.equal(stackVirtualSize(layers), 1 << 20);
  await using device = new LsmtSource(layers, 1 << 20);
  assert.equal(device.table.count, 5);
  let text = "";
  for (let i = 0; i < 16; i++) {
    const [first, ...rest] = await readBytes(device, i * 512, 512);
    assert.ok(rest.every((b) => b === first));
    text += first === 0 ? "0" : String.fromCharCode(first!);
  }
  assert.equal(text, "0V000000UUUULLLL");
});

for (
  const [name, count] of [["a2", 2], ["a7", 0], ["a8", 1], ["sps", 1]] as const
) {
  goldenTest(`unit/${name}`, `golden unit: ${name} opens`, async () => {
    assert.equal((await open(name)).entryCount, count);
  });
}

for (
  const [name, reason] of [
    ["d", /never sealed/],
    ["i", /flags|never sealed|size/],
    ["ti", /flags|never sealed|size/],
    ["w1", /all entries are remote/],
    ["zgrp", /jump table: block 0 is 65000 bytes/],
    ["tw_gnu", /neither with a ustar header/],
    ["g.idx", /neither with a ustar header/],
    ["tgt", /neither with a ustar header/],
  ] as const
) {
  goldenTest(`unit/${name}`, `golden unit: ${name} is refused`, async () => {
    await assert.rejects(open(name, "warp"), (error: unknown) => {
      assert.ok(error instanceof FormatError, String(error));
      assert.match(error.message, reason);
      return true;
    });
  });
}

goldenTest("unit/w2", "golden unit: a warp layer with both kinds", async () => {
  const layer = await open("w2");
  assert.equal(layer.kind, "warp");
  const target = new MemorySource(unit("tgt"));
  await using device = new LsmtSource([{ ...layer, target }], 1 << 20);
  assert.deepEqual(
    await readBytes(device, 0, 4096),
    unit("tgt").slice(4 * 512, 12 * 512),
  );
});

goldenTest(
  "unit/fs.meta",
  "golden unit: fs.meta over L.tar has the files",
  async () => {
    const layer = await open("fs.meta", "warp");
    assert.equal(layer.entryCount, 8);
    const tar = zlib.gunzipSync(unit("L.tar.gz"));
    const target = new MemorySource(tar);
    await using device = new LsmtSource([{ ...layer, target }], 64 << 20);
    // Entry 3: device sectors 2176+20 are tar sectors 6+20.
    assert.deepEqual(
      await readBytes(device, 2176 * 512, 20 * 512),
      new Uint8Array(tar.subarray(6 * 512, 26 * 512)),
    );
    const superblock = await readBytes(device, 1024, 64);
    assert.equal(superblock[56]! | superblock[57]! << 8, 0xef53);
  },
);

for (const name of ["erofs.meta", "erofs2.meta"]) {
  goldenTest(`unit/${name}`, `golden unit: ${name} opens as warp`, async () => {
    const layer = await open(name);
    assert.equal(layer.kind, "warp");
    assert.equal(layer.entryCount, name === "erofs.meta" ? 4 : 3);
  });
}

async function zfileContent(source: ByteSource): Promise<Uint8Array> {
  await using file = await openZFile(source);
  return await readBytes(file, 0, file.size);
}

goldenTest(
  "unit/z4",
  "golden unit: odd ZFiles hold the same content",
  async () => {
    const want = await zfileContent(new MemorySource(unit("z4")));
    assert.equal(want.length, 274432);
    for (const name of ["zs4", "ztr", "zgarb"]) {
      const got = await zfileContent(new MemorySource(unit(name)));
      assert.ok(got.every((b, i) => b === want[i]), name);
    }
    for (const name of ["tw_ustar", "tw_pax"]) {
      assert.deepEqual((await open(name)).containers, ["tar", "zfile"]);
    }
    // Wrong CRCs without the digest flag do not count.
    assert.deepEqual(
      await zfileContent(new MemorySource(unit("znodig"))),
      want,
    );
  },
);

goldenTest(
  "unit/native_layer_zt",
  "golden unit: a native layer with a file system",
  async () => {
    const layer = await open("native_layer_zt");
    assert.deepEqual(layer.containers, ["tar", "zfile"]);
    await using device = new LsmtSource([layer], layer.virtualSize);
    const superblock = await readBytes(device, 1024, 64);
    assert.equal(superblock[56]! | superblock[57]! << 8, 0xef53);
  },
);

goldenTest("unit/ext4_64", "golden unit: the default base layer", async () => {
  const layer = await open("ext4_64", "native");
  assert.equal(layer.uuid, "C02FB491-B4D4-4904-8684-A014D032AF78");
  assert.equal(layer.virtualSize, 64 * 2 ** 30);
  assert.equal(layer.table.endSector, 134_217_728);
  await using device = new LsmtSource([layer], layer.virtualSize);
  const superblock = await readBytes(device, 1024, 1024);
  assert.equal(superblock[56]! | superblock[57]! << 8, 0xef53);
});
