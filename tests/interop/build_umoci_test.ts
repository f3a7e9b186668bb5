/** What `obd build` makes of a stack of layers is what umoci unpacks. */

import { deepEqual, equal } from "node:assert/strict";
import { gunzipSync } from "node:zlib";
import {
  build,
  dumpImage,
  imageTree,
  sh,
  withTempDir,
} from "../image/helpers.ts";
import { parseTree, sameTree } from "../testutil/device_tree.ts";
import {
  dir,
  file,
  hardlink,
  type LayerEntry,
  type MadeImage,
  type MadeLayer,
  makeImage,
  makeLayer,
  opaque,
  symlink,
  whiteout,
  writeLayout,
} from "../testutil/oci_image.ts";
import { randomLayers } from "../testutil/random_layers.ts";
import {
  golden,
  requires,
  requiresMount,
  requiresRoot,
} from "../testutil/requires.ts";

const TREE = new URL("tree.py", import.meta.url).pathname;
const isRoot = requiresRoot("making devices and owners");
const canUnpack = requires("umoci", "python3") && isRoot;

/** Checks one image; `skip` leaves lines out of both trees. */
async function checkImage(
  dir: string,
  image: MadeImage,
  adapt: (line: string) => string = (line) => line,
): Promise<void> {
  const layout = `${dir}/layout`;
  await writeLayout(layout, [{ tag: "v1", image }]);
  await build({ source: `oci:${layout}:v1`, virtualSize: 2 ** 30 });
  const rootfs = `${dir}/rootfs`;
  await sh(["umoci", "raw", "unpack", "--image", `${layout}:v1`, rootfs]);
  const want = parseTree(await sh(["python3", TREE, rootfs]));
  const got = await imageTree(`oci:${layout}:v1`);
  sameTree(got.map(adapt), want.map(adapt));
  await dumpImage(`oci:${layout}:v1`, `${dir}/device.raw`);
  if (requires("e2fsck")) {
    await sh(["e2fsck", "-fn", `${dir}/device.raw`]);
  }
  if (requiresMount()) {
    const lines = await mountedTree(`${dir}/device.raw`, `${dir}/mnt`);
    sameTree(lines.map(adapt), want.map(adapt));
  }
  await Deno.remove(dir, { recursive: true });
}

/** The tree as the kernel shows it. */
async function mountedTree(device: string, at: string): Promise<string[]> {
  await Deno.mkdir(at);
  await sh(["mount", "-o", "loop,ro,noload", "-t", "ext4", device, at]);
  try {
    return parseTree(await sh(["python3", TREE, at]));
  } finally {
    await sh(["umount", at]);
  }
}

/** umoci makes the root itself, at the time it runs. */
function withoutRootTime(line: string): string {
  return line.includes('"path":""')
    ? line.replace(/"mtime":"-?[0-9]+"/, '"mtime":"-"')
    : line;
}

for (const seed of [1, 2, 3, 4, 5, 6, 7, 8]) {
  Deno.test({
    name:
      `build: random layers give the tree that umoci unpacks (seed ${seed})`,
    ignore: !canUnpack,
    fn: () =>
      withTempDir(async (dir) => {
        const layers = randomLayers(seed, 2 + seed % 4);
        const image = makeImage({
          layers: layers.map((entries, i) => ({
            entries,
            compression: i % 3 === 2 ? "none" : "gzip",
          })),
        });
        equal(image.layers.length, layers.length);
        await Deno.mkdir(`${dir}/x`);
        await checkImage(`${dir}/x`, image, withoutRootTime);
      }),
  });
}

const BELOW: LayerEntry[] = [
  dir("a"),
  file("a/one", "1"),
  file("a/two", "2"),
  dir("a/sub"),
  file("a/sub/deep", "3"),
  file("top", "4"),
  symlink("link", "a"),
];
/**
 * Layers whose order of entries matters. What removes names of its own layer is
 * not here: umoci spares them, containerd and obd do not (tests/kinds).
 */
