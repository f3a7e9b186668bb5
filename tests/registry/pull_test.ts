import { deepEqual, equal, ok, rejects } from "node:assert/strict";
import { equalBytes, readBytes } from "../../lib/io/mod.ts";
import { RegistryBlobSource, RegistryError } from "../../lib/registry/mod.ts";
import type { Fault } from "../testutil/registry_server.ts";
import { until } from "../testutil/until.ts";
import { collect, manifestOf, patternBytes, setup } from "./helpers.ts";

const CONTENT = patternBytes(1_000_000);
const PUBLIC = { redirect: true };

Deno.test("resolve() checks the digest and types of a manifest", async () => {
  await using s = await setup();
  const config = await s.server.putBlob("app", patternBytes(10));
  const document = manifestOf(config, []);
  const put = s.server.putManifest(
    "app",
    "v1",
    document,
    document.mediaType as string,
  );
  deepEqual((await s.repository.resolve("v1")).descriptor, put);
  deepEqual((await s.repository.resolve(put.digest)).descriptor, put);
  await rejects(s.repository.resolve("v2"), {
    name: "NotFoundError",
    message: /No manifest "v2" in "127\.0\.0\.1:[0-9]+\/app"/,
  });
  for (const target of ["v1", put.digest]) {
    s.server.faults.add({ fault: { kind: "corrupt", at: 20 } });
    await rejects(s.repository.resolve(target), { name: "IntegrityError" });
  }
  s.server.putManifest("app", "wrong", document, "text/html");
  await rejects(s.repository.resolve("wrong"), { name: "FormatError" });
  s.server.putManifest(
    "app",
    "large",
    new Uint8Array(4 * 1024 * 1024 + 1),
    "application/json",
  );
  await rejects(s.repository.resolve("large"), { name: "LimitError" });
  await rejects(s.repository.resolve("../x"), { name: "UsageError" });
});

Deno.test("resolve() refuses a signed schema 1 manifest by name, not for its digest", async () => {
  await using s = await setup();
  s.server.putManifest(
    "app",
    "old",
    { schemaVersion: 1, fsLayers: [] },
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
  );
  // The digest is that of the document without its signatures.
  s.server.faults.add({ fault: { kind: "corrupt", at: 20 } });
  await rejects(s.repository.resolve("old"), {
    name: "UnsupportedError",
    message: /Docker schema 1 manifests are not supported/,
  });
});

Deno.test("hasBlob() does not follow a storage's redirect", async () => {
  await using s = await setup(PUBLIC);
  const blob = await s.server.putBlob("app", CONTENT);
  equal(await s.repository.hasBlob(blob.digest), true);
  equal(await s.repository.hasBlob(`sha256:${"0".repeat(64)}`), false);
  equal(s.server.requests.length, 2);
});

Deno.test("blobSize() tells bytes, and that there is no such blob", async () => {
  for (const redirect of [false, true]) {
    await using s = await setup({ redirect });
    const blob = await s.server.putBlob("app", CONTENT);
    equal(await s.repository.blobSize(blob.digest), CONTENT.length);
    await rejects(s.repository.blobSize(`sha256:${"0".repeat(64)}`), {
      name: "NotFoundError",
      message: /No blob "sha256:0+" in "127\.0\.0\.1:[0-9]+\/app"/,
    });
  }
});

