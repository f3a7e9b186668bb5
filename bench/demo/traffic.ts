/** Bytes of blobs that a registry was asked for, by its request log. */

import type { Descriptor } from "../../lib/registry/mod.ts";
import type { LoggedRequest } from "../../tests/testutil/registry_server.ts";

/** Counts what is fetched from the moment it is made. */
export class BlobTraffic {
  readonly #requests: readonly LoggedRequest[];
  readonly #since: number;
  readonly #sizes = new Map<string, { size: number; isMeta: boolean }>();

  constructor(
    requests: readonly LoggedRequest[],
    layers: readonly Descriptor[],
    metas: readonly Descriptor[],
  ) {
    this.#requests = requests;
    this.#since = requests.length;
    for (const { digest, size } of layers) {
      this.#sizes.set(digest, { size, isMeta: false });
    }
    for (const { digest, size } of metas) {
      this.#sizes.set(digest, { size, isMeta: true });
    }
  }

  /** Bytes so far. */
  count(): { layerBytes: number; metaBytes: number } {
    let layerBytes = 0;
    let metaBytes = 0;
    for (const request of this.#requests.slice(this.#since)) {
      const digest = request.path.split("/").at(-1)!;
      const blob = this.#sizes.get(digest);
      if (!blob || request.method !== "GET" || request.status >= 300) continue;
      const bytes = bytesOf(request.range, blob.size);
      if (blob.isMeta) metaBytes += bytes;
      else layerBytes += bytes;
    }
    return { layerBytes, metaBytes };
  }
}

/** Bytes of an answer to `bytes=A-B`, or to no range. */
function bytesOf(range: string | null, size: number): number {
  const match = /^bytes=(\d+)-(\d*)$/.exec(range ?? "");
  if (!match) return size;
  const last = match[2] ? Math.min(Number(match[2]), size - 1) : size - 1;
  return Math.max(0, last - Number(match[1]) + 1);
}
