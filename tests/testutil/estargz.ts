/**
 * Writes eStargz layers from their public specification (stargz-snapshotter,
 * docs/estargz.md), with nothing of obd's own code: gzip members that begin at
 * the blob's start, at each file's content, at the TOC and at the footer.
 */

import { createHash } from "node:crypto";
import { gzipSync } from "node:zlib";
import { bytesFromLatin1, concatBytes } from "../../lib/io/mod.ts";
import { file, type LayerEntry, tarEntry } from "./oci_image.ts";

/** Marks the end of what should be fetched before a container starts. */
export const PREFETCH_LANDMARK = ".prefetch.landmark";
/** Says that nothing should. */
export const NO_PREFETCH_LANDMARK = ".no.prefetch.landmark";
const TOC_NAME = "stargz.index.json";
const LANDMARK_CONTENT = Uint8Array.of(0xf);

/** A layer in this form. */
export interface Estargz {
  blob: Uint8Array<ArrayBuffer>;
  /** What the blob decompresses to. */
  tar: Uint8Array<ArrayBuffer>;
  /** Bytes of the tar before the landmark's header; 0 without prioritized files. */
  prioritizedBytes: number;
}

/**
 * Makes one.
 *
 * @param prioritized Go first, before the landmark.
 * @param rest All others.
 * @param chunkSize Longest piece of a file in one gzip member, in bytes.
 */
export function makeEstargz(
  prioritized: readonly LayerEntry[],
  rest: readonly LayerEntry[],
  chunkSize = 100_000,
): Estargz {
  const landmark = file(
    prioritized.length > 0 ? PREFETCH_LANDMARK : NO_PREFETCH_LANDMARK,
    LANDMARK_CONTENT,
  );
  const members: Uint8Array[] = [];
  const tar: Uint8Array[] = [];
  const toc: Record<string, unknown>[] = [];
  let prioritizedBytes = 0;
  let pending: Uint8Array[] = [];
  let blobSize = 0;
  const close = () => {
    if (pending.length === 0) return;
    const bytes = concatBytes(pending);
    const member = new Uint8Array(gzipSync(bytes));
    tar.push(bytes);
    members.push(member);
    blobSize += member.length;
    pending = [];
  };
  const tarSize = () =>
    [...tar, ...pending].reduce((sum, { length }) => sum + length, 0);
  for (const entry of [...prioritized, landmark, ...rest]) {
    if (entry === landmark && prioritized.length > 0) {
      prioritizedBytes = tarSize();
    }
    const content = contentOf(entry);
    const bytes = tarEntry(entry);
    const headSize = bytes.length - Math.ceil(content.length / 512) * 512;
    pending.push(bytes.subarray(0, headSize));
    for (let at = 0; at < content.length; at += chunkSize) {
      close();
      const chunk = content.subarray(at, at + chunkSize);
      toc.push(tocEntry(entry, content, blobSize, at, chunk));
      pending.push(chunk);
    }
    if (content.length === 0) toc.push(tocEntry(entry, content));
    pending.push(bytes.subarray(headSize + content.length));
  }
  close();
  const tocOffset = blobSize;
  pending.push(
    tarEntry(file(TOC_NAME, JSON.stringify({ version: 1, entries: toc }))),
    new Uint8Array(1024),
  );
  close();
  return {
    blob: concatBytes([...members, footer(tocOffset)]),
    tar: concatBytes(tar),
    prioritizedBytes,
  };
}

function contentOf({ content }: LayerEntry): Uint8Array {
  return typeof content === "string"
    ? bytesFromLatin1(content)
    : content ?? new Uint8Array();
}

const TYPES = {
  file: "reg",
  directory: "dir",
  symlink: "symlink",
  hardlink: "hardlink",
  char: "char",
  block: "block",
  fifo: "fifo",
} as const;

function tocEntry(
  entry: LayerEntry,
  content: Uint8Array,
  offset?: number,
  chunkOffset = 0,
  chunk?: Uint8Array,
): Record<string, unknown> {
  const isLast = chunk && chunkOffset + chunk.length === content.length;
  return {
    name: entry.path + (entry.type === "directory" ? "/" : ""),
    type: chunkOffset > 0 ? "chunk" : TYPES[entry.type ?? "file"],
    mode: entry.mode ?? 0o644,
    uid: entry.uid ?? 0,
    gid: entry.gid ?? 0,
    ...(entry.linkTarget ? { linkName: entry.linkTarget } : {}),
    ...(chunk
      ? {
        size: content.length,
        offset,
        chunkOffset,
        chunkSize: isLast ? 0 : chunk.length,
        digest: sha256(content),
        chunkDigest: sha256(chunk),
      }
      : {}),
  };
}

function sha256(bytes: Uint8Array): string {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}

/** An empty gzip member of 51 bytes whose extra field says where the TOC is. */
function footer(tocOffset: number): Uint8Array {
  const extra = `${tocOffset.toString(16).padStart(16, "0")}STARGZ`;
  return concatBytes([
    Uint8Array.of(31, 139, 8, 4, 0, 0, 0, 0, 0, 255),
    Uint8Array.of(26, 0, 0x53, 0x47, 22, 0),
    bytesFromLatin1(extra),
    Uint8Array.of(1, 0, 0, 0xff, 0xff),
    new Uint8Array(8),
  ]);
}
