/** SHA-256 without long stalls. */

import { createHash } from "node:crypto";

/** Above this a digest is computed off the thread: more CPU, but no stall. */
const ASYNC_BYTES = 512 * 1024;

/** SHA-256 of `bytes`, which must not change until the promise settles. */
export async function sha256(bytes: Uint8Array): Promise<Uint8Array> {
  if (bytes.length <= ASYNC_BYTES || isShared(bytes)) {
    return createHash("sha256").update(bytes).digest();
  }
  return new Uint8Array(
    await crypto.subtle.digest("SHA-256", bytes as Uint8Array<ArrayBuffer>),
  );
}

/** WebCrypto refuses shared memory. */
function isShared(bytes: Uint8Array): boolean {
  return bytes.buffer instanceof SharedArrayBuffer;
}
