/**
 * Conversion of a real image to overlaybd-native (LZ4) against
 * `gzip -dc LAYER | lz4 -1 >/dev/null` over its layers, in turns, on the same
 * cores. The conversion also checks every digest, builds the file system,
 * writes the blobs and pushes them into the layout. Budget: 2.
 *
 * `deno run -A bench/native_convert.ts [--rounds N] [--jobs N] [oci:DIR:TAG]`
 *
 * Without an image one is made of the files of this machine.
 */

import { parseArgs } from "node:util";
import { openEnvironment, publishImage } from "../lib/image/mod.ts";
import { parseReference } from "../lib/registry/mod.ts";
import {
  blobPath,
  makeImage,
  makeLayer,
  writeLayout,
} from "../tests/testutil/oci_image.ts";

const { values, positionals } = parseArgs({
  options: {
    rounds: { type: "string", default: "3" },
    jobs: { type: "string", default: String(navigator.hardwareConcurrency) },
    size: { type: "string", default: "150" },
  },
  allowPositionals: true,
});

/** Two layers of whatever lies first in two places, each up to `megabytes`. */
async function writeOwnImage(layout: string, megabytes: number): Promise<void> {
  const layers = [];
  for (const place of ["/usr/bin /usr/sbin", "/usr/lib"]) {
    const list = `find ${place} -xdev -type f -size -20M -printf '%s\\t%p\\n'`;
    const { stdout, success } = await new Deno.Command("bash", {
      args: [
        "-c",
        `${list} | sort -k 2 | ` +
        `awk -F '\\t' '{ n += $1; if (n < ${megabytes}e6) print $2 }' | ` +
        "tar -cf - --no-recursion -T - 2>/dev/null",
      ],
    }).output();
    if (!success) throw new Error("Cannot make the image");
    layers.push(makeLayer({ entries: stdout }));
  }
  await writeLayout(layout, [{ tag: "v1", image: makeImage({ layers }) }]);
}

/** Files of an image's layers. */
async function layerFiles(layout: string, tag: string): Promise<string[]> {
  const { manifests } = JSON.parse(
    await Deno.readTextFile(`${layout}/index.json`),
  );
  const entry = manifests.find((m: { annotations?: Record<string, string> }) =>
    m.annotations?.["org.opencontainers.image.ref.name"] === tag
  );
  const { layers } = JSON.parse(
    await Deno.readTextFile(blobPath(layout, entry.digest)),
  );
  return layers.map((l: { digest: string }) => blobPath(layout, l.digest));
}

async function timePipe(files: readonly string[]): Promise<number> {
  const start = performance.now();
  for (const file of files) {
    const { success } = await new Deno.Command("bash", {
      args: ["-c", 'set -o pipefail; gzip -dc "$0" | lz4 -1 >/dev/null', file],
      stderr: "null",
    }).output();
    if (!success) throw new Error("gzip | lz4 failed");
  }
  return performance.now() - start;
}

/** One conversion into a copy of the layout, so that each starts alike. */
async function timeConversion(
  layout: string,
  tag: string,
  copy: string,
): Promise<{ ms: number; bytes: number }> {
  const { success } = await new Deno.Command("cp", {
    args: ["-r", layout, copy],
  }).output();
  if (!success) throw new Error("Cannot copy the layout");
  try {
    const start = performance.now();
    await using environment = await openEnvironment({});
    const report = await publishImage(environment, {
      source: `oci:${copy}:${tag}`,
      formats: ["overlaybd"],
      jobs: Number(values.jobs),
    });
    return {
      ms: performance.now() - start,
      bytes: report.platforms[0]!.meta.size,
    };
  } finally {
    await Deno.remove(copy, { recursive: true });
  }
}

const median = (list: number[]) =>
  list.toSorted((a, b) => a - b)[list.length >> 1]!;

const dir = await Deno.makeTempDir();
try {
  let layout = `${dir}/image`;
  let tag = "v1";
  if (positionals[0] !== undefined) {
    const reference = parseReference(positionals[0]);
    if (reference.kind !== "layout") throw new Error("Give an oci:DIR:TAG");
    layout = reference.path;
    tag = reference.tag ?? "latest";
  } else await writeOwnImage(layout, Number(values.size));
  const files = await layerFiles(layout, tag);
  const pipe: number[] = [];
  const conversion: number[] = [];
  let bytes = 0;
  for (let round = 0; round < Number(values.rounds); round++) {
    pipe.push(await timePipe(files));
    const result = await timeConversion(layout, tag, `${dir}/copy`);
    conversion.push(result.ms);
    bytes = result.bytes;
  }
  const seconds = (list: number[]) => Math.round(median(list) / 10) / 100;
  console.log(JSON.stringify({
    bench: "native_convert",
    layers: files.length,
    nativeBytes: bytes,
    threads: Number(values.jobs),
    pipeSeconds: seconds(pipe),
    obdSeconds: seconds(conversion),
    ratio: Math.round(median(conversion) / median(pipe) * 100) / 100,
    budget: 2,
  }));
} finally {
  await Deno.remove(dir, { recursive: true });
}
