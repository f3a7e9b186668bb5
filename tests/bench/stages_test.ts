/** Where the time went: stages add up, whatever the counters say. */

import assert from "node:assert/strict";
import {
  countedStages,
  limitStages,
  type Stages,
  stagesOf,
} from "../../cmd/bench/stages.ts";
import { type ReadCounters, ReadStats } from "../../lib/image/mod.ts";
import { measured } from "./sessions.ts";

function waited(
  queue: number,
  fetch: number,
  decode: number,
  other: number,
): ReadCounters {
  const counters = new ReadStats().counters();
  return { ...counters, waitingFor: { queue, fetch, decode, other } };
}

function sum(stages: Stages): number {
  return Object.values(stages).reduce((a, b) => a + b, 0);
}

Deno.test("stagesOf() adds up to the time until the service was available", () => {
  const lazy = stagesOf(measured(8, { openedSeconds: 2 }));
  assert.deepEqual(lazy, { command: 0.8, open: 1.2, mount: 2, service: 4 });
  // The last byte came at half of the time, when the root was there too.
  assert.deepEqual(stagesOf(measured(8)), {
    command: 0.8,
    open: 3.2,
    mount: 0,
    service: 4,
  });
  const strange = stagesOf(measured(1, { rootSeconds: 5, openedSeconds: 0 }));
  assert.equal(sum(strange), 1);
  assert.ok(Object.values(strange).every((s) => s >= 0));
});

Deno.test("countedStages() splits what comes after the root by what reads waited for then", () => {
  const run = measured(8, { openedSeconds: 2 });
  const stages = countedStages(
    run,
    waited(0.1, 0.2, 0.3, 0.4),
    waited(0.2, 1.7, 1.3, 0.4),
  );
  assert.deepEqual(stages, {
    command: 0.8,
    open: 1.2,
    mount: 2,
    queue: 0.1,
    fetch: 1.5,
    decode: 1,
    other: 0,
    service: 1.4,
  });
  assert.deepEqual(stagesOf({ ...run, stages }), stages);
});

Deno.test("countedStages() adds up when the counters were asked for late", () => {
  // Half a second more was waited than there was time.
  const stages = countedStages(
    measured(1),
    waited(0, 0, 0, 0),
    waited(0.25, 0.5, 0.25, 0),
  );
  assert.deepEqual(
    [stages.queue, stages.fetch, stages.decode, stages.service],
    [0.125, 0.25, 0.125, 0],
  );
  assert.equal(sum(stages), 1);
});

Deno.test("limitStages() are the limit taken apart", () => {
  const limit = {
    warmSeconds: 0.5,
    transferSeconds: 0.25,
    rttSeconds: 0.125,
    totalSeconds: 0.875,
  };
  assert.deepEqual(limitStages(limit), { fetch: 0.375, service: 0.5 });
  assert.equal(sum(limitStages(limit)), limit.totalSeconds);
});
