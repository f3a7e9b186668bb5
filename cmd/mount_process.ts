/** Programs of the system that mounting uses: run to their end, or left running on their own. */

import {
  DeadlineError,
  delay,
  fromUtf8,
  ObdError,
  utf8,
} from "../lib/io/mod.ts";
import type { ProcessRef } from "./mount_state.ts";

const RUN_DEADLINE_MS = 30_000;
/** A background program's log; it lies in memory (`/run`) and nobody rotates it. */
const LOG_SIZE_MAX = 4 * 1024 * 1024;
/** Unit of `ulimit -f` (POSIX). */
const LIMIT_BLOCK = 512;
const LOG_TAIL_BYTES = 4096;
const LOG_TAIL_LINES = 5;

/** Debian's package for each program. */
const PACKAGES: Record<string, string> = {
  blockdev: "util-linux",
  losetup: "mount",
  mount: "mount",
  nbdfuse: "libnbd-bin",
  umount: "mount",
};

/**
 * The path of a program.
 *
 * @throws {ObdError} Code `not-found`, naming the package to install.
 */
export function findProgram(name: string): string {
  const path = lookUp(name);
  if (path !== undefined) return path;
  const from = PACKAGES[name] ?? name;
  throw new ObdError(
    "not-found",
    `Program "${name}" is not installed (apt-get install ${from})`,
  );
}

/** Whether a program is installed. */
export function hasProgram(name: string): boolean {
  return lookUp(name) !== undefined;
}

function lookUp(name: string): string | undefined {
  const dirs = [
    ...(Deno.env.get("PATH") ?? "").split(":"),
    // Not in everybody's PATH.
    "/usr/sbin",
    "/sbin",
  ];
  for (const dir of dirs) {
    if (!dir.startsWith("/")) continue;
    try {
      if (Deno.statSync(`${dir}/${name}`).isFile) return `${dir}/${name}`;
    } catch {
      // Not in this one.
    }
  }
  return undefined;
}

/** How a program ended. */
export interface RunResult {
  code: number;
  stdout: string;
  /** One line. */
  stderr: string;
}

/**
 * Runs a program to its end.
 *
 * @throws {DeadlineError} If it takes too long; it is told to stop, but a process that waits for a device may live on.
 */
