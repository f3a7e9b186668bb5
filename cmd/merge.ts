/** `obd merge IMAGE OUT`: a stack of layers flattened into one overlaybd layer file. */

import { mergeImage } from "../lib/image/mod.ts";
import { formatSize } from "../lib/io/mod.ts";
import type { Context } from "./context.ts";
import { openSession } from "./image_option.ts";
import { checkOutput } from "./output_file.ts";

interface MergeFlags {
  algorithm: "lz4" | "zstd";
  /** KiB. */
  blockSize: string;
  jobs: number;
}

export async function run(
  context: Context,
  [name, out]: string[],
  options: Record<string, unknown>,
): Promise<void> {
  const flags = options as unknown as MergeFlags;
  await checkOutput(out!);
  await using session = await openSession(context, name!, options);
  const { image, environment } = session;
  const { digest, size, layer } = await mergeImage(environment, image, out!, {
    native: {
      codec: flags.algorithm,
      blockSize: Number(flags.blockSize) * 1024,
    },
    jobs: flags.jobs,
  });
  context.say(
    `${out}  ${formatSize(size)}, ${
      layer.entryCount.toLocaleString("en")
    } segments, from ${image.layers.length} layers`,
  );
  context.say(`${" ".repeat(out!.length)}  ${digest}`);
  context.result({
    image: name,
    file: out,
    digest,
    size,
    segments: layer.entryCount,
    virtualSize: image.source.size,
    layers: image.layers.length,
  });
}
