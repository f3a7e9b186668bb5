/** Rows of a database, taken as what they may be: anything. */

import {
  isDigest,
  parseReference,
  type RegistryReference,
} from "../../registry/mod.ts";
import type { SqlRow } from "./connection.ts";
import type { ChainRow, LayerRow, ManifestRow } from "./database.ts";

/** Largest count of layers that is taken for one. */
const LAYER_COUNT_MAX = 100_000;

function text(row: SqlRow, column: string): string {
  const value = row[column];
  return typeof value === "string" ? value : "";
}

/** Whole numbers of up to 15 digits, however the engine gives them; NaN for anything else. */
function integer(row: SqlRow, column: string): number {
  const value = String(row[column]);
  return /^\d{1,15}$/.test(value) ? Number(value) : NaN;
}

/** Whether a row's place is one that requests may go to: its path becomes part of a URL. */
function isPlace(host: string, repository: string): boolean {
  try {
    const parsed = parseReference(`${host}/${repository}`) as RegistryReference;
    return parsed.kind === "registry" && parsed.registry === host &&
      parsed.repository === repository && parsed.digest === undefined;
  } catch {
    return false;
  }
}

/** @returns Undefined for a row that cannot be right. */
export function chainRow(row: SqlRow): ChainRow | undefined {
  const host = text(row, "host");
  const repository = text(row, "repo");
  const chainKey = text(row, "chain_key");
  const manifestDigest = text(row, "manifest_digest");
  const layerCount = integer(row, "layer_count");
  return isPlace(host, repository) && /^[0-9a-f]{64}$/.test(chainKey) &&
      isDigest(manifestDigest) && layerCount >= 1 &&
      layerCount <= LAYER_COUNT_MAX
    ? { host, repository, chainKey, manifestDigest, layerCount }
    : undefined;
}

/** @returns Undefined for a row that cannot be right. */
export function layerRow(row: SqlRow): LayerRow | undefined {
  const host = text(row, "host");
  const repository = text(row, "repo");
  const chainId = text(row, "chain_id");
  const digest = text(row, "data_digest");
  const size = integer(row, "data_size");
  return isPlace(host, repository) && isDigest(chainId) && isDigest(digest) &&
      size > 0
    ? { host, repository, chainId, digest, size }
    : undefined;
}

/** @returns Undefined for a row that cannot be right. */
export function manifestRow(row: SqlRow): ManifestRow | undefined {
  const host = text(row, "host");
  const repository = text(row, "repo");
  const sourceDigest = text(row, "src_digest");
  const digest = text(row, "out_digest");
  const size = integer(row, "data_size");
  const mediaType = text(row, "mediatype");
  return isPlace(host, repository) && isDigest(sourceDigest) &&
      isDigest(digest) && size > 0
    ? { host, repository, sourceDigest, digest, size, mediaType }
    : undefined;
}
