import assert from "node:assert/strict";
import { limitOf } from "../../cmd/bench/limit.ts";
import type { RegistrySettings } from "../../cmd/context.ts";
import { parseRate } from "../../cmd/bench/link.ts";
import { sourceFlags } from "../../cmd/bench/prepare.ts";
import { spreadOf, summarize } from "../../cmd/bench/result.ts";
import { renderSession, renderTable } from "../../cmd/bench/table.ts";
import { findWorkload, parseReady } from "../../cmd/bench/workloads.ts";
import { UsageError } from "../../lib/io/mod.ts";
import { MACHINE, runOf, sessionOf } from "./sessions.ts";

Deno.test("spreadOf() is the median and the ends", () => {
  assert.equal(spreadOf([]), undefined);
  assert.deepEqual(spreadOf([3]), { median: 3, min: 3, max: 3 });
  assert.deepEqual(spreadOf([3, 1, 10]), { median: 3, min: 1, max: 10 });
  assert.deepEqual(spreadOf([4, 1, 3, 10]), { median: 3.5, min: 1, max: 10 });
});

Deno.test("summarize() compares with plain OCI and keeps failures", () => {
  const { runs, touched } = sessionOf();
  const summaries = summarize(runs, touched);
  assert.deepEqual(summaries.map((s) => s.contender), ["oci", "obd", "umoci"]);
  const [oci, obd, umoci] = summaries;
  assert.equal(oci!.ratio, 1);
  assert.equal(obd!.ratio, 2 / 12);
  assert.equal(obd!.runs, 3);
  assert.deepEqual(obd!.readyRuns, [2, 1, 3]);
  assert.equal(obd!.limitMultiple, 2 / 0.521);
  assert.equal(obd!.steadyRatio, 0.98);
  // 2 MB fetched, 4 MB read of the device, 1 MB touched as it is stored.
  assert.equal(obd!.amplification!.median, 0.5);
  assert.equal(oci!.amplification, undefined);
  assert.equal(oci!.perTouched!.median, 2);
  assert.deepEqual(obd!.processes.map((p) => [p.name, p.cpuSeconds.median]), [
    ["obd serve", 1.25],
    ["service", 0.25],
  ]);
  assert.equal(obd!.stages!.fetch!.median, 0.5);
  // Plain OCI waits for no device; what it has follows from its times.
  assert.equal(oci!.stages!.fetch, undefined);
  assert.equal(oci!.stages!.service!.median, 6);
  assert.equal(umoci!.stages, undefined);
  assert.deepEqual(umoci!.failures, ["it broke"]);
  assert.equal(umoci!.ready, undefined);
  const table = renderTable(summaries, touched);
  assert.match(table, /^ {2}umoci +failed +-/m);
  assert.match(table, /umoci failed in 1 of 1 runs: it broke/);
  assert.match(table, /^ {2}obd +2\.00 +1\.00–3\.00 +0\.167 +3\.84/m);
  assert.match(table, /^ {2}where it went +request +open +mount/m);
  assert.match(
    table,
    /^ {2}obd +0\.03 +0\.40 +0\.07 +0\.00 +0\.50 +0\.25 +0\.01 +1\.00$/m,
  );
  assert.match(table, /^ {2}the limit +(- +){4}0\.02 +- +- +0\.50$/m);
  assert.match(table, /limit: 0\.52 s = 0\.50 warm start \+ 0\.02 transfer/);
});

Deno.test("renderSession() says what was built, and what a reduced one leaves out", () => {
  const session = sessionOf({
    machine: { ...MACHINE, mode: "reduced", leavesOut: ["much"] },
  });
  session.images[0]!.native = {
    seconds: 3,
    bytes: 12e6,
    layersReused: 2,
    layers: [],
  };
  const text = renderSession(session);
  assert.match(text, /^link: as it is made$/m);
  assert.ok(!text.includes("machine's speed"), "older results have no probes");
  assert.match(text, /^left out: much$/m);
  assert.match(
    text,
    /^image of w: 10\.0 MB in 1 layer, meta image 0\.06 MB \(0\.60 %\) built in 1\.3 s, native image 12\.00 MB \(120\.00 %\) built in 3\.0 s, 2 of its layers were there already$/m,
  );
});

