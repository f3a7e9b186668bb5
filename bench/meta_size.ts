/**
 * Size of a meta image, with its breakdown, against the compressed image.
 *
 * Budget: ≤ 0.8 % for gzip layers with sparse windows. The
 * reference is TurboOCI's own form, 3.5 % (windows in full).
 *
 *     deno run -A bench/meta_size.ts [--image oci:DIR:TAG]
 *
 * Without `--image` the Debian test image is made. Prints one JSON line per
 * layer and a summary; nothing is written to the image.
 */

import { parseArgs } from "node:util";
import { openEnvironment, publishImage } from "../lib/image/mod.ts";
import { debianImage } from "../tests/testutil/debian_image.ts";

const BUDGET_PERCENT = 0.8;
/** TurboOCI's share as measured with the real tools. */
const TURBO_OCI_PERCENT = 3.5;

const { values } = parseArgs({
  args: Deno.args,
  options: { image: { type: "string" } },
});

const source = values.image ?? `oci:${(await debianImage()).layout}:v1`;
await using environment = await openEnvironment();
const { platforms: [platform] } = await publishImage(environment, {
  source,
  dryRun: true,
});
const { layers, breakdown, meta } = platform!;
for (const layer of layers) {
  console.log(JSON.stringify({
    bench: "meta_size",
    layer: layer.digest,
    mediaType: layer.mediaType,
    compressed: layer.size,
    meta: layer.metaSize,
    percent: percent(layer.metaSize, layer.size),
    entries: layer.entries,
    spans: layer.spans,
    reused: layer.reused,
  }));
}
const compressed = layers.reduce((sum, layer) => sum + layer.size, 0);
const share = percent(meta.size, compressed);
console.log(JSON.stringify({
  bench: "meta_size",
  image: source,
  compressed,
  meta: meta.size,
  // Bytes of the members before the blob's own gzip.
  breakdown,
  percent: share,
  referencePercent: TURBO_OCI_PERCENT,
  ratio: Number((share / TURBO_OCI_PERCENT).toFixed(2)),
  budgetPercent: BUDGET_PERCENT,
  isWithinBudget: share <= BUDGET_PERCENT,
}));

function percent(part: number, whole: number): number {
  return Number((part / whole * 100).toFixed(3));
}
