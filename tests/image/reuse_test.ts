/** Layers that were built before are taken over, but only if they are what their tag says. */

import { deepEqual, equal, match, notEqual, ok } from "node:assert/strict";
import {
  blobPath,
  file,
  type MadeImage,
  makeImage,
  makeLayer,
  putImage,
  writeLayout,
} from "../testutil/oci_image.ts";
import { randomLayers } from "../testutil/random_layers.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import { sameTree } from "../testutil/device_tree.ts";
import { build, imageTree, withTempDir } from "./helpers.ts";

const GIB = 2 ** 30;
const layers = randomLayers(31, 3).map((entries) => makeLayer({ entries }));
const image = makeImage({ layers });

/** Paths of blobs that were read whole or in part. */
function readBlobs(server: RegistryServer): Set<string> {
  return new Set(
    server.requests
      .filter((r) => r.method === "GET" && r.path.includes("/blobs/sha256:"))
      .map((r) => r.path.slice(r.path.indexOf("sha256:"))),
  );
}

/** An image on the same two layers. */
function otherOnBase() {
  return makeImage({
    layers: [layers[0]!, layers[1]!, { entries: [file("other", "layer")] }],
  });
}

async function reusedLayers(
  source: string,
): Promise<{ reused: boolean[]; digest: string; warnings: string[] }> {
  const { report, warnings } = await build({ source, virtualSize: GIB });
  const { layers, meta } = report.platforms[0]!;
  return { reused: layers.map((l) => l.reused), digest: meta.digest, warnings };
}

Deno.test("build: a second image on the same base does not read the base's layers", async () => {
  await using server = await RegistryServer.start();
  await putImage(server, "app", "one", image);
  await build({ source: `${server.host}/app:one`, virtualSize: GIB });
  const other = otherOnBase();
  await putImage(server, "app", "two", other);
  server.requests.length = 0;
  const { reused } = await reusedLayers(`${server.host}/app:two`);
  deepEqual(reused, [true, true, false]);
  const read = readBlobs(server);
  ok(read.has(other.layers[2]!.digest), "its own layer is read");
  ok(!read.has(layers[0]!.digest) && !read.has(layers[1]!.digest));
  sameTree(
    (await imageTree(`${server.host}/app:two`)).filter((l) =>
      !l.includes('"path":"other"')
    ),
    await wantedTree([layers[0]!, layers[1]!]),
  );

  // The other way round: an image that is a prefix of one that was built.
  server.requests.length = 0;
  await putImage(
    server,
    "app",
    "base",
    makeImage({ layers: layers.slice(0, 1) }),
  );
  deepEqual((await reusedLayers(`${server.host}/app:base`)).reused, [true]);
  ok(!readBlobs(server).has(layers[0]!.digest));
});

/** The tree of layers that are built alone. */
async function wantedTree(from: MadeImage["layers"]): Promise<string[]> {
  let tree: string[] = [];
  await withTempDir(async (dir) => {
    await writeLayout(dir, [{ tag: "v1", image: makeImage({ layers: from }) }]);
    await build({ source: `oci:${dir}:v1`, virtualSize: GIB });
    tree = await imageTree(`oci:${dir}:v1`);
  });
  return tree;
}

Deno.test("build: the same tar under another compression or type is another layer", async () => {
  await using server = await RegistryServer.start();
  await putImage(server, "app", "one", image);
  await build({ source: `${server.host}/app:one`, virtualSize: GIB });
  const repacked = makeImage({
    layers: layers.map((l) => makeLayer({ entries: l.tar, level: 1 })),
  });
  notEqual(repacked.layers[0]!.digest, layers[0]!.digest);
  equal(repacked.layers[0]!.diffId, layers[0]!.diffId);
  await putImage(server, "app", "two", repacked);
  const { reused } = await reusedLayers(`${server.host}/app:two`);
  deepEqual(reused, [false, false, false]);
});

