/**
 * gzip layers whose deflate blocks never end, as zlib-ng makes them at level 1
 * and igzip at level 0: nothing but their start can be resumed at.
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import { gzipSync } from "node:zlib";
import { ByteRing, GzipStream } from "../../lib/compress/mod.ts";
import { openImage, verifyImage } from "../../lib/image/mod.ts";
import { concatBytes, FormatError, MemorySource } from "../../lib/io/mod.ts";
import {
  type LayerScan,
  readGzipMeta,
  readMetaBlob,
  scanLayer,
} from "../../lib/layers/mod.ts";
import {
  blobPath,
  digestOf,
  file,
  type LayerEntry,
  layerTar,
  makeImage,
  makeLayer,
  writeLayout,
} from "../testutil/oci_image.ts";
import { Random } from "../testutil/random_layers.ts";
import { requires } from "../testutil/requires.ts";
import { build, testEnvironment, withTempDir } from "../image/helpers.ts";
import { deviceDigest, readImage } from "../native/helpers.ts";
import { compressWith } from "../zstd/helpers.ts";

const MIB = 2 ** 20;
const VSIZE = 2 ** 30;

/** 40 MiB in files; each begins with its number, so that no two are alike. */
function entriesOf(): LayerEntry[] {
  const random = new Random(9);
  const text = random.bytes(100_000);
  return Array.from({ length: 20 }, (_, i) => {
    const content = new Uint8Array(2 * MIB + i);
    for (let at = 0; at < content.length; at += text.length) {
      content.set(text.subarray(0, content.length - at), at);
    }
    content[0] = i;
    return file(`f${i}`, content);
  });
}

const ENTRIES = entriesOf();
const TAR = layerTar(ENTRIES);

async function scan(
  blob: Uint8Array,
  threads: number,
): Promise<LayerScan> {
  return await scanLayer(
    async function* () {
      for (let at = 0; at < blob.length; at += 999_983) {
        yield blob.subarray(at, at + 999_983);
      }
    }(),
    {
      blobSize: blob.length,
      expectedDigest: digestOf(new Uint8Array(blob)),
      threads,
    },
  );
}

function checkSpans(found: LayerScan, tar: Uint8Array): void {
  const { count, uncompressedOffset, size, sha256 } = found.spans;
  let at = 0;
  for (let i = 0; i < count; i++) {
    assert.equal(uncompressedOffset[i], at);
    assert.ok(size[i]! > 0 && size[i]! < 36 * MIB, `span ${i}: ${size[i]}`);
    const hash = createHash("sha256").update(tar.subarray(at, at + size[i]!));
    assert.ok(
      Buffer.compare(hash.digest(), sha256.subarray(i * 32, i * 32 + 32)) === 0,
      `digest of span ${i}`,
    );
    at += size[i]!;
  }
  assert.equal(at, tar.length);
}

Deno.test("a pass cuts long blocks into spans, on any number of threads alike", async () => {
  const single = new Uint8Array(gzipSync(TAR, { level: 1 }));
  const found = await scan(single, 1);
  assert.equal(found.checkpoints.count, 1);
  assert.ok(found.spans.count > 5);
  checkSpans(found, TAR);
  for (const threads of [2, 3]) {
    assert.deepEqual(await scan(single, threads), found);
  }
  // Blocks of a usual size behind it can be resumed at again.
  const tail = TAR.subarray(0, 8 * MIB);
  const two = concatBytes([single, gzipSync(tail, { level: 6 })]);
  const mixed = await scan(two, 1);
  checkSpans(mixed, concatBytes([TAR, tail]));
  assert.ok(mixed.checkpoints.count > 1);
  assert.ok(mixed.checkpoints.count < mixed.spans.count);
  const behind = mixed.checkpoints.uncompressedOffset[1]!;
  assert.ok(behind >= TAR.length, "checkpoints are where they say");
});

const COMPRESSORS = [
  { name: "zlib-ng -1", tools: [], command: undefined },
  { name: "igzip -0", tools: ["igzip"], command: ["igzip", "-0", "-c"] },
] as const;

