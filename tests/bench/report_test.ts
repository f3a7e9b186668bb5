/** The report in a real browser: it is all there, it is right, and nothing covers anything. */

import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { headline, renderReport } from "../../cmd/bench/report/report.ts";
import { escapeHtml, ticks } from "../../cmd/bench/report/text.ts";
import { readResultFiles } from "../../cmd/bench/result_file.ts";
import { type Session, summarize } from "../../cmd/bench/result.ts";
import { installed } from "../testutil/requires.ts";
import {
  imageOf,
  MACHINE,
  measured,
  runOf,
  sessionOf,
  STAGES,
  touchedOf,
} from "./sessions.ts";

const RECORDED = fileURLToPath(
  new URL("../testdata/bench/app.jsonl", import.meta.url),
);
const HOSTILE =
  `<script>document.title='pwned'</script>"><img src=x onerror=1>`;

/** Several workloads, all contenders, one hostile. */
function richSession(): Session {
  const names = ["oci", "umoci", "obd", "obd-trace", "obd-native", "obd-warm"];
  const runs = ["python-small-import", HOSTILE].flatMap((workload, w) =>
    names.flatMap((name, n) =>
      [1, 2, 3].map((round) =>
        name === "umoci" && w === 1
          ? runOf(name, round, undefined, {}, workload)
          : runOf(
            name,
            round,
            (n < 2 ? 46.4 : 2.6) * (1 + round / 20) * (1 + w),
            n < 2 ? {} : {
              openedSeconds: 0.4,
              edge: { reads: 9, bytes: 4e6 },
              // The second workload's are not known, as in older results.
              ...(w === 0 ? { stages: STAGES } : {}),
            },
            workload,
          )
      )
    )
  );
  const workloads = ["python-small-import", HOSTILE];
  return sessionOf({
    // Any file may say anything, and a word may be wider than a phone.
    machine: { ...MACHINE, probeMethod: HOSTILE.repeat(4) },
    runs: runs.map((run, i) => ({
      ...run,
      probe: { seconds: 1, cpuSeconds: 0.2 + i / 500 },
    })),
    images: workloads.map(imageOf),
    touched: workloads.map(touchedOf),
  });
}

Deno.test("ticks() are round and reach the maximum", () => {
  assert.deepEqual(ticks(10), [0, 2.5, 5, 7.5, 10]);
  assert.deepEqual(ticks(46), [0, 20, 40, 60]);
  assert.deepEqual(ticks(0.3), [0, 0.1, 0.2, 0.3]);
  for (const max of [0, 1e-9, 0.07, 1, 3.94, 13.6, 814e6, 1e12]) {
    const marks = ticks(max);
    assert.ok(marks.at(-1)! >= max && marks.length <= 6, String(marks));
  }
});

Deno.test("headline() says what came out", () => {
  const say = (...runs: Session["runs"]) => headline(summarize(runs), "w");
  assert.equal(
    say(runOf("oci", 1, 8), runOf("obd", 1, 2)),
    "obd answers 4.0 × sooner",
  );
  assert.equal(
    say(runOf("oci", 1, 2), runOf("obd", 1, 3)),
    "obd answers 1.5 × later",
  );
  assert.equal(
    say(runOf("oci", 1, 2), runOf("obd-native", 1, 2)),
    "obd-native answers as soon as plain OCI",
  );
  assert.equal(say(runOf("obd", 1, 2)), "obd answers after 2.00 s");
  assert.equal(say(runOf("oci", 1), runOf("obd", 1)), "Every run failed");
  assert.equal(say(runOf("oci", 1, 2)), "obd was not measured");
});

Deno.test("renderReport() shows all bytes that came until the service answered", () => {
  // The curve's last point is of a moment later.
  const traffic = { ...measured(2).traffic, bytes: 5e6 };
  traffic.curve = [[0, 0], [1.99, 3e6], [2.001, 5e6]];
  const html = renderReport([
    sessionOf({ runs: [runOf("obd", 1, 2, { traffic })] }),
  ]);
  assert.match(html, /data-seconds="2" data-bytes="5000000"/);
});

