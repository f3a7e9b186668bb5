/** Converting a second image that shares its lower layers converts only the new ones. */

import assert from "node:assert/strict";
import { gzipSync, zstdCompressSync } from "node:zlib";
import type {
  LayerReport,
  PublishOptions,
  PublishReport,
} from "../../lib/image/mod.ts";
import { concatBytes } from "../../lib/io/mod.ts";
import { build, imageTree, withTempDir } from "../image/helpers.ts";
import { sameTree } from "../testutil/device_tree.ts";
import {
  type DockerRegistry,
  startDockerRegistry,
} from "../testutil/docker_registry.ts";
import {
  file,
  layerTar,
  type MadeLayer,
  makeImage,
  makeLayer,
} from "../testutil/oci_image.ts";
import { randomLayers } from "../testutil/random_layers.ts";
import { requires } from "../testutil/requires.ts";
import { ENGINES, pushImage, readManifest, remove } from "./harness.ts";

const VSIZE = 2 ** 30;
const [first, second, third] = randomLayers(2024, 3)
  .map((entries) => makeLayer({ entries }));
const base = makeImage({ layers: [first!, second!] });
const whole = makeImage({ layers: [first!, second!, third!] });

/** gzip of two members, which TurboOCI's readers refuse. */
function twoMembers(): MadeLayer {
  const tar = layerTar([file("members", "of gzip")]);
  const at = 700;
  const blob = concatBytes([
    new Uint8Array(gzipSync(tar.subarray(0, at))),
    new Uint8Array(gzipSync(tar.subarray(at))),
  ]);
  return makeLayer({ entries: tar, blob });
}

/** One frame that is too large to be decoded for each read. */
function oneFrame(): MadeLayer {
  const tar = layerTar([file("large", new Uint8Array(40 * 2 ** 20).fill(7))]);
  return makeLayer({
    entries: tar,
    blob: new Uint8Array(zstdCompressSync(tar)),
    mediaType: "application/vnd.oci.image.layer.v1.tar+zstd",
  });
}

const reused = (layers: readonly LayerReport[]) =>
  layers.map((layer) => layer.reused);
const origins = (report: PublishReport) =>
  new Set(
    report.platforms.flatMap(({ layers }) => layers)
      .filter((layer) => layer.reused)
      .map(({ reusedFrom }) => `${reusedFrom?.repository} ${reusedFrom?.by}`),
  );
const digests = (report: PublishReport) =>
  report.platforms.map(({ meta }) => meta.digest);

/** Layer blobs that were read, whole or in part. */
async function readLayers(
  registry: DockerRegistry,
  since: number,
): Promise<string[]> {
  return (await registry.requests()).slice(since)
    .filter((line) => line.startsWith("GET") && line.includes("/blobs/sha256:"))
    .map((line) => /sha256:[0-9a-f]{64}/.exec(line)![0]);
}

const VARIANTS: {
  name: string;
  options: Partial<PublishOptions>;
  lower?: MadeLayer[];
}[] = [
  { name: "turbo", options: {} },
  { name: "overlaybd", options: { formats: ["overlaybd"] } },
  {
    name: "overlaybd as zstd in 16 KiB, Docker's types",
    options: {
      formats: ["overlaybd"],
      native: { codec: "zstd", blockSize: 16384 },
      nativeTypes: "docker",
    },
  },
  { name: "both formats", options: { formats: ["turbo", "overlaybd"] } },
  {
    name: "--compat overlaybd",
    options: { compat: true },
    lower: [first!, twoMembers()],
  },
  {
    name: "--compat overlaybd, both formats",
    options: { compat: true, formats: ["overlaybd", "turbo"] },
    lower: [twoMembers(), first!],
  },
  {
    name: "--convert-unseekable",
    options: { convertUnseekable: true },
    lower: [oneFrame(), first!],
  },
];