Deno.test("build: what a chain's tag names is checked, and built anew when it does not fit", async () => {
  const honest = await buildHonest();
  const cases: [
    string,
    (server: RegistryServer, tag: string) => Promise<void> | void,
    RegExp,
  ][] = [
    ["a plain image", (server, tag) => {
      server.tags("app").set(tag, image.manifest.digest);
    }, /is 0, expected 2/],
    ["an index", (server, tag) => {
      server.putManifest("app", tag, {
        schemaVersion: 2,
        mediaType: "application/vnd.oci.image.index.v1+json",
        manifests: [],
      }, "application/vnd.oci.image.index.v1+json");
    }, /is an index/],
    ["a meta image of another image", async (server, tag) => {
      const other = makeImage({ layers: [{ entries: [file("x")] }] });
      await putImage(server, "app", "other", other);
      await build({ source: `${server.host}/app:other`, virtualSize: GIB });
      const digest = server.tags("app").get("other-obd")!;
      server.tags("app").set(tag, digest);
    }, /does not point to/],
    ["a newer format", (server, tag) => {
      plant(server, tag, honest, (manifest) => {
        manifest.annotations["io.obd.format"] = "99";
      });
    }, /is 99, expected 2/],
    ["no format", (server, tag) => {
      plant(server, tag, honest, (manifest) => {
        delete manifest.annotations["io.obd.format"];
      });
    }, /is 0, expected 2/],
    ["layers in another order", (server, tag) => {
      plant(server, tag, honest, (manifest) => manifest.layers.reverse());
    }, /does not point to/],
    ["a layer's meta blob in another's place", (server, tag) => {
      plant(server, tag, honest, (manifest) => {
        const [first, second] = manifest.layers;
        first!.digest = second!.digest;
        first!.size = second!.size;
      });
    }, /are of another layer/],
    ["a meta blob that is gone", (server, tag) => {
      plant(server, tag, honest, (manifest) => {
        manifest.layers[0]!.digest = `sha256:${"0".repeat(64)}`;
      });
    }, /not/],
    ["a blob that is no meta blob", async (server, tag) => {
      const blob = await server.putBlob("app", new Uint8Array(2000).fill(7));
      plant(server, tag, honest, (manifest) => {
        Object.assign(manifest.layers[0]!, {
          digest: blob.digest,
          size: blob.size,
        });
      });
    }, /meta blob|gzip/],
    ["meta of another virtual size", async (server, tag) => {
      await build({
        source: `${server.host}/app:v1`,
        virtualSize: 2 * GIB,
        tag: "large",
      });
      server.tags("app").set(tag, server.tags("app").get("large")!);
    }, /virtual size is 2147483648, expected 1073741824/],
    ["no JSON", (server, tag) => {
      server.putManifest(
        "app",
        tag,
        new Uint8Array([1, 2, 3]),
        "application/vnd.oci.image.manifest.v1+json",
      );
    }, /manifest/],
  ];
  for (const [name, spoil, reason] of cases) {
    await using server = await RegistryServer.start();
    await putImage(server, "app", "v1", image);
    await build({ source: `${server.host}/app:v1`, virtualSize: GIB });
    const tags = [...server.tags("app").keys()];
    const chain = tags.filter((tag) => tag.startsWith("obd-"));
    for (const tag of chain) server.tags("app").delete(tag);
    for (const tag of chain) await spoil(server, tag);
    // What a case built on its own may have made tags anew.
    const { reused, digest, warnings } = await reusedLayers(
      `${server.host}/app:v1`,
    );
    equal(digest, honest.digest, name);
    equal(reused[0], false, name);
    match(warnings.join("\n"), reason, name);
    match(warnings.join("\n"), /not reusing layers/, name);
  }
});

Deno.test("build: a meta blob that is damaged in the registry is not taken over", async () => {
  const honest = await buildHonest();
  await using server = await RegistryServer.start();
  await putImage(server, "app", "v1", image);
  await build({ source: `${server.host}/app:v1`, virtualSize: GIB });
  const meta = honest.manifest.layers[1]!.digest;
  server.faults.add({
    path: new RegExp(meta),
    method: "GET",
    fault: { kind: "corrupt", at: 300 },
    times: 100,
  });
  const { reused, digest, warnings } = await reusedLayers(
    `${server.host}/app:v1`,
  );
  equal(digest, honest.digest);
  // The first layer alone is sound.
  deepEqual(reused, [true, false, false]);
  match(warnings.join("\n"), /not reusing layers/);
});

Deno.test("build: a meta blob that is damaged in a layout is built and written anew", async () => {
  await withTempDir(async (dir) => {
    await writeLayout(dir, [{ tag: "v1", image }]);
    const source = `oci:${dir}:v1`;
    await build({ source, virtualSize: GIB });
    const want = await imageTree(source);
    const honest = await buildHonest();
    for (const { digest } of honest.manifest.layers) {
      const path = blobPath(dir, digest);
      const bytes = await Deno.readFile(path);
      bytes[bytes.length >> 1]! ^= 1;
      await Deno.writeFile(path, bytes);
    }
    const { reused, digest } = await reusedLayers(source);
    deepEqual(reused, [false, false, false]);
    equal(digest, honest.digest);
    sameTree(await imageTree(source), want);
  });
});

interface MetaManifest {
  annotations: Record<string, string>;
  layers: { digest: string; size: number }[];
}

interface Honest {
  digest: string;
  manifest: MetaManifest;
}

async function buildHonest(): Promise<Honest> {
  await using server = await RegistryServer.start();
  await putImage(server, "app", "v1", image);
  const { report } = await build({
    source: `${server.host}/app:v1`,
    virtualSize: GIB,
  });
  const { digest } = report.platforms[0]!.meta;
  const response = await fetch(
    `http://${server.host}/v2/app/manifests/${digest}`,
  );
  return { digest, manifest: await response.json() };
}

/** Tags a changed copy of a meta image's manifest. */
function plant(
  server: RegistryServer,
  tag: string,
  honest: Honest,
  change: (manifest: MetaManifest) => void,
): void {
  const manifest = structuredClone(honest.manifest);
  change(manifest);
  server.putManifest(
    "app",
    tag,
    manifest,
    "application/vnd.oci.image.manifest.v1+json",
  );
}

Deno.test("build: where tags must not change, those of chains stay as they are", async () => {
  await using server = await RegistryServer.start();
  await putImage(server, "app", "one", image);
  await build({ source: `${server.host}/app:one`, virtualSize: GIB });
  const other = otherOnBase();
  await putImage(server, "app", "two", other);
  const before = new Map(server.tags("app"));
  server.faults.add({
    fault: {
      kind: "status",
      status: 400,
      headers: { "content-type": "application/json" },
      body: JSON.stringify({
        errors: [{
          code: "TAG_INVALID",
          message:
            "The image tag already exists and cannot be overwritten because the repository is immutable",
        }],
      }),
    },
    method: "PUT",
    path: new RegExp(`/manifests/(${[...before.keys()].join("|")})$`),
    times: Infinity,
  });
  const { reused } = await reusedLayers(`${server.host}/app:two`);
  deepEqual(reused, [true, true, false]);
  ok(server.tags("app").has("two-obd"));
  for (const [tag, digest] of before) {
    equal(server.tags("app").get(tag), digest);
  }
  // Tags that are new are there: the whole chain is found again.
  deepEqual((await reusedLayers(`${server.host}/app:two`)).reused, [
    true,
    true,
    true,
  ]);
});
