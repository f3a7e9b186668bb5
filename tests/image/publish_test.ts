/** Where meta images go, and what goes with them. */

import { deepEqual, equal, match, ok, rejects } from "node:assert/strict";
import { openImage } from "../../lib/image/mod.ts";
import { UsageError } from "../../lib/io/mod.ts";
import {
  makeImage,
  makeIndex,
  putImage,
  writeLayout,
} from "../testutil/oci_image.ts";
import { sameTree } from "../testutil/device_tree.ts";
import { randomLayers } from "../testutil/random_layers.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import { requires } from "../testutil/requires.ts";
import {
  build,
  dumpImage,
  imageTree,
  layoutTags,
  OBD,
  run,
  sh,
  testEnvironment,
  withTempDir,
} from "./helpers.ts";

const GIB = 2 ** 30;
const image = makeImage({
  layers: randomLayers(41, 3).map((entries, i) => ({
    entries,
    compression: i === 1 ? "none" : "gzip",
  })),
  annotations: { "org.example.kept": "yes" },
});
const ARTIFACT = "application/vnd.containerd.overlaybd.turbo.v1+json";

/** Requests that change something. */
function writes(server: RegistryServer): string[] {
  return server.requests
    .filter((r) => r.method !== "GET" && r.method !== "HEAD")
    .map((r) => `${r.method} ${r.path}`);
}

async function getJson(url: string): Promise<Record<string, unknown>> {
  const response = await fetch(url);
  ok(response.ok, `${url}: ${response.status}`);
  return await response.json();
}

function peopleTags(server: RegistryServer, repository: string): string[] {
  return [...server.tags(repository).keys()]
    .filter((tag) => !tag.startsWith("obd-")).sort();
}

Deno.test("publish: tag, referrer and documents of a build in a registry", async () => {
  await using server = await RegistryServer.start();
  await putImage(server, "app", "v1", image);
  const { report } = await build({
    source: `${server.host}/app:v1`,
    virtualSize: GIB,
  });
  const { meta, source, layers, breakdown } = report.platforms[0]!;
  equal(meta.reference, `${server.host}/app:v1-obd`);
  equal(source.digest, image.manifest.digest);
  deepEqual(peopleTags(server, "app"), ["v1", "v1-obd"]);
  equal(server.tags("app").get("v1-obd"), meta.digest);
  deepEqual(layers.map((l) => l.digest), image.layers.map((l) => l.digest));
  equal(meta.size, layers.reduce((sum, l) => sum + l.metaSize, 0));
  ok(breakdown.fsMeta > 0 && breakdown.gzipIndex > 0 && breakdown.spans > 0);

  const base = `http://${server.host}/v2/app`;
  const manifest = await getJson(`${base}/manifests/v1-obd`);
  equal(manifest.artifactType, ARTIFACT);
  deepEqual(manifest.subject, {
    mediaType: image.manifest.mediaType,
    digest: image.manifest.digest,
    size: image.manifest.size,
  });
  equal(
    (manifest.annotations as Record<string, string>)["org.example.kept"],
    "yes",
  );
  const targets = (manifest.layers as {
    annotations: Record<string, string>;
  }[]).map(({ annotations }) => [
    annotations["containerd.io/snapshot/overlaybd/turbo-oci/target-digest"],
    annotations["containerd.io/snapshot/overlaybd/turbo-oci/target-media-type"],
  ]);
  deepEqual(targets, image.layers.map((l) => [l.digest, l.mediaType]));
  const referrers = await getJson(
    `${base}/referrers/${image.manifest.digest}`,
  );
  deepEqual(
    (referrers.manifests as { digest: string }[]).map((d) => d.digest),
    [meta.digest],
  );
});

Deno.test("publish: without a referrers API the fallback tag lists the meta image, unless told not to", async () => {
  const fallback = image.manifest.digest.replace(":", "-");
  for (const referrer of [true, false]) {
    await using server = await RegistryServer.start({ referrersApi: false });
    await putImage(server, "app", "v1", image);
    const source = `${server.host}/app:v1`;
    const { report } = await build({ source, virtualSize: GIB, referrer });
    const want = referrer ? [fallback, "v1", "v1-obd"] : ["v1", "v1-obd"];
    deepEqual(peopleTags(server, "app"), want);
    if (!referrer) continue;
    const index = await getJson(
      `http://${server.host}/v2/app/manifests/${fallback}`,
    );
    deepEqual(
      (index.manifests as { digest: string; artifactType: string }[])
        .map((d) => [d.digest, d.artifactType]),
      [[report.platforms[0]!.meta.digest, ARTIFACT]],
    );
    // Found by it alone.
    server.tags("app").delete("v1-obd");
    ok((await imageTree(source)).length > 1);
  }
});

