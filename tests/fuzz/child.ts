/**
 * The process that reads inputs: it may hang, crash or run out of memory. Started
 * by `supervisor.ts` with the module that exports `TARGETS`, and the path of a
 * file where it notes the iteration that it is at.
 */

import * as fs from "node:fs";
import process from "node:process";
import { loadLibc, viewOf } from "../../lib/io/mod.ts";
import { readFinding } from "./findings.ts";
import { LoadedTarget, type MadeInput, saveInput } from "./input.ts";
import { MemoryWatch } from "./memory_watch.ts";
import {
  type ChildMessage,
  emptyResult,
  HEARTBEAT_SIZE,
  type Probe,
  type Slice,
  type SliceResult,
} from "./protocol.ts";
import { shrink } from "./shrink.ts";
import { attempt, type Outcome, type Target } from "./target.ts";
import { Random } from "./random.ts";

/** Inputs between two looks at the memory; also when rejections nobody handled are noticed. */
const BATCH = 64;
const BATCH_MS = 100;
/** Questions that shrinking one finding may cost. */
const SHRINK_TRIES = 300;
const SHRINK_MS = 5_000;
const DEFAULT_MEMORY = 512 * 1024 * 1024;

const encoder = new TextEncoder();

function say(message: ChildMessage): void {
  const line = encoder.encode(`${JSON.stringify(message)}\n`);
  for (let done = 0; done < line.length;) {
    done += Deno.stdout.writeSync(line.subarray(done));
  }
}

/** Tells the supervisor where this process is, at the cost of one system call. */
class Heartbeat {
  readonly #fd: number;
  readonly #bytes = new Uint8Array(HEARTBEAT_SIZE);

  constructor(path: string) {
    this.#fd = fs.openSync(path, "r+");
  }

  mark(iteration: number): void {
    viewOf(this.#bytes).setFloat64(0, iteration);
    fs.writeSync(this.#fd, this.#bytes, 0, HEARTBEAT_SIZE, 0);
  }
}

/** Computing time so far. */
function cpuMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

/** What nobody caught: it belongs to the batch under way. */
const uncaught: Error[] = [];
for (const type of ["unhandledrejection", "error"] as const) {
  globalThis.addEventListener(type, (event) => {
    event.preventDefault();
    const reason = "reason" in event
      ? event.reason
      : (event as ErrorEvent).error;
    uncaught.push(reason instanceof Error ? reason : new Error(String(reason)));
  });
}

class Child {
  readonly #targets: readonly Target[];
  readonly #loaded = new Map<string, LoadedTarget>();
  readonly #heartbeat: Heartbeat;

  constructor(targets: readonly Target[], heartbeat: string) {
    this.#targets = targets;
    this.#heartbeat = new Heartbeat(heartbeat);
  }

  async load(name: string): Promise<LoadedTarget> {
    let loaded = this.#loaded.get(name);
    if (!loaded) {
      const target = this.#targets.find((t) => t.name === name);
      if (!target) throw new Error(`No target "${name}"`);
      loaded = await LoadedTarget.load(target);
      // One at a time: seeds and what they keep are large.
      this.#loaded.clear();
      this.#loaded.set(name, loaded);
    }
    return loaded;
  }

  async run(slice: Slice): Promise<SliceResult> {
    const loaded = await this.load(slice.target);
    const watch = new MemoryWatch(
      loaded.target.memoryBytes ?? DEFAULT_MEMORY,
    );
    const result = emptyResult(slice.from);
    const cpuBefore = cpuMs();
    const end = performance.now() + (slice.milliseconds ?? Infinity);
    while (result.next < slice.to && performance.now() < end) {
      await this.#batch(loaded, slice, result, watch);
    }
    result.cpuMs = cpuMs() - cpuBefore;
    return result;
  }

  async #batch(
    loaded: LoadedTarget,
    { seed, to }: Slice,
    result: SliceResult,
    watch: MemoryWatch,
  ): Promise<void> {
    const from = result.next;
    const end = Math.min(to, from + BATCH);
    // Computing time: a busy machine makes no input slow.
    const start = cpuMs();
    let now = start;
    watch.begin();
    while (result.next < end && now - start < BATCH_MS) {
      const iteration = result.next++;
      this.#heartbeat.mark(iteration);
      const made = loaded.make(seed, iteration);
      const outcome = await made.read(made.input);
      const after = cpuMs();
      if (after - now > result.slowestMs) {
        result.slowestMs = after - now;
        result.slowestIteration = iteration;
      }
      now = after;
      if (outcome.kind === "read") result.read++;
      else if (outcome.kind === "refused") result.refused++;
      else if ("error" in outcome) {
        await this.#report(loaded, seed, iteration, made, outcome);
      }
      made.release();
    }
    // Rejections that nobody handles are told when the event loop turns.
    await new Promise((resolve) => setTimeout(resolve, 0));
    for (const error of uncaught.splice(0)) {
      const made = loaded.make(seed, result.next - 1);
      error.message = `Nobody handled: ${error.message}`;
      const outcome: Outcome = { kind: "untyped", error };
      await this.#report(loaded, seed, result.next - 1, made, outcome, false);
      made.release();
    }
    if (watch.isOver()) {
      await this.#findGreedy(loaded, seed, from, result, watch);
    }
  }

  /** Which input of a batch took too much. */
  async #findGreedy(
    loaded: LoadedTarget,
    seed: number,
    from: number,
    { next }: SliceResult,
    watch: MemoryWatch,
  ): Promise<void> {
    for (let iteration = from; iteration < next; iteration++) {
      this.#heartbeat.mark(iteration);
      const made = loaded.make(seed, iteration);
      watch.collect();
      watch.begin();
      await made.read(made.input);
      if (watch.isOver()) {
        const error = new Error(`Took more than ${watch.limit} bytes`);
        error.stack = "";
        const outcome: Outcome = { kind: "memory", error };
        await this.#report(loaded, seed, iteration, made, outcome, false);
      }
      made.release();
    }
  }

