import assert from "node:assert/strict";
import { parsePrefetchRate } from "../../cmd/rate.ts";

Deno.test("parsePrefetchRate() takes what people write, in bounds", () => {
  const rates: [string, number | undefined][] = [
    ["20MB/s", 20e6],
    ["20 MB/s", 20e6],
    ["20MB", 20e6],
    ["1.5MiB/s", 1.5 * 2 ** 20],
    ["160mbit", 20e6],
    ["1gbit/s", 125e6],
    ["100kB/s", 1e5],
    ["1000B", 1000],
    ["999B", undefined],
    ["2000GB/s", undefined],
    ["20", undefined],
    ["MB/s", undefined],
    ["20mb/s", undefined],
    ["-20MB/s", undefined],
    ["2e3MB", undefined],
    ["20MB/min", undefined],
    ["20 constructor", undefined],
    ["", undefined],
    ["9".repeat(400) + "MB", undefined],
  ];
  for (const [text, want] of rates) {
    assert.equal(parsePrefetchRate(text), want, text);
  }
});
