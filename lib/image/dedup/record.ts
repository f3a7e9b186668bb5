/** What was pushed is noted in the database of conversions, for others to find. */

import type { BuiltImage } from "../build.ts";
import { chainId } from "../chain_key.ts";
import type { ChainRow, LayerRow, Place } from "./database.ts";
import type { GuardedDatabase } from "./guard.ts";

/**
 * Notes an image whose manifest is in `place`. Rows that others wrote in the
 * meantime are as good: they stay.
 */
export async function recordImage(
  database: GuardedDatabase,
  place: Place,
  image: BuiltImage,
): Promise<void> {
  await recordChains(database, place, image);
  const isFlat = image.layers.length !== image.source.manifest.layers.length;
  if (image.format !== "overlaybd" || isFlat) return;
  await recordLayers(database, place, image);
  const { mediaType, digest, size } = image.documents.manifest.descriptor;
  await database.change((db) =>
    db.addManifest({
      ...place,
      sourceDigest: image.source.resolved.descriptor.digest,
      digest,
      size,
      mediaType,
    })
  );
}

/** Every prefix, under the newest image that has it: that one is there for sure. */
async function recordChains(
  database: GuardedDatabase,
  place: Place,
  image: BuiltImage,
): Promise<void> {
  const manifestDigest = image.documents.manifest.descriptor.digest;
  const known = new Map<string, ChainRow>();
  const keys = image.chains.map(({ key }) => key);
  await database.change(async (db) => {
    for (const row of await db.findChains(place, keys)) {
      if (row.repository === place.repository) known.set(row.chainKey, row);
    }
  });
  for (const { key: chainKey, count: layerCount } of image.chains) {
    const row = { ...place, chainKey, manifestDigest, layerCount };
    const old = known.get(chainKey);
    if (old?.manifestDigest === manifestDigest) continue;
    await database.change(async (db) => {
      if (old) await db.deleteChain(old);
      await db.addChain(row);
    });
  }
}

/**
 * overlaybd's convertor takes each layer by itself from wherever it finds one,
 * and a layer is good only on those that it was made on. So if another layer is
 * known for any of these chains, none of ours is noted beside it.
 */
async function recordLayers(
  database: GuardedDatabase,
  place: Place,
  image: BuiltImage,
): Promise<void> {
  const { diffIds } = image.source.config;
  const rows: LayerRow[] = [];
  for (const [i, { parts }] of image.layers.entries()) {
    // A layer that became several has no row of that form.
    if (parts.length !== 1) break;
    const { digest, size } = parts[0]!;
    const id = chainId(diffIds.slice(0, i + 1));
    rows.push({ ...place, chainId: id, digest, size });
  }
  await database.change(async (db) => {
    for (const row of rows) if (await db.hasOtherLayer(row)) return;
    for (const row of rows) await db.addLayer(row);
  });
}