  async #report(
    loaded: LoadedTarget,
    seed: number,
    iteration: number,
    made: MadeInput,
    outcome: Extract<Outcome, { error: Error }>,
    shrinks = true,
  ): Promise<void> {
    const { kind, error } = outcome;
    const saved = saveInput(made.input);
    if (shrinks) {
      const deadline = performance.now() + SHRINK_MS;
      saved.bytes = await shrink(
        saved.bytes,
        made.seed.bytes,
        async (bytes) => {
          if (performance.now() > deadline) return false;
          const again = await made.read({ ...saved, bytes });
          return again.kind === kind && "error" in again &&
            again.error.message === error.message;
        },
        SHRINK_TRIES,
      );
    }
    say({
      type: "finding",
      finding: {
        target: loaded.target.name,
        kind,
        message: error.message.split("\n")[0]!,
        stack: error.stack ?? "",
        seedName: made.seed.name,
        seed,
        iteration,
        repaired: saved.repaired,
        changes: saved.changes,
      },
      base64: saved.bytes.toBase64(),
    });
  }

  async probe(path: string): Promise<void> {
    const finding = await readFinding(path);
    const loaded = await this.load(finding.target);
    const from = loaded.find(finding.seedName);
    if (!from) throw new Error(`No seed "${finding.seedName}"`);
    const watch = new MemoryWatch(
      loaded.target.memoryBytes ?? DEFAULT_MEMORY,
    );
    watch.collect();
    watch.begin();
    this.#heartbeat.mark(finding.iteration);
    const outcome = await attempt(
      from,
      finding,
      new Random(finding.seed, `${finding.target}/read`, finding.iteration),
    );
    await new Promise((resolve) => setTimeout(resolve, 0));
    const error = "error" in outcome ? outcome.error : uncaught[0];
    say({
      type: "probe",
      kind: watch.isOver()
        ? "memory"
        : uncaught.length > 0
        ? "untyped"
        : outcome.kind,
      message: error?.stack ?? error?.message ?? "",
    });
  }
}

async function* lines(): AsyncGenerator<string> {
  let rest = "";
  const text = Deno.stdin.readable.pipeThrough(new TextDecoderStream());
  for await (const piece of text) {
    const parts = (rest + piece).split("\n");
    rest = parts.pop()!;
    yield* parts;
  }
}

async function main(): Promise<void> {
  const [module, heartbeat] = Deno.args;
  loadLibc();
  const { TARGETS } = await import(module!) as { TARGETS: Target[] };
  const child = new Child(TARGETS, heartbeat!);
  for await (const line of lines()) {
    const order: Slice | Probe = JSON.parse(line);
    if ("probe" in order) await child.probe(order.probe);
    else say({ type: "slice", result: await child.run(order) });
  }
}

if (import.meta.main) {
  try {
    await main();
  } catch (error) {
    // Of the harness itself: those of readers are caught.
    console.error(error);
    Deno.exit(70);
  }
  // Workers that a target started are nobody's now.
  Deno.exit(0);
}
