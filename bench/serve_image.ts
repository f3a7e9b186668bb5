/** The image that benchmarks of `obd serve` read: the Debian test image, built. */

import type { Extent } from "../lib/io/mod.ts";
import { openEnvironment, publishImage } from "../lib/image/mod.ts";
import type { NbdClient } from "../lib/nbd/mod.ts";
import { copyLayout, debianImage } from "../tests/testutil/debian_image.ts";

/** Tags of the plain images in the layout. */
const TAGS = ["v1", "v1-python", "v1-base"];

/**
 * Copies the Debian test image below `dir` and builds meta images beside all
 * of its tags (`TAG-obd`).
 *
 * @returns The layout's directory.
 */
export async function builtDebianLayout(dir: string): Promise<string> {
  const { layout } = await debianImage();
  const copy = `${dir}/layout`;
  await copyLayout(layout, copy);
  await using environment = await openEnvironment();
  for (const tag of TAGS) {
    await publishImage(environment, { source: `oci:${copy}:${tag}` });
  }
  return copy;
}

/** The parts of an export that are not holes. */
export async function* dataExtents(client: NbdClient): AsyncGenerator<Extent> {
  for (let at = 0; at < client.size;) {
    // The length of a request has 32 bits.
    const length = Math.min(client.size - at, 2 ** 30);
    for (const extent of await client.blockStatus(at, length)) {
      if (extent.kind === "data") yield extent;
      at = extent.offset + extent.length;
    }
  }
}