for (const redirect of [false, true]) {
  const how = redirect ? "through a redirect" : "directly";
  Deno.test(`blob source: reads ${how}, also at once`, async () => {
    await using s = await setup({ redirect });
    const blob = await s.server.putBlob("app", CONTENT);
    await using source = await s.repository.openBlob(blob);
    equal(source.size, CONTENT.length);
    const ranges = [[0, 1], [0, 0], [999_999, 1], [5, 70_000], [0, 1_000_000]];
    for (let i = 0; i < 30; i++) ranges.push([i * 30_011, 4096 * (1 + i % 7)]);
    await Promise.all(ranges.map(async ([offset, length]) => {
      const got = await readBytes(source, offset!, length!);
      deepEqual(got, CONTENT.subarray(offset!, offset! + length!));
    }));
    await rejects(source.pread(new Uint8Array(2), 999_999), RangeError);
    const toRegistry = s.server.requests.filter((r) => r.origin === "registry");
    equal(toRegistry.length, redirect ? 1 : ranges.length - 1);
    ok(s.server.requests.every((r) => r.authorization === null));
  });

  const faults: Fault[] = [
    { kind: "status", status: 500 },
    { kind: "status", status: 429, headers: { "retry-after": "7" } },
    { kind: "truncate", afterBytes: 0 },
    { kind: "truncate", afterBytes: 50_000 },
    { kind: "hang", afterBytes: 10_000 },
    { kind: "ignore-range" },
  ];
  for (const fault of faults) {
    Deno.test(`blob source: ${JSON.stringify(fault)} ${how}`, async () => {
      // Nothing else stands still, however busy this machine is.
      const limits = fault.kind === "hang" ? { stallMs: 60 } : {};
      await using s = await setup({ redirect }, { limits });
      const blob = await s.server.putBlob("app", CONTENT);
      const source = await s.repository.openBlob(blob);
      s.server.faults.add({
        fault,
        times: 2,
        origin: redirect ? "storage" : "registry",
      });
      deepEqual(
        await readBytes(source, 1000, 200_000),
        CONTENT.subarray(1000, 201_000),
      );
      if (fault.kind === "status" && fault.status === 429) {
        deepEqual(s.clock.pauses, [7000, 7000]);
      }
      // What came before a break is not fetched again.
      if (fault.kind === "truncate" && fault.afterBytes > 0) {
        const ranges = s.server.requests.filter((r) =>
          r.fault || r.status === 206
        )
          .map((r) => r.range);
        ok(ranges.includes("bytes=51000-200999"), ranges.join());
      }
    });
  }
}

Deno.test("blob source: reads into the middle of shared memory", async () => {
  await using s = await setup();
  const blob = await s.server.putBlob("app", CONTENT);
  await using source = await s.repository.openBlob(blob);
  const shared = new Uint8Array(new SharedArrayBuffer(600_000));
  await source.pread(shared.subarray(5, 500_010), 77);
  const want = new Uint8Array(600_000);
  want.set(CONTENT.subarray(77, 500_082), 5);
  ok(equalBytes(shared, want));
});

Deno.test("blob source: an expired URL is asked for again, once for all readers", async () => {
  await using s = await setup(PUBLIC);
  const blob = await s.server.putBlob("app", CONTENT);
  const source = await s.repository.openBlob(blob);
  await readBytes(source, 0, 10);
  s.server.expireUrls();
  s.server.requests.length = 0;
  const reads = Array.from({ length: 8 }, (_, i) => readBytes(source, i, 100));
  for (const [i, got] of (await Promise.all(reads)).entries()) {
    deepEqual(got, CONTENT.subarray(i, i + 100));
  }
  equal(s.clock.pauses.length, 0);
  const toRegistry = s.server.requests.filter((r) => r.origin === "registry");
  equal(toRegistry.length, 1);
  s.server.removeBlob("app", blob.digest);
  s.server.expireUrls();
  await rejects(readBytes(source, 0, 10), { name: "NotFoundError" });
});

Deno.test("blob source: a storage that has gone is asked for anew at the registry", async () => {
  const faults: Fault[] = [
    { kind: "status", status: 503 },
    { kind: "silence" },
  ];
  for (const fault of faults) {
    // Long enough for those that do answer.
    const limits = fault.kind === "silence" ? { answerMs: 1000 } : {};
    await using s = await setup(PUBLIC, { limits });
    const blob = await s.server.putBlob("app", CONTENT);
    const source = await s.repository.openBlob(blob);
    await readBytes(source, 0, 10);
    s.server.requests.length = 0;
    // That URL stays away, another one is good.
    s.server.expireUrls();
    s.server.faults.add({ path: /signature=1$/, times: 99, fault });
    deepEqual(await readBytes(source, 7, 100), CONTENT.subarray(7, 107));
    const asked = s.server.requests.map((r) => r.origin);
    deepEqual(asked, ["storage", "registry", "storage"]);
    deepEqual(await readBytes(source, 9, 100), CONTENT.subarray(9, 109));
    equal(s.server.requests.length, 4);
  }
});

Deno.test("blob source: a storage that always refuses is an error, not a loop", async () => {
  await using s = await setup(PUBLIC);
  const blob = await s.server.putBlob("app", CONTENT);
  const source = await s.repository.openBlob(blob);
  s.server.faults.add({
    origin: "storage",
    times: 100,
    fault: { kind: "status", status: 403 },
  });
  await rejects(readBytes(source, 0, 10), (e) => {
    ok(e instanceof RegistryError && e.status === 403);
    ok(!/signature/.test(e.message + e.url + e.stack), e.message);
    return true;
  });
  ok(s.server.requests.length <= 4);
});

