/** What obd writes as `gzip.meta`, read by a reader that knows its format only. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { concatBytes } from "../../lib/io/mod.ts";
import { type LayerScan, scanLayer } from "../../lib/layers/pass/mod.ts";
import { writeGzipMeta } from "../../lib/layers/mod.ts";
import { seededRandom } from "../testutil/source_contract.ts";
import { requires } from "../testutil/requires.ts";
import { sampleBytes } from "../compress/samples.ts";

const ZRAN = new URL("./zran.py", import.meta.url).pathname;
const MIB = 1024 * 1024;

/** A tar of sorts: zeros for a header, then content of every kind. */
function makeTar(): Uint8Array {
  const parts: Uint8Array[] = [new Uint8Array(512)];
  for (
    const [seed, kind]
      of (["text", "random", "zeros", "pattern", "text"] as const).entries()
  ) {
    parts.push(sampleBytes(seed, (kind === "text" ? 2 : 0.5) * MIB + 77, kind));
  }
  const words = new TextDecoder().decode(sampleBytes(7, 2000, "text")).split(
    " ",
  );
  const random = seededRandom(3);
  const lines: string[] = [];
  for (let size = 0; size < 2 * MIB;) {
    const line = `${Math.floor(random() * 1e6)}\t${
      words[Math.floor(random() * words.length)]
    }\n`;
    lines.push(line);
    size += line.length;
  }
  parts.push(new TextEncoder().encode(lines.join("")), new Uint8Array(1024));
  return concatBytes(parts);
}

async function run(
  tool: string,
  ...args: string[]
): Promise<Uint8Array<ArrayBuffer>> {
  const { success, stdout, stderr } = await new Deno.Command(tool, { args })
    .output();
  assert.ok(success, new TextDecoder().decode(stderr).slice(-300));
  return stdout;
}

async function scan(blob: Uint8Array, spanSize?: number): Promise<LayerScan> {
  const digest = createHash("sha256").update(blob).digest("hex");
  async function* whole() {
    await Promise.resolve();
    yield blob;
  }
  return await scanLayer(whole(), {
    blobSize: blob.length,
    expectedDigest: `sha256:${digest}`,
    spanSize,
    threads: 1,
  });
}

for (
  const [tool, ...args] of [
    ["gzip", "-6"],
    ["gzip", "-1"],
    ["gzip", "-9", "--rsyncable"],
    ["pigz", "-6"],
  ]
) {
  Deno.test({
    name: `a reader of gzip.meta alone reads every byte right: ${tool} ${
      args.join(" ")
    }`,
    ignore: !requires("python3", tool!),
    async fn() {
      const dir = await Deno.makeTempDir();
      try {
        const tar = makeTar();
        await Deno.writeFile(`${dir}/tar`, tar);
        const blob = await run(tool!, ...args, "-c", `${dir}/tar`);
        await Deno.writeFile(`${dir}/blob`, blob);
        const random = seededRandom(11);
        const ranges = Array.from(
          { length: 25 },
          () => `${Math.floor(random() * (tar.length - 4096))}:4096`,
        );
        for (const spanSize of [undefined, 256 * 1024]) {
          const { spans, checkpoints, tarSize } = await scan(blob, spanSize);
          assert.equal(tarSize, tar.length);
          assert.ok(spans.count > 4);
          const meta = writeGzipMeta({
            spanSize: spanSize ?? MIB,
            gzipSize: blob.length,
            uncompressedSize: tarSize,
            checkpoints,
          });
          await Deno.writeFile(`${dir}/meta`, meta);
          const said = await run(
            "python3",
            ZRAN,
            `${dir}/blob`,
            `${dir}/meta`,
            `${dir}/tar`,
            ...ranges,
          );
          assert.equal(
            new TextDecoder().decode(said),
            `ok ${ranges.length + spans.count}\n`,
          );
        }
      } finally {
        await Deno.remove(dir, { recursive: true });
      }
    },
  });
}
