/** `obd mount IMAGE DIR`: an image's merged layers as a read-only file system. */

import { ObdError } from "../lib/io/mod.ts";
import type { Context } from "./context.ts";
import { chooseDriver } from "./mount_device.ts";
import { findProgram } from "./mount_process.ts";
import { MountDirectory, mountId, type MountState } from "./mount_state.ts";
import { type PrefetchFlags, prefetchRequest } from "./prefetch_options.ts";
import { isAlive, makeMount, requireRoot, tearDown } from "./mount_steps.ts";

interface MountFlags extends PrefetchFlags {
  api?: string;
  platform?: string;
}

export async function run(
  context: Context,
  [image, dirArgument]: string[],
  options: Record<string, unknown>,
): Promise<void> {
  const flags = options as MountFlags;
  const started = performance.now();
  const prefetch = prefetchRequest(flags);
  requireRoot("mount");
  const dir = await mountPoint(dirArgument!);
  findProgram("mount");
  findProgram("umount");
  const driver = await chooseDriver(undefined);
  using directory = await MountDirectory.open(mountId("mount", dir));
  await clearStale(context, directory, dir);
  const state = await makeMount(context, directory, {
    image: image!,
    platform: flags.platform,
    prefetch,
    dir,
    driver,
    device: undefined,
    api: flags.api,
  });
  context.say(`${state.image} is mounted at ${dir} (${state.device})`);
  context.result(mountResult(state, started));
}

async function mountPoint(argument: string): Promise<string> {
  let dir: string;
  try {
    dir = await Deno.realPath(argument);
    if ((await Deno.stat(dir)).isDirectory) return dir;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) {
      throw new ObdError("not-found", `Directory "${argument}" is not there`);
    }
    throw new ObdError("state", `Cannot use directory "${argument}"`, {
      cause: error,
    });
  }
  throw new ObdError("state", `"${argument}" is no directory`);
}

/** Removes what a command that was killed left; refuses what is in use. */
async function clearStale(
  context: Context,
  directory: MountDirectory,
  dir: string,
): Promise<void> {
  const state = await directory.read();
  if (!state) return;
  if (await isAlive(directory, state)) {
    throw new ObdError(
      "conflict",
      `Cannot mount at "${dir}": "${state.image}" is mounted there (obd umount ${dir})`,
    );
  }
  context.log.warn("removing what an earlier mount left", {
    dir,
    image: state.image,
  });
  await tearDown(directory, state);
}

/** The JSON of `mount` and `attach`. */
export function mountResult(state: MountState, started: number) {
  return {
    ...describeState(state),
    seconds: Math.round(performance.now() - started) / 1000,
  };
}

/** A state for people's scripts. */
export function describeState(state: MountState) {
  return {
    id: state.id,
    kind: state.kind,
    image: state.image,
    dir: state.dir ?? null,
    device: state.device ?? null,
    driver: state.driver,
    fsType: state.fsType ?? null,
    export: state.export,
    uri: state.uri ?? null,
    api: state.api,
    servePid: state.serve?.pid ?? null,
    size: state.size ?? null,
    integrity: state.integrity ?? null,
    source: state.source ?? null,
    meta: state.meta ?? null,
    started: state.started,
  };
}
