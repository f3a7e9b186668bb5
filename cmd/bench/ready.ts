/** Waits for a service to be available, and asks it as fast as it answers. */

import { delay, ObdError } from "../../lib/io/mod.ts";
import type { BenchProcess } from "./process.ts";
import type { Ready } from "./workloads.ts";

const POLL_INTERVAL_MS = 5;
const ANSWER_DEADLINE_MS = 120_000;
const STEADY_CLIENTS = 4;
/** Asked first without counting: a service's own caches are part of its start. */
const STEADY_WARM_UP_MS = 1_000;

/**
 * Waits until a service is available.
 *
 * @param what The process, for people.
 * @throws {ObdError} If the process ends first, or the deadline passes.
 */
export async function waitForReady(
  container: BenchProcess,
  ready: Ready,
  deadlineMs: number,
  signal: AbortSignal,
  what = "container",
): Promise<void> {
  const stop = new AbortController();
  const expired = AbortSignal.any([
    signal,
    stop.signal,
    AbortSignal.timeout(deadlineMs),
  ]);
  const ended = container.status.then((code) => {
    if (ready.kind === "exit" && code === 0) return;
    throw new ObdError(
      "state",
      `The ${what} ended with ${code}${
        ready.kind === "exit" ? "" : " before it was ready"
      }: ${container.tail}`,
    );
  });
  ended.catch(() => {});
  try {
    await Promise.race([
      ended,
      until(container, ready, expired).catch((error) => {
        signal.throwIfAborted();
        if (!expired.aborted) throw error;
        throw new ObdError(
          "deadline",
          `The service was not available after ${
            deadlineMs / 1000
          } s: ${container.tail}`,
        );
      }),
    ]);
  } finally {
    stop.abort();
  }
}

async function until(
  container: BenchProcess,
  ready: Ready,
  signal: AbortSignal,
): Promise<void> {
  if (ready.kind === "http") return await untilHttp(ready, signal);
  // Who listens later is not told.
  signal.throwIfAborted();
  await new Promise<void>((resolve, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason));
    if (ready.kind !== "log") return;
    let text = "";
    container.listen((piece) => {
      text += piece;
      if (text.includes(ready.text)) resolve();
      // What may be its beginning.
      text = text.slice(-ready.text.length);
    });
  });
}

async function untilHttp(
  { port, path }: { port: number; path: string },
  signal: AbortSignal,
): Promise<void> {
  for (;;) {
    signal.throwIfAborted();
    try {
      const answer = await fetch(`http://127.0.0.1:${port}${path}`, {
        signal: AbortSignal.any([
          signal,
          AbortSignal.timeout(ANSWER_DEADLINE_MS),
        ]),
      });
      await answer.arrayBuffer();
      if (answer.ok) return;
    } catch {
      // Nobody listens yet.
    }
    await delay(POLL_INTERVAL_MS, signal);
  }
}

/** How a warm service does. */
export interface Steady {
  /** Answers per second, after the first second. */
  rate: number;
  /** All answers. */
  answers: number;
}

/** Asks a warm service as fast as it answers, a few clients at once. */
export async function askSteadily(
  { port, path }: { port: number; path: string },
  seconds: number,
  signal: AbortSignal,
): Promise<Steady> {
  const started = performance.now() + STEADY_WARM_UP_MS;
  const end = started + seconds * 1000;
  let answers = 0;
  let counted = 0;
  await Promise.all(
    Array.from({ length: STEADY_CLIENTS }, async () => {
      while (performance.now() < end) {
        const answer = await fetch(`http://127.0.0.1:${port}${path}`, {
          signal: AbortSignal.any([
            signal,
            AbortSignal.timeout(ANSWER_DEADLINE_MS),
          ]),
        });
        await answer.arrayBuffer();
        if (!answer.ok) {
          throw new ObdError("state", `The service answered ${answer.status}`);
        }
        answers++;
        if (performance.now() >= started) counted++;
      }
    }),
  );
  return { rate: counted / ((performance.now() - started) / 1000), answers };
}

/** @throws {ObdError} If somebody answers at the service's port before it is started. */
export async function requireFreePort(ready: Ready): Promise<void> {
  if (ready.kind !== "http") return;
  try {
    (await Deno.connect({ hostname: "127.0.0.1", port: ready.port })).close();
  } catch {
    return;
  }
  throw new ObdError(
    "conflict",
    `Port ${ready.port} is in use, which the service wants`,
  );
}
