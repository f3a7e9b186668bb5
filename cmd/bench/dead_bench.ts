/**
 * What a bench leaves that was killed, and how the next one on the same cache
 * undoes it. A bench writes into the cache's lock file who it is, and empties
 * the file at its end. So whoever gets the lock and finds an entry knows that
 * the bench of the entry is dead, and what its things are called:
 *
 * - processes by a random id in their environment, which they all inherit;
 * - mounts and loop devices by its directories;
 * - directory, control groups, network namespace and veth pair by its process
 *   id. Such names are left alone if a living bench may have them.
 */

import * as v from "valibot";
import { fromUtf8 } from "../../lib/io/mod.ts";
import { runProgram, waitUntil } from "../mount_process.ts";
import { readMounts, readSys } from "../mount_table.ts";
import { endCgroup, endContainerCgroups } from "./cgroups.ts";
import { networkNames } from "./link.ts";
import { removeTree, runDirectory } from "./run_files.ts";

/** In the environment of every process of a bench. */
const ID_VARIABLE = "OBD_BENCH_ID";
const RECORD_SIZE_MAX = 1024;
/** A serve finishes what it answers; then it is killed. */
const END_DEADLINE_MS = 5_000;

const recordSchema = v.object({
  pid: v.pipe(v.number(), v.integer(), v.minValue(2)),
  id: v.pipe(v.string(), v.uuid()),
});

/** A bench, as the cache's lock file names it. */
export type BenchRecord = v.InferOutput<typeof recordSchema>;

/** What the last bench wrote that had the lock; undefined if it ended well. */
export async function readRecord(
  lock: Deno.FsFile,
): Promise<BenchRecord | undefined> {
  const bytes = new Uint8Array(RECORD_SIZE_MAX);
  await lock.seek(0, Deno.SeekMode.Start);
  const length = await lock.read(bytes) ?? 0;
  try {
    return v.parse(
      recordSchema,
      JSON.parse(fromUtf8(bytes.subarray(0, length))),
    );
  } catch {
    return undefined; // Empty, or not whole: killed before it made anything.
  }
}

/** Writes who has the lock; from now on every process that is started is marked. */
export async function writeRecord(lock: Deno.FsFile): Promise<void> {
  const record: BenchRecord = { pid: Deno.pid, id: crypto.randomUUID() };
  const bytes = new TextEncoder().encode(JSON.stringify(record) + "\n");
  await clearRecord(lock);
  await lock.seek(0, Deno.SeekMode.Start);
  for (let at = 0; at < bytes.length;) {
    at += await lock.write(bytes.subarray(at));
  }
  Deno.env.set(ID_VARIABLE, record.id);
}

/** To be called when nothing of this bench is left. */
export async function clearRecord(lock: Deno.FsFile): Promise<void> {
  await lock.truncate(0);
}

/**
 * Undoes what a dead bench left.
 *
 * @param cache The cache of both benches, whose lock the caller has.
 * @returns What it was, for people; empty if there was nothing.
 */
export async function undoDeadBench(
  { pid, id }: BenchRecord,
  cache: string,
): Promise<string[]> {
  const undone: string[] = [];
  const runDir = runDirectory(cache, pid);
  const hasNames = !await mayBeAnothers(pid);
  if (hasNames) await endContainerCgroups(`obd-bench-${pid}`);
  // While whoever serves the devices is still there.
  const dirs = [`${cache}/work`, ...(hasNames ? [runDir] : [])];
  const loops = hasNames ? await loopsBelow(runDir) : [];
  const mounts = await unmountBelow(dirs);
  if (mounts > 0) undone.push(counted(mounts, "mount"));
  for (const loop of loops) {
    await runProgram("losetup", ["-d", loop]).catch(() => {});
    undone.push(loop);
  }
  const processes = await endMarked(id);
  if (processes > 0) undone.push(counted(processes, "process", "es"));
  // nbdfuse's own mount, where it could not undo it.
  await unmountBelow(dirs);
  if (!hasNames) return undone;
  const { namespace, outer } = networkNames(pid);
  for (
    const [path, args] of [
      [`/run/netns/${namespace}`, ["netns", "del", namespace]],
      [`/sys/class/net/${outer}`, ["link", "del", outer]],
    ] as const
  ) {
    if (!await exists(path)) continue;
    await runProgram("ip", [...args]).catch(() => {});
    undone.push(args.at(-1)!);
  }
  await endCgroup(`/obd-bench-${pid}`);
  if (await exists(runDir)) {
    await removeTree(runDir);
    undone.push(runDir);
  }
  return undone;
}

function counted(count: number, what: string, plural = "s"): string {
  return `${count} ${what}${count === 1 ? "" : plural}`;
}

/** Whether a process runs that may be a bench with the same names: ids are reused, and cut to 16 bits in some. */
async function mayBeAnothers(pid: number): Promise<boolean> {
  for (const name of await processIds()) {
    const other = Number(name);
    // This bench has not made anything yet.
    if (other === Deno.pid || other % 65536 !== pid % 65536) continue;
    const command = await Deno.readTextFile(`/proc/${name}/cmdline`)
      .catch(() => "");
    if (command.split("\0").includes("bench")) return true;
  }
  return false;
}

async function processIds(): Promise<string[]> {
  const ids: string[] = [];
  for await (const { name } of Deno.readDir("/proc")) {
    if (/^\d+$/.test(name)) ids.push(name);
  }
  return ids;
}

/** Ends every process of a bench. @returns How many there were. */
async function endMarked(id: string): Promise<number> {
  const seen = new Set<string>();
  const end = async (signals: Deno.Signal[]) =>
    await waitUntil(async () => {
      const running = await markedProcesses(id);
      for (const pid of running) {
        seen.add(pid);
        for (const signal of signals) {
          try {
            Deno.kill(Number(pid), signal);
          } catch {
            // Ended in between.
          }
        }
      }
      return running.length === 0;
    }, END_DEADLINE_MS);
  // A stopped process gets a signal only when it goes on.
  if (!await end(["SIGTERM", "SIGCONT"])) await end(["SIGKILL"]);
  return seen.size;
}

async function markedProcesses(id: string): Promise<string[]> {
  const found: string[] = [];
  for (const pid of await processIds()) {
    if (Number(pid) === Deno.pid) continue;
    // Empty for those that have ended and wait for their parent.
    const environment = await Deno.readTextFile(`/proc/${pid}/environ`)
      .catch(() => "");
    const isMarked = environment.split("\0").includes(`${ID_VARIABLE}=${id}`);
    if (isMarked) found.push(pid);
  }
  return found;
}

/** Lazily, the last one first. @returns How many there were. */
async function unmountBelow(dirs: string[]): Promise<number> {
  const points = (await readMounts()).map((entry) => entry.mountPoint)
    .filter((point) => dirs.some((dir) => point.startsWith(`${dir}/`)));
  for (const point of points.reverse()) {
    await runProgram("umount", ["-l", point]).catch(() => {});
  }
  return points.length;
}

async function loopsBelow(dir: string): Promise<string[]> {
  const found: string[] = [];
  for await (const { name } of Deno.readDir("/sys/block")) {
    const file = await readSys(`/sys/block/${name}/loop/backing_file`);
    if (file?.startsWith(`${dir}/`)) found.push(`/dev/${name}`);
  }
  return found;
}

async function exists(path: string): Promise<boolean> {
  return await Deno.lstat(path).then(() => true, () => false);
}
