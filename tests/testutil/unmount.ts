/** Undoing mounts and loop devices, beside tests that start processes of their own. */

import { until } from "./until.ts";

/**
 * Unmounts what this process had files open in. That may take more than one
 * attempt: a child of a test beside this one that is between fork and exec has
 * them open too.
 */
export async function unmount(dir: string): Promise<void> {
  let said = "";
  let isDone = false;
  await until(async () => {
    const { success, stderr } = await new Deno.Command("umount", {
      args: [dir],
      env: { LC_ALL: "C" },
      stdin: "null",
      stdout: "null",
    }).output();
    said = new TextDecoder().decode(stderr).trim();
    isDone = success;
    return isDone || !said.includes("busy");
  }, `umount ${dir}`);
  if (!isDone) throw new Error(said);
}

/**
 * Detaches a loop device that was mounted, and waits until nobody has it. A
 * mount namespace that has just been made holds a copy of the mount for a
 * moment, and as long as it does, not all is written that was changed.
 */
export async function detachLoop(loop: string, file: string): Promise<void> {
  const { success, stderr } = await new Deno.Command("losetup", {
    args: ["-d", loop],
    stdin: "null",
    stdout: "null",
  }).output();
  if (!success) throw new Error(new TextDecoder().decode(stderr));
  const sys = `/sys/block/${loop.slice("/dev/".length)}/loop/backing_file`;
  await until(
    async () => (await Deno.readTextFile(sys).catch(() => "")).trim() !== file,
    `losetup -d ${loop}`,
  );
}
