/** `obd merge`: what real tools made, and what obd built, as one layer. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { blockRuns, KIND, SegmentColumns } from "../../lib/layers/mod.ts";
import { makeImage, writeLayout } from "../testutil/oci_image.ts";
import { randomLayers } from "../testutil/random_layers.ts";
import { golden } from "../testutil/requires.ts";
import { build, OBD, run, withTempDir } from "../image/helpers.ts";
import { checkNative, imageDigest } from "./helpers.ts";

async function writeConfig(path: string, ...files: string[]): Promise<string> {
  const lowers = files.map((file) => ({ file }));
  await Deno.writeTextFile(path, JSON.stringify({ lowers }));
  return path;
}

async function merge(image: string, out: string, ...more: string[]) {
  const { code, stdout, stderr } = await run(
    [...OBD, "merge", "--json", image, out, ...more],
  );
  assert.equal(code, 0, stderr);
  return JSON.parse(stdout);
}

Deno.test({
  name: "golden stacks merged show what they showed",
  ignore: golden("native-lz4/layer1.overlaybd.commit") === undefined,
  fn: () =>
    withTempDir(async (dir) => {
      const layers = [1, 2].map((n) =>
        golden(`native-lz4/layer${n}.overlaybd.commit`)!
      );
      const stack = await writeConfig(`${dir}/c.json`, ...layers);
      const report = await merge(
        stack,
        `${dir}/one`,
        "--algorithm",
        "zstd",
        "--block-size",
        "16",
      );
      const blob = await Deno.readFile(`${dir}/one`);
      assert.equal(
        report.digest,
        `sha256:${createHash("sha256").update(blob).digest("hex")}`,
      );
      assert.equal(report.size, blob.length);
      checkNative(blob, {
        virtualSize: report.virtualSize,
        codec: "zstd",
        blockSize: 16384,
      });
      const one = await writeConfig(`${dir}/one.json`, `${dir}/one`);
      assert.equal(await imageDigest(one), await imageDigest(stack));
      // Once more from its own output: nothing changes.
      await merge(
        one,
        `${dir}/two`,
        "--algorithm",
        "zstd",
        "--block-size",
        "16",
      );
      assert.deepEqual(await Deno.readFile(`${dir}/two`), blob);
    }),
});

Deno.test("a TurboOCI image merged shows what it showed; a failure leaves nothing", async () => {
  await withTempDir(async (dir) => {
    const layout = `${dir}/l`;
    const image = makeImage({
      layers: randomLayers(17, 3).map((entries) => ({ entries })),
    });
    await writeLayout(layout, [{ tag: "v1", image }]);
    await build({ source: `oci:${layout}:v1`, virtualSize: 2 ** 30 });
    const meta = `oci:${layout}:v1-obd`;
    const report = await merge(meta, `${dir}/one`);
    checkNative(await Deno.readFile(`${dir}/one`), { virtualSize: 2 ** 30 });
    assert.equal(report.layers, 3);
    const one = await writeConfig(`${dir}/one.json`, `${dir}/one`);
    assert.equal(await imageDigest(one), await imageDigest(meta));
    const target = `${layout}/blobs/${
      image.layers[0]!.digest.replace(":", "/")
    }`;
    const bytes = await Deno.readFile(target);
    bytes[bytes.length >> 1]! ^= 1;
    await Deno.writeFile(target, bytes);
    const failed = await run([...OBD, "merge", meta, `${dir}/bad`]);
    assert.equal(failed.code, 1);
    const names = Array.from(Deno.readDirSync(dir), (e) => e.name);
    assert.deepEqual(names.filter((n) => n.startsWith("bad")), []);
  });
});

Deno.test("blockRuns(): whole blocks, disjoint, data before zeros, whatever the rows", () => {
  for (let seed = 1; seed < 300; seed++) {
    let state = seed * 7919;
    const next = (n: number) => {
      state = (state * 1103515245 + 12345) % 2147483648;
      return Math.floor(state / 65536) % n;
    };
    const size = 512 * (200 + next(9));
    const data = new Set<number>();
    const mapped = new Set<number>();
    const columns = new SegmentColumns(4);
    for (let at = next(6); at < size / 512;) {
      const length = Math.min(1 + next(20), size / 512 - at);
      const kind = next(3);
      columns.push(at, length, 0, kind, 0);
      for (let s = at; s < at + length; s++) {
        mapped.add(s >> 3);
        if (kind !== KIND.zeroed) data.add(s >> 3);
      }
      at += length + next(2) * next(15);
    }
    const got = new Map<number, boolean>();
    let end = 0;
    for (const run of blockRuns(columns.finish(), size)) {
      assert.ok(run.start >= end && run.end > run.start, `seed ${seed}`);
      assert.equal(run.start % 4096, 0);
      assert.ok(run.end % 4096 === 0 || run.end === size);
      for (let at = run.start; at < run.end; at += 4096) {
        got.set(at / 4096, run.zeroed);
      }
      end = run.end;
    }
    const want = new Map(
      [...mapped].map((block) => [block, !data.has(block)] as const),
    );
    assert.deepEqual(got, want, `seed ${seed}`);
  }
});
