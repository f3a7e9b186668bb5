/**
 * Rounds of `read_storm.ts` for as long as you like:
 * `deno run -A tests/fuzz/storm.ts SECONDS [SEED]`.
 */

import { loadLibc } from "../../lib/io/mod.ts";
import { readStorm } from "./read_storm.ts";

const READS = 400;

// Who reads memory that went back to be used again gets wrong bytes.
Deno.env.set("OBD_POISON_BUFFERS", "1");
loadLibc();
const [seconds = "60", first = "1"] = Deno.args;
const end = performance.now() + Number(seconds) * 1000;
const directory = await Deno.makeTempDir({ prefix: "obd-storm-" });
try {
  for (let seed = Number(first); performance.now() < end; seed++) {
    const { failed, ...counts } = await readStorm({
      seed,
      reads: READS,
      directory,
    });
    const rssMiB = Math.round(Deno.memoryUsage().rss / 2 ** 20);
    console.log(JSON.stringify({ seed, ...counts, ...failed, rssMiB }));
  }
} finally {
  await Deno.remove(directory, { recursive: true });
}
