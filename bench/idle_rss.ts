/**
 * Resident memory of an idle `obd serve` with 10 images: after opening, while
 * it is read from, and when it has been left alone again. Budget
 * : at most 150 MB idle, both times.
 *
 *     deno run -A bench/idle_rss.ts [--layout DIR] [--images 10] [--read-mib 256] [--idle 60]
 *
 * DIR is an OCI layout with meta images at the tags `v1-obd`, `v1-python-obd`
 * and `v1-base-obd`; without it the Debian test image is made and built. The
 * images are exported in turn under several names: each export opens its own
 * stack. Prints one JSON line per figure. The reference is this runtime with
 * nothing but a timer.
 */

import { parseArgs } from "node:util";
import { builtDebianLayout, dataExtents } from "./serve_image.ts";
import { ServeProcess, writeConfig } from "../tests/serve/harness.ts";

const BUDGET_MB = 150;
const TAGS = ["v1-obd", "v1-python-obd", "v1-base-obd"];
const READ_BYTES = 256 * 1024;

const { values } = parseArgs({
  args: Deno.args,
  options: {
    layout: { type: "string" },
    images: { type: "string", default: "10" },
    "read-mib": { type: "string", default: "256" },
    idle: { type: "string", default: "60" },
  },
});

/** Resident memory of a process in MB, and what of it is anonymous. */
function rss(pid: number): { mb: number; anonymousMb: number } {
  const status = Deno.readTextFileSync(`/proc/${pid}/status`);
  const kib = (key: string) =>
    Number(new RegExp(`^${key}:\\s+(\\d+)`, "m").exec(status)![1]);
  const mb = (n: number) => Math.round(n * 1024 / 1e5) / 10;
  return { mb: mb(kib("VmRSS")), anonymousMb: mb(kib("RssAnon")) };
}

function pause(seconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, seconds * 1000));
}

function say(what: string, pid: number, more: object = {}): number {
  const found = rss(pid);
  console.log(JSON.stringify({ bench: "idle_rss", what, ...found, ...more }));
  return found.mb;
}

async function referenceMb(): Promise<number> {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["eval", "setTimeout(() => {}, 60_000)"],
    stdin: "null",
  }).spawn();
  await pause(1);
  const { mb } = rss(child.pid);
  child.kill("SIGKILL");
  await child.status;
  return mb;
}

const dir = await Deno.makeTempDir({ prefix: "obd-bench-" });
try {
  const layout = values.layout ?? await builtDebianLayout(dir);
  const images = Array.from({ length: Number(values.images) }, (_, i) => ({
    export: `image-${i}`,
    image: `oci:${layout}:${TAGS[i % TAGS.length]}`,
  }));
  const config = await writeConfig(dir, images, {
    workers: navigator.hardwareConcurrency,
    cacheConfig: { cacheDir: `${dir}/blobs`, cacheSizeGB: 2 },
    gzipCacheConfig: { cacheDir: `${dir}/gzip`, cacheSizeGB: 2 },
  });
  await using serve = await ServeProcess.start(config);
  const reference = await referenceMb();
  say("ready", serve.pid);
  await pause(10);
  const opened = say("opened, 10 s idle", serve.pid);
  const buffers = Array.from({ length: 16 }, () => new Uint8Array(READ_BYTES));
  let readMb = 0;
  for (const depth of [16, 1]) {
    for (const { export: name } of images.slice(0, 3)) {
      await using client = await serve.connect(name);
      const wanted = Number(values["read-mib"]) * 1024 * 1024 / 3;
      let done = 0;
      for await (const extent of dataExtents(client)) {
        const end = extent.offset + extent.length;
        for (let at = extent.offset; at < end && done < wanted;) {
          const reads: Promise<void>[] = [];
          for (const buffer of buffers.slice(0, depth)) {
            const part = buffer.subarray(0, Math.min(READ_BYTES, end - at));
            reads.push(client.pread(part, at));
            at += part.length;
            done += part.length;
          }
          await Promise.all(reads);
        }
      }
      readMb += done / 1e6;
    }
    say(`read at depth ${depth}`, serve.pid, { readMb: Math.round(readMb) });
  }
  for (let idle = 15; idle <= Number(values.idle); idle += 15) {
    await pause(15);
    say(`${idle} s after reading`, serve.pid);
  }
  const idle = rss(serve.pid).mb;
  console.log(JSON.stringify({
    bench: "idle_rss",
    images: images.length,
    openedMb: opened,
    afterReadingMb: idle,
    referenceMb: reference,
    ratio: Math.round(idle / reference * 100) / 100,
    budgetMb: BUDGET_MB,
    isWithinBudget: Math.max(opened, idle) <= BUDGET_MB,
  }));
} finally {
  await Deno.remove(dir, { recursive: true });
}
