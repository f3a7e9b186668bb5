/** `obd inspect` on layouts and images of every kind, and the command itself. */

import assert from "node:assert/strict";
import type { FileInspection, LayoutInspection } from "../../lib/image/mod.ts";
import { FileSource, MemorySink, NotFoundError } from "../../lib/io/mod.ts";
import { readMetaBlob, writeMetaBlob } from "../../lib/layers/mod.ts";
import {
  blobPath,
  makeBlob,
  makeImage,
  makeIndex,
  nameOf,
  putImage,
  writeLayout,
} from "../testutil/oci_image.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import { golden } from "../testutil/requires.ts";
import {
  build,
  dataOf,
  flipped,
  image,
  inspectBytes,
  inspectImage,
  inspectTarget,
  upper,
} from "./inspect_harness.ts";
import { assertOneLine, obd, withTempDir } from "./run_obd.ts";

// ---- layouts --------------------------------------------------------------------

Deno.test("a layout: its images, what is unreferenced, what is missing", () =>
  withTempDir(async (dir) => {
    const arm = makeImage({
      layers: [upper],
      platform: { os: "linux", architecture: "arm64" },
    });
    const index = makeIndex([image, arm]);
    await writeLayout(dir, [
      { tag: "v1", image },
      { tag: "all", image: index },
    ]);
    await Deno.writeTextFile(`${dir}/blobs/sha256/${"0".repeat(64)}`, "x");
    const found = await inspectTarget(dir) as LayoutInspection;
    assert.equal(found.what, "layout");
    assert.equal(found.problem, undefined);
    assert.equal(found.unreferenced, 1);
    const [v1, all] = found.entries;
    assert.deepEqual([v1!.tag, v1!.kind, v1!.layers], ["v1", "plain", 2]);
    assert.equal(all!.kind, "index");
    assert.deepEqual(all!.entries!.map((e) => e.platform), [
      "linux/amd64",
      "linux/arm64",
    ]);

    await Deno.remove(blobPath(dir, image.layers[0]!.digest));
    const broken = await inspectTarget(dir) as LayoutInspection;
    assert.equal(broken.problem?.code, "not-found");
    assert.equal(broken.entries[0]!.problem?.code, "not-found");
    assert.equal(broken.entries[1]!.entries![1]!.problem, undefined);
  }));

Deno.test("a layout: what a build copies is what its meta image refers to", () =>
  withTempDir(async (dir) => {
    await writeLayout(`${dir}/from`, [{ tag: "v1", image }]);
    const to = `${dir}/to`;
    await build(`oci:${dir}/from:v1`, undefined, undefined, `oci:${to}:x`);
    const found = await inspectTarget(to) as LayoutInspection;
    assert.deepEqual([found.problem, found.unreferenced], [undefined, 0]);
    // A subject need not be there.
    await Deno.remove(blobPath(to, image.manifest.digest));
    const without = await inspectTarget(to) as LayoutInspection;
    assert.deepEqual([without.problem, without.unreferenced], [undefined, 1]);
  }));

Deno.test("a layout: indexes in indexes are followed up to a bound", () =>
  withTempDir(async (dir) => {
    const type = "application/vnd.oci.image.index.v1+json";
    const indexOf = (manifests: unknown[]) =>
      makeBlob(type, { schemaVersion: 2, mediaType: type, manifests });
    const none = indexOf([]);
    const some = indexOf(Array(1000).fill(nameOf(none)));
    const many = indexOf(Array(1000).fill(nameOf(some)));
    await writeLayout(dir, [{ tag: "v1", image }]);
    for (const { digest, bytes } of [none, some, many]) {
      await Deno.writeFile(blobPath(dir, digest), bytes);
    }
    await Deno.writeTextFile(
      `${dir}/index.json`,
      JSON.stringify({ schemaVersion: 2, manifests: [nameOf(many)] }),
    );
    const found = await inspectTarget(dir) as LayoutInspection;
    assert.equal(found.problem?.code, "limit");
  }));

