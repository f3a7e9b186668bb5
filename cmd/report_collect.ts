/** What goes into `obd report`: facts about this machine and a running serve, without secrets. */

import { parse, type ParseError } from "jsonc-parser";
import { errorText, exists, fromUtf8, ObdError } from "../lib/io/mod.ts";
import type { ServeStatus } from "./api.ts";
import { ApiUnreachableError, createApiClient } from "./api_client.ts";
import { configFiles, loadConfig } from "./config.ts";
import { hasProgram, runProgram } from "./mount_process.ts";
import { runDirectory } from "./mount_state.ts";
import { redactText, redactValue } from "./redact.ts";
import { VERSION } from "./version.ts";

/** Programs that obd uses, and how they say their version. */
const TOOLS: Record<string, string> = {
  nbdfuse: "--version",
  fusermount3: "--version",
  "nbd-client": "--version",
  losetup: "--version",
  mount: "--version",
  modinfo: "--version",
};
const TOOL_DEADLINE_MS = 5000;
/** Part of the environment that changes what obd does. */
const ENVIRONMENT =
  /^(OBD_|DENO_|XDG_RUNTIME_DIR$|DOCKER_CONFIG$|REGISTRY_AUTH_FILE$|NOTIFY_SOCKET$|(HTTPS?|NO|ALL)_PROXY$)/i;
const CONFIG_SIZE_MAX = 1024 * 1024;
/** Bytes of the end of each log that are taken. */
const LOG_TAIL = 256 * 1024;
/** Mounts that are looked into. */
const MOUNTS_MAX = 256;

/** A tool of the machine. */
export interface ToolFact {
  found: boolean;
  version?: string;
}

/** One configuration file, or why it cannot be read. */
export interface ConfigFile {
  file: string;
  content?: unknown;
  problem?: string;
}

/** Everything that is collected. */
export interface Report {
  created: string;
  versions: {
    obd: string;
    deno: string;
    v8: string;
    typescript: string;
    target: string;
    kernel: string;
    system: string;
  };
  machine: { cores: number; memoryBytes: number; user: number | null };
  nbdModule: string;
  tools: Record<string, ToolFact>;
  environment: Record<string, unknown>;
  serve: {
    api: string;
    /** Its command line, when it runs on this machine and may be looked at. */
    command?: string[];
    status?: unknown;
    problem?: string;
  };
  config: {
    files: ConfigFile[];
    /** With all defaults, as `serve` would see it. */
    effective?: unknown;
    problem?: string;
  };
  mounts: { id: string; state?: unknown; problem?: string }[];
  metrics?: string;
  /** Last lines of the running serve, oldest first. */
  log: string[];
  /** Ends of the logs of mounts, by `ID/FILE`. */
  mountLogs: Record<string, string>;
}

/** What to collect. */
export interface CollectOptions {
  /** Address of the API; default that of `obd serve`. */
  api?: string | undefined;
  /** Configuration; default that of the running serve. */
  config?: string[] | undefined;
  signal: AbortSignal;
}

/** Collects everything that is there; what is not is said in its place. */
export async function collectReport(options: CollectOptions): Promise<Report> {
  const api = options.api ?? `unix:${runDirectory()}/api.sock`;
  const serve = await askServe(api, options.signal);
  const paths = options.config ?? configOf(serve.command ?? [], serve.cwd);
  const mounts = await collectMounts();
  const { cwd: _, metrics, log, ...rest } = serve;
  return {
    created: new Date().toISOString(),
    versions: {
      obd: VERSION,
      ...Deno.version,
      target: Deno.build.target,
      kernel: Deno.osRelease(),
      system: await systemName(),
    },
    machine: {
      cores: navigator.hardwareConcurrency,
      memoryBytes: Deno.systemMemoryInfo().total,
      user: Deno.uid(),
    },
    nbdModule: await nbdModule(),
    tools: await collectTools(),
    environment: collectEnvironment(),
    serve: rest,
    config: await collectConfig(paths),
    mounts: mounts.states,
    ...(metrics === undefined ? {} : { metrics }),
    log,
    mountLogs: mounts.logs,
  };
}

interface ServeFacts {
  api: string;
  command?: string[];
  cwd?: string;
  status?: unknown;
  problem?: string;
  metrics?: string;
  log: string[];
}

async function askServe(api: string, signal: AbortSignal): Promise<ServeFacts> {
  const facts: ServeFacts = { api, log: [] };
  using client = createApiClient(api);
  try {
    const status = await client.status({ signal });
    facts.status = redactValue(status);
    facts.metrics = redactText(await client.metrics({ signal }));
    facts.log = (await client.log({ signal })).map(redactText);
    if (api.startsWith("unix:")) Object.assign(facts, await processOf(status));
  } catch (error) {
    signal.throwIfAborted();
    if (!(error instanceof ObdError)) throw error;
    facts.problem = error instanceof ApiUnreachableError
      ? error.message
      : redactText(errorText(error));
  }
  return facts;
}

