/** LSMT files and ZFiles for `obd inspect`. */

import {
  type ByteSource,
  CancelledError,
  FormatError,
  MemorySource,
  readBytes,
  viewOf,
} from "../../io/mod.ts";
import { openZFile } from "../../zfile/mod.ts";
import {
  ENTRY_SIZE,
  FLAG,
  hasLsmtMagic,
  type HeaderTrailer,
  HT,
  isLsmt,
  KIND,
  type LayerKind,
  type LsmtLayer,
  LsmtSource,
  NULL_UUID,
  openLsmtLayer,
  PADDING_OFFSET,
  readHeaderTrailer,
  readSegment,
  SECTOR,
} from "../lsmt/mod.ts";
import { sniffFileSystem } from "./ext4.ts";
import {
  borrowed,
  type Fact,
  type FileReport,
  guard,
  type InspectOptions,
  newReport,
  piecesOf,
} from "./report.ts";

/** Entries of a writable layer's index (MAX_LSMT_INDEX_SIZE of overlaybd lsmt/index.h). */
const MAX_INDEX_ENTRIES = 128_000_000;
/** Entries read at once. */
const ENTRY_PIECE = 65_536;

/** A ZFile with all its blocks checked, and what is in it. */
export function inspectZFile(
  source: ByteSource,
  options: InspectOptions,
  kind: LayerKind | "auto" = "auto",
): Promise<FileReport> {
  const report = newReport("zfile", "ZFile", source);
  return guard(report, async () => {
    const content = await openZFile(borrowed(source));
    const blocks = Math.ceil(content.size / content.blockSize);
    Object.assign(report.facts, {
      codec: content.codec,
      blockSize: content.blockSize,
      blocks,
      contentSize: content.size,
      checksums: content.verify,
    });
    if (!content.verify) {
      report.notes.push("blocks have no checksums: damage may go unnoticed");
    }
    const inner = await isLsmt(content)
      ? await inspectLsmt(content, options, kind)
      : undefined;
    if (inner) report.parts.push({ name: "content", report: inner });
    for await (const _ of piecesOf(content, options)) {
      // Reading is the check: every block's checksum and length.
    }
    report.facts.checkedBlocks = blocks;
    if (!inner) {
      throw new FormatError("ZFile", "content", "is no LSMT layer");
    }
  });
}

/**
 * An LSMT file of any kind.
 *
 * @param kind As the caller knows it; `"auto"` also takes a layer for a warp
 * layer that breaks the rules of native ones only.
 */
export function inspectLsmt(
  source: ByteSource,
  options: InspectOptions,
  kind: LayerKind | "auto" = "auto",
): Promise<FileReport> {
  const report = newReport("lsmt-layer", "LSMT layer", source);
  return guard(report, async () => {
    if (source.size < HT.SIZE) {
      throw new FormatError(
        "LSMT file",
        "size",
        `is ${source.size}, less than a header`,
      );
    }
    const header = readHeaderTrailer(
      await readBytes(source, 0, HT.SIZE),
      "header",
      0,
    );
    report.facts.headerFlags = flagNames(header.flags);
    if ((header.flags & FLAG.data) === 0) {
      await inspectIndexFile(report, source, header, options);
    } else if (
      (header.flags & FLAG.sealed) === 0 && !(await hasTrailer(source))
    ) inspectWritable(report, header);
    else await inspectSealed(report, source, kind);
  });
}

async function hasTrailer(source: ByteSource): Promise<boolean> {
  if (source.size < 2 * HT.SIZE) return false;
  return hasLsmtMagic(await readBytes(source, source.size - HT.SIZE, 24));
}

async function inspectSealed(
  report: FileReport,
  source: ByteSource,
  kind: LayerKind | "auto",
): Promise<void> {
  if (await hasTrailer(source)) {
    const at = source.size - HT.SIZE;
    const bytes = await readBytes(source, at, HT.SIZE);
    const trailer = readHeaderTrailer(bytes, "trailer", at);
    Object.assign(report.facts, {
      trailerFlags: flagNames(trailer.flags),
      indexOffset: trailer.indexOffset,
      indexEntries: trailer.indexCount,
    }, identityFacts(trailer));
  }
  const layer = await openAs(source, kind);
  report.title = layer.kind === "warp"
    ? "LSMT warp layer (TurboOCI)"
    : "LSMT layer";
  Object.assign(report.facts, summarizeLayer(layer));
  const content = await sniffContent(source, layer);
  if (content !== undefined) report.facts.content = content;
}

async function openAs(
  source: ByteSource,
  kind: LayerKind | "auto",
): Promise<LsmtLayer> {
  try {
    return await openLsmtLayer(source, kind);
  } catch (error) {
    if (kind !== "auto" || !(error instanceof FormatError)) throw error;
    try {
      return await openLsmtLayer(source, "warp");
    } catch {
      throw error;
    }
  }
}

