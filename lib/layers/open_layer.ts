/**
 * Opens an overlaybd layer blob by what is in it: tar wrapper, then ZFile, then
 * LSMT; the first two are optional, in this order (overlaybd
 * src/image_file.cpp: __open_ro_file).
 */

import { type ByteSource, FormatError, SliceSource } from "../io/mod.ts";
import { checkZFileTrailer, isZFile, openZFile } from "../zfile/mod.ts";
import {
  isLsmt,
  type LayerKind,
  type LsmtLayer,
  openLsmtLayer,
} from "./lsmt/mod.ts";
import { isWrongData } from "./make_checked.ts";
import { checkTarWrapper, findTarPayload, unwrapTar } from "./tar_wrapper.ts";

/** A container that was peeled off. */
export type Container = "tar" | "zfile";

/** An opened layer: its index, and the bytes that rows of kind data map. */
export interface OpenedLayer extends LsmtLayer {
  /** The LSMT file; owns the blob. */
  data: ByteSource;
  /** Outermost first. */
  containers: Container[];
}

/**
 * Opens a layer blob.
 *
 * @param source The blob. Owned by the result's `data`; disposed if this
 * rejects.
 * @param kind As for {@linkcode openLsmtLayer}.
 * @throws {FormatError} Saying what was recognised and what was not.
 * @throws {IntegrityError} If a container's checksum is wrong.
 */
export async function openLayer(
  source: ByteSource,
  kind: LayerKind | "auto" = "auto",
): Promise<OpenedLayer> {
  try {
    return await open(source, kind);
  } catch (error) {
    if (!source.discard || !isWrongData(error)) {
      await source[Symbol.asyncDispose]();
      throw error;
    }
  }
  // A cache below may be to blame.
  source.discard(0, source.size);
  try {
    return await open(source, kind);
  } catch (error) {
    source.discard(0, source.size);
    await source[Symbol.asyncDispose]();
    throw error;
  }
}

async function open(
  source: ByteSource,
  kind: LayerKind | "auto",
): Promise<OpenedLayer> {
  const containers: Container[] = [];
  let data = await unwrapTar(source);
  if (data !== source) containers.push("tar");
  if (await isZFile(data)) {
    data = await openZFile(data);
    containers.push("zfile");
  }
  if (!(await isLsmt(data))) {
    throw new FormatError("overlaybd layer", "content", describe(containers));
  }
  return { ...await openLsmtLayer(data, kind), data, containers };
}

/**
 * Checks what readers of a layer blob's containers skip: the end of the tar
 * wrapper, the trailer of the ZFile.
 *
 * @param source A blob that opens, borrowed.
 * @throws {FormatError} Naming the container and what is there.
 * @throws {IntegrityError} If the trailer's digest is wrong.
 */
export async function checkContainers(source: ByteSource): Promise<void> {
  const payload = await findTarPayload(source);
  if (payload) await checkTarWrapper(source, payload);
  const inner = payload
    ? new SliceSource(source, payload.offset, payload.size, { borrow: true })
    : source;
  if (await isZFile(inner)) await checkZFileTrailer(inner);
}

function describe(containers: Container[]): string {
  const last = containers.at(-1);
  if (last === "zfile") return "of its ZFile does not start with LSMT magic";
  if (last === "tar") {
    return "of its tar wrapper starts neither with ZFile nor with LSMT magic";
  }
  return "starts neither with a ustar header (exactly `ustar` NUL `00`) nor " +
    "with ZFile or LSMT magic";
}