Deno.test("blob source: never wrong bytes", async () => {
  await using s = await setup();
  const blob = await s.server.putBlob("app", CONTENT);
  const source = await s.repository.openBlob(blob);
  s.server.faults.add({ fault: { kind: "shift-range", by: 512 } });
  await rejects(readBytes(source, 1000, 4096), {
    name: "RegistryError",
    message: /Content-Range "bytes 1512-5607\/1000000" for bytes=1000-5095/,
  });
  s.server.faults.add({ fault: { kind: "shift-range", by: -512 } });
  await rejects(readBytes(source, 1000, 4096), { name: "RegistryError" });
  s.server.faults.add({ fault: { kind: "status", status: 206, body: "abc" } });
  await rejects(readBytes(source, 0, 3), { message: /Content-Range ""/ });
  s.server.faults.add({ fault: { kind: "status", status: 200, body: "abc" } });
  await rejects(readBytes(source, 0, 3), { name: "IntegrityError" });
  for (const size of [CONTENT.length + 10, CONTENT.length - 10]) {
    const wrong = await s.repository.openBlob({ ...blob, size });
    await rejects(readBytes(wrong, 0, 3), { name: "IntegrityError" });
  }
  const beyond = await s.repository.openBlob({ ...blob, size: 2_000_000 });
  await rejects(readBytes(beyond, 1_500_000, 3), { name: "IntegrityError" });
});

Deno.test("blob source: a server without ranges is read from its start up to a bound", async () => {
  await using s = await setup();
  const size = 17 * 1024 * 1024;
  const blob = await s.server.putBlob("app", new Uint8Array(size).fill(7));
  const source = await s.repository.openBlob(blob);
  s.server.faults.add({ times: 9, fault: { kind: "ignore-range" } });
  deepEqual(await readBytes(source, 2_000_000, 3), new Uint8Array([7, 7, 7]));
  await rejects(readBytes(source, size - 3, 3), {
    name: "RegistryError",
    message: /ignores ranges/,
  });
});

Deno.test("blob source: a pull-through cache gives ranges once it has the blob", async () => {
  await using s = await setup();
  const size = 17 * 1024 * 1024;
  const blob = await s.server.putBlob("app", new Uint8Array(size).fill(7));
  const source = await s.repository.openBlob(blob);
  s.server.faults.add({ times: 5, fault: { kind: "ignore-range" } });
  const before = s.clock.now();
  deepEqual(await readBytes(source, size - 3, 3), new Uint8Array([7, 7, 7]));
  ok(s.clock.now() - before >= 10_000);
});

Deno.test("blob source: a server that gives less than asked is asked for the rest", async () => {
  await using s = await setup();
  const blob = await s.server.putBlob("app", CONTENT);
  const source = await s.repository.openBlob(blob);
  s.server.faults.add({
    fault: {
      kind: "status",
      status: 206,
      headers: { "content-range": "bytes 0-2/1000000" },
      body: String.fromCharCode(...CONTENT.subarray(0, 3).map((b) => b & 127)),
    },
  });
  const got = await readBytes(source, 0, 10);
  deepEqual(got.subarray(3), CONTENT.subarray(3, 10));
  equal(s.server.requests[1]!.range, "bytes=3-9");
});

Deno.test("blob source: silence ends with a deadline, an abort at once", async () => {
  // Long enough for each attempt to come to the server.
  await using s = await setup({}, { limits: { answerMs: 1000, attempts: 3 } });
  const blob = await s.server.putBlob("app", CONTENT);
  const source = await s.repository.openBlob(blob);
  s.server.faults.add({ times: 5, fault: { kind: "silence" } });
  await rejects(readBytes(source, 0, 10), {
    name: "DeadlineError",
    message: /GET http:\/\/127.* did not finish in 1000 ms/,
  });
  equal(s.server.requests.length, 3);
  const signal = AbortSignal.timeout(10);
  await rejects(source.pread(new Uint8Array(10), 0, { signal }), {
    name: "CancelledError",
  });
});

