/** `obd attach IMAGE`: an image's merged layers as a read-only block device. */

import { ObdError } from "../lib/io/mod.ts";
import type { Context } from "./context.ts";
import { mountResult } from "./mount.ts";
import { chooseDriver } from "./mount_device.ts";
import { MountDirectory, mountId } from "./mount_state.ts";
import {
  absoluteImage,
  isAlive,
  makeMount,
  requireRoot,
  tearDown,
} from "./mount_steps.ts";

import { type PrefetchFlags, prefetchRequest } from "./prefetch_options.ts";

/** Attachments of one image. */
const SAME_IMAGE_MAX = 1000;

interface AttachFlags extends PrefetchFlags {
  api?: string;
  device?: string;
  platform?: string;
}

export async function run(
  context: Context,
  [image]: string[],
  options: Record<string, unknown>,
): Promise<void> {
  const flags = options as AttachFlags;
  const started = performance.now();
  const prefetch = prefetchRequest(flags);
  requireRoot("attach");
  const driver = await chooseDriver(flags.device);
  using directory = await freeDirectory(absoluteImage(image!));
  const state = await makeMount(context, directory, {
    image: image!,
    platform: flags.platform,
    prefetch,
    dir: undefined,
    driver,
    device: flags.device,
    api: flags.api,
  });
  context.say(state.device!);
  context.result(mountResult(state, started));
}

/** The first id of this image that nothing lives under. */
async function freeDirectory(image: string): Promise<MountDirectory> {
  for (let n = 0; n < SAME_IMAGE_MAX; n++) {
    let directory: MountDirectory;
    try {
      directory = await MountDirectory.open(
        mountId("attach", image, String(n)),
      );
    } catch (error) {
      if (error instanceof ObdError && error.code === "conflict") continue;
      throw error;
    }
    const state = await directory.read();
    if (!state || !await isAlive(directory, state)) {
      // What a command that was killed left.
      if (state) await tearDown(directory, state);
      return directory;
    }
    directory[Symbol.dispose]();
  }
  throw new ObdError(
    "limit",
    `"${image}" is attached ${SAME_IMAGE_MAX} times already`,
  );
}
