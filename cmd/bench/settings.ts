/** What every run of a workload shares. */

import type { Workload } from "./workloads.ts";
import type { BenchRegistry } from "./link.ts";

/** See the module's comment. */
export interface RunSettings {
  workload: Workload;
  registry: BenchRegistry;
  /** Repository and tag, without the host. */
  image: string;
  /** Digest of the meta image that was built of it. */
  metaDigest: string;
  /** The native image, where there is one. */
  native: { image: string; metaDigest: string } | undefined;
  /** An empty directory of this run. */
  work: string;
  /** For sockets: short, and this run's alone. */
  runDir: string;
  /** A recorded trace, read by `obd-trace`. */
  traceFile: string;
  /** Caches that outlive the run; used by the warm contender. */
  warmCache: string;
  deadlineMs: number;
  /** Seconds of requests to the warm service; 0 = none. */
  steadySeconds: number;
  signal: AbortSignal;
}
