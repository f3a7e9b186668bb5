/** Processes of a bench: what they say is kept, and none outlives it. */

import { ObdError } from "../../lib/io/mod.ts";
import { findProgram, waitUntil } from "../mount_process.ts";
import type { CostGroup } from "./cost.ts";

const TAIL_BYTES = 16 * 1024;
const KILL_DEADLINE_MS = 10_000;

/** How {@linkcode BenchProcess} starts a program. */
export interface SpawnOptions {
  env?: Record<string, string>;
  /** What the process and its children cost is counted here. */
  group?: CostGroup | undefined;
  /** What the process is called in the list of costs; default its program. */
  name?: string;
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
    // The shell is replaced by the program once it is in the group. Containers
    // inherit the umask: it must not depend on whose bench it is.
    this.#child = new Deno.Command("/bin/sh", {
      args: [
        "-c",
        'umask 022; for f in $1; do echo $$ >"$f" || exit 1; done; shift; exec "$@"',
        "sh",
        options.group?.procsFiles.join(" ") ?? "",
        programPath(command[0]!),
        ...command.slice(1),
      ],
      env: { LC_ALL: "C", ...options.env },
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
      // Ctrl-C is for the bench alone: daemons are needed to undo what they hold.
      detached: true,
    }).spawn();
    this.pid = this.#child.pid;
    options.group?.add(this.pid, options.name ?? this.#name);
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

  /** Signals it and what it started, unless that has a session of its own. */
  signal(name: Deno.Signal): void {
    if (!this.#ended) signalGroup(this.pid, name);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.signal("SIGTERM");
    if (await waitUntil(() => this.#ended, KILL_DEADLINE_MS)) return;
    this.signal("SIGKILL");
    await this.status;
  }
}

function signalGroup(pid: number, name: Deno.Signal): void {
  for (const target of [-pid, pid]) {
    try {
      return Deno.kill(target, name);
    } catch {
      // It has ended in between, or has no group of its own yet.
    }
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
    detached: true,
  }).spawn();
  // Scripts wait for what they run, so that has to be told too.
  const onAbort = () => signalGroup(child.pid, "SIGTERM");
  signal.addEventListener("abort", onAbort);
  try {
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
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
