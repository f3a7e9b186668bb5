import { deepEqual, equal, ok, rejects } from "node:assert/strict";
import {
  blobFromBytes,
  blobFromRepository,
  type Descriptor,
  fallbackTag,
  MediaType,
  sha256Digest,
} from "../../lib/registry/mod.ts";
import type {
  Fault,
  RegistryServerOptions,
} from "../testutil/registry_server.ts";
import {
  collect,
  manifestOf,
  patternBytes,
  type Setup,
  setup,
} from "./helpers.ts";

const SMALL = patternBytes(100_000);
// Above the bound for one PUT, and more than two pieces.
const LARGE = patternBytes(35_000_000, 3);

function describe(bytes: Uint8Array): Descriptor {
  return {
    mediaType: "application/octet-stream",
    digest: sha256Digest(bytes),
    size: bytes.length,
  };
}

async function checkStored(s: Setup, bytes: Uint8Array): Promise<void> {
  const got = await collect(s.repository.fetchBlob(describe(bytes)));
  equal(sha256Digest(got), sha256Digest(bytes));
}

const writes = (s: Setup) =>
  s.server.requests.filter((r) => r.method !== "HEAD" && r.origin !== "token")
    .map((r) => `${r.method} ${r.status}`);

Deno.test("pushBlob(): small in one PUT, large as one stream, both kinds of location", async () => {
  for (const absoluteLocations of [false, true]) {
    await using s = await setup({ absoluteLocations });
    equal(
      await s.repository.pushBlob(describe(SMALL), blobFromBytes(SMALL)),
      "uploaded",
    );
    deepEqual(writes(s), ["POST 202", "PUT 201"]);
    s.server.requests.length = 0;
    const progress: number[] = [];
    await s.repository.pushBlob(describe(LARGE), blobFromBytes(LARGE), {
      onProgress: (n) => void progress.push(n),
    });
    deepEqual(writes(s), ["POST 202", "PATCH 202", "PUT 201"]);
    equal(progress.at(-1), LARGE.length);
    await checkStored(s, LARGE);
    equal(
      await s.repository.pushBlob(describe(SMALL), blobFromBytes(SMALL)),
      "exists",
    );
    const empty = new Uint8Array(0);
    await s.repository.pushBlob(describe(empty), blobFromBytes(empty));
    await checkStored(s, empty);
  }
});

Deno.test("pushBlob(): goes on where a broken upload stopped", async () => {
  await using s = await setup();
  s.server.faults.add({
    method: "PATCH",
    fault: { kind: "break-upload", afterBytes: 20_000_000 },
  });
  let opened: number[] = [];
  const content = {
    open(offset: number) {
      opened.push(offset);
      return blobFromBytes(LARGE).open(offset);
    },
  };
  await s.repository.pushBlob(describe(LARGE), content);
  deepEqual(writes(s), [
    "POST 202",
    "PATCH 503",
    "GET 204",
    "PATCH 202",
    "PUT 201",
  ]);
  equal(opened[0], 0);
  ok(opened[1]! >= 20_000_000 - 1, String(opened));
  await checkStored(s, LARGE);

  // Twice in one upload, the second time in a piece.
  const other = patternBytes(35_000_000, 4);
  s.server.requests.length = 0;
  opened = [];
  for (const afterBytes of [1_000_000, 5_000_000]) {
    s.server.faults.add({
      method: "PATCH",
      fault: { kind: "break-upload", afterBytes },
    });
  }
  await s.repository.pushBlob(describe(other), blobFromBytes(other));
  deepEqual(writes(s), [
    "POST 202",
    "PATCH 503",
    "GET 204",
    "PATCH 503",
    "GET 204",
    "PATCH 202",
    "PATCH 202",
    "PUT 201",
  ]);
  await checkStored(s, other);
});

Deno.test("pushBlob(): starts over where the registry forgot the upload", async () => {
  await using s = await setup();
  s.server.faults.add({
    method: "PATCH",
    fault: { kind: "break-upload", afterBytes: 1_000_000 },
  });
  s.server.faults.add({
    method: "GET",
    fault: { kind: "status", status: 404 },
  });
  await s.repository.pushBlob(describe(LARGE), blobFromBytes(LARGE));
  deepEqual(writes(s), [
    "POST 202",
    "PATCH 503",
    "GET 404",
    "POST 202",
    "PATCH 202",
    "PUT 201",
  ]);
  await checkStored(s, LARGE);
});

