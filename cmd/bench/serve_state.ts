/** What the serve of a contender says of its only export. */

import type { ReadCounters } from "../../lib/image/mod.ts";
import { ObdError } from "../../lib/io/mod.ts";
import { createApiClient } from "../api_client.ts";
import type { EdgeReads } from "./measurement.ts";

/** See the module's comment; counters since the export was added. */
export interface ServeState {
  edge: EdgeReads;
  reading: ReadCounters;
  /** Digest of the manifest of the meta image, or of the native image. */
  metaDigest: string | undefined;
}

/** @throws {ObdError} If nothing is served. */
async function serveState(
  api: string,
  signal: AbortSignal,
): Promise<ServeState> {
  using client = createApiClient(api);
  const [served] = (await client.status({ signal })).exports;
  if (!served) throw new ObdError("state", "obd serve has no export");
  const { counters, reading, meta } = served;
  return {
    edge: { reads: counters.reads, bytes: counters.readBytes },
    reading,
    metaDigest: meta,
  };
}

/**
 * What was measured must be what was built: a registry may hold several meta
 * images of an image.
 *
 * @throws {ObdError} Naming both, if another was opened.
 */
export function requireBuilt(
  { metaDigest }: ServeState,
  built: string | undefined,
): void {
  if (metaDigest === built) return;
  throw new ObdError(
    "state",
    `Another meta image was opened than the one that was built: ${metaDigest}, not ${built}`,
  );
}

/** What the serve says, if it has opened what was built. */
export async function builtState(
  api: string,
  metaDigest: string,
  signal: AbortSignal,
): Promise<ServeState> {
  const state = await serveState(api, signal);
  requireBuilt(state, metaDigest);
  return state;
}

/** A serve as it was with the root file system, and how to ask it again. */
export interface WatchedServe {
  atRoot: Promise<ServeState>;
  state(): Promise<ServeState>;
}

/** Asks a serve how it is now. Not waited for: the service starts meanwhile. */
export function watchServe(
  api: string,
  metaDigest: string,
  signal: AbortSignal,
): WatchedServe {
  const state = () => builtState(api, metaDigest, signal);
  const atRoot = state();
  atRoot.catch(() => {}); // whoever waits for it is told
  return { atRoot, state };
}
