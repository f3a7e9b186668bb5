/**
 * What a stack of layers must look like, worked out on its own: nothing here
 * comes from the code that is being shown.
 */

import { createHash } from "node:crypto";
import { bytesFromLatin1, type ByteString, toHex } from "../../lib/io/mod.ts";
import {
  DEFAULT_MTIME,
  type LayerEntry,
} from "../../tests/testutil/oci_image.ts";

/** A file, directory or other node; hard links are the same object under several paths. */
export interface ExpectedNode {
  type: NonNullable<LayerEntry["type"]>;
  mode: number;
  uid: number;
  gid: number;
  mtime: string;
  xattrs: Record<string, string>;
  target: ByteString;
  device: string;
  /** Bytes and digest of a regular file. */
  size: number;
  sha256: string;
}

const WHITEOUT = ".wh.";
const OPAQUE = ".wh..wh..opq";
const ZEROS = new Uint8Array(1024 * 1024);

/** A tree that grows layer by layer. */
export class ExpectedTree {
  readonly nodes = new Map<ByteString, ExpectedNode>();
  /** Paths of the layer that is being applied: its whiteouts spare them. */
  #own = new Set<ByteString>();

  constructor() {
    this.nodes.set("", nodeOf({ path: "", type: "directory" }));
  }

  /** What follows belongs to the next layer. */
  nextLayer(): void {
    this.#own = new Set();
  }

  /** Applies the next entry of the layer. */
  add(entry: LayerEntry): void {
    const { path } = entry;
    const cut = path.lastIndexOf("/");
    const name = path.slice(cut + 1);
    const parent = path.slice(0, Math.max(0, cut));
    if (name === OPAQUE) return this.#removeBelow(parent);
    if (name.startsWith(WHITEOUT)) {
      const removed = path.slice(0, cut + 1) + name.slice(WHITEOUT.length);
      this.#removeBelow(removed);
      if (!this.#own.has(removed)) this.nodes.delete(removed);
      return;
    }
    const before = this.nodes.get(path);
    if (before?.type === "directory" && entry.type !== "directory") {
      this.#removeBelow(path);
    }
    this.#own.add(path);
    this.nodes.set(
      path,
      entry.type === "hardlink"
        ? this.nodes.get(entry.linkTarget!)!
        : nodeOf(entry),
    );
  }

  #removeBelow(directory: ByteString): void {
    for (const path of this.nodes.keys()) {
      if (path.startsWith(`${directory}/`) && !this.#own.has(path)) {
        this.nodes.delete(path);
      }
    }
  }
}

function nodeOf(entry: LayerEntry): ExpectedNode {
  const type = entry.type ?? "file";
  const content = type === "file" ? contentOf(entry) : undefined;
  const mtime = entry.mtime ?? DEFAULT_MTIME;
  const xattrs: Record<string, string> = {};
  for (const [name, value] of Object.entries(entry.xattrs ?? {}).sort()) {
    xattrs[name] = toHex(
      typeof value === "string" ? bytesFromLatin1(value) : value,
    );
  }
  return {
    type,
    mode: entry.mode ??
      (type === "directory" ? 0o755 : type === "symlink" ? 0o777 : 0o644),
    uid: entry.uid ?? 0,
    gid: entry.gid ?? 0,
    mtime: typeof mtime === "number"
      ? boundedTime(mtime, 0)
      : boundedTime(mtime.seconds, mtime.nanoseconds),
    xattrs,
    target: type === "symlink" ? entry.linkTarget ?? "" : "",
    device: `${entry.devMajor ?? 0}:${entry.devMinor ?? 0}`,
    size: content?.size ?? 0,
    sha256: content?.sha256 ?? "",
  };
}

/** As containerd unpacks them: before 1970, or beyond 63 bits of nanoseconds, is 1970. */
function boundedTime(seconds: number, nanoseconds: number): string {
  const isInside = seconds >= 0 && seconds < 2 ** 63 / 1e9;
  return isInside ? timeText(seconds, nanoseconds) : timeText(0, 0);
}

/** Seconds and nanoseconds since 1970. */
export function timeText(seconds: number, nanoseconds: number): string {
  return `${seconds}s+${nanoseconds}ns`;
}

function contentOf(entry: LayerEntry): { size: number; sha256: string } {
  const hash = createHash("sha256");
  const { sparse, content = "" } = entry;
  if (!sparse) {
    const bytes = typeof content === "string"
      ? bytesFromLatin1(content)
      : content;
    return { size: bytes.length, sha256: hash.update(bytes).digest("hex") };
  }
  let at = 0;
  const zerosUpTo = (end: number) => {
    for (; at < end; at += Math.min(ZEROS.length, end - at)) {
      hash.update(ZEROS.subarray(0, Math.min(ZEROS.length, end - at)));
    }
  };
  for (const { offset, bytes } of sparse.segments) {
    zerosUpTo(offset);
    hash.update(bytes);
    at = offset + bytes.length;
  }
  zerosUpTo(sparse.size);
  return { size: sparse.size, sha256: hash.digest("hex") };
}

/** A path for people, whatever its bytes. */
export function shownPath(path: ByteString): string {
  const text = new TextDecoder("utf-8").decode(bytesFromLatin1(path));
  return JSON.stringify("/" + text.replaceAll("\ufffd", "?"));
}
