/** Who keeps a mount or a device busy: processes, and mounts on top, in every namespace. */

import { parseMountInfo } from "./mount_table.ts";

const NAMED_MAX = 10;

/** What is in use. */
export interface InUse {
  /** Mount point. */
  dir?: string | undefined;
  /** Block device. */
  device?: string | undefined;
  /** Its `major:minor`. */
  number?: string | undefined;
}

/** Mounts that use it, other than the one at its mount point. */
export function mountHolders(
  mountInfo: string,
  { dir, number }: InUse,
): string[] {
  return parseMountInfo(mountInfo).flatMap((entry) => {
    if (number !== undefined && entry.device === number) {
      return entry.mountPoint === dir ? [] : [`mount "${entry.mountPoint}"`];
    }
    if (dir === undefined) return [];
    // Mounts inside of it, and overlays that have it as a lower layer.
    if (entry.mountPoint.startsWith(`${dir}/`)) {
      return [`mount "${entry.mountPoint}"`];
    }
    const lower = entry.fsType === "overlay" &&
      entry.options.split(/[,=:]/).some((path) => isInside(path, dir));
    return lower ? [`overlay "${entry.mountPoint}"`] : [];
  });
}

function isInside(path: string, dir: string): boolean {
  return path === dir || path.startsWith(`${dir}/`);
}

/**
 * Everything that can be found, as texts for an error; the longest list is cut.
 *
 * @param options.copies Whether copies of the mount in other namespaces count
 *   though processes hold it, too. They keep a device busy; but umount(2) undoes
 *   those of every service with a namespace of its own along with ours.
 */
export async function findHolders(
  used: InUse,
  { copies = true } = {},
): Promise<string[]> {
  const own = await Deno.readTextFile("/proc/self/mountinfo");
  const found = new Set(mountHolders(own, used));
  const foreign = new Set<string>();
  const seen = new Set([await namespaceOf("self")]);
  for await (const { name: pid } of Deno.readDir("/proc")) {
    if (!/^\d+$/.test(pid)) continue;
    const what = await processUse(pid, used);
    if (what !== undefined) {
      found.add(`process ${pid} (${await commandOf(pid)}: ${what})`);
    }
    const namespace = await namespaceOf(pid);
    if (namespace === undefined || seen.has(namespace)) continue;
    seen.add(namespace);
    await addForeignMounts(foreign, pid, used);
  }
  const list = [...found];
  if (copies || list.length === 0) list.push(...foreign);
  return list.length <= NAMED_MAX
    ? list
    : [...list.slice(0, NAMED_MAX), `${list.length - NAMED_MAX} more`];
}

async function addForeignMounts(
  found: Set<string>,
  pid: string,
  used: InUse,
): Promise<void> {
  let text: string;
  try {
    text = await Deno.readTextFile(`/proc/${pid}/mountinfo`);
  } catch {
    return; // It has ended.
  }
  // There the mount point itself counts: it is a copy of its own.
  for (const holder of mountHolders(text, { ...used, dir: undefined })) {
    found.add(`${holder} of process ${pid} (${await commandOf(pid)})`);
  }
}

/** How a process uses it, in words. */
async function processUse(
  pid: string,
  { dir, device, number }: InUse,
): Promise<string | undefined> {
  const matches = (path: string | undefined) =>
    path !== undefined && (
      (dir !== undefined && isInside(path, dir)) ||
      (device !== undefined && path === device)
    );
  const at = `/proc/${pid}`;
  if (matches(await linkOf(`${at}/cwd`))) return "working directory";
  if (matches(await linkOf(`${at}/root`))) return "root directory";
  const program = await linkOf(`${at}/exe`);
  if (matches(program)) return `running "${program}"`;
  try {
    for await (const { name } of Deno.readDir(`${at}/fd`)) {
      const path = await linkOf(`${at}/fd/${name}`);
      if (matches(path)) return `open "${path}"`;
    }
  } catch {
    // It has ended, or is not ours to look at.
  }
  return number === undefined ? undefined : await mappingOf(at, number);
}

/** A file mapped into memory, by the number of its device. */
async function mappingOf(
  at: string,
  number: string,
): Promise<string | undefined> {
  // maps has hexadecimal numbers of at least two digits.
  const hex = number.split(":").map((n) =>
    Number(n).toString(16).padStart(2, "0")
  ).join(":");
  try {
    const maps = await Deno.readTextFile(`${at}/maps`);
    const line = maps.split("\n").find((l) => l.split(" ")[3] === hex);
    if (!line) return undefined;
    return `mapped "${line.split(/\s+/).slice(5).join(" ")}"`;
  } catch {
    return undefined;
  }
}

async function linkOf(path: string): Promise<string | undefined> {
  return await Deno.readLink(path).catch(() => undefined);
}

async function commandOf(pid: string): Promise<string> {
  const text = await Deno.readTextFile(`/proc/${pid}/comm`).catch(() => "?");
  return text.trim().replaceAll(/\p{Cc}/gu, "?");
}

async function namespaceOf(pid: string): Promise<string | undefined> {
  return await linkOf(`/proc/${pid}/ns/mnt`);
}
