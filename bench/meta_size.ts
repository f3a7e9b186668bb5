/**
 * Size of meta images, with its breakdown, against the compressed image.
 *
 * Budgets: ≤ 0.55 % of the Debian image; for every gzip layer over 20 MB ≤ 0.65
 * % and 96 bytes an entry. The reference is TurboOCI's own form, 3.5 % (1 MiB
 * spans, windows in full).
 *
 *     deno run -A bench/meta_size.ts [--image oci:DIR:TAG] [--tricks]
 *
 * Without `--image`: the Debian test image, and generated layers of extreme
 * kinds. Prints one JSON line per layer and a summary per image. With
 * `--tricks` each gzip layer's meta blob is made again without each of the
 * tricks, and with what was tried and not taken.
 */

import { parseArgs } from "node:util";
import { openEnvironment, publishImage } from "../lib/image/mod.ts";
import { debianImage } from "../tests/testutil/debian_image.ts";
import { blobPath } from "../tests/testutil/oci_image.ts";
import { measureTricks, type TrickSizes } from "./meta_tricks.ts";
import { SIZE_LAYERS, writeSizeLayer } from "./size_layers.ts";

const BUDGET_PERCENT = 0.55;
const LAYER_BUDGET = { percent: 0.65, perEntry: 96, sizeMin: 20_000_000 };
/** TurboOCI's share as measured with the real tools. */
const TURBO_OCI_PERCENT = 3.5;

const { values } = parseArgs({
  args: Deno.args,
  options: { image: { type: "string" }, tricks: { type: "boolean" } },
});

await using environment = await openEnvironment();
const scratch = await Deno.makeTempDir({ prefix: "obd-meta-size-" });
try {
  if (values.image !== undefined) await measure(values.image, values.image);
  else {
    await measure(`oci:${(await debianImage()).layout}:v1`, "Debian");
    for (const name of Object.keys(SIZE_LAYERS)) {
      const layout = `${scratch}/layer`;
      await writeSizeLayer(layout, name);
      await measure(`oci:${layout}:v1`, name);
      await Deno.remove(layout, { recursive: true });
    }
  }
} finally {
  await Deno.remove(scratch, { recursive: true });
}

async function measure(source: string, image: string): Promise<void> {
  const dest = `${scratch}/meta`;
  const { platforms: [platform] } = await publishImage(environment, {
    source,
    dest: `oci:${dest}:v1`,
  });
  const { layers, breakdown, meta } = platform!;
  for (const layer of layers) {
    const limit = layer.size * LAYER_BUDGET.percent / 100 +
      layer.entries * LAYER_BUDGET.perEntry;
    print({
      image,
      layer: layer.digest,
      mediaType: layer.mediaType,
      compressed: layer.size,
      meta: layer.metaSize,
      percent: percent(layer.metaSize, layer.size),
      entries: layer.entries,
      spans: layer.spans,
      // Smaller layers have no budget.
      ofBudget: layer.size < LAYER_BUDGET.sizeMin
        ? undefined
        : Number((layer.metaSize / limit).toFixed(3)),
    });
  }
  if (values.tricks) await printTricks(source, dest, meta.digest, image);
  const compressed = layers.reduce((sum, layer) => sum + layer.size, 0);
  const share = percent(meta.size, compressed);
  const isDebian = image === "Debian";
  print({
    image,
    compressed,
    meta: meta.size,
    // Bytes of the members before the blob's own gzip.
    breakdown,
    percent: share,
    referencePercent: TURBO_OCI_PERCENT,
    ratio: Number((share / TURBO_OCI_PERCENT).toFixed(2)),
    ...(isDebian
      ? {
        budgetPercent: BUDGET_PERCENT,
        isWithinBudget: share <= BUDGET_PERCENT,
      }
      : {}),
  });
  await Deno.remove(dest, { recursive: true });
}

interface Manifest {
  layers: {
    digest: string;
    mediaType: string;
    annotations?: Record<string, string>;
  }[];
}

/** Sums over the image's gzip layers; more than as built is what a trick saves. */
async function printTricks(
  source: string,
  dest: string,
  manifest: string,
  image: string,
): Promise<void> {
  const layout = /^oci:(.*?)(:[^:/]*)?$/.exec(source)?.[1];
  if (layout === undefined) throw new Error("--tricks needs an oci:DIR image");
  const text = await Deno.readTextFile(blobPath(dest, manifest));
  const sum: TrickSizes = {};
  for (const { digest, annotations } of (JSON.parse(text) as Manifest).layers) {
    const target = annotations
      ?.["containerd.io/snapshot/overlaybd/turbo-oci/target-digest"];
    if (target === undefined) continue;
    const blob = await Deno.readFile(blobPath(layout, target));
    if (blob[0] !== 0x1f || blob[1] !== 0x8b) continue;
    const metaBlob = await Deno.readFile(blobPath(dest, digest));
    const sizes = await measureTricks({ digest: target, blob, metaBlob });
    for (const [trick, size] of Object.entries(sizes)) {
      sum[trick] = (sum[trick] ?? 0) + size;
    }
  }
  const built = sum["as built"];
  if (built === undefined) return;
  for (const [trick, meta] of Object.entries(sum)) {
    print({ image, trick, meta, difference: meta - built });
  }
}

function print(line: Record<string, unknown>): void {
  console.log(JSON.stringify({ bench: "meta_size", ...line }));
}

function percent(part: number, whole: number): number {
  return Number((part / whole * 100).toFixed(3));
}