Deno.test("pushBlob(): an upload that is lost again and again is given up", async () => {
  await using s = await setup();
  const answer = (fault: Fault) =>
    s.server.faults.add({ method: "PATCH", fault });
  answer({ kind: "status", status: 411 });
  // Room for one piece: the next is refused, and the upload forgotten.
  for (let i = 0; i < 40; i++) {
    answer({ kind: "delay", milliseconds: 0 });
    answer({ kind: "status", status: 500 });
  }
  s.server.faults.add({
    method: "GET",
    times: 99,
    fault: { kind: "status", status: 404 },
  });
  await rejects(
    s.repository.pushBlob(describe(LARGE), blobFromBytes(LARGE)),
    { name: "RegistryError", status: 500 },
  );
  const pieces = writes(s).filter((w) => w.startsWith("PATCH"));
  ok(pieces.length < 30, pieces.join());
});

/** {@linkcode LARGE} where a registry refuses a stream (411). */
const IN_PIECES = [
  "POST 202",
  "PATCH 411",
  "POST 202",
  "PATCH 202",
  "PATCH 202",
  "PATCH 202",
  "PUT 201",
];

Deno.test("pushBlob(): pieces of known length where the registry wants lengths", async () => {
  await using s = await setup({ requireLength: true });
  await s.repository.pushBlob(describe(LARGE), blobFromBytes(LARGE));
  deepEqual(writes(s), IN_PIECES);
  equal(s.clock.pauses.length, 0);
  await checkStored(s, LARGE);
});

Deno.test("pushBlob(): a lost answer to the commit, errors at each step", async () => {
  for (const bytes of [SMALL, LARGE]) {
    await using s = await setup();
    for (const method of ["POST", "PUT", "HEAD"]) {
      s.server.faults.add({ method, fault: { kind: "status", status: 502 } });
    }
    equal(
      await s.repository.pushBlob(describe(bytes), blobFromBytes(bytes)),
      "uploaded",
    );
    await checkStored(s, bytes);
  }
  await using s = await setup({}, { limits: { attempts: 3 } });
  s.server.faults.add({
    method: "PUT",
    times: 9,
    fault: { kind: "status", status: 500 },
  });
  await rejects(
    s.repository.pushBlob(describe(SMALL), blobFromBytes(SMALL)),
    { name: "RegistryError", status: 500 },
  );
  equal(writes(s).filter((w) => w.startsWith("PUT")).length, 3);
});

for (const status of [400, 403, 405, 501]) {
  Deno.test(`pushBlob(): HEAD is answered with ${status}`, async () => {
    await using s = await setup();
    const head = { kind: "status", status } as const;
    s.server.faults.add({ method: "HEAD", times: 100, fault: head });
    const push = () =>
      s.repository.pushBlob(describe(SMALL), blobFromBytes(SMALL));
    equal(await push(), "uploaded");
    await checkStored(s, SMALL);
    s.server.requests.length = 0;
    equal(await push(), "exists");
    deepEqual(
      s.server.requests.map((r) => `${r.method} ${r.range} ${r.status}`),
      [`HEAD null ${status}`, "GET bytes=0-0 206"],
    );
    // Who may write alone cannot be told what is there.
    s.server.faults.add({ method: "GET", times: 100, fault: head });
    equal(await push(), "uploaded");
    await rejects(s.repository.hasBlob(describe(SMALL).digest), {
      name: "RegistryError",
      status,
    });
  });
}

Deno.test("pushBlob(): a registry may take its time to store what it was sent", async () => {
  await using s = await setup({}, {
    limits: { answerMs: 1000, commitMs: 20_000 },
  });
  const delay = { kind: "delay", milliseconds: 1500 } as const;
  s.server.faults.add({ method: "PUT", times: 2, fault: delay });
  await s.repository.pushBlob(describe(SMALL), blobFromBytes(SMALL));
  deepEqual(writes(s), ["POST 202", "PUT 201"]);
  s.server.requests.length = 0;
  s.server.faults.add({
    method: "PATCH",
    fault: { kind: "status", status: 411 },
  });
  s.server.faults.add({ method: "PATCH", times: 3, fault: delay });
  await s.repository.pushBlob(describe(LARGE), blobFromBytes(LARGE));
  deepEqual(writes(s), IN_PIECES);
});

Deno.test("pushBlob(): content that is not what its descriptor says is never committed", async () => {
  await using s = await setup();
  for (const bytes of [SMALL, LARGE]) {
    const good = describe(bytes);
    const cases = [
      { ...good, digest: `sha256:${"0".repeat(64)}` },
      { ...good, size: good.size + 1 },
      { ...good, size: good.size - 1 },
    ];
    for (const wrong of cases) {
      s.server.requests.length = 0;
      await rejects(s.repository.pushBlob(wrong, blobFromBytes(bytes)), {
        name: "IntegrityError",
      });
      ok(!writes(s).some((w) => w.startsWith("PUT")), writes(s).join());
    }
  }
});

