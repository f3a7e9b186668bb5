/** Opening an image: what is asked for at once, what is kept, which meta image is used. */

import assert from "node:assert/strict";
import {
  Annotation,
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

/** Opens an image of which `silent` never answers, and waits until all of `wanted` is asked for. */
async function assertAsked(
  silent: RegExp[],
  wanted: (layers: { digest: string }[]) => RegExp[],
): Promise<void> {
  await using image = await built();
  const control = new AbortController();
  await using environment = await openEnvironment({ signal: control.signal });
  const patterns = wanted(await taggedLayers(environment, image.reference));
  const { server } = image;
  server.requests.length = 0;
  for (const path of silent) {
    server.faults.add({ path, times: 100, fault: { kind: "silence" } });
  }
  const opening = openImage(environment, image.reference, { traces: true });
  opening.catch(() => {});
  // Each pattern takes one request.
  const isComplete = () => {
    const paths = asked(image);
    return patterns.every((one) => {
      const at = paths.findIndex((path) => one.test(path));
      return at >= 0 && paths.splice(at, 1);
    });
  };
  assert.ok(await waitUntil(isComplete, 20_000), asked(image).join("\n"));
  control.abort();
  await assert.rejects(opening, { code: "cancelled" });
}

Deno.test("openImage() asks at once for all that may lead to a meta image, and for traces", () =>
  assertAsked([/-obd$/, /\/referrers\//, /\/blobs\//], () => [
    /^manifests\/v1$/,
    /^manifests\/v1-obd$/,
    /^manifests\/sha256-\w+-obd$/,
    /^referrers\//,
    /^referrers\//,
    /^blobs\//, // the config
  ]));

Deno.test("openImage() asks for meta blobs as soon as it knows them", () =>
  assertAsked([/sha256-\w+-obd$/, /\/referrers\//, /\/blobs\//], (layers) => [
    /^manifests\/v1$/,
    /^manifests\/v1-obd$/,
    ...layers.map(({ digest }) => new RegExp(`^blobs/${digest}$`)),
    /^blobs\//, // the config
    /^referrers\//,
  ]));

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

Deno.test("openImage() uses what the tag names, with smaller referrers and without an answer for them", async () => {
  // The tag is on the last, with the longest index.
  await using image = await built({ spanSizes: [2 ** 22, 2 ** 16] });
  const { server, reference } = image;
  for (const isSilent of [false, true]) {
    if (isSilent) {
      const path = /\/referrers\//;
      server.faults.add({ path, times: 100, fault: { kind: "silence" } });
    }
    await using environment = await image.environment();
    await using opened = await openImage(environment, reference);
    assert.equal(opened.metaDigest, server.tags("app").get("v1-obd"));
    const { errors } = environment.hostStatistics()[0]!;
    assert.equal(errors, 0, "what was called off is no error");
  }
  assert.equal(image.logger.count("cannot list referrers"), 0);
});

Deno.test("openImage() uses the smallest of several referrers where no tag names one", async () => {
  await using image = await built({ spanSizes: [2 ** 16, 2 ** 22, 2 ** 18] });
  const { server, reference } = image;
  server.tags("app").delete("v1-obd");
  await using environment = await image.environment();
  const metas = await referrerManifests(environment, image);
  assert.equal(metas.length, 3);
  const smallest = metas.reduce((a, b) => sumOf(a) < sumOf(b) ? a : b);
  await using opened = await openImage(environment, reference);
  assert.equal(opened.metaDigest, smallest.digest);
});

Deno.test("openImage() uses a referrer of a newer format than what the tag names", async () => {
  await using image = await built();
  const { server, reference } = image;
  await using environment = await image.environment();
  const [newest] = await referrerManifests(environment, image);
  const { digest, manifest } = newest!;
  const older = {
    ...manifest,
    annotations: { ...manifest.annotations, [Annotation.obdFormat]: "1" },
  };
  server.putManifest("app", "v1-obd", older, manifest.mediaType);
  await using opened = await openImage(environment, reference);
  assert.equal(opened.metaDigest, digest);
});

interface MetaManifest {
  digest: string;
  manifest: {
    mediaType: string;
    annotations: Record<string, string>;
    layers: { size: number }[];
  };
}

/** The meta images that refer to the image. */
async function referrerManifests(
  environment: ImageEnvironment,
  { reference }: Built,
): Promise<MetaManifest[]> {
  await using repository = await environment.openRepository(
    parseReference(reference),
  );
  const { descriptor } = await repository.resolve("v1");
  const found = await repository.referrers(descriptor.digest);
  return await Promise.all(found.map(async ({ digest }) => {
    const { bytes } = await repository.resolve(digest);
    const manifest = JSON.parse(new TextDecoder().decode(bytes));
    return { digest, manifest };
  }));
}

function sumOf({ manifest }: MetaManifest): number {
  return manifest.layers.reduce((sum, { size }) => sum + size, 0);
}

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
