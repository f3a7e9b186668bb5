/** `obd inspect IMAGE|FILE`: what it is, layer by layer, what is wrong with it, and what would serve it. */

import { inspect, type Inspection, openEnvironment } from "../lib/image/mod.ts";
import type { Context } from "./context.ts";
import { fileLines, imageLines, layoutLines } from "./inspect_text.ts";

export async function run(
  context: Context,
  [target]: string[],
  options: Record<string, unknown>,
): Promise<number> {
  await using environment = await openEnvironment({
    log: context.log,
    progress: context.progress,
    signal: context.signal,
    registry: context.registry,
    // Whole layers are read on this thread; spans only to open a stack.
    workers: 1,
  });
  const found = await inspect(environment, target!, {
    platform: options.platform as string | undefined,
  });
  for (const line of linesOf(found)) context.say(line);
  context.result({ target, ok: found.problem === undefined, ...found });
  if (found.problem === undefined) return 0;
  context.complain(found.problem.message);
  return 1;
}

function linesOf(found: Inspection): string[] {
  switch (found.what) {
    case "file":
      return fileLines(found);
    case "image":
      return imageLines(found);
    case "layout":
      return layoutLines(found);
  }
}
