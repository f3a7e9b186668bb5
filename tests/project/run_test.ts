import assert from "node:assert/strict";
import { parseJUnit } from "../testutil/junit.ts";

const RUNNER = new URL("../run.ts", import.meta.url).pathname;

async function run(files: Record<string, string>): Promise<string[]> {
  const dir = await Deno.makeTempDir();
  try {
    for (const [name, text] of Object.entries(files)) {
      await Deno.writeTextFile(`${dir}/${name}`, text);
    }
    const { stdout } = await new Deno.Command(Deno.execPath(), {
      args: [
        "run",
        "-A",
        RUNNER,
        "--no-config",
        ...Object.keys(files).map((f) => `${dir}/${f}`),
      ],
      stdin: "null",
      env: { OBD_REQUIRE_TOOLS: "" },
    }).output();
    return new TextDecoder().decode(stdout).trimEnd().split("\n");
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

Deno.test("parseJUnit() counts passes, failures and skips", () => {
  const xml = `<testsuites><testsuite>
    <testcase name="a" time="0.1"/><testcase name="b"></testcase>
    <testcase name="c"><failure message="x">no</failure></testcase>
    <testcase name="d"><skipped/></testcase></testsuite></testsuites>`;
  assert.deepEqual(parseJUnit(xml), { passed: 2, failed: 1, skipped: 1 });
});

Deno.test("run.ts ends with the counts, and its exit code follows them", async () => {
  const lines = await run({
    "a_test.ts": `Deno.test("yes", () => {});
      Deno.test("no", () => { throw new Error("broken"); });
      Deno.test({ name: "skip", ignore: true, fn() {} });`,
  });
  assert.equal(lines.at(-1), "1 passed, 1 failed, 1 skipped");
});

Deno.test("run.ts counts a module that throws as a failure", async () => {
  const lines = await run({ "b_test.ts": `throw new Error("at load");` });
  assert.match(lines.at(-1)!, /^0 passed, [1-9]\d* failed, 0 skipped$/);
});

Deno.test("run.ts counts a type error as a failure", async () => {
  const lines = await run({
    "c_test.ts": `Deno.test("x", () => { const n: number = "s"; n; });`,
  });
  assert.equal(lines.at(-1), "0 passed, 1 failed, 0 skipped");
});

Deno.test("run.ts counts zero tests as a failure", async () => {
  const lines = await run({ "d_test.ts": `export {};` });
  assert.equal(lines.at(-1), "0 passed, 1 failed, 0 skipped");
});
