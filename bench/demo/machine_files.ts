/**
 * Files of this machine as layer entries: some 96 MB of what any Linux has,
 * readable by a normal user, in a fixed order. Where a machine has too little
 * of that (a slim container), the running `deno` executable fills up.
 */

import { lstatSync, readdirSync, readFileSync, readlinkSync } from "node:fs";
import { type ByteString, latin1FromBytes, utf8 } from "../../lib/io/mod.ts";
import { type LayerEntry } from "../../tests/testutil/oci_image.ts";

/** Where files come from, the most interesting first. */
const ROOTS = ["/usr/bin", "/usr/share", "/usr/lib", "/etc"];
const FILE_BYTES_MAX = 4 * 1024 * 1024;
/** What a single root may give, so that the tree is a mixture. */
const ROOT_FILES_MAX = 3000;
const PIECE_BYTES = 24 * 1024 * 1024;
/** The longest component of a name in ext4. */
const NAME_BYTES_MAX = 255;

/** What was taken. */
export interface Taken {
  bytes: number;
  files: number;
}

/**
 * Entries of the machine's own files, parents before children, about
 * `limitBytes` of content in all; `taken` is kept up to date.
 */
export function* machineFiles(
  limitBytes: number,
  taken: Taken,
): Generator<LayerEntry> {
  const share = limitBytes / ROOTS.length;
  const parents = new Set<string>();
  for (const [i, root] of ROOTS.entries()) {
    // What an earlier root left over goes to the later ones.
    const budget = share * (i + 1);
    let files = 0;
    for (const path of walk(root)) {
      if (taken.bytes >= budget || files >= ROOT_FILES_MAX) break;
      const entry = readEntry(path, budget - taken.bytes);
      if (!entry) continue;
      yield* parentsOf(path, parents);
      yield entry;
      files++;
      taken.files++;
      taken.bytes += (entry.content as Uint8Array | undefined)?.length ?? 0;
    }
  }
}

/** The front of the `deno` executable, `bytes` long, in files of 24 MiB: large files. */
export function* runtimeFiles(
  bytes: number,
  taken: Taken,
): Generator<LayerEntry> {
  using file = Deno.openSync(Deno.execPath());
  yield { path: "opt", type: "directory" };
  yield { path: "opt/runtime", type: "directory" };
  for (let number = 0, rest = bytes; rest > 0; number++) {
    const piece = new Uint8Array(Math.min(PIECE_BYTES, rest));
    let length = 0;
    while (length < piece.length) {
      const read = file.readSync(piece.subarray(length));
      if (read === null) break;
      length += read;
    }
    if (length === 0) return;
    yield {
      path: `opt/runtime/deno.${number}`,
      content: piece.subarray(0, length),
      mode: 0o755,
    };
    taken.files++;
    taken.bytes += length;
    rest -= piece.length;
  }
}

/** Paths below a directory, in the order of their names; what cannot be listed is left out. */
function* walk(directory: string): Generator<string> {
  let entries;
  try {
    // Files that everybody may read in a directory that not everybody may enter are private.
    if ((lstatSync(directory).mode & 0o005) !== 0o005) return;
    entries = readdirSync(directory, { withFileTypes: true });
  } catch {
    return;
  }
  entries.sort((a, b) => a.name < b.name ? -1 : a.name > b.name ? 1 : 0);
  for (const entry of entries) {
    // U+FFFD: not the name's own bytes, the file cannot be opened by it.
    if (entry.name.includes("\ufffd")) continue;
    if (utf8(entry.name).length > NAME_BYTES_MAX) continue;
    const path = `${directory}/${entry.name}`;
    if (entry.isDirectory()) yield* walk(path);
    else if (entry.isFile() || entry.isSymbolicLink()) yield path;
  }
}

function readEntry(path: string, room: number): LayerEntry | undefined {
  try {
    const attributes = attributesOf(path);
    if (attributes.kind === "symlink") {
      return {
        path: nameOf(path),
        type: "symlink",
        linkTarget: latin1FromBytes(utf8(readlinkSync(path))),
        ...attributes.entry,
      };
    }
    if (attributes.kind !== "file" || !attributes.isPublic) return undefined;
    if (attributes.size > Math.min(FILE_BYTES_MAX, room)) return undefined;
    const content = readFileSync(path);
    return { path: nameOf(path), content, ...attributes.entry };
  } catch {
    return undefined;
  }
}

function* parentsOf(path: string, known: Set<string>): Generator<LayerEntry> {
  const parts = path.slice(1).split("/").slice(0, -1);
  for (let n = 1; n <= parts.length; n++) {
    const parent = "/" + parts.slice(0, n).join("/");
    if (known.has(parent)) continue;
    known.add(parent);
    yield {
      path: nameOf(parent),
      type: "directory",
      mtime: attributesOf(parent).entry.mtime!,
    };
  }
}

function attributesOf(path: string): {
  kind: "file" | "symlink" | "other";
  size: number;
  /** Everybody may read it: root's demo must not show more than others'. */
  isPublic: boolean;
  entry: Partial<LayerEntry>;
} {
  const info = lstatSync(path, { bigint: true });
  const kind = info.isSymbolicLink()
    ? "symlink"
    : info.isFile()
    ? "file"
    : "other";
  return {
    kind,
    size: Number(info.size),
    isPublic: (info.mode & 0o004n) !== 0n,
    entry: {
      mode: kind === "symlink" ? 0o777 : Number(info.mode & 0o7777n),
      uid: Number(info.uid),
      gid: Number(info.gid),
      mtime: {
        seconds: Number(info.mtimeNs / 1_000_000_000n),
        nanoseconds: Number(info.mtimeNs % 1_000_000_000n),
      },
    },
  };
}

function nameOf(path: string): ByteString {
  return latin1FromBytes(utf8(path.slice(1)));
}
