/** A stack flattened into one native layer file. */

import { LimitError } from "../io/mod.ts";
import { type LsmtSource, MAX_VIRTUAL_SIZE } from "./lsmt/mod.ts";
import type { MaterializeOptions } from "./materialize.ts";
import {
  type NativeBlob,
  type NativeFormat,
  writeNativeBlob,
} from "./native_layer.ts";

/**
 * Writes everything that a device's layers map as one layer blob. Where a layer
 * says "zeros" the result says so too, so that file systems can be continued on
 * it as on the stack.
 *
 * @param device Borrowed.
 * @param path A file that appears whole or not at all; one that is there is
 * replaced.
 * @throws {LimitError} If the device is larger than layers can be.
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
      { device, table: device.table, virtualSize: device.size },
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
