/**
 * overlaybd's acceleration layer: the topmost layer of an image, a plain tar
 * whose one member `trace` is a trace of the layers below it (aci
 * cmd/ctr/record_trace.go: createImageWithAccelLayer).
 */

import { FormatError, LimitError, roundUp } from "../io/mod.ts";
import { SECTOR_SIZE, TarWalker } from "../tar/mod.ts";
import { decodeTrace, encodeTrace, type TraceRecord } from "./trace.ts";
import { ustarHeader } from "./ustar_header.ts";

const MEMBER = "trace";
/** Bytes of such a layer that are read: about 2.8 million records. */
export const ACCELERATION_SIZE_MAX = 64 * 1024 * 1024;

/**
 * The tar of an acceleration layer.
 *
 * @param records Of single layers, in reads of at most 1 MiB: that is what
 * overlaybd replays.
 */
export function writeAccelerationLayer(
  records: readonly TraceRecord[],
): Uint8Array<ArrayBuffer> {
  const trace = encodeTrace(records);
  const body = roundUp(trace.length, SECTOR_SIZE);
  const tar = new Uint8Array(SECTOR_SIZE + body + 2 * SECTOR_SIZE);
  if (tar.length > ACCELERATION_SIZE_MAX) {
    throw new LimitError(
      `An acceleration layer has at most ${ACCELERATION_SIZE_MAX} bytes`,
    );
  }
  tar.set(ustarHeader(MEMBER, 0o444, trace.length));
  tar.set(trace, SECTOR_SIZE);
  return tar;
}

/**
 * The records of an acceleration layer.
 *
 * @param tar The whole layer; its digest was checked.
 * @throws {FormatError} If it is no tar, has no `trace`, or that is damaged.
 */
export function readAccelerationLayer(tar: Uint8Array): TraceRecord[];
/** The same while others have their turns, as `decodeTrace()` does it. */
export function readAccelerationLayer(
  tar: Uint8Array,
  options: { most: number },
): Promise<TraceRecord[]>;
export function readAccelerationLayer(
  tar: Uint8Array,
  options?: { most: number },
): TraceRecord[] | Promise<TraceRecord[]> {
  const trace = traceOf(tar);
  return options ? decodeTrace(trace, options) : decodeTrace(trace);
}

function traceOf(tar: Uint8Array): Uint8Array {
  if (tar.length > ACCELERATION_SIZE_MAX) {
    throw new FormatError("acceleration layer", "size", `is ${tar.length}`);
  }
  let trace: Uint8Array | undefined;
  const walker = new TarWalker({
    onEntry: (entry) => {
      if (entry.path !== MEMBER || entry.type !== "file") return;
      // Sparse, it could claim to be of any size.
      if (entry.size > tar.length) {
        throw new FormatError("acceleration layer", MEMBER, "is sparse");
      }
      trace = new Uint8Array(entry.size);
      for (const { fileSector, tarSector, sectors } of entry.runs) {
        const from = tarSector * SECTOR_SIZE;
        put(
          trace,
          fileSector,
          tar.subarray(from, from + sectors * SECTOR_SIZE),
        );
      }
      for (const { fileSector, bytes } of entry.patches) {
        put(trace, fileSector, bytes);
      }
    },
  });
  walker.push(tar);
  walker.finish();
  if (!trace) {
    throw new FormatError("acceleration layer", MEMBER, "is missing");
  }
  return trace;
}

/** Sectors of a file; what lies behind its end is padding. */
function put(file: Uint8Array, sector: number, bytes: Uint8Array): void {
  const at = sector * SECTOR_SIZE;
  file.set(bytes.subarray(0, Math.max(0, file.length - at)), at);
}
