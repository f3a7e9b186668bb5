/**
 * Runs slices of iterations in child processes, kills those that hang, and turns
 * what happens to them into findings.
 */

import { viewOf } from "../../lib/io/mod.ts";
import { type Finding, readFinding, writeFinding } from "./findings.ts";
import { LoadedTarget, saveInput } from "./input.ts";
import {
  addResult,
  type ChildMessage,
  emptyResult,
  HEARTBEAT_SIZE,
  type Slice,
  type SliceResult,
} from "./protocol.ts";
import { shrink } from "./shrink.ts";
import type { FindingKind, Target } from "./target.ts";

/** JavaScript heap of a child in MiB. */
const HEAP_MIB = 384;
/**
 * Private memory of a child, JavaScript's heap and array buffers together,
 * touched or not: what a number from an input might ask for.
 */
const DATA_BYTES = 3 * 1024 * 1024 * 1024;
/** How often children are looked at. */
const LOOK_MS = 100;
/** A child loads its target's seeds before the first input. */
const START_MS = 60_000;
/** Children that shrinking a hang, a crash or a greedy input may cost. */
const SHRINK_CHILDREN = 20;
const ERRORS_KEPT = 16 * 1024;
const TICKS_A_SECOND = 100;

/** How to run children. */
export interface SupervisorOptions {
  /** URL of the module that exports `TARGETS`. */
  module: string;
  /** Computing time of one input, in milliseconds. */
  deadlineMs: number;
  /** Where reproducers go. */
  directory: string;
}

/** A child's end, seen from outside. */
class ChildDied extends Error {
  readonly kind: FindingKind;

  constructor(kind: FindingKind, message: string) {
    super(message);
    this.kind = kind;
  }
}

/** A child process; one order at a time. */
class ChildProcess {
  readonly #process: Deno.ChildProcess;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
  readonly #heartbeat: string;
  readonly #deadlineMs: number;
  readonly #messages: AsyncIterator<ChildMessage>;
  readonly #errors: Promise<string>;
  #hung: string | undefined;

  constructor(options: SupervisorOptions, heartbeat: string) {
    this.#heartbeat = heartbeat;
    this.#deadlineMs = options.deadlineMs;
    Deno.writeFileSync(heartbeat, beat(-1));
    this.#process = new Deno.Command("prlimit", {
      args: [
        `--data=${DATA_BYTES}`,
        "--core=0",
        Deno.execPath(),
        "run",
        "-A",
        "--quiet",
        `--v8-flags=--max-old-space-size=${HEAP_MIB},--expose-gc`,
        new URL("child.ts", import.meta.url).href,
        options.module,
        heartbeat,
      ],
      env: { NO_COLOR: "1" },
      stdin: "piped",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    this.#writer = this.#process.stdin.getWriter();
    this.#messages = messagesOf(this.#process.stdout);
    this.#errors = lastText(this.#process.stderr);
  }

