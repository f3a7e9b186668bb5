/** The key under which a chain of built layers is found again. */

import { sha256Digest } from "../registry/mod.ts";
import { utf8 } from "../io/mod.ts";
import { META_FORMAT_VERSION } from "./annotations.ts";

/** Everything that decides the bytes of a chain of meta layers. */
export interface ChainParameters {
  /** Digests of the uncompressed layers, base first. */
  diffIds: readonly string[];
  /** Digests of the layer blobs: an index fits one compressed form only. */
  layerDigests: readonly string[];
  /** Media types of the source layers. */
  mediaTypes: readonly string[];
  virtualSize: number;
  inodeRatio: number;
  /** Uncompressed bytes of a span at most; undefined where each layer has its own. */
  spanSize?: number | undefined;
  flatten: boolean;
  /** How native layers are stored, where some or all layers are native. */
  native?: { codec: string; blockSize: number } | undefined;
  /** Only layers that TurboOCI cannot read are native. */
  compat?: boolean | undefined;
  /** Only layers that can be decoded from their start alone are native. */
  convertUnseekable?: boolean | undefined;
  /** Map entries of one layer at most, where it is not what readers take. */
  maxEntries?: number | undefined;
  /** Digests of layers of other tools at the bottom: they decide where everything above is placed. */
  foreign?: readonly string[] | undefined;
}

/** OCI ChainID of diffIDs: names a stack by its uncompressed content (image-spec `config.md`). */
export function chainId(diffIds: readonly string[]): string {
  let id = diffIds[0] ?? sha256Digest(new Uint8Array());
  for (const diffId of diffIds.slice(1)) {
    id = sha256Digest(utf8(`${id} ${diffId}`));
  }
  return id;
}

/** @returns The key of the first `count` layers, as 64 hex digits. */
export function chainKey(parameters: ChainParameters, count: number): string {
  const p = parameters;
  const document = JSON.stringify({
    chain: chainId(p.diffIds.slice(0, count)),
    layers: p.layerDigests.slice(0, count),
    types: p.mediaTypes.slice(0, count),
    virtualSize: p.virtualSize,
    inodeRatio: p.inodeRatio,
    ...(p.spanSize === undefined ? {} : { spanSize: p.spanSize }),
    // A flattened chain is no prefix of anything.
    ...(p.flatten ? { flatten: p.diffIds.length } : {}),
    ...(p.native
      ? { native: [p.native.codec, p.native.blockSize, p.compat ?? false] }
      : {}),
    ...(p.convertUnseekable ? { convertUnseekable: true } : {}),
    ...(p.maxEntries === undefined ? {} : { maxEntries: p.maxEntries }),
    ...(p.foreign === undefined ? {} : { foreign: p.foreign }),
    version: META_FORMAT_VERSION,
  });
  return sha256Digest(utf8(document)).slice("sha256:".length);
}

/** The tag that a chain is kept under. */
export function chainTag(key: string): string {
  return `obd-${key.slice(0, 32)}`;
}
