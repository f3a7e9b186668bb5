/**
 * One pass over a gzip layer against `gzip -dc X | sha256sum`.
 *
 * The pass inflates, finds checkpoints with sparse windows, and computes the
 * SHA-256 of the blob, of the tar and of each span; the pipe only inflates and
 * computes one SHA-256. Both read the same file, in turns. Budget: 0.6.
 *
 * `deno run -A bench/index_pass.ts [--size MB] [--rounds N] [FILE.tar.gz]`
 */

import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { parseArgs } from "node:util";
import { scanLayer } from "../lib/layers/pass/mod.ts";

const { values, positionals } = parseArgs({
  options: {
    size: { type: "string", default: "200" },
    rounds: { type: "string", default: "3" },
  },
  allowPositionals: true,
});

/** A tar of real files: whatever lies first under /usr, up to `megabytes`. */
async function makeLayer(path: string, megabytes: number): Promise<void> {
  const list = "find /usr/bin /usr/lib /usr/share -xdev -type f | sort";
  const command = `${list} | tar -cf - --no-recursion -T - 2>/dev/null | ` +
    `head -c ${megabytes * 1_000_000} | gzip -6 > "$0"`;
  const { success } = await new Deno.Command("bash", {
    args: ["-c", command, path],
  }).output();
  if (!success) throw new Error("Cannot make the layer");
}

async function digestFile(path: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(path)) hash.update(chunk);
  return `sha256:${hash.digest("hex")}`;
}

async function timePipe(path: string): Promise<number> {
  const start = performance.now();
  const { success } = await new Deno.Command("bash", {
    args: ["-c", 'gzip -dc "$0" | sha256sum', path],
  }).output();
  if (!success) throw new Error("gzip failed");
  return performance.now() - start;
}

const dir = await Deno.makeTempDir();
try {
  let path = positionals[0];
  if (path === undefined) {
    path = `${dir}/layer.tar.gz`;
    await makeLayer(path, Number(values.size));
  }
  const blobSize = (await Deno.stat(path)).size;
  const expectedDigest = await digestFile(path);
  const input = path;
  const timePass = async (threads: number) => {
    let walked = 0;
    const start = performance.now();
    const result = await scanLayer(
      createReadStream(input, { highWaterMark: 256 * 1024 }),
      {
        blobSize,
        expectedDigest,
        threads,
        walker: { push: (bytes) => walked += bytes.length, finish() {} },
      },
    );
    const ms = performance.now() - start;
    if (walked !== result.tarSize) throw new Error("Bytes are missing");
    return { ms, result };
  };

  const times: Record<string, number[]> = {
    pipe: [],
    one: [],
    two: [],
    three: [],
  };
  let last;
  for (let round = 0; round < Number(values.rounds); round++) {
    times.two!.push((last = await timePass(2)).ms);
    times.pipe!.push(await timePipe(path));
    times.one!.push((await timePass(1)).ms);
    times.three!.push((await timePass(3)).ms);
  }
  const best = (name: string) => Math.min(...times[name]!);
  const { result } = last!;
  let windows = 0;
  for (const window of result.checkpoints.window) windows += window.length;
  console.log(JSON.stringify({
    bench: "index_pass",
    blobSize,
    tarSize: result.tarSize,
    checkpoints: result.checkpoints.count,
    windowBytes: windows,
    windowPercentOfBlob: +(100 * windows / blobSize).toFixed(2),
    rssMiB: Math.round(Deno.memoryUsage().rss / 2 ** 20),
    msPipe: times.pipe!.map(Math.round),
    msTwoThreads: times.two!.map(Math.round),
    msThreeThreads: times.three!.map(Math.round),
    msOneThread: times.one!.map(Math.round),
    ratioTwoThreads: +(best("two") / best("pipe")).toFixed(3),
    ratioThreeThreads: +(best("three") / best("pipe")).toFixed(3),
    ratioOneThread: +(best("one") / best("pipe")).toFixed(3),
    budget: 0.6,
    runtime: `deno ${Deno.version.deno}`,
    cores: navigator.hardwareConcurrency,
  }));
} finally {
  await Deno.remove(dir, { recursive: true });
}