const ABOVE: LayerEntry[][] = [
  [dir("a/sub"), opaque("a")],
  [opaque("a"), file("a/sub/new")],
  [whiteout("top"), file("top", "new")],
  [whiteout("link/one"), file("link/three")],
  [opaque("link")],
  [opaque("link/sub"), file("a/sub/x")],
  [hardlink("h", "link/one")],
  [hardlink("h", "top"), whiteout("top")],
  [opaque(""), file("x")],
];

Deno.test({
  name: "build: whiteouts in every order give the names that umoci unpacks",
  ignore: !canUnpack,
  fn: () =>
    withTempDir(async (dir) => {
      const paths = (tree: string[]) => tree.map((l) => JSON.parse(l).path);
      for (const [i, entries] of ABOVE.entries()) {
        const layout = `${dir}/${i}`;
        const image = makeImage({ layers: [{ entries: BELOW }, { entries }] });
        await writeLayout(layout, [{ tag: "v1", image }]);
        await build({ source: `oci:${layout}:v1`, virtualSize: 2 ** 30 });
        const rootfs = `${dir}/root-${i}`;
        await sh(["umoci", "raw", "unpack", "--image", `${layout}:v1`, rootfs]);
        deepEqual(
          paths(await imageTree(`oci:${layout}:v1`)),
          paths(parseTree(await sh(["python3", TREE, rootfs]))),
          entries.map((e) => e.path).join(", "),
        );
      }
    }),
});

/**
 * Directories that no entry describes are of the time of unpacking with umoci,
 * of 1970 here. The golden hard links' headers have another mode than their
 * target's: containerd, Docker and overlaybd apply it, umoci leaves it.
 */
function asRuntimes(line: string): string {
  const entry = JSON.parse(withoutRootTime(line));
  const { group, type, mtime } = entry;
  const isNow = Number(mtime) > 1_750_000_000e9;
  if (type === "d" && (mtime === "0" || isNow)) entry.mtime = "-";
  if (group === "usr/bin/tool") entry.mode = "-";
  return JSON.stringify(entry);
}

const goldens = ["layers/layer1.tar.gz", "layers/layer2.tar.gz"].map(golden);

Deno.test({
  name: "build: the golden layers give umoci's tree, each prefix is clean",
  ignore: !canUnpack || goldens.includes(undefined),
  fn: () =>
    withTempDir(async (dir) => {
      const layers = await goldenLayers();
      for (let count = 1; count <= layers.length; count++) {
        await Deno.mkdir(`${dir}/x`);
        const image = makeImage({ layers: layers.slice(0, count) });
        await checkImage(`${dir}/x`, image, asRuntimes);
      }
    }),
});

Deno.test({
  name: "build: debugfs reads what our reader reads",
  ignore: !requires("debugfs", "python3") || goldens.includes(undefined) ||
    !isRoot,
  fn: () =>
    withTempDir(async (dir) => {
      const layout = `${dir}/layout`;
      const image = makeImage({
        layers: [
          ...await goldenLayers(),
          { entries: randomLayers(77, 1)[0]! },
        ],
      });
      await writeLayout(layout, [{ tag: "v1", image }]);
      await build({ source: `oci:${layout}:v1` });
      await dumpImage(`oci:${layout}:v1`, `${dir}/device.raw`);
      await Deno.mkdir(`${dir}/out`);
      await sh(["debugfs", "-R", `rdump / ${dir}/out`, `${dir}/device.raw`]);
      const contents = (lines: string[]) =>
        lines.map((line) => JSON.parse(line))
          .filter((entry) => entry.type === "-" || entry.type === "l")
          .map(({ path, sha256, target }) => `${path} ${sha256 ?? target}`);
      sameTree(
        contents(await imageTree(`oci:${layout}:v1`)),
        contents(parseTree(await sh(["python3", TREE, `${dir}/out`]))),
      );
    }),
});

async function goldenLayers(): Promise<MadeLayer[]> {
  return await Promise.all(goldens.map(async (path) => {
    const blob = new Uint8Array(await Deno.readFile(path!));
    return makeLayer({ entries: new Uint8Array(gunzipSync(blob)), blob });
  }));
}
