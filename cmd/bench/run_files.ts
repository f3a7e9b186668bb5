/** The files of one run: removed with what is mounted among them, and measured. */

import { runProgram } from "../mount_process.ts";
import { readMounts } from "../mount_table.ts";
import { runTool } from "./process.ts";

const REMOVE_DEADLINE_MS = 120_000;

/** Removes a directory; what is still mounted below it is unmounted first, never deleted. */
export async function removeTree(path: string): Promise<void> {
  const mounts = (await readMounts()).map((entry) => entry.mountPoint)
    .filter((dir) => dir.startsWith(`${path}/`));
  for (const dir of mounts.reverse()) {
    await runProgram("umount", ["-l", dir]).catch(() => {});
  }
  // umoci unpacks directories that even their owner may not write to.
  if (Deno.uid() !== 0) {
    await runProgram("chmod", ["-R", "u+rwX", path], REMOVE_DEADLINE_MS)
      .catch(() => {});
  }
  await runProgram("rm", ["-rf", "--one-file-system", path], REMOVE_DEADLINE_MS)
    .catch(() => {});
}

/** Bytes that directories take on disk; what goes while they are looked at does not count. */
export async function diskUse(
  paths: string[],
  signal: AbortSignal,
): Promise<number> {
  const out = await runTool(
    "measure disk use",
    ["sh", "-c", 'du -skx "$@" || [ $? = 1 ]', "sh", ...paths],
    signal,
  );
  const kibibytes = [...out.matchAll(/^(\d+)\t/gm)].map(([, text]) =>
    Number(text)
  );
  return kibibytes.reduce((sum, one) => sum + one, 0) * 1024;
}

/**
 * A bench's directory for sockets, whose paths must be short.
 *
 * @param pid Of the bench.
 */
export function runDirectory(cache: string, pid: number): string {
  const base = Deno.uid() === 0
    ? "/run"
    : Deno.env.get("XDG_RUNTIME_DIR") || `${cache}/run`;
  return `${base}/obd-bench-${pid}`;
}
