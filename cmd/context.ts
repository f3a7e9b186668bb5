/** What every command gets: where to log, what to print, how to reach registries, when to stop. */

import {
  CancelledError,
  errorText,
  printable,
  type Progress,
  UsageError,
} from "../lib/io/mod.ts";
import { type LogLevel, StderrLogger } from "./log.ts";
import { createProgress } from "./progress.ts";
import { printLine } from "./stdout.ts";

/** Options that every command takes. */
export interface CommonOptions {
  json?: boolean;
  quiet?: boolean;
  debug?: boolean;
  logFormat?: "text" | "json";
  plainHttp?: boolean;
  caFile?: string;
  tlsSkipVerify?: boolean;
  authfile?: string;
}

/** How to reach registries, as the command line said it. */
export interface RegistrySettings {
  plainHttp?: boolean;
  caFile?: string;
  tlsSkipVerify?: boolean;
  authFile?: string;
}

/** One run of one command. */
export interface Context {
  readonly json: boolean;
  readonly quiet: boolean;
  readonly debug: boolean;
  readonly log: StderrLogger;
  readonly progress: Progress;
  readonly registry: RegistrySettings;
  /** Aborted by SIGINT, SIGTERM and, unless the process has no terminal to lose, SIGHUP. */
  readonly signal: AbortSignal;
  /** Prints for people on stdout; nothing under `--json` and `--quiet`. */
  say(line: string): void;
  /** Prints the command's one JSON object; nothing without `--json`. */
  result(value: unknown): void;
  /** Prints the one line on stderr that goes with exit code 1, for a failure that is a result. */
  complain(line: string): void;
}

const SIGNALS: Deno.Signal[] = ["SIGINT", "SIGTERM", "SIGHUP"];

/**
 * Runs a command with a context made from its options.
 *
 * @param level Least severe lines that are shown without `--debug` and `--quiet`.
 * @returns The exit code: 0, 1 failure, 2 usage, 130 after SIGINT.
 */
export async function runWithContext(
  options: CommonOptions,
  level: LogLevel,
  work: (context: Context) => Promise<number | void>,
): Promise<number> {
  const debug = options.debug ?? false;
  const log = new StderrLogger({
    level: debug ? "debug" : options.quiet ? "error" : level,
    format: options.logFormat ?? "text",
  });
  const progress = createProgress(
    (options.quiet ?? false) || (options.json ?? false),
  );
  log.beforeWrite = () => progress.clear?.();
  const stop = new AbortController();
  let stoppedBy: Deno.Signal | undefined;
  const ignoresHangup = isHangupIgnored();
  const handlers = SIGNALS.map((name) => {
    const handler = () => {
      if (name === "SIGHUP" && ignoresHangup) return;
      // A second signal ends a clean-up that hangs.
      if (stoppedBy) Deno.exit(name === "SIGINT" ? 130 : 1);
      stoppedBy = name;
      stop.abort(new CancelledError(`Stopped by ${name}`));
    };
    Deno.addSignalListener(name, handler);
    return [name, handler] as const;
  });
  const context: Context = {
    json: options.json ?? false,
    quiet: options.quiet ?? false,
    debug,
    log,
    progress,
    registry: {
      ...(options.plainHttp ? { plainHttp: true } : {}),
      ...(options.caFile ? { caFile: options.caFile } : {}),
      ...(options.tlsSkipVerify ? { tlsSkipVerify: true } : {}),
      ...(options.authfile ? { authFile: options.authfile } : {}),
    },
    signal: stop.signal,
    say: (line) => {
      if (options.json || options.quiet) return;
      progress.clear?.();
      printLine(line);
    },
    result: (value) => {
      if (options.json) printLine(JSON.stringify(value));
    },
    complain: (line) => {
      progress.clear?.();
      console.error(errorLine(line));
    },
  };
  try {
    return (await work(context)) ?? 0;
  } catch (error) {
    progress.close?.();
    return reportFailure(error, debug, stoppedBy);
  } finally {
    progress.close?.();
    for (const [name, handler] of handlers) {
      Deno.removeSignalListener(name, handler);
    }
  }
}

/**
 * Whether this process is to outlive its terminal, as under nohup(1), or never
 * had one, as a service that tells its manager when it is ready: there SIGHUP
 * asks for a new look at files, and ending would take all devices along.
 */
function isHangupIgnored(): boolean {
  if (Deno.env.get("NOTIFY_SOCKET")) return true;
  try {
    const status = Deno.readTextFileSync("/proc/self/status");
    const mask = /^SigIgn:\s*([0-9a-f]+)$/m.exec(status)?.[1];
    return mask !== undefined && (BigInt(`0x${mask}`) & 1n) !== 0n;
  } catch {
    return false;
  }
}

/** Prints one clear line for an error and returns the exit code that it means. */
export function reportFailure(
  error: unknown,
  debug: boolean,
  stoppedBy?: Deno.Signal,
): number {
  const isStopped = stoppedBy !== undefined && error instanceof CancelledError;
  const text = isStopped ? `Stopped by ${stoppedBy}` : errorText(error);
  console.error(errorLine(text));
  if (debug && error instanceof Error) console.error(error.stack);
  if (stoppedBy === "SIGINT") return 130;
  return error instanceof UsageError ? 2 : 1;
}

/** One line whatever the text is. */
function errorLine(text: string): string {
  return `obd: ${printable(text.replaceAll(/\s*\n\s*/g, " "))}`;
}
