/** A stack flattened into one native layer file. */

import { LimitError } from "../io/mod.ts";
import {
  type LsmtSource,
  MAX_LAYER_ENTRIES,
  MAX_VIRTUAL_SIZE,
} from "./lsmt/mod.ts";
import {
  type BlockRun,
  blockRuns,
  entriesOf,
  joinedRuns,
  type MaterializeOptions,
} from "./materialize.ts";
import {
  type NativeBlob,
  type NativeFormat,
  writeNativeBlob,
} from "./native_layer.ts";

/** Unit in which gaps are closed: the file system's block. */
const BLOCK = 4096;

/**
 * Writes everything that a device's layers map as one layer blob. Where a layer
 * says "zeros" the result says so too, so that file systems can be continued on
 * it as on the stack. Only what one layer cannot say, a device in more than a
 * million shreds, is joined: by storing zeros in its smallest gaps.
 *
 * @param device Borrowed.
 * @param path A file that appears whole or not at all; one that is there is
 * replaced.
 * @throws {LimitError} If the device is larger than layers can be, or maps more
 * than some 8 TiB.
 */
export async function mergeLayers(
  device: LsmtSource,
  path: string,
  format: NativeFormat = {},
  options: MaterializeOptions = {},
): Promise<NativeBlob> {
  if (device.size > MAX_VIRTUAL_SIZE) {
    throw new LimitError(
      `Cannot write layer of a ${device.size}-byte device: limit is ${MAX_VIRTUAL_SIZE}`,
    );
  }
  const temp = `${path}.obd-${Deno.pid}.tmp`;
  try {
    const blob = await writeNativeBlob(
      temp,
      {
        device,
        runs: runsInOneLayer(device, options.maxEntries ?? MAX_LAYER_ENTRIES),
        virtualSize: device.size,
      },
      format,
      options,
    );
    await Deno.rename(temp, path);
    return blob;
  } catch (error) {
    await Deno.remove(temp).catch(() => {});
    throw error;
  }
}

function runsInOneLayer(
  { table, size }: LsmtSource,
  maxEntries: number,
): () => Iterable<BlockRun> {
  let runs = () => blockRuns(table, size);
  for (let gap = 0; countEntries(runs()) > maxEntries; gap = gap * 2 || BLOCK) {
    const most = gap;
    // Nothing is left to be joined.
    if (gap > 2 * size) {
      throw new LimitError(
        `Cannot write one layer of what a ${size}-byte device maps: it takes more than ${maxEntries} segments`,
      );
    }
    runs = () => joinedRuns(blockRuns(table, size), most);
  }
  return runs;
}

function countEntries(runs: Iterable<BlockRun>): number {
  let count = 0;
  for (const run of runs) count += entriesOf(run);
  return count;
}
