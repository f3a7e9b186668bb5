/** The answer to BLOCK_STATUS in the context `base:allocation` [proto.md, Metadata contexts]. */

import type { ByteSource, ExtentKind } from "../io/mod.ts";
import { ALLOCATION_ID } from "./handshake.ts";
import {
  CHUNK,
  CHUNK_DONE,
  CHUNK_HEADER,
  COMMAND_FLAG,
  type Request,
  STATE,
  writeChunkHeader,
} from "./protocol.ts";

/** Descriptors of one answer; the client asks again for what is left. */
const MAX_DESCRIPTORS = 4096;
/** Extents of the source that are looked at for one answer. */
const MAX_EXTENTS = 65536;
const DESCRIPTORS_AT = CHUNK_HEADER.SIZE + 4;

/** Most bytes of an answer. */
export const BLOCK_STATUS_MAX = DESCRIPTORS_AT + 8 * MAX_DESCRIPTORS;

function stateOf(kind: ExtentKind): number {
  if (kind === "data") return 0;
  return kind === "hole" ? STATE.hole | STATE.zero : STATE.zero;
}

/**
 * Writes the answer at `at`, where {@linkcode BLOCK_STATUS_MAX} bytes are free.
 *
 * @returns Its length.
 */
export function answerBlockStatus(
  source: ByteSource,
  request: Request,
  view: DataView,
  at: number,
): number {
  const most = (request.flags & COMMAND_FLAG.reqOne) !== 0
    ? 1
    : MAX_DESCRIPTORS;
  const end = request.offset + request.length;
  let count = 0;
  let reached = request.offset;
  let looked = 0;
  let length = 0;
  let state = 0;
  const put = () => {
    view.setUint32(at + DESCRIPTORS_AT + 8 * count, length);
    view.setUint32(at + DESCRIPTORS_AT + 8 * count + 4, state);
    count++;
  };
  for (
    const extent of source.extents?.(request.offset, request.length) ?? []
  ) {
    const next = Math.min(extent.offset + extent.length, end);
    if (next <= reached) continue;
    const kind = stateOf(extent.kind);
    if (length > 0 && kind !== state) {
      put();
      length = 0;
      if (count === most) break;
    }
    state = kind;
    length += next - reached;
    reached = next;
    if (++looked === MAX_EXTENTS) break;
  }
  if (length > 0) put();
  if (count === 0) {
    // A source that cannot tell: all of it may be data.
    length = request.length;
    state = 0;
    put();
  }
  writeChunkHeader(
    view,
    at,
    request,
    CHUNK.blockStatus,
    CHUNK_DONE,
    4 + 8 * count,
  );
  view.setUint32(at + CHUNK_HEADER.SIZE, ALLOCATION_ID);
  return DESCRIPTORS_AT + 8 * count;
}
