/** Where the time until a service was available went: stages that follow each other and add up to it. */

import type { ReadCounters } from "../../lib/image/mod.ts";
import type { Limit } from "./limit.ts";
import type { Measurement } from "./measurement.ts";

/** See the module's comment; in their order. */
export const STAGES = [
  "command",
  "open",
  "mount",
  "queue",
  "fetch",
  "decode",
  "other",
  "service",
] as const;

/** See {@linkcode STAGES}. */
export type StageName = typeof STAGES[number];

/** What each is, for people. */
export const STAGE_TITLES: Readonly<Record<StageName, string>> = {
  command: "to the first request",
  open: "pull, or find and open the image",
  mount: "rest of unpacking, or mount",
  queue: "reads wait for a place",
  fetch: "reads wait for the network",
  decode: "reads wait for decoding",
  other: "reads wait for anything else",
  service: "container and service",
};

/**
 * Seconds by stage; what is not known is absent. From the root file system on
 * the time is split: "queue" to "other" is when at least one read of the device
 * waited, by what for; "service" is the rest, when everything was at hand, to be
 * compared with a warm start.
 */
export type Stages = Partial<Record<StageName, number>>;

/** The stages of a run with the counters of its serve when the root was there, and when the service was. */
export function countedStages(
  measurement: Measurement,
  atRoot: ReadCounters,
  atReady: ReadCounters,
): Stages {
  const { service, ...before } = timedStages(measurement);
  const waits = (["queue", "fetch", "decode", "other"] as const).map((name) =>
    [
      name,
      Math.max(0, atReady.waitingFor[name] - atRoot.waitingFor[name]),
    ] as const
  );
  const waited = waits.reduce((sum, [, seconds]) => sum + seconds, 0);
  // The counters are asked for a moment after the times that they belong to.
  const fit = waited > service ? service / waited : 1;
  const rounded = waits.map(([name, seconds]) => [name, toMs(seconds * fit)]);
  const left = rounded.reduce((rest, [, s]) => rest - (s as number), service);
  return {
    ...before,
    ...Object.fromEntries(rounded),
    service: toMs(Math.max(0, left)),
  };
}

/** The stages of any run: counted ones where it has them, else by times alone. */
export function stagesOf(measurement: Measurement): Stages {
  return measurement.stages ?? timedStages(measurement);
}

/** What of each stage the limit has: the service, and one fetch of all that it touches. */
export function limitStages(limit: Limit): Stages {
  const { warmSeconds, transferSeconds, rttSeconds } = limit;
  return { fetch: transferSeconds + rttSeconds, service: warmSeconds };
}

function timedStages(
  { traffic, openedSeconds, rootSeconds, readySeconds }: Measurement,
): Record<"command" | "open" | "mount" | "service", number> {
  const pulled = openedSeconds ?? lastByteBefore(traffic.curve, rootSeconds);
  const ends = [
    traffic.firstRequestSeconds ?? 0,
    pulled ?? rootSeconds,
    rootSeconds,
    readySeconds,
  ];
  let at = 0;
  const [command, open, mount, service] = ends.map((end) => {
    const start = at;
    at = Math.min(readySeconds, Math.max(at, end));
    return toMs(at - start);
  }) as [number, number, number, number];
  return { command, open, mount, service };
}

/** When the last byte came that was fetched before a time. */
function lastByteBefore(
  curve: Measurement["traffic"]["curve"],
  end: number,
): number | undefined {
  const before = curve.filter(([at]) => at <= end);
  return before.length > 1 ? before.at(-1)![0] : undefined;
}

function toMs(seconds: number): number {
  return Math.round(seconds * 1000) / 1000;
}
