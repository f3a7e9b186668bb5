/** Runs `obd` from source as a process of its own. */

import assert from "node:assert/strict";

const MAIN = new URL("../../main.ts", import.meta.url).pathname;
/** Some tests start two dozen at once. */
const DEADLINE_MS = 180_000;

/** How a run ended. */
export interface Ended {
  code: number;
  stdout: string;
  stderr: string;
}

/** Settings of a run. */
export interface RunOptions {
  env?: Record<string, string>;
  cwd?: string;
}

function command(args: readonly string[], options: RunOptions): Deno.Command {
  return new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", MAIN, ...args],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    env: {
      NO_COLOR: "1",
      COLUMNS: "100",
      // Nothing outlives a test.
      OBD_DEDUP_DB: "none",
      ...options.env,
    },
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
  });
}

/** Runs to the end. */
export async function obd(
  args: readonly string[],
  options: RunOptions = {},
): Promise<Ended> {
  const child = command(args, options).spawn();
  return await endOf(child);
}

/** Starts a run that a test ends by itself. */
export function startObd(
  args: readonly string[],
  options: RunOptions = {},
): Deno.ChildProcess {
  return command(args, options).spawn();
}

/** Waits for the end; kills what does not end. */
export async function endOf(child: Deno.ChildProcess): Promise<Ended> {
  const timer = setTimeout(() => child.kill("SIGKILL"), DEADLINE_MS);
  try {
    const { code, stdout, stderr } = await child.output();
    const decoder = new TextDecoder();
    return {
      code,
      stdout: decoder.decode(stdout),
      stderr: decoder.decode(stderr),
    };
  } finally {
    clearTimeout(timer);
  }
}

/** Fails unless stderr is one line that matches. */
export function assertOneLine(ended: Ended, pattern: RegExp): void {
  const lines = ended.stderr.split("\n");
  assert.equal(lines.pop(), "", "stderr ends with a newline");
  assert.equal(lines.length, 1, `stderr is one line:\n${ended.stderr}`);
  assert.match(lines[0]!, pattern);
}

/** Runs `work` with a directory that is removed afterwards. */
export async function withTempDir<T>(
  work: (dir: string) => Promise<T>,
): Promise<T> {
  const dir = await Deno.makeTempDir({ prefix: "obd-cmd-test-" });
  try {
    return await work(dir);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}