/** Facts about the map of a layer. */
export function summarizeLayer(layer: LsmtLayer): Record<string, Fact> {
  const { table } = layer;
  const rows = [0, 0, 0];
  const sectors = [0, 0, 0];
  for (let row = 0; row < table.count; row++) {
    const kind = table.kind[row]!;
    rows[kind]!++;
    sectors[kind]! += table.length[row]!;
  }
  return {
    layerKind: layer.kind,
    virtualSize: layer.virtualSize,
    entries: layer.entryCount,
    segments: table.count,
    dataSegments: rows[KIND.data]!,
    dataBytes: sectors[KIND.data]! * SECTOR,
    targetSegments: rows[KIND.target]!,
    targetBytes: sectors[KIND.target]! * SECTOR,
    zeroedSegments: rows[KIND.zeroed]!,
    zeroedBytes: sectors[KIND.zeroed]! * SECTOR,
    mappedUpTo: table.highestMapped(),
  };
}

/** The file system that a layer holds the superblock of, if it does. */
async function sniffContent(
  source: ByteSource,
  layer: LsmtLayer,
): Promise<string | undefined> {
  const device = new LsmtSource(
    [{ ...layer, data: source, target: new MemorySource(new Uint8Array()) }],
    layer.virtualSize,
  );
  return await sniffFileSystem(device);
}

function inspectWritable(report: FileReport, header: HeaderTrailer): void {
  const isSparse = (header.flags & FLAG.sparse) !== 0;
  report.kind = "lsmt-writable";
  report.title = isSparse
    ? "LSMT writable layer, sparse (data file)"
    : "LSMT writable layer (data file)";
  Object.assign(report.facts, {
    virtualSize: header.virtualSize,
    ...identityFacts(header),
  });
  report.notes.push(
    isSparse
      ? 'not sealed: it is read as the "upper" of a config.v1.json'
      : 'not sealed: it is read as the "upper" of a config.v1.json, with the index file beside it',
  );
}

async function inspectIndexFile(
  report: FileReport,
  source: ByteSource,
  header: HeaderTrailer,
  { signal }: InspectOptions,
): Promise<void> {
  report.kind = "lsmt-index";
  report.title = "LSMT index file of a writable layer";
  const count = Math.floor((source.size - HT.SIZE) / ENTRY_SIZE);
  Object.assign(report.facts, {
    virtualSize: header.virtualSize,
    ...identityFacts(header),
    entries: count,
  });
  const wrong = (field: string, problem: string) =>
    new FormatError("LSMT index file", field, problem);
  if (header.indexOffset !== HT.SIZE) {
    throw wrong("index_offset", `is ${header.indexOffset}, expected 4096`);
  }
  if (count > MAX_INDEX_ENTRIES) throw wrong("entries", `are ${count}`);
  let zeroed = 0;
  let padding = 0;
  let end = 0;
  const tags = new Set<number>();
  for (let first = 0; first < count; first += ENTRY_PIECE) {
    if (signal?.aborted) throw new CancelledError();
    const entries = Math.min(ENTRY_PIECE, count - first);
    const view = viewOf(
      await readBytes(
        source,
        HT.SIZE + first * ENTRY_SIZE,
        entries * ENTRY_SIZE,
      ),
    );
    for (let i = 0; i < entries; i++) {
      const segment = readSegment(view, i * ENTRY_SIZE);
      if (segment.offset === PADDING_OFFSET) padding++;
      else {
        if (segment.zeroed) zeroed++;
        tags.add(segment.tag);
        end = Math.max(end, segment.offset + segment.length);
      }
    }
  }
  Object.assign(report.facts, {
    paddingEntries: padding,
    zeroedEntries: zeroed,
    tags: [...tags].sort((a, b) => a - b).join(", ") || "none",
    mappedUpTo: end * SECTOR,
  });
  const rest = (source.size - HT.SIZE) % ENTRY_SIZE;
  if (rest > 0) {
    report.notes.push(`${rest} bytes behind the last entry are ignored`);
  }
}

function identityFacts(fields: HeaderTrailer): Record<string, Fact> {
  return {
    ...(isIdentity(fields.uuid) ? { uuid: fields.uuid } : {}),
    ...(isIdentity(fields.parentUuid) ? { parentUuid: fields.parentUuid } : {}),
    ...(fields.userTag === "" ? {} : { userTag: fields.userTag }),
  };
}

function isIdentity(uuid: string): boolean {
  return uuid !== "" && uuid !== NULL_UUID;
}

/** Names of the bits of `flags`, e.g. `"0x7 (header, data, sealed)"`. */
function flagNames(flags: number): string {
  const names = [
    (flags & FLAG.header) !== 0 ? "header" : "trailer",
    (flags & FLAG.data) !== 0 ? "data" : "index",
    ...((flags & FLAG.sealed) !== 0 ? ["sealed"] : []),
    ...((flags & FLAG.sparse) !== 0 ? ["sparse"] : []),
  ];
  return `0x${flags.toString(16)} (${names.join(", ")})`;
}