Deno.test("publish: an image in no index, of another platform than was asked for, is told", async () => {
  await using server = await RegistryServer.start();
  await putImage(server, "app", "v1", image);
  const source = `${server.host}/app:v1`;
  const told = async (platform: string) =>
    (await build({ source, virtualSize: GIB, platform })).warnings
      .filter((text) => text.includes("another platform"));
  equal((await told("linux/s390x")).length, 1);
  deepEqual(await told("linux/amd64"), []);
  await using environment = await testEnvironment();
  await using _opened = await openImage(environment, source, {
    platform: "linux/s390x",
  });
  ok(environment.log.warnings.some((text) => /another platform/.test(text)));
});

Deno.test("publish: --dry-run reads only, and says what would be", async () => {
  await using server = await RegistryServer.start();
  await putImage(server, "app", "v1", image);
  const options = { source: `${server.host}/app:v1`, virtualSize: GIB };
  const dry = await build({ ...options, dryRun: true });
  deepEqual(writes(server), []);
  const real = await build(options);
  equal(
    dry.report.platforms[0]!.meta.digest,
    real.report.platforms[0]!.meta.digest,
  );
  await withTempDir(async (dir) => {
    const dest = `oci:${dir}/not/there:x`;
    await build({ ...options, dest, dryRun: true });
    deepEqual([...Deno.readDirSync(dir)], []);
  });
});

Deno.test("publish: --tag and --no-tag", async () => {
  await using server = await RegistryServer.start();
  await putImage(server, "app", "v1", image);
  const options = { source: `${server.host}/app:v1`, virtualSize: GIB };
  const named = await build({ ...options, tag: "lazy" });
  equal(named.report.platforms[0]!.meta.reference, `${server.host}/app:lazy`);
  deepEqual(peopleTags(server, "app"), ["lazy", "v1"]);
  server.tags("app").delete("lazy");
  const untagged = await build({ ...options, tag: false });
  const { digest, reference } = untagged.report.platforms[0]!.meta;
  equal(reference, `${server.host}/app@${digest}`);
  deepEqual(peopleTags(server, "app"), ["v1"]);
  ok((await imageTree(options.source)).length > 1, "found as a referrer");

  const byDigest = await build({
    ...options,
    source: `${server.host}/app@${image.manifest.digest}`,
  });
  equal(
    byDigest.report.platforms[0]!.meta.reference,
    `${server.host}/app:${image.manifest.digest.replace(":", "-")}-obd`,
  );
});

Deno.test("publish: a tag that there cannot be is told before anything is read or written", async () => {
  await withTempDir(async (dir) => {
    await using server = await RegistryServer.start();
    // As other tools name images in layouts, and as long as tags may be.
    const name = "registry.example/team/app:v1";
    const long = "v".repeat(126);
    await writeLayout(dir, [{ tag: name, image }]);
    await putImage(server, "app", long, image);
    const cases: Parameters<typeof build>[0][] = [
      { source: `oci:${dir}:${name}`, dest: `${server.host}/other` },
      { source: `${server.host}/app:${long}` },
      { source: `${server.host}/app:${long}`, tag: "not/one" },
      { source: `${server.host}/app:${long}`, tag: "" },
      { source: `oci:${dir}:${name}`, tag: "no one" },
    ];
    for (const options of cases) {
      await rejects(
        build({ ...options, virtualSize: GIB }),
        (error) =>
          error instanceof UsageError && /cannot be a tag/.test(error.message),
      );
    }
    deepEqual(writes(server), []);
    const layer = image.layers[0]!.digest;
    deepEqual(server.requests.filter((r) => r.path.endsWith(layer)), []);
    // Layouts may have such names themselves, and any image can be given another.
    await build({ source: `oci:${dir}:${name}`, virtualSize: GIB });
    ok((await layoutTags(dir)).has(`${name}-obd`));
    await build({
      source: `${server.host}/app:${long}`,
      tag: "short",
      virtualSize: GIB,
    });
    ok(server.tags("app").has("short"));
  });
});

Deno.test("publish: a DEST elsewhere in the registry gets the source mounted, with all targets", async () => {
  await using server = await RegistryServer.start();
  await putImage(server, "app", "v1", image);
  const { report } = await build({
    source: `${server.host}/app:v1`,
    dest: `${server.host}/lazy/app:v2`,
    virtualSize: GIB,
  });
  equal(
    report.platforms[0]!.meta.reference,
    `${server.host}/lazy/app:v2`,
  );
  deepEqual(peopleTags(server, "app"), ["v1"], "the source is left alone");
  for (const layer of image.layers) {
    ok(server.hasBlob("lazy/app", layer.digest));
  }
  const mounts = server.requests.filter((r) => r.query.includes("mount="));
  equal(mounts.length, 1 + image.layers.length);
  sameTree(
    await imageTree(`${server.host}/lazy/app:v2`),
    await treeOfLayout(),
  );
});

