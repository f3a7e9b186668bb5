/**
 * Images whose layers are compressed in every way that is found: built, served,
 * read over NBD in random order and through a mount, and equal to what
 * containerd and umoci unpack.
 */

import { deepEqual, equal, ok } from "node:assert/strict";
import { Containerd } from "../testutil/containerd.ts";
import { readTree, runTool } from "../testutil/debian_image.ts";
import { parseTree, sameTree } from "../testutil/device_tree.ts";
import { ObdSandbox } from "../testutil/obd_command.ts";
import {
  blobPath,
  type MadeImage,
  makeImage,
  makeLayer,
  writeLayout,
} from "../testutil/oci_image.ts";
import { requires, requiresMount } from "../testutil/requires.ts";
import {
  GZIP_KINDS,
  type LayerKind,
  sampleTar,
  topLayer,
  ZSTD_KINDS,
} from "./compressors.ts";

const NBD_RANDOM = new URL("nbd_random.py", import.meta.url).pathname;

function canRun(kinds: readonly LayerKind[]): boolean {
  return [
    requiresMount(),
    requires("containerd", "ctr", "unshare", "python3", "tar", "umoci"),
    requires("nbdfuse", "losetup", "mount", "blockdev", "nbdsh"),
    requires(...new Set(kinds.flatMap(({ tools }) => tools))),
  ].every((has) => has);
}

/** One layer of each kind, and one on top of all. */
async function makeStack(
  kinds: readonly LayerKind[],
  dir: string,
): Promise<MadeImage> {
  const layers = [];
  for (const [i, kind] of kinds.entries()) {
    const work = `${dir}/${i}`;
    await Deno.mkdir(work);
    const name = nameOf(kind);
    const sample = await sampleTar(name, i, work, kind.rewritesTar ?? false);
    const { blob, tar = sample } = await kind.store(sample, work);
    const { mediaType } = kind;
    layers.push(makeLayer({ entries: tar, blob, mediaType }));
  }
  const named = kinds.filter(({ name }) => name !== "eStargz");
  layers.push(makeLayer({ entries: topLayer(named.map(nameOf)) }));
  return makeImage({ layers });
}

function nameOf({ name }: LayerKind): string {
  return name.replaceAll(/[^a-z0-9]+/gi, "-");
}

/**
 * Lines without the times of directories, which depend on the time of unpacking
 * where a layer changes what is in them.
 */
function withoutDirectoryTimes(tree: readonly string[]): string[] {
  return tree.map((line) => {
    const entry = JSON.parse(line);
    if (entry.type === "d") entry.mtime = "-";
    return JSON.stringify(entry);
  });
}

/** gzip blobs of several members, whose first is all that a `gzip.meta` can describe. */
const MANY_MEMBERS = ["bgzip", "gzip members joined", "eStargz"];

function wantedOfOverlaybd(kind: string): string {
  if (kind === "plain tar") return "tar";
  // Of a gzip layer without an index the reader fails to open it.
  const isReadable = !kind.includes("zstd") && !MANY_MEMBERS.includes(kind);
  return isReadable ? "gzip, index" : "gzip, no index";
}

/** For each layer the type of its target, and whether there is an index of it. */
async function whatOverlaybdIsTold(
  layout: string,
  digest: string,
): Promise<string[]> {
  const manifest = JSON.parse(
    await Deno.readTextFile(blobPath(layout, digest)),
  );
  const told = [];
  for (const { digest, annotations } of manifest.layers) {
    const type: string = annotations[
      "containerd.io/snapshot/overlaybd/turbo-oci/target-media-type"
    ];
    const members = await runTool("tar", "-tzf", blobPath(layout, digest));
    const hasIndex = members.split("\n").includes("gzip.meta");
    const compression = type.replace(/^.*[.+]/, "");
    told.push(
      compression === "tar"
        ? "tar"
        : `${compression}, ${hasIndex ? "index" : "no index"}`,
    );
  }
  return told;
}

const STACKS = [
  { name: "tar and gzip", kinds: GZIP_KINDS, isUmocis: true },
  { name: "zstd", kinds: ZSTD_KINDS, isUmocis: false },
];

for (const { name, kinds, isUmocis } of STACKS) {
  Deno.test({
    name: `every kind of layer: ${name}`,
    ignore: !canRun(kinds),
    fn: async (t) => {
      await using box = await ObdSandbox.make();
      const at = (path: string) => `${box.dir}/${path}`;
      for (const path of ["kinds", "c", "mnt"]) await Deno.mkdir(at(path));
      const image = await makeStack(kinds, at("kinds"));
      await writeLayout(at("layout"), [{ tag: "v1", image }]);
      const source = `oci:${at("layout")}:v1`;

      const built = await box.json("build", "--vsize", "1", source);
      equal(built.layers.length, kinds.length + 1);
      await t.step("overlaybd reads a layer right, or not at all", async () => {
        const told = await whatOverlaybdIsTold(
          at("layout"),
          built.meta.digest,
        );
        deepEqual(
          kinds.map(({ name }, i) => `${name}: ${told[i]}`),
          kinds.map(({ name }) => `${name}: ${wantedOfOverlaybd(name)}`),
        );
      });
      await t.step("NBD in random order shows what dump writes", async () => {
        const raw = at("device.raw");
        // The server's caches are to be empty.
        const dumped = await box.run(["dump", "-q", source, raw], {
          OBD_CACHE_DIR: at("other-cache"),
        });
        equal(dumped.code, 0, dumped.stderr);
        await box.serve({ images: [{ export: "kinds", image: source }] });
        const uri = `nbd+unix:///kinds?socket=${at("nbd.sock")}`;
        const count = await runTool(
          ...["/usr/bin/python3", NBD_RANDOM, uri, raw, "7"] as const,
        );
        ok(Number(count) > 300, count);
      });
      let tree: string[] = [];
      await t.step("a mount can be read", async () => {
        const api = `unix:${at("api.sock")}`;
        await box.json("mount", source, at("mnt"), "--api", api);
        const lines = await readTree(at("mnt"));
        tree = withoutDirectoryTimes(parseTree(lines.join("\n")));
        equal((await box.json("umount", at("mnt"))).unmounted, true);
      });
      await t.step("containerd unpacks the same", async () => {
        await using containerd = await Containerd.start(at("c"));
        const [native] = await containerd.unpack([image], "native");
        equal(native!.error, undefined);
        sameTree(tree, withoutDirectoryTimes(native!.tree!));
      });
      await t.step("TOC and landmark are ordinary files", () => {
        const names = tree.map((line) => JSON.parse(line).path)
          .filter((path) => /landmark|stargz/.test(path)).sort();
        deepEqual(
          names,
          isUmocis
            ? [
              ".prefetch.landmark",
              "estargz",
              "estargz/empty",
              "estargz/first",
              "estargz/link",
              "estargz/second",
              "estargz/third",
              "stargz.index.json",
            ]
            : [],
        );
      });
      if (!isUmocis) return;
      await t.step("umoci unpacks the same", async () => {
        const rootfs = at("rootfs");
        await runTool(
          ...["umoci", "raw", "unpack", "--image"] as const,
          ...[`${at("layout")}:v1`, rootfs],
        );
        const lines = await readTree(rootfs);
        sameTree(tree, withoutDirectoryTimes(parseTree(lines.join("\n"))));
      });
    },
  });
}
