/** The size of a blob of which only the digest is known. */

import { NotFoundError } from "../io/mod.ts";
import { redactText, RegistryError } from "./errors.ts";
import type { Session } from "./session.ts";

/**
 * Asks for the first byte, as a HEAD does not survive redirects to signed URLs.
 *
 * @returns Bytes.
 * @throws {NotFoundError} If the blob is absent.
 * @throws {RegistryError} If the answer does not tell.
 */
export function remoteBlobSize(
  session: Session,
  digest: string,
  options: { signal?: AbortSignal | undefined },
): Promise<number> {
  return session.request(
    {
      method: "GET",
      target: `blobs/${digest}`,
      access: "pull",
      headers: { range: "bytes=0-0" },
      signal: options.signal,
    },
    // 416 is the answer of an empty blob.
    [200, 206, 404, 416],
    async (answer) => {
      if (answer.status === 404) {
        throw new NotFoundError(
          `No blob "${digest}" in "${session.registry}/${session.repository}"`,
        );
      }
      await answer.discard();
      const range = answer.headers.get("content-range") ?? "";
      const stated = answer.status === 200
        ? answer.headers.get("content-length") ?? ""
        : /\/(\d+)$/.exec(range.trim())?.[1] ?? "";
      const size = Number(stated);
      if (stated === "" || !Number.isSafeInteger(size) || size < 0) {
        throw new RegistryError(
          `Size of blob ${digest} is not told (Content-Range "${
            redactText(range, 80)
          }")`,
          {
            status: answer.status,
            method: answer.method,
            url: answer.url,
            temporary: false,
          },
        );
      }
      return size;
    },
  );
}
