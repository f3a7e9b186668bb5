/** `obd umount DIR`: undoes `obd mount`. */

import { ObdError } from "../lib/io/mod.ts";
import type { Context } from "./context.ts";
import { absolutePath } from "./mount_serve.ts";
import { MountDirectory, mountId, mountsDirectory } from "./mount_state.ts";
import { requireRoot, tearDown } from "./mount_steps.ts";
import { mountAt, readMounts } from "./mount_table.ts";

export async function run(
  context: Context,
  [dirArgument]: string[],
  _options: Record<string, unknown>,
): Promise<void> {
  requireRoot("unmount");
  const dir = await realPath(dirArgument!);
  // This process must not be the one that keeps it busy.
  Deno.chdir("/");
  using directory = await MountDirectory.open(mountId("mount", dir));
  const state = await directory.read();
  if (state) await tearDown(directory, state);
  else await requireNoMount(dir);
  context.say(
    state
      ? `${dir} is unmounted (${state.image})`
      : `obd has nothing mounted at ${dir}`,
  );
  context.result({
    dir,
    id: directory.id,
    image: state?.image ?? null,
    unmounted: state !== undefined,
  });
}

/** A mount that no state tells of must not pass for one that is gone. */
async function requireNoMount(dir: string): Promise<void> {
  const there = mountAt(await readMounts(), dir);
  if (!there) return;
  throw new ObdError(
    "state",
    `Cannot unmount "${dir}": what is mounted there (${there.fsType}, ${there.source}) is not in ${mountsDirectory()}: set OBD_RUN_DIR as for obd mount, or use umount(8)`,
  );
}

/** The mount point's path, also when what is mounted there does not answer. */
async function realPath(argument: string): Promise<string> {
  try {
    return await Deno.realPath(argument);
  } catch {
    const path = absolutePath(argument).replace(/\/+$/, "");
    const cut = path.lastIndexOf("/");
    const parent = path.slice(0, cut) || "/";
    const real = await Deno.realPath(parent).catch(() => parent);
    return `${real === "/" ? "" : real}/${path.slice(cut + 1)}`;
  }
}
