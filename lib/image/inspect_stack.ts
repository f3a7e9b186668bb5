/** The sources behind an opened image, layer by layer. */

import type { SourceDescription } from "../io/mod.ts";
import type { OpenedImage } from "./open.ts";

/** The sources that would serve the image. */
export interface StackInspection {
  layers: { data: SourceDescription; target?: SourceDescription }[];
  merged: SourceDescription;
}

/** The merged device lists its layers' sources in one row: data, then the target of a TurboOCI layer. */
export function stackOf(image: OpenedImage): StackInspection | undefined {
  const { inner = [], ...merged } = image.source.describe();
  const rest = [...inner];
  const layers = image.layers.map((layer) => ({
    data: rest.shift()!,
    ...(layer.kind === "turbo" ? { target: rest.shift()! } : {}),
  }));
  const complete = rest.length === 0 &&
    layers.every((l) => l.data && (!("target" in l) || l.target));
  return complete ? { layers, merged } : undefined;
}
