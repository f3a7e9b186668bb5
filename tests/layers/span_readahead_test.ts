import assert from "node:assert/strict";
import { SpanReadahead } from "../../lib/layers/span_readahead.ts";
import { SpanTable } from "../../lib/layers/span_table.ts";

const MIB = 1024 * 1024;
const SPANS = 200;

/** Spans of 1 MiB, and what is started of them; each comes at once. */
function readahead() {
  const started: number[] = [];
  const ahead = new SpanReadahead(
    SpanTable.regular(MIB, SPANS * MIB, undefined),
    {
      readaheadBytes: undefined,
      memoryBytes: 64 * MIB,
      storeBytes: 1024 * MIB,
      fetch: (index) => {
        started.push(index);
        return Promise.resolve();
      },
    },
  );
  return { ahead, started };
}

/** A sequential reader of `[from, to)` spans. */
function readThrough(ahead: SpanReadahead, from: number, to: number): void {
  for (let at = from * MIB; at < to * MIB; at += MIB / 4) {
    if (at % MIB === 0) ahead.wanted(at / MIB);
    ahead.note(at, MIB / 4);
  }
}

/** Spans that are wanted beside others, so that neighbours are guessed. */
function wantThrees(ahead: SpanReadahead, from: number, times: number): void {
  for (let i = 0; i < times; i++) {
    for (const step of [0, 1, 2]) ahead.wanted(from + 4 * i + step);
  }
}

/** One that reads all of what it comes to, in no order. */
function readWhole(ahead: SpanReadahead, from: number, count: number): void {
  for (let i = 0; i < count; i++) {
    const index = from + (i * 7) % count;
    ahead.wanted(index);
    ahead.note(index * MIB, MIB);
  }
}

const all = [{ offset: 0, length: SPANS * MIB }];

Deno.test("SpanReadahead starts nothing while a plan is followed, and goes on behind it", () => {
  for (
    const [read, count] of [
      [readThrough, 15],
      [wantThrees, 15],
      [readWhole, 50],
    ] as const
  ) {
    const free = readahead();
    read(free.ahead, 0, count);
    assert.notEqual(free.started.length, 0, `${read.name} is read ahead of`);

    const { ahead, started } = readahead();
    const end = ahead.follow(all);
    read(ahead, 0, count);
    assert.deepEqual(started, [], read.name);
    end();
    read(ahead, 60, count);
    if (read === readThrough) read(ahead, 40, 44);
    assert.notEqual(started.length, 0, `${read.name}, later`);
  }
});

Deno.test("SpanReadahead leaves a plan that readers do not keep to, not one that they do", () => {
  const { ahead, started } = readahead();
  // The last span of it is named by one byte.
  ahead.follow([{ offset: 0, length: 100 * MIB }, {
    offset: 150 * MIB - 1,
    length: 1,
  }]);
  readThrough(ahead, 0, 100);
  ahead.wanted(149);
  assert.deepEqual(started, []);
  for (let i = 0; i < 16; i++) ahead.wanted(102 + 2 * i);
  readThrough(ahead, 0, 8);
  assert.deepEqual(started, []);
  ahead.wanted(148);
  readThrough(ahead, 8, 12);
  assert.notEqual(started.length, 0);
});

Deno.test("SpanReadahead follows the plan that still holds when another ends", () => {
  const { ahead, started } = readahead();
  const more = [{ offset: 0, length: (SPANS + 1) * MIB }];
  const ends = [ahead.follow(all), ahead.follow(more)];
  ends[0]!();
  ends[0]!();
  readThrough(ahead, 0, 8);
  assert.deepEqual(started, []);
  ends[1]!();
  readThrough(ahead, 8, 12);
  assert.notEqual(started.length, 0);
});
