/** Readers that are broken on purpose, one for each kind of finding: what the harness must find. */

import { FormatError } from "../../lib/io/mod.ts";
import { must, type Seed, type Target } from "./target.ts";

/** A reader whose defect shows when the first byte of its magic stays and the number behind it is odd. */
function canary(
  name: string,
  defect: (bytes: Uint8Array) => void | Promise<void>,
): Target {
  const seed: Seed = {
    name: "magic",
    bytes: Uint8Array.of(0x4d, 2, ...new Uint8Array(62)),
    hot: [[1, 2]],
    read({ bytes }) {
      if (bytes[0] !== 0x4d) {
        throw new FormatError("canary", "magic", "is wrong");
      }
      if (bytes.length > 1 && bytes[1]! % 2 === 1) return defect(bytes);
    },
  };
  return {
    name,
    summary: "broken on purpose",
    weight: 1,
    memoryBytes: 128 * 1024 * 1024,
    load: () => Promise.resolve([seed]),
  };
}

/** Kept alive, so that the engine cannot do away with them. */
const heap: unknown[] = [];

export const TARGETS: Target[] = [
  canary("canary-untyped", (bytes) => {
    new DataView(bytes.buffer, 0, 4).getUint32(bytes[1]! + 4);
  }),
  canary("canary-unhandled", () => {
    Promise.reject(new TypeError("lost"));
  }),
  canary("canary-wrong-bytes", () => must(false, "Byte 1 is not even")),
  canary("canary-hang", () => {
    while (true);
  }),
  canary("canary-wait", () => new Promise<void>(() => {})),
  canary("canary-crash", () => Deno.kill(Deno.pid, "SIGSEGV")),
  canary("canary-memory", () => {
    heap.length = 0;
    heap.push(new Uint8Array(200 * 1024 * 1024).fill(1));
  }),
  canary("canary-heap", () => {
    while (true) heap.push(new Array(2 ** 20).fill(heap.length + 0.5));
  }),
  // Asked for, never touched: only a limit of the system notices.
  canary("canary-allocation", () => {
    heap.push(new Uint8Array(4 * 1024 * 1024 * 1024 - 1));
  }),
  canary("canary-fine", () => {
    throw new FormatError("canary", "number", "is odd");
  }),
];
