/** What one run of one contender measured. Seconds since the command. */

import type { Cost } from "./cost.ts";
import type { ReadCounters } from "../../lib/image/mod.ts";
import type { Traffic } from "./proxy.ts";
import type { Stages } from "./stages.ts";

/** See the module's comment. */
export interface Measurement {
  /** obd has read the image's documents and its meta image. */
  openedSeconds?: number;
  /** The root file system is there: pulled and unpacked, or mounted. */
  rootSeconds: number;
  /** The container's process was seen; within 50 ms. */
  containerSeconds?: number;
  /**
   * The first program of the image runs. Images of the tree have a shell that
   * says so; elsewhere it is the first output, undefined without any.
   */
  firstByteSeconds?: number;
  /** The service is available. */
  readySeconds: number;
  traffic: Traffic;
  /** What was read of the block device until then, at obd's NBD server. */
  edge?: EdgeReads;
  /** What these reads waited for and what was loaded, as obd's serve counts it. */
  reading?: ReadCounters;
  /** Where the time until then went, of a lazy contender; they add up. */
  stages?: Stages;
  /** Digest of the meta image, or native image, that was opened. */
  metaDigest?: string;
  /** Of the contender's daemons, commands and helpers. */
  cost: Cost;
  /** Bytes on disk of what the contender keeps. */
  diskBytes: number;
  /** Requests per second of the warm service. */
  steadyRate?: number;
  /** CPU time of service and tools for each of these: unlike the rate it is hardly changed by what else runs. */
  steadyCpuSeconds?: number;
}

/** Reads that arrived at a server, as its client asked for them. */
export interface EdgeReads {
  reads: number;
  bytes: number;
}

/** Milliseconds are as fine as it gets. */
export function since(started: number): number {
  return Math.round(performance.now() - started) / 1000;
}
