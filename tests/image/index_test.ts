/** Images of several platforms: what their indexes name beside images, and by which platform they are chosen. */

import { deepEqual, equal, match, ok, rejects } from "node:assert/strict";
import { openImage } from "../../lib/image/mod.ts";
import {
  file,
  type MadeImage,
  makeBlob,
  makeImage,
  nameOf,
  putImage,
} from "../testutil/oci_image.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import { build, imageTree, testEnvironment } from "./helpers.ts";

const GIB = 2 ** 30;
const OCI = "application/vnd.oci.image";

/** An image whose config says less of its platform than an index does. */
function image(name: string, config: Record<string, unknown> = {}): MadeImage {
  return makeImage({
    platform: { os: "linux", architecture: "arm" },
    layers: [{ entries: [file(name, name)] }],
    config,
  });
}

interface Entry {
  digest: string;
  platform?: object;
}

/** Tags an index in the registry. */
function putIndex(
  server: RegistryServer,
  repository: string,
  entries: readonly Entry[],
): string {
  return server.putManifest(repository, "multi", {
    schemaVersion: 2,
    mediaType: `${OCI}.index.v1+json`,
    manifests: entries,
  }, `${OCI}.index.v1+json`).digest;
}

async function getJson(
  server: RegistryServer,
  path: string,
  // deno-lint-ignore no-explicit-any -- documents of the registry
): Promise<any> {
  const response = await fetch(`http://${server.host}/v2/${path}`);
  ok(response.ok, `${path}: ${response.status}`);
  return await response.json();
}

/** BuildKit's statement about an image, as it stands in an index. */
async function putAttestation(
  server: RegistryServer,
  repository: string,
  about: MadeImage,
): Promise<Entry> {
  const statement = makeBlob("application/vnd.in-toto+json", { about: "it" });
  const config = makeBlob(`${OCI}.config.v1+json`, {
    architecture: "unknown",
    os: "unknown",
    rootfs: { type: "layers", diff_ids: [statement.digest] },
  });
  for (const { bytes } of [statement, config]) {
    await server.putBlob(repository, bytes);
  }
  return {
    ...server.putManifest(repository, undefined, {
      schemaVersion: 2,
      mediaType: `${OCI}.manifest.v1+json`,
      config: nameOf(config),
      layers: [nameOf(statement)],
    }, `${OCI}.manifest.v1+json`),
    annotations: {
      "vnd.docker.reference.type": "attestation-manifest",
      "vnd.docker.reference.digest": about.manifest.digest,
    },
    platform: { architecture: "unknown", os: "unknown" },
  } as Entry;
}

const six = image("six");
const seven = image("seven");
const entries: Entry[] = [
  {
    ...nameOf(six.manifest),
    platform: { os: "linux", architecture: "arm", variant: "v6" },
  },
  {
    ...nameOf(seven.manifest),
    platform: { os: "linux", architecture: "arm", variant: "v7" },
  },
];

Deno.test("--all-platforms elsewhere: attestations go along, since registries refuse an index that lacks one", async () => {
  await using server = await RegistryServer.start();
  await putImage(server, "app", undefined, six);
  await putImage(server, "app", undefined, seven);
  const attestation = await putAttestation(server, "app", six);
  const digest = putIndex(server, "app", [...entries, attestation]);
  const options = {
    source: `${server.host}/app:multi`,
    virtualSize: GIB,
    allPlatforms: true,
  };
  const { report, warnings } = await build({
    ...options,
    dest: `${server.host}/other:m`,
  });
  deepEqual(warnings, []);
  equal(report.platforms.length, 2);
  const meta = await getJson(server, "other/manifests/m");
  equal(meta.subject.digest, digest);
  equal(meta.manifests.length, 2);
  const copied = await getJson(server, `other/manifests/${attestation.digest}`);
  for (const { digest } of [copied.config, ...copied.layers]) {
    ok(server.hasBlob("other", digest));
  }
  // An index of which something is not there any more cannot be copied: the meta images can.
  const lost = copied.layers[0].digest;
  server.removeBlob("app", lost);
  server.removeBlob("other", lost);
  const partial = await build({ ...options, dest: `${server.host}/third:m` });
  match(partial.warnings.join("\n"), /index .*cannot be copied/);
  const third = await getJson(server, "third/manifests/m");
  deepEqual(third.manifests, meta.manifests);
  deepEqual(
    await imageTree(`${server.host}/third:m`, "linux/arm/v7"),
    await imageTree(`${server.host}/other:m`, "linux/arm/v7"),
  );
});

for (const nativeTypes of ["oci", "docker"] as const) {
  Deno.test(`--all-platforms: platforms are those that the index says, not what configs leave out (${nativeTypes})`, async () => {
    await using server = await RegistryServer.start();
    await putImage(server, "app", undefined, six);
    await putImage(server, "app", undefined, seven);
    putIndex(server, "app", entries);
    const source = `${server.host}/app:multi`;
    const { report } = await build({
      source,
      virtualSize: GIB,
      allPlatforms: true,
      formats: nativeTypes === "oci" ? ["turbo", "overlaybd"] : ["overlaybd"],
      nativeTypes,
    });
    deepEqual(
      new Set(report.platforms.map(({ platform }) => platform)),
      new Set(["linux/arm/v6", "linux/arm/v7"]),
    );
    const tags = nativeTypes === "oci"
      ? ["multi", "multi-obd", "multi-overlaybd"]
      : ["multi", "multi-overlaybd"];
    for (const tag of tags) {
      const { manifests } = await getJson(server, `app/manifests/${tag}`);
      deepEqual(
        manifests.map(({ platform }: Entry) => platform),
        entries.map(({ platform }) => platform),
        tag,
      );
      for (const [variant, name] of [["v6", "six"], ["v7", "seven"]]) {
        const tree = await imageTree(
          `${server.host}/app:${tag}`,
          `linux/arm/${variant}`,
        );
        ok(
          tree.some((line) => line.includes(`"path":"${name}"`)),
          `${tag} ${variant}: ${tree.join()}`,
        );
      }
    }
  });
}

Deno.test("a meta index of which one image has gone serves the others", async () => {
  await using server = await RegistryServer.start();
  await putImage(server, "app", undefined, six);
  await putImage(server, "app", undefined, seven);
  putIndex(server, "app", entries);
  const source = `${server.host}/app:multi`;
  await build({ source, virtualSize: GIB, allPlatforms: true });
  const meta = await getJson(server, "app/manifests/multi-obd");
  const gone = { ...meta.manifests[0], digest: `sha256:${"0".repeat(64)}` };
  server.putManifest(
    "app",
    "multi-obd",
    { ...meta, manifests: [gone, meta.manifests[1]] },
    meta.mediaType,
  );
  await using environment = await testEnvironment();
  const open = (platform: string) =>
    openImage(environment, source, { platform, metaFrom: ["tag"] });
  await using opened = await open("linux/arm/v7");
  equal(opened.metaDigest, meta.manifests[1].digest);
  await rejects(open("linux/arm/v6"), { name: "NotFoundError" });
  // Nor is every entry of an endless one asked for.
  server.putManifest(
    "app",
    "multi-obd",
    { ...meta, manifests: Array(5000).fill(gone) },
    meta.mediaType,
  );
  server.requests.length = 0;
  await rejects(open("linux/arm/v7"), { name: "NotFoundError" });
  ok(server.requests.length < 100, `${server.requests.length} requests`);
});
