/** What a result must say of where it was measured, and what must be installed for that. */

import { fileURLToPath } from "node:url";
import { ObdError } from "../../lib/io/mod.ts";
import { hasProgram, runProgram } from "../mount_process.ts";
import { VERSION } from "../version.ts";
import type { MachineFacts } from "./result.ts";

/** A program that a bench runs, and Debian's package of it. */
type Program = readonly [program: string, debian: string];

const ALWAYS: readonly Program[] = [
  ["docker-registry", "docker-registry"],
  ["skopeo", "skopeo"],
];
/** For containers and a shaped link, which need root. */
const FULL: readonly Program[] = [
  ["containerd", "containerd"],
  ["ctr", "containerd"],
  ["ip", "iproute2"],
  ["tc", "iproute2"],
  ["nsenter", "util-linux"],
  ["losetup", "mount"],
  ["nbdfuse", "libnbd-bin"],
  // containerd unpacks with it where it is there.
  ["unpigz", "pigz"],
  ["runc", "runc"],
];
/** Unpacks without containerd; images of the tree are made with it too. */
const UMOCI: Program = ["umoci", "umoci"];
/** Needed only to make the images of the tree. */
const IMAGE_PROGRAMS: readonly Program[] = [
  ["bash", "bash"],
  ["debootstrap", "debootstrap"],
];
/** Finds out which files a command opens. */
const TRACER: readonly Program[] = [
  ["strace", "strace"],
  ["unshare", "util-linux"],
];

/** What a bench will do, as far as it decides which programs it needs. */
export interface Needs {
  mode: "full" | "reduced";
  /** Images of the tree. */
  makesImages: boolean;
  /** Without containerd. */
  unpacks: boolean;
  /** Which files a command opens, without root. */
  traces: boolean;
}

/** @throws {ObdError} Naming every package that is missing, in one line. */
export function requirePackages(needs: Needs): void {
  const programs = [
    ...ALWAYS,
    ...(needs.mode === "full" ? FULL : []),
    ...(needs.unpacks || needs.makesImages ? [UMOCI] : []),
    ...(needs.makesImages ? IMAGE_PROGRAMS : []),
    ...(needs.traces ? TRACER : []),
  ];
  const missing = new Set(
    programs.filter(([program]) => !hasProgram(program)).map(([, debian]) =>
      debian
    ),
  );
  if (missing.size === 0) return;
  throw new ObdError(
    "not-found",
    `Missing programs: apt-get install ${[...missing].sort().join(" ")}`,
  );
}

/** The machine, as a line of JSON has it. */
export type Machine = Pick<
  MachineFacts,
  "cpu" | "cores" | "memoryBytes" | "kernel" | "versions" | "commit" | "program"
>;

/** Describes this machine. */
export async function describeMachine(): Promise<Machine> {
  const cpuinfo = await readText("/proc/cpuinfo");
  const firstLine = async (name: string, ...args: string[]) => {
    try {
      const { stdout, stderr } = await runProgram(name, args);
      return (stdout.trim() || stderr).split("\n")[0]!.slice(0, 200);
    } catch {
      return "unknown";
    }
  };
  return {
    cpu: /^model name\s*:\s*(.+)$/m.exec(cpuinfo)?.[1] ?? "unknown",
    cores: navigator.hardwareConcurrency,
    memoryBytes: Deno.systemMemoryInfo().total,
    kernel: Deno.osRelease(),
    versions: {
      obd: VERSION,
      deno: Deno.version.deno,
      containerd: await firstLine("containerd", "--version"),
      runc: await firstLine("runc", "--version"),
      "docker-registry": await firstLine("docker-registry", "--version"),
      pigz: await firstLine("pigz", "--version"),
      nbdfuse: await firstLine("nbdfuse", "--version"),
      skopeo: await firstLine("skopeo", "--version"),
      umoci: await firstLine("umoci", "--version"),
    },
    commit: await commitOfTree(),
    program: describeProgram(),
  };
}

async function commitOfTree(): Promise<string | null> {
  const here = new URL(".", import.meta.url);
  if (here.protocol !== "file:" || !hasProgram("git")) return null;
  try {
    const { code, stdout } = await runProgram("git", [
      "-C",
      here.pathname,
      "rev-parse",
      "HEAD",
    ]);
    return code === 0 ? stdout.trim() : null;
  } catch {
    return null;
  }
}

/** What runs: the source tree, or what a released file has unpacked below a hash of it (packaging/header.sh). */
function describeProgram(): string {
  if (Deno.build.standalone) return "compiled executable";
  const main = fileURLToPath(Deno.mainModule);
  if (!main.endsWith(".js")) return "source tree";
  const hash = /\/([0-9a-f]{64})\/program\/main\.js$/.exec(main)?.[1];
  return hash ? `bundle ${hash}` : "bundle";
}

async function readText(path: string): Promise<string> {
  return await Deno.readTextFile(path).catch(() => "");
}
