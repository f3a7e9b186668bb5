/** Blobs of OCI images for `obd inspect`: layers, and meta blobs. */

import { createHash } from "node:crypto";
import * as zlib from "node:zlib";
import { hasGzipMagic } from "../../compress/mod.ts";
import {
  type ByteSource,
  FormatError,
  IntegrityError,
  latin1FromBytes,
  MemorySource,
  readBytes,
  UnsupportedError,
} from "../../io/mod.ts";
import { parseWhiteout, type TarEntry, TarWalker } from "../../tar/mod.ts";
import { META_MEMBER, readMetaBlob } from "../meta_blob.ts";
import { scanLayer, sniffLayer } from "../pass/mod.ts";
import { checkpointsOf } from "../spans.ts";
import { inspectGzipMeta, inspectSpans } from "./indexes.ts";
import { inspectZFile } from "./lsmt.ts";
import {
  type FileReport,
  guard,
  type InspectOptions,
  newReport,
  piecesOf,
  problemOf,
} from "./report.ts";

/** Compressed bytes whose output shows the first tar header; a thousand times as much comes out at most. */
const PEEK_SIZE = 4096;
const TAR_BLOCK = 512;

/**
 * Name of the first member of a tar or gzip(tar).
 *
 * @returns Undefined if that cannot be told.
 */
export async function firstMemberName(
  source: ByteSource,
): Promise<string | undefined> {
  let head = await readBytes(source, 0, Math.min(PEEK_SIZE, source.size));
  if (hasGzipMagic(head)) {
    try {
      const out = zlib.gunzipSync(head, {
        finishFlush: zlib.constants.Z_SYNC_FLUSH,
      });
      head = new Uint8Array(out);
    } catch {
      return undefined; // the scan says what is wrong
    }
  }
  if (head.length < TAR_BLOCK) return undefined;
  const field = head.subarray(0, 100);
  const end = field.indexOf(0);
  return latin1FromBytes(end < 0 ? field : field.subarray(0, end))
    .replace(/^(\.\/)+/, "");
}

/** Whether a tar's first member makes it a meta blob. */
export function isMetaMember(name: string | undefined): boolean {
  return (Object.values(META_MEMBER) as string[]).includes(name ?? "");
}

/** SHA-256 of a whole source, and whether it is the expected one. */
async function checkDigest(
  report: FileReport,
  source: ByteSource,
  options: InspectOptions,
): Promise<string> {
  const hash = createHash("sha256");
  for await (const piece of piecesOf(source, options)) hash.update(piece);
  const digest = `sha256:${hash.digest("hex")}`;
  report.facts.digest = digest;
  const { expectedDigest } = options;
  if (expectedDigest !== undefined && expectedDigest !== digest) {
    throw new IntegrityError("Digest of the blob", expectedDigest, digest);
  }
  return digest;
}

/** Compressions of layers that are read. */
const LAYERS = {
  none: ["tar-layer", "OCI layer (plain tar)"],
  gzip: ["gzip-layer", "OCI layer (gzip)"],
  zstd: ["zstd-layer", "OCI layer (zstd)"],
} as const;

/** A layer: read to its end, its tar walked. */
export function inspectOciLayer(
  source: ByteSource,
  head: Uint8Array,
  options: InspectOptions,
): Promise<FileReport> {
  const report = newReport("tar-layer", "OCI layer", source);
  return guard(report, async () => {
    let compression: keyof typeof LAYERS;
    try {
      compression = sniffLayer(head);
    } catch (error) {
      if (
        !(error instanceof UnsupportedError) ||
        error.feature === "layer compression"
      ) {
        report.kind = "unknown";
        report.title = "unknown file";
        throw new UnsupportedError(
          "unknown file",
          "The file is nothing that obd knows",
        );
      }
      report.kind = "foreign-layer";
      report.title = `OCI layer (${error.feature.replace(/ layer$/, "")})`;
      report.notes.push(error.message);
      await checkDigest(report, source, options);
      return;
    }
    const [kind, title] = LAYERS[compression];
    report.kind = kind;
    report.title = title;
    const expectedDigest = await checkDigest(report, source, options);
    const counter = new EntryCounter();
    const scan = await scanLayer(piecesOf(source, options), {
      blobSize: source.size,
      expectedDigest,
      walker: new TarWalker({ onEntry: (entry) => counter.add(entry) }),
      signal: options.signal,
    });
    Object.assign(report.facts, {
      diffId: scan.diffId,
      tarSize: scan.tarSize,
      ...(compression === "none" ? {} : { members: scan.members }),
      spans: scan.spans.count,
      ...counter.facts(),
    });
    if (counter.isArchive) {
      report.notes.push("an OCI image layout: name it oci-archive:FILE");
    }
  });
}

