/** eStargz's prefetch landmark: what lies before it is fetched before anybody asks. */

import { deepEqual, equal, ok } from "node:assert/strict";
import { openImage, prefetchImage } from "../../lib/image/mod.ts";
import { readBytes } from "../../lib/io/mod.ts";
import { build, testEnvironment, withTempDir } from "../image/helpers.ts";
import { makeEstargz } from "../testutil/estargz.ts";
import {
  blobPath,
  dir,
  file,
  type MadeImage,
  makeImage,
  putImage,
  writeLayout,
} from "../testutil/oci_image.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import { content } from "../zstd/helpers.ts";

const FIRST = [
  dir("bin"),
  file("bin/app", content(3_000_000, 1)),
  file("bin/library", content(400_000, 2)),
];
const REST = [file("manual", content(9_000_000, 3))];

function imageOf(
  prioritized: typeof FIRST,
  rest: typeof FIRST,
): { image: MadeImage; prioritizedBytes: number; blob: Uint8Array } {
  const { blob, tar, prioritizedBytes } = makeEstargz(prioritized, rest);
  const image = makeImage({
    layers: [
      { entries: [file("below", content(300_000, 4))] },
      { entries: tar, blob },
    ],
  });
  return { image, prioritizedBytes, blob };
}

/** Annotations of the meta image's layers. */
async function annotationsOf(
  layout: string,
  digest: string,
): Promise<Record<string, string>[]> {
  const text = await Deno.readTextFile(blobPath(layout, digest));
  return JSON.parse(text).layers.map((
    layer: { annotations: Record<string, string> },
  ) => layer.annotations);
}

Deno.test("the meta image says how much lies before the landmark", async () => {
  await withTempDir(async (path) => {
    const marked = imageOf(FIRST, REST);
    const unmarked = imageOf([], [...FIRST, ...REST]);
    const hints = async (image: MadeImage, layout: string) => {
      await writeLayout(layout, [{ tag: "v1", image }]);
      const { report } = await build({ source: `oci:${layout}:v1` });
      const { digest } = report.platforms[0]!.meta;
      const annotations = await annotationsOf(layout, digest);
      return [digest, ...annotations.map((all) => all["io.obd.prefetch"])];
    };
    const [digest, ...found] = await hints(marked.image, `${path}/a`);
    // The landmark's own header is the block in between.
    deepEqual(found, [undefined, String(marked.prioritizedBytes + 512)]);
    const [again] = await hints(marked.image, `${path}/b`);
    equal(again, digest, "the same bytes again");
    const [, ...none] = await hints(unmarked.image, `${path}/c`);
    deepEqual(none, [undefined, undefined]);
  });
});

Deno.test("a layer that is taken over keeps its hint", async () => {
  await withTempDir(async (path) => {
    const { image } = imageOf(FIRST, REST);
    const more = makeImage({
      layers: [...image.layers, { entries: [file("more", "1")] }],
      annotations: {
        "org.opencontainers.image.base.digest": image.manifest.digest,
      },
    });
    await writeLayout(path, [
      { tag: "base", image },
      { tag: "more", image: more },
    ]);
    await build({ source: `oci:${path}:base` });
    const { report } = await build({ source: `oci:${path}:more` });
    const [platform] = report.platforms;
    ok(platform!.layers[1]!.reused);
    const [, layer] = await annotationsOf(path, platform!.meta.digest);
    ok(Number(layer!["io.obd.prefetch"]) > 3_400_000);
  });
});

for (const findTraces of [true, false]) {
  Deno.test(
    `what lies before the landmark is ${findTraces ? "" : "not "}fetched ahead`,
    async () => {
      await using server = await RegistryServer.start();
      const { image, blob } = imageOf(FIRST, REST);
      await putImage(server, "app", "v1", image);
      const name = `${server.host}/app:v1`;
      await build({ source: name });
      await using environment = await testEnvironment();
      await using opened = await openImage(environment, name);
      const layer = opened.marked[0]!.target;
      const { signal } = new AbortController();
      const start = server.requests.length;
      await prefetchImage(environment, opened, { findTraces, signal });
      const { digest } = image.layers[1]!;
      const asked = () =>
        server.requests.slice(start).filter(({ path }) =>
          path.endsWith(digest)
        );
      const bytes = asked().reduce((sum, { range }) => {
        const [from, to] = /(\d+)-(\d+)/.exec(range!)!.slice(1).map(Number);
        return sum + to! - from! + 1;
      }, 0);
      if (!findTraces) return equal(bytes, 0);
      // The files of the first part are a third of the blob.
      ok(bytes > blob.length * 0.2 && bytes < blob.length * 0.5, `${bytes}`);
      const count = asked().length;
      const want = image.layers[1]!.tar;
      const got = await readBytes(layer, 0, opened.marked[0]!.length);
      deepEqual(got, want.subarray(0, got.length));
      equal(asked().length, count, "all of it was at hand");
      const last = await readBytes(layer, want.length - 5_000_000, 4096);
      deepEqual(last, want.subarray(want.length - 5_000_000).subarray(0, 4096));
      ok(asked().length > count);
    },
  );
}
