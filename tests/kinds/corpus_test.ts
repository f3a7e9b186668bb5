/**
 * Stacks of odd layers become the trees that containerd's own archive code
 * unpacks, and what it refuses is refused.
 */

import { deepEqual, equal, fail, match, ok } from "node:assert/strict";
import { build, imageTree, withTempDir } from "../image/helpers.ts";
import { Containerd, type Unpacked } from "../testutil/containerd.ts";
import { sameTree } from "../testutil/device_tree.ts";
import {
  type MadeImage,
  makeImage,
  writeLayout,
} from "../testutil/oci_image.ts";
import { requires, requiresMount } from "../testutil/requires.ts";
import { CORPUS, type TarCase } from "./corpus.ts";

const ignore = ![
  requires("containerd", "ctr", "unshare", "python3", "tar"),
  requiresMount(),
].every((has) => has);

function imageOf({ layers }: TarCase): MadeImage {
  return makeImage({
    layers: layers.map((entries) => ({ entries, compression: "none" })),
  });
}

/** What obd makes of an image. */
async function unpackWithObd(
  image: MadeImage,
  layout: string,
): Promise<Unpacked> {
  await writeLayout(layout, [{ tag: "v1", image }]);
  try {
    await build({ source: `oci:${layout}:v1`, virtualSize: 2 ** 30 });
  } catch (error) {
    return { error: (error as Error).message };
  }
  return { tree: await imageTree(`oci:${layout}:v1`) };
}

/**
 * Lines without what depends on the time of unpacking: that of the root, and of
 * directories that no entry describes or whose content changed afterwards.
 *
 * @param like The tree that says which these are.
 */
function withoutUnpackTimes(
  tree: readonly string[],
  like: readonly string[],
  start: number,
): string[] {
  const isNew = new Set([
    "",
    ...like.map((line) => JSON.parse(line))
      .filter(({ type, mtime }) => type === "d" && Number(mtime) / 1e6 >= start)
      .map(({ path }) => path),
  ]);
  return tree.map((line) => {
    const entry = JSON.parse(line);
    if (isNew.has(entry.path)) entry.mtime = "-";
    return JSON.stringify(entry);
  });
}

const paths = (tree: readonly string[]) =>
  tree.map((line) => JSON.parse(line).path as string);

/** Checks one case. */
function compare(
  { refused, lenient, differs }: TarCase,
  want: Unpacked,
  got: Unpacked,
  start: number,
): void {
  if (refused) {
    ok(want.error, "containerd refuses it");
    match(got.error ?? "taken", refused);
    return;
  }
  if (lenient) {
    ok(want.error, `no longer: ${lenient.why}`);
    deepEqual(paths(got.tree ?? fail(got.error)), lenient.paths);
    return;
  }
  const [wanted, gotten] = [want, got].map(({ tree, error }) =>
    withoutUnpackTimes(tree ?? fail(error), want.tree!, start)
  );
  if (!differs) return sameTree(gotten!, wanted!);
  const other = [...wanted!, ...gotten!].filter((line) =>
    !wanted!.includes(line) || !gotten!.includes(line)
  );
  deepEqual([...new Set(paths(other))].sort(), differs.paths, differs.why);
}

Deno.test({
  name: "odd layers: obd builds what containerd unpacks",
  ignore,
  fn: (t) =>
    withTempDir(async (dir) => {
      equal(new Set(CORPUS.map(({ name }) => name)).size, CORPUS.length);
      const start = Date.now() - 1000;
      const images = CORPUS.map(imageOf);
      await Deno.mkdir(`${dir}/c`);
      await using containerd = await Containerd.start(`${dir}/c`);
      const native = await unpackAll(containerd, images);
      for (const [i, odd] of CORPUS.entries()) {
        await t.step(odd.name, async () => {
          const got = await unpackWithObd(images[i]!, `${dir}/o${i}`);
          compare(odd, native[i]!, got, start);
        });
      }
      const looked = CORPUS.flatMap((odd, i) => odd.overlayfs ? [i] : []);
      const overlay = await containerd.unpack(
        looked.map((i) => images[i]!),
        "overlayfs",
      );
      for (const [n, i] of looked.entries()) {
        const { name, overlayfs } = CORPUS[i]!;
        await t.step(`overlayfs: ${name}`, () => {
          equal(relation(overlay[n]!, native[i]!, start), overlayfs);
        });
      }
    }),
});

/** With one command what containerd takes, the others one by one. */
async function unpackAll(
  containerd: Containerd,
  images: readonly MadeImage[],
): Promise<Unpacked[]> {
  const all: Unpacked[] = new Array(images.length);
  for (const isTaken of [true, false]) {
    const some = CORPUS.flatMap(({ refused, lenient }, i) =>
      isTaken === !(refused || lenient) ? [i] : []
    );
    const unpacked = await containerd.unpack(
      some.map((i) => images[i]!),
      "native",
      isTaken,
    );
    for (const [n, i] of some.entries()) all[i] = unpacked[n]!;
  }
  return all;
}

function relation(
  overlay: Unpacked,
  native: Unpacked,
  start: number,
): TarCase["overlayfs"] {
  if (!overlay.tree || !native.tree) return "refused";
  // Times of directories that were copied are those of copying, on either side.
  const [a, b] = [overlay.tree, native.tree].map((tree) =>
    withoutUnpackTimes(
      withoutUnpackTimes(tree, overlay.tree, start),
      native.tree,
      start,
    ).join("\n")
  );
  return a === b ? "same" : "differs";
}
