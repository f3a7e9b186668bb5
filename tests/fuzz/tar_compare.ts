/** The same archive read by `lib/tar`, by GNU tar (unpacked) and by tar-stream. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import tarStream from "tar-stream";
import {
  bytesFromLatin1,
  latin1FromBytes,
  toHex,
  utf8,
} from "../../lib/io/mod.ts";
import { cleanPath, type TarEntry } from "../../lib/tar/mod.ts";
import { python, type StatNode } from "../tar/python.ts";
import { contentOf, walk } from "../tar/walk.ts";
import type { ExpectedEntry } from "./tar_generate.ts";

function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/** Checks what the walker tells against what the archive was made of. */
export function compareWithExpected(
  tar: Uint8Array,
  expected: readonly ExpectedEntry[],
): void {
  const got = walk(tar);
  assert.deepEqual(got.map((e) => e.path), expected.map((e) => e.path));
  for (const [i, want] of expected.entries()) {
    const entry = got[i]!;
    const about = `entry ${i}, "${want.path}"`;
    assert.deepEqual(
      {
        type: entry.type,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime.seconds,
        link: entry.linkTarget,
        dev: [entry.devMajor, entry.devMinor],
        size: entry.size,
        content: sha256(contentOf(entry, tar)),
        xattrs: entry.xattrs.map(([n, v]) => [n, latin1FromBytes(v)]),
      },
      {
        type: want.type,
        mode: want.mode,
        uid: want.uid,
        gid: want.gid,
        mtime: want.mtime,
        link: want.link,
        dev: [want.devMajor, want.devMinor],
        size: want.content.length,
        content: sha256(want.content),
        xattrs: want.xattrs,
      },
      about,
    );
  }
}

/**
 * Unpacks with GNU tar, and compares each entry with what is on the disk then.
 *
 * @param isRoot Whether owners and devices can be made.
 */
export async function compareWithGnuTar(
  tar: Uint8Array,
  isRoot: boolean,
): Promise<void> {
  const directory = await Deno.makeTempDir({ prefix: "obd-tar-diff-" });
  try {
    const archive = `${directory}/a.tar`;
    const root = `${directory}/root`;
    await Deno.mkdir(root);
    await Deno.writeFile(archive, tar);
    const { success, stderr } = await new Deno.Command("tar", {
      args: [
        ...["-xpf", archive, "-C", root, "--numeric-owner"],
        ...["--warning=no-timestamp"],
        ...["--xattrs", "--xattrs-include=user.*"],
        ...(isRoot ? ["--same-owner"] : ["--no-same-owner"]),
      ],
      env: { LC_ALL: "C" },
      stdin: "null",
    }).output();
    const said = new TextDecoder().decode(stderr);
    assert.ok(success, said);
    const tree: Record<string, StatNode> = JSON.parse(
      await python("stat", root),
    );
    const hasXattrs = !/xattr|not supported/i.test(said);
    for (const entry of walk(tar)) {
      compareNode(entry, tree, tar, isRoot, hasXattrs);
    }
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

function compareNode(
  entry: TarEntry,
  tree: Record<string, StatNode>,
  tar: Uint8Array,
  isRoot: boolean,
  hasXattrs: boolean,
): void {
  const node = tree[entry.path];
  assert.ok(node, `GNU tar made no "${entry.path}"`);
  const about = `"${entry.path}"`;
  if (entry.type === "hardlink") {
    // Its own attributes mean nothing to GNU tar.
    assert.ok(node.inode !== undefined, about);
    assert.equal(tree[entry.linkTarget]?.inode, node.inode, about);
    return;
  }
  assert.equal(entry.type, node.type, about);
  assert.equal(entry.linkTarget, node.link, about);
  assert.deepEqual([entry.devMajor, entry.devMinor], node.dev, about);
  assert.equal(entry.size, node.size, about);
  if (entry.type === "file") {
    assert.equal(sha256(contentOf(entry, tar)), node.sha256, about);
    if (hasXattrs) {
      const xattrs = entry.xattrs.map(([name, value]) => [name, toHex(value)]);
      assert.deepEqual(xattrs, node.xattrs, about);
    }
  }
  if (entry.type !== "symlink") assert.equal(entry.mode, node.mode, about);
  if (isRoot) assert.deepEqual([entry.uid, entry.gid], [node.uid, node.gid]);
  const seconds = Number(BigInt.asIntN(64, floorSeconds(node.mtimeNs)));
  assert.equal(entry.mtime.seconds, seconds, about);
}

function floorSeconds(nanoseconds: string): bigint {
  const ns = BigInt(nanoseconds);
  const seconds = ns / 1_000_000_000n;
  return ns < 0n && ns % 1_000_000_000n !== 0n ? seconds - 1n : seconds;
}

const STREAM_TYPES: Record<string, string> = {
  "contiguous-file": "file",
  link: "hardlink",
  "character-device": "char",
  "block-device": "block",
};

/** Compares entry by entry with tar-stream, which knows no sparse files. */
export async function compareWithTarStream(tar: Uint8Array): Promise<void> {
  const extract = tarStream.extract(
    { filenameEncoding: "latin1", allowUnknownFormat: true } as never,
  );
  extract.end(tar);
  const got = walk(tar);
  let i = 0;
  for await (const stream of extract) {
    const parts: Uint8Array[] = [];
    for await (const part of stream) parts.push(part);
    const entry = got[i++]!;
    const header = stream.header as tarStream.Headers & {
      pax?: Record<string, string>;
    };
    const about = `entry ${i - 1}, "${entry.path}"`;
    const type = header.type ?? "file";
    assert.equal(entry.type, STREAM_TYPES[type] ?? type, about);
    // Records are UTF-8 to it, header fields are not.
    const name = (text: string, inPax: boolean) =>
      inPax ? latin1FromBytes(utf8(text)) : text;
    const path = name(header.name, header.pax?.path !== undefined);
    assert.equal(entry.path, cleanPath(path, "path", 0), about);
    assert.equal(entry.mode, header.mode, about);
    // Of the records it takes names and sizes only.
    const pax = header.pax ?? {};
    const uid = pax.uid === undefined ? header.uid : Number(pax.uid);
    assert.deepEqual([entry.uid, entry.gid], [uid, header.gid], about);
    const seconds = Math.floor(
      pax.mtime === undefined ? +header.mtime! / 1000 : Number(pax.mtime),
    );
    // It reads negative base-256 numbers as one too many.
    const wrong = entry.mtime.seconds < 0 ? 1 : 0;
    assert.equal(entry.mtime.seconds + wrong, seconds, about);
    const content = new Uint8Array(
      await new Blob(parts as BlobPart[]).arrayBuffer(),
    );
    assert.equal(sha256(contentOf(entry, tar)), sha256(content), about);
    if (type === "symlink" || type === "link") {
      const target = name(
        header.linkname!,
        header.pax?.linkpath !== undefined,
      );
      assert.deepEqual(
        bytesFromLatin1(entry.linkTarget),
        bytesFromLatin1(
          type === "link" ? cleanPath(target, "link", 0) : target,
        ),
        about,
      );
    }
    if (entry.type === "char" || entry.type === "block") {
      assert.deepEqual(
        [entry.devMajor, entry.devMinor],
        [header.devmajor, header.devminor],
        about,
      );
    }
  }
  assert.equal(i, got.length);
}
