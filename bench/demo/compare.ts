/** Reads a whole device through our ext4 reader and compares it with what was put into the image. */

import { createHash } from "node:crypto";
import type { Ext4Reader } from "../../lib/ext4/mod.ts";
import { type ByteString, mapConcurrent, toHex } from "../../lib/io/mod.ts";
import {
  type ExpectedNode,
  type ExpectedTree,
  shownPath,
  timeText,
} from "./expected.ts";

const PIECE_BYTES = 1024 * 1024;
/** Files that are read at once. */
const CONCURRENCY = 8;

/** What a comparison found. */
export interface Comparison {
  /** Paths compared, of them regular files, and the bytes of their content. */
  paths: number;
  files: number;
  contentBytes: number;
  /** Empty if all is as it should be. */
  differences: string[];
}

/** Compares every path, its attributes, its content and its hard links. */
export async function compareTree(
  reader: Ext4Reader,
  expected: ExpectedTree,
): Promise<Comparison> {
  const result: Comparison = {
    paths: 0,
    files: 0,
    contentBytes: 0,
    differences: [],
  };
  const found = new Map<ByteString, number>();
  for await (const { path, ino } of reader.walk()) found.set(path, ino);
  for (const path of expected.nodes.keys()) {
    if (!found.has(path)) {
      result.differences.push(`${shownPath(path)} is missing`);
    }
  }
  // Several names of one inode are compared once; that they are one is compared, too.
  const nodeOfInode = new Map<number, ExpectedNode>();
  const inodeOfNode = new Map<ExpectedNode, number>();
  const work: [path: ByteString, ino: number, node: ExpectedNode][] = [];
  for (const [path, ino] of found) {
    const node = expected.nodes.get(path);
    if (!node) {
      result.differences.push(`${shownPath(path)} should not be there`);
      continue;
    }
    result.paths++;
    const isNew = !nodeOfInode.has(ino) && !inodeOfNode.has(node);
    if (isNew) {
      nodeOfInode.set(ino, node);
      inodeOfNode.set(node, ino);
      work.push([path, ino, node]);
    } else if (nodeOfInode.get(ino) !== node) {
      result.differences.push(`${shownPath(path)} is linked wrongly`);
    }
  }
  await mapConcurrent(work, CONCURRENCY, async ([path, ino, node]) => {
    const got = await readNode(reader, ino);
    if (got.type === "file") {
      result.files++;
      result.contentBytes += got.size;
    }
    for (const key of Object.keys(node) as (keyof ExpectedNode)[]) {
      const [is, should] = [got[key], node[key]].map((v) => JSON.stringify(v));
      if (is !== should) {
        result.differences.push(
          `${shownPath(path)}: ${key} is ${is}, should be ${should}`,
        );
      }
    }
  });
  return result;
}

async function readNode(
  reader: Ext4Reader,
  ino: number,
): Promise<ExpectedNode> {
  const stat = await reader.stat(ino);
  const xattrs: Record<string, string> = {};
  for (const [name, value] of await reader.xattrs(ino)) {
    xattrs[name] = toHex(value);
  }
  const isFile = stat.type === "file";
  return {
    type: stat.type as ExpectedNode["type"],
    mode: stat.mode & 0o7777,
    uid: stat.uid,
    gid: stat.gid,
    mtime: timeText(stat.mtime.seconds, stat.mtime.nanoseconds),
    xattrs,
    target: stat.type === "symlink" ? await reader.readlink(ino) : "",
    device: `${stat.devMajor}:${stat.devMinor}`,
    size: isFile ? stat.size : 0,
    sha256: isFile ? await contentDigest(reader, ino) : "",
  };
}

async function contentDigest(reader: Ext4Reader, ino: number): Promise<string> {
  const hash = createHash("sha256");
  await using body = await reader.openFile(ino);
  const piece = new Uint8Array(Math.min(PIECE_BYTES, body.size));
  for (let at = 0; at < body.size; at += piece.length) {
    const part = piece.subarray(0, Math.min(piece.length, body.size - at));
    await body.pread(part, at);
    hash.update(part);
  }
  return hash.digest("hex");
}
