/** Recognises files of all formats that obd has to do with, and tells what is wrong with them. */

import {
  type ByteSource,
  FormatError,
  readBytes,
  SliceSource,
} from "../../io/mod.ts";
import { isZFile } from "../../zfile/mod.ts";
import { hasLsmtMagic, isLsmt } from "../lsmt/mod.ts";
import { findTarPayload, type TarPayload } from "../tar_wrapper.ts";
import { inspectErofs, inspectExt4, sniffFileSystem } from "./ext4.ts";
import {
  hasGzipMetaMagic,
  hasSpansMagic,
  hasTraceMagic,
  inspectGzipMeta,
  inspectSpans,
  inspectTrace,
} from "./indexes.ts";
import { inspectLsmt, inspectZFile } from "./lsmt.ts";
import {
  firstMemberName,
  inspectMetaBlob,
  inspectOciLayer,
  isMetaMember,
} from "./oci_layer.ts";
import { type FileReport, type InspectOptions, newReport } from "./report.ts";

export {
  type Fact,
  type FileKind,
  type FilePart,
  type FileReport,
  firstProblem,
  type InspectOptions,
  newReport,
  type Problem,
  problemOf,
} from "./report.ts";
export { summarizeLayer } from "./lsmt.ts";
export { inspectMembers } from "./oci_layer.ts";

/** Bytes that tell what a file is. */
const HEAD_SIZE = 512;

/**
 * Inspects a file of any kind. What is wrong with the file stands in the
 * report.
 *
 * @param source Borrowed.
 * @throws {CancelledError} If `signal` was aborted.
 */
export async function inspectFile(
  source: ByteSource,
  options: InspectOptions = {},
): Promise<FileReport> {
  if (source.size === 0) return newReport("empty", "empty file", source);
  const head = await readBytes(source, 0, Math.min(HEAD_SIZE, source.size));
  if (hasGzipMetaMagic(head)) return await inspectGzipMeta(source);
  if (hasSpansMagic(head)) return await inspectSpans(source);
  if (hasTraceMagic(head)) return await inspectTrace(source);
  // A file that ends inside its header is none of the kinds that can be opened.
  if (hasLsmtMagic(head)) return await inspectLsmt(source, options);
  if (await isContainer(source)) return await inspectContainer(source, options);
  const fileSystem = await sniffFileSystem(source);
  if (fileSystem === "ext4") return await inspectExt4(source, options);
  if (fileSystem === "erofs") return inspectErofs(source);
  const first = await firstMemberName(source);
  if (isMetaMember(first)) return await inspectMetaBlob(source, options);
  const payload = await tarPayload(source);
  if (payload) {
    const inner = new SliceSource(source, payload.offset, payload.size, {
      borrow: true,
    });
    if (await isContainer(inner)) {
      return await inspectWrapper(source, inner, payload, options);
    }
    if (first === "trace") return await inspectAcceleration(source, inner);
  }
  return await inspectOciLayer(source, head, options);
}

async function isContainer(source: ByteSource): Promise<boolean> {
  return await isZFile(source) || await isLsmt(source);
}

async function inspectContainer(
  source: ByteSource,
  options: InspectOptions,
): Promise<FileReport> {
  return await isZFile(source)
    ? await inspectZFile(source, options)
    : await inspectLsmt(source, options);
}

/** The payload if this is a tar with one; a tar that is no wrapper is told by somebody else. */
async function tarPayload(
  source: ByteSource,
): Promise<TarPayload | undefined> {
  try {
    return await findTarPayload(source);
  } catch (error) {
    if (error instanceof FormatError) return undefined;
    throw error;
  }
}

async function inspectWrapper(
  source: ByteSource,
  inner: ByteSource,
  payload: TarPayload,
  options: InspectOptions,
): Promise<FileReport> {
  const report = newReport(
    "tar-wrapper",
    "tar wrapper of an overlaybd layer",
    source,
  );
  report.facts.payloadOffset = payload.offset;
  report.facts.payloadSize = payload.size;
  report.parts.push({
    name: "payload",
    report: await inspectContainer(inner, options),
  });
  return report;
}

async function inspectAcceleration(
  source: ByteSource,
  inner: ByteSource,
): Promise<FileReport> {
  const report = newReport(
    "acceleration-layer",
    "overlaybd acceleration layer",
    source,
  );
  report.parts.push({ name: "trace", report: await inspectTrace(inner) });
  return report;
}