Deno.test("a directory that is no layout, a name that is nothing", () =>
  withTempDir(async (dir) => {
    await assert.rejects(inspectTarget(dir), /is no OCI layout/);
    await assert.rejects(inspectTarget(`oci:${dir}/none:v1`), NotFoundError);
    await assert.rejects(inspectTarget("/dev/null"), /neither a regular file/);
  }));

// ---- images ---------------------------------------------------------------------

Deno.test("a plain image without a meta image", () =>
  withTempDir(async (dir) => {
    await writeLayout(dir, [{ tag: "v1", image }]);
    const before = [...Deno.readDirSync(`${dir}/blobs/sha256`)].length;
    const found = await inspectImage(`oci:${dir}:v1`);
    assert.equal(found.kind, "plain");
    assert.equal(found.problem, undefined);
    assert.equal(found.manifest?.digest, image.manifest.digest);
    assert.equal(found.config?.platform, "linux/amd64");
    assert.deepEqual(
      found.layers.map((l) => [l.kind, l.digest, l.present, l.diffId]),
      image.layers.map((l) => ["plain", l.digest, true, l.diffId]),
    );
    assert.deepEqual(found.meta?.ways, [
      { way: "digest" },
      { way: "tag" },
      { way: "referrer" },
    ]);
    assert.equal(found.stack, undefined);
    const after = [...Deno.readDirSync(`${dir}/blobs/sha256`)].length;
    assert.equal(after, before, "inspecting writes nothing");
  }));

Deno.test("a plain image with its meta image, and the meta image itself", () =>
  withTempDir(async (dir) => {
    await writeLayout(dir, [{ tag: "v1", image }]);
    const report = await build(`oci:${dir}:v1`);
    const { digest } = report.platforms[0]!.meta;
    const plain = await inspectImage(`oci:${dir}:v1`);
    assert.equal(plain.problem, undefined);
    assert.equal(plain.meta?.used?.digest, digest);
    assert.deepEqual(plain.meta?.ways.map((w) => w.digest), [
      undefined,
      digest,
      digest,
    ]);
    assert.equal(plain.referrers?.[0]?.digest, digest);
    const meta = await inspectImage(`oci:${dir}:v1-obd`);
    assert.equal(meta.kind, "turbo");
    assert.equal(meta.subject?.digest, image.manifest.digest);
    for (const found of [plain, meta]) {
      assert.equal(found.device?.size, 2 ** 30);
      assert.equal(found.device?.integrity, "spans");
      assert.equal(found.layers.length, 2);
      for (const [i, layer] of found.layers.entries()) {
        assert.equal(layer.kind, "turbo");
        assert.equal(layer.digest, image.layers[i]!.digest);
        assert.equal(layer.size, image.layers[i]!.size);
        assert.equal(layer.present, true);
        assert.equal(layer.integrity, "spans");
        assert.deepEqual(layer.meta?.parts.map((p) => p.name), [
          "ext4.fs.meta",
          "gzip.meta",
          "obd.spans",
        ]);
        assert.equal(layer.map?.virtualSize, 2 ** 30);
        assert.ok(Number(layer.map?.entries) > 0);
        assert.equal(
          layer.meta!.size,
          report.platforms[0]!.layers[i]!.metaSize,
        );
      }
      const [first] = found.stack!.layers;
      assert.equal(first!.data.kind, "zfile");
      assert.equal(first!.target?.kind, "gunzip");
      assert.equal(first!.target?.inner?.[0]?.kind, "cache");
      assert.equal(found.stack!.merged.kind, "lsmt");
    }
  }));

