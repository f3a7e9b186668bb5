import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { requiresRoot } from "../testutil/requires.ts";
import { linesOf, sessionOf } from "./sessions.ts";

const MAIN = fileURLToPath(new URL("../../main.ts", import.meta.url));

async function bench(args: string[], env: Record<string, string> = {}) {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", MAIN, "bench", ...args],
    env,
    stdout: "piped",
    stderr: "piped",
  }).output();
  const text = new TextDecoder();
  return { code, stdout: text.decode(stdout), stderr: text.decode(stderr) };
}

Deno.test("bench: wrong use is told in one line, exit 2", async () => {
  const cases: [string[], RegExp][] = [
    [[], /Give --workload NAME, or IMAGE -- COMMAND/],
    [["--workload", "nope"], /Unknown workload "nope"/],
    [["image"], /Give the command behind --/],
    [["--workload", "du-all", "image", "--", "x"], /either --workload or/],
    [["image", "--contenders", "foo", "--", "x"], /Unknown contender "foo"/],
    [["image", "--link", "fast", "--", "x"], /--link "fast" is no rate/],
    [["image", "--rtt", "-1", "--", "x"], /--rtt "-1" is no number/],
    [["image", "--ready-http", "x", "--", "x"], /is not PORT\/PATH/],
    [["--compare", "one"], /--compare needs two files/],
    [["--compare", "a", "b", "c"], /--compare needs two files/],
    [["--compare", "a", "b", "--html", "x"], /--html is not for --compare/],
    [["--compare", "a", "b", "--from", "c"], /either --compare or --from/],
    [["--workload", "du-all", "--from", "a"], /--from reads results/],
    [["--from", "b", "a", "--html", "./a"], /--html "\.\/a" .* of --from/],
    [["--html", "/tmp", "image", "--", "x"], /"\/tmp" is no regular file/],
    [["--from", "a", "--html", "/dev/null"], /is no regular file/],
    [["--compare", "a", "b", "--output", "b"], /--output "b" .* of --compare/],
    [
      ["--output", "a", "--html", "a", "image", "--", "x"],
      /--html "a" would overwrite the file of --output/,
    ],
    [
      ["--reduced", "--output", "a", "--reads", "a", "image", "--", "x"],
      /--output "a" would overwrite the file of --reads/,
    ],
  ];
  await Promise.all(cases.map(async ([args, said]) => {
    const { code, stdout, stderr } = await bench(args);
    assert.equal(code, 2, stderr);
    assert.equal(stdout, "");
    assert.match(stderr, said);
  }));
});

Deno.test({
  name: "bench: all missing packages are named in one line, exit 1",
  ignore: !requiresRoot("a bench in full mode"),
  fn: async () => {
    const dir = await Deno.makeTempDir();
    try {
      // What is in /usr/sbin and /sbin is found without PATH.
      const { code, stderr } = await bench(
        ["--cache", dir, "--workload", "du-all"],
        { PATH: dir },
      );
      assert.equal(code, 1);
      assert.match(
        stderr,
        /^obd: Missing programs: apt-get install .*containerd.*docker-registry.*skopeo.*umoci/,
      );
      assert.equal(stderr.trim().split("\n").length, 1);
      const reduced = await bench(
        ["--cache", dir, "--reduced", "image", "--", "x"],
        { PATH: dir },
      );
      assert.match(
        reduced.stderr,
        /^obd: Missing programs: apt-get install docker-registry skopeo strace umoci/,
      );
    } finally {
      await Deno.remove(dir, { recursive: true });
    }
  },
});

Deno.test("bench: results of others are reported and compared, exit 1 if a run failed", async () => {
  const dir = await Deno.makeTempDir();
  try {
    const failed = sessionOf();
    const good = sessionOf({
      runs: failed.runs.filter((r) => r.failure === undefined),
    });
    await Deno.writeTextFile(`${dir}/good.jsonl`, linesOf(good));
    await Deno.writeTextFile(`${dir}/failed.jsonl`, linesOf(failed));
    const html = `${dir}/report.html`;
    const report = await bench([
      "--from",
      `${dir}/good.jsonl`,
      `${dir}/failed.jsonl`,
      "--html",
      html,
    ]);
    assert.equal(report.code, 1, report.stderr);
    assert.match(report.stdout, /umoci failed in 1 of 1 runs: it broke/);
    const page = await Deno.readTextFile(html);
    assert.match(page, /obd answers 6\.0 × sooner/);
    const alone = await bench(["--json", "--from", `${dir}/good.jsonl`]);
    assert.equal(alone.code, 0, alone.stderr);
    assert.equal(JSON.parse(alone.stdout).sessions[0].summaries.length, 2);
    const compared = await bench([
      "--compare",
      `${dir}/good.jsonl`,
      `${dir}/failed.jsonl`,
    ]);
    assert.equal(compared.code, 0, compared.stderr);
    assert.match(compared.stdout, /^ {2}obd .*1\.000 +- +within noise$/m);
    const link = `${dir}/link`;
    await Deno.symlink(`${dir}/good.jsonl`, link);
    const over = await bench(["--from", `${dir}/good.jsonl`, "--html", link]);
    assert.equal(over.code, 2, over.stderr);
    assert.equal(
      await Deno.readTextFile(`${dir}/good.jsonl`),
      linesOf(good),
    );
    const missing = await bench(["--from", `${dir}/none`]);
    assert.equal(missing.code, 1);
    assert.match(missing.stderr, /^obd: Cannot read results ".*none"/);
    const unwritable = await bench([
      "--from",
      `${dir}/good.jsonl`,
      "--html",
      `${dir}/no/such/file`,
    ]);
    assert.equal(unwritable.code, 1);
    assert.match(unwritable.stderr, /^obd: Cannot write/m);
    for (const option of ["--html", "--output"]) {
      const early = await bench([
        "--cache",
        `${dir}/cache`,
        option,
        `${dir}/no/such/file`,
        "oci:/none:v1",
        "--",
        "x",
      ], { PATH: Deno.env.get("PATH")! });
      assert.equal(early.code, 1);
      assert.match(early.stderr, /^obd: (Cannot write|Missing programs)/);
      assert.equal(early.stderr.trim().split("\n").length, 1);
    }
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
});

Deno.test("bench --reads: a file that cannot be used is told before anything is made", async () => {
  const dir = await Deno.makeTempDir();
  try {
    await Deno.writeTextFile(`${dir}/relative`, "/bin/sh\nbin/ls\n");
    for (
      const [name, said] of [
        ["none", /^obd: Cannot use ".*none"/],
        ["relative", /^obd: Cannot use ".*relative": "bin\/ls" is no absolute/],
      ] as const
    ) {
      const { code, stderr } = await bench([
        "--cache",
        `${dir}/cache`,
        "--reduced",
        "--reads",
        `${dir}/${name}`,
        "oci:/none:v1",
        "--",
        "x",
      ]);
      assert.equal(code, 1);
      assert.match(stderr, said);
      assert.equal(stderr.trim().split("\n").length, 1);
    }
    await assert.rejects(Deno.stat(`${dir}/cache`), Deno.errors.NotFound);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
});
