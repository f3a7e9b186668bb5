/** Made-up results for tests of what is done with them. */

import type { Measurement } from "../../cmd/bench/measurement.ts";
import type {
  ImageFacts,
  MachineFacts,
  RunResult,
  Session,
  Touched,
} from "../../cmd/bench/result.ts";
import type { Stages } from "../../cmd/bench/stages.ts";

/** Where the time of a lazy run went. */
export const STAGES: Stages = {
  command: 0.03,
  open: 0.4,
  mount: 0.07,
  queue: 0,
  fetch: 0.5,
  decode: 0.25,
  other: 0.01,
  service: 1,
};

export const LAYER = `sha256:${"ab".repeat(32)}`;
const MB = 1e6;

/** One measured run. */
export function measured(
  readySeconds: number,
  more: Partial<Measurement> = {},
): Measurement {
  return {
    rootSeconds: readySeconds / 2,
    firstByteSeconds: readySeconds * 0.75,
    readySeconds,
    traffic: {
      requests: 5,
      connections: 1,
      bytes: 2 * MB,
      firstRequestSeconds: readySeconds / 10,
      curve: [[0, 0], [readySeconds / 4, MB], [readySeconds / 2, 2 * MB]],
      blobs: [{ digest: LAYER, ranges: [[0, null]] }],
    },
    cost: {
      cpuSeconds: 1.5,
      peakRssBytes: 100 * MB,
      machineCpuSeconds: 2.5,
      processes: [
        { name: "obd serve", cpuSeconds: 1.25, peakRssBytes: 90 * MB },
        { name: "service", cpuSeconds: 0.25, peakRssBytes: 20 * MB },
      ],
    },
    diskBytes: 3 * MB,
    ...more,
  };
}

/** A run, or a failed one without a time. */
export function runOf(
  contender: string,
  round: number,
  ready?: number,
  more: Partial<Measurement> = {},
  workload = "w",
): RunResult {
  const base = { workload, contender, round };
  return ready === undefined
    ? { ...base, failure: "it broke" }
    : { ...base, measurement: measured(ready, more) };
}

export const MACHINE: MachineFacts = {
  cpu: "A processor",
  cores: 2,
  memoryBytes: 8e9,
  kernel: "6.1.0",
  versions: { obd: "0.1.0" },
  commit: "0123456789abcdef",
  started: "2026-01-02T03:04:05.000Z",
  command: ["obd", "bench", "image", "--", "true"],
  mode: "full",
  leavesOut: [],
  link: {
    rate: "500mbit",
    bytesPerSecond: 62_500_000,
    rttMs: 5,
    method: "as it is made",
  },
};

export function imageOf(workload = "w"): ImageFacts {
  return {
    workload,
    reference: "workload/given:v1",
    digest: LAYER,
    compressedBytes: 10 * MB,
    layers: [{ digest: LAYER, size: 10 * MB }],
    build: { seconds: 1.25, bytes: 60_000 },
  };
}

export function touchedOf(workload = "w"): Touched {
  return {
    workload,
    bytes: 4 * MB,
    storedBytes: 1 * MB,
    layers: [{
      digest: LAYER,
      size: 10 * MB,
      contentBytes: 3 * MB,
      metadataBytes: 1 * MB,
      storedBytes: 1 * MB,
      cells: Array.from({ length: 200 }, (_, i) => i < 20 ? 0.5 : 0),
    }],
    limit: {
      warmSeconds: 0.5,
      transferSeconds: 0.016,
      rttSeconds: 0.005,
      totalSeconds: 0.521,
    },
  };
}

/** A bench of several contenders, one of which fails. */
export function sessionOf(more: Partial<Session> = {}): Session {
  const lazy = {
    openedSeconds: 0.25,
    edge: { reads: 100, bytes: 4 * MB },
    stages: STAGES,
  };
  return {
    machine: MACHINE,
    images: [imageOf()],
    touched: [touchedOf()],
    runs: [
      runOf("oci", 1, 10, { steadyRate: 1000 }),
      runOf("obd", 1, 2, { ...lazy, steadyRate: 980 }),
      runOf("umoci", 1),
      runOf("oci", 2, 14, { steadyRate: 1000 }),
      runOf("obd", 2, 1, lazy),
      runOf("obd", 3, 3, lazy),
    ],
    ...more,
  };
}

/** As `--output` writes it. */
export function linesOf({ machine, images, touched, runs }: Session): string {
  return [
    { event: "machine", ...machine },
    ...images.map((image) => ({ event: "image", ...image })),
    ...touched.map((one) => ({ event: "touched", ...one })),
    ...runs.map((run) => ({ event: "run", ...run })),
    { event: "summary", whatever: true },
  ].map((line) => JSON.stringify(line) + "\n").join("");
}