Deno.test({
  name:
    "a meta image with a file system below the source's layers: each is compared with its own",
  ignore: golden("unit/ext4_64") === undefined,
  fn: () =>
    withTempDir(async (dir) => {
      const layout = `${dir}/l`;
      await writeLayout(layout, [{ tag: "v1", image }]);
      const floor = makeBlob(
        "application/vnd.oci.image.layer.v1.tar",
        dataOf("unit/ext4_64"),
      );
      const config = makeBlob("application/vnd.oci.image.config.v1+json", {
        architecture: "amd64",
        os: "linux",
        rootfs: { type: "layers", diff_ids: [floor.digest] },
      });
      const prefix = "containerd.io/snapshot/overlaybd";
      const manifest = makeBlob("application/vnd.oci.image.manifest.v1+json", {
        schemaVersion: 2,
        mediaType: "application/vnd.oci.image.manifest.v1+json",
        config: nameOf(config),
        layers: [{
          ...nameOf(floor),
          annotations: {
            [`${prefix}/version`]: "0.1.0",
            [`${prefix}/blob-digest`]: floor.digest,
            [`${prefix}/blob-size`]: String(floor.size),
          },
        }],
      });
      for (const blob of [floor, config, manifest]) {
        await Deno.writeFile(blobPath(layout, blob.digest), blob.bytes);
      }
      await build(
        `oci:${layout}:v1`,
        undefined,
        `oci:${layout}@${manifest.digest}`,
      );
      const found = await inspectImage(`oci:${layout}:v1`);
      assert.equal(found.problem, undefined);
      assert.deepEqual(
        found.layers.map(({ number, kind, digest }) => [number, kind, digest]),
        [
          [0, "native", floor.digest],
          [1, "turbo", image.layers[0]!.digest],
          [2, "turbo", image.layers[1]!.digest],
        ],
      );
    }),
});

Deno.test("an overlaybd-native image", () =>
  withTempDir(async (dir) => {
    await writeLayout(dir, [{ tag: "v1", image }]);
    const report = await build(`oci:${dir}:v1`, ["overlaybd"]);
    const { digest } = report.platforms[0]!.meta;
    const found = await inspectImage(`oci:${dir}@${digest}`);
    assert.equal(found.kind, "native");
    assert.equal(found.problem, undefined);
    assert.equal(found.layers.length, 2);
    for (const layer of found.layers) {
      assert.equal(layer.kind, "native");
      assert.equal(layer.integrity, "block-crc");
      assert.equal(layer.present, true);
      assert.equal(layer.map?.layerKind, "native");
      const file = await inspectTarget(blobPath(dir, layer.digest));
      assert.equal((file as FileInspection).report.kind, "tar-wrapper");
      assert.equal(file.problem, undefined);
    }
    assert.equal(found.device?.integrity, "block-crc");
    const [first] = found.stack!.layers;
    assert.equal(first!.target, undefined);
    assert.equal(first!.data.kind, "zfile");

    await Deno.remove(blobPath(dir, found.layers[0]!.digest));
    const broken = await inspectImage(`oci:${dir}@${digest}`);
    assert.deepEqual(broken.layers.map((l) => l.present), [false, true]);
    assert.equal(broken.problem?.code, "not-found");
  }));