for (const { name, tools, command } of COMPRESSORS) {
  Deno.test({
    name: `a layer of one long block is served out of a pinned file: ${name}`,
    ignore: !requires(...tools),
    fn: () =>
      withTempDir(async (dir) => {
        const blob = command
          ? await compressWith(command, TAR)
          : new Uint8Array(gzipSync(TAR, { level: 1 }));
        const layer = makeLayer({ entries: TAR, blob });
        const plain = makeLayer({ entries: ENTRIES, compression: "none" });
        const layout = `${dir}/l`;
        await writeLayout(layout, [
          { tag: "v1", image: makeImage({ layers: [layer] }) },
          { tag: "plain", image: makeImage({ layers: [plain] }) },
        ]);
        const source = `oci:${layout}:v1`;
        const { report } = await build({ source, virtualSize: VSIZE });
        assert.match(
          report.platforms[0]!.warnings.join("\n"),
          /deflate blocks are too large .* --convert-unseekable/s,
        );
        await build({ source: `oci:${layout}:plain`, virtualSize: VSIZE });

        // The index that overlaybd reads says nothing that is not so.
        const [meta] = (await readImage(layout, "v1-obd")).layers;
        const { members } = await readMetaBlob(
          new MemorySource(await Deno.readFile(blobPath(layout, meta!.digest))),
        );
        const { checkpoints, uncompressedSize } = readGzipMeta(
          members.get("gzip.meta")!,
          blob.length,
        );
        assert.equal(checkpoints.count, 1);
        assert.equal(uncompressedSize, TAR.length);

        await using environment = await testEnvironment();
        const want = await (async () => {
          await using image = await openImage(
            environment,
            `oci:${layout}:plain-obd`,
          );
          return await deviceDigest(image.source);
        })();
        {
          await using image = await openImage(
            environment,
            `oci:${layout}:v1-obd`,
          );
          assert.equal(image.integrity, "spans");
          assert.equal(await deviceDigest(image.source), want);
        }
        const { findings } = await verifyImage(
          environment,
          `oci:${layout}:v1-obd`,
        );
        assert.deepEqual(findings, []);

        // Native where that is asked for, whatever was built before.
        await build({
          source,
          virtualSize: VSIZE,
          convertUnseekable: true,
          tag: "native",
        });
        const converted = await readImage(layout, "native");
        assert.equal(
          converted.layers[0]!.annotations["io.obd.target-size"],
          undefined,
        );
        await using image = await openImage(
          environment,
          `oci:${layout}:native`,
        );
        assert.equal(image.layers[0]!.kind, "native");
        assert.equal(await deviceDigest(image.source), want);
      }),
  });
}

Deno.test("GzipStream decodes members in any steps, and refuses what is cut", () => {
  const random = new Random(2);
  const parts = [0, 1, 70_000, 300_000].map((length) => random.bytes(length));
  const content = concatBytes(parts);
  const blob = concatBytes(
    parts.map((part, i) => gzipSync(part, { level: i + 1 })),
  );
  const decode = (input: Uint8Array, step: number) => {
    const ring = new ByteRing(new Uint8Array(2 * MIB));
    const stream = new GzipStream(ring);
    try {
      const out = new Uint8Array(content.length + 1);
      let done = 0;
      for (let end = 0;;) {
        const isEnd = end === input.length;
        const room = Math.min(out.length, done + 1 + random.below(2 * step));
        const said = stream.step(end, isEnd, out, done, room);
        if (said === "data") done += stream.produced;
        else if (said === "end") return out.subarray(0, done);
        else if (said === "input") {
          assert.ok(!isEnd, "it asked for more than there is");
          const next = Math.min(input.length, end + 1 + random.below(step));
          ring.put(end, input.subarray(end, next));
          end = next;
        }
      }
    } finally {
      stream.close();
    }
  };
  for (const step of [1000, 65_536, 400_000]) {
    const padded = concatBytes([blob, new Uint8Array(1000)]);
    for (const input of [blob, padded]) {
      assert.ok(Buffer.compare(decode(input, step), content) === 0);
    }
  }
  for (const length of [5, 30, 100, blob.length >> 1, blob.length - 1]) {
    assert.throws(() => decode(blob.subarray(0, length), 5000), FormatError);
  }
});
