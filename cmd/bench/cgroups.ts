/** Control groups of a bench that outlive whoever made them. */

import { waitUntil } from "../mount_process.ts";

const CGROUPS = "/sys/fs/cgroup";
/** Where `ctr run` puts containers. */
const CONTAINERS = "default";
const END_DEADLINE_MS = 5_000;

/** Ends the containers whose id is a name, or begins with it and "-". */
export async function endContainerCgroups(name: string): Promise<void> {
  const ids = new Set<string>();
  for (const base of await hierarchies()) {
    try {
      for await (const entry of Deno.readDir(`${base}/${CONTAINERS}`)) {
        const isOne = entry.name === name || entry.name.startsWith(`${name}-`);
        if (entry.isDirectory && isOne) ids.add(entry.name);
      }
    } catch {
      // No containers in this one.
    }
  }
  for (const id of ids) await endCgroup(`/${CONTAINERS}/${id}`);
}

/** Of version 2, and each of version 1. */
async function hierarchies(): Promise<string[]> {
  const bases = [CGROUPS];
  try {
    for await (const { name, isDirectory } of Deno.readDir(CGROUPS)) {
      if (isDirectory) bases.push(`${CGROUPS}/${name}`);
    }
  } catch {
    // Not mounted: then nothing is in one.
  }
  return bases;
}

/**
 * Kills what is in a control group of any hierarchy, and removes it.
 *
 * @param path In the hierarchy, e.g. "/default/ID".
 */
export async function endCgroup(path: string): Promise<void> {
  for (const base of await hierarchies()) {
    const dir = `${base}${path}`;
    await waitUntil(async () => {
      const pids = await Deno.readTextFile(`${dir}/cgroup.procs`)
        .catch(() => undefined);
      if (pids === undefined) return true;
      for (const pid of pids.split("\n").filter((line) => line !== "")) {
        try {
          Deno.kill(Number(pid), "SIGKILL");
        } catch {
          // Ended in between.
        }
      }
      return await Deno.remove(dir).then(() => true, () => false);
    }, END_DEADLINE_MS);
  }
}
