import assert from "node:assert/strict";
import { CodecPool } from "../../lib/compress/mod.ts";
import {
  type AcquireOptions,
  BudgetShare,
  ByteBudget,
  CancelledError,
  priorityOf,
  Semaphore,
  Urgency,
  UrgencyQueue,
} from "../../lib/io/mod.ts";

/** Lets every promise that can settle do so. */
const turn = () => new Promise((resolve) => setTimeout(resolve, 0));

Deno.test("Urgency rises once, tells listeners once, and forgets those that left", () => {
  const urgency = new Urgency("prefetch");
  const heard: string[] = [];
  urgency.onHurry(() => heard.push("a"));
  const leave = urgency.onHurry(() => heard.push("gone"));
  leave();
  const follower = new Urgency("prefetch");
  follower.follow({ urgency });
  const other = new Urgency("prefetch");
  other.follow({ urgency })();
  urgency.hurry();
  urgency.hurry();
  assert.deepEqual(heard, ["a"]);
  assert.equal(priorityOf({ urgency, priority: "prefetch" }), "demand");
  assert.equal(follower.priority, "demand");
  assert.equal(other.priority, "prefetch");
  urgency.onHurry(() => heard.push("late"));
  assert.deepEqual(heard, ["a", "late"]);
  other.follow({ priority: "prefetch" });
  assert.equal(other.priority, "prefetch");
  other.follow({});
  assert.equal(other.priority, "demand");
});

Deno.test("ByteBudget: who has a share goes on though others hold everything", async () => {
  const budget = new ByteBudget(100);
  const stuck = new BudgetShare(10);
  const share = new BudgetShare(10);
  const got: string[] = [];
  const releases: (() => void)[] = [];
  const ask = (name: string, bytes: number, options: AcquireOptions) =>
    budget.acquire(bytes, options).then((release) => {
      got.push(name);
      releases.push(release);
    }, () => got.push(`${name} gone`));
  await ask("all", 100, { share: stuck });
  ask("stuck too", 5, { share: stuck });
  ask("no share", 5, {});
  ask("ahead", 4, { share, priority: "prefetch" });
  await ask("first", 6, { share });
  ask("second", 6, { share });
  const control = new AbortController();
  ask("third", 6, { share, signal: control.signal });
  const urgency = new Urgency("prefetch");
  ask("hurried", 4, { share, urgency });
  ask("large", 11, { share });
  await turn();
  assert.deepEqual(got, ["all", "first"]);
  assert.deepEqual([budget.taken, share.taken], [106, 6]);
  // In its order within the share: the second does not fit yet.
  urgency.hurry();
  await turn();
  assert.equal(got.length, 2);
  releases[1]!();
  await turn();
  assert.deepEqual(got.slice(2), ["second"]);
  control.abort();
  await turn();
  assert.deepEqual(got.slice(3), ["third gone", "hurried"]);
  releases[0]!();
  await turn();
  assert.deepEqual(got.slice(5), ["stuck too", "no share", "large", "ahead"]);
  for (const release of releases.slice(2)) release();
  assert.deepEqual([budget.taken, share.taken, stuck.taken], [0, 0, 0]);
  assert.equal(share.waiting.size + stuck.waiting.size, 0);
});

Deno.test("ByteBudget: shares take twice the limit together, and no more", async () => {
  const budget = new ByteBudget(100);
  await budget.acquire(100);
  const shares = Array.from({ length: 30 }, () => new BudgetShare(10));
  let granted = 0;
  for (const share of shares) {
    budget.acquire(10, { share }).then(() => granted++);
  }
  await turn();
  assert.deepEqual([granted, budget.taken], [10, 200]);
});

Deno.test("UrgencyQueue: what is hurried joins the end of demand", () => {
  const queue = new UrgencyQueue<string>();
  const urgency = new Urgency("prefetch");
  const gone = new Urgency("prefetch");
  const hurried: string[] = [];
  queue.push("p1", { priority: "prefetch" });
  queue.push("p2", { urgency }, () => hurried.push("p2"));
  const leave = queue.push("p3", { urgency: gone }, () => hurried.push("p3"));
  queue.push("d1", {});
  assert.equal(leave(), true);
  assert.equal(leave(), false);
  urgency.hurry();
  gone.hurry();
  assert.deepEqual(hurried, ["p2"]);
  queue.push("d2", { urgency });
  assert.equal(queue.ahead("demand"), 3);
  assert.equal(queue.length, 4);
  assert.equal(queue.peek("prefetch"), "p1");
  const order = Array.from({ length: 5 }, () => queue.shift());
  assert.deepEqual(order, ["d1", "p2", "d2", "p1", undefined]);
});

Deno.test("Semaphore keeps permits free for demand and lets a hurried waiter in", async () => {
  const semaphore = new Semaphore(4, 2);
  const running: string[] = [];
  const ends: (() => void)[] = [];
  const start = (name: string, options = {}) =>
    semaphore.run(() => {
      running.push(name);
      return new Promise<void>((resolve) => ends.push(resolve));
    }, options);
  const urgency = new Urgency("prefetch");
  const all = [
    start("p1", { priority: "prefetch" }),
    start("p2", { priority: "prefetch" }),
    start("p3", { priority: "prefetch" }),
    start("p4", { urgency }),
  ];
  await turn();
  assert.deepEqual(running, ["p1", "p2"]);
  all.push(start("d1"));
  await turn();
  assert.deepEqual(running, ["p1", "p2", "d1"]);
  urgency.hurry();
  await turn();
  assert.deepEqual(running, ["p1", "p2", "d1", "p4"]);
  const stop = new AbortController();
  const cancelled = start("d2", { signal: stop.signal });
  await turn();
  assert.equal(semaphore.waiting, 2);
  stop.abort();
  await assert.rejects(cancelled, CancelledError);
  // A demand permit that comes back is not for a third prefetch.
  ends[2]!();
  await turn();
  assert.equal(semaphore.waiting, 1);
  ends[0]!();
  await turn();
  assert.deepEqual(running, ["p1", "p2", "d1", "p4", "p3"]);
  for (const end of ends) end();
  await Promise.all(all);
});

Deno.test("ByteBudget: a hurried waiter goes before prefetch that came first", async () => {
  const budget = new ByteBudget(10);
  const urgency = new Urgency("prefetch");
  const release = await budget.acquire(10);
  const order: string[] = [];
  const wait = async (name: string, options: object) => {
    const give = await budget.acquire(10, options);
    order.push(name);
    give();
  };
  const all = [
    wait("first", { priority: "prefetch" }),
    wait("hurried", { urgency }),
  ];
  await turn();
  urgency.hurry();
  release();
  await Promise.all(all);
  assert.deepEqual(order, ["hurried", "first"]);
  assert.equal(budget.taken, 0);
});

Deno.test("CodecPool: a hurried job goes before prefetch that came first", async () => {
  using pool = new CodecPool({ threads: 1 });
  const urgency = new Urgency("prefetch");
  const order: string[] = [];
  const bytes = new Uint8Array(1000);
  const all = [
    pool.sha256(bytes),
    pool.sha256(bytes, { priority: "prefetch" }).then(() => order.push("p")),
    pool.sha256(bytes, { urgency }).then(() => order.push("hurried")),
  ];
  urgency.hurry();
  await Promise.all(all);
  assert.deepEqual(order, ["hurried", "p"]);
});
