import assert from "node:assert/strict";
import { parseRate } from "../../cmd/bench/link.ts";
import {
  renderTable,
  type RunResult,
  spreadOf,
  summarize,
} from "../../cmd/bench/result.ts";
import { findWorkload, parseReady } from "../../cmd/bench_workloads.ts";
import { UsageError } from "../../lib/io/mod.ts";

Deno.test("spreadOf() is the median and the ends", () => {
  assert.equal(spreadOf([]), undefined);
  assert.deepEqual(spreadOf([3]), { median: 3, min: 3, max: 3 });
  assert.deepEqual(spreadOf([3, 1, 10]), { median: 3, min: 1, max: 10 });
  assert.deepEqual(spreadOf([4, 1, 3, 10]), { median: 3.5, min: 1, max: 10 });
});

function result(contender: string, round: number, ready?: number): RunResult {
  const base = { workload: "w", contender, round };
  if (ready === undefined) return { ...base, failure: "it broke" };
  return {
    ...base,
    measurement: {
      rootSeconds: ready / 2,
      firstByteSeconds: ready / 2,
      readySeconds: ready,
      traffic: { requests: 5, connections: 1, bytes: 2e6, curve: [[0, 0]] },
      cost: { cpuSeconds: undefined, peakRssBytes: undefined },
      diskBytes: 1e6,
      steadyRate: undefined,
    },
  };
}

Deno.test("summarize() compares with plain OCI and keeps failures", () => {
  const summaries = summarize([
    result("oci", 1, 10),
    result("obd", 1, 2),
    result("obd", 2),
    result("umoci", 1),
    result("obd", 3, 4),
    result("oci", 2, 14),
  ]);
  assert.deepEqual(summaries.map((s) => s.contender), ["oci", "obd", "umoci"]);
  const [oci, obd, umoci] = summaries;
  assert.equal(oci!.ratio, 1);
  assert.equal(obd!.ratio, 0.25);
  assert.equal(obd!.runs, 3);
  assert.deepEqual(obd!.failures, ["it broke"]);
  assert.equal(umoci!.ready, undefined);
  const table = renderTable(summaries);
  assert.match(table, /^ {2}umoci +failed +-/m);
  assert.match(table, /umoci failed in 1 of 1 runs: it broke/);
  assert.match(table, /^ {2}obd +3\.00 +2\.00–4\.00 +0\.250/m);
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

Deno.test("findWorkload() names those that there are", () => {
  assert.equal(findWorkload("du-all").ready.kind, "exit");
  assert.throws(() => findWorkload("nope"), /python-small-import, /);
});