Deno.test("renderReport() has nothing of anybody in it but as text", () => {
  const html = renderReport([richSession()]);
  assert.ok(!/<script|<img/i.test(html.replaceAll(/&#\d+;/g, "")));
  assert.ok(html.includes(escapeHtml(HOSTILE)));
  // A contender that failed has its row, in the chart and in the overview.
  assert.match(html, /<p class="failure">3 runs failed: it broke<\/p>/);
  assert.match(html, /<td class="failure">failed<\/td>/);
  assert.ok(!/https?:\/\//.test(html), "needs nothing from elsewhere");
  assert.match(renderReport([]), /<main>/);
  // Nothing was measured at all.
  const none = renderReport([
    sessionOf({ runs: [], images: [], touched: [] }),
    sessionOf({ runs: [runOf("obd", 1)], images: [], touched: [] }),
  ]);
  assert.match(none, /No run was made/);
  assert.match(none, /Every run failed/);
});

Deno.test("the report says how fast the machine was", () => {
  const html = renderReport([richSession()]);
  assert.match(
    html,
    /<dt>Speed<\/dt><dd>0\.235 s \(0\.200–0\.270\) around each run: &#60;script/,
  );
  assert.ok(!renderReport([sessionOf()]).includes("<dt>Speed"));
});

Deno.test("the report says where the time went, beside the limit", () => {
  const html = renderReport([richSession()]);
  const [known, unknown] = html.split('<section data-workload="').slice(1);
  const bar = /aria-label="obd-trace: ([^"]*)"/.exec(
    known!.slice(known!.indexOf('data-chart="stages"')),
  )!;
  assert.match(bar[1]!, /^to the first request 30 ms, pull/);
  assert.match(
    bar[1]!,
    /reads wait for the network 0\.50 s, .*service 1\.00 s$/,
  );
  const rectangles = (name: string) =>
    known!.match(new RegExp(`<rect class="s-${name}"`, "g"))?.length;
  // Four contenders in both charts, plain ones once; none waits for a place.
  assert.deepEqual(
    ["fetch", "service", "queue"].map(rectangles),
    [8, 10, undefined],
  );
  const table = /<table data-table="stages">.*?<\/table>/s;
  const row = (section: string, title: string) =>
    table.exec(section)![0].split("<tr>").find((r) => r.includes(title))
      ?.split("<td>").slice(1).map((c) => c.replaceAll(/<[^>]*>.*/gs, ""));
  const network = row(known!, "the network")!;
  // oci, umoci, four of obd, the limit: transfer and round trip.
  assert.deepEqual(network, [
    "–",
    "–",
    ...new Array(4).fill("0.50 s"),
    "21 ms",
  ]);
  assert.equal(row(known!, "container and service")!.at(-1), "0.50 s");
  assert.equal(row(known!, "÷ the limit")!.at(-1), "1 ×");
  assert.ok(!known!.includes("was not counted"));
  assert.ok(unknown!.includes("Where waiting was not counted"));
  assert.equal(row(unknown!, "the network"), undefined);
});

Deno.test("a recorded bench is read, summarized as it was, and shown", async () => {
  const [session] = await readResultFiles([RECORDED]);
  const summaries = summarize(session!.runs, session!.touched);
  const then = (await Deno.readTextFile(RECORDED)).trim().split("\n")
    .map((line) => JSON.parse(line)).filter((line) => line.event === "summary");
  assert.equal(then.length, 5);
  for (const [i, { ready, bytes, limitMultiple, ratio }] of then.entries()) {
    assert.deepEqual(summaries[i]!.ready, ready);
    assert.deepEqual(summaries[i]!.bytes, bytes);
    assert.equal(summaries[i]!.limitMultiple, limitMultiple);
    assert.equal(summaries[i]!.ratio, ratio);
  }
  const html = renderReport([session!]);
  assert.match(html, /<h2>obd answers 1\.8 × sooner<\/h2>/);
  assert.deepEqual(
    [...html.matchAll(/data-median="([\d.]+)"/g)].map((m) => Number(m[1])),
    summaries.map((s) => s.ready!.median),
  );
  // Every layer is mapped, of the image and of the native one.
  assert.equal(html.match(/data-layer="sha256:/g)!.length, 6);
  assert.equal(html.match(/aria-label="touched: /g)!.length, 3);
  // A whole layer, and some of it.
  assert.match(html, /aria-label="oci: 100 %" data-share="1"/);
  const shares = [
    ...html.matchAll(/aria-label="obd: [\d.]+ %" data-share="([\d.]+)"/g),
  ];
  assert.equal(shares.length, 3);
  for (const [, share] of shares) assert.ok(Number(share) < 0.5, share);
});

/** Runs in the browser on the report in a frame of some width; what it finds ends up in the title. */
const PROBE = `
const frame = document.querySelector("iframe");
frame.onload = () => {
  const doc = frame.contentDocument;
  for (const fold of doc.querySelectorAll("details")) fold.open = true;
  const boxes = [];
  const walker = doc.createTreeWalker(doc.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    const element = node.parentElement;
    if (!node.data.trim() || element.closest("title, script, style, .scroll")) continue;
    const range = doc.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) {
      if (box.width > 0) boxes.push({ text: node.data.trim(), box, element });
    }
  }
  const overlaps = [];
  for (let i = 0; i < boxes.length; i++) {
    for (let j = i + 1; j < boxes.length; j++) {
      const [a, b] = [boxes[i], boxes[j]];
      if (a.element === b.element) continue;
      const wide = Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left);
      const high = Math.min(a.box.bottom, b.box.bottom) - Math.max(a.box.top, b.box.top);
      // Line boxes of small text touch each other by a pixel or two.
      if (wide > 1 && high > 4) overlaps.push(a.text + " / " + b.text);
    }
  }
  const width = frame.clientWidth;
  const bars = [...doc.querySelectorAll("[data-chart=ready] rect")].map((rect) => ({
    contender: rect.dataset.contender,
    median: Number(rect.dataset.median),
    share: rect.getBoundingClientRect().width /
      rect.ownerSVGElement.getBoundingClientRect().width,
  }));
  document.body.dataset.found = JSON.stringify({
    overlaps,
    outside: boxes.filter(({ box }) => box.right > width + 1 || box.left < -1).map((b) => b.text),
    scrollWidth: doc.documentElement.scrollWidth,
    charts: [...doc.querySelectorAll("[data-chart]")].map((f) => f.dataset.chart),
    empty: [...doc.querySelectorAll("figure svg")].filter((s) => s.getBoundingClientRect().width === 0).length,
    bars,
    texts: boxes.length,
    title: doc.title,
  });
};
frame.srcdoc = document.querySelector("template").innerHTML;
`;

interface Found {
  overlaps: string[];
  outside: string[];
  scrollWidth: number;
  charts: string[];
  empty: number;
  bars: { contender: string; median: number; share: number }[];
  texts: number;
  title: string;
}

async function look(
  dir: string,
  html: string,
  width: number,
): Promise<Found> {
  const page = `${dir}/page-${width}.html`;
  // The report as a string, in which no tag can end the script.
  const text = JSON.stringify(html).replaceAll("<", "\\u003c");
  await Deno.writeTextFile(
    page,
    `<!doctype html><body><iframe width=${width} height=4000 style="border:0"></iframe><script>${
      PROBE.replace('document.querySelector("template").innerHTML', () => text)
    }</script></body>`,
  );
  const { stdout } = await new Deno.Command("chromium", {
    args: [
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      `--user-data-dir=${dir}/profile-${width}`,
      "--virtual-time-budget=5000",
      "--dump-dom",
      `file://${page}`,
    ],
    stdin: "null",
    stderr: "null",
    signal: AbortSignal.timeout(60_000),
  }).output();
  const dom = new TextDecoder().decode(stdout);
  const found = /data-found="([^"]*)"/.exec(dom)?.[1];
  assert.ok(found !== undefined, dom.slice(0, 2000));
  return JSON.parse(
    found.replaceAll("&quot;", '"').replaceAll("&lt;", "<")
      .replaceAll("&gt;", ">").replaceAll("&nbsp;", " ")
      .replaceAll("&amp;", "&"),
  );
}

Deno.test({
  name: "a browser shows all charts, true to scale, wide and narrow",
  ignore: !installed("chromium"),
  fn: async () => {
    const dir = await Deno.makeTempDir();
    try {
      const sessions = [richSession(), ...await readResultFiles([RECORDED])];
      const summaries = sessions.flatMap((s) => summarize(s.runs, s.touched));
      const html = renderReport(sessions);
      for (const width of [1280, 400]) {
        const found = await look(dir, html, width);
        assert.deepEqual(found.overlaps, [], `${width} px`);
        assert.deepEqual(found.outside, [], `${width} px`);
        assert.ok(found.scrollWidth <= width, `${found.scrollWidth} px wide`);
        assert.ok(found.texts > 100);
        assert.equal(found.empty, 0);
        const charts = [
          "ready",
          "stages",
          "stages-lazy",
          "bytes",
          "bytes-begin",
          "map",
        ];
        // In the recorded one the first seconds are wide enough.
        const recorded = charts.filter((kind) => !/-/.test(kind));
        assert.deepEqual(found.charts, [...charts, ...charts, ...recorded]);
        // Bars of both workloads, those that failed have none.
        assert.deepEqual(
          found.bars.map(({ contender, median }) => [contender, median]),
          summaries.flatMap((s) =>
            s.ready ? [[s.contender, s.ready.median]] : []
          ),
        );
        const [first] = found.bars;
        for (const { median, share } of found.bars.slice(0, 6)) {
          const want = first!.share * median / first!.median;
          assert.ok(Math.abs(share - want) < 0.005, `${share}, not ${want}`);
        }
        assert.equal(found.title, "obd bench");
      }
    } finally {
      await Deno.remove(dir, { recursive: true });
    }
  },
});
