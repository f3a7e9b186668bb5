/** `obd ls IMAGE [PATH]`: names, or everything about them, read through our ext4 reader. */

import { Ext4Reader, type InodeStat } from "../lib/image/mod.ts";
import type { ByteString } from "../lib/io/mod.ts";
import type { Context } from "./context.ts";
import { openSession } from "./image_option.ts";
import { lookUpPath, shownPath } from "./image_path.ts";
import { printLine } from "./stdout.ts";

const TYPE_LETTERS: Record<InodeStat["type"], string> = {
  file: "-",
  directory: "d",
  symlink: "l",
  char: "c",
  block: "b",
  fifo: "p",
  socket: "s",
};

interface Row {
  path: ByteString;
  stat: InodeStat;
  target: ByteString | undefined;
}

export async function run(
  context: Context,
  [image, path = ""]: string[],
  options: Record<string, unknown>,
): Promise<void> {
  await using session = await openSession(context, image!, options);
  const reader = await Ext4Reader.open(session.image.source);
  const start = await lookUpPath(reader, path, { follow: false });
  const rows: unknown[] = [];
  for await (const row of list(reader, start, options.recursive === true)) {
    context.signal.throwIfAborted();
    if (context.json) rows.push(jsonRow(row));
    else if (options.long) printLine(longRow(row));
    else printLine(shownPath(row.path));
  }
  context.result({ image: image!, entries: rows });
}

async function* list(
  reader: Ext4Reader,
  { ino, path }: { ino: number; path: ByteString },
  recursive: boolean,
): AsyncGenerator<Row> {
  const stat = await reader.stat(ino);
  if (stat.type !== "directory") {
    yield await rowOf(reader, path.replace(/^\/+/, ""), stat);
    return;
  }
  if (recursive) {
    for await (const entry of reader.walk(ino)) {
      if (entry.path === "") continue;
      yield await rowOf(reader, entry.path, reader.statOf(entry));
    }
    return;
  }
  const entries = await reader.readdir(ino);
  entries.sort((a, b) => a.name < b.name ? -1 : a.name > b.name ? 1 : 0);
  for (const entry of entries) {
    yield await rowOf(reader, entry.name, await reader.stat(entry.ino));
  }
}

async function rowOf(
  reader: Ext4Reader,
  path: ByteString,
  stat: InodeStat,
): Promise<Row> {
  const target = stat.type === "symlink"
    ? await reader.readlink(stat.ino)
    : undefined;
  return { path, stat, target };
}

function jsonRow({ path, stat, target }: Row) {
  return {
    path: shownPath(path),
    type: stat.type,
    mode: stat.mode,
    uid: stat.uid,
    gid: stat.gid,
    size: stat.size,
    links: stat.links,
    inode: stat.ino,
    mtime: stat.mtime,
    ...(target === undefined ? {} : { target: shownPath(target) }),
    ...(stat.type === "char" || stat.type === "block"
      ? { device: [stat.devMajor, stat.devMinor] }
      : {}),
  };
}

function longRow({ path, stat, target }: Row): string {
  const size = stat.type === "char" || stat.type === "block"
    ? `${stat.devMajor},${stat.devMinor}`
    : String(stat.size);
  const time = new Date(stat.mtime.seconds * 1000).toISOString()
    .replace("T", " ").replace(".000Z", "");
  const link = target === undefined ? "" : ` -> ${shownPath(target)}`;
  return `${TYPE_LETTERS[stat.type]}${permissions(stat.mode)} ${
    String(stat.links).padStart(3)
  } ${String(stat.uid).padStart(5)} ${String(stat.gid).padStart(5)} ${
    size.padStart(11)
  } ${time} ${shownPath(path)}${link}`;
}

/** `rwsr-xr-t` of 12 mode bits. */
function permissions(mode: number): string {
  const special = [mode & 0o4000, mode & 0o2000, mode & 0o1000];
  const letters = ["ss", "ss", "tt"];
  let text = "";
  for (let who = 0; who < 3; who++) {
    const bits = (mode >> (6 - 3 * who)) & 7;
    const x = (bits & 1) !== 0;
    text += (bits & 4 ? "r" : "-") + (bits & 2 ? "w" : "-");
    if (!special[who]) text += x ? "x" : "-";
    else text += x ? letters[who]![0] : letters[who]![0]!.toUpperCase();
  }
  return text;
}
