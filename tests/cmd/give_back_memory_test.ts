/** Memory of a process that did something and is left alone. */

import assert from "node:assert/strict";

const MODULE = new URL("../../cmd/give_back_memory.ts", import.meta.url).href;

/**
 * Takes 128 MiB in pieces that the C library does not give back by itself,
 * keeps every 64th, and waits until most of the memory is gone, or too long.
 */
const PROGRAM = `
import { giveBackMemory } from ${JSON.stringify(MODULE)};
giveBackMemory(100);
const rss = () => Deno.memoryUsage().rss;
let all = Array.from({ length: 4096 }, () => new Uint8Array(32768).fill(1));
const kept = all.filter((_, i) => i % 64 === 0);
const most = rss();
all = [];
const end = performance.now() + 30_000;
const MIB = 2 ** 20;
while (rss() > most - 96 * MIB && performance.now() < end) {
  await new Promise((resolve) => setTimeout(resolve, 50));
}
console.log(JSON.stringify({ kept: kept.length, mib: (most - rss()) / MIB }));
`;

Deno.test("giveBackMemory: at rest, what was collected goes back to the system, and the process may end", async () => {
  const { stdout, code } = await new Deno.Command(Deno.execPath(), {
    args: ["eval", PROGRAM],
    stdin: "null",
  }).output();
  assert.equal(code, 0);
  const { kept, mib } = JSON.parse(new TextDecoder().decode(stdout));
  assert.equal(kept, 64);
  assert.ok(mib > 90, `${mib} MiB of 128 went back`);
});