Deno.test("in a registry: a missing target, a tag that stayed behind, a planted referrer", async () => {
  await using server = await RegistryServer.start();
  await putImage(server, "app", "v1", image);
  const ref = `${server.host}/app:v1`;
  await build(ref);
  const found = await inspectImage(ref);
  assert.equal(found.problem, undefined);
  assert.match(found.stack!.layers[0]!.target!.kind, /gunzip/);
  const writes = server.requests.filter((r) => !/^(GET|HEAD)$/.test(r.method));
  await inspectImage(ref);
  assert.equal(
    server.requests.filter((r) => !/^(GET|HEAD)$/.test(r.method)).length,
    writes.length,
    "inspecting pushes nothing",
  );

  // The tag moves on: its meta image is of another source.
  const next = makeImage({ layers: [upper] });
  await putImage(server, "app", "v1", next);
  const moved = await inspectImage(ref);
  assert.equal(moved.problem, undefined);
  assert.equal(moved.meta?.used, undefined);
  assert.equal(moved.meta?.ignored.length, 1);
  assert.match(moved.meta!.ignored[0]!, /v1-obd.*: its subject is sha256:/);

  // Somebody's referrer that claims to be the meta image.
  const config = makeBlob("application/vnd.oci.image.config.v1+json", {
    rootfs: { type: "layers", diff_ids: [] },
  });
  await server.putBlob("app", config.bytes);
  const planted = {
    schemaVersion: 2,
    mediaType: "application/vnd.oci.image.manifest.v1+json",
    artifactType: "application/vnd.containerd.overlaybd.turbo.v1+json",
    config: nameOf(config),
    layers: [],
    subject: nameOf(next.manifest),
  };
  const { digest } = server.putManifest(
    "app",
    `sha256-${next.manifest.digest.slice(7)}-obd`,
    planted,
    planted.mediaType,
  );
  const tricked = await inspectImage(ref);
  assert.equal(tricked.meta?.used, undefined, digest);
  assert.ok(
    tricked.meta?.ignored.some((line) => /it is no meta image/.test(line)),
    JSON.stringify(tricked.meta),
  );

  // A target that the registry no longer has.
  const meta = `${server.host}/app:v1-obd`;
  server.removeBlob("app", image.layers[0]!.digest);
  const gone = await inspectImage(meta);
  assert.deepEqual(gone.layers.map((l) => l.present), [false, true]);
  assert.equal(gone.problem?.code, "not-found");
  assert.match(gone.problem.message, /^Layer 1 \(sha256:.*\) is not in 127/);
});

Deno.test("a meta blob that was changed in storage", () =>
  withTempDir(async (dir) => {
    await writeLayout(dir, [{ tag: "v1", image }]);
    await build(`oci:${dir}:v1`);
    const good = await inspectImage(`oci:${dir}:v1-obd`);
    const path = blobPath(dir, good.layers[1]!.meta!.digest);
    await Deno.writeFile(path, flipped(await Deno.readFile(path), 100));
    const found = await inspectImage(`oci:${dir}:v1-obd`);
    assert.equal(found.layers[0]!.problem, undefined);
    assert.equal(found.layers[1]!.problem?.code, "integrity");
    assert.equal(found.problem?.code, "integrity");
  }));

Deno.test("members of a meta blob that do not fit each other", () =>
  withTempDir(async (dir) => {
    await writeLayout(dir, [{ tag: "v1", image }]);
    await build(`oci:${dir}:v1`);
    const found = await inspectImage(`oci:${dir}:v1-obd`);
    const members = await Promise.all(found.layers.map(async (layer) => {
      const path = blobPath(dir, layer.meta!.digest);
      await using source = await FileSource.open(path);
      return (await readMetaBlob(source)).members;
    }));
    const blobOf = async (parts: ReadonlyMap<string, Uint8Array>) => {
      const sink = new MemorySink();
      await writeMetaBlob(
        sink,
        [...parts].map(([name, content]) => ({ name, content })),
      );
      return await inspectBytes(sink.bytes());
    };
    const [first, second] = members as [
      Map<string, Uint8Array>,
      Map<string, Uint8Array>,
    ];
    assert.equal((await blobOf(first)).problem, undefined);
    const without = new Map(first);
    without.delete("gzip.meta");
    assert.match(
      (await blobOf(without)).problem!.message,
      /needs the member gzip\.meta/,
    );
    const mixed = new Map(first);
    mixed.set("gzip.meta", second.get("gzip.meta")!);
    assert.match(
      (await blobOf(mixed)).problem!.message,
      /spans are not those of gzip\.meta/,
    );
    const bare = new Map([["obd.spans", first.get("obd.spans")!]]);
    assert.match(
      (await blobOf(bare)).problem!.message,
      /ext4\.fs\.meta is missing/,
    );
  }));