Deno.test("renderSession() says how fast the machine was", () => {
  const text = renderSession(sessionOf({
    machine: { ...MACHINE, probeMethod: "the work" },
    runs: [0.2, 0.27, 0.2151].map((cpuSeconds, i) => ({
      ...runOf("obd", i + 1, 2),
      probe: { seconds: 1, cpuSeconds },
    })),
  }));
  assert.match(
    text,
    /^machine's speed: 0\.215 s \(0\.200–0\.270\) around each run: the work$/m,
  );
});

Deno.test("summarize() takes umoci for plain OCI where containerd has none", () => {
  const summaries = summarize([
    runOf("oci", 1),
    runOf("umoci", 1, 8),
    runOf("obd", 1, 2),
  ]);
  assert.deepEqual(summaries.map((s) => s.ratio), [undefined, 1, 0.25]);
});

Deno.test("limitOf() adds up what cannot be saved", () => {
  assert.deepEqual(
    limitOf({
      warmSeconds: 0.5,
      storedBytes: 10_000_000,
      bytesPerSecond: 62_500_000,
      rttMs: 20,
    }),
    {
      warmSeconds: 0.5,
      transferSeconds: 0.16,
      rttSeconds: 0.02,
      totalSeconds: 0.68,
    },
  );
  const open = limitOf({
    warmSeconds: 1,
    storedBytes: 5,
    bytesPerSecond: undefined,
    rttMs: 0,
  });
  assert.equal(open.totalSeconds, 1);
});

Deno.test("parseRate() gives bytes per second", () => {
  assert.equal(parseRate("500mbit"), 62_500_000);
  assert.equal(parseRate("2.5gbit"), 312_500_000);
  assert.equal(parseRate("800kbit"), 100_000);
  for (const bad of ["500", "mbit", "-1mbit", "0mbit", "1e9mbit", "1mbit; x"]) {
    assert.equal(parseRate(bad), undefined, bad);
  }
});

Deno.test("parseReady() takes one way to be ready", () => {
  assert.deepEqual(parseReady({}), { kind: "exit" });
  assert.deepEqual(parseReady({ readyHttp: "8080/a/b" }), {
    kind: "http",
    port: 8080,
    path: "/a/b",
  });
  assert.deepEqual(parseReady({ readyHttp: ":80" }), {
    kind: "http",
    port: 80,
    path: "/",
  });
  assert.deepEqual(parseReady({ readyLog: "up" }), { kind: "log", text: "up" });
  for (
    const bad of [
      { readyHttp: "x" },
      { readyHttp: "0/" },
      { readyHttp: "70000/" },
      { readyLog: "" },
      { readyExit: true, readyLog: "up" },
    ]
  ) {
    assert.throws(() => parseReady(bad), UsageError);
  }
});

Deno.test("sourceFlags() reaches a registry as the rest of obd does", async () => {
  const work = await Deno.makeTempDir();
  try {
    const open = ["--src-tls-verify=false"];
    const cases: [string, RegistrySettings, string[]][] = [
      ["oci:/dir:v1", { plainHttp: true }, []],
      ["docker://r.example/a:v1", {}, []],
      ["docker://127.0.0.1:5000/a:v1", {}, open],
      ["docker://localhost/a:v1", {}, open],
      ["docker://localhost.example/a:v1", {}, []],
      [
        "docker://r.example/a",
        { tlsSkipVerify: true, authFile: "/f" },
        [...open, "--src-authfile", "/f"],
      ],
    ];
    for (const [image, settings, flags] of cases) {
      assert.deepEqual(await sourceFlags(image, settings, work), flags);
    }
    assert.deepEqual([...Deno.readDirSync(work)], []);
    // A registry that has TLS is on loopback as anywhere.
    await Deno.writeTextFile(`${work}/own.pem`, "a certificate");
    assert.deepEqual(
      await sourceFlags("docker://127.0.0.1:5000/a:v1", {
        caFile: `${work}/own.pem`,
      }, work),
      ["--src-cert-dir", `${work}/certificates`],
    );
    assert.equal(
      await Deno.readTextFile(`${work}/certificates/ca.crt`),
      "a certificate",
    );
  } finally {
    await Deno.remove(work, { recursive: true });
  }
});

Deno.test("findWorkload() names those that there are", () => {
  assert.equal(findWorkload("du-all").ready.kind, "exit");
  assert.throws(() => findWorkload("nope"), /python-small-import, /);
});
