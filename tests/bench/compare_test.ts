/** Results in files, and two of them side by side. */

import assert from "node:assert/strict";
import {
  chanceOutside,
  compareResults,
  differences,
  renderComparison,
} from "../../cmd/bench/compare.ts";
import {
  readResultFiles,
  requireWritable,
} from "../../cmd/bench/result_file.ts";
import {
  type MachineFacts,
  probesOf,
  type RunResult,
  spreadOf,
  summarize,
} from "../../cmd/bench/result.ts";
import { ObdError } from "../../lib/io/mod.ts";
import { seededRandom } from "../testutil/source_contract.ts";
import { linesOf, MACHINE, runOf, sessionOf } from "./sessions.ts";

async function withFile<T>(
  content: string,
  use: (path: string) => Promise<T>,
): Promise<T> {
  const path = await Deno.makeTempFile();
  try {
    await Deno.writeTextFile(path, content);
    return await use(path);
  } finally {
    await Deno.remove(path);
  }
}

Deno.test("readResultFiles() reads what --output and --json write", async () => {
  const session = sessionOf();
  const other = sessionOf({ runs: [runOf("obd", 1, 5)] });
  const lines = await withFile(
    linesOf(session) + "\n" + linesOf(other),
    (path) => readResultFiles([path]),
  );
  assert.equal(lines.length, 2);
  assert.deepEqual(lines[0]!.runs, session.runs);
  assert.deepEqual(
    summarize(lines[0]!.runs, lines[0]!.touched),
    summarize(session.runs, session.touched),
  );
  assert.deepEqual(lines[1]!.runs, other.runs);
  const [object] = await withFile(
    JSON.stringify({ ...session, summaries: [] }),
    (path) => readResultFiles([path]),
  );
  assert.deepEqual(object!.runs, session.runs);
  assert.deepEqual(object!.touched, session.touched);
  const several = await withFile(
    JSON.stringify({ sessions: [session, other] }),
    (path) => readResultFiles([path]),
  );
  assert.deepEqual(several.map((s) => s.runs), [session.runs, other.runs]);
});

Deno.test("readResultFiles() reads probes, and results without them", async () => {
  const old = sessionOf();
  const session = sessionOf({
    machine: { ...MACHINE, probeMethod: "the work" },
    runs: [probed(runOf("obd", 1, 5), 0.05), probed(runOf("obd", 2), 0.06)],
  });
  for (const one of [old, session]) {
    const [lines] = await withFile(linesOf(one), (p) => readResultFiles([p]));
    assert.deepEqual(lines!.runs, one.runs);
    assert.equal(lines!.machine.probeMethod, one.machine.probeMethod);
    const [object] = await withFile(
      JSON.stringify({ ...one, summaries: [] }),
      (path) => readResultFiles([path]),
    );
    assert.deepEqual(object!.runs, one.runs);
  }
  assert.equal(probesOf(old.runs), undefined);
  // Also a run that failed had its probe.
  assert.deepEqual(probesOf(session.runs), {
    median: 0.055,
    min: 0.05,
    max: 0.06,
  });
  await withFile(
    linesOf(session).replace('"cpuSeconds":0.05', '"cpuSeconds":-1'),
    (path) => assert.rejects(readResultFiles([path]), /probe\.cpuSeconds/),
  );
});

Deno.test("readResultFiles() names the file, the line and the key that is wrong", async () => {
  const good = linesOf(sessionOf());
  const cases: [string, RegExp][] = [
    ["", /it has no results/],
    ["{", /line 1: /],
    ["3\n", /line 1: /],
    ["null\n", /line 1: /],
    ['{"event":"run"}\n', /line 1: "run" comes before "machine"/],
    [good + '{"event":"run","workload":3}\n', /line \d+: key "workload"/],
    [good.replace('"readySeconds":10', '"readySeconds":-1'), /readySeconds/],
    [good.replace('"curve":[[0,0]', '"curve":[[0,"x"]'), /curve/],
  ];
  for (const [content, said] of cases) {
    await withFile(content, async (path) => {
      await assert.rejects(readResultFiles([path]), (error: unknown) => {
        assert.ok(error instanceof ObdError, String(error));
        assert.match(error.message, said);
        assert.ok(error.message.includes(path));
        return true;
      });
    });
  }
  await assert.rejects(readResultFiles(["/nowhere"]), /Cannot read results/);
  await assert.rejects(readResultFiles(["/"]), /it is no file/);
});

