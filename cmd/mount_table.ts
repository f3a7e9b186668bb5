/** What the kernel says about mounts and block devices: /proc/self/mountinfo and /sys/block. */

import { errorText, fromUtf8, ObdError } from "../lib/io/mod.ts";

/** One line of mountinfo (proc(5)). */
export interface MountEntry {
  /** `major:minor`. */
  device: string;
  mountPoint: string;
  fsType: string;
  source: string;
  /** Options of the file system, e.g. the lower directories of an overlay. */
  options: string;
}

/** Reads a mount table. */
export function parseMountInfo(text: string): MountEntry[] {
  return text.split("\n").flatMap((line) => {
    const [before, after] = line.split(" - ");
    const head = before?.split(" ") ?? [];
    const tail = after?.split(" ") ?? [];
    if (head.length < 6 || tail.length < 2) return [];
    return [{
      device: head[2]!,
      mountPoint: unescape(head[4]!),
      fsType: tail[0]!,
      source: unescape(tail[1]!),
      options: unescape(tail.slice(2).join(" ")),
    }];
  });
}

/** Space, tab, newline and backslash are written as octal numbers there. */
function unescape(text: string): string {
  return text.replaceAll(
    /\\([0-7]{3})/g,
    (_, octal: string) => String.fromCharCode(parseInt(octal, 8)),
  );
}

/** The mount table as this process sees it; later entries lie over earlier ones. */
export async function readMounts(): Promise<MountEntry[]> {
  return parseMountInfo(await Deno.readTextFile("/proc/self/mountinfo"));
}

/** The entry that is seen at a directory, if it is a mount point. */
export function mountAt(
  mounts: MountEntry[],
  dir: string,
): MountEntry | undefined {
  return mounts.findLast((entry) => entry.mountPoint === dir);
}

/** `/dev/loop3` → `loop3`. */
export function deviceName(device: string): string {
  return device.slice(device.lastIndexOf("/") + 1);
}

/** `major:minor` of a block device, from sysfs. */
export async function deviceNumber(
  device: string,
): Promise<string | undefined> {
  return await readSys(`/sys/block/${deviceName(device)}/dev`);
}

/** One line of sysfs; undefined when it is not there. */
export async function readSys(path: string): Promise<string | undefined> {
  try {
    return fromUtf8(await Deno.readFile(path)).replace(/\n$/, "");
  } catch {
    return undefined;
  }
}

/**
 * Whether a file system on the device is alive, visible or not: an overlay or
 * a mount namespace may hold one that no mount table of ours shows.
 */
export async function hasFileSystem(device: string): Promise<boolean> {
  const name = deviceName(device);
  for (const path of [`/sys/fs/ext4/${name}`, `/sys/fs/erofs/${name}`]) {
    if (await Deno.lstat(path).then(() => true, () => false)) return true;
  }
  return false;
}

/** The loop devices that show a file. */
export async function loopsOf(backingFile: string): Promise<string[]> {
  const found: string[] = [];
  for await (const { name } of Deno.readDir("/sys/block")) {
    if (!name.startsWith("loop")) continue;
    const backing = await readSys(`/sys/block/${name}/loop/backing_file`);
    if (backing === backingFile) found.push(`/dev/${name}`);
  }
  return found.sort();
}

const EXT4_MAGIC_AT = 1024 + 0x38;
const EROFS_MAGIC = 0xe0f5e1e2;

/**
 * The file system on a device, by its magic number (`s_magic` of ext4's
 * superblock; the first word of EROFS's, both at byte 1024).
 *
 * @throws {ObdError} If the device cannot be read.
 */
export async function probeFileSystem(
  device: string,
): Promise<"ext4" | "erofs" | undefined> {
  const bytes = new Uint8Array(4096);
  try {
    using file = await Deno.open(device);
    for (let at = 0; at < bytes.length;) {
      const got = await file.read(bytes.subarray(at));
      if (got === null) return undefined;
      at += got;
    }
  } catch (error) {
    throw new ObdError(
      "state",
      `Cannot read "${device}": ${errorText(error)}`,
      { cause: error },
    );
  }
  const view = new DataView(bytes.buffer);
  if (view.getUint16(EXT4_MAGIC_AT, true) === 0xef53) return "ext4";
  if (view.getUint32(1024, true) === EROFS_MAGIC) return "erofs";
  return undefined;
}