Deno.test("blob source: at most so many requests at once, demand before prefetch", async () => {
  await using s = await setup({}, { concurrency: 2 });
  const blob = await s.server.putBlob("app", CONTENT);
  const source = await s.repository.openBlob(blob);
  await readBytes(source, 0, 1);
  s.server.requests.length = 0;
  s.server.faults.add({ times: 6, fault: { kind: "delay", milliseconds: 30 } });
  const read = (priority: "demand" | "prefetch", offset: number) =>
    readBytes(source, offset, 1, { priority });
  const reads = [
    read("prefetch", 1),
    read("prefetch", 2),
    read("prefetch", 3),
    read("prefetch", 4),
    read("demand", 5),
    read("demand", 6),
  ];
  let left = reads.length;
  for (const one of reads) one.then(() => left--, () => left--);
  let most = 0;
  await until(() => {
    const running = s.server.requests.filter((r) => r.status === 0).length;
    most = Math.max(most, running);
    return left === 0;
  });
  await Promise.all(reads);
  ok(most <= 2, `${most} requests at once`);
  // One prefetch was under way; demand did not wait for it, nor for the others.
  const early = s.server.requests.slice(0, 4).map((r) => r.range);
  ok(early.includes("bytes=5-5") && early.includes("bytes=6-6"), early.join());
});

Deno.test("blob source: first reads wait for each other only where redirects are known", async () => {
  for (const redirect of [false, true]) {
    await using s = await setup({ redirect });
    const first = await s.server.putBlob("app", CONTENT);
    const second = await s.server.putBlob("app", patternBytes(1000, 3));
    await readBytes(await s.repository.openBlob(first), 0, 10);
    s.server.requests.length = 0;
    const delay = { kind: "delay", milliseconds: 500 } as const;
    s.server.faults.add({ times: 1, fault: delay });
    const source = await s.repository.openBlob(second);
    const reads = [1, 2, 3].map((at) => readBytes(source, at, 10));
    if (!redirect) {
      await until(() => s.server.requests.length === 3);
      ok(s.server.requests.some((r) => r.status === 0), "all were answered");
    }
    await Promise.all(reads);
    const asked = s.server.requests.filter((r) => r.origin === "registry");
    equal(asked.length, redirect ? 1 : 3);
  }
});

Deno.test("blob source: a first read that was fetched ahead is hurried by readers that wait for it", async () => {
  // One of two permits is prefetch's.
  await using s = await setup(PUBLIC, { concurrency: 2 });
  const [first, second] = await Promise.all(
    [CONTENT, patternBytes(1000, 3)].map((b) => s.server.putBlob("app", b)),
  );
  const known = await s.repository.openBlob(first!);
  await readBytes(known, 0, 10);
  s.server.faults.add({
    origin: "storage",
    fault: { kind: "delay", milliseconds: 2000 },
  });
  const priority = "prefetch";
  let isSlowDone = false;
  const slow = readBytes(known, 0, 10, { priority })
    .finally(() => isSlowDone = true);
  const source = await s.repository.openBlob(second!);
  const ahead = readBytes(source, 0, 10, { priority });
  await until(() =>
    s.server.requests.some((r) => r.path.includes(second!.digest))
  );
  await readBytes(source, 500, 10);
  ok(!isSlowDone, "it waited for another's prefetch");
  await Promise.all([slow, ahead]);
});

Deno.test("a blob in its descriptor needs no request", async () => {
  await using s = await setup();
  const bytes = patternBytes(100);
  const { digest } = await s.server.putBlob("other", bytes);
  const descriptor = {
    mediaType: "x",
    digest,
    size: 100,
    data: bytes.toBase64(),
  };
  const source = await s.repository.openBlob(descriptor);
  deepEqual(await readBytes(source, 10, 20), bytes.subarray(10, 30));
  const forged = { ...descriptor, data: patternBytes(100, 2).toBase64() };
  ok(await s.repository.openBlob(forged) instanceof RegistryBlobSource);
  equal(s.server.requests.length, 0);
});