for (const { name, options, lower } of VARIANTS) {
  Deno.test({
    name: `registry only: only new layers are converted: ${name}`,
    ignore: !requires("docker-registry"),
    fn: async () => {
      await withTempDir(async (dir) => {
        await using registry = await startDockerRegistry(dir);
        const { host } = registry;
        const layers = lower ?? [first!, second!];
        await pushImage(host, "app", "v1", makeImage({ layers }));
        const image = makeImage({ layers: [...layers, third!] });
        await pushImage(host, "app", "v2", image);
        await pushImage(host, "alone", "v2", image);
        const common = { virtualSize: VSIZE, ...options };
        await build({ source: `${host}/app:v1`, ...common });
        const since = (await registry.requests()).length;
        const { report, warnings } = await build({
          source: `${host}/app:v2`,
          ...common,
        });
        for (const platform of report.platforms) {
          assert.deepEqual(reused(platform.layers), [true, true, false]);
        }
        assert.deepEqual(origins(report), new Set([`${host}/app tag`]));
        const read = await readLayers(registry, since);
        assert.ok(read.includes(third!.digest), "the new layer is read");
        for (const { digest } of layers) assert.ok(!read.includes(digest));
        assert.deepEqual(warnings, []);
        // The same image as without anything to reuse.
        const alone = await build({ source: `${host}/alone:v2`, ...common });
        assert.ok(
          alone.report.platforms.every(({ layers }) =>
            !reused(layers).includes(true)
          ),
        );
        assert.deepEqual(digests(report), digests(alone.report));
        const again = await build({ source: `${host}/app:v2`, ...common });
        for (const { layers } of again.report.platforms) {
          assert.deepEqual(reused(layers), [true, true, true]);
        }
        assert.deepEqual(digests(again.report), digests(report));
      });
    },
  });
}

Deno.test({
  name:
    "registry only: what one format has is not written again when both are asked for; flattened images are found whole",
  ignore: !requires("docker-registry"),
  fn: async () => {
    await withTempDir(async (dir) => {
      await using registry = await startDockerRegistry(dir);
      const source = `${registry.host}/app:v1`;
      await pushImage(registry.host, "app", "v1", whole);
      await pushImage(registry.host, "app", "base", base);
      const common = { source, virtualSize: VSIZE };
      await build({ ...common, formats: ["turbo"] });
      await build({
        ...common,
        source: `${registry.host}/app:base`,
        formats: ["overlaybd"],
      });
      const both = await build({ ...common, formats: ["turbo", "overlaybd"] });
      assert.deepEqual(
        both.report.platforms.map(({ layers }) => reused(layers)),
        [[true, true, true], [true, true, false]],
      );
      sameTree(
        await imageTree(`${registry.host}/app:v1-obd`),
        await imageTree(`${registry.host}/app:v1-overlaybd`),
      );
      // Each format goes on from its own.
      const uneven = async (repository: string, shared: boolean) => {
        const { host } = registry;
        await pushImage(host, repository, "whole", whole);
        if (shared) {
          const one = makeImage({ layers: [first!] });
          await pushImage(host, repository, "base", base);
          await pushImage(host, repository, "one", one);
          for (
            const [tag, format] of [["base", "turbo"], ["one", "overlaybd"]]
          ) {
            await build({
              ...common,
              source: `${host}/${repository}:${tag}`,
              formats: [format as "turbo" | "overlaybd"],
            });
          }
        }
        return await build({
          ...common,
          source: `${host}/${repository}:whole`,
          formats: ["overlaybd", "turbo"],
        });
      };
      const shared = await uneven("uneven", true);
      assert.deepEqual(
        shared.report.platforms.map(({ layers }) => reused(layers)),
        [[true, false, false], [true, true, false]],
      );
      const alone = await uneven("even", false);
      assert.deepEqual(digests(shared.report), digests(alone.report));
      for (
        const formats of [["turbo"], ["overlaybd"], ["overlaybd", "turbo"]]
      ) {
        const flat = {
          ...common,
          flatten: true,
          tag: "flat",
          formats: formats as ("turbo" | "overlaybd")[],
        };
        const made = await build(flat);
        const again = await build(flat);
        assert.deepEqual(digests(again.report), digests(made.report));
        assert.ok(
          again.report.platforms.every(({ layers }) =>
            !reused(layers).includes(false)
          ),
          `${formats}`,
        );
      }
    });
  },
});

