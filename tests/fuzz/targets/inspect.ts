/** `obd inspect` on files of any kind: what is wrong stands in the report, nothing is thrown. */

import { inspectFile } from "../../../lib/layers/mod.ts";
import { madeLayers } from "../layers_made.ts";
import { goldenFiles, sourceOf } from "../seeds.ts";
import { must, type Seed, type Target, WrongBytes } from "../target.ts";

async function seeds(): Promise<Seed[]> {
  const files = goldenFiles([
    ...["plain", "zt", "fs.meta", "erofs.meta", "g.idx", "L.tar.gz", "W.tar"]
      .map((name) => `unit/${name}`),
    "turbo-gz/layer2.turboOCIv1.tar.gz",
    "turbo-gz/layer2.gzip.meta",
    "turbo-gz/layer2.ext4.fs.meta",
  ]);
  for (const { name, spans, blob } of await madeLayers()) {
    files.push([`obd.spans of ${name}`, spans]);
    if (name === "zstd seekable") files.push([name, blob]);
  }
  return files.map(([name, bytes]): Seed => ({
    name,
    bytes,
    hot: [[0, 512], [Math.max(0, bytes.length - 4096), bytes.length]],
    async read({ bytes: input }) {
      try {
        const report = await inspectFile(sourceOf(input));
        must(report.kind.length > 0, "A report has no kind");
        JSON.stringify(report);
      } catch (error) {
        if (error instanceof WrongBytes) throw error;
        // Even an error of ours belongs into the report.
        throw new Error(`inspectFile() threw: ${error}`, { cause: error });
      }
    },
  }));
}

/** Targets of this file. */
export const INSPECT_TARGETS: Target[] = [{
  name: "inspect",
  summary: "obd inspect on files of any kind",
  weight: 20,
  load: seeds,
}];