/** The tree of the image, built in a layout. */
async function treeOfLayout(): Promise<string[]> {
  let tree: string[] = [];
  await withTempDir(async (dir) => {
    await writeLayout(dir, [{ tag: "v1", image }]);
    await build({ source: `oci:${dir}:v1`, virtualSize: GIB });
    tree = await imageTree(`oci:${dir}:v1`);
  });
  return tree;
}

Deno.test("publish: between registries and layouts the source is copied", async () => {
  await withTempDir(async (dir) => {
    await using server = await RegistryServer.start();
    const layout = `${dir}/layout`;
    await writeLayout(layout, [{ tag: "v1", image }]);
    const up = await build({
      source: `oci:${layout}:v1`,
      dest: `${server.host}/app:v1-obd`,
      virtualSize: GIB,
    });
    deepEqual(
      [...(await layoutTags(layout)).keys()],
      ["v1"],
      "the source is left alone",
    );
    for (const layer of image.layers) ok(server.hasBlob("app", layer.digest));
    const down = await build({
      source: `${server.host}/app@${image.manifest.digest}`,
      dest: `oci:${dir}/new:x`,
      virtualSize: GIB,
    });
    const { digest } = down.report.platforms[0]!.meta;
    equal(digest, up.report.platforms[0]!.meta.digest);
    equal((await layoutTags(`${dir}/new`)).get("x"), digest);
    sameTree(await imageTree(`oci:${dir}/new:x`), await treeOfLayout());
  });
});

Deno.test({
  name: "publish: an oci-archive is a source and needs a DEST",
  ignore: !requires("tar"),
  fn: () =>
    withTempDir(async (dir) => {
      await writeLayout(`${dir}/layout`, [{ tag: "v1", image }]);
      const archive = `${dir}/image.tar`;
      await sh(["tar", "-cf", archive, "-C", `${dir}/layout`, "."]);
      const source = `oci-archive:${archive}`;
      await rejects(
        build({ source, virtualSize: GIB }),
        (error) =>
          error instanceof UsageError && /name a DEST/.test(error.message),
      );
      await build({ source, dest: `oci:${dir}/out:v1-obd`, virtualSize: GIB });
      sameTree(await imageTree(`oci:${dir}/out:v1-obd`), await treeOfLayout());
    }),
});

Deno.test("publish: --flatten gives the same tree, with all metadata in the top layer", async () => {
  await withTempDir(async (dir) => {
    await writeLayout(dir, [{ tag: "v1", image }]);
    const source = `oci:${dir}:v1`;
    const options = { source, virtualSize: GIB };
    await build(options);
    const want = await imageTree(`${source}-obd`);
    const flat = await build({ ...options, flatten: true, tag: "flat" });
    sameTree(await imageTree(`oci:${dir}:flat`), want);
    const { layers, meta } = flat.report.platforms[0]!;
    equal(layers.length, image.layers.length);
    equal(layers.some((l) => l.reused), false, "nothing of the other form");
    const again = await build({ ...options, flatten: true, tag: "flat" });
    equal(again.report.platforms[0]!.meta.digest, meta.digest);
    ok(again.report.platforms[0]!.layers.every((l) => l.reused));
    if (requires("e2fsck")) {
      await dumpImage(`oci:${dir}:flat`, `${dir}/flat.raw`);
      await sh(["e2fsck", "-fn", `${dir}/flat.raw`]);
    }
  });
});

Deno.test("publish: --flatten leaves out bodies that do not survive", async () => {
  await withTempDir(async (dir) => {
    const gone = makeImage({
      layers: [
        { entries: randomLayers(5, 1)[0]! },
        { entries: [{ path: ".wh..wh..opq" }, { path: "only", content: "x" }] },
      ],
    });
    await writeLayout(dir, [{ tag: "v1", image: gone }]);
    await build({ source: `oci:${dir}:v1`, virtualSize: GIB, flatten: true });
    const tree = await imageTree(`oci:${dir}:v1`);
    deepEqual(tree.map((l) => JSON.parse(l).path), ["", "only"]);
  });
});

const platforms = makeIndex([
  image,
  makeImage({
    platform: { os: "linux", architecture: "arm64", variant: "v8" },
    layers: [image.layers[0]!, { entries: [{ path: "arm", content: "64" }] }],
  }),
]);

