import assert from "node:assert/strict";
import { layerReads, openImage } from "../../lib/image/mod.ts";
import { dir, file, makeImage, writeLayout } from "../testutil/oci_image.ts";
import { build, testEnvironment, withTempDir } from "./helpers.ts";

const CELLS = 100;
const NOISE = 2_000_000;

/** Bytes that do not compress. */
function noise(length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length; at += 65536) {
    crypto.getRandomValues(bytes.subarray(at, Math.min(length, at + 65536)));
  }
  return bytes;
}

Deno.test("layerReads() says how much of which layer is read, and where it is stored", () =>
  withTempDir(async (path) => {
    const image = makeImage({
      layers: [
        {
          entries: [
            dir("d"),
            file("d/a", noise(NOISE)),
            // Takes next to nothing in the blob.
            file("d/zeros", new Uint8Array(NOISE)),
            file("d/b", noise(NOISE)),
          ],
        },
        {
          entries: [file("d/plain", noise(NOISE))],
          compression: "none" as const,
        },
      ],
    });
    await writeLayout(`${path}/layout`, [{ tag: "v1", image }]);
    const source = `oci:${path}/layout:v1`;
    await using environment = await testEnvironment();
    await build({ source });
    await using opened = await openImage(environment, source);
    const device = opened.source;
    const origins = [...device.origins(0, device.size)];
    assert.ok(origins.every((o) => o.length > 0));

    const all = layerReads(opened, [{ offset: 0, length: device.size }], CELLS);
    assert.deepEqual(
      all.map((l) => l.digest),
      image.layers.map((l) => l.digest),
    );
    const sectors = Math.ceil(NOISE / 512) * 512;
    assert.equal(all[0]!.contentBytes, 3 * sectors);
    assert.equal(all[1]!.contentBytes, sectors);
    assert.ok(all.every((l) => l.metadataBytes > 0));
    // Two thirds of the content are as large as they were: the ratio is the layer's.
    const ratio = image.layers[0]!.size / image.layers[0]!.tar.length;
    const stored = all[0]!.contentBytes * ratio;
    assert.ok(Math.abs(all[0]!.storedBytes - stored) < 10_000);
    assert.ok(all[0]!.cells.every((share) => share > 0.9 && share <= 1));
    assert.ok(all[1]!.cells.every((share) => share > 0.9 && share <= 1));

    // The last file of the first layer is in the second half of its blob.
    const tarHead = 3 * sectors / 2;
    const lastFile = { offset: -1, length: 0 };
    for (let at = 0; at < device.highestMapped(); at += 4096) {
      const [first] = device.origins(at, 4096);
      const isLast = first && first.layer === 0 && first.isTarget &&
        first.offset > 2 * sectors + 1024 && first.offset > tarHead;
      if (isLast) {
        if (lastFile.offset < 0) lastFile.offset = at;
        lastFile.length = at + 4096 - lastFile.offset;
      }
    }
    const [part, other] = layerReads(opened, [lastFile], CELLS);
    const half = part!.cells.findIndex((share) => share > 0);
    assert.ok(half >= 48 && half <= 52, String(part!.cells));
    assert.ok(part!.cells.slice(half + 1).every((share) => share > 0.9));
    assert.equal(other!.contentBytes, 0);

    for (const nothing of [[], [{ offset: device.size + 5, length: 4096 }]]) {
      const none = layerReads(opened, nothing, CELLS);
      assert.ok(
        none.every((l) => l.storedBytes === 0 && l.metadataBytes === 0),
      );
    }
    const over = layerReads(opened, [
      { offset: 0, length: device.size * 2 },
      { offset: 0, length: device.size },
    ], CELLS);
    assert.ok(over[0]!.cells.every((share) => share <= 1));
  }));