Deno.test("fetchBlob() resumes after breaks, directly and through redirects", async () => {
  for (const redirect of [false, true]) {
    await using s = await setup({ redirect });
    const blob = await s.server.putBlob("app", CONTENT);
    const origin = redirect ? "storage" : "registry";
    const cuts = [400_000, 100_000, 0];
    for (const afterBytes of cuts) {
      s.server.faults.add({ origin, fault: { kind: "truncate", afterBytes } });
    }
    s.server.faults.add({ origin, fault: { kind: "status", status: 502 } });
    const seen: number[] = [];
    const got = await collect(s.repository.fetchBlob(blob, {
      onProgress: (n) => void seen.push(n),
    }));
    deepEqual(got, CONTENT);
    equal(seen.at(-1), CONTENT.length);
    deepEqual(
      s.server.requests.filter((r) => r.origin === origin).map((r) => r.range),
      [
        null,
        "bytes=400000-999999",
        "bytes=500000-999999",
        "bytes=500000-999999",
        "bytes=500000-999999",
      ],
    );
  }
});

Deno.test("fetchBlob() over a server that ignores ranges passes over what it has", async () => {
  await using s = await setup();
  const blob = await s.server.putBlob("app", CONTENT);
  s.server.faults.add({ fault: { kind: "truncate", afterBytes: 300_000 } });
  s.server.faults.add({ fault: { kind: "ignore-range" } });
  deepEqual(await collect(s.repository.fetchBlob(blob)), CONTENT);
  equal(s.server.requests.length, 2);
});

Deno.test("fetchBlob() ends with an error on wrong content, size and absence", async () => {
  await using s = await setup();
  const blob = await s.server.putBlob("app", CONTENT);
  s.server.faults.add({ fault: { kind: "corrupt", at: 777_777 } });
  await rejects(collect(s.repository.fetchBlob(blob)), {
    name: "IntegrityError",
    message: /^Digest of blob/,
  });
  s.server.faults.add({ fault: { kind: "shorten", bytes: 10 } });
  await rejects(collect(s.repository.fetchBlob(blob)), {
    name: "IntegrityError",
    message: /^Size of blob/,
  });
  // Chunked transfer: no length that could be checked first.
  s.server.faults.add({
    fault: { kind: "status", status: 200, body: "x".repeat(20) },
  });
  await rejects(collect(s.repository.fetchBlob({ ...blob, size: 10 })), {
    name: "IntegrityError",
  });
  const absent = { ...blob, digest: `sha256:${"0".repeat(64)}` };
  await rejects(collect(s.repository.fetchBlob(absent)), {
    name: "NotFoundError",
  });
  const empty = await s.server.putBlob("app", new Uint8Array(0));
  equal((await collect(s.repository.fetchBlob(empty))).length, 0);
});

Deno.test("fetchBlob() that brings nothing forward gives up", async () => {
  await using s = await setup({}, { limits: { attempts: 4 } });
  const blob = await s.server.putBlob("app", CONTENT);
  // A drip of single bytes is no progress.
  s.server.faults.add({
    times: 99,
    fault: { kind: "truncate", afterBytes: 1 },
  });
  await rejects(collect(s.repository.fetchBlob(blob)), {
    name: "RegistryError",
    message: /Body of|failed/,
  });
  ok(s.server.requests.length <= 8, String(s.server.requests.length));
});

Deno.test("fetchBlob() that is left early or aborted lets the connection go", async () => {
  await using s = await setup({}, { concurrency: 1 });
  const blob = await s.server.putBlob("app", CONTENT);
  for await (const piece of s.repository.fetchBlob(blob)) {
    ok(piece.length > 0);
    break;
  }
  const control = new AbortController();
  await rejects(async () => {
    const pieces = s.repository.fetchBlob(blob, { signal: control.signal });
    for await (const _ of pieces) control.abort();
  }, { name: "CancelledError" });
  // With one permit, a leak would hang here.
  equal(await s.repository.hasBlob(blob.digest), true);
});

Deno.test("blob source: hardly anything of a range, again and again, is given up; less than asked is not", async () => {
  await using s = await setup({}, { limits: { attempts: 4 } });
  const content = patternBytes(400_000);
  const source = await s.repository.openBlob(
    await s.server.putBlob("app", content),
  );
  s.server.faults.add({ fault: { kind: "cut-range", bytes: 1 }, times: 1e9 });
  const before = s.server.requests.length;
  await rejects(readBytes(source, 0, 400_000), /ended early/);
  equal(s.server.requests.length - before, 4);
  s.server.faults.clear();
  s.server.faults.add({
    fault: { kind: "cut-range", bytes: 70_000 },
    times: 9,
  });
  s.clock.pauses.length = 0;
  deepEqual(await readBytes(source, 0, 400_000), content);
  deepEqual(s.clock.pauses, []);
});