Deno.test("compareResults() calls noise what lies within the first one's spread", () => {
  const first = sessionOf({
    runs: [1, 2, 3].flatMap((round) => [
      runOf("oci", round, 10 + round),
      runOf("obd", round, round),
      runOf("obd-warm", round, 5),
      runOf("obd-trace", round),
      runOf("umoci", round, 3),
    ]),
  });
  const second = sessionOf({
    runs: [
      runOf("oci", 1, 10.9),
      runOf("obd", 1, 3),
      runOf("obd", 2, 2.9),
      runOf("obd-warm", 1, 5.1),
      runOf("obd-warm", 2),
      runOf("obd-trace", 1, 2),
      runOf("obd-native", 1, 2),
    ],
  });
  const found = compareResults([first], [second]);
  assert.deepEqual(
    found.map((c) => [c.contender, c.verdict, c.failures]),
    [
      ["oci", "faster", [0, 0]],
      ["obd", "within noise", [0, 0]],
      ["obd-warm", "slower", [0, 1]],
      ["obd-trace", "failed", [3, 0]],
      ["umoci", "only in the first", [0, 0]],
      ["obd-native", "only in the second", [0, 0]],
    ],
  );
  assert.equal(found[1]!.ratio, 2.95 / 2);
  // The ends belong to the spread; what is below the median may still be noise.
  for (
    const [ready, verdict] of [
      [0.99, "faster"],
      [1, "within noise"],
      [1.5, "within noise"],
      [3, "within noise"],
      [3.01, "slower"],
    ] as const
  ) {
    const [one] = compareResults(
      [sessionOf({ runs: [1, 2, 3].map((r) => runOf("obd", r, r)) })],
      [sessionOf({ runs: [runOf("obd", 1, ready)] })],
    );
    assert.equal(one!.verdict, verdict, String(ready));
  }
  const text = renderComparison(found, ["link: 1 against 2"]);
  assert.ok(!text.includes("further off than noise"));
  assert.match(text, /mind: link: 1 against 2/);
  assert.match(
    text,
    /^ {2}obd +2\.00 \(1\.00–3\.00\) +2\.95 \(2\.90–3\.00\) +1\.475 +- +within noise$/m,
  );
  assert.match(text, /5\.10 \(5\.10–5\.10\), 1 failed/);
});

Deno.test("chanceOutside() is what drawing from one distribution gives", () => {
  assert.equal(chanceOutside(1, 1), 1);
  assert.equal(chanceOutside(5, 5), 1 / 6);
  assert.equal(chanceOutside(5, 1), 1 / 3);
  const random = seededRandom(5);
  for (const [first, second] of [[5, 5], [9, 9], [3, 7], [5, 6]] as const) {
    const draw = (n: number) => spreadOf(Array.from({ length: n }, random))!;
    let outside = 0;
    const rounds = 20_000;
    for (let i = 0; i < rounds; i++) {
      const { min, max } = draw(first);
      const { median } = draw(second);
      if (median < min || median > max) outside++;
    }
    const likely = chanceOutside(first, second);
    const found = outside / rounds;
    assert.ok(found <= likely + 0.01, `${first}, ${second}: ${found}`);
    // Of an even number the median lies between two: less likely outside.
    if (second % 2 === 1) assert.ok(found >= likely - 0.01);
  }
});

Deno.test("compareResults() says how many verdicts chance alone would give", () => {
  const runs = (n: number) =>
    ["oci", "obd"].flatMap((name) =>
      Array.from({ length: n }, (_, i) => runOf(name, i + 1, 9 + i))
    );
  const failed = [runOf("umoci", 1)];
  const found = compareResults(
    [sessionOf({ runs: [...runs(5), ...failed] })],
    [sessionOf({ runs: [...runs(5), ...failed] })],
  );
  assert.deepEqual(found.map((c) => c.chance), [1 / 6, 1 / 6, undefined]);
  assert.match(
    renderComparison(found, []),
    /^chance: of 2 medians up to 0\.3 would lie outside/m,
  );
  assert.ok(!renderComparison(found.slice(2), []).includes("chance"));
});

/** A run with probes that took so many CPU seconds. */
function probed(run: RunResult, cpuSeconds: number, waited = 1): RunResult {
  return { ...run, probe: { seconds: cpuSeconds * waited, cpuSeconds } };
}

/** One contender's runs of 9, 10 and 11 s against one run. */
function compareProbed(
  ready: number,
  probes: [first: number | undefined, second: number | undefined],
  machine: Partial<MachineFacts> = {},
) {
  const runs = (times: number[], probe: number | undefined) =>
    times.map((time, i) => {
      const run = runOf("obd", i + 1, time);
      return probe === undefined ? run : probed(run, probe);
    });
  const first = [sessionOf({ runs: runs([9, 10, 11], probes[0]) })];
  const second = [sessionOf({
    machine: { ...MACHINE, ...machine },
    runs: runs([ready], probes[1]),
  })];
  const [found] = compareResults(first, second);
  return { found: found!, notes: differences(first, second) };
}

