/**
 * The tree on a device, one line per entry in the form of
 * `tests/interop/tree.py`, read with our own ext4 reader: so that trees can be
 * compared without mounting anything.
 */

import { createHash } from "node:crypto";
import { Ext4Reader } from "../../lib/ext4/mod.ts";
import {
  bytesFromLatin1,
  type ByteSource,
  readBytes,
  toHex,
} from "../../lib/io/mod.ts";

const LETTERS = {
  file: "-",
  directory: "d",
  symlink: "l",
  char: "c",
  block: "b",
  fifo: "p",
  socket: "s",
} as const;
const PIECE = 4 * 1024 * 1024;

/** Lines sorted by path. */
export async function deviceTree(device: ByteSource): Promise<string[]> {
  const reader = await Ext4Reader.open(device);
  const entries: { path: string; ino: number; links: number }[] = [];
  for await (const { path, ino, inode } of reader.walk()) {
    entries.push({ path, ino, links: inode.links });
  }
  entries.sort((a, b) => a.path < b.path ? -1 : a.path > b.path ? 1 : 0);
  const groups = new Map<number, string>();
  const lines: string[] = [];
  for (const { path, ino } of entries) {
    lines.push(await line(reader, text(path), ino, groups));
  }
  return lines;
}

/** The lines that `tree.py` printed, in the same spelling as {@linkcode deviceTree}'s. */
export function parseTree(output: string): string[] {
  return output.trim().split("\n").map((json) =>
    // Nanoseconds since 1970 are beyond what a double holds.
    JSON.stringify(
      JSON.parse(json.replace(/"mtime": (-?[0-9]+)/, '"mtime": "$1"')),
    )
  );
}

/** Fails with the lines that differ, `-` only wanted and `+` only there. */
export function sameTree(
  got: readonly string[],
  want: readonly string[],
): void {
  const has = [new Set(got), new Set(want)] as const;
  const differing = [
    ...want.filter((l) => !has[0].has(l)).map((l) => `- ${l}`),
    ...got.filter((l) => !has[1].has(l)).map((l) => `+ ${l}`),
  ];
  if (differing.length === 0 && got.length === want.length) return;
  const shown = differing.slice(0, 20).map((l) => l.slice(0, 500)).join("\n");
  throw new Error(`trees differ in ${differing.length} lines:\n${shown}`);
}

async function line(
  reader: Ext4Reader,
  path: string,
  ino: number,
  groups: Map<number, string>,
): Promise<string> {
  const stat = await reader.stat(ino);
  const entry: Record<string, unknown> = {
    path,
    type: LETTERS[stat.type],
    mode: `0o${(stat.mode & 0o7777).toString(8)}`,
    uid: stat.uid,
    gid: stat.gid,
    mtime: String(
      BigInt(stat.mtime.seconds) * 1_000_000_000n +
        BigInt(stat.mtime.nanoseconds),
    ),
  };
  const xattrs: Record<string, string> = {};
  for (const { name, value } of await xattrsOf(reader, ino)) {
    xattrs[text(name)] = toHex(value);
  }
  if (Object.keys(xattrs).length > 0) entry.xattrs = xattrs;
  if (stat.type === "symlink") {
    entry.target = toHex(bytesFromLatin1(await reader.readlink(ino)));
  } else if (stat.type === "file") {
    entry.size = stat.size;
    entry.sha256 = await contentHash(reader, ino);
  } else if (stat.type === "char" || stat.type === "block") {
    entry.rdev = [stat.devMajor, stat.devMinor];
  }
  if (stat.type !== "directory" && stat.links > 1) {
    if (!groups.has(ino)) groups.set(ino, path);
    entry.group = groups.get(ino);
    entry.links = stat.links;
  }
  return JSON.stringify(
    Object.fromEntries(
      Object.entries(entry).sort(([a], [b]) => a < b ? -1 : 1),
    ),
  );
}

async function xattrsOf(
  reader: Ext4Reader,
  ino: number,
): Promise<{ name: string; value: Uint8Array }[]> {
  const list = (await reader.xattrs(ino)).map(([name, value]) => ({
    name,
    value,
  }));
  return list.sort((a, b) => a.name < b.name ? -1 : 1);
}

async function contentHash(reader: Ext4Reader, ino: number): Promise<string> {
  const hash = createHash("sha256");
  await using body = await reader.openFile(ino);
  for (let at = 0; at < body.size; at += PIECE) {
    hash.update(await readBytes(body, at, Math.min(PIECE, body.size - at)));
  }
  return hash.digest("hex");
}

/** Bytes that are no UTF-8 become `\udcXX`, as in tree.py. */
function text(name: string): string {
  const bytes = bytesFromLatin1(name);
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const decode = (from: number, to: number) => {
    try {
      return decoder.decode(bytes.subarray(from, to));
    } catch {
      return undefined;
    }
  };
  let out = "";
  for (let at = 0; at < bytes.length;) {
    let length = 1;
    let part = decode(at, at + 1);
    while (part === undefined && length < 4 && at + length < bytes.length) {
      part = decode(at, at + ++length);
    }
    out += part ?? `\\udc${bytes[at]!.toString(16)}`;
    at += part === undefined ? 1 : length;
  }
  return out;
}
