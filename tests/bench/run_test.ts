/** `obd bench` whole: a tiny image, real containerd, a shaped link, nothing left behind. */

import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { dir, file, makeImage, writeLayout } from "../testutil/oci_image.ts";
import { requires, requiresMount } from "../testutil/requires.ts";

const MAIN = fileURLToPath(new URL("../../main.ts", import.meta.url));
const TOOLS = [
  "busybox",
  "containerd",
  "ctr",
  "docker-registry",
  "ip",
  "runc",
  "skopeo",
  "tc",
  "umoci",
  "unpigz",
];

/** What the bench of a process has left in the kernel; other benches may run beside it. */
async function leftovers(pid: number): Promise<string[]> {
  const { stdout } = await new Deno.Command("ip", { args: ["netns"] }).output();
  const mounts = await Deno.readTextFile("/proc/self/mounts");
  return [
    ...new TextDecoder().decode(stdout).split("\n").filter((line) =>
      line.split(" ")[0] === `obdb${pid % 65536}`
    ),
    ...mounts.split("\n").filter((line) => line.includes("obd-bench-test")),
  ];
}

Deno.test({
  name: "bench: oci and obd run the same container; a failure is a result",
  ignore: !requiresMount() || !requires("nbdfuse") ||
    !TOOLS.map((tool) => requires(tool)).every((there) => there),
  fn: async () => {
    const work = await Deno.makeTempDir({ prefix: "obd-bench-test-" });
    try {
      const busybox = await Deno.readFile("/bin/busybox");
      const image = makeImage({
        layers: [{
          entries: [
            dir("bin"),
            file("bin/busybox", busybox, { mode: 0o755 }),
            file("hello", "from the image\n"),
          ],
        }],
      });
      await writeLayout(`${work}/layout`, [{ tag: "v1", image }]);
      const run = async (command: string[]) => {
        const child = new Deno.Command(
          Deno.execPath(),
          {
            args: [
              "run",
              "-A",
              MAIN,
              "bench",
              "--json",
              "--cache",
              `${work}/cache`,
              "--contenders",
              "oci,obd",
              "--link",
              "500mbit",
              "--rtt",
              "2",
              "--runs",
              "1",
              "--output",
              `${work}/lines`,
              `oci:${work}/layout:v1`,
              "--",
              ...command,
            ],
            stdout: "piped",
            stderr: "piped",
          },
        ).spawn();
        const { code, stdout, stderr } = await child.output();
        assert.deepEqual(await leftovers(child.pid), []);
        const text = new TextDecoder();
        assert.ok(stdout.length > 0, text.decode(stderr));
        return { code, result: JSON.parse(text.decode(stdout)) };
      };
      const good = await run(["/bin/busybox", "cat", "/hello"]);
      assert.deepEqual(
        good.result.summaries.map((s: { failures: string[] }) => s.failures),
        [[], []],
      );
      assert.equal(good.code, 0);
      for (const { measurement } of good.result.results) {
        assert.ok(measurement.readySeconds > measurement.rootSeconds);
        assert.ok(measurement.traffic.bytes > 1000);
        assert.ok(measurement.traffic.requests >= 3);
      }
      const lines = (await Deno.readTextFile(`${work}/lines`)).trim()
        .split("\n").map((line) => JSON.parse(line).event);
      assert.deepEqual(lines, [
        "machine",
        "image",
        "run",
        "run",
        "summary",
        "summary",
      ]);
      const bad = await run(["/bin/busybox", "false"]);
      assert.equal(bad.code, 1);
      for (const { failures } of bad.result.summaries) {
        assert.match(failures[0], /The container ended with 1/);
      }
    } finally {
      await Deno.remove(work, { recursive: true });
    }
  },
});
