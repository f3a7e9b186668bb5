/** Runs obd's own commands as processes, as a person would. */

import { fromUtf8 } from "../../lib/io/mod.ts";

const MAIN = new URL("../../main.ts", import.meta.url).pathname;
/** For a command or a start that hangs. */
const DEADLINE_MS = 120_000;

/** The line that `obd serve` prints when everything is there. */
export interface ReadyLine {
  event: "ready";
  pid: number;
  api: string;
  exports: { name: string; uri: string; size: number }[];
}

function command(
  args: readonly string[],
  env: Record<string, string>,
  stderr: "piped" | "inherit",
): Deno.Command {
  return new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", MAIN, ...args],
    env,
    stdin: "null",
    stdout: "piped",
    stderr,
  });
}

/** Runs a command with `--json` to its end and returns its object. */
export async function runObd<T>(
  args: readonly string[],
  env: Record<string, string>,
): Promise<T> {
  const child = command([...args, "--json"], env, "inherit").spawn();
  const timer = setTimeout(() => child.kill("SIGKILL"), DEADLINE_MS);
  const { success, code, stdout } = await child.output();
  clearTimeout(timer);
  if (!success) throw new Error(`obd ${args[0]} ended with ${code}`);
  return JSON.parse(fromUtf8(stdout)) as T;
}

/** A running `obd serve`. Disposing stops it and demands a clean end. */
export class ObdServe implements AsyncDisposable {
  readonly ready: ReadyLine;
  readonly #child: Deno.ChildProcess;
  readonly #drained: Promise<void>;

  private constructor(
    child: Deno.ChildProcess,
    ready: ReadyLine,
    drained: Promise<void>,
  ) {
    this.#child = child;
    this.ready = ready;
    this.#drained = drained;
  }

  /** Starts it and waits for its ready line. */
  static async start(
    configPath: string,
    env: Record<string, string>,
  ): Promise<ObdServe> {
    const args = ["serve", "--quiet", "--config", configPath];
    const child = command(args, env, "inherit").spawn();
    const timer = setTimeout(() => child.kill("SIGKILL"), DEADLINE_MS);
    const reader = child.stdout.pipeThrough(new TextDecoderStream())
      .getReader();
    let text = "";
    while (!text.includes("\n")) {
      const { value, done } = await reader.read();
      if (done) {
        clearTimeout(timer);
        const { code } = await child.status;
        throw new Error(`obd serve ended with ${code} before it was ready`);
      }
      text += value;
    }
    clearTimeout(timer);
    const drained = (async () => {
      while (!(await reader.read()).done);
    })();
    return new ObdServe(child, JSON.parse(text.split("\n")[0]!), drained);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const timer = setTimeout(() => this.#child.kill("SIGKILL"), 30_000);
    try {
      this.#child.kill("SIGTERM");
    } catch {
      // It has ended by itself; the code says how.
    }
    await this.#drained;
    const { code } = await this.#child.status;
    clearTimeout(timer);
    if (code !== 0) throw new Error(`obd serve ended with ${code}`);
  }
}