  /** The iteration that it is at; -1 before the first. */
  get iteration(): number {
    return viewOf(Deno.readFileSync(this.#heartbeat)).getFloat64(0);
  }

  /**
   * Gives an order and hands out what comes back until the last message.
   *
   * @throws {ChildDied} If it hangs or ends.
   */
  async order(
    order: object,
    onFinding: (message: ChildMessage & { type: "finding" }) => Promise<void>,
  ): Promise<Exclude<ChildMessage, { type: "finding" }>> {
    const line = new TextEncoder().encode(`${JSON.stringify(order)}\n`);
    // A child that is gone is noticed below.
    await this.#writer.write(line).catch(() => {});
    const timer = this.#watch();
    try {
      while (true) {
        const { value: message, done } = await this.#messages.next();
        if (done) throw await this.#death();
        if (message.type !== "finding") return message;
        await onFinding(message);
      }
    } finally {
      clearInterval(timer);
    }
  }

  /** Kills it as soon as one iteration takes too long. */
  #watch(): ReturnType<typeof setInterval> {
    let at = Number.NaN;
    let cpuSince = 0;
    let cpuLast = 0;
    let idleMs = 0;
    return setInterval(() => {
      const { cpuMs, sleeps } = processState(this.#process.pid);
      const iteration = this.iteration;
      if (iteration !== at) {
        at = iteration;
        cpuSince = cpuLast = cpuMs;
        idleMs = 0;
        return;
      }
      // On a busy machine a process that wants to compute may have to wait: only sleep is idle.
      idleMs = sleeps && cpuMs === cpuLast ? idleMs + LOOK_MS : 0;
      cpuLast = cpuMs;
      const limit = iteration < 0 ? START_MS : this.#deadlineMs;
      if (cpuMs - cpuSince <= limit && idleMs <= limit) return;
      this.#hung = idleMs > limit
        ? `Waited for ${limit} ms without an end`
        : `Computed for ${limit} ms without an end`;
      this.#kill();
    }, LOOK_MS);
  }

  async #death(): Promise<ChildDied> {
    const { code, signal } = await this.#process.status;
    const errors = await this.#errors;
    if (this.#hung !== undefined) return new ChildDied("hang", this.#hung);
    const text = errors.trim().slice(-4000);
    if (/out of memory/i.test(errors)) {
      return new ChildDied("memory", `The heap ran out of memory\n${text}`);
    }
    const last = text.split("\n").findLast((line) =>
      /error|fatal|panic/i.test(line)
    );
    return new ChildDied(
      "crash",
      `The process ended with ${signal ?? code}: ${last ?? ""}\n${text}`,
    );
  }

  #kill(): void {
    try {
      this.#process.kill("SIGKILL");
    } catch {
      // It has just ended by itself.
    }
  }

  /** Ends it. */
  async close(): Promise<void> {
    await this.#writer.close().catch(() => {});
    const timer = setTimeout(() => this.#kill(), 2_000);
    while (!(await this.#messages.next()).done);
    await this.#process.status;
    clearTimeout(timer);
    await this.#errors;
  }

  async kill(): Promise<void> {
    this.#kill();
    await this.close();
  }
}

function beat(iteration: number): Uint8Array {
  const bytes = new Uint8Array(HEARTBEAT_SIZE);
  viewOf(bytes).setFloat64(0, iteration);
  return bytes;
}

/** User and system time of a process so far, and whether it sleeps; proc_pid_stat(5), fields 3, 14, 15. */
function processState(pid: number): { cpuMs: number; sleeps: boolean } {
  try {
    const text = Deno.readTextFileSync(`/proc/${pid}/stat`);
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
    const ticks = Number(fields[11]) + Number(fields[12]);
    return {
      cpuMs: ticks * 1000 / TICKS_A_SECOND,
      sleeps: fields[0] === "S",
    };
  } catch {
    return { cpuMs: 0, sleeps: false };
  }
}

async function* messagesOf(
  stream: ReadableStream<Uint8Array>,
): AsyncGenerator<ChildMessage> {
  let rest = "";
  const text = stream.pipeThrough(new TextDecoderStream());
  for await (const piece of text) {
    const parts = (rest + piece).split("\n");
    rest = parts.pop()!;
    for (const part of parts) yield JSON.parse(part);
  }
}

async function lastText(stream: ReadableStream<Uint8Array>): Promise<string> {
  let kept = "";
  for await (const piece of stream.pipeThrough(new TextDecoderStream())) {
    kept = (kept + piece).slice(-ERRORS_KEPT);
  }
  return kept;
}

/** One lane of work: a child, replaced whenever it dies. */
export class Supervisor implements AsyncDisposable {
  readonly #options: SupervisorOptions;
  readonly #heartbeat: string;
  #child: ChildProcess | undefined;

  constructor(options: SupervisorOptions) {
    this.#options = options;
    this.#heartbeat = Deno.makeTempFileSync({ prefix: "obd-fuzz-" });
  }

  /**
   * Runs a slice to its end, whatever happens to the children on the way.
   *
   * @param onFinding Told of every finding, before its input is made smaller.
   */
  async run(
    slice: Slice,
    onFinding: (finding: Finding) => Promise<void>,
  ): Promise<SliceResult> {
    const start = performance.now();
    const total = emptyResult(slice.from);
    while (total.next < slice.to) {
      const milliseconds = slice.milliseconds === undefined
        ? undefined
        : slice.milliseconds - (performance.now() - start);
      if (milliseconds !== undefined && milliseconds <= 0) break;
      this.#child ??= new ChildProcess(this.#options, this.#heartbeat);
      const child = this.#child;
      try {
        const order = { ...slice, from: total.next, milliseconds };
        const answer = await child.order(order, async (message) => {
          const bytes = Uint8Array.fromBase64(message.base64);
          await onFinding({ ...message.finding, bytes });
        });
        if (answer.type !== "slice") throw new Error("Unexpected answer");
        addResult(total, answer.result);
        // It ended by time.
        if (slice.milliseconds !== undefined) break;
      } catch (error) {
        this.#child = undefined;
        const iteration = child.iteration;
        await child.kill();
        if (!(error instanceof ChildDied)) throw error;
        // Before its first input: the harness is broken, not a reader.
        if (iteration < total.next) throw error;
        await onFinding(await this.#describe(slice, iteration, error));
        total.next = iteration + 1;
      }
    }
    return total;
  }

  /** Makes the input again that a child died of. */
  async #describe(
    { target, seed }: Slice,
    iteration: number,
    { kind, message }: ChildDied,
  ): Promise<Finding> {
    const loaded = await LoadedTarget.load(
      await findTarget(this.#options.module, target),
    );
    const made = loaded.make(seed, iteration);
    const { bytes, ...saved } = saveInput(made.input);
    return {
      target,
      kind,
      message: message.split("\n")[0]!,
      stack: message,
      seedName: made.seed.name,
      seed,
      iteration,
      ...saved,
      bytes,
    };
  }

  /** What a child says of a saved input. */
  async probe(path: string): Promise<{ kind: string; message: string }> {
    const child = new ChildProcess(this.#options, this.#heartbeat);
    try {
      const answer = await child.order(
        { probe: path },
        () => Promise.resolve(),
      );
      if (answer.type !== "probe") throw new Error("Unexpected answer");
      await child.close();
      return { kind: answer.kind, message: answer.message };
    } catch (error) {
      await child.kill();
      if (!(error instanceof ChildDied)) throw error;
      return { kind: error.kind, message: error.message };
    }
  }

  /** Makes a finding smaller that no process survives, and writes it. */
  async shrinkInChildren(finding: Finding): Promise<Finding> {
    const loaded = await LoadedTarget.load(
      await findTarget(this.#options.module, finding.target),
    );
    const seed = loaded.find(finding.seedName)!;
    const directory = await Deno.makeTempDir({ prefix: "obd-fuzz-" });
    try {
      const bytes = await shrink(
        finding.bytes,
        seed.bytes,
        async (bytes) => {
          const path = await writeFinding(directory, { ...finding, bytes });
          return (await this.probe(path)).kind === finding.kind;
        },
        SHRINK_CHILDREN,
      );
      return { ...finding, bytes };
    } finally {
      await Deno.remove(directory, { recursive: true });
    }
  }

  /** Reads a saved finding again. */
  async replay(path: string): Promise<{ kind: string; message: string }> {
    await readFinding(path);
    return await this.probe(path);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#child?.close();
    await Deno.remove(this.#heartbeat);
  }
}

/** The targets of a module. */
export async function loadTargets(module: string): Promise<Target[]> {
  const { TARGETS } = await import(module) as { TARGETS: Target[] };
  return TARGETS;
}

async function findTarget(module: string, name: string): Promise<Target> {
  const found = (await loadTargets(module)).find((t) => t.name === name);
  if (!found) throw new Error(`No target "${name}"`);
  return found;
}
