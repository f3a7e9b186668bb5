/** Which requests an export answers, checked once for all layers below. */

import { NBD_ERROR } from "./errno.ts";
import type { NbdExport } from "./exports.ts";
import {
  COMMAND,
  COMMAND_FLAG,
  MAX_PAYLOAD,
  type Request,
  TRANSMISSION,
} from "./protocol.ts";

/** Flags that a command may carry beside FUA [proto.md, Command flags]. */
function allowedFlags(type: number, structured: boolean): number {
  if (type === COMMAND.read) return structured ? COMMAND_FLAG.df : 0;
  if (type === COMMAND.writeZeroes) return COMMAND_FLAG.noHole;
  if (type === COMMAND.blockStatus) return COMMAND_FLAG.reqOne;
  return 0;
}

/** The transmission flag that a changing command needs. */
const NEEDS: Readonly<Record<number, number>> = {
  [COMMAND.flush]: TRANSMISSION.sendFlush,
  [COMMAND.trim]: TRANSMISSION.sendTrim,
  [COMMAND.writeZeroes]: TRANSMISSION.sendWriteZeroes,
};

/** Whether a command changes the export. */
export function isWriting(type: number): boolean {
  return type === COMMAND.write || type === COMMAND.trim ||
    type === COMMAND.writeZeroes || type === COMMAND.flush;
}

/**
 * Checks a request against its export.
 *
 * @returns 0, or the errno of the refusal [proto.md, Error values].
 */
export function checkRequest(
  served: NbdExport,
  structured: boolean,
  allocation: boolean,
  request: Request,
): number {
  const { type, flags, offset, length } = request;
  const { EINVAL, EPERM, ENOSPC } = NBD_ERROR;
  if (type > COMMAND.blockStatus || type === COMMAND.disconnect) return EINVAL;
  // READ is nearly all there is: its checks come first and alone.
  const { size } = served.source;
  if (type === COMMAND.read && flags === 0) {
    return length === 0 || length > MAX_PAYLOAD || offset + length > size
      ? EINVAL
      : 0;
  }
  const can = served.transmissionFlags(structured);
  const fua = (can & TRANSMISSION.sendFua) !== 0 ? COMMAND_FLAG.fua : 0;
  if ((flags & ~(allowedFlags(type, structured) | fua)) !== 0) return EINVAL;
  if (served.readOnly && isWriting(type) && type !== COMMAND.flush) {
    return EPERM;
  }
  const needs = NEEDS[type] ?? 0;
  if ((can & needs) !== needs) return EINVAL;
  if (type === COMMAND.flush) return offset === 0 && length === 0 ? 0 : EINVAL;
  if (type === COMMAND.blockStatus && !allocation) return EINVAL;
  if (length === 0) return EINVAL;
  const hasData = type === COMMAND.read || type === COMMAND.write;
  if (hasData && length > MAX_PAYLOAD) return EINVAL;
  if (offset + length <= size) return 0;
  const grows = type === COMMAND.write || type === COMMAND.writeZeroes;
  return grows ? ENOSPC : EINVAL;
}
