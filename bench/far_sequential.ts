/**
 * How much of a link does one sequential reader fill, with empty caches and a
 * registry that is 20 ms away? Reads of 128 KiB, one at a time, of the largest
 * run of file content; against the link's rate. What is read ahead must cover
 * the round trips: the aim is 0.8 of the link.
 *
 * `deno run -A bench/far_sequential.ts [--rtt MS] [--mbit N] [--megabytes N]`
 *
 * Writes one JSON line per image form and link.
 */

import process from "node:process";
import { parseArgs } from "node:util";
import { openCold, pushDebianImage } from "./far_image.ts";
import { FarRegistry } from "./far_registry.ts";

const READ_BYTES = 128 * 1024;

const { values } = parseArgs({
  args: Deno.args,
  options: {
    rtt: { type: "string", default: "20" },
    mbit: { type: "string", default: "500" },
    megabytes: { type: "string", default: "100" },
  },
});

async function main(): Promise<void> {
  const dir = await Deno.makeTempDir({ prefix: "obd-far-sequential-" });
  const bytesPerSecond = Number(values.mbit) * 1e6 / 8;
  try {
    await using registry = await FarRegistry.start();
    await pushDebianImage(registry, dir);
    for (const tag of ["v1-obd", "v1-overlaybd"]) {
      const host = await registry.link({
        rttMs: Number(values.rtt),
        bytesPerSecond,
      });
      await using cold = await openCold(`${host}/app:${tag}`, dir);
      const { source } = cold.image;
      const extents = [...source.extents(0, source.size)]
        .filter((e) => e.kind === "data");
      const largest = extents.reduce((a, b) => a.length > b.length ? a : b);
      const length = Math.min(
        largest.length,
        Number(values.megabytes) * 1e6,
      );
      const before = await registry.traffic();
      const cpu = process.cpuUsage();
      const started = performance.now();
      const dst = new Uint8Array(READ_BYTES);
      for (let at = 0; at + READ_BYTES <= length; at += READ_BYTES) {
        const offset = largest.offset + at;
        if (!source.preadNow(dst, offset)) await source.pread(dst, offset);
        // As a server, which waits for its client.
        else await new Promise((resolve) => setImmediate(resolve));
      }
      const seconds = (performance.now() - started) / 1000;
      const used = process.cpuUsage(cpu);
      const after = await registry.traffic();
      const fetched = after.bytes - before.bytes;
      console.log(JSON.stringify({
        bench: "far_sequential",
        deno: Deno.version.deno,
        arch: Deno.build.arch,
        cores: navigator.hardwareConcurrency,
        tag,
        rttMs: Number(values.rtt),
        linkMbit: Number(values.mbit),
        readBytes: length,
        fetchedBytes: fetched,
        requests: after.requests - before.requests,
        seconds,
        cpuSeconds: (used.user + used.system) / 1e6,
        ofLink: fetched / seconds / bytesPerSecond,
      }));
    }
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

await main();
