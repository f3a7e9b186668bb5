import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";

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
  ignore: Deno.uid() !== 0,
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
    } finally {
      await Deno.remove(dir, { recursive: true });
    }
  },
});