/** Counts the entries of a layer. */
class EntryCounter {
  isArchive = false;
  readonly #types: Record<string, number> = {};
  #bytes = 0;
  #whiteouts = 0;
  #opaques = 0;

  add(entry: TarEntry): void {
    this.#types[entry.type] = (this.#types[entry.type] ?? 0) + 1;
    if (entry.type === "file") this.#bytes += entry.size;
    if (entry.path === "oci-layout") this.isArchive = true;
    const whiteout = parseWhiteout(entry.path);
    if (whiteout?.kind === "remove") this.#whiteouts++;
    else if (whiteout?.kind === "opaque") this.#opaques++;
  }

  facts(): Record<string, number> {
    const counts = Object.entries(this.#types).sort();
    return {
      entries: counts.reduce((sum, [, count]) => sum + count, 0),
      ...Object.fromEntries(counts.map(([t, n]) => [`${t}Entries`, n])),
      whiteouts: this.#whiteouts,
      opaqueDirectories: this.#opaques,
      fileBytes: this.#bytes,
    };
  }
}

/** A TurboOCI meta blob: its members, and whether they fit each other. */
export function inspectMetaBlob(
  source: ByteSource,
  options: InspectOptions,
): Promise<FileReport> {
  const report = newReport("meta-blob", "TurboOCI meta blob", source);
  return guard(report, async () => {
    await checkDigest(report, source, options);
    const blob = await readMetaBlob(source, { signal: options.signal });
    report.facts.diffId = blob.diffId;
    report.facts.tarSize = blob.tarSize;
    await inspectMembers(report, blob.members, options);
  });
}

/** Fills a report with the members of a meta blob. */
export async function inspectMembers(
  report: FileReport,
  members: ReadonlyMap<string, Uint8Array>,
  options: InspectOptions,
): Promise<void> {
  const sourceOf = (name: string) => {
    const bytes = members.get(name);
    return bytes && new MemorySource(bytes, name);
  };
  for (const name of [META_MEMBER.ext4, META_MEMBER.erofs]) {
    const member = sourceOf(name);
    if (member) {
      const inner = await inspectZFile(member, options, "warp");
      report.parts.push({ name, report: inner });
    }
  }
  const gzipSource = sourceOf(META_MEMBER.gzipMeta);
  const gzipMeta = gzipSource && await inspectGzipMeta(gzipSource);
  if (gzipMeta) {
    report.parts.push({ name: META_MEMBER.gzipMeta, report: gzipMeta });
  }
  const spansSource = sourceOf(META_MEMBER.spans);
  const spans = spansSource && await inspectSpans(spansSource);
  if (spans) report.parts.push({ name: META_MEMBER.spans, report: spans });
  if (members.has(META_MEMBER.marker)) report.facts.marker = true;
  else report.notes.push(`no "${META_MEMBER.marker}" marker`);
  report.facts.integrity = spans ? "spans" : "none";
  try {
    if (!members.has(META_MEMBER.ext4) && !members.has(META_MEMBER.erofs)) {
      throw new FormatError("meta blob", META_MEMBER.ext4, "is missing");
    }
    if (spans?.index) checkpointsOf(spans.index, gzipMeta?.meta);
  } catch (error) {
    report.problem ??= problemOf(error);
  }
}
