/** Directories with very many names. */

import assert from "node:assert/strict";
import { attrs, layerTest } from "./writer_disk.ts";

const longName = (i: number) => `${i}-`.padEnd(255, "n");

layerTest(
  "a directory of 100,000 long names",
  { inodeRatio: 4096 },
  (model) => {
    const dir = model.mkdir(model.root, "dir", attrs(0o755));
    for (let i = 0; i < 100_000; i++) {
      model.mknod(dir, longName(i), attrs(0o600), { type: "fifo" });
    }
  },
  async (_, reader) => {
    const names = await reader.readdir(await reader.lookup("dir"));
    assert.equal(new Set(names.map((e) => e.name)).size, 100_000);
  },
);

for (const [count, links] of [[64998, 65000], [64999, 1]] as const) {
  layerTest(
    `a directory of ${count} directories`,
    { inodeRatio: 4096 },
    (model) => {
      for (let i = 0; i < count; i++) {
        model.mkdir(model.root, `d${i}`, attrs(0o755));
      }
    },
    async (_, reader) =>
      assert.equal((await reader.stat(reader.root)).links, links),
  );
}
