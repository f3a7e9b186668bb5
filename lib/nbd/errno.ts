/** The only place where our errors become numbers of the protocol, and back. */

import { ObdError } from "../io/mod.ts";

/** Error numbers that may stand on the wire [proto.md, Error values]. */
export const NBD_ERROR = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const;

/** System errors (`error.code`) that have a better number than EIO. */
const BY_SYSTEM_CODE: ReadonlyMap<unknown, number> = new Map([
  ["EPERM", NBD_ERROR.EPERM],
  ["EACCES", NBD_ERROR.EPERM],
  ["EROFS", NBD_ERROR.EPERM],
  ["ENOSPC", NBD_ERROR.ENOSPC],
  ["EDQUOT", NBD_ERROR.ENOSPC],
  ["EFBIG", NBD_ERROR.ENOSPC],
]);

/**
 * The number for a failed request. Whatever obd raises on purpose (a wrong
 * digest, a registry that is gone, a deadline) is EIO: the client asked well
 * and the data is not to be had.
 *
 * @param writing Whether the request changes the export; only then can space
 * or permission be what is missing.
 */
export function nbdErrorOf(error: unknown, writing: boolean): number {
  if (!writing || error instanceof ObdError) return NBD_ERROR.EIO;
  const code = error instanceof Error && "code" in error
    ? error.code
    : undefined;
  return BY_SYSTEM_CODE.get(code) ?? NBD_ERROR.EIO;
}

/** A number's name, for messages. */
export function nbdErrorName(number: number): string {
  for (const [name, value] of Object.entries(NBD_ERROR)) {
    if (value === number) return name;
  }
  return `error ${number}`;
}

/** A server's answer that a request, or an option, failed. */
export class NbdError extends ObdError {
  /** The number from the wire: an errno for a request, a reply type for an option. */
  readonly errno: number;

  constructor(message: string, errno: number) {
    super("state", message);
    this.errno = errno;
  }
}
