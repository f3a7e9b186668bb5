/** Layers and images that overlaybd's convertor noted: taken where they are what was asked for and belong together. */

import assert from "node:assert/strict";
import type { PublishReport } from "../../lib/image/mod.ts";
import { chainUuid, openLayer } from "../../lib/layers/mod.ts";
import { FileSource, MemorySink, readBytes, utf8 } from "../../lib/io/mod.ts";
import { ZFileWriter } from "../../lib/zfile/mod.ts";
import { chainId } from "../../lib/image/chain_key.ts";
import {
  build,
  dumpImage,
  imageTree,
  run,
  withTempDir,
} from "../image/helpers.ts";
import { startDockerRegistry } from "../testutil/docker_registry.ts";
import {
  file,
  type MadeBlob,
  makeBlob,
  makeImage,
  makeLayer,
} from "../testutil/oci_image.ts";
import { golden, requires } from "../testutil/requires.ts";
import {
  ENGINES,
  pushBlob,
  pushImage,
  readManifest,
  remove,
  type TestDatabase,
} from "./harness.ts";

const VSIZE = 2 ** 30;
const OCI = "application/vnd.oci.image";
const hasGolden = golden("native-lz4/layer2.overlaybd.commit") !== undefined &&
  golden("layers/layer2.tar.gz") !== undefined;

/** The golden layers, what overlaybd made of them with its chain's UUIDs, and one more. */
async function goldenLayers() {
  const { gunzipSync } = await import("node:zlib");
  const source = [1, 2].map((n) => {
    const blob = Deno.readFileSync(golden(`layers/layer${n}.tar.gz`)!);
    const tar = new Uint8Array(gunzipSync(blob));
    return makeLayer({ entries: tar, blob });
  });
  const diffIds = source.map(({ diffId }) => diffId);
  const native = await Promise.all(
    [1, 2].map((n) =>
      withUuids(`native-lz4/layer${n}.overlaybd.commit`, diffIds, n)
    ),
  );
  const third = makeLayer({ entries: [file("third", "by obd")] });
  return { source, native, third, diffIds };
}

/** The golden conversions were made by hand: the convertor names layers by their chains. */
async function withUuids(
  name: string,
  diffIds: string[],
  count: number,
): Promise<MadeBlob> {
  const blob = await FileSource.open(golden(name)!);
  const opened = await openLayer(blob, "native");
  await using data = opened.data;
  const bytes = await readBytes(data, 0, data.size);
  const uuid = (n: number) => utf8(chainUuid(chainId(diffIds.slice(0, n))));
  for (const at of [0, bytes.length - 4096]) {
    bytes.set(uuid(count), at + 56);
    if (count > 1) bytes.set(uuid(count - 1), at + 93);
  }
  const sink = new MemorySink();
  const writer = new ZFileWriter(sink, { codec: "lz4", blockSize: 4096 });
  await writer.write(bytes);
  await writer.finish();
  return makeBlob(`${OCI}.layer.v1.tar`, sink.bytes());
}

const reused = (report: PublishReport) =>
  report.platforms.flatMap(({ layers }) => layers.map((l) => l.reused));
const ways = (report: PublishReport) => [
  ...new Set(
    report.platforms.flatMap(({ layers }) =>
      layers.flatMap(({ reusedFrom: from }) =>
        from ? [`${from.repository.replace(/.*?\//, "")} ${from.by}`] : []
      )
    ),
  ),
];