Deno.test("compareResults() tells the machine's speed from a change", () => {
  const cases: [number, [number, number], string][] = [
    // Slower by a fifth: outside as it is, inside on a machine as fast as before.
    [12, [0.05, 0.06], "machine's speed"],
    [8.5, [0.06, 0.05], "machine's speed"],
    // It may be more than explained: what lies between the two meets the spread.
    [11.1, [0.05, 0.1], "machine's speed"],
    // The bound is the spread's end.
    [13.2, [0.05, 0.06], "machine's speed"],
    [13.3, [0.05, 0.06], "slower"],
    [7.4, [0.06, 0.05], "faster"],
    // The other way round explains nothing.
    [12, [0.06, 0.05], "slower"],
    [8.5, [0.05, 0.06], "faster"],
    [12, [0.05, 0.05], "slower"],
    // What lies within is noise, whatever the machine did.
    [10, [0.05, 0.5], "within noise"],
    [11, [0.05, 0.04], "within noise"],
  ];
  for (const [ready, probes, verdict] of cases) {
    const { found } = compareProbed(ready, probes);
    assert.equal(found.verdict, verdict, `${ready} ${probes}`);
    assert.equal(found.machineRatio, probes[1] / probes[0]);
    assert.equal(found.ratio, ready / 10);
  }
  const { found, notes } = compareProbed(12, [0.05, 0.06]);
  const text = renderComparison([found], notes);
  assert.match(
    text,
    /^ {2}obd +10\.00 \(9\.00–11\.00\) +12\.00 \(12\.00–12\.00\) +1\.200 +1\.200 +machine's speed$/m,
  );
  assert.match(text, /^machine's speed: further off than noise, but no/m);
});

Deno.test("compareResults() makes no verdict of probes that cannot be compared", () => {
  for (
    const [probes, machine, ratio, note] of [
      [[undefined, 0.06], {}, undefined, /runs of the first result have no/],
      [[0.05, undefined], {}, undefined, /runs of the second result have no/],
      [
        [undefined, undefined],
        {},
        undefined,
        /runs of the first and the second result have no/,
      ],
      [
        [0.05, 0.06],
        { probeMethod: "else" },
        undefined,
        /probes are of other work/,
      ],
      [[0.05, 0.06], { cpu: "B" }, 1.2, /other processors: it explains no/],
      [
        [0.05, 0.06],
        { versions: { obd: "0.1.0", deno: "3.0.0" } },
        1.2,
        /other versions of the runtime: it explains/,
      ],
    ] as const
  ) {
    const { found, notes } = compareProbed(12, [...probes], machine);
    assert.equal(found.verdict, "slower");
    assert.equal(found.machineRatio?.toFixed(3), ratio?.toFixed(3));
    assert.match(notes.join("\n"), note);
    assert.equal(
      compareProbed(11, [...probes], machine).found.verdict,
      "within noise",
    );
  }
  // A run that failed, or could not begin, needs no probe.
  const failing = sessionOf({
    runs: [probed(runOf("obd", 1, 2), 0.05), runOf("obd", 2)],
  });
  assert.equal(compareResults([failing], [failing])[0]!.machineRatio, 1);
});

Deno.test("differences() says when a machine had other work", () => {
  const result = (waited: number) => [
    sessionOf({
      runs: [1, 2, 3].map((round) =>
        probed(runOf("obd", round, 2), 0.2, waited)
      ),
    }),
  ];
  assert.deepEqual(differences(result(1.2), result(1)), []);
  assert.deepEqual(differences(result(1), result(1.5)), [
    "machine's speed: the second result's machine, or its host, had other work: probes took 0.30 s for 0.20 s of CPU",
  ]);
});

Deno.test("differences() says when the machine's speed changed within a result", () => {
  const result = (...probes: number[]) => [
    sessionOf({
      runs: probes.map((probe, i) => probed(runOf("obd", i + 1, 2), probe)),
    }),
  ];
  const steady = result(0.05, 0.055, 0.06);
  assert.deepEqual(differences(steady, steady), []);
  assert.deepEqual(differences(steady, result(0.05, 0.055, 0.07)), [
    "machine's speed: the second result's probes took 0.05 to 0.07 s: it changed from run to run",
  ]);
});

Deno.test("differences() says what makes results hard to compare", () => {
  const runs = [1, 2, 3].map((round) => probed(runOf("obd", round, 2), 0.05));
  const first = sessionOf({ runs });
  assert.deepEqual(differences([first], [first]), []);
  assert.deepEqual(
    differences([sessionOf({ runs: runs.slice(1) })], [first]),
    [
      "runs: the first result has as few as 2, whose spread says little about noise",
    ],
  );
  const other = sessionOf({
    machine: {
      ...MACHINE,
      mode: "reduced",
      link: { ...MACHINE.link, rate: null },
    },
    runs,
  });
  assert.deepEqual(differences([first], [other]), [
    "mode: full against reduced",
    "link: 500mbit against not shaped",
  ]);
  // As they stand in one file: the same on both sides, and yet no one figure.
  assert.deepEqual(differences([first, other], [first, other]), [
    "w: the first result has runs of full, 500mbit, 5 ms and reduced, not shaped, 5 ms, which are taken together",
    "w: the second result has runs of full, 500mbit, 5 ms and reduced, not shaped, 5 ms, which are taken together",
  ]);
});

Deno.test("requireWritable() ends a line that another bench has left half", async () => {
  for (
    const [before, after] of [
      ["", ""],
      ['{"event":"run"}\n', '{"event":"run"}\n'],
      ['{"event":"ru', '{"event":"ru\n'],
    ] as const
  ) {
    const found = await withFile(before, async (path) => {
      await requireWritable({ output: path });
      return await Deno.readTextFile(path);
    });
    assert.equal(found, after);
  }
});