export async function runProgram(
  name: string,
  args: string[],
  deadlineMs = RUN_DEADLINE_MS,
): Promise<RunResult> {
  const child = new Deno.Command(findProgram(name), {
    args,
    env: { LC_ALL: "C" },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  let timer: ReturnType<typeof setTimeout> | undefined;
  const expired = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      signalQuietly(child.pid, "SIGTERM");
      child.unref();
      reject(new DeadlineError(`${name} ${args.join(" ")}`, deadlineMs));
    }, deadlineMs);
  });
  try {
    const { code, stdout, stderr } = await Promise.race([
      child.output(),
      expired,
    ]);
    return {
      code,
      stdout: fromUtf8(stdout),
      stderr: oneLine(fromUtf8(stderr)),
    };
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Runs a program that must succeed.
 *
 * @returns Its stdout.
 * @throws {ObdError} With what it said, if it fails.
 */
export async function mustRun(
  action: string,
  name: string,
  args: string[],
  deadlineMs?: number,
): Promise<string> {
  const { code, stdout, stderr } = await runProgram(name, args, deadlineMs);
  if (code === 0) return stdout;
  throw new ObdError(
    "state",
    `Cannot ${action}: ${name} ended with ${code}${stderr && `: ${stderr}`}`,
  );
}

function oneLine(text: string): string {
  return text.trim().replaceAll(/\s*\n\s*/g, "; ").slice(0, 2000);
}

/** A program that goes on when this process ends. */
export interface Detached {
  process: ProcessRef;
  /** Whether it has ended, and how. */
  exitCode(): number | undefined;
}

/**
 * Starts a program in a session of its own, in `/`, with nothing of ours open.
 *
 * @param logPath Gets its stderr.
 * @param outPath Gets its stdout; both are made with mode 0600.
 * @param options.boundsFiles No file of its gets larger than a log may be: for
 * a program that does not cut its log (nbdfuse has a line for every read that
 * fails) and writes nothing else.
 */
export async function startDetached(
  command: string[],
  logPath: string,
  outPath: string,
  options: { boundsFiles?: boolean } = {},
): Promise<Detached> {
  // The shell is replaced by the program, which keeps the process's id. What
  // serves a block device is the last thing that should be killed for memory.
  const script = `umask 077
    { echo -900 >/proc/self/oom_score_adj; } 2>/dev/null
    unset NOTIFY_SOCKET LISTEN_FDS LISTEN_PID
    out=$1 log=$2 blocks=$3; shift 3
    [ -z "$blocks" ] || { trap "" XFSZ; ulimit -f "$blocks"; }
    exec "$@" >>"$out" 2>>"$log"`;
  const blocks = options.boundsFiles ? String(LOG_SIZE_MAX / LIMIT_BLOCK) : "";
  const child = new Deno.Command("/bin/sh", {
    args: ["-c", script, "sh", outPath, logPath, blocks, ...command],
    env: { OBD_LOG_SIZE_MAX: String(LOG_SIZE_MAX) },
    cwd: "/",
    stdin: "null",
    stdout: "null",
    stderr: "null",
    detached: true,
  }).spawn();
  let exitCode: number | undefined;
  child.status.then(({ code }) => exitCode = code);
  child.unref();
  const process = await processRef(child.pid);
  return {
    process: process ?? { pid: child.pid, startTicks: "gone" },
    exitCode: () => exitCode,
  };
}

/** Identifies a running process; undefined when there is none. */
export async function processRef(pid: number): Promise<ProcessRef | undefined> {
  try {
    const stat = await Deno.readTextFile(`/proc/${pid}/stat`);
    // The name in parentheses may hold anything; fields are counted behind it.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    if (fields[0] === "Z" || fields[0] === "X") return undefined;
    return { pid, startTicks: fields[19]! };
  } catch {
    return undefined;
  }
}

/** Whether it is this very process that runs. */
export async function isRunning(process: ProcessRef): Promise<boolean> {
  return (await processRef(process.pid))?.startTicks === process.startTicks;
}

/** Waits for a process to end. @returns Whether it did. */
export async function waitForEnd(
  process: ProcessRef,
  deadlineMs: number,
): Promise<boolean> {
  return await waitUntil(async () => !await isRunning(process), deadlineMs);
}

/**
 * Ends a process: SIGTERM, and SIGKILL after a deadline.
 *
 * @returns Whether it is gone.
 */
export async function endProcess(
  process: ProcessRef,
  deadlineMs: number,
): Promise<boolean> {
  if (!await isRunning(process)) return true;
  signalQuietly(process.pid, "SIGTERM");
  // A stopped process gets the signal only when it goes on.
  signalQuietly(process.pid, "SIGCONT");
  if (await waitForEnd(process, deadlineMs)) return true;
  signalQuietly(process.pid, "SIGKILL");
  return await waitForEnd(process, 5000);
}

function signalQuietly(pid: number, signal: Deno.Signal): void {
  try {
    Deno.kill(pid, signal);
  } catch {
    // It has ended in between.
  }
}

/** Asks again and again. @returns Whether the answer was yes before the deadline. */
export async function waitUntil(
  ready: () => boolean | Promise<boolean>,
  deadlineMs: number,
  signal?: AbortSignal,
): Promise<boolean> {
  const end = performance.now() + deadlineMs;
  for (let wait = 2;; wait = Math.min(wait * 1.5, 100)) {
    if (await ready()) return true;
    if (performance.now() >= end) return false;
    await delay(wait, signal);
  }
}

/** The last lines of a log file, in one line. */
export async function logTail(path: string): Promise<string> {
  try {
    using file = await Deno.open(path);
    const { size } = await file.stat();
    await file.seek(Math.max(0, size - LOG_TAIL_BYTES), Deno.SeekMode.Start);
    const bytes = new Uint8Array(LOG_TAIL_BYTES);
    const length = await file.read(bytes) ?? 0;
    const lines = fromUtf8(bytes.subarray(0, length)).trim().split("\n");
    return lines.slice(-LOG_TAIL_LINES).map((line) => line.trim()).join("; ");
  } catch {
    return "";
  }
}

/** Bytes that a path takes; sockets are bounded by it. */
export function pathBytes(path: string): number {
  return utf8(path).length;
}