for (const engine of ENGINES) {
  const test = (name: string, fn: (dir: string) => Promise<void>) =>
    Deno.test({
      name: `${engine.name}: ${name}`,
      ignore: !requires("docker-registry") || !engine.isHere,
      fn: () => withTempDir(fn),
    });

  test("layers of another repository are mounted, only new ones converted; what has gone is redone", async (dir) => {
    await using registry = await startDockerRegistry(dir);
    await using engineOf = await engine.start(dir);
    const { host } = registry;
    const formats = ["turbo", "overlaybd"] as const;
    const convert = async (name: string, options = {}) => {
      await using database = engineOf.open();
      return await build({
        source: `${host}/${name}`,
        virtualSize: VSIZE,
        formats,
        database,
        ...options,
      });
    };
    await pushImage(host, "base", "v1", base);
    await convert("base:v1");
    await pushImage(host, "team/app", "v1", whole);
    let since = (await registry.requests()).length;
    const { report, warnings } = await convert("team/app:v1");
    assert.deepEqual(warnings, []);
    for (const { layers } of report.platforms) {
      assert.deepEqual(reused(layers), [true, true, false]);
    }
    assert.deepEqual(origins(report), new Set([`${host}/base obd_chains`]));
    const requests = (await registry.requests()).slice(since);
    const mounts = requests.filter((line) => line.includes("mount=sha256"));
    assert.equal(mounts.length, 4, "two layers of two formats");
    for (const line of mounts) assert.match(line, /from=base .*" 201/);
    const read = await readLayers(registry, since);
    for (const { digest } of base.layers) assert.ok(!read.includes(digest));

    // The same images as without a database, and they can be read.
    await pushImage(host, "alone", "v1", whole);
    const alone = await build({
      source: `${host}/alone:v1`,
      virtualSize: VSIZE,
      formats,
    });
    assert.deepEqual(digests(report), digests(alone.report));
    sameTree(
      await imageTree(`${host}/team/app:v1-overlaybd`),
      await imageTree(`${host}/alone:v1-obd`),
    );

    // A dry run leaves no trace; a third repository finds the whole image.
    await pushImage(host, "third", "v1", whole);
    since = (await registry.requests()).length;
    await convert("third:v1", { dryRun: true });
    assert.ok(
      !(await registry.requests()).slice(since)
        .some((line) => /^(POST|PUT|PATCH)/.test(line)),
    );
    const third = await convert("third:v1");
    assert.deepEqual(digests(third.report), digests(alone.report));
    assert.deepEqual(
      origins(third.report),
      new Set([`${host}/team/app obd_chains`]),
    );

    // What has gone is forgotten, and made again.
    const gone = ["base", "team/app", "third"];
    for (const repository of gone) {
      for (const ending of ["obd", "overlaybd"]) {
        const image = await readManifest(host, repository, `v1-${ending}`);
        for (const { digest } of image.layers) {
          await remove(host, repository, "blobs", digest);
        }
        if (repository !== "base") continue;
        await remove(host, repository, "manifests", image.digest);
      }
    }
    await pushImage(host, "fourth", "v1", whole);
    const redone = await convert("fourth:v1");
    for (const { layers } of redone.report.platforms) {
      assert.deepEqual(reused(layers), [false, false, false]);
    }
    assert.deepEqual(digests(redone.report), digests(alone.report));
    await using db = engineOf.connect();
    const rows = await db.query(
      "SELECT DISTINCT repo FROM obd_chains WHERE layer_count = 3",
      [],
    );
    assert.deepEqual(rows.map(({ repo }) => repo), ["fourth"]);
  });

  // What differs between the engines is in database_test.ts.
  if (engine !== ENGINES[0]) continue;

  test("what a database says is not believed", async (dir) => {
    await using registry = await startDockerRegistry(dir);
    await using engineOf = await engine.start(dir);
    const { host } = registry;
    const other = makeImage({ layers: [{ entries: [file("x", "y")] }] });
    await pushImage(host, "other", "v1", other);
    await pushImage(host, "app", "v1", base);
    const common = { virtualSize: VSIZE, formats: ["overlaybd"] as const };
    await build({ ...common, source: `${host}/other:v1` });
    const planted = await readManifest(host, "other", "v1-overlaybd");
    const honest = await build({
      ...common,
      source: `${host}/app:v1`,
      dest: `${host}/honest:v1`,
      database: engineOf.open(),
    });
    // Every row now names another image's manifest and layer, here and elsewhere.
    await using db = engineOf.connect();
    await db.run("UPDATE obd_chains SET repo = 'other', manifest_digest = ?", [
      planted.digest,
    ]);
    await db.run(
      "UPDATE overlaybd_manifests SET repo = 'other', out_digest = ?, data_size = ?",
      [planted.digest, await manifestSize(host, planted.digest)],
    );
    const { digest, size } = planted.layers[0]!;
    await db.run(
      "UPDATE overlaybd_layers SET repo = 'other', data_digest = ?, data_size = ?",
      [digest, size],
    );
    await using database = engineOf.open();
    const { report, warnings } = await build({
      ...common,
      source: `${host}/app:v1`,
      database,
    });
    assert.deepEqual(digests(report), digests(honest.report));
    assert.deepEqual(reused(report.platforms[0]!.layers), [false, false]);
    const lines = warnings.join("\n");
    assert.match(lines, /UUID is .* expected/);
    assert.match(lines, /layers are 1, expected 2/);
    assert.match(lines, /subject is another image/);
    assert.equal(warnings.length, 4, lines);
  });
}

async function manifestSize(host: string, digest: string): Promise<number> {
  const response = await fetch(`http://${host}/v2/other/manifests/${digest}`, {
    headers: { accept: "application/vnd.oci.image.manifest.v1+json" },
  });
  return (await response.bytes()).length;
}