Deno.test("publish: --all-platforms pushes an index of meta images with the index as subject", async () => {
  await using server = await RegistryServer.start();
  await putImage(server, "app", "multi", platforms);
  const { report } = await build({
    source: `${server.host}/app:multi`,
    virtualSize: GIB,
    allPlatforms: true,
  });
  equal(report.platforms.length, 2);
  deepEqual(report.platforms.map((p) => p.platform), [
    "linux/amd64",
    "linux/arm64/v8",
  ]);
  deepEqual(report.platforms.map((p) => p.source.digest), [
    platforms.images[0]!.manifest.digest,
    platforms.images[1]!.manifest.digest,
  ]);
  equal(report.index!.reference, `${server.host}/app:multi-obd`);
  const index = await getJson(
    `http://${server.host}/v2/app/manifests/multi-obd`,
  );
  equal(
    (index.subject as { digest: string }).digest,
    platforms.manifest.digest,
  );
  deepEqual(
    (index.manifests as { digest: string; platform: unknown }[]).map((m) => [
      m.digest,
      m.platform,
    ]),
    report.platforms.map((p, i) => [
      p.meta.digest,
      platforms.images[i]!.platform,
    ]),
  );
  // Both ways of asking lead to the platform's own tree.
  for (const name of ["multi", "multi-obd"]) {
    const tree = await imageTree(`${server.host}/app:${name}`, "linux/arm64");
    ok(tree.some((l) => l.includes('"path":"arm"')), name);
  }
  const one = await build({
    source: `${server.host}/app:multi`,
    virtualSize: GIB,
    platform: "linux/arm64",
    tag: "one",
  });
  equal(
    one.report.platforms[0]!.meta.digest,
    report.platforms[1]!.meta.digest,
  );
  await rejects(
    build({ source: `${server.host}/app:multi`, platform: "linux/s390x" }),
    /s390x/,
  );
});

Deno.test("publish: --all-platforms into another repository and into a layout", async () => {
  await withTempDir(async (dir) => {
    await using server = await RegistryServer.start();
    await putImage(server, "app", "multi", platforms);
    for (const dest of [`${server.host}/other:m`, `oci:${dir}/out:m`]) {
      await build({
        source: `${server.host}/app:multi`,
        dest,
        virtualSize: GIB,
        allPlatforms: true,
      });
      const tree = await imageTree(dest, "linux/arm64");
      ok(tree.some((l) => l.includes('"path":"arm"')), dest);
    }
  });
});

Deno.test("publish: into another registry, which is asked for no mounts", async () => {
  await using from = await RegistryServer.start();
  await using to = await RegistryServer.start();
  await putImage(from, "secret/app", "v1", image);
  const dest = `${to.host}/app:m`;
  await build({
    source: `${from.host}/secret/app:v1`,
    dest,
    virtualSize: GIB,
  });
  const posts = to.requests.filter((r) => r.method === "POST");
  ok(posts.length >= image.layers.length);
  deepEqual(posts.filter((r) => r.query !== "").map((r) => r.query), []);
  sameTree(await imageTree(dest), await treeOfLayout());
});

Deno.test("publish: Docker's media types build as well", async () => {
  await withTempDir(async (dir) => {
    const docker = makeImage({
      docker: true,
      layers: image.layers.map((l) => ({ entries: l.tar })),
    });
    await writeLayout(dir, [{ tag: "v1", image: docker }]);
    await build({ source: `oci:${dir}:v1`, virtualSize: GIB });
    sameTree(await imageTree(`oci:${dir}:v1`), await treeOfLayout());
  });
});

Deno.test("obd build --json: what scripts rely on", async () => {
  await using server = await RegistryServer.start();
  await putImage(server, "app", "v1", image);
  const source = `${server.host}/app:v1`;
  const report = JSON.parse(
    await sh([...OBD, "build", source, "--vsize", "1", "--json"]),
  );
  deepEqual(
    Object.keys(report).sort(),
    [
      "breakdown",
      "format",
      "layers",
      "meta",
      "platform",
      "seconds",
      "source",
      "warnings",
    ],
  );
  deepEqual(Object.keys(report.layers[0]).sort(), [
    "digest",
    "entries",
    "mediaType",
    "metaSize",
    "reused",
    "size",
    "spans",
  ]);
  deepEqual(Object.keys(report.source).sort(), ["digest", "reference"]);
  deepEqual(Object.keys(report.meta).sort(), ["digest", "reference", "size"]);
  const usage = await run([...OBD, "build", source, "--vsize", "nothing"]);
  equal(usage.code, 2);
  match(usage.stderr, /vsize/);
});