/** Command line and directory of the process behind a local socket. */
async function processOf(
  { pid }: ServeStatus,
): Promise<{ command?: string[]; cwd?: string }> {
  try {
    const text = await Deno.readTextFile(`/proc/${pid}/cmdline`);
    const command = text.replace(/\0$/, "").split("\0");
    if (!command.includes("serve")) return {};
    return {
      command: command.map(redactText),
      cwd: await Deno.readLink(`/proc/${pid}/cwd`),
    };
  } catch {
    return {}; // gone, or somebody else's
  }
}

/** Values of `--config` on a command line, as absolute paths. */
export function configOf(command: string[], cwd = "/"): string[] {
  return command.flatMap((arg, i) => {
    const path = arg.startsWith("--config=")
      ? arg.slice("--config=".length)
      : command[i - 1] === "--config"
      ? arg
      : undefined;
    if (path === undefined) return [];
    return [path.startsWith("/") ? path : `${cwd}/${path}`];
  });
}

async function collectConfig(paths: string[]): Promise<Report["config"]> {
  if (paths.length === 0) return { files: [] };
  const config: Report["config"] = { files: [] };
  try {
    for (const file of await configFiles(paths)) {
      config.files.push(await readConfig(file));
    }
    config.effective = redactValue(await loadConfig(paths));
  } catch (error) {
    config.problem = redactText(errorText(error));
  }
  return config;
}

/** The values only: comments may hold anything. */
async function readConfig(file: string): Promise<ConfigFile> {
  try {
    const { size } = await Deno.stat(file);
    if (size > CONFIG_SIZE_MAX) return { file, problem: `has ${size} bytes` };
    const errors: ParseError[] = [];
    const content: unknown = parse(await Deno.readTextFile(file), errors, {
      allowTrailingComma: true,
    });
    // What does not parse cannot be cleaned of secrets either.
    return errors.length > 0
      ? { file, problem: "is not valid JSON" }
      : { file, content: redactValue(content) };
  } catch (error) {
    return { file, problem: errorText(error) };
  }
}

async function collectTools(): Promise<Record<string, ToolFact>> {
  const entries = Object.entries(TOOLS).map(
    async ([name, flag]): Promise<[string, ToolFact]> => {
      if (!hasProgram(name)) return [name, { found: false }];
      try {
        const { stdout, stderr } = await runProgram(
          name,
          [flag],
          TOOL_DEADLINE_MS,
        );
        const version = (stdout.trim() || stderr).split("\n")[0]!.slice(0, 200);
        return [name, { found: true, version }];
      } catch {
        return [name, { found: true }];
      }
    },
  );
  return Object.fromEntries(await Promise.all(entries));
}

/** Whether the kernel has an NBD driver, in words. */
async function nbdModule(): Promise<string> {
  if (await exists("/sys/block/nbd0")) return "loaded";
  if (!hasProgram("modinfo")) return "not loaded";
  try {
    const { code } = await runProgram("modinfo", ["nbd"], TOOL_DEADLINE_MS);
    return code === 0 ? "not loaded (modprobe nbd)" : "not there";
  } catch {
    return "not loaded";
  }
}

function collectEnvironment(): Record<string, unknown> {
  const all = Object.entries(Deno.env.toObject())
    .filter(([name]) => ENVIRONMENT.test(name)).sort();
  return redactValue(Object.fromEntries(all)) as Record<string, unknown>;
}

async function systemName(): Promise<string> {
  try {
    const text = await Deno.readTextFile("/etc/os-release");
    return /^PRETTY_NAME="?([^"\n]*)"?$/m.exec(text)?.[1] ?? Deno.build.os;
  } catch {
    return Deno.build.os;
  }
}

/** State files and the ends of the logs of all mounts, whole or broken. */
async function collectMounts(): Promise<{
  states: Report["mounts"];
  logs: Record<string, string>;
}> {
  const root = `${runDirectory()}/mounts`;
  const ids: string[] = [];
  try {
    for await (const entry of Deno.readDir(root)) {
      if (entry.isDirectory && ids.length < MOUNTS_MAX) ids.push(entry.name);
    }
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return { states: [], logs: {} };
    return {
      states: [{ id: "", problem: `${root}: ${errorText(error)}` }],
      logs: {},
    };
  }
  const states: Report["mounts"] = [];
  const logs: Record<string, string> = {};
  for (const id of ids.sort()) {
    try {
      const text = await readTail(`${root}/${id}/state.json`);
      states.push({ id, state: redactValue(JSON.parse(text)) });
    } catch (error) {
      states.push({ id, problem: errorText(error) });
    }
    for (const name of ["serve.log", "nbdfuse.log"]) {
      try {
        logs[`${id}/${name}`] = redactText(
          await readTail(`${root}/${id}/${name}`),
        );
      } catch {
        // Not every mount has one.
      }
    }
  }
  return { states, logs };
}

async function readTail(path: string): Promise<string> {
  using file = await Deno.open(path);
  const { size } = await file.stat();
  await file.seek(Math.max(0, size - LOG_TAIL), Deno.SeekMode.Start);
  const bytes = new Uint8Array(Math.min(size, LOG_TAIL));
  let length = 0;
  while (length < bytes.length) {
    const n = await file.read(bytes.subarray(length));
    if (n === null) break;
    length += n;
  }
  return fromUtf8(bytes.subarray(0, length));
}
