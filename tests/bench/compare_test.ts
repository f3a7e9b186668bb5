/** Results in files, and two of them side by side. */

import assert from "node:assert/strict";
import {
  compareResults,
  differences,
  renderComparison,
} from "../../cmd/bench/compare.ts";
import { readResultFiles } from "../../cmd/bench/result_file.ts";
import { summarize } from "../../cmd/bench/result.ts";
import { ObdError } from "../../lib/io/mod.ts";
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
  assert.match(text, /mind: link: 1 against 2/);
  assert.match(
    text,
    /^ {2}obd +2\.00 \(1\.00–3\.00\) +2\.95 \(2\.90–3\.00\) +1\.475 +within noise$/m,
  );
  assert.match(text, /5\.10 \(5\.10–5\.10\), 1 failed/);
});

Deno.test("differences() says what makes results hard to compare", () => {
  const runs = [1, 2, 3].map((round) => runOf("obd", round, 2));
  const first = sessionOf({ runs });
  assert.deepEqual(differences([first], [sessionOf()]), []);
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
  });
  assert.deepEqual(differences([first], [other]), [
    "mode: full against reduced",
    "link: 500mbit against not shaped",
  ]);
});
