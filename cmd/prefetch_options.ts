/** What `mount`, `attach`, the configuration and the API can say about fetching ahead. */

import { UsageError } from "../lib/io/mod.ts";
import { absolutePath } from "./mount_serve.ts";
import { parsePrefetchRate, RATE_FORM } from "./rate.ts";

/** Options of the command line. */
export interface PrefetchFlags {
  /** A file, or false for `--no-trace`. */
  trace?: string | boolean;
  prefetchFiles?: string;
  prefetchRate?: string;
}

/** The same for the API of a serve: absolute paths, since it has another working directory. */
export interface PrefetchRequest {
  trace?: string | false;
  prefetchFiles?: string;
  prefetchRate?: string;
}

/** @throws {UsageError} If the rate is none. */
export function prefetchRequest(flags: PrefetchFlags): PrefetchRequest {
  const { trace, prefetchFiles, prefetchRate } = flags;
  if (
    prefetchRate !== undefined && parsePrefetchRate(prefetchRate) === undefined
  ) {
    throw new UsageError(
      `--prefetch-rate "${prefetchRate}" is no rate: ${RATE_FORM}`,
    );
  }
  return {
    ...(typeof trace === "string" ? { trace: absolutePath(trace) } : {}),
    ...(trace === false ? { trace } : {}),
    ...(prefetchFiles === undefined
      ? {}
      : { prefetchFiles: absolutePath(prefetchFiles) }),
    ...(prefetchRate === undefined ? {} : { prefetchRate }),
  };
}