Deno.test("pushBlob(): mounts, and falls back to an upload in the opened session", async () => {
  await using s = await setup();
  const blob = await s.server.putBlob("base", SMALL);
  equal(
    await s.repository.pushBlob(blob, blobFromBytes(SMALL), {
      mountFrom: ["base"],
    }),
    "mounted",
  );
  const other = patternBytes(1000, 9);
  s.server.requests.length = 0;
  equal(
    await s.repository.pushBlob(describe(other), blobFromBytes(other), {
      mountFrom: ["base"],
    }),
    "uploaded",
  );
  deepEqual(writes(s), ["POST 202", "PUT 201"]);
});

Deno.test("pushBlob(): a mount that the registry cannot do is an upload", async () => {
  await using s = await setup({}, { limits: { attempts: 2 } });
  for (const [i, status] of [400, 404, 405, 500, 503].entries()) {
    const bytes = patternBytes(1000, 20 + i);
    s.server.faults.add({
      path: /mount=/,
      times: 9,
      fault: { kind: "status", status },
    });
    equal(
      await s.repository.pushBlob(describe(bytes), blobFromBytes(bytes), {
        mountFrom: ["base"],
      }),
      "uploaded",
      String(status),
    );
    s.server.faults.clear();
  }
});

Deno.test("pushBlob(): from another repository, streamed", async () => {
  await using s = await setup({ redirect: true });
  const blob = await s.server.putBlob("base", LARGE);
  const base = s.client.open(s.server.host, "base");
  await s.repository.pushBlob(blob, blobFromRepository(base, blob));
  await checkStored(s, LARGE);
});

async function pushImage(s: Setup, tag: string): Promise<Descriptor> {
  const config = patternBytes(64);
  await s.repository.pushBlob(describe(config), blobFromBytes(config));
  const document = manifestOf(describe(config), []);
  const bytes = new TextEncoder().encode(JSON.stringify(document));
  return await s.repository.pushManifest(bytes, MediaType.ociManifest, tag);
}

function referrerBytes(
  subject: Descriptor,
  name: string,
  artifactType = "application/x.test",
): Uint8Array<ArrayBuffer> {
  const config = describe(patternBytes(64));
  return new TextEncoder().encode(JSON.stringify(manifestOf(config, [], {
    subject,
    artifactType,
    annotations: { name },
  })));
}

const SERVERS: RegistryServerOptions[] = [
  {},
  { referrersPageSize: 2 },
  { referrersApi: false },
];

for (const options of SERVERS) {
  Deno.test(`referrers: found, filtered, sorted ${JSON.stringify(options)}`, async () => {
    await using s = await setup(options);
    const subject = await pushImage(s, "v1");
    deepEqual(await s.repository.referrers(subject.digest), []);
    const pushed: Descriptor[] = [];
    for (const name of ["a", "b", "c", "d", "e"]) {
      const type = name === "e" ? "application/x.other" : undefined;
      const bytes = referrerBytes(subject, name, type);
      pushed.push(
        await s.repository.pushManifest(bytes, MediaType.ociManifest),
      );
    }
    // Again, and under a tag: no second entry.
    const again = referrerBytes(subject, "a");
    await s.repository.pushManifest(again, MediaType.ociManifest, "v1-obd");
    const all = await s.repository.referrers(subject.digest);
    deepEqual(
      all.map((d) => d.digest),
      pushed.map((d) => d.digest).sort(),
    );
    const first = all.find((d) => d.digest === pushed[0]!.digest)!;
    equal(first.artifactType, "application/x.test");
    deepEqual(first.annotations, { name: "a" });
    equal(first.size, again.length);
    const some = await s.repository.referrers(
      subject.digest,
      "application/x.other",
    );
    deepEqual(some.map((d) => d.digest), [pushed[4]!.digest]);
    equal(
      s.server.tags("app").has(fallbackTag(subject.digest)),
      options.referrersApi === false,
    );
  });
}

Deno.test("referrers: writers of one fallback tag lose no entry", async () => {
  await using s = await setup({ referrersApi: false });
  const subject = await pushImage(s, "v1");
  const names = ["a", "b", "c", "d"];
  await Promise.all(names.map(async (name) => {
    const bytes = referrerBytes(subject, name);
    await s.repository.pushManifest(bytes, MediaType.ociManifest);
  }));
  const found = await s.repository.referrers(subject.digest);
  deepEqual(found.map((d) => d.annotations?.name).sort(), names);
});

