/** What a manifest already tells is refused before a layer is fetched. */

import { deepEqual, rejects } from "node:assert/strict";
import { openImage } from "../../lib/image/mod.ts";
import {
  file,
  type MadeImage,
  makeImage,
  putImage,
} from "../testutil/oci_image.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import { build, testEnvironment } from "./helpers.ts";

/** One more than a device is stacked from. */
const COUNT = 256;
const OCI = "application/vnd.oci.image";
const TOO_MANY = { code: "limit", message: /has 256 layers: .* at most 255/ };

function imageOf(count: number): MadeImage {
  return makeImage({
    layers: Array.from(
      { length: count },
      (_, i) => ({ entries: [file(`f${i}`, `of layer ${i}`)] }),
    ),
  });
}

/** Blobs that were asked for, configs left out. */
function fetched(server: RegistryServer, ...configs: string[]): string[] {
  return server.requests
    .filter((r) => r.method === "GET" && r.path.includes("/blobs/"))
    .map((r) => r.path.split("/").at(-1)!)
    .filter((digest) => !configs.includes(digest));
}

Deno.test("256 layers are refused by build and open before one is fetched", async () => {
  await using server = await RegistryServer.start();
  const image = imageOf(COUNT);
  const config = image.config.digest;
  await putImage(server, "app", "v1", image);
  const source = `${server.host}/app:v1`;
  for (
    const options of [
      {},
      { flatten: true },
      { formats: ["overlaybd"] as const },
      { formats: ["overlaybd"] as const, flatten: true },
    ]
  ) {
    await rejects(
      build({ source, virtualSize: 2 ** 30, ...options }),
      TOO_MANY,
    );
  }
  await using environment = await testEnvironment();
  await rejects(openImage(environment, source), TOO_MANY);
  deepEqual(fetched(server, config), []);
});

Deno.test("a meta image of 256 layers is not opened, nor found, and none of them is fetched", async () => {
  await using server = await RegistryServer.start();
  const image = imageOf(2);
  await putImage(server, "app", "v1", image);
  const source = `${server.host}/app:v1`;
  await build({ source, virtualSize: 2 ** 30 });
  const name = `http://${server.host}/v2/app/manifests/v1-obd`;
  const meta = await (await fetch(name)).json();
  meta.layers = Array.from({ length: COUNT }, (_, i) => meta.layers[i % 2]);
  server.putManifest("app", "many", meta, `${OCI}.manifest.v1+json`);
  server.requests.length = 0;
  await using environment = await testEnvironment();
  await rejects(openImage(environment, `${server.host}/app:many`), TOO_MANY);
  deepEqual(fetched(server, meta.config.digest), []);
  // The right one is found beside it.
  await using opened = await openImage(environment, source, {
    metaFrom: ["referrer"],
  });
  deepEqual(opened.layers.length, 2);
  deepEqual(environment.log.warnings.length, 1);
});

Deno.test("all platforms are looked at before the first is built", async () => {
  await using server = await RegistryServer.start();
  const entries = [];
  const configs = [];
  for (const architecture of ["amd64", "arm64"]) {
    const image = makeImage({
      platform: { os: "linux", architecture },
      layers: [{
        entries: [file(architecture, "x")],
        ...(architecture === "arm64"
          ? { mediaType: `${OCI}.layer.v1.tar+gzip+encrypted` }
          : {}),
      }],
    });
    await putImage(server, "app", undefined, image);
    configs.push(image.config.digest);
    const { mediaType, digest, bytes: { length: size } } = image.manifest;
    const platform = { os: "linux", architecture };
    entries.push({ mediaType, digest, size, platform });
  }
  const index = `${OCI}.index.v1+json`;
  const document = { schemaVersion: 2, mediaType: index, manifests: entries };
  server.putManifest("app", "multi", document, index);
  await rejects(
    build({ source: `${server.host}/app:multi`, allPlatforms: true }),
    { code: "unsupported", message: /^Layer 1 of 1/ },
  );
  deepEqual(fetched(server, ...configs), []);
});
