/** What a supervisor and its children say to each other, one JSON object a line. */

import type { FindingRecord } from "./findings.ts";

/** Iterations of one target. */
export interface Slice {
  target: string;
  seed: number;
  /** First iteration. */
  from: number;
  /** End, exclusive. */
  to: number;
  /** Ends earlier after so many milliseconds. */
  milliseconds: number | undefined;
}

/** Reads one saved input and says what came of it. */
export interface Probe {
  /** Path of a finding's JSON. */
  probe: string;
}

/** What came of a {@linkcode Slice}. */
export interface SliceResult {
  /** The iteration after the last one that was run. */
  next: number;
  read: number;
  refused: number;
  /** Computing time of the process, all its threads. */
  cpuMs: number;
  /** Computing time of one input. */
  slowestMs: number;
  slowestIteration: number;
}

/** A result of nothing. */
export function emptyResult(next: number): SliceResult {
  return {
    next,
    read: 0,
    refused: 0,
    cpuMs: 0,
    slowestMs: 0,
    slowestIteration: next,
  };
}

/** Adds what came of the iterations that follow. */
export function addResult(total: SliceResult, part: SliceResult): void {
  total.next = Math.max(total.next, part.next);
  total.read += part.read;
  total.refused += part.refused;
  total.cpuMs += part.cpuMs;
  if (part.slowestMs > total.slowestMs) {
    total.slowestMs = part.slowestMs;
    total.slowestIteration = part.slowestIteration;
  }
}

/** From a child. */
export type ChildMessage =
  | { type: "finding"; finding: FindingRecord; base64: string }
  | { type: "slice"; result: SliceResult }
  | { type: "probe"; kind: string; message: string };

/** Bytes of the heartbeat file: the iteration as float64. */
export const HEARTBEAT_SIZE = 8;
