/** `deno task demo`, as the README has it. */

import assert from "node:assert/strict";
import { fromUtf8 } from "../../lib/io/mod.ts";
import { compareTree } from "../../bench/demo/compare.ts";
import { ExpectedTree } from "../../bench/demo/expected.ts";
import { Ext4Reader } from "../../lib/ext4/mod.ts";
import { openEnvironment, openImage } from "../../lib/image/mod.ts";
import { loadLibc } from "../../lib/io/mod.ts";
import {
  dir,
  file,
  type LayerEntry,
  makeImage,
  writeLayout,
} from "../testutil/oci_image.ts";

const ROOT = new URL("../../", import.meta.url).pathname;

// Opened once per process, so it must not count as a leak of the first test.
loadLibc();

Deno.test("deno task demo reads back what it put in", async () => {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["task", "demo"],
    cwd: ROOT,
    env: { NO_COLOR: "1" },
    stdin: "null",
    signal: AbortSignal.timeout(300_000),
  }).output();
  const text = fromUtf8(stdout);
  assert.equal(code, 0, text + fromUtf8(stderr));
  assert.match(text, /^ {2}differences +0$/m);
  const files = Number(/content of (\d+) files/.exec(text)?.[1]);
  assert.ok(files > 1500, text);
  const fetched = /fetched +.*\((\d+\.\d+) %\)/.exec(text)?.[1];
  assert.ok(Number(fetched) < 10, text);
});

Deno.test("the demo's comparison sees every kind of difference", async () => {
  const made = (more: Partial<LayerEntry> = {}): LayerEntry[] => [
    dir("", { mtime: 1 }),
    dir("d"),
    file("d/f", "content", more),
    file("d/g", "more"),
  ];
  const changes: [RegExp, LayerEntry[]][] = [
    [/content|sha256/, made({ content: "Content" })],
    [/mode is 384, should be 420/, made({ mode: 0o600 })],
    [/uid/, made({ uid: 1 })],
    [/mtime/, made({ mtime: { seconds: 1_700_000_000, nanoseconds: 1 } })],
    [/xattrs/, made({ xattrs: { "user.a": "b" } })],
    [/type/, made({ type: "fifo", content: "" })],
    [/"\/d\/h" should not be there/, [...made(), file("d/h", "")]],
    [/"\/d\/g" is missing/, made().slice(0, 3)],
    [/linked wrongly/, [
      ...made().slice(0, 3),
      { path: "d/g", type: "hardlink", linkTarget: "d/f" },
    ]],
  ];
  const expected = new ExpectedTree();
  for (const entry of made()) expected.add(entry);
  assert.deepEqual(await differences(made(), expected), []);
  for (const [wanted, entries] of changes) {
    const found = await differences(entries, expected);
    assert.match(found.join("\n"), wanted);
  }
});

async function differences(
  entries: LayerEntry[],
  expected: ExpectedTree,
): Promise<string[]> {
  const temp = await Deno.makeTempDir();
  try {
    const image = makeImage({ layers: [{ entries }] });
    await writeLayout(`${temp}/image`, [{ tag: "v1", image }]);
    await using environment = await openEnvironment({ workers: 1 });
    await using opened = await openImage(environment, `oci:${temp}/image:v1`);
    const reader = await Ext4Reader.open(opened.source);
    return (await compareTree(reader, expected)).differences;
  } finally {
    await Deno.remove(temp, { recursive: true });
  }
}