// What differs between the engines is in database_test.ts; here one test goes through both.
for (const engine of ENGINES) {
  const test = (
    name: string,
    fn: (host: string, db: TestDatabase, dir: string) => Promise<void>,
  ) =>
    Deno.test({
      name: `${engine.name}: ${name}`,
      ignore: !hasGolden || !engine.isHere ||
        !requires("docker-registry", "e2fsck"),
      fn: () =>
        withTempDir(async (dir) => {
          await using registry = await startDockerRegistry(dir);
          await using db = await engine.start(dir);
          await db.open().findLayers({ host: "h", repository: "r" }, ["x"]);
          await fn(registry.host, db, dir);
        }),
    });

  const note = async (
    db: TestDatabase,
    host: string,
    repository: string,
    id: string,
    { digest, size }: { digest: string; size: number },
  ) => {
    await using connection = db.connect();
    await connection.run(
      "INSERT INTO overlaybd_layers (host, repo, chain_id, data_digest, data_size) VALUES (?, ?, ?, ?, ?)",
      [host, repository, id, digest, size],
    );
  };

  test(
    "a database that overlaybd's convertor filled: its layers are mounted and built upon",
    async (host, db, dir) => {
      const { source, native, third, diffIds } = await goldenLayers();
      for (const [i, blob] of native.entries()) {
        await pushBlob(host, "conv", blob);
        await note(db, host, "conv", chainId(diffIds.slice(0, i + 1)), blob);
      }
      const image = makeImage({ layers: [...source, third] });
      await pushImage(host, "app", "v1", image);
      const convert = async (name: string, options = {}) => {
        await using database = db.open();
        return await build({
          source: `${host}/${name}`,
          virtualSize: VSIZE,
          formats: ["overlaybd"],
          database,
          ...options,
        });
      };
      const { report, warnings } = await convert("app:v1");
      assert.deepEqual(warnings, []);
      assert.deepEqual(reused(report), [true, true, false]);
      assert.deepEqual(ways(report), ["conv overlaybd_layers"]);
      const made = await readManifest(host, "app", "v1-overlaybd");
      assert.deepEqual(
        made.layers.slice(0, 2).map(({ digest }) => digest),
        native.map(({ digest }) => digest),
      );
      // One file system, with everything in it.
      await dumpImage(`${host}/app:v1-overlaybd`, `${dir}/raw`);
      const { stdout } = await run(["e2fsck", "-fn", `${dir}/raw`]);
      // What e2fsck says of the golden conversions alone: counts that are too old, an unused index.
      const known =
        /^(Pass \d|Fix\? no$|Free (blocks|inodes) count wrong|.*HTREE directory inode 11\b|\S+: (\*|\d+\/\d+ files))/;
      const complaints = stdout.split("\n")
        .filter((line) => line !== "" && !known.test(line));
      assert.deepEqual(complaints, []);
      const tree = await imageTree(`${host}/app:v1-overlaybd`);
      assert.ok(tree.some((line) => line.includes('"path":"third"')));
      assert.ok(tree.length > 10);

      // Its rows and ours go on together, in the repository itself.
      const more = makeLayer({ entries: [file("more", "still")] });
      await pushImage(
        host,
        "app",
        "v2",
        makeImage({ layers: [...source, third, more] }),
      );
      const second = await convert("app:v2");
      assert.deepEqual(reused(second.report), [true, true, true, false]);
      assert.deepEqual(ways(second.report), ["app overlaybd_layers"]);

      const fourth = makeLayer({ entries: [file("fourth", "elsewhere")] });
      await pushImage(
        host,
        "new",
        "v1",
        makeImage({ layers: [...source, fourth] }),
      );
      // Another codec, another size: not what was asked for. Both formats: one device for both.
      for (
        const options of [
          { native: { codec: "zstd", blockSize: 4096 } },
          { native: { codec: "lz4", blockSize: 8192 } },
          { virtualSize: 2 * VSIZE },
          { formats: ["turbo", "overlaybd"] },
        ]
      ) {
        const other = await convert("new:v1", { ...options, tag: "other" });
        assert.deepEqual(ways(other.report), [], JSON.stringify(options));
      }
      // Nothing was noted beside what the convertor made.
      await using connection = db.connect();
      const rows = await connection.query(
        "SELECT DISTINCT data_digest FROM overlaybd_layers",
        [],
      );
      assert.equal(rows.length, 4);

      // The top one's blob has gone: its row is deleted, what lies below is still good.
      await remove(host, "app", "blobs", made.layers[2]!.digest);
      await connection.run("DELETE FROM overlaybd_manifests", []);
      await connection.run("DELETE FROM obd_chains", []);
      const redone = await convert("app:v2", { tag: "again" });
      assert.deepEqual(redone.warnings, []);
      assert.deepEqual(reused(redone.report), [true, true, false, false]);
      assert.deepEqual(ways(redone.report), ["app overlaybd_layers"]);
      assert.equal(
        (await readManifest(host, "app", "again")).layers[2]!.digest,
        made.layers[2]!.digest,
      );
    },
  );

  if (engine !== ENGINES[0]) continue;

  test(
    "layers that were not made on each other are not put on each other",
    async (host, db) => {
      const { source, native, diffIds } = await goldenLayers();
      const ids = [chainId(diffIds.slice(0, 1)), chainId(diffIds)];
      await pushImage(host, "app", "v1", makeImage({ layers: source }));
      const common = {
        source: `${host}/app:v1`,
        virtualSize: VSIZE,
        formats: ["overlaybd"] as const,
      };
      const own = await build({ ...common, dest: `${host}/own:v1` });
      const { layers: ours } = await readManifest(host, "own", "v1");
      // The convertor's upper layer on our lower one, in one repository, and each in one.
      for (const blob of native) await pushBlob(host, "own", blob);
      await pushBlob(host, "a", native[0]!);
      await pushBlob(host, "b", native[1]!);
      await note(db, host, "own", ids[0]!, ours[0]!);
      await note(db, host, "own", ids[1]!, native[1]!);
      await note(db, host, "b", ids[1]!, native[1]!);
      await using database = db.open();
      const { report, warnings } = await build({ ...common, database });
      assert.deepEqual(reused(report), [false, false]);
      assert.match(warnings.join("\n"), /are not of one file system/);
      assert.equal(
        report.platforms[0]!.meta.digest,
        own.report.platforms[0]!.meta.digest,
      );
      // A whole stack of one repository comes first.
      await note(db, host, "a", ids[0]!, native[0]!);
      await pushBlob(host, "a", native[1]!);
      await note(db, host, "a", ids[1]!, native[1]!);
      await pushImage(host, "late", "v1", makeImage({ layers: source }));
      const late = await build({
        ...common,
        source: `${host}/late:v1`,
        database: db.open(),
      });
      assert.deepEqual(reused(late.report), [true, true]);
    },
  );

  test(
    "an image that the convertor noted is pushed again as it is, if all of it is there and it is the source's",
    async (host, db) => {
      const { source, native } = await goldenLayers();
      const image = makeImage({
        layers: source,
        config: { history: [{ created_by: "one" }, { created_by: "two" }] },
      });
      // As the convertor writes it: no fields of obd, empty ones left out.
      const configOf = (settings: object) =>
        makeBlob(`${OCI}.config.v1+json`, {
          created: "2023-11-14T22:13:20Z",
          architecture: "amd64",
          os: "linux",
          config: settings,
          rootfs: { type: "layers", diff_ids: native.map((b) => b.digest) },
          history: [{ created_by: "one" }, { created_by: "two" }],
        });
      const manifestOf = (config: MadeBlob) =>
        makeBlob(`${OCI}.manifest.v1+json`, {
          schemaVersion: 2,
          mediaType: `${OCI}.manifest.v1+json`,
          config: {
            mediaType: config.mediaType,
            digest: config.digest,
            size: config.size,
          },
          layers: native.map(({ mediaType, digest, size }) => ({
            mediaType,
            digest,
            size,
            annotations: {
              "containerd.io/snapshot/overlaybd/version": "0.1.0",
              "containerd.io/snapshot/overlaybd/blob-digest": digest,
              "containerd.io/snapshot/overlaybd/blob-size": String(size),
            },
          })),
        });
      const put = async (repository: string, settings: object) => {
        const config = configOf(settings);
        const manifest = manifestOf(config);
        await pushImage(host, repository, "converted", {
          ...image,
          config,
          manifest,
          layers: native.map((blob) => ({
            ...blob,
            tar: blob.bytes,
            diffId: blob.digest,
          })),
        });
        await using connection = db.connect();
        await connection.run(
          "INSERT INTO overlaybd_manifests (host, repo, src_digest, out_digest, data_size, mediatype) VALUES (?, ?, ?, ?, ?, ?)",
          [
            host,
            repository,
            image.manifest.digest,
            manifest.digest,
            manifest.size,
            manifest.mediaType,
          ],
        );
        return manifest.digest;
      };
      const convert = async (repository: string, options = {}) => {
        await pushImage(host, repository, "v1", image);
        await using database = db.open();
        return await build({
          source: `${host}/${repository}:v1`,
          virtualSize: VSIZE,
          formats: ["overlaybd"],
          database,
          ...options,
        });
      };
      // Another program's settings under the source's layers.
      await put("conv-a", { Cmd: ["/bin/evil"] });
      const first = await convert("app");
      assert.deepEqual(reused(first.report), [false, false]);
      assert.match(first.warnings.join("\n"), /settings are not the source's/);

      const digest = await put("conv-b", { Cmd: ["/bin/sh"] });
      const second = await convert("second");
      assert.deepEqual(ways(second.report), ["app obd_chains"]);
      await using connection = db.connect();
      await connection.run("DELETE FROM obd_chains", []);
      await connection.run(
        "DELETE FROM overlaybd_manifests WHERE out_digest <> ?",
        [
          digest,
        ],
      );
      const hit = await convert("third", { tag: "new-tag" });
      assert.deepEqual(ways(hit.report), ["conv-b overlaybd_manifests"]);
      assert.equal(hit.report.platforms[0]!.meta.digest, digest);
      assert.equal(
        (await readManifest(host, "third", "new-tag")).digest,
        digest,
      );
      await imageTree(`${host}/third:new-tag`);
      // Together with the other format, which is built.
      const both = await convert("fourth", { formats: ["turbo", "overlaybd"] });
      assert.deepEqual(reused(both.report), [false, false, true, true]);

      // A row that lies about the size; a layer that has gone.
      await connection.run("DELETE FROM obd_chains", []);
      await connection.run("DELETE FROM overlaybd_layers", []);
      await connection.run("UPDATE overlaybd_manifests SET data_size = 7", []);
      const lie = await convert("fifth");
      assert.deepEqual(reused(lie.report), [false, false]);
      assert.match(lie.warnings.join("\n"), /Size of the image/);
      await connection.run("DELETE FROM obd_chains", []);
      await connection.run("DELETE FROM overlaybd_layers", []);
      await connection.run("DELETE FROM overlaybd_manifests", []);
      await put("conv-c", { Cmd: ["/bin/sh"] });
      await remove(host, "conv-c", "blobs", native[1]!.digest);
      const gone = await convert("sixth");
      assert.deepEqual(reused(gone.report), [false, false]);
      const left = await connection.query(
        "SELECT repo FROM overlaybd_manifests",
        [],
      );
      assert.deepEqual(left.map(({ repo }) => repo), ["sixth"]);
    },
  );
}