Deno.test("referrers: a fallback tag that is something else is left as it is", async () => {
  await using s = await setup({ referrersApi: false });
  const subject = await pushImage(s, "v1");
  const tag = fallbackTag(subject.digest);
  const other = await pushImage(s, tag);
  await rejects(
    s.repository.pushManifest(
      referrerBytes(subject, "a"),
      MediaType.ociManifest,
    ),
    { name: "ObdError", code: "conflict", message: /is no index/ },
  );
  equal(s.server.tags("app").get(tag), other.digest);
  deepEqual(await s.repository.referrers(subject.digest), []);
});

Deno.test("referrers: a list that has no room is left as it is", async () => {
  await using s = await setup({ referrersApi: false });
  const subject = await pushImage(s, "v1");
  const tag = fallbackTag(subject.digest);
  const entry = (size: number) => ({
    mediaType: MediaType.ociManifest,
    digest: sha256Digest(new Uint8Array(size)),
    size,
  });
  const full = [
    Array.from({ length: 10_000 }, (_, i) => entry(i)),
    [{ ...entry(1), annotations: { a: "x".repeat(4 * 1024 * 1024 - 400) } }],
  ];
  for (const manifests of full) {
    const { digest } = s.server.putManifest("app", tag, {
      schemaVersion: 2,
      mediaType: MediaType.ociIndex,
      manifests,
    }, MediaType.ociIndex);
    await rejects(
      s.repository.pushManifest(
        referrerBytes(subject, "a"),
        MediaType.ociManifest,
      ),
      { name: "LimitError" },
    );
    equal(s.server.tags("app").get(tag), digest);
    equal(
      (await s.repository.referrers(subject.digest)).length,
      manifests.length,
    );
  }
});

Deno.test("referrers: registries that answer oddly are read by the tag", async () => {
  await using s = await setup();
  const subject = await pushImage(s, "v1");
  const entry = {
    mediaType: MediaType.ociManifest,
    digest: `sha256:${"1".repeat(64)}`,
    size: 7,
  };
  s.server.putManifest("app", fallbackTag(subject.digest), {
    schemaVersion: 2,
    mediaType: MediaType.ociIndex,
    manifests: [entry],
  }, MediaType.ociIndex);
  for (
    const [status, body] of [
      [400, ""],
      [405, ""],
      [406, ""],
      [200, "<html>"],
    ] as const
  ) {
    s.server.faults.add({
      path: /referrers/,
      fault: { kind: "status", status, body },
    });
    deepEqual(await s.repository.referrers(subject.digest), [entry]);
  }
});

Deno.test("pushManifest(): by digest, wrong targets, missing blobs", async () => {
  await using s = await setup();
  const image = await pushImage(s, "v1");
  const { bytes } = await s.repository.resolve("v1");
  const again = await s.repository.pushManifest(
    bytes,
    MediaType.ociManifest,
    image.digest,
  );
  deepEqual(again, image);
  for (const target of [`sha256:${"0".repeat(64)}`, "-x", "a/b", ""]) {
    await rejects(
      s.repository.pushManifest(bytes, MediaType.ociManifest, target),
      { name: "UsageError" },
    );
  }
  const lacking = manifestOf({ ...image, mediaType: "x" }, []);
  await rejects(
    s.repository.pushManifest(
      new TextEncoder().encode(JSON.stringify(lacking)),
      MediaType.ociManifest,
      "v2",
    ),
    { name: "RegistryError", status: 400, message: /MANIFEST_BLOB_UNKNOWN/ },
  );
});

Deno.test("pushManifest(): asks again where a racing push made it invalid for a moment, but not for ever", async () => {
  await using s = await setup();
  const image = await pushImage(s, "v1");
  const { bytes } = await s.repository.resolve("v1");
  const body = JSON.stringify({ errors: [{ code: "DIGEST_INVALID" }] });
  const invalid = (times: number) =>
    s.server.faults.add({
      method: "PUT",
      path: /\/manifests\//,
      times,
      fault: { kind: "status", status: 400, body },
    });
  invalid(2);
  const again = await s.repository.pushManifest(
    bytes,
    MediaType.ociManifest,
    "v2",
  );
  deepEqual(again, image);
  invalid(5);
  await rejects(
    s.repository.pushManifest(bytes, MediaType.ociManifest, "v3"),
    { name: "RegistryError", status: 400, message: /DIGEST_INVALID/ },
  );
  await rejects(s.repository.resolve("v3"), { name: "NotFoundError" });
});
