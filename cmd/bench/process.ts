/** Processes of a bench: what they cost is counted by the kernel, and none outlives it. */

import { delay, ObdError } from "../../lib/io/mod.ts";
import { findProgram, waitUntil } from "../mount_process.ts";

const TAIL_BYTES = 16 * 1024;
const KILL_DEADLINE_MS = 10_000;
const SAMPLE_INTERVAL_MS = 100;
const CGROUPS = "/sys/fs/cgroup";

/** How {@linkcode BenchProcess} starts a program. */
export interface SpawnOptions {
  env?: Record<string, string>;
  /** What the process and its children cost is counted here. */
  group?: CostGroup | undefined;
  /** Gets every piece of stdout and stderr. */
  onOutput?: (text: string) => void;
}

/** A program that runs while the bench goes on. Disposing ends it. */
export class BenchProcess implements AsyncDisposable {
  readonly pid: number;
  /** The exit code. */
  readonly status: Promise<number>;
  readonly #child: Deno.ChildProcess;
  readonly #name: string;
  #tail = "";
  #ended = false;
  readonly #listeners = new Set<(text: string) => void>();

  constructor(command: string[], options: SpawnOptions = {}) {
    this.#name = command[0]!.replace(/^.*\//, "");
    if (options.onOutput) this.#listeners.add(options.onOutput);
    // The shell is replaced by the program once it is in the group.
    this.#child = new Deno.Command("/bin/sh", {
      args: [
        "-c",
        'for f in $1; do echo $$ >"$f" || exit 1; done; shift; exec "$@"',
        "sh",
        options.group?.procsFiles.join(" ") ?? "",
        programPath(command[0]!),
        ...command.slice(1),
      ],
      env: { LC_ALL: "C", ...options.env },
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    this.pid = this.#child.pid;
    const out = this.#read(this.#child.stdout);
    const err = this.#read(this.#child.stderr);
    this.status = this.#child.status.then(({ code }) => {
      this.#ended = true;
      return code;
    });
    this.status.then(() => Promise.all([out, err])).catch(() => {});
  }

  /** Whether it has ended. */
  get ended(): boolean {
    return this.#ended;
  }

  /** The end of what it said. */
  get tail(): string {
    return this.#tail.trim().replaceAll(/\s*\n\s*/g, "; ").slice(-1000);
  }

  /** Calls back for everything that it says from now on, and what is known of it already. */
  listen(listener: (text: string) => void): void {
    this.#listeners.add(listener);
    if (this.#tail) listener(this.#tail);
  }

  async #read(stream: ReadableStream<Uint8Array>): Promise<void> {
    const decoder = new TextDecoder();
    for await (const bytes of stream) {
      const text = decoder.decode(bytes, { stream: true });
      this.#tail = (this.#tail + text).slice(-TAIL_BYTES);
      for (const listener of this.#listeners) listener(text);
    }
  }

  /** Waits for its end. @throws {ObdError} With what it said, unless it exits 0. */
  async success(action: string): Promise<void> {
    const code = await this.status;
    if (code === 0) return;
    throw new ObdError(
      "state",
      `Cannot ${action}: ${this.#name} ended with ${code}: ${this.tail}`,
    );
  }

  signal(name: Deno.Signal): void {
    try {
      if (!this.#ended) this.#child.kill(name);
    } catch {
      // It has ended in between.
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.signal("SIGTERM");
    if (await waitUntil(() => this.#ended, KILL_DEADLINE_MS)) return;
    this.signal("SIGKILL");
    await this.status;
  }
}

function programPath(name: string): string {
  return name.startsWith("/") ? name : findProgram(name);
}

/** Runs a program to its end, which must be good. @returns Its stdout. */
export async function runTool(
  action: string,
  command: string[],
  signal: AbortSignal,
): Promise<string> {
  signal.throwIfAborted();
  const child = new Deno.Command(programPath(command[0]!), {
    args: command.slice(1),
    env: { LC_ALL: "C" },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    signal,
  }).spawn();
  const { code, stdout: out, stderr } = await child.output();
  signal.throwIfAborted();
  const stdout = new TextDecoder().decode(out);
  if (code === 0) return stdout;
  const said = new TextDecoder().decode(stderr).trim()
    .replaceAll(/\s*\n\s*/g, "; ").slice(-1000);
  throw new ObdError(
    "state",
    `Cannot ${action}: ${command[0]} ended with ${code}: ${said}`,
  );
}

/** What a group of processes cost. */
export interface Cost {
  /** Of all its processes, also those that have ended; undefined without cgroups. */
  cpuSeconds: number | undefined;
  /** Most resident memory of all its processes together, sampled ten times a second. */
  peakRssBytes: number | undefined;
}

/** Counts what processes cost, by cgroups of version 1 (cpuacct) or 2. */
export class CostGroup implements AsyncDisposable {
  readonly #path: string;
  readonly #kind: "v1" | "v2";
  readonly #timer = new AbortController();
  readonly #sampling: Promise<void>;
  #peak = 0;

  private constructor(path: string, kind: "v1" | "v2") {
    this.#path = path;
    this.#kind = kind;
    this.#sampling = this.#sample();
  }

  /** Undefined where cgroups cannot be made. */
  static async create(name: string): Promise<CostGroup | undefined> {
    for (
      const [base, kind] of [
        [`${CGROUPS}/cpuacct`, "v1"],
        [CGROUPS, "v2"],
      ] as const
    ) {
      const file = kind === "v1" ? "cpuacct.usage" : "cpu.stat";
      try {
        await Deno.stat(`${base}/${file}`);
        await Deno.mkdir(`${base}/${name}`);
        return new CostGroup(`${base}/${name}`, kind);
      } catch {
        // Not of this version, or not ours to make.
      }
    }
    return undefined;
  }

  /** A process joins by writing its id there. */
  get procsFiles(): string[] {
    return [`${this.#path}/cgroup.procs`];
  }

  async cost(): Promise<Cost> {
    return {
      cpuSeconds: await readCpuSeconds(this.#path, this.#kind),
      peakRssBytes: this.#peak,
    };
  }

  async #sample(): Promise<void> {
    try {
      for (;;) {
        let sum = 0;
        for (const pid of await this.#pids()) sum += await residentBytes(pid);
        this.#peak = Math.max(this.#peak, sum);
        await delay(SAMPLE_INTERVAL_MS, this.#timer.signal);
      }
    } catch {
      // Told to end.
    }
  }

  async #pids(): Promise<string[]> {
    const text = await Deno.readTextFile(`${this.#path}/cgroup.procs`);
    return text.split("\n").filter((line) => line !== "");
  }

  /** Ends what is left in the group, then removes it. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#timer.abort();
    await this.#sampling;
    await waitUntil(async () => {
      try {
        for (const pid of await this.#pids()) Deno.kill(Number(pid), "SIGKILL");
      } catch {
        // Ended in between.
      }
      try {
        await Deno.remove(this.#path);
        return true;
      } catch {
        return false;
      }
    }, KILL_DEADLINE_MS);
  }
}

async function readCpuSeconds(
  path: string,
  kind: "v1" | "v2",
): Promise<number | undefined> {
  try {
    if (kind === "v1") {
      return Number(await Deno.readTextFile(`${path}/cpuacct.usage`)) / 1e9;
    }
    const text = await Deno.readTextFile(`${path}/cpu.stat`);
    return Number(/^usage_usec (\d+)/m.exec(text)![1]) / 1e6;
  } catch {
    return undefined;
  }
}

async function residentBytes(pid: string): Promise<number> {
  try {
    const text = await Deno.readTextFile(`/proc/${pid}/status`);
    return Number(/^VmRSS:\s+(\d+) kB/m.exec(text)?.[1] ?? 0) * 1024;
  } catch {
    return 0;
  }
}