Deno.test("an index: the platform that was asked for", () =>
  withTempDir(async (dir) => {
    const arm = makeImage({
      layers: [upper],
      platform: { os: "linux", architecture: "arm64", variant: "v8" },
    });
    await writeLayout(dir, [{ tag: "v1", image: makeIndex([image, arm]) }]);
    const found = await inspectImage(`oci:${dir}:v1`, "linux/arm64");
    assert.equal(found.manifest?.digest, arm.manifest.digest);
    assert.deepEqual(found.index?.platforms, ["linux/amd64", "linux/arm64/v8"]);
    await assert.rejects(
      inspectImage(`oci:${dir}:v1`, "linux/s390x"),
      /linux\/s390x/,
    );
  }));

Deno.test({
  name: "a config.v1.json of golden TurboOCI layers",
  ignore: golden("turbo-gz/layer1.ext4.fs.meta") === undefined,
  fn: () =>
    withTempDir(async (dir) => {
      const lowers = [1, 2].map((i) => ({
        file: golden(`turbo-gz/layer${i}.ext4.fs.meta`),
        targetFile: golden(`layers/layer${i}.tar.gz`),
        gzipIndex: golden(`turbo-gz/layer${i}.gzip.meta`),
      }));
      const path = `${dir}/config.v1.json`;
      await Deno.writeTextFile(path, JSON.stringify({ lowers }));
      const found = await inspectImage(path);
      assert.equal(found.kind, "config");
      assert.equal(found.problem, undefined);
      assert.equal(found.device?.size, 2 ** 30);
      assert.equal(found.device?.integrity, "none");
      assert.equal(found.stack?.layers.length, 2);
      assert.equal(found.layers[0]!.kind, "turbo");

      lowers[1]!.targetFile = `${dir}/none`;
      await Deno.writeTextFile(path, JSON.stringify({ lowers }));
      const broken = await inspectImage(path);
      assert.match(broken.problem!.message, /lowers\.1: The target is not the/);
    }),
});

// ---- the command ------------------------------------------------------------------

Deno.test("the command: text, JSON, exit codes", () =>
  withTempDir(async (dir) => {
    await writeLayout(`${dir}/in`, [{ tag: "v1", image }]);
    const ref = `oci:${dir}/in:v1`;
    await build(ref);
    const text = await obd(["inspect", ref]);
    assert.equal(text.code, 0, text.stderr);
    assert.equal(text.stderr, "");
    for (
      const pattern of [
        /^kind +plain image/m,
        /^layer 1 +turbo, .*, present, integrity spans$/m,
        /ext4\.fs\.meta .*, gzip\.meta .*, obd\.spans /,
        /^meta +sha256:[0-9a-f]{64} would be used$/m,
        /^device +1\.00 GiB/m,
        /^ {2}layer 1 +meta +memory\(.*\) > zfile\(.*\) +┐$/m,
        /^ +content +file\(sha256:.*\) > cache\(.*\) > gunzip\(.*each checked\) +┴ lsmt$/m,
        /^ {2}merged +lsmt\(.*\) > nbd$/m,
      ]
    ) assert.match(text.stdout, pattern);

    const good = await obd(["inspect", "--json", `${dir}/in`]);
    assert.equal(good.code, 0);
    assert.equal(JSON.parse(good.stdout).ok, true);

    await Deno.remove(blobPath(`${dir}/in`, image.layers[1]!.digest));
    const json = await obd(["inspect", "--json", ref]);
    assert.equal(json.code, 1);
    const report = JSON.parse(json.stdout);
    assert.equal(report.ok, false);
    assert.equal(report.problem.code, "not-found");
    assertOneLine(json, /^obd: Layer 2 .* is not in oci:/);
    const broken = await obd(["inspect", ref]);
    assert.equal(broken.code, 1);
    assert.match(broken.stdout, /^layer 2 +turbo, .*, MISSING/m);
    assert.match(broken.stdout, /^ +BROKEN \(not-found\): Layer 2/m);
    assertOneLine(broken, /^obd: Layer 2/);
  }));
