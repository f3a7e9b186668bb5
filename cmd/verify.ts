/** `obd verify IMAGE`: reads everything and lists what is wrong; exit 1 if anything is. */

import {
  type Finding,
  openEnvironment,
  verifyImage,
} from "../lib/image/mod.ts";
import { formatSize } from "../lib/io/mod.ts";
import type { Context } from "./context.ts";

export async function run(
  context: Context,
  [image]: string[],
  options: Record<string, unknown>,
): Promise<number> {
  await using environment = await openEnvironment({
    log: context.log,
    progress: context.progress,
    signal: context.signal,
    registry: context.registry,
  });
  const { digest, layers, findings } = await verifyImage(environment, image!, {
    platform: options.platform as string | undefined,
  });
  if (digest !== undefined) context.say(`image    ${digest}`);
  for (const [i, layer] of layers.entries()) {
    context.say(
      `layer ${i + 1}  ${layer.ok ? "ok " : "BAD"} ${layer.kind} ${
        formatSize(layer.size)
      } ${layer.digest}`,
    );
  }
  for (const finding of findings) context.say(findingLine(finding));
  const ok = findings.length === 0;
  context.result({ image, ok, digest, layers, findings });
  if (ok) return 0;
  context.complain(
    `"${image}" has ${findings.length} ${
      findings.length === 1 ? "mistake" : "mistakes"
    }, first: ${findingLine(findings[0]!)}`,
  );
  return 1;
}

function findingLine({ layer, check, problem }: Finding): string {
  return `${layer === undefined ? "" : `layer ${layer}: `}${check}: ${problem}`;
}
