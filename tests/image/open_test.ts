/** Opening an image: what is asked for at once, what is kept, which meta image is used. */

import assert from "node:assert/strict";
import {
  type ImageEnvironment,
  openEnvironment,
  openImage,
  publishImage,
} from "../../lib/image/mod.ts";
import { loadLibc } from "../../lib/io/mod.ts";
import { parseReference } from "../../lib/registry/mod.ts";
import { waitUntil } from "../../cmd/mount_process.ts";
import { file, makeImage, putImage } from "../testutil/oci_image.ts";
import { RegistryServer } from "../testutil/registry_server.ts";
import { seededBytes } from "../testutil/source_contract.ts";
import { RecordingLogger } from "../testutil/test_source.ts";

loadLibc();

interface Built extends AsyncDisposable {
  server: RegistryServer;
  reference: string;
  /** Opens an environment with caches in one directory, the same each time. */
  environment(): Promise<ImageEnvironment>;
  logger: RecordingLogger;
}

async function built(
  options: { referrersApi?: boolean; spanSizes?: number[] } = {},
): Promise<Built> {
  await using stack = new AsyncDisposableStack();
  const server = stack.use(
    await RegistryServer.start({ referrersApi: options.referrersApi ?? true }),
  );
  const image = makeImage({
    layers: [
      [file("etc/a", seededBytes(3_000_000, 1))],
      [file("usr/c", seededBytes(200_000, 2))],
    ].map((entries) => ({ entries })),
  });
  await putImage(server, "app", "v1", image);
  const reference = `${server.host}/app:v1`;
  const directory = await Deno.makeTempDir({ prefix: "obd-open-" });
  stack.defer(() => Deno.remove(directory, { recursive: true }));
  const logger = new RecordingLogger();
  const environment = () =>
    openEnvironment({
      workers: 1,
      log: logger,
      blobCache: {
        directory: `${directory}/blobs`,
        sizeBytes: 2 ** 26,
        refillSize: 2 ** 18,
      },
    });
  for (const spanSize of options.spanSizes ?? [undefined]) {
    await using own = await environment();
    await publishImage(own, {
      source: reference,
      virtualSize: 2 ** 30,
      tag: "v1-obd",
      jobs: 1,
      ...(spanSize === undefined ? {} : { spanSize }),
    });
  }
  const owned = stack.move();
  return {
    server,
    reference,
    environment,
    logger,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** Paths of the requests, without the repository, in the order in which they came. */
function asked({ server }: Built): string[] {
  return server.requests.map(({ path }) => path.replace("/v2/app/", ""));
}

/** Layers of the manifest under the meta image's tag. */
async function taggedLayers(
  environment: ImageEnvironment,
  reference: string,
): Promise<{ digest: string; size: number }[]> {
  await using repository = await environment.openRepository(
    parseReference(reference),
  );
  const { bytes } = await repository.resolve("v1-obd");
  return JSON.parse(new TextDecoder().decode(bytes)).layers;
}

Deno.test("openImage() asks at once for what does not depend on an answer", async () => {
  await using image = await built();
  const control = new AbortController();
  await using environment = await openEnvironment({ signal: control.signal });
  const layers = await taggedLayers(environment, image.reference);
  const { server } = image;
  server.requests.length = 0;
  // None of these ever answers: what comes all the same waits for none of them.
  for (const path of [/sha256-\w+-obd$/, /\/referrers\//, /\/blobs\//]) {
    server.faults.add({ path, times: 100, fault: { kind: "silence" } });
  }
  const opening = openImage(environment, image.reference, { traces: true });
  opening.catch(() => {});
  const wanted = [
    /^manifests\/v1$/,
    /^manifests\/v1-obd$/,
    /^manifests\/sha256-\w+-obd$/,
    ...layers.map(({ digest }) => new RegExp(`^blobs/${digest}$`)),
  ];
  const isComplete = () =>
    wanted.every((one) => asked(image).some((path) => one.test(path))) &&
    // For meta images and for traces; the config and two meta blobs.
    asked(image).filter((path) => path.startsWith("referrers/")).length === 2 &&
    asked(image).filter((path) => path.startsWith("blobs/")).length === 3;
  assert.ok(await waitUntil(isComplete, 20_000), asked(image).join("\n"));
  control.abort();
  await assert.rejects(opening, { code: "cancelled" });
});

Deno.test("openImage() waits for no list of referrers where a tag names a meta image", async () => {
  await using image = await built();
  await using environment = await image.environment();
  const path = /\/referrers\//;
  image.server.faults.add({ path, times: 100, fault: { kind: "silence" } });
  const started = performance.now();
  await using opened = await openImage(environment, image.reference);
  assert.ok(opened.metaDigest);
  assert.ok(performance.now() - started < 20_000, "as long as for an answer");
  assert.equal(image.logger.count("cannot list referrers"), 1);
});

Deno.test("openImage() asks for TAG-obd before it has the image's manifest", async () => {
  await using image = await built();
  const control = new AbortController();
  await using environment = await openEnvironment({ signal: control.signal });
  const { server } = image;
  server.requests.length = 0;
  server.faults.add({ path: /\/v1$/, fault: { kind: "silence" } });
  const opening = openImage(environment, image.reference);
  opening.catch(() => {});
  const isAsked = () => asked(image).includes("manifests/v1-obd");
  assert.ok(await waitUntil(isAsked, 20_000), asked(image).join("\n"));
  control.abort();
  await assert.rejects(opening, { code: "cancelled" });
});

Deno.test("openImage() takes meta blobs from the cache of blobs, checked", async () => {
  await using image = await built();
  /** Blobs that were asked for. */
  const open = async (environment: ImageEnvironment) => {
    image.server.requests.length = 0;
    await using opened = await openImage(environment, image.reference);
    assert.equal(opened.layers.length, 2);
    await environment.blobStore!.settled();
    return asked(image).filter((path) => path.startsWith("blobs/")).length;
  };
  {
    await using environment = await image.environment();
    assert.equal(await open(environment), 3, "config and two meta blobs");
  }
  await using environment = await image.environment();
  assert.equal(await open(environment), 1, "the config, with another process");
  // Another thing under their keys is left, and they are fetched.
  const store = environment.blobStore!;
  for (
    const { digest } of await taggedLayers(environment, image.reference)
  ) {
    const entry = store.get(`meta/${digest}`)!;
    store.drop(entry);
    store.put(`meta/${digest}`, seededBytes(entry.size, 3));
  }
  assert.equal(await open(environment), 3);
  assert.equal(await open(environment), 1);
});

Deno.test("openImage() uses the smallest of several meta images", async () => {
  // The tag is on the last, with the longest index.
  await using image = await built({ spanSizes: [2 ** 22, 2 ** 16] });
  await using environment = await image.environment();
  const tagged = await taggedLayers(environment, image.reference);
  await using opened = await openImage(environment, image.reference);
  const [used] = opened.layers;
  assert.ok(
    used!.metaSize! < tagged[0]!.size,
    `${used!.metaSize} of ${tagged[0]!.size}`,
  );
});

Deno.test("openImage(): a registry that refuses the likely tag does not fail it", async () => {
  await using image = await built();
  await using environment = await image.environment();
  image.server.faults.add({
    path: /manifests\/v1-obd$/,
    times: 100,
    fault: { kind: "status", status: 403 },
  });
  await using opened = await openImage(environment, image.reference);
  assert.equal(opened.layers.length, 2);
  assert.ok(image.logger.count("ignoring a meta image that does not fit") > 0);
});

Deno.test("an image that is opened does not wait behind what is fetched ahead of others", async () => {
  await using b = await built();
  const other = await b.server.putBlob("other", seededBytes(100, 9));
  await using environment = await b.environment();
  await using repository = await environment.openRepository(
    parseReference(`${b.server.host}/other`),
  );
  await using source = await repository.openBlob(other);
  await source.pread(new Uint8Array(1), 0);
  // All the connections that prefetch may have.
  let done = 0;
  b.server.faults.add({
    path: new RegExp(other.digest),
    times: 16,
    fault: { kind: "delay", milliseconds: 3000 },
  });
  const ahead = Array.from({ length: 8 }, async (_, i) => {
    await source.pread(new Uint8Array(1), i, { priority: "prefetch" });
    done++;
  });
  const running = () => b.server.requests.filter((r) => r.status === 0);
  assert(await waitUntil(() => running().length === 8, 10_000));
  await using opened = await openImage(environment, b.reference);
  assert.equal(opened.integrity, "spans");
  assert.equal(done, 0);
  await Promise.all(ahead);
});
