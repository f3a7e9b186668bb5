/** `obd umount DIR`: undoes `obd mount`. */

import type { Context } from "./context.ts";
import { absolutePath } from "./mount_serve.ts";
import { MountDirectory, mountId } from "./mount_state.ts";
import { requireRoot, tearDown } from "./mount_steps.ts";

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
